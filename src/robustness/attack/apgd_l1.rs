//! Auto-PGD in L1 (Croce and Hein 2021, "Mind the box"): sparse steps whose sparsity follows the best point's, first in
//! larger balls.

use tch::{Kind, Tensor};

use super::rows::{self, choose};
use super::runs::Runs;
use super::step::free;
use super::{Answer, Demand, Entry, Frozen, Search, Seen, Setting, Status, index};
use crate::protocol::{ClipOrder, Norm, Projection};
use crate::robustness::threat::{Ball, flat, per_row};

/// Radii of the phases, in ε, and the share of the steps that each gets.
const PHASES: [(f64, f64); 3] = [(3.0, 0.3), (2.0, 0.3), (1.0, 0.4)];
/// Share of the pixels that the first steps move.
const FIRST_DENSITY: f64 = 0.2;
/// Steps move this factor fewer pixels than the best point has moved and not brought to the box.
const SPARSER: f64 = 1.5;
/// A best point with less than this share of the moved pixels it had is progress: the step is long again.
const PROGRESS: f64 = 0.95;
/// Pixels this near to the box are at it: rounding toward the clean pixel may leave them a hair short, and a step that takes
/// them for free is lost.
const AT_BOX: f64 = 1e-6;
const SHORTER: f64 = 1.5;
/// The step is never shorter than ε over this.
const SHORTEST: f64 = 10.0;

/// One stretch of a trajectory at one radius.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Phase {
    /// Radius in ε.
    radius: f64,
    steps: u32,
    /// Moves between two looks at the sparsity.
    window: u32,
}

/// The phases of `steps` moves; those without a move are left out, and the last gets what rounding leaves.
fn phases(steps: u32) -> Vec<Phase> {
    let share = |share: f64| (share * f64::from(steps)) as u32;
    let early = share(PHASES[0].1) + share(PHASES[1].1);
    let lengths = [share(PHASES[0].1), share(PHASES[1].1), steps - early];
    PHASES
        .iter()
        .zip(lengths)
        .filter(|(_, steps)| *steps > 0)
        .map(|((radius, _), steps)| Phase { radius: *radius, steps, window: ((0.04 * f64::from(steps)) as u32).max(1) })
        .collect()
}

/// L1-APGD trajectories. Each phase visits its steps + 1 points, its start included.
#[derive(Debug)]
pub struct L1ApgdSearch {
    runs: Runs,
    setting: Setting,
    ball: Ball,
    phases: Vec<Phase>,
    entries: Vec<Option<Entry>>,
    demands: Vec<Demand>,
    /// Phase and moves made in it, per slot.
    at: Vec<(usize, u32)>,
    clean: Tensor,
    /// Radius of the current phase.
    radius: Tensor,
    point: Tensor,
    eta: Tensor,
    /// Pixels that a step moves, at least 1.
    density: Tensor,
    /// Pixels that the best point had moved when last looked at.
    moved_pixels: Tensor,
    best: Tensor,
    best_gradient: Tensor,
    best_loss: Tensor,
}

impl L1ApgdSearch {
    pub fn new(runs: Runs, steps: u32, setting: &Setting) -> Self {
        let (images, numbers) = (|| rows::images(setting), || rows::numbers(setting));
        Self {
            runs,
            setting: *setting,
            ball: Ball { norm: Norm::L1, projection: Projection::Euclidean, order: ClipOrder::ProjectThenClip },
            phases: phases(steps),
            entries: vec![None; setting.slots],
            demands: vec![Demand::Nothing; setting.slots],
            at: vec![(0, 0); setting.slots],
            clean: images(),
            radius: numbers(),
            point: images(),
            eta: numbers(),
            density: numbers() + 1.0,
            moved_pixels: numbers(),
            best: images(),
            best_gradient: images(),
            best_loss: numbers(),
        }
    }

    fn dimension(&self) -> f64 {
        self.setting.shape.iter().product::<i64>() as f64
    }

    /// The projection of a standard normal perturbation on ball and box.
    fn starting_points(&self, entries: &[Entry], clean: &Tensor) -> Tensor {
        let dimension = clean.numel() / entries.len();
        let mut normals = Vec::with_capacity(entries.len() * dimension.next_multiple_of(2));
        for (row, entry) in entries.iter().enumerate() {
            let mut stream = entry.draws.stream(entry.run, 0);
            while normals.len() < (row + 1) * dimension {
                normals.extend(stream.normals());
            }
            normals.truncate((row + 1) * dimension);
        }
        let delta = Tensor::from_slice(&normals).to_device(self.setting.device).view_as(clean);
        let radius = rows::radii(entries, &self.setting) * self.phases[0].radius;
        self.ball.project(clean, &delta, &radius)
    }

