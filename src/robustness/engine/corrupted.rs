//! Corrupted images: made on all cores, a bounded distance ahead of the model that judges them.

use tch::{Kind, Tensor};

use super::checkpoint::{Account, Checkpoint, Standing};
use super::judge::{self, examine};
use super::kernel::Kernel;
use super::{EngineError, Notes, Outcome, Progress, Run, Watch, check, guarded, name_pass};
use crate::protocol::{ConditionKind, CorruptionCondition, Stage, Verdict};
use crate::robustness::corruption::{Channels, Image, Keyed, Shape, prefetched};
use crate::robustness::model::to_unit;

/// How images are corrupted.
pub struct Corrupter<'a> {
    /// Threads that corrupt beside the model.
    pub threads: usize,
    /// The corrupted image, given the clean one and the random numbers of (seed, condition, image).
    pub apply: &'a (dyn Fn(&CorruptionCondition, &Image, &mut Keyed) -> Image + Sync),
    /// Calls what it is given, which is where the model waits for corrupted images; for whoever wants to know how long.
    pub waiting: &'a dyn Fn(&mut dyn FnMut()),
}

/// Kernel batches of corrupted images that may wait for the model.
const BATCHES_AHEAD: usize = 2;

/// Evaluates every image under every condition, all of them corruptions. Outcomes come ordered by condition, then as the
/// images; each is judged by one fresh pass like a clean image, and depends on its image, its condition, the seed and the
/// batch shape alone. Goes on from a checkpoint of the same run, if there is one.
pub fn evaluate_corrupted(
    run: &Run,
    corrupter: &Corrupter,
    checkpoint: Option<Checkpoint>,
    watch: &mut Watch,
) -> Result<Vec<Outcome>, EngineError> {
    check(run)?;
    let corruptions: Vec<&CorruptionCondition> = run
        .conditions
        .iter()
        .map(|condition| match &condition.kind {
            ConditionKind::Corruption(corruption) => Ok(corruption),
            _ => Err(EngineError::Input(format!("{} is no corruption", condition.id))),
        })
        .collect::<Result<_, _>>()?;
    guarded(|| Pipeline::new(run, corruptions)?.drive(corrupter, checkpoint, watch))
}

struct Pipeline<'a, 'r> {
    run: &'a Run<'r>,
    corruptions: Vec<&'a CorruptionCondition>,
    /// The clean images: interleaved once, for all conditions.
    images: Vec<Image>,
    draws: u32,
    /// Images of a kernel launch.
    chunk: usize,
}

impl<'a, 'r> Pipeline<'a, 'r> {
    fn new(run: &'a Run<'r>, corruptions: Vec<&'a CorruptionCondition>) -> Result<Self, EngineError> {
        let [channels, height, width] = run.model.spec().input.map(|side| side as usize);
        let shape = Shape { height, width, channels: if channels == 1 { Channels::Grey } else { Channels::Rgb } };
        let planes = run.images.pixels.chunks(channels * height * width);
        let images = planes.map(|planes| Image::from_planes(shape, planes)).collect::<Result<_, _>>();
        let draws = judge::draws(run.rule, run.model.spec().stochastic);
        Ok(Self {
            images: images.map_err(|problem| EngineError::Input(problem.to_string()))?,
            run,
            corruptions,
            draws,
            chunk: (run.batch as usize / draws as usize).max(1),
        })
    }

    /// The books of a checkpoint: of whole chunks of images, settled under every condition.
    fn books(&self, checkpoint: Checkpoint) -> Result<Vec<Standing>, EngineError> {
        let books = checkpoint.images;
        let whole = books.len() == self.images.len() || books.len().is_multiple_of(self.chunk);
        let fits = |(standing, index): (&Standing, &u32)| {
            let of_image =
                |account: &Account| account.settled.as_ref().is_some_and(|(verdict, _)| verdict.image == *index);
            standing.accounts.len() == self.corruptions.len() && standing.accounts.iter().all(of_image)
        };
        let fits = whole && books.len() <= self.images.len() && books.iter().zip(&self.run.images.indices).all(fits);
        if fits { Ok(books) } else { Err(EngineError::Checkpoint) }
    }

    /// (condition, image) in the order of launches, from this image on: chunk by chunk, each under every condition.
    fn cells(&self, first: usize) -> Vec<(usize, usize)> {
        let images: Vec<usize> = (first..self.images.len()).collect();
        let chunk = |chunk: &[usize]| -> Vec<(usize, usize)> {
            (0..self.corruptions.len()).flat_map(|c| chunk.iter().map(move |&image| (c, image))).collect()
        };
        images.chunks(self.chunk).flat_map(chunk).collect()
    }

