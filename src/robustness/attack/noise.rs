//! Noise as long as the budget allows, forward passes only: what breaks under it needs no attack, and an attack that leaves
//! such an image standing did not work.

use tch::Tensor;

use super::queries::Queries;
use super::rows;
use super::{Answer, Demand, Entry, Frozen, Search, Setting, Status};
use crate::protocol::{Distribution, Noise};
use crate::robustness::rng::Stream;
use crate::robustness::threat::{onto_sphere, random_start};

/// Noise trajectories: one random point of the sphere after another, cut to the box. The one with the largest margin is the
/// candidate.
#[derive(Debug)]
pub struct NoiseSearch {
    noise: Noise,
    setting: Setting,
    queries: Queries,
    clean: Tensor,
    epsilon: Tensor,
}

impl NoiseSearch {
    pub fn new(noise: &Noise, setting: &Setting) -> Self {
        Self {
            noise: noise.clone(),
            setting: *setting,
            queries: Queries::new(setting),
            clean: rows::images(setting),
            epsilon: rows::numbers(setting),
        }
    }

    /// A point on the unit sphere of the norm, its direction drawn pixel by pixel.
    fn unit(&self, stream: &mut Stream) -> Vec<f64> {
        let dimension = self.setting.dimension();
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
        let mut entries = std::mem::take(&mut self.queries.entries);
        let dimension = self.setting.dimension();
        let mut unit = Vec::with_capacity(dimension * entries.len());
        for entry in &mut entries {
            match entry {
                Some((_, stream)) => unit.extend(self.unit(stream)),
                None => unit.resize(unit.len() + dimension, 0.0),
            }
        }
        self.queries.entries = entries;
        let unit = Tensor::from_slice(&unit).to_device(self.setting.device).view_as(&self.clean);
        self.queries.point = random_start(&self.clean, &unit, &self.epsilon);
    }
}

impl Search for NoiseSearch {
    fn load(&mut self, entries: &[Entry], clean: &Tensor) {
        let slots = rows::slots(entries, &self.setting);
        let epsilon = rows::radii(entries, &self.setting);
        let mut streams = Queries::streams(entries);
        let unit: Vec<f64> = streams.iter_mut().flat_map(|stream| self.unit(stream)).collect();
        let unit = Tensor::from_slice(&unit).to_device(self.setting.device).view_as(clean);
        let points = random_start(clean, &unit, &epsilon);
        let _ = self.clean.index_copy_(0, &slots, clean);
        let _ = self.epsilon.index_copy_(0, &slots, &epsilon);
        self.queries.begin(entries, streams, &points);
    }

    fn release(&mut self, slot: usize) {
        self.queries.release(slot);
    }

    fn points(&self) -> &Tensor {
        &self.queries.point
    }

    fn demands(&self) -> &[Demand] {
        &self.queries.demands
    }

    fn advance(&mut self, answer: &Answer) -> Vec<Status> {
        self.queries.keep(answer);
        self.draw();
        self.queries.status(answer, self.noise.queries, 1)
    }

    fn candidates(&self, slots: &[usize]) -> Tensor {
        self.queries.candidates(slots)
    }

    fn freeze(&self, slot: usize) -> Option<Frozen> {
        self.queries.freeze(slot)
    }

    fn thaw(&mut self, slot: usize, frozen: &Frozen) -> bool {
        self.queries.thaw(slot, frozen)
    }
}
