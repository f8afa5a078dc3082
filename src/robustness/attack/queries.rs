//! Random search, forward passes only: look at one point after another, keep the one with the largest margin.

use tch::Tensor;

use super::rows::{self, choose};
use super::{Answer, Demand, Entry, Frozen, Goal, Seen, Setting, Status, index};
use crate::protocol::Loss;
use crate::robustness::rng::Stream;

const GOAL: Goal = Goal { loss: Loss::Margin, target: None, float32_gradient: false };

/// What every random search keeps per slot. Where the next point lies is the attack's own affair.
#[derive(Debug)]
pub struct Queries {
    setting: Setting,
    /// Whose trajectory it is, and the random numbers of its path.
    pub entries: Vec<Option<(Entry, Stream)>>,
    pub demands: Vec<Demand>,
    /// Points looked at.
    pub count: Vec<u32>,
    pub point: Tensor,
    pub best: Tensor,
    best_loss: Tensor,
}

impl Queries {
    pub fn new(setting: &Setting) -> Self {
        Self {
            setting: *setting,
            entries: vec![None; setting.slots],
            demands: vec![Demand::Nothing; setting.slots],
            count: vec![0; setting.slots],
            point: rows::images(setting),
            best: rows::images(setting),
            best_loss: rows::numbers(setting),
        }
    }

    /// The streams that these entries' paths are drawn from.
    pub fn streams(entries: &[Entry]) -> Vec<Stream> {
        entries.iter().map(|entry| entry.draws.stream(entry.run, 0)).collect()
    }

    /// Begins at `points`, one per entry; `streams` have drawn them.
    pub fn begin(&mut self, entries: &[Entry], streams: Vec<Stream>, points: &Tensor) {
        let slots = rows::slots(entries, &self.setting);
        let _ = self.point.index_copy_(0, &slots, points);
        // Until a loss says better: whoever had the slot before must not show.
        let _ = self.best.index_copy_(0, &slots, points);
        let _ = self.best_loss.index_fill_(0, &slots, f64::NEG_INFINITY);
        for (entry, stream) in entries.iter().zip(streams) {
            self.count[entry.slot] = 0;
            self.demands[entry.slot] = Demand::Loss(GOAL);
            self.entries[entry.slot] = Some((entry.clone(), stream));
        }
    }

    pub fn release(&mut self, slot: usize) {
        self.demands[slot] = Demand::Nothing;
        self.entries[slot] = None;
    }

    /// Keeps the points that the answer says are better.
    pub fn keep(&mut self, answer: &Answer) {
        let mut better = answer.loss.gt_tensor(&self.best_loss);
        if !self.setting.stochastic {
            better = better.logical_or(&answer.misclassified);
        }
        self.best = choose(&better, &self.point, &self.best);
        self.best_loss = choose(&better, &answer.loss, &self.best_loss);
        self.count.iter_mut().for_each(|count| *count += 1);
    }

    /// Where every trajectory stands after `keep`, with at most `most` points in each of `restarts` runs.
    pub fn status(&self, answer: &Answer, most: u32, restarts: u32) -> Vec<Status> {
        let of = |slot: usize| {
            let Some((entry, _)) = &self.entries[slot] else { return Status::Searching };
            let next_run = (entry.run + 1 < restarts).then_some(entry.run + 1);
            if answer.seen[slot] && !self.setting.stochastic {
                Status::Finished { seen: Seen::Success, next_run }
            } else if self.count[slot] >= most {
                Status::Finished { seen: Seen::Failure, next_run }
            } else {
                Status::Searching
            }
        };
        (0..self.setting.slots).map(of).collect()
    }

    pub fn candidates(&self, slots: &[usize]) -> Tensor {
        self.best.index_select(0, &index(slots.iter().copied(), &self.best))
    }

    pub fn freeze(&self, slot: usize) -> Option<Frozen> {
        let (_, stream) = self.entries[slot].as_ref()?;
        let [low, high] = stream.position();
        let numbers = vec![self.count[slot].into(), low, high];
        Some(Frozen { numbers, rows: rows::freeze(&self.memory(), slot) })
    }

    pub fn thaw(&mut self, slot: usize, frozen: &Frozen) -> bool {
        let (Some((_, stream)), &[count, low, high]) = (&mut self.entries[slot], &frozen.numbers[..]) else {
            return false;
        };
        stream.seek([low, high]);
        self.count[slot] = count as u32;
        rows::thaw(&self.memory(), slot, &frozen.rows)
    }

    /// What searches remember, a row each.
    fn memory(&self) -> Vec<&Tensor> {
        vec![&self.point, &self.best, &self.best_loss]
    }
}
