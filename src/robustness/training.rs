//! Trains a small convolutional network on small grey images, normally or adversarially (Madry et al. 2018): the command
//! behind the demo's two models. Equal inputs give equal files under one numeric profile.

use std::ops::ControlFlow;

use tch::{CModule, Device, Kind, Tensor, nn, nn::OptimizerConfig};

use super::attack::Goal;
use super::engine::{Kernel, Objective};
use super::model::{Classifier, ModelError, to_unit};
use super::rng::Stream;
use super::threat::{linf_bounds, random_start, unit_ball};
use crate::protocol::{Format, Loss, ModelSpec, Norm};

/// Images per optimiser step.
const BATCH: usize = 100;
/// Names the random numbers of training among all others.
const CONDITION: u64 = 0x7472_6169_6e69_6e67;

/// How to train.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    pub seed: u64,
    pub epochs: u32,
    /// Peak learning rate of Adam; it falls to 0 along a half cosine.
    pub learning_rate: f64,
    /// Train on PGD examples at this L∞ radius instead of the images themselves.
    pub adversarial: Option<f64>,
}

impl Options {
    /// How `models/digits/standard.pt` and (`adversarial`) `models/digits/robust.pt` were made, on one thread, from the
    /// first 1,297 handwritten digits at 32×32.
    pub fn digits(adversarial: bool) -> Self {
        Self { seed: 0, epochs: 40, learning_rate: 2e-3, adversarial: adversarial.then_some(0.2) }
    }
}

/// Labelled square grey images.
#[derive(Debug, Clone, Copy)]
pub struct Examples<'a> {
    /// uint8, n × side × side
    pub pixels: &'a [u8],
    pub labels: &'a [u32],
    /// A multiple of 8.
    pub side: u32,
    pub classes: u32,
}

/// What one pass over the images did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Epoch {
    /// 1 to [`Options::epochs`].
    pub number: u32,
    /// Mean cross-entropy on what was trained on.
    pub loss: f64,
    /// Share of it that was classified correctly before each step.
    pub accuracy: f64,
}

#[derive(Debug, thiserror::Error)]
pub enum TrainingError {
    #[error("{0}")]
    Input(String),
    #[error("stopped on request")]
    Stopped,
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error("the model does not trace: {0}")]
    Trace(#[from] tch::TchError),
}

/// Trains on the CPU and returns a TorchScript module: images float32 [n, 1, side, side] in [0,1] to logits.
pub fn train(
    examples: Examples,
    options: &Options,
    progress: &mut dyn FnMut(Epoch) -> ControlFlow<()>,
) -> Result<CModule, TrainingError> {
    let Examples { pixels, labels, side, classes } = examples;
    let count = labels.len();
    if count == 0 || side % 8 != 0 || pixels.len() != count * (side * side) as usize {
        return Err(TrainingError::Input(format!(
            "{count} labels need as many images of {side}×{side} pixels, side a multiple of 8; have {} pixels",
            pixels.len()
        )));
    }
    let store = nn::VarStore::new(Device::Cpu);
    let network = Network::new(&store.root(), side, classes, options.seed);
    let mut optimiser = nn::Adam::default().build(&store, options.learning_rate)?;
    let images = Tensor::from_data_size(pixels, &[count as i64, 1, side.into(), side.into()], Kind::Uint8);
    let images = to_unit(&images, Device::Cpu);
    let labels = Tensor::from_slice(&labels.iter().map(|label| i64::from(*label)).collect::<Vec<_>>());
    let batches = count.div_ceil(BATCH);
    let steps = f64::from(options.epochs) * batches as f64;

    for epoch in 0..options.epochs {
        let (mut loss_sum, mut correct) = (0.0, 0);
        for (step, rows) in shuffled(count, options.seed, epoch).chunks(BATCH).enumerate() {
            let done = (f64::from(epoch) * batches as f64 + step as f64) / steps;
            optimiser.set_lr(options.learning_rate * 0.5 * (1.0 + (std::f64::consts::PI * done).cos()));
            let index = Tensor::from_slice(rows);
            let (clean, truth) = (images.index_select(0, &index), labels.index_select(0, &index));
            let batch = match options.adversarial {
                // The radius grows over the first half: at full size from the start, the network learns nothing at all.
                Some(epsilon) => {
                    let epsilon = epsilon * (2.0 * done).min(1.0);
                    network.attacked(&clean, &truth, epsilon, rows, options.seed, epoch)?
                }
                None => clean,
            };
            let logits = network.forward(&batch);
            let loss = logits.cross_entropy_for_logits(&truth);
            optimiser.backward_step(&loss);
            loss_sum += loss.double_value(&[]) * rows.len() as f64;
            correct += logits.argmax(1, false).eq_tensor(&truth).sum(Kind::Int64).int64_value(&[]);
        }
        let number = epoch + 1;
        let report = Epoch { number, loss: loss_sum / count as f64, accuracy: correct as f64 / count as f64 };
        if progress(report).is_break() {
            return Err(TrainingError::Stopped);
        }
    }
    Ok(network.traced()?)
}

