//! Carlini and Wagner's attack in L2 (2017, section VI.A): descends ‖δ‖² + c·max(z_y − max z_{i≠y}, 0) by Adam, for one
//! constant c after another, down to the smallest that still leads to an adversarial image.
//!
//! The published attack descends on arctanh of the pixels, where black and white ones lie at infinity and hardly move. Here it
//! is the pixels, which every step cuts to the box. The constant and the length of the steps begin where the linearised problem
//! has them, so that no scale of logits or images matters.

use tch::{Kind, Tensor};

use super::nearest::Nearest;
use super::rows::{self, choose};
use super::runs::Runs;
use super::step::cosine;
use super::{Answer, Demand, Entry, Frozen, Search, Setting, Status};
use crate::protocol::{CarliniWagner, Loss, Norm};
use crate::robustness::threat::{length, per_row};

/// Adam's rates of forgetting (Kingma and Ba 2015), and what keeps its quotient defined.
const BETA: [f64; 2] = [0.9, 0.999];
const TINY: f64 = 1e-30;
/// Factor to the next constant where no smaller one failed, or no larger one succeeded.
const FACTOR: f64 = 10.0;
/// How far the average pixel would get in a descent were all steps as long as the first, in distances of the clean image and the
/// linearised boundary from where it begins. The last step is a hundredth of the first.
const WAY: f64 = 20.0;
/// The most that a step moves a pixel.
const LONGEST_STEP: f64 = 0.1;

/// Carlini–Wagner trajectories: each a row of descents from one point, the clean image or a restart's.
#[derive(Debug)]
pub struct CarliniWagnerSearch {
    runs: Runs,
    steps: u32,
    searches: u32,
    setting: Setting,
    entries: Vec<Option<Entry>>,
    demands: Vec<Demand>,
    /// Descents ended, and moves made in this one, per slot.
    search: Vec<u32>,
    step: Vec<u32>,
    /// This descent saw an adversarial image.
    succeeds: Vec<bool>,
    nearest: Nearest,
    start: Tensor,
    point: Tensor,
    /// c, the largest that failed, or 0, and the smallest that succeeded, or infinity.
    constant: Tensor,
    failed: Tensor,
    succeeded: Tensor,
    /// The first step of a descent, in the average pixel.
    stride: Tensor,
    /// Adam's means of the gradient and of its squares.
    mean: Tensor,
    square: Tensor,
}

impl CarliniWagnerSearch {
    /// Empty slots; the norm is L2.
    pub fn new(attack: &CarliniWagner, setting: &Setting) -> Self {
        let (images, numbers) = (|| rows::images(setting), || rows::numbers(setting));
        Self {
            runs: Runs { loss: Loss::Margin, restarts: attack.restarts, targets: None },
            steps: attack.steps,
            searches: attack.searches,
            setting: *setting,
            entries: vec![None; setting.slots],
            demands: vec![Demand::Nothing; setting.slots],
            search: vec![0; setting.slots],
            step: vec![0; setting.slots],
            succeeds: vec![false; setting.slots],
            nearest: Nearest::new(setting),
            start: images(),
            point: images(),
            constant: numbers(),
            failed: numbers(),
            succeeded: numbers(),
            stride: numbers(),
            mean: images().to_kind(Kind::Double),
            square: images().to_kind(Kind::Double),
        }
    }

    fn demand(&self, entry: &Entry) -> Demand {
        let goal = self.runs.goal(entry);
        if self.step[entry.slot] < self.steps { Demand::Gradient(goal) } else { Demand::Loss(goal) }
    }

    /// Constant and steps for trajectories at their very beginning: were the margin linear with gradient g, the boundary would be
    /// |margin|/‖g‖ away, and c = 2·|margin|/‖g‖² would lead there from the clean image.
    fn gauge(&mut self, answer: &Answer) {
        let begins = |slot: usize| self.search[slot] == 0 && self.step[slot] == 0;
        if !(0..self.setting.slots).any(|slot| self.entries[slot].is_some() && begins(slot)) {
            return;
        }
        let slope = length(Norm::L2, &answer.gradient).clamp_min(TINY);
        let distance = (answer.loss.abs() / &slope).nan_to_num(0.0, 1.0 / TINY, 0.0);
        let constant = (&distance * 2.0 / slope).clamp(TINY, 1.0 / TINY);
        let pixel = (self.setting.dimension() as f64).sqrt();
        let way = distance + length(Norm::L2, &self.nearest.delta(&self.point));
        let stride = (way / pixel * (WAY / f64::from(self.steps)).min(1.0)).clamp_max(LONGEST_STEP);
        let rows = rows::mask(&self.setting, begins);
        self.constant = choose(&rows, &constant, &self.constant);
        self.stride = choose(&rows, &stride, &self.stride);
    }

