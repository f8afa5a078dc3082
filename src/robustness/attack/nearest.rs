//! The nearest adversarial point that a trajectory has seen: what attacks keep that do not stay inside a radius.

use tch::{Device, Kind, Tensor};

use super::rows::{self, choose};
use super::runs::Runs;
use super::{Answer, Entry, Seen, Setting, index};
use crate::protocol::Norm;
use crate::robustness::threat::{length, unit_sphere};

/// Restarts begin at this share of the radius.
const START_RADIUS: f64 = 0.5;

/// Per slot, the clean image, the radius, and the nearest adversarial point.
#[derive(Debug)]
pub struct Nearest {
    setting: Setting,
    pub clean: Tensor,
    epsilon: Tensor,
    point: Tensor,
    /// How far that is; infinite without any. float64 [S]
    pub distance: Tensor,
    /// Whether it is inside the radius.
    inside: Vec<bool>,
}

impl Nearest {
    pub fn new(setting: &Setting) -> Self {
        Self {
            setting: *setting,
            clean: rows::images(setting),
            epsilon: rows::numbers(setting),
            point: rows::images(setting),
            distance: rows::numbers(setting),
            inside: vec![false; setting.slots],
        }
    }

    pub fn load(&mut self, entries: &[Entry], clean: &Tensor) {
        let slots = rows::slots(entries, &self.setting);
        let _ = self.clean.index_copy_(0, &slots, clean);
        let _ = self.epsilon.index_copy_(0, &slots, &rows::radii(entries, &self.setting));
        let _ = self.distance.index_fill_(0, &slots, f64::INFINITY);
        entries.iter().for_each(|entry| self.inside[entry.slot] = false);
    }

    /// The rows of a slot: what the trajectory has found, and the distance it began with to beat, then those of `tensors`.
    pub fn freeze(&self, tensors: &[&Tensor], slot: usize) -> Vec<u8> {
        rows::freeze(&self.memory(tensors), slot)
    }

    /// Puts back what [`freeze`](Self::freeze) took.
    #[must_use]
    pub fn thaw(&mut self, tensors: &[&Tensor], slot: usize, bytes: &[u8]) -> bool {
        let thawed = rows::thaw(&self.memory(tensors), slot, bytes);
        self.inside[slot] = self.reached().get(slot as i64).int64_value(&[]) != 0;
        thawed
    }

    fn memory<'a>(&'a self, tensors: &[&'a Tensor]) -> Vec<&'a Tensor> {
        [&[&self.epsilon, &self.point, &self.distance], tensors].concat()
    }

    /// Compares `points` [S, …] with the nearest so far.
    pub fn record(&mut self, points: &Tensor, answer: &Answer) {
        if !answer.seen.contains(&true) {
            return;
        }
        let distance = length(self.setting.norm, &self.delta(points));
        let closer = answer.misclassified.logical_and(&distance.lt_tensor(&self.distance));
        self.point = choose(&closer, points, &self.point);
        self.distance = choose(&closer, &distance, &self.distance);
        self.inside = Vec::<bool>::try_from(self.reached().to_device(Device::Cpu)).expect("a bool row");
    }

    /// Which slots have a point inside the radius, bool [S]; an infinite radius is no point.
    fn reached(&self) -> Tensor {
        self.distance.le_tensor(&self.epsilon).logical_and(&self.distance.isfinite())
    }

    /// `points − clean`, float64.
    pub fn delta(&self, points: &Tensor) -> Tensor {
        points.to_kind(Kind::Double) - self.clean.to_kind(Kind::Double)
    }

    /// Whether a point inside the radius has been found, and is all that is wanted.
    pub fn suffices(&self, slot: usize) -> bool {
        self.inside[slot] && !self.setting.nearest && !self.setting.stochastic
    }

    /// What became of a trajectory at its end.
    pub fn seen(&self, slot: usize) -> Seen {
        if self.inside[slot] && !self.setting.stochastic { Seen::Success } else { Seen::Failure }
    }

    /// The nearest adversarial points; the clean images where those are too far away, or where there are none.
    pub fn candidates(&self, slots: &[usize]) -> Tensor {
        choose(&self.reached(), &self.point, &self.clean).index_select(0, &index(slots.iter().copied(), &self.point))
    }

    /// Where trajectories begin: at the clean image; in later restarts at a random point at half the radius.
    pub fn starting_points(&self, runs: &Runs, entries: &[Entry], clean: &Tensor) -> Tensor {
        let dimension = clean.numel() / entries.len();
        let delta: Vec<f64> = entries
            .iter()
            .flat_map(|entry| match runs.restart(entry) {
                0 => vec![0.0; dimension],
                _ => {
                    let radius = START_RADIUS * entry.epsilon.min(farthest(self.setting.norm, dimension));
                    let mut unit = unit_sphere(self.setting.norm, dimension, &mut entry.draws.stream(entry.run, 0));
                    unit.iter_mut().for_each(|v| *v *= radius);
                    unit
                }
            })
            .collect();
        let delta = Tensor::from_slice(&delta).to_device(self.setting.device).view_as(clean);
        (clean + delta.to_kind(Kind::Float)).clamp(0.0, 1.0)
    }
}

/// How far two images of this many pixels can be apart.
pub fn farthest(norm: Norm, dimension: usize) -> f64 {
    match norm {
        Norm::Linf => 1.0,
        Norm::L2 => (dimension as f64).sqrt(),
        Norm::L1 => dimension as f64,
    }
}