    fn demand(&self, entry: &Entry) -> Demand {
        let goal = self.runs.goal(entry);
        let (phase, step) = self.at[entry.slot];
        if step < self.phases[phase].steps { Demand::Gradient(goal) } else { Demand::Loss(goal) }
    }

    fn in_last_phase(&self, slot: usize) -> bool {
        self.at[slot].0 + 1 == self.phases.len()
    }

    /// Adapts sparsity and step of the trajectories whose window ends. Returns the gradients at the points that are then
    /// current.
    fn reconsider(&mut self, answer: &Answer) -> Tensor {
        let due = |slot: usize| {
            let (phase, step) = self.at[slot];
            self.entries[slot].is_some() && step > 0 && step.is_multiple_of(self.phases[phase].window)
        };
        if !(0..self.setting.slots).any(due) {
            return answer.gradient.shallow_clone();
        }
        let here = rows::mask(&self.setting, due);
        let (moved, unbound) = counts(&self.best, &self.clean);
        let progress = here.logical_and(&moved.lt_tensor(&(&self.moved_pixels * PROGRESS)));
        let shorter = (&self.eta / SHORTER).maximum(&(&self.radius / SHORTEST));
        self.eta = choose(&here, &choose(&progress, &self.radius, &shorter), &self.eta);
        self.density = choose(&here, &(&unbound / SPARSER).clamp_min(1.0), &self.density);
        self.moved_pixels = choose(&here, &moved, &self.moved_pixels);
        self.point = choose(&progress, &self.best, &self.point);
        choose(&progress, &self.best_gradient, &answer.gradient)
    }

    /// x' = P(x + η·sign(g_q)/‖sign(g_q)‖₁), g_q the largest `density` entries of the gradient that the box lets move. Pixels
    /// at the box whose gradient is as large are pushed against it too, so that the projection leaves them there: counting
    /// them among the largest, as the published step does, stalls once they are all that is left.
    fn moved(&self, gradient: &Tensor) -> Tensor {
        let movable = flat(&free(&self.point, gradient, AT_BOX)).abs();
        let (sorted, _) = movable.sort(1, true);
        let last = self.density.floor().to_kind(Kind::Int64).clamp(1, movable.size()[1]) - 1;
        let threshold = sorted.gather(1, &last.unsqueeze(1), false);
        let reaches = |height: &Tensor| height.ge_tensor(&threshold).logical_and(&height.gt(0.0)).to_kind(Kind::Double);
        let share = reaches(&movable).sum_dim_intlist(1, true, Kind::Double).clamp_min(1.0);
        let direction = (reaches(&flat(&gradient.abs())) / share).view_as(gradient) * gradient.sign();
        let delta = self.point.to_kind(Kind::Double) - self.clean.to_kind(Kind::Double);
        let delta = delta + direction * per_row(&self.eta, gradient);
        self.ball.project(&self.clean, &delta, &self.radius)
    }

    /// Begins the next phase of the trajectories in `slots` at their best points, projected on the smaller ball.
    fn shrink(&mut self, slots: &[usize]) {
        if slots.is_empty() {
            return;
        }
        let mut radius = Vec::with_capacity(slots.len());
        for slot in slots {
            let (phase, _) = self.at[*slot];
            self.at[*slot] = (phase + 1, 0);
            let epsilon = self.entries[*slot].as_ref().map_or(0.0, |entry| entry.epsilon);
            radius.push(epsilon * self.phases[phase + 1].radius);
        }
        let rows = index(slots.iter().copied(), &self.clean);
        let radius = Tensor::from_slice(&radius).to_device(self.setting.device);
        let clean = self.clean.index_select(0, &rows);
        let delta = self.best.index_select(0, &rows).to_kind(Kind::Double) - clean.to_kind(Kind::Double);
        let points = self.ball.project(&clean, &delta, &radius);
        let (moved, unbound) = counts(&points, &clean);
        let _ = self.point.index_copy_(0, &rows, &points);
        // The larger ball's best is none of this one's, even if no loss here should compare.
        let _ = self.best.index_copy_(0, &rows, &points);
        let _ = self.best_gradient.index_fill_(0, &rows, 0.0);
        let _ = self.density.index_copy_(0, &rows, &(&unbound / SPARSER).clamp_min(1.0));
        let _ = self.moved_pixels.index_copy_(0, &rows, &moved);
        let _ = self.radius.index_copy_(0, &rows, &radius);
        let _ = self.eta.index_copy_(0, &rows, &radius);
        let _ = self.best_loss.index_fill_(0, &rows, f64::NEG_INFINITY);
    }
}

impl L1ApgdSearch {
    /// What trajectories remember, a row each.
    fn memory(&self) -> Vec<&Tensor> {
        vec![
            &self.radius,
            &self.point,
            &self.eta,
            &self.density,
            &self.moved_pixels,
            &self.best,
            &self.best_gradient,
            &self.best_loss,
        ]
    }
}

