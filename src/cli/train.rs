//! `gauntlet train-digits`: how the demo's models were made.

use std::ops::ControlFlow;
use std::path::PathBuf;

use clap::Args;

use crate::dataset::{Geometry, Resize, Source, SourceOptions};
use crate::robustness::runtime;
use crate::robustness::training::{Examples, Options, train};

#[derive(Debug, Args)]
pub struct TrainArguments {
    /// `data/digits/digits.npz`, or anything else that reads as small grey images.
    #[arg(long, default_value = "data/digits/digits.npz")]
    digits: PathBuf,
    /// Side of the images in pixels, a multiple of 8.
    #[arg(long, default_value_t = 32)]
    side: u32,
    /// Train on this many images from the first.
    #[arg(long, default_value_t = 1297)]
    images: usize,
    #[arg(long, default_value_t = 40)]
    epochs: u32,
    /// Train on PGD examples at this L∞ radius.
    #[arg(long, value_name = "EPSILON")]
    adversarial: Option<f64>,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The TorchScript file to write.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

pub fn run(arguments: TrainArguments) -> anyhow::Result<()> {
    // One thread: the same file on every machine of the same kind.
    runtime::initialise(1)?;
    let geometry = Geometry { resize: Some(Resize::Square(arguments.side)), crop: None };
    let source = Source::open(&arguments.digits, &SourceOptions { geometry, ..SourceOptions::default() })?;
    let batch = source.read(0..arguments.images.min(source.len()), &(std::sync::Arc::new(|_| {}) as _))?;
    let options = Options {
        seed: arguments.seed,
        epochs: arguments.epochs,
        learning_rate: 2e-3,
        adversarial: arguments.adversarial,
    };
    let examples =
        Examples { pixels: &batch.pixels, labels: &batch.labels, side: arguments.side, classes: source.classes() };
    let module = train(examples, &options, &mut |epoch| {
        println!("epoch {:3}: loss {:.4}, accuracy {:.4}", epoch.number, epoch.loss, epoch.accuracy);
        ControlFlow::Continue(())
    })?;
    module.save(&arguments.output)?;
    println!("wrote {}", arguments.output.display());
    Ok(())
}
