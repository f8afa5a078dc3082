//! Corrupting images and counting the processor time it takes.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::protocol::{CorruptionCondition, Mode, Pictures};
use crate::robustness::corruption::{FrostTextures, Image, Keyed, Recipe};

/// Applies corruptions for one shard, from any number of threads.
pub struct Corrupting<'a> {
    /// Those that the supervisor handed over.
    textures: Option<&'a FrostTextures>,
    stand_in: FrostTextures,
    nanoseconds: AtomicU64,
}

impl<'a> Corrupting<'a> {
    pub fn new(textures: Option<&'a FrostTextures>) -> Self {
        Self { textures, stand_in: FrostTextures::procedural(), nanoseconds: AtomicU64::new(0) }
    }

    /// The corrupted image; a condition of the stand-in gets the stand-in, whatever else is at hand. Published images come
    /// corrupted.
    pub fn apply(&self, condition: &CorruptionCondition, image: &Image, random: &mut Keyed) -> Image {
        if condition.mode == Mode::Published {
            return image.clone();
        }
        let before = clock::thread();
        let handed = self.textures.filter(|_| condition.pictures != Some(Pictures::Procedural));
        let textures = handed.unwrap_or(&self.stand_in);
        let corrupted = Recipe::from(condition).apply(image, textures, random);
        self.nanoseconds.fetch_add(((clock::thread() - before) * 1e9) as u64, Ordering::Relaxed);
        corrupted
    }

    /// Processor seconds so far.
    pub fn seconds(&self) -> f64 {
        self.nanoseconds.load(Ordering::Relaxed) as f64 * 1e-9
    }
}

/// Processor time, which other work on the machine does not stretch.
pub mod clock {
    use nix::time::{ClockId, clock_gettime};

    /// Seconds of all threads of this process.
    pub fn process() -> f64 {
        seconds(ClockId::CLOCK_PROCESS_CPUTIME_ID)
    }

    /// Seconds of this thread.
    pub fn thread() -> f64 {
        seconds(ClockId::CLOCK_THREAD_CPUTIME_ID)
    }

    fn seconds(clock: ClockId) -> f64 {
        let time = clock_gettime(clock).expect("Linux has this clock");
        time.tv_sec() as f64 + time.tv_nsec() as f64 * 1e-9
    }
}
