//! Square attack (Andriushchenko et al. 2020): random search over square windows, forward passes only. Windows and signs
//! are drawn per image, so that an image's path is its own.

use tch::Tensor;

use super::rows::{self, choose};
use super::square_bumps::Bumps;
use super::square_window::{self, Window};
use super::{Answer, Demand, Entry, Goal, Search, Seen, Setting, Status, index};
use crate::protocol::{Loss, Norm, Square};
use crate::robustness::rng::Stream;
use crate::robustness::threat::linf_bounds;

const GOAL: Goal = Goal { loss: Loss::Margin, target: None, float32_gradient: false };

/// Share of the pixels in a window of query `query` of a search (1: the first window), from the share of the first:
/// it halves on the published schedule.
fn share(p: f64, query: u32) -> f64 {
    const HALVINGS: [u32; 9] = [10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000];
    p / f64::from(1u32 << HALVINGS.iter().filter(|until| query > **until).count())
}

/// Square trajectories. Each looks at its start and then at one changed window after another, and keeps what raises the
/// margin.
#[derive(Debug)]
pub struct SquareSearch {
    square: Square,
    setting: Setting,
    entries: Vec<Option<(Entry, Stream)>>,
    demands: Vec<Demand>,
    /// Points looked at, per slot.
    queries: Vec<u32>,
    point: Tensor,
    best: Tensor,
    best_loss: Tensor,
    moves: Moves,
}

/// How points change: to the ends of an interval in L∞, by bumps in L2 and L1.
#[derive(Debug)]
enum Moves {
    Corners { low: Tensor, high: Tensor },
    Bumps(Bumps),
}

impl SquareSearch {
    pub fn new(square: &Square, setting: &Setting) -> Self {
        let images = || rows::images(setting);
        Self {
            square: square.clone(),
            setting: *setting,
            entries: vec![None; setting.slots],
            demands: vec![Demand::Nothing; setting.slots],
            queries: vec![0; setting.slots],
            point: images(),
            best: images(),
            best_loss: rows::numbers(setting),
            moves: match setting.norm {
                Norm::Linf => Moves::Corners { low: images(), high: images() },
                Norm::L2 | Norm::L1 => Moves::Bumps(Bumps::new(setting)),
            },
        }
    }

    /// L∞: every column of every channel at one end of its interval.
    fn stripes(&self, streams: &mut [Stream], low: &Tensor, high: &Tensor) -> Tensor {
        let [channels, _, width] = self.setting.shape;
        let signs: Vec<f32> = streams
            .iter_mut()
            .flat_map(|stream| (0..channels * width).map(|_| stream.sign() as f32).collect::<Vec<_>>())
            .collect();
        let signs = Tensor::from_slice(&signs).to_device(self.setting.device).view([-1, channels, 1, width]);
        high.where_self(&signs.gt(0.0), low)
    }

    /// A window for each slot, from its own stream.
    fn windows(&mut self) -> Vec<Window> {
        let [_, height, width] = self.setting.shape;
        let Self { square, entries, queries, moves, .. } = self;
        let draw = |(slot, entry): (usize, &mut Option<(Entry, Stream)>)| {
            let Some((_, stream)) = entry else { return Window::default() };
            let side = (share(square.p, queries[slot]) * (height * width) as f64).sqrt().round() as i64;
            let most = height.min(width);
            let side = match moves {
                Moves::Corners { .. } => side.clamp(1, most),
                Moves::Bumps(_) => square_window::odd_side(side, most),
            };
            Window::draw(stream, side, height, width)
        };
        entries.iter_mut().enumerate().map(draw).collect()
    }

    /// A sign for each channel of each slot; float32 [S, C, 1, 1].
    fn signs(&mut self) -> Tensor {
        let [channels, ..] = self.setting.shape;
        let mut signs = Vec::with_capacity(self.setting.slots * channels as usize);
        for entry in &mut self.entries {
            signs.extend((0..channels).map(|_| entry.as_mut().map_or(0.0, |(_, stream)| stream.sign() as f32)));
        }
        Tensor::from_slice(&signs).to_device(self.setting.device).view([-1, channels, 1, 1])
    }

    /// The best points, changed in one window each.
    fn moved(&mut self) -> Tensor {
        let windows = self.windows();
        let signs = self.signs();
        match &mut self.moves {
            Moves::Corners { low, high } => {
                let window = square_window::mask(&windows, &self.setting);
                high.where_self(&signs.gt(0.0), low).where_self(&window, &self.best)
            }
            Moves::Bumps(bumps) => {
                let mut second = Vec::with_capacity(windows.len());
                let mut turned = Vec::with_capacity(windows.len());
                let [_, height, width] = self.setting.shape;
                for (window, entry) in windows.iter().zip(&mut self.entries) {
                    let (place, turn) = match entry {
                        Some((_, stream)) => (Window::draw(stream, window.side, height, width), stream.sign() > 0.0),
                        None => (Window::default(), false),
                    };
                    second.push(place);
                    turned.push(turn);
                }
                bumps.moved(&self.best, &windows, &turned, &second, &signs)
            }
        }
    }
}

impl Search for SquareSearch {
    fn load(&mut self, entries: &[Entry], clean: &Tensor) {
        let slots = rows::slots(entries, &self.setting);
        let epsilon = rows::radii(entries, &self.setting);
        let mut streams: Vec<Stream> = entries.iter().map(|entry| entry.draws.stream(entry.run, 0)).collect();
        let points = if self.setting.norm == Norm::Linf {
            let (new_low, new_high) = linf_bounds(clean, &epsilon);
            let points = self.stripes(&mut streams, &new_low, &new_high);
            if let Moves::Corners { low, high } = &mut self.moves {
                let _ = low.index_copy_(0, &slots, &new_low);
                let _ = high.index_copy_(0, &slots, &new_high);
            }
            points
        } else if let Moves::Bumps(bumps) = &mut self.moves {
            bumps.start(&slots, clean, &epsilon, &mut streams)
        } else {
            clean.copy()
        };
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
        for queries in &mut self.queries {
            *queries += 1;
        }
        self.point = self.moved();
        (0..self.setting.slots)
            .map(|slot| {
                let Some((entry, _)) = &self.entries[slot] else { return Status::Searching };
                let next_run = (entry.run + 1 < self.square.restarts).then_some(entry.run + 1);
                if answer.seen[slot] && !self.setting.stochastic {
                    Status::Finished { seen: Seen::Success, next_run }
                } else if self.queries[slot] >= self.square.queries {
                    Status::Finished { seen: Seen::Failure, next_run }
                } else {
                    Status::Searching
                }
            })
            .collect()
    }

    fn candidates(&self, slots: &[usize]) -> Tensor {
        self.best.index_select(0, &index(slots.iter().copied(), &self.best))
    }
}

#[cfg(test)]
mod tests {
    use super::share;

    #[test]
    fn windows_shrink_on_the_published_schedule() {
        let halvings = |query| (0.8 / share(0.8, query)).log2().round() as u32;
        let at = [1, 10, 11, 50, 51, 201, 501, 1001, 2001, 4000, 4001, 6001, 8001, 100_000];
        assert_eq!(at.map(halvings), [0, 0, 1, 1, 2, 3, 4, 5, 6, 6, 7, 8, 9, 9]);
    }
}
