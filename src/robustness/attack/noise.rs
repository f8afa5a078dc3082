//! Noise as long as the budget allows, forward passes only: what breaks under it needs no attack, and an attack that leaves
//! such an image standing did not work.

use tch::Tensor;

use super::rows::{self, choose};
use super::{Answer, Demand, Entry, Goal, Search, Seen, Setting, Status, index};
use crate::protocol::{Distribution, Loss, Noise};
use crate::robustness::rng::Stream;
use crate::robustness::threat::{onto_sphere, random_start};

const GOAL: Goal = Goal { loss: Loss::Margin, target: None, float32_gradient: false };

/// Noise trajectories: one random point of the sphere after another, cut to the box. The one with the largest margin is the
/// candidate.
#[derive(Debug)]
pub struct NoiseSearch {
    noise: Noise,
    setting: Setting,
    entries: Vec<Option<(Entry, Stream)>>,
    demands: Vec<Demand>,
    /// Points looked at, per slot.
    queries: Vec<u32>,
    clean: Tensor,
    epsilon: Tensor,
    point: Tensor,
    best: Tensor,
    best_loss: Tensor,
}

impl NoiseSearch {
    pub fn new(noise: &Noise, setting: &Setting) -> Self {
        let (images, numbers) = (|| rows::images(setting), || rows::numbers(setting));
        Self {
            noise: noise.clone(),
            setting: *setting,
            entries: vec![None; setting.slots],
            demands: vec![Demand::Nothing; setting.slots],
            queries: vec![0; setting.slots],
            clean: images(),
            epsilon: numbers(),
            point: images(),
            best: images(),
            best_loss: numbers(),
        }
    }

    /// A point on the unit sphere of the norm, its direction drawn pixel by pixel.
    fn unit(&self, stream: &mut Stream) -> Vec<f64> {
        let dimension = self.setting.shape.iter().product::<i64>() as usize;
        let point = match self.noise.distribution {
            Distribution::Uniform => (0..dimension).map(|_| 2.0 * stream.uniform() - 1.0).collect(),
            Distribution::Gaussian => {
                let pairs = (0..dimension.div_ceil(2)).flat_map(|_| stream.normals());
                pairs.take(dimension).collect()
            }
        };
        onto_sphere(self.setting.norm, point)
    }

    /// The next point of every trajectory, from its own stream.
    fn draw(&mut self) {
        let mut entries = std::mem::take(&mut self.entries);
        let dimension = self.setting.shape.iter().product::<i64>() as usize;
        let mut unit = Vec::with_capacity(dimension * entries.len());
        for entry in &mut entries {
            match entry {
                Some((_, stream)) => unit.extend(self.unit(stream)),
                None => unit.resize(unit.len() + dimension, 0.0),
            }
        }
        self.entries = entries;
        let unit = Tensor::from_slice(&unit).to_device(self.setting.device).view_as(&self.clean);
        self.point = random_start(&self.clean, &unit, &self.epsilon);
    }
}

impl Search for NoiseSearch {
    fn load(&mut self, entries: &[Entry], clean: &Tensor) {
        let slots = rows::slots(entries, &self.setting);
        let epsilon = rows::radii(entries, &self.setting);
        let mut streams: Vec<Stream> = entries.iter().map(|entry| entry.draws.stream(entry.run, 0)).collect();
        let unit: Vec<f64> = streams.iter_mut().flat_map(|stream| self.unit(stream)).collect();
        let unit = Tensor::from_slice(&unit).to_device(self.setting.device).view_as(clean);
        let points = random_start(clean, &unit, &epsilon);
        let _ = self.clean.index_copy_(0, &slots, clean);
        let _ = self.epsilon.index_copy_(0, &slots, &epsilon);
        let _ = self.point.index_copy_(0, &slots, &points);
        // Until a loss says better: whoever had the slot before must not show.
        let _ = self.best.index_copy_(0, &slots, &points);
        let _ = self.best_loss.index_fill_(0, &slots, f64::NEG_INFINITY);
        for (entry, stream) in entries.iter().zip(streams) {
            self.queries[entry.slot] = 0;
            self.demands[entry.slot] = Demand::Loss(GOAL);
            self.entries[entry.slot] = Some((entry.clone(), stream));
        }
    }

    fn release(&mut self, slot: usize) {
        self.demands[slot] = Demand::Nothing;
        self.entries[slot] = None;
    }

    fn points(&self) -> &Tensor {
        &self.point
    }

    fn demands(&self) -> &[Demand] {
        &self.demands
    }

    fn advance(&mut self, answer: &Answer) -> Vec<Status> {
        let mut better = answer.loss.gt_tensor(&self.best_loss);
        if !self.setting.stochastic {
            better = better.logical_or(&answer.misclassified);
        }
        self.best = choose(&better, &self.point, &self.best);
        self.best_loss = choose(&better, &answer.loss, &self.best_loss);
        self.queries.iter_mut().for_each(|queries| *queries += 1);
        self.draw();
        (0..self.setting.slots)
            .map(|slot| match &self.entries[slot] {
                Some(_) if answer.seen[slot] && !self.setting.stochastic => {
                    Status::Finished { seen: Seen::Success, next_run: None }
                }
                Some(_) if self.queries[slot] >= self.noise.queries => {
                    Status::Finished { seen: Seen::Failure, next_run: None }
                }
                _ => Status::Searching,
            })
            .collect()
    }

    fn candidates(&self, slots: &[usize]) -> Tensor {
        self.best.index_select(0, &index(slots.iter().copied(), &self.best))
    }
}
