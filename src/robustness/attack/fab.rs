//! Fast adaptive boundary attack in L∞, L2 and L1 (Croce and Hein 2020): steps to the linearised decision boundary, pulled
//! towards the clean image. FAB-T linearises the boundary to one class, FAB those to all, and goes to the nearest.

use tch::{Kind, Tensor};

use super::nearest::Nearest;
use super::rows::{self, choose};
use super::runs::Runs;
use super::{Answer, Demand, Entry, Frozen, Goal, Search, Setting, Status};
use crate::robustness::threat::{flat, length, per_row, to_hyperplane};

/// Largest weight of the clean image's projection in a step.
const MOST_BIAS: f64 = 0.1;
/// Steps go this much beyond the linearised boundary.
const OVERSHOOT: f64 = 1.05;
/// An adversarial point is pulled back to this share of its distance.
const PULL_BACK: f64 = 0.9;
/// Keeps ratios of distances defined.
const SMALLEST: f64 = 1e-8;

/// FAB trajectories. A step costs a pass per boundary that is linearised, and one more from an adversarial point, which is
/// pulled back first.
#[derive(Debug)]
pub struct FabSearch {
    runs: Runs,
    steps: u32,
    setting: Setting,
    entries: Vec<Option<Entry>>,
    demands: Vec<Demand>,
    /// Moves made, per slot.
    step: Vec<u32>,
    /// Untargeted: which of the wrong classes is looked at.
    looking: Vec<u32>,
    point: Tensor,
    /// The nearest boundary among those looked at: its w, w·x − b at the point, and distance.
    normal: Tensor,
    offset: Tensor,
    boundary_distance: Tensor,
    /// The point was pulled back from an adversarial one.
    pulled: Vec<bool>,
    nearest: Nearest,
}

impl FabSearch {
    pub fn new(runs: Runs, steps: u32, setting: &Setting) -> Self {
        let (images, numbers) = (|| rows::images(setting), || rows::numbers(setting));
        Self {
            runs,
            steps,
            setting: *setting,
            entries: vec![None; setting.slots],
            demands: vec![Demand::Nothing; setting.slots],
            step: vec![0; setting.slots],
            looking: vec![0; setting.slots],
            point: images(),
            normal: images(),
            offset: numbers(),
            boundary_distance: numbers(),
            pulled: vec![false; setting.slots],
            nearest: Nearest::new(setting),
        }
    }

    /// z_t − z_y towards the run's target, or the class that is looked at.
    fn demand(&self, entry: &Entry) -> Demand {
        let goal = self.runs.goal(entry);
        let looked_at = if self.looking[entry.slot] < entry.label {
            self.looking[entry.slot]
        } else {
            self.looking[entry.slot] + 1
        };
        Demand::Gradient(Goal { target: Some(goal.target.unwrap_or(looked_at)), ..goal })
    }

    /// Boundaries that a step of this trajectory looks at.
    fn boundaries(&self) -> u32 {
        if self.runs.targets.is_some() { 1 } else { self.setting.classes - 1 }
    }

    /// Linearises the boundary that was asked for, and keeps it where it is the nearest yet.
    fn look(&mut self, answer: &Answer) {
        let distance =
            answer.loss.abs() / length(self.setting.norm.dual(), &answer.gradient).clamp_min(f64::MIN_POSITIVE);
        let first = rows::mask(&self.setting, |slot| self.looking[slot] == 0);
        let nearer = first.logical_or(&distance.lt_tensor(&self.boundary_distance));
        self.normal = choose(&nearer, &answer.gradient, &self.normal);
        self.offset = choose(&nearer, &answer.loss, &self.offset);
        self.boundary_distance = choose(&nearer, &distance, &self.boundary_distance);
    }