impl Search for L1ApgdSearch {
    fn load(&mut self, entries: &[Entry], clean: &Tensor) {
        let slots = rows::slots(entries, &self.setting);
        let radius = rows::radii(entries, &self.setting) * self.phases[0].radius;
        let points = self.starting_points(entries, clean);
        let _ = self.clean.index_copy_(0, &slots, clean);
        let _ = self.point.index_copy_(0, &slots, &points);
        // Until a loss says better: whoever had the slot before must not show.
        let _ = self.best.index_copy_(0, &slots, &points);
        let _ = self.best_gradient.index_fill_(0, &slots, 0.0);
        let _ = self.radius.index_copy_(0, &slots, &radius);
        let _ = self.eta.index_copy_(0, &slots, &radius);
        let _ = self.density.index_fill_(0, &slots, (FIRST_DENSITY * self.dimension()).max(1.0));
        let _ = self.moved_pixels.index_fill_(0, &slots, self.dimension());
        let _ = self.best_loss.index_fill_(0, &slots, f64::NEG_INFINITY);
        for entry in entries {
            self.at[entry.slot] = (0, 0);
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
        let mut better = answer.loss.gt_tensor(&self.best_loss);
        if !self.setting.stochastic {
            // In a larger ball it proves nothing.
            let counts = rows::mask(&self.setting, |slot| self.in_last_phase(slot));
            better = better.logical_or(&answer.misclassified.logical_and(&counts));
        }
        self.best = choose(&better, &self.point, &self.best);
        self.best_gradient = choose(&better, &answer.gradient, &self.best_gradient);
        self.best_loss = choose(&better, &answer.loss, &self.best_loss);
        let gradient = self.reconsider(answer);
        self.point = self.moved(&gradient);

        let mut shrinking = Vec::new();
        let mut status = vec![Status::Searching; self.setting.slots];
        for (slot, status) in status.iter_mut().enumerate() {
            let Some(entry) = &self.entries[slot] else { continue };
            let next_run = self.runs.next(entry);
            let (phase, step) = self.at[slot];
            let last = self.in_last_phase(slot);
            if last && answer.seen[slot] && !self.setting.stochastic {
                *status = Status::Finished { seen: Seen::Success, next_run };
            } else if step < self.phases[phase].steps {
                self.at[slot].1 += 1;
            } else if last {
                *status = Status::Finished { seen: Seen::Failure, next_run };
            } else {
                shrinking.push(slot);
            }
        }
        self.shrink(&shrinking);
        for slot in 0..self.setting.slots {
            if let Some(entry) = &self.entries[slot] {
                self.demands[slot] = self.demand(entry);
            }
        }
        status
    }

    fn candidates(&self, slots: &[usize]) -> Tensor {
        self.best.index_select(0, &index(slots.iter().copied(), &self.best))
    }

    fn freeze(&self, slot: usize) -> Option<Frozen> {
        let (phase, step) = self.at[slot];
        Some(Frozen { numbers: vec![phase as u64, step.into()], rows: rows::freeze(&self.memory(), slot) })
    }

    fn thaw(&mut self, slot: usize, frozen: &Frozen) -> bool {
        let (Some(entry), &[phase, step]) = (self.entries[slot].clone(), &frozen.numbers[..]) else { return false };
        let phase = (phase as usize).min(self.phases.len() - 1);
        self.at[slot] = (phase, step.min(self.phases[phase].steps.into()) as u32);
        self.demands[slot] = self.demand(&entry);
        rows::thaw(&self.memory(), slot, &frozen.rows)
    }
}

/// How many pixels have moved, and how many of those without coming to the box; float64 [n] each. Steps follow the second:
/// by the published rule, the first, steps on a linear score reach a point where they raise all unbound pixels alike, which
/// the projection undoes, far from the optimum.
fn counts(points: &Tensor, clean: &Tensor) -> (Tensor, Tensor) {
    let count = |pixels: &Tensor| flat(pixels).sum_dim_intlist(1, false, Kind::Double);
    let moved = points.ne_tensor(clean);
    let unbound = points.gt(AT_BOX).logical_and(&points.lt(1.0 - AT_BOX)).logical_and(&moved);
    (count(&moved), count(&unbound))
}

#[cfg(test)]
mod tests {
    use super::phases;

    #[test]
    fn phases_share_all_steps_and_end_in_the_ball_itself() {
        for steps in 1..200 {
            let phases = phases(steps);
            assert_eq!(phases.iter().map(|phase| phase.steps).sum::<u32>(), steps);
            assert_eq!(phases.last().unwrap().radius, 1.0);
        }
        assert_eq!(phases(100).iter().map(|phase| phase.steps).collect::<Vec<_>>(), [30, 30, 40]);
    }
}