    fn drive(
        &self,
        corrupter: &Corrupter,
        checkpoint: Option<Checkpoint>,
        watch: &mut Watch,
    ) -> Result<Vec<Outcome>, EngineError> {
        let mut books = checkpoint.map_or(Ok(Vec::new()), |checkpoint| self.books(checkpoint))?;
        let cells = self.cells(books.len());
        // The model stays on this thread.
        let (corruptions, images, indices, seed) =
            (&self.corruptions, &self.images, &self.run.images.indices, self.run.seed);
        let make = |cell: usize| {
            let (condition, image) = cells[cell];
            let mut random = Keyed::new(seed, corruptions[condition].random_key(), indices[image].into());
            (corrupter.apply)(corruptions[condition], &images[image], &mut random).to_planes()
        };
        let window = BATCHES_AHEAD * self.chunk + corrupter.threads;
        prefetched(cells.len(), corrupter.threads, window, make, |corrupted| {
            let all: Vec<usize> = (0..self.images.len()).collect();
            let each = self.corruptions.len();
            let (done, total) = (books.len() * each, all.len() * each);
            let mut progress = Progress { done, total, forwards: 0, backwards: 0 };
            let chunks = all.chunks(self.chunk).enumerate().skip(books.len().div_ceil(self.chunk));
            for (pass, chunk) in chunks {
                let clean = self.clean(chunk);
                let mut accounts: Vec<Vec<Account>> = vec![Vec::with_capacity(each); chunk.len()];
                for condition in 0..each {
                    let mut pixels: Vec<u8> = Vec::new();
                    (corrupter.waiting)(&mut || pixels = chunk.iter().flat_map(|_| corrupted.take()).collect());
                    let judged = self.judge(condition, pass as u32, chunk, &pixels, &clean)?;
                    accounts.iter_mut().zip(judged).for_each(|(accounts, account)| accounts.push(account));
                    progress.done += chunk.len();
                    progress.forwards += chunk.len() as u64 * u64::from(self.draws);
                    if (watch.observer)(progress).is_break() {
                        return Err(EngineError::Stopped);
                    }
                }
                books.extend(accounts.into_iter().map(|accounts| Standing { accounts, place: None }));
                if let Some((due, keep)) = &mut watch.keep
                    && due()
                {
                    keep(Checkpoint { images: books.clone(), scene: None });
                }
            }
            Ok((0..each).flat_map(|condition| outcomes(condition, &books)).collect())
        })
    }

    fn clean(&self, chunk: &[usize]) -> Tensor {
        let planes: Vec<u8> = chunk.iter().flat_map(|&image| self.images[image].to_planes()).collect();
        self.unit(&planes, chunk.len())
    }

    /// float32 [n, C, H, W] on the model's device.
    fn unit(&self, pixels: &[u8], images: usize) -> Tensor {
        let [channels, height, width] = self.run.model.spec().input.map(i64::from);
        let tensor = Tensor::from_data_size(pixels, &[images as i64, channels, height, width], Kind::Uint8);
        to_unit(&tensor, self.run.model.device())
    }

    fn judge(
        &self,
        condition: usize,
        pass: u32,
        chunk: &[usize],
        pixels: &[u8],
        clean: &Tensor,
    ) -> Result<Vec<Account>, EngineError> {
        let run = self.run;
        name_pass(run, run.conditions[condition], pass);
        let labels: Vec<u32> = chunk.iter().map(|&image| run.images.labels[image]).collect();
        let kernel = Kernel::new(run.model, run.batch.into());
        let unbounded = vec![None; chunk.len()];
        let corrupted = self.unit(pixels, chunk.len());
        let findings = examine(&kernel, &corrupted, clean, &labels, &unbounded, self.draws)?;
        let account = |(&image, finding): (&usize, judge::Finding)| {
            let verdict = Verdict {
                image: run.images.indices[image],
                label: run.images.labels[image],
                predicted: finding.predicted,
                robust: !finding.broken,
                stage: finding.broken.then_some(Stage::Corruption),
                l1: finding.size.l1,
                l2: finding.size.l2,
                linf: finding.size.linf,
                forwards: self.draws,
                backwards: 0,
            };
            let notes = Notes { undefined_logits: finding.undefined.into(), ..Notes::default() };
            Account { forwards: self.draws, backwards: 0, notes, settled: Some((verdict, None)) }
        };
        Ok(chunk.iter().zip(findings).map(account).collect())
    }
}

/// What the books say of one condition.
fn outcomes(condition: usize, books: &[Standing]) -> impl Iterator<Item = Outcome> {
    books.iter().filter_map(move |standing| {
        let Account { notes, settled, .. } = standing.accounts[condition].clone();
        let (verdict, witness) = settled?;
        Some(Outcome { condition, verdict, witness, notes })
    })
}
