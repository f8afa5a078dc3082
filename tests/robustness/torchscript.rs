use std::ops::ControlFlow;

use gauntlet::protocol::*;
use gauntlet::robustness::model::{Classifier, MemoryFormat, TorchScript};
use gauntlet::robustness::rng::Stream;
use gauntlet::robustness::training::{Examples, Options, train};
use tch::{CModule, Device, Kind, Tensor};

use crate::support::*;

fn traced() -> CModule {
    let net = convnet(1);
    let example = Tensor::zeros([1, 1, 8, 8], (Kind::Float, Device::Cpu));
    CModule::create_by_tracing("Net", "forward", &[example], &mut |inputs| vec![(net.logits)(&inputs[0])]).unwrap()
}

#[test]
fn a_saved_model_loads_again_in_either_memory_format() {
    let spec = spec([1, 8, 8], 3);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.pt");
    traced().save(&path).unwrap();
    let images = uniform(&[5, 1, 8, 8], 0.0, 1.0, 6);
    let expected = (convnet(1).logits)(&images);
    let bytes = std::fs::read(&path).unwrap();
    for format in [MemoryFormat::ChannelsFirst, MemoryFormat::ChannelsLast] {
        let model = TorchScript::load(&path, spec.clone(), Device::Cpu, format).unwrap();
        assert!(model.logits(&images).unwrap().allclose(&expected, 1e-5, 1e-6, false), "{format:?}");
        let model = TorchScript::load_bytes(&bytes, spec.clone(), Device::Cpu, format).unwrap();
        assert!(model.logits(&images).unwrap().allclose(&expected, 1e-5, 1e-6, false), "{format:?}");
    }
}

#[test]
fn normalisation_is_inside_the_model() {
    let preprocessing = Preprocessing { mean: vec![0.4], std: vec![0.25] };
    let with = ModelSpec { preprocessing: Some(preprocessing), ..spec([1, 8, 8], 3) };
    let model = TorchScript::from_module(traced(), with, Device::Cpu).unwrap();
    let images = uniform(&[5, 1, 8, 8], 0.0, 1.0, 6);
    let expected = (convnet(1).logits)(&((&images - 0.4) / 0.25));
    assert!(model.logits(&images).unwrap().allclose(&expected, 1e-5, 1e-5, false));
}

/// Bright left or bright right halves, with noise.
fn halves(count: u32) -> (Vec<u8>, Vec<u32>) {
    let mut stream = Stream::new(9, 0, 0, 0);
    let labels: Vec<u32> = (0..count).map(|_| stream.below(2) as u32).collect();
    let mut pixels = Vec::new();
    for label in &labels {
        for position in 0..64u32 {
            let bright = (position % 8 < 4) == (*label == 0);
            pixels.push((stream.below(100) + if bright { 120 } else { 20 }) as u8);
        }
    }
    (pixels, labels)
}

#[test]
fn training_learns_and_repeats() {
    spec([1, 8, 8], 2);
    let (pixels, labels) = halves(300);
    let examples = Examples { pixels: &pixels, labels: &labels, side: 8, classes: 2 };
    for adversarial in [None, Some(0.05)] {
        let options = Options { seed: 1, epochs: 6, learning_rate: 5e-3, adversarial };
        let run = || {
            let mut last = None;
            let module = train(examples, &options, &mut |epoch| {
                last = Some(epoch);
                ControlFlow::Continue(())
            });
            (module.unwrap(), last.unwrap())
        };
        let ((module, epoch), (again, _)) = (run(), run());
        assert!(epoch.number == 6 && epoch.accuracy > 0.95, "{adversarial:?}: {epoch:?}");
        let images = uniform(&[3, 1, 8, 8], 0.0, 1.0, 8);
        let logits = |module: &CModule| module.forward_ts(&[&images]).unwrap();
        assert_eq!(logits(&module), logits(&again));
    }
}