/// Row numbers 0..count in an order drawn for this epoch (Fisher and Yates).
fn shuffled(count: usize, seed: u64, epoch: u32) -> Vec<i64> {
    let mut rows: Vec<i64> = (0..count as i64).collect();
    let mut stream = Stream::new(seed, CONDITION, u32::MAX, epoch);
    for last in (1..count).rev() {
        rows.swap(last, stream.below(last as u64 + 1) as usize);
    }
    rows
}

/// Three 3×3 convolutions of stride 2 and a linear layer.
struct Network {
    /// Weight and bias of each layer, first to last.
    layers: [(Tensor, Tensor); 4],
    spec: ModelSpec,
}

impl Network {
    fn new(path: &nn::Path, side: u32, classes: u32, seed: u64) -> Self {
        let flat = 64 * i64::from(side / 8).pow(2);
        let shapes: [&[i64]; 4] = [&[16, 1, 3, 3], &[32, 16, 3, 3], &[64, 32, 3, 3], &[classes.into(), flat]];
        let mut draw = 0;
        let layers = shapes.map(|shape| {
            draw += 1;
            let mut stream = Stream::new(seed, CONDITION, u32::MAX - 1, draw);
            let inputs: i64 = shape[1..].iter().product();
            // He et al. 2015: variance 2 / fan-in, here of a uniform distribution.
            let bound = (6.0 / inputs as f64).sqrt();
            let values: Vec<f32> =
                (0..shape[0] * inputs).map(|_| ((2.0 * stream.uniform() - 1.0) * bound) as f32).collect();
            let weight = path.var_copy(&format!("weight{draw}"), &Tensor::from_slice(&values).view(shape));
            (weight, path.zeros(&format!("bias{draw}"), &shape[..1]))
        });
        let spec = ModelSpec {
            format: Format::Torchscript,
            input: [1, side, side],
            classes,
            preprocessing: None,
            stochastic: false,
        };
        Self { layers, spec }
    }

    fn forward(&self, images: &Tensor) -> Tensor {
        let [convolutions @ .., (weight, bias)] = &self.layers;
        let features = convolutions.iter().fold(images.shallow_clone(), |features, (weight, bias)| {
            features.conv2d(weight, Some(bias), [2, 2], [1, 1], [1, 1], 1).relu()
        });
        features.flatten(1, -1).linear(weight, Some(bias))
    }

    /// PGD examples of `clean` at L∞ `epsilon`: 10 steps of ε/4 from a random start.
    fn attacked(
        &self,
        clean: &Tensor,
        labels: &Tensor,
        epsilon: f64,
        rows: &[i64],
        seed: u64,
        epoch: u32,
    ) -> Result<Tensor, ModelError> {
        const STEPS: usize = 10;
        let dimension = clean.numel() / rows.len();
        let unit: Vec<f64> = rows
            .iter()
            .flat_map(|row| unit_ball(Norm::Linf, dimension, &mut Stream::new(seed, CONDITION, *row as u32, epoch)))
            .collect();
        let radii = Tensor::from_slice(&vec![epsilon; rows.len()]);
        let (low, high) = linf_bounds(clean, &radii);
        let kernel = Kernel::new(self, rows.len() as i64);
        let labels = Vec::<i64>::try_from(labels).expect("a row of classes");
        let labels: Vec<u32> = labels.into_iter().map(|label| label as u32).collect();
        let goal = Goal { loss: Loss::CrossEntropy, target: None, float32_gradient: false };
        let objective = Objective::new(&labels, &vec![Some(goal); labels.len()], Device::Cpu);
        let mut points = random_start(clean, &Tensor::from_slice(&unit).view_as(clean), &radii);
        for _ in 0..STEPS {
            let gradient = kernel.evaluate(&points, &objective, 1, true)?.answer.gradient;
            points = (points + gradient.sign() * (0.25 * epsilon)).maximum(&low).minimum(&high);
        }
        Ok(points)
    }

    fn traced(&self) -> Result<CModule, tch::TchError> {
        let frozen = Self {
            layers: self.layers.each_ref().map(|(weight, bias)| (weight.detach(), bias.detach())),
            spec: self.spec.clone(),
        };
        let [channels, height, width] = self.spec.input.map(i64::from);
        let example = Tensor::zeros([1, channels, height, width], (Kind::Float, Device::Cpu));
        CModule::create_by_tracing("Digits", "forward", &[example], &mut |inputs| vec![frozen.forward(&inputs[0])])
    }
}

impl Classifier for Network {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn device(&self) -> Device {
        Device::Cpu
    }

    fn logits(&self, images: &Tensor) -> Result<Tensor, ModelError> {
        Ok(self.forward(images))
    }
}
