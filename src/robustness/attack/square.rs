//! Square attack (Andriushchenko et al. 2020): random search over square windows, forward passes only. Windows and signs
//! are drawn per image, so that an image's path is its own.

use tch::Tensor;

use super::queries::Queries;
use super::rows;
use super::square_bumps::Bumps;
use super::square_window::{self, Window};
use super::{Answer, Demand, Entry, Frozen, Search, Setting, Status};
use crate::protocol::{Norm, Schedule, Square};
use crate::robustness::rng::Stream;
use crate::robustness::threat::linf_bounds;

/// Share of the pixels in a window of query `query` of a search (1: the first window): that of the first, halved on the
/// published schedule. The authors' rescaled one takes the same times as shares of the search.
fn share(square: &Square, query: u32) -> f64 {
    const HALVINGS: [u64; 9] = [10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000];
    const PUBLISHED_QUERIES: u64 = 10_000;
    let time = match square.schedule {
        Schedule::Published => query.into(),
        Schedule::Rescaled => u64::from(query) * PUBLISHED_QUERIES / u64::from(square.queries),
    };
    square.p / f64::from(1u32 << HALVINGS.iter().filter(|until| time > **until).count())
}

/// Square trajectories. Each looks at its start and then at one changed window after another, and keeps what raises the
/// margin.
#[derive(Debug)]
pub struct SquareSearch {
    square: Square,
    setting: Setting,
    queries: Queries,
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
            queries: Queries::new(setting),
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
        let Self { square, queries: Queries { entries, count, .. }, moves, .. } = self;
        let draw = |(slot, entry): (usize, &mut Option<(Entry, Stream)>)| {
            let Some((_, stream)) = entry else { return Window::default() };
            let side = (share(square, count[slot]) * (height * width) as f64).sqrt().round() as i64;
            let most = height.min(width);
            let side = match moves {
                Moves::Corners { .. } => side.clamp(1, most),
                Moves::Bumps(_) => square_window::odd_side(side, most),
            };
            Window::draw(stream, side, height, width)
        };
        entries.iter_mut().enumerate().map(draw).collect()
    }

    /// A sign for each channel of each slot.
    fn signs(&mut self) -> Vec<f32> {
        let [channels, ..] = self.setting.shape;
        let mut signs = Vec::with_capacity(self.setting.slots * channels as usize);
        for entry in &mut self.queries.entries {
            signs.extend((0..channels).map(|_| entry.as_mut().map_or(0.0, |(_, stream)| stream.sign() as f32)));
        }
        signs
    }

    /// The best points, changed in one window each.
    fn moved(&mut self) -> Tensor {
        let windows = self.windows();
        let signs = self.signs();
        match &mut self.moves {
            Moves::Corners { low, high } => {
                square_window::repaint(&self.queries.best, &windows, &signs, [low, high], &self.setting)
            }
            Moves::Bumps(bumps) => {
                let mut second = Vec::with_capacity(windows.len());
                let mut turned = Vec::with_capacity(windows.len());
                let [_, height, width] = self.setting.shape;
                for (window, entry) in windows.iter().zip(&mut self.queries.entries) {
                    let (place, turn) = match entry {
                        Some((_, stream)) => (Window::draw(stream, window.side, height, width), stream.sign() > 0.0),
                        None => (Window::default(), false),
                    };
                    second.push(place);
                    turned.push(turn);
                }
                let signs = square_window::per_channel(&signs, &self.setting);
                bumps.moved(&self.queries.best, &windows, &turned, &second, &signs)
            }
        }
    }
}

impl Search for SquareSearch {
    fn load(&mut self, entries: &[Entry], clean: &Tensor) {
        let slots = rows::slots(entries, &self.setting);
        let epsilon = rows::radii(entries, &self.setting);
        let mut streams = Queries::streams(entries);
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
        self.queries.point = self.moved();
        self.queries.status(answer, self.square.queries, self.square.restarts)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_shrink_on_the_published_schedule_or_at_the_same_shares_of_a_shorter_search() {
        let halvings = |queries: u32, schedule: Schedule, query: u32| {
            let square = Square { queries, p: 0.8, schedule, restarts: 1, eot: 1 };
            (0.8 / share(&square, query)).log2().round() as u32
        };
        let at = [1, 10, 11, 50, 51, 201, 501, 1001, 2001, 4000, 4001, 6001, 8001, 100_000];
        assert_eq!(
            at.map(|query| halvings(500, Schedule::Published, query)),
            [0, 0, 1, 1, 2, 3, 4, 5, 6, 6, 7, 8, 9, 9]
        );
        let at = [1, 2, 3, 10, 11, 25, 26, 51, 101, 200, 201, 301, 401, 500];
        assert_eq!(
            at.map(|query| halvings(500, Schedule::Rescaled, query)),
            [1, 1, 2, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9, 9]
        );
    }
}
