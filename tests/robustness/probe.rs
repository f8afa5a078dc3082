//! Each finding on a model that has it; the honest network has none.

use gauntlet::protocol::{Finding, ModelSpec};
use gauntlet::robustness::model::{Classifier, MemoryFormat, Rejection, TorchScript, probe};
use tch::{Device, Kind, Tensor};

use crate::support::*;

fn look(model: &dyn Classifier) -> Result<Vec<Finding>, Rejection> {
    let [channels, height, width] = model.spec().input.map(i64::from);
    let images = (uniform(&[8, channels, height, width], 0.0, 1.0, 77) * 255.0).to_kind(Kind::Uint8);
    probe(model, &images)
}

/// The codes found on the honest network once `twist` has been at its input or output.
fn codes(stochastic: bool, twist: impl Fn(&Tensor, &dyn Fn(&Tensor) -> Tensor) -> Tensor) -> Vec<String> {
    let inner = convnet(1);
    let logits = move |images: &Tensor| twist(images, &inner.logits);
    let model = Model { spec: ModelSpec { stochastic, ..spec([1, 8, 8], 3) }, logits };
    look(&model).expect("odd, but not rejected").into_iter().map(|finding| finding.code).collect()
}

fn noise(like: &Tensor) -> Tensor {
    like.randn_like()
}

#[test]
fn an_honest_model_has_no_findings() {
    assert_eq!(codes(false, |images, net| net(images)), [""; 0]);
    assert_eq!(codes(true, |images, net| net(&(images + noise(images) * 0.1))), [""; 0]);
}

#[test]
fn each_oddity_is_found_and_nothing_else() {
    let quantised = |images: &Tensor, net: &dyn Fn(&Tensor) -> Tensor| net(&((images * 16.0).round() / 16.0));
    assert_eq!(codes(false, quantised), ["zero_gradients"]);
    assert_eq!(codes(false, |images, net| net(&images.detach())), ["zero_gradients"]);
    assert_eq!(codes(false, |images, net| net(images).softmax(1, Kind::Float)), ["softmax_output"]);
    assert_eq!(codes(false, |images, net| net(&(images + noise(images) * 0.1))), ["undeclared_randomness"]);
    assert_eq!(codes(true, |images, net| net(images)), ["declared_stochastic_but_deterministic"]);
    let shared = |images: &Tensor, net: &dyn Fn(&Tensor) -> Tensor| {
        let logits = net(images);
        &logits - logits.mean_dim(0, true, Kind::Float)
    };
    assert_eq!(codes(false, shared), ["batch_dependent_output"]);
    let by_size = |images: &Tensor, net: &dyn Fn(&Tensor) -> Tensor| net(images) / images.size()[0];
    assert_eq!(codes(false, by_size), ["batch_dependent_output"]);
    assert_eq!(codes(false, |images, net| net(images) * 1e4), ["wild_logit_scale"]);
    assert_eq!(codes(false, |images, net| net(images) * 1e-5), ["wild_logit_scale"]);
    assert_eq!(codes(false, |images, net| net(&(images + (images * 0.0).sqrt()))), ["nan_gradients"]);
}

fn rejection(logits: impl Fn(&Tensor) -> Tensor) -> Rejection {
    look(&Model { spec: spec([1, 8, 8], 3), logits }).expect_err("cannot be evaluated")
}

#[test]
fn what_cannot_be_evaluated_is_rejected_with_what_was_found() {
    let net = convnet(1);
    let four = rejection(|images| Tensor::cat(&[(net.logits)(images), (net.logits)(images).narrow(1, 0, 1)], 1));
    assert_eq!(four.code, "wrong_class_count");
    assert_eq!(four.found, "logits have shape [8, 4], expected [8, 3] (images, classes)");
    assert_eq!(rejection(|images| (net.logits)(images).unsqueeze(2)).code, "wrong_output_shape");
    assert_eq!(
        rejection(|images| (net.logits)(images).argmax(1, true).expand([-1, 3], false)).code,
        "wrong_output_type"
    );
    let infinite = rejection(|images| {
        let bright = images.flatten(1, -1).mean_dim(1, true, Kind::Float);
        (net.logits)(images) / (&bright - bright.max())
    });
    assert_eq!(infinite.code, "non_finite_logits");
    assert_eq!(infinite.found, "logits are not finite on 1 of 8 real images");
}

#[test]
fn torchscript_that_does_not_load_or_run_is_rejected() {
    let garbage =
        TorchScript::load_bytes(b"not an archive", spec([1, 8, 8], 3), Device::Cpu, MemoryFormat::ChannelsFirst);
    assert_eq!(Rejection::from(garbage.unwrap_err()).code, "does_not_load");
    // Traced at 8 × 8, shown 9 × 9.
    let net = convnet(1);
    let example = Tensor::zeros([1, 1, 8, 8], (Kind::Float, Device::Cpu));
    let module =
        tch::CModule::create_by_tracing("Net", "forward", &[example], &mut |inputs| vec![(net.logits)(&inputs[0])]);
    let model = TorchScript::from_module(module.unwrap(), spec([1, 9, 9], 3), Device::Cpu).unwrap();
    assert_eq!(look(&model).unwrap_err().code, "forward_fails");
}
