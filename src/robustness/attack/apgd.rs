//! Auto-PGD in L∞ and L2 (Croce and Hein 2020, algorithm 1): step sizes that halve by themselves.

use tch::{Kind, Tensor};

use super::rows::{self, choose};
use super::runs::Runs;
use super::step::ascend_l2;
use super::{Answer, Demand, Entry, Frozen, Search, Seen, Setting, Status, index};
use crate::protocol::{ClipOrder, Norm, Projection};
use crate::robustness::threat::{Ball, clip, linf_bounds, per_row, toward_clean, unit_sphere};

/// Share of the newest point in a step, against the previous step's direction.
const MOMENTUM_WEIGHT: f64 = 0.75;
/// A window in which fewer than this share of steps raised the loss halves the step.
const RISING_SHARE: f64 = 0.75;

/// When step sizes are reconsidered: the number of moves made, and the length of the window that ends there.
fn checkpoints(steps: u32) -> Vec<(u32, u32)> {
    let share = |of_steps: f64| ((of_steps * f64::from(steps)) as u32).max(1);
    let (mut window, mut end) = (share(0.22), share(0.22));
    let mut found = Vec::new();
    while end <= steps {
        found.push((end, window));
        window = window.saturating_sub(share(0.03)).max(share(0.06));
        end += window;
    }
    found
}

/// APGD trajectories. Each visits steps + 1 points, its start included.
#[derive(Debug)]
pub struct ApgdSearch {
    runs: Runs,
    steps: u32,
    setting: Setting,
    ball: Ball,
    checkpoints: Vec<(u32, u32)>,
    entries: Vec<Option<Entry>>,
    demands: Vec<Demand>,
    /// Moves made, per slot.
    step: Vec<u32>,
    clean: Tensor,
    /// L∞ only: the lowest and highest admissible images.
    bounds: Option<(Tensor, Tensor)>,
    epsilon: Tensor,
    point: Tensor,
    previous: Tensor,
    /// Step size, per slot.
    eta: Tensor,
    best: Tensor,
    best_gradient: Tensor,
    best_loss: Tensor,
    last_loss: Tensor,
    /// Steps of the window that raised the loss.
    rises: Tensor,
    /// What `best_loss` was at the last checkpoint.
    checked_loss: Tensor,
    /// Whether the last checkpoint halved the step; true before the first.
    halved: Tensor,
}

impl ApgdSearch {
    /// Empty slots; the norm is L∞ or L2.
    pub fn new(runs: Runs, steps: u32, setting: &Setting) -> Self {
        let (images, numbers) = (|| rows::images(setting), || rows::numbers(setting));
        Self {
            runs,
            steps,
            setting: *setting,
            ball: Ball { norm: setting.norm, projection: Projection::Euclidean, order: ClipOrder::ProjectThenClip },
            checkpoints: checkpoints(steps),
            entries: vec![None; setting.slots],
            demands: vec![Demand::Nothing; setting.slots],
            step: vec![0; setting.slots],
            clean: images(),
            bounds: (setting.norm == Norm::Linf).then(|| (images(), images())),
            epsilon: numbers(),
            point: images(),
            previous: images(),
            eta: numbers(),
            best: images(),
            best_gradient: images(),
            best_loss: numbers(),
            last_loss: numbers(),
            rises: numbers(),
            checked_loss: numbers(),
            halved: rows::mask(setting, |_| true),
        }
    }

    /// On the surface of the ball in a random direction, cut to the box.
    fn starting_points(&self, entries: &[Entry], clean: &Tensor) -> Tensor {
        let dimension = clean.numel() / entries.len();
        let unit: Vec<f64> = entries
            .iter()
            .flat_map(|entry| unit_sphere(self.setting.norm, dimension, &mut entry.draws.stream(entry.run, 0)))
            .collect();
        let unit = Tensor::from_slice(&unit).to_device(self.setting.device).view_as(clean);
        toward_clean(clean, &clip(clean, &(unit * per_row(&rows::radii(entries, &self.setting), clean))))
    }

    fn demand(&self, entry: &Entry) -> Demand {
        let goal = self.runs.goal(entry);
        if self.step[entry.slot] < self.steps { Demand::Gradient(goal) } else { Demand::Loss(goal) }
    }

    /// Notes what the answer says of the current points.
    fn record(&mut self, answer: &Answer) {
        let mut better = answer.loss.gt_tensor(&self.best_loss);
        if !self.setting.stochastic {
            better = better.logical_or(&answer.misclassified);
        }
        self.best = choose(&better, &self.point, &self.best);
        self.best_gradient = choose(&better, &answer.gradient, &self.best_gradient);
        self.best_loss = choose(&better, &answer.loss, &self.best_loss);
        self.rises = &self.rises + answer.loss.gt_tensor(&self.last_loss).to_kind(Kind::Double);
        self.last_loss = answer.loss.shallow_clone();
    }

    /// Halves the steps of trajectories at a checkpoint that have stalled, and sends them back to their best points.
    /// Returns the gradients at the points that are then current.
    fn reconsider(&mut self, answer: &Answer) -> Tensor {
        let window = |slot: usize| self.checkpoints.iter().find(|(end, _)| *end == self.step[slot]).map(|(_, w)| *w);
        if (0..self.setting.slots).all(|slot| self.entries[slot].is_none() || window(slot).is_none()) {
            return answer.gradient.shallow_clone();
        }
        let here = rows::mask(&self.setting, |slot| window(slot).is_some());
        let enough = rows::column(&self.setting, |slot| RISING_SHARE * f64::from(window(slot).unwrap_or(0)));
        let oscillates = self.rises.le_tensor(&enough);
        let stalls = self.halved.logical_not().logical_and(&self.checked_loss.ge_tensor(&self.best_loss));
        let halve = here.logical_and(&oscillates.logical_or(&stalls));
        self.eta = choose(&halve, &(&self.eta / 2.0), &self.eta);
        self.point = choose(&halve, &self.best, &self.point);
        self.halved = choose(&here, &halve, &self.halved);
        self.checked_loss = choose(&here, &self.best_loss, &self.checked_loss);
        self.rises = self.rises.masked_fill(&here, 0.0);
        choose(&halve, &self.best_gradient, &answer.gradient)
    }

