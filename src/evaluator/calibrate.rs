//! Calibration: which batch, memory format and number of threads this model runs fastest with, found by short trials.
//!
//! What is chosen becomes the numeric profile, which fixes it; the fastest passes at it are the floor that an evaluation's
//! speed is held against.

use std::time::{Duration, Instant};

use tch::{Kind, Tensor};

use crate::protocol::{Device, Floor, MemoryFormat, NumericProfile};
use crate::robustness::engine::pull_back;
use crate::robustness::model::{self, Classifier, ModelError, TorchScript};
use crate::wire::BatchWish;

/// No trial begins later than this.
const BUDGET: Duration = Duration::from_secs(3);
/// A trial's launches are repeated for this long, and at least twice: the fastest is the least disturbed.
const TRIAL: Duration = Duration::from_millis(80);
/// Formats and threads are tried at a batch whose launch takes no longer.
const SHORT_LAUNCH: Duration = Duration::from_millis(300);
/// Channels last must be this much faster than channels first.
const FASTER_FORMAT: f64 = 0.95;
/// More threads and larger batches must be this much faster: a batch runs full only as long as enough images wait.
const WORTH_IT: f64 = 0.96;

/// With fewer rows, libtorch's matrix products have been seen to give odd and even rows other last bits; a row must not depend on its place.
const LEAST: u32 = 16;

/// Completes `profile`, whose batch is a first guess. Trials that fail are choices that are not taken; `None` where not even the plain choice
/// can be timed, which the model's probe will explain.
pub fn calibrate(
    model: &mut TorchScript,
    profile: &NumericProfile,
    wish: BatchWish,
    choose_threads: bool,
) -> Result<Option<(NumericProfile, Floor)>, ModelError> {
    let trials = Trials { model, begin: Instant::now() };
    let mut chosen = profile.clone();
    let Some(first) = trials.floor(profile.threads, chosen.batch.min(4)) else { return Ok(None) };
    let affordable = SHORT_LAUNCH.as_secs_f64() / first.gradient_seconds.max(1e-9);
    let short = 1 << (affordable as u32).clamp(1, chosen.batch).ilog2();

    let plain = trials.floor(chosen.threads, short);
    trials.model.lay_out(model::MemoryFormat::ChannelsLast)?;
    let last = trials.floor(chosen.threads, short);
    if plain.zip(last).is_some_and(|(plain, last)| last.gradient_seconds < FASTER_FORMAT * plain.gradient_seconds) {
        chosen.memory_format = MemoryFormat::ChannelsLast;
    } else {
        trials.model.lay_out(model::MemoryFormat::ChannelsFirst)?;
    }

    if choose_threads {
        let counts = std::iter::successors(Some(1), |n| Some(2 * n)).take_while(|n| *n < profile.threads);
        let timed =
            counts.chain([profile.threads]).filter_map(|threads| Some((threads, trials.floor(threads, short)?)));
        chosen.threads = fastest(&timed.collect::<Vec<_>>()).unwrap_or(chosen.threads);
    }
    let timed: Vec<(u32, Floor)> = batches(profile, wish)
        .into_iter()
        .filter_map(|batch| Some((batch, trials.floor(chosen.threads, batch)?)))
        .collect();
    tch::set_num_threads(chosen.threads as i32);
    chosen.batch = fastest(&timed).unwrap_or(chosen.batch);
    let floor = timed.iter().find(|(batch, _)| *batch == chosen.batch).map(|(_, floor)| *floor);
    Ok(floor.or_else(|| trials.floor(chosen.threads, chosen.batch)).map(|floor| (chosen, floor)))
}

/// The guess first, should time run out; a GPU of much memory may take far more.
fn batches(profile: &NumericProfile, wish: BatchWish) -> Vec<u32> {
    let guess = profile.batch;
    let (shifts, most): (&[i32], u32) = match profile.platform.device {
        Device::Cpu => (&[0, -1, -2], 256),
        Device::Cuda => (&[0, 1, -1, 2], 4096),
    };
    let most = match wish {
        BatchWish::Free => most.max(guess),
        BatchWish::AtMost(limit) | BatchWish::Exactly(limit) => limit.max(1),
    };
    let shifted = |shift: &i32| if *shift < 0 { guess >> -shift } else { guess << shift };
    shifts.iter().map(shifted).filter(|batch| (LEAST.min(guess)..=most).contains(batch)).collect()
}

/// The smallest choice that no other beats by much.
fn fastest(timed: &[(u32, Floor)]) -> Option<u32> {
    // Attacks make both kinds of passes, cascades more of the first.
    let seconds = |floor: &Floor| floor.forward_seconds + floor.gradient_seconds;
    let best = timed.iter().map(|(_, floor)| seconds(floor)).fold(f64::INFINITY, f64::min);
    timed.iter().filter(|(_, floor)| WORTH_IT * seconds(floor) <= best).map(|(choice, _)| *choice).min()
}

struct Trials<'a> {
    model: &'a mut TorchScript,
    begin: Instant,
}

impl Trials<'_> {
    /// Seconds per image of both kinds of passes; `None` if they fail or the time is up.
    fn floor(&self, threads: u32, batch: u32) -> Option<Floor> {
        if self.begin.elapsed() > BUDGET {
            return None;
        }
        tch::set_num_threads(threads as i32);
        let [c, h, w] = self.model.spec().input.map(i64::from);
        let pixels = i64::from(batch) * c * h * w;
        // Images without structure but with every brightness.
        let images = Tensor::arange(pixels, (Kind::Double, self.model.device())) * 0.618_033_988_75;
        let images = images.frac().to_kind(Kind::Float).view([i64::from(batch), c, h, w]);
        let forward_seconds = self.repeated(|| {
            let _guard = tch::no_grad_guard();
            Ok(self.model.logits(&images)?.sum(Kind::Double).double_value(&[]))
        })?;
        let gradient_seconds = self.repeated(|| {
            let images = images.detach().set_requires_grad(true);
            let logits = self.model.logits(&images)?;
            let gradient = pull_back(&logits, &logits.ones_like(), &images)?;
            Ok(gradient.sum(Kind::Double).double_value(&[]))
        })?;
        let each = 1.0 / f64::from(batch);
        Some(Floor { forward_seconds: forward_seconds * each, gradient_seconds: gradient_seconds * each })
    }

    /// Seconds of the fastest launch after one to warm up, which reads a number back, so that a GPU has finished; a slow
    /// model's only one, when time has run out.
    fn repeated(&self, launch: impl Fn() -> Result<f64, ModelError>) -> Option<f64> {
        let timed = || {
            let start = Instant::now();
            std::hint::black_box(launch().ok()?);
            Some(start.elapsed())
        };
        let mut least = timed()?;
        let (trial, mut count) = (Instant::now(), 0);
        while (count < 2 || trial.elapsed() < TRIAL) && self.begin.elapsed() < BUDGET {
            least = least.min(timed()?);
            count += 1;
        }
        Some(least.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timed(seconds: &[(u32, f64)]) -> Vec<(u32, Floor)> {
        let floor = |seconds| Floor { forward_seconds: seconds / 3.0, gradient_seconds: seconds };
        seconds.iter().map(|(choice, seconds)| (*choice, floor(*seconds))).collect()
    }

    #[test]
    fn a_larger_batch_must_be_worth_it() {
        assert_eq!(fastest(&timed(&[(128, 1.0), (64, 1.02), (256, 0.99), (32, 1.3)])), Some(64));
        assert_eq!(fastest(&timed(&[(128, 1.0), (64, 1.2), (256, 0.8)])), Some(256));
        assert_eq!(fastest(&[]), None);
    }
}