    /// The points after one of Adam's steps each.
    fn moved(&mut self, answer: &Answer) -> Tensor {
        let pull = per_row(&self.constant.where_scalarother(&answer.misclassified.logical_not(), 0.0), &self.mean);
        let gradient = self.nearest.delta(&self.point) * 2.0 - &answer.gradient * pull;
        self.mean = &self.mean * BETA[0] + &gradient * (1.0 - BETA[0]);
        self.square = &self.square * BETA[1] + gradient.square() * (1.0 - BETA[1]);
        let unbiased = |beta: f64| rows::column(&self.setting, |slot| 1.0 - beta.powi(self.step[slot] as i32 + 1));
        let mean = &self.mean / per_row(&unbiased(BETA[0]), &self.mean);
        let square = &self.square / per_row(&unbiased(BETA[1]), &self.square);
        let share = |slot: usize| f64::from(self.step[slot]) / f64::from(self.steps);
        let rate = rows::column(&self.setting, |slot| cosine(1.0, 0.01, share(slot))) * &self.stride;
        let step = mean / (square.sqrt() + TINY) * per_row(&rate, &self.mean);
        (self.point.to_kind(Kind::Double) - step).to_kind(Kind::Float).clamp(0.0, 1.0)
    }

    /// Ends the descents of these slots, and begins those with the next constants: in the middle, on a logarithmic scale, between one
    /// that failed and one that succeeded.
    fn next_descent(&mut self, ends: &[bool]) {
        let ended = rows::mask(&self.setting, |slot| ends[slot]);
        let succeeds = rows::mask(&self.setting, |slot| self.succeeds[slot]);
        let smallest = self.succeeded.minimum(&self.constant);
        self.succeeded = choose(&ended.logical_and(&succeeds), &smallest, &self.succeeded);
        let largest = self.failed.maximum(&self.constant);
        self.failed = choose(&ended.logical_and(&succeeds.logical_not()), &largest, &self.failed);
        let next = (&self.failed * &self.succeeded).sqrt();
        let next = choose(&self.failed.eq(0.0), &(&self.succeeded / FACTOR), &next);
        let next = choose(&self.succeeded.isinf(), &(&self.failed * FACTOR), &next);
        self.constant = choose(&ended, &next.clamp(TINY, 1.0 / TINY), &self.constant);
        self.point = choose(&ended, &self.start, &self.point);
        let forgotten = per_row(&ended, &self.mean);
        self.mean = self.mean.masked_fill(&forgotten, 0.0);
        self.square = self.square.masked_fill(&forgotten, 0.0);
    }
}

impl Search for CarliniWagnerSearch {
    fn load(&mut self, entries: &[Entry], clean: &Tensor) {
        let slots = rows::slots(entries, &self.setting);
        self.nearest.load(entries, clean);
        let points = self.nearest.starting_points(&self.runs, entries, clean);
        let _ = self.start.index_copy_(0, &slots, &points);
        let _ = self.point.index_copy_(0, &slots, &points);
        let _ = self.failed.index_fill_(0, &slots, 0.0);
        let _ = self.succeeded.index_fill_(0, &slots, f64::INFINITY);
        let _ = self.mean.index_fill_(0, &slots, 0.0);
        let _ = self.square.index_fill_(0, &slots, 0.0);
        for entry in entries {
            (self.search[entry.slot], self.step[entry.slot], self.succeeds[entry.slot]) = (0, 0, false);
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
        self.gauge(answer);
        self.point = self.moved(answer);
        let slots = self.setting.slots;
        let ends: Vec<bool> =
            (0..slots).map(|slot| self.entries[slot].is_some() && self.step[slot] == self.steps).collect();
        self.succeeds.iter_mut().zip(&answer.seen).for_each(|(succeeds, seen)| *succeeds |= seen);
        if ends.contains(&true) {
            self.next_descent(&ends);
        }
        let mut status = vec![Status::Searching; slots];
        for (slot, status) in status.iter_mut().enumerate() {
            let Some(entry) = &self.entries[slot] else { continue };
            if ends[slot] {
                self.search[slot] += 1;
                (self.step[slot], self.succeeds[slot]) = (0, false);
            } else {
                self.step[slot] += 1;
            }
            if self.nearest.suffices(slot) || self.search[slot] == self.searches {
                *status = Status::Finished { seen: self.nearest.seen(slot), next_run: self.runs.next(entry) };
            }
            self.demands[slot] = self.demand(entry);
        }
        status
    }

    fn candidates(&self, slots: &[usize]) -> Tensor {
        self.nearest.candidates(slots)
    }

    fn freeze(&self, slot: usize) -> Option<Frozen> {
        let numbers = vec![self.search[slot].into(), self.step[slot].into(), self.succeeds[slot].into()];
        let bounds = [&self.constant, &self.failed, &self.succeeded, &self.stride];
        let rows = [&[&self.point, &self.mean, &self.square][..], &bounds].concat();
        Some(Frozen { numbers, rows: self.nearest.freeze(&rows, slot) })
    }

    fn thaw(&mut self, slot: usize, frozen: &Frozen) -> bool {
        let (Some(entry), &[search, step, succeeds]) = (self.entries[slot].clone(), &frozen.numbers[..]) else {
            return false;
        };
        self.search[slot] = search as u32;
        self.step[slot] = step.min(self.steps.into()) as u32;
        self.succeeds[slot] = succeeds != 0;
        self.demands[slot] = self.demand(&entry);
        let bounds = [&self.constant, &self.failed, &self.succeeded, &self.stride];
        let rows = [&[&self.point, &self.mean, &self.square][..], &bounds].concat();
        self.nearest.thaw(&rows, slot, &frozen.rows)
    }
}
