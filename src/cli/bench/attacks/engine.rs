//! The engine's side: evaluations in this process, with the bare passes of the model timed between their steps.

use std::cell::Cell as Shared;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use tch::{Cuda, Device as TchDevice, Kind, Tensor};

use super::super::Cell;
use super::canonical;
use crate::dataset::{Batch, Shape};
use crate::evaluator::counted::Counted;
use crate::evaluator::{calibrate, clock, new_profile, platform};
use crate::protocol::{Condition, Device, Format, ModelSpec, NumericProfile, Precision, VerdictRule};
use crate::robustness::engine::{Images, Kernel, Run, evaluate, pull_back};
use crate::robustness::model::{self, Classifier, TorchScript};
use crate::robustness::runtime::{self, Runtime};
use crate::wire::BatchWish;

/// Steps of the engine between two bare passes.
const EVERY: u32 = 8;

/// A model under its calibrated profile, and images for it.
pub struct Subject {
    pub file: PathBuf,
    model: TorchScript,
    pub profile: NumericProfile,
    images: Images,
}

/// What an evaluation took, without the pauses in which bare passes were timed.
#[derive(Debug, Clone, Default)]
pub struct Timed {
    pub seconds: f64,
    pub cpu_seconds: f64,
    /// Images that every condition left standing.
    pub standing: Vec<usize>,
    /// Seconds that the same passes take by themselves.
    pub needed: f64,
    /// Passes of images, and of rows, empty slots included.
    pub passes: f64,
    pub rows: f64,
}

impl Timed {
    pub fn add(&mut self, other: &Self) {
        self.seconds += other.seconds;
        self.cpu_seconds += other.cpu_seconds;
        self.needed += other.needed;
        self.passes += other.passes;
        self.rows += other.rows;
    }

    /// Share of the time that the needed passes of the model take, share of the slots that were not empty, and the time for all
    /// that is neither the needed passes nor, at their speed, the empty slots: attacks' arithmetic, examinations, books.
    pub fn efficiency(&self, id: &str) -> [Cell; 3] {
        let model = self.needed * self.rows / self.passes;
        [
            Cell::new(format!("efficiency/{id}"), self.needed, "s", self.seconds),
            Cell::new(format!("filled/{id}"), self.passes, "passes", self.rows),
            Cell::new(format!("rest/{id}"), self.seconds - model, "s", self.seconds),
        ]
    }
}

impl Subject {
    pub fn lenet(file: &Path, batch: &Batch, runtime: &'static Runtime) -> anyhow::Result<Self> {
        let shape = [batch.shape.channels, batch.shape.height, batch.shape.width];
        let images = Images {
            indices: (0..batch.labels.len() as u32).collect(),
            pixels: batch.pixels.clone(),
            labels: batch.labels.clone(),
        };
        Self::open(file, shape, 10, images, Device::Cpu, runtime)
    }

    /// Images without structure, labelled as the model sees them, so that an attack has to work for its success.
    pub fn untrained(
        file: &Path,
        shape: Shape,
        classes: u32,
        count: u32,
        device: Device,
        runtime: &'static Runtime,
    ) -> anyhow::Result<Self> {
        let bytes = count * shape.bytes() as u32;
        let pixels: Vec<u8> = (0..bytes).map(|at| (at.wrapping_mul(2_654_435_769) >> 24) as u8).collect();
        let images = Images { indices: (0..count).collect(), pixels, labels: vec![0; count as usize] };
        let input = [shape.channels, shape.height, shape.width];
        let mut subject = Self::open(file, input, classes, images, device, runtime)?;
        let [c, h, w] = input.map(i64::from);
        let pixels = Tensor::from_slice(&subject.images.pixels).view([i64::from(count), c, h, w]);
        let points = model::to_unit(&pixels, subject.model.device());
        let seen = Kernel::new(&subject.model, subject.profile.batch.into()).logits(&points)?.argmax(1, false);
        let seen = Vec::<i64>::try_from(seen.to_device(TchDevice::Cpu))?;
        subject.images.labels = seen.into_iter().map(|class| class as u32).collect();
        Ok(subject)
    }

    /// The images and their labels, as a dataset has them.
    pub fn batch(&self, shape: Shape) -> Batch {
        Batch { shape, first: 0, pixels: self.images.pixels.clone(), labels: self.images.labels.clone() }
    }

    fn open(
        file: &Path,
        input: [u32; 3],
        classes: u32,
        images: Images,
        device: Device,
        runtime: &'static Runtime,
    ) -> anyhow::Result<Self> {
        let file = canonical(file)?;
        let spec = ModelSpec { format: Format::Torchscript, input, classes, preprocessing: None, stochastic: false };
        let (platform, device) = platform(runtime, device).map_err(anyhow::Error::msg)?;
        let mut model = TorchScript::load(&file, spec.clone(), device, model::MemoryFormat::ChannelsFirst)?;
        let first = new_profile(&platform, &spec, runtime.threads, BatchWish::Free);
        let found = calibrate(&mut model, &first, BatchWish::Free, false)?;
        let profile = found.map_or(first, |(profile, _)| profile);
        Ok(Self { file, model, profile, images })
    }

