//! Decoupled direction and norm (Rony et al. 2019): steps that turn the perturbation, whose L2 length follows a rule of its own.

use tch::{Kind, Tensor};

use super::nearest::Nearest;
use super::rows::{self, choose};
use super::runs::Runs;
use super::step::{cosine, steepest_l2};
use super::{Answer, Demand, Entry, Frozen, Search, Setting, Status};
use crate::protocol::{ClipOrder, Loss, Norm, Projection, Untargeted};
use crate::robustness::threat::{Ball, length, per_row};

/// Length of a trajectory's first perturbation.
const FIRST_LENGTH: f64 = 1.0;
/// How much the length shrinks from an adversarial point, and grows from any other.
const GAMMA: f64 = 0.05;
/// Lengths of the first and of the last step.
const ALPHA: [f64; 2] = [1.0, 0.01];
/// Perturbations are stretched this far before they are cut to their length, so that what the box takes from some pixels
/// goes to the others.
const STRETCH: f64 = 8.0;

/// Less than any perturbation, and large enough that its inverse is a number: where the gradient vanishes at the clean image,
/// the point stays there.
const TINY: f64 = 1e-100;

/// DDN trajectories. Each visits steps + 1 points, its start included.
#[derive(Debug)]
pub struct DdnSearch {
    runs: Runs,
    steps: u32,
    setting: Setting,
    entries: Vec<Option<Entry>>,
    demands: Vec<Demand>,
    /// Moves made, per slot.
    step: Vec<u32>,
    nearest: Nearest,
    point: Tensor,
    /// Length of the perturbation, per slot.
    length: Tensor,
    /// How far the farthest corner of the box is, per slot.
    most: Tensor,
}

impl DdnSearch {
    /// Empty slots; the norm is L2.
    pub fn new(ddn: &Untargeted, setting: &Setting) -> Self {
        Self {
            runs: Runs::untargeted(Loss::CrossEntropy, ddn),
            steps: ddn.steps,
            setting: *setting,
            entries: vec![None; setting.slots],
            demands: vec![Demand::Nothing; setting.slots],
            step: vec![0; setting.slots],
            nearest: Nearest::new(setting),
            point: rows::images(setting),
            length: rows::numbers(setting),
            most: rows::numbers(setting),
        }
    }

    fn demand(&self, entry: &Entry) -> Demand {
        let goal = self.runs.goal(entry);
        if self.step[entry.slot] < self.steps { Demand::Gradient(goal) } else { Demand::Loss(goal) }
    }

    /// The perturbations a step further along the gradient, then of length `self.length` as far as the box allows.
    fn moved(&self, answer: &Answer) -> Tensor {
        const BALL: Ball =
            Ball { norm: Norm::L2, projection: Projection::Euclidean, order: ClipOrder::ProjectThenClip };
        let share = |slot: usize| f64::from(self.step[slot]) / f64::from(self.steps);
        let alpha = rows::column(&self.setting, |slot| cosine(ALPHA[0], ALPHA[1], share(slot)));
        let step = steepest_l2(&self.point, &answer.gradient) * per_row(&alpha, &self.point);
        let delta = self.nearest.delta(&self.point) + step;
        let stretch = &self.length * STRETCH / length(Norm::L2, &delta).clamp_min(TINY);
        BALL.project(&self.nearest.clean, &(&delta * per_row(&stretch, &delta)), &self.length)
    }
}

impl Search for DdnSearch {
    fn load(&mut self, entries: &[Entry], clean: &Tensor) {
        let slots = rows::slots(entries, &self.setting);
        self.nearest.load(entries, clean);
        let points = self.nearest.starting_points(&self.runs, entries, clean);
        let _ = self.point.index_copy_(0, &slots, &points);
        let _ = self.length.index_fill_(0, &slots, FIRST_LENGTH);
        let exact = clean.to_kind(Kind::Double);
        let _ = self.most.index_copy_(0, &slots, &length(Norm::L2, &exact.maximum(&(1.0 - &exact))));
        for entry in entries {
            self.step[entry.slot] = 0;
            self.demands[entry.slot] = self.demand(entry);
            self.entries[entry.slot] = Some(entry.clone());
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
        self.nearest.record(&self.point, answer);
        let started = rows::mask(&self.setting, |slot| self.step[slot] > 0);
        let factor =
            choose(&answer.misclassified, &self.length.full_like(1.0 - GAMMA), &self.length.full_like(1.0 + GAMMA));
        self.length = choose(&started, &(&self.length * factor).minimum(&self.most), &self.length);
        self.point = self.moved(answer);
        (0..self.setting.slots)
            .map(|slot| {
                let Some(entry) = &self.entries[slot] else { return Status::Searching };
                if self.nearest.suffices(slot) || self.step[slot] == self.steps {
                    return Status::Finished { seen: self.nearest.seen(slot), next_run: self.runs.next(entry) };
                }
                self.step[slot] += 1;
                self.demands[slot] = self.demand(entry);
                Status::Searching
            })
            .collect()
    }

    fn candidates(&self, slots: &[usize]) -> Tensor {
        self.nearest.candidates(slots)
    }
    fn freeze(&self, slot: usize) -> Option<Frozen> {
        let rows = self.nearest.freeze(&[&self.point, &self.length], slot);
        Some(Frozen { numbers: vec![self.step[slot].into()], rows })
    }

    fn thaw(&mut self, slot: usize, frozen: &Frozen) -> bool {
        let (Some(entry), &[step]) = (self.entries[slot].clone(), &frozen.numbers[..]) else { return false };
        self.step[slot] = step.min(self.steps.into()) as u32;
        self.demands[slot] = self.demand(&entry);
        self.nearest.thaw(&[&self.point, &self.length], slot, &frozen.rows)
    }
}