    /// x ← clip((1 − α)(x + 1.05·d) + α(x₀ + 1.05·d₀)), where d and d₀ lead from point and clean image to the boundary and α
    /// grows with d's share of their lengths, up to 0.1.
    fn moved(&self) -> Tensor {
        let norm = self.setting.norm;
        let wide = |image: &Tensor| image.to_kind(Kind::Double);
        let (point, clean, normal) = (wide(&self.point), wide(&self.nearest.clean), wide(&self.normal));
        let lead = flat(&(&normal * (&clean - &point))).sum_dim_intlist(1, false, Kind::Double);
        let both = |a: &Tensor, b: &Tensor| Tensor::cat(&[a, b], 0);
        let offsets = both(&self.offset, &(&self.offset + lead));
        let steps = to_hyperplane(norm, &both(&point, &clean), &both(&normal, &normal), &offsets);
        let sizes = length(norm, &steps).clamp_min(SMALLEST);
        let slots = self.setting.slots as i64;
        let half = |rows: &Tensor, which: i64| rows.narrow(0, which * slots, slots);
        let alpha = (half(&sizes, 0) / (half(&sizes, 0) + half(&sizes, 1))).clamp(0.0, MOST_BIAS);
        let alpha = per_row(&alpha, &point);
        let onward: Tensor = (point + half(&steps, 0) * OVERSHOOT) * (1.0 - &alpha);
        let back: Tensor = (clean + half(&steps, 1) * OVERSHOOT) * alpha;
        (onward + back).clamp(0.0, 1.0).to_kind(Kind::Float)
    }
}

impl Search for FabSearch {
    fn load(&mut self, entries: &[Entry], clean: &Tensor) {
        let slots = rows::slots(entries, &self.setting);
        self.nearest.load(entries, clean);
        let _ = self.point.index_copy_(0, &slots, &self.nearest.starting_points(&self.runs, entries, clean));
        for entry in entries {
            (self.step[entry.slot], self.looking[entry.slot], self.pulled[entry.slot]) = (0, 0, false);
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
        let slots = self.setting.slots;
        let delta = self.nearest.delta(&self.point);
        self.nearest.record(&self.point, answer);
        self.look(answer);
        let last_look = |search: &Self, slot: usize| search.looking[slot] + 1 == search.boundaries();
        let moves = |search: &Self, slot: usize| !answer.seen[slot] && last_look(search, slot);
        if (0..slots).any(|slot| self.entries[slot].is_some() && moves(self, slot)) {
            let rows = rows::mask(&self.setting, |slot| moves(self, slot));
            let moved = self.moved();
            // Without finite gradients there is no nearest boundary to go to.
            let moved = moved.where_self(&moved.isfinite(), &self.point);
            self.point = choose(&rows, &moved, &self.point);
        }
        if answer.seen.contains(&true) {
            let clean = self.nearest.clean.to_kind(Kind::Double);
            let nearer = (clean + delta * PULL_BACK).to_kind(Kind::Float).clamp(0.0, 1.0);
            self.point = choose(&answer.misclassified, &nearer, &self.point);
        }

        let mut status = vec![Status::Searching; slots];
        for (slot, status) in status.iter_mut().enumerate() {
            let Some(entry) = &self.entries[slot] else { continue };
            let next_run = self.runs.next(entry);
            if self.nearest.suffices(slot) {
                *status = Status::Finished { seen: self.nearest.seen(slot), next_run };
                continue;
            }
            let pulled = std::mem::replace(&mut self.pulled[slot], answer.seen[slot]);
            if answer.seen[slot] {
                self.looking[slot] = 0;
                // A point that is adversarial however far it is pulled back must not go on for ever.
                self.step[slot] += u32::from(pulled);
            } else if last_look(self, slot) {
                self.looking[slot] = 0;
                self.step[slot] += 1;
            } else {
                self.looking[slot] += 1;
            }
            if self.step[slot] > self.steps {
                *status = Status::Finished { seen: self.nearest.seen(slot), next_run };
            }
            self.demands[slot] = self.demand(entry);
        }
        status
    }

    fn candidates(&self, slots: &[usize]) -> Tensor {
        self.nearest.candidates(slots)
    }

    fn freeze(&self, slot: usize) -> Option<Frozen> {
        let numbers = vec![self.step[slot].into(), self.looking[slot].into(), self.pulled[slot].into()];
        let rows = [&self.point, &self.normal, &self.offset, &self.boundary_distance];
        Some(Frozen { numbers, rows: self.nearest.freeze(&rows, slot) })
    }

    fn thaw(&mut self, slot: usize, frozen: &Frozen) -> bool {
        let (Some(entry), &[step, looking, pulled]) = (self.entries[slot].clone(), &frozen.numbers[..]) else {
            return false;
        };
        self.step[slot] = step.min(self.steps.into()) as u32;
        self.looking[slot] = looking.min(u64::from(self.boundaries()) - 1) as u32;
        self.pulled[slot] = pulled != 0;
        self.demands[slot] = self.demand(&entry);
        let rows = [&self.point, &self.normal, &self.offset, &self.boundary_distance];
        self.nearest.thaw(&rows, slot, &frozen.rows)
    }
}