    /// Evaluates all images under `conditions`, whose searches take this precision.
    pub fn time(&self, conditions: &[Condition], search: Precision) -> anyhow::Result<Timed> {
        let named: Vec<&Condition> = conditions.iter().collect();
        let counted = Counted::new(&self.model);
        let run = Run {
            model: &counted,
            images: &self.images,
            conditions: &named,
            seed: 0,
            rule: VerdictRule::OneForward,
            batch: self.profile.batch,
            wants_witness: &|_| false,
        };
        let passes = Passes::new(&self.model, self.profile.batch, search);
        let (mut step, paused) = (0, Shared::new([0.0; 2]));
        let (start, processor) = (Instant::now(), clock::process());
        let outcomes = evaluate(&run, &mut |_| {
            step += 1;
            if step % EVERY == 0 {
                // What the engine has asked for is its own time.
                finish(self.model.device());
                let (pause, processor) = (Instant::now(), clock::process());
                passes.one(step / EVERY);
                let [wall, cpu] = paused.get();
                paused.set([wall + pause.elapsed().as_secs_f64(), cpu + clock::process() - processor]);
            }
            ControlFlow::Continue(())
        })?;
        let [wall, cpu] = paused.get();
        let (seconds, cpu_seconds) = (start.elapsed().as_secs_f64() - wall, clock::process() - processor - cpu);
        let sum = |of: fn(&crate::protocol::Verdict) -> u32| {
            outcomes.iter().map(|outcome| u64::from(of(&outcome.verdict))).sum::<u64>()
        };
        let (forwards, backwards) = (sum(|verdict| verdict.forwards), sum(|verdict| verdict.backwards));
        let standing = (0..conditions.len())
            .map(|condition| outcomes.iter().filter(|o| o.condition == condition && o.verdict.robust).count())
            .collect();
        let needed = passes.needed(forwards, backwards);
        eprintln!("{}: {seconds:.2} s, of which the model needs {needed:.2}", named[0].id);
        Ok(Timed { seconds, cpu_seconds, standing, needed, passes: forwards as f64, rows: counted.rows() as f64 })
    }
}

/// Waits for what a GPU has been asked to do.
fn finish(device: TchDevice) {
    if let TchDevice::Cuda(index) = device {
        Cuda::synchronize(index as i64);
    }
}

/// Bare passes of the model, timed between the engine's own, so that what else runs on the machine slows both alike.
struct Passes<'a> {
    model: &'a TorchScript,
    precision: Precision,
    images: Tensor,
    /// Seconds and launches: forward passes, then forward and backward ones.
    spent: [Shared<(f64, u32)>; 2],
}

impl<'a> Passes<'a> {
    fn new(model: &'a TorchScript, batch: u32, precision: Precision) -> Self {
        let [c, h, w] = model.spec().input.map(i64::from);
        let images = Tensor::rand([i64::from(batch), c, h, w], (Kind::Float, model.device()));
        let passes = Self { model, precision, images, spent: Default::default() };
        (0..4).for_each(|turn| passes.one(turn));
        passes.spent.iter().for_each(|spent| spent.set((0.0, 0)));
        (0..2).for_each(|turn| passes.one(turn));
        passes
    }

    /// A forward pass alone and one with its backward pass, by turns.
    fn one(&self, turn: u32) {
        let kind = turn as usize % 2;
        let start = Instant::now();
        runtime::in_precision(self.precision, || {
            if kind == 0 {
                let _guard = tch::no_grad_guard();
                std::hint::black_box(self.model.logits(&self.images).ok());
            } else {
                let images = self.images.detach().set_requires_grad(true);
                let logits = self.model.logits(&images).ok();
                std::hint::black_box(logits.and_then(|logits| pull_back(&logits, &logits.ones_like(), &images).ok()));
            }
        });
        finish(self.model.device());
        let (seconds, launches) = self.spent[kind].get();
        self.spent[kind].set((seconds + start.elapsed().as_secs_f64(), launches + 1));
    }

    /// Seconds that this many forwards, of which some came with a backward, take by themselves.
    fn needed(&self, forwards: u64, backwards: u64) -> f64 {
        let batch = self.images.size()[0] as f64;
        let [forward, gradient] = [0, 1].map(|kind: usize| {
            let (seconds, launches) = self.spent[kind].get();
            seconds / f64::from(launches) / batch
        });
        forward * (forwards - backwards) as f64 + gradient * backwards as f64
    }
}
