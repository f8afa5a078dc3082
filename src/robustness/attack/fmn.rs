//! Fast minimum-norm attack in L∞, L2 and L1 (Pintor et al. 2021, algorithm 1): gradient steps of the margin inside a ball
//! that shrinks while the point is adversarial and grows while it is not.

use tch::{Kind, Tensor};

use super::nearest::{Nearest, farthest};
use super::rows::{self, choose};
use super::runs::Runs;
use super::step::{cosine, steepest_l2};
use super::{Answer, Demand, Entry, Frozen, Search, Setting, Status};
use crate::protocol::{ClipOrder, Loss, Norm, Projection, Untargeted};
use crate::robustness::threat::{Ball, length, per_row};

/// How much the ball shrinks or grows in the first and in the last step.
const GAMMA: [f64; 2] = [0.05, 0.001];

/// Length of the first step in L2, whatever the norm; the last is a hundredth of it.
fn first_step(norm: Norm) -> f64 {
    match norm {
        Norm::Linf => 10.0,
        Norm::L2 | Norm::L1 => 1.0,
    }
}

/// FMN trajectories. Each visits steps + 1 points, its start included.
#[derive(Debug)]
pub struct FmnSearch {
    runs: Runs,
    steps: u32,
    setting: Setting,
    ball: Ball,
    entries: Vec<Option<Entry>>,
    demands: Vec<Demand>,
    /// Moves made, per slot.
    step: Vec<u32>,
    nearest: Nearest,
    point: Tensor,
    radius: Tensor,
}

impl FmnSearch {
    pub fn new(fmn: &Untargeted, setting: &Setting) -> Self {
        Self {
            runs: Runs::untargeted(Loss::Margin, fmn),
            steps: fmn.steps,
            setting: *setting,
            ball: Ball { norm: setting.norm, projection: Projection::Euclidean, order: ClipOrder::ProjectThenClip },
            entries: vec![None; setting.slots],
            demands: vec![Demand::Nothing; setting.slots],
            step: vec![0; setting.slots],
            nearest: Nearest::new(setting),
            point: rows::images(setting),
            radius: rows::numbers(setting),
        }
    }

    fn demand(&self, entry: &Entry) -> Demand {
        let goal = self.runs.goal(entry);
        if self.step[entry.slot] < self.steps { Demand::Gradient(goal) } else { Demand::Loss(goal) }
    }

    /// A number per slot that falls from `first` to `last` over a trajectory.
    fn falling(&self, first: f64, last: f64) -> Tensor {
        rows::column(&self.setting, |slot| cosine(first, last, f64::from(self.step[slot]) / f64::from(self.steps)))
    }

    /// The radius of the next step: smaller than the nearest adversarial point's from an adversarial one, else a little larger;
    /// before there is any, a little beyond the linearised boundary, which is never crossed from below where the box makes it
    /// look nearer than it is.
    fn next_radius(&self, delta: &Tensor, answer: &Answer) -> Tensor {
        let gamma = self.falling(GAMMA[0], GAMMA[1]);
        let shrunk: Tensor = &self.radius - &self.radius * &gamma;
        let shrunk = shrunk.minimum(&self.nearest.distance);
        let grown: Tensor = &self.radius + &self.radius * &gamma;
        let slope = length(self.setting.norm.dual(), &answer.gradient).clamp_min(f64::MIN_POSITIVE);
        let boundary = length(self.setting.norm, delta) + answer.loss.abs() / slope;
        let beyond = &boundary + &boundary * &gamma;
        let outward = choose(&self.nearest.distance.isfinite(), &grown, &beyond);
        let most = farthest(self.setting.norm, self.setting.dimension());
        choose(&answer.misclassified, &shrunk, &outward).nan_to_num(most, most, 0.0).clamp_max(most)
    }
}

impl Search for FmnSearch {
    fn load(&mut self, entries: &[Entry], clean: &Tensor) {
        let slots = rows::slots(entries, &self.setting);
        self.nearest.load(entries, clean);
        let points = self.nearest.starting_points(&self.runs, entries, clean);
        let moved = points.to_kind(Kind::Double) - clean.to_kind(Kind::Double);
        let _ = self.point.index_copy_(0, &slots, &points);
        let _ = self.radius.index_copy_(0, &slots, &length(self.setting.norm, &moved));
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
        let delta = self.nearest.delta(&self.point);
        self.radius = self.next_radius(&delta, answer);
        let first = first_step(self.setting.norm);
        let alpha = per_row(&self.falling(first, first / 100.0), &self.point);
        let step = steepest_l2(&self.point, &answer.gradient) * alpha;
        self.point = self.ball.project(&self.nearest.clean, &(delta + step), &self.radius);
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
        let rows = self.nearest.freeze(&[&self.point, &self.radius], slot);
        Some(Frozen { numbers: vec![self.step[slot].into()], rows })
    }

    fn thaw(&mut self, slot: usize, frozen: &Frozen) -> bool {
        let (Some(entry), &[step]) = (self.entries[slot].clone(), &frozen.numbers[..]) else { return false };
        self.step[slot] = step.min(self.steps.into()) as u32;
        self.demands[slot] = self.demand(&entry);
        self.nearest.thaw(&[&self.point, &self.radius], slot, &frozen.rows)
    }
}