    /// x' = P(x + a·(P(x + η·g̃) − x) + (1 − a)·(x − x_previous)), with a = 1 in the first step.
    fn moved(&self, gradient: &Tensor) -> Tensor {
        let weight = rows::column(&self.setting, |slot| if self.step[slot] == 0 { 1.0 } else { MOMENTUM_WEIGHT });
        let weight = per_row(&weight, &self.point);
        match &self.bounds {
            Some((low, high)) => {
                let weight = weight.to_kind(Kind::Float);
                let eta = per_row(&self.eta, &self.point).to_kind(Kind::Float);
                let inside = |point: Tensor| point.maximum(low).minimum(high);
                let ahead = inside(&self.point + gradient.sign() * eta);
                let inertia = (&self.point - &self.previous) * (1.0 - &weight);
                inside(&self.point + (ahead - &self.point) * weight + inertia)
            }
            None => {
                let clean = self.clean.to_kind(Kind::Double);
                let point = self.point.to_kind(Kind::Double);
                let ahead = ascend_l2(&self.clean, &self.point, gradient, &self.eta, &self.epsilon);
                let inertia = (&point - &self.previous) * (1.0 - &weight);
                let there = &point + (ahead - &point) * weight + inertia - clean;
                self.ball.project(&self.clean, &there, &self.epsilon)
            }
        }
    }
}

impl ApgdSearch {
    /// What trajectories remember, a row each.
    fn memory(&self) -> Vec<&Tensor> {
        vec![
            &self.point,
            &self.previous,
            &self.eta,
            &self.best,
            &self.best_gradient,
            &self.best_loss,
            &self.last_loss,
            &self.rises,
            &self.checked_loss,
            &self.halved,
        ]
    }
}

impl Search for ApgdSearch {
    fn load(&mut self, entries: &[Entry], clean: &Tensor) {
        let slots = rows::slots(entries, &self.setting);
        let epsilon = rows::radii(entries, &self.setting);
        let points = self.starting_points(entries, clean);
        let _ = self.clean.index_copy_(0, &slots, clean);
        let _ = self.point.index_copy_(0, &slots, &points);
        let _ = self.previous.index_copy_(0, &slots, &points);
        // Until a loss says better: whoever had the slot before must not show.
        let _ = self.best.index_copy_(0, &slots, &points);
        let _ = self.best_gradient.index_fill_(0, &slots, 0.0);
        let _ = self.epsilon.index_copy_(0, &slots, &epsilon);
        let _ = self.eta.index_copy_(0, &slots, &(&epsilon * 2.0));
        let _ = self.best_loss.index_fill_(0, &slots, f64::NEG_INFINITY);
        let _ = self.last_loss.index_fill_(0, &slots, f64::INFINITY);
        let _ = self.rises.index_fill_(0, &slots, 0.0);
        let _ = self.halved.index_fill_(0, &slots, 1);
        if let Some((low, high)) = &mut self.bounds {
            let (new_low, new_high) = linf_bounds(clean, &epsilon);
            let _ = low.index_copy_(0, &slots, &new_low);
            let _ = high.index_copy_(0, &slots, &new_high);
        }
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
        self.record(answer);
        let gradient = self.reconsider(answer);
        let moved = self.moved(&gradient);
        self.previous = std::mem::replace(&mut self.point, moved);
        (0..self.setting.slots)
            .map(|slot| {
                let Some(entry) = &self.entries[slot] else { return Status::Searching };
                let next_run = self.runs.next(entry);
                if answer.seen[slot] && !self.setting.stochastic {
                    return Status::Finished { seen: Seen::Success, next_run };
                }
                if self.step[slot] == self.steps {
                    return Status::Finished { seen: Seen::Failure, next_run };
                }
                self.step[slot] += 1;
                self.demands[slot] = self.demand(entry);
                Status::Searching
            })
            .collect()
    }

    fn candidates(&self, slots: &[usize]) -> Tensor {
        self.best.index_select(0, &index(slots.iter().copied(), &self.best))
    }

    fn freeze(&self, slot: usize) -> Option<Frozen> {
        Some(Frozen { numbers: vec![self.step[slot].into()], rows: rows::freeze(&self.memory(), slot) })
    }

    fn thaw(&mut self, slot: usize, frozen: &Frozen) -> bool {
        let (Some(entry), &[step]) = (self.entries[slot].clone(), &frozen.numbers[..]) else { return false };
        self.step[slot] = step.min(self.steps.into()) as u32;
        self.demands[slot] = self.demand(&entry);
        rows::thaw(&self.memory(), slot, &frozen.rows)
    }
}

#[cfg(test)]
mod tests {
    use super::checkpoints;

    #[test]
    fn checkpoints_are_those_of_the_paper() {
        let ends = |steps| checkpoints(steps).into_iter().map(|(end, _)| end).collect::<Vec<_>>();
        assert_eq!(ends(100), [22, 41, 57, 70, 80, 87, 93, 99]);
        assert_eq!(ends(1), [1]);
        assert_eq!(checkpoints(10), [(2, 2), (3, 1), (4, 1), (5, 1), (6, 1), (7, 1), (8, 1), (9, 1), (10, 1)]);
    }
}
