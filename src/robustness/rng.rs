//! Random numbers that depend on what they are for and on nothing else.
//!
//! Every stream is keyed by (seed, condition, image, draw), so a result does not depend on order, sharding or
//! neighbours. The conversions are our own and are part of the format: a change here changes published results.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use sha2::{Digest, Sha256};

/// A stream of random numbers.
#[derive(Debug, Clone)]
pub struct Stream(ChaCha8Rng);

impl Stream {
    /// ChaCha8 keyed by SHA-256 of a label and the four numbers, little endian.
    pub fn new(seed: u64, condition: u64, image: u32, draw: u32) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"gauntlet stream 1");
        hash.update(seed.to_le_bytes());
        hash.update(condition.to_le_bytes());
        hash.update(image.to_le_bytes());
        hash.update(draw.to_le_bytes());
        Self(ChaCha8Rng::from_seed(hash.finalize().into()))
    }

    pub fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// How far the stream has been read: the lower and the upper half of a number.
    pub fn position(&self) -> [u64; 2] {
        let position = self.0.get_word_pos();
        [position as u64, (position >> 64) as u64]
    }

    /// Goes on reading at a [`position`](Self::position).
    pub fn seek(&mut self, [low, high]: [u64; 2]) {
        self.0.set_word_pos(u128::from(low) | u128::from(high) << 64);
    }

    /// Uniform on [0, 1): the upper 53 bits.
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 * 2f64.powi(-53)
    }

    /// Exponential with mean 1, by inversion.
    pub fn exponential(&mut self) -> f64 {
        // 1 − u is in (0, 1], so the logarithm is finite.
        -(1.0 - self.uniform()).ln()
    }

    /// Two independent standard normals (Box and Muller 1958).
    pub fn normals(&mut self) -> [f64; 2] {
        let radius = (2.0 * self.exponential()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * self.uniform()).sin_cos();
        [radius * cos, radius * sin]
    }

    /// +1 or −1, each with probability one half.
    pub fn sign(&mut self) -> f64 {
        if self.bits() >> 63 == 0 { 1.0 } else { -1.0 }
    }

    /// Uniform on 0..n, `n` at least 1: the integer part of n·u.
    pub fn below(&mut self, n: u64) -> u64 {
        ((self.bits() as u128 * n as u128) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// These numbers are part of the format; computed apart from this code with Python's hashlib and a ChaCha8 of ours.
    #[test]
    fn streams_never_change() {
        let mut stream = Stream::new(1, 2, 3, 4);
        assert_eq!([stream.bits(), stream.bits()], EXPECTED);
    }

    const EXPECTED: [u64; 2] = [4391452082626803185, 8525045933835236944];

    #[test]
    fn every_part_of_the_key_matters() {
        let first = |key: (u64, u64, u32, u32)| Stream::new(key.0, key.1, key.2, key.3).bits();
        let mut bits = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)].map(first);
        bits.sort_unstable();
        assert!(bits.windows(2).all(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn moments_are_those_of_the_named_distributions() {
        let mut stream = Stream::new(7, 0, 0, 0);
        let n = 100_000;
        let mut mean =
            |draw: &mut dyn FnMut(&mut Stream) -> f64| (0..n).map(|_| draw(&mut stream)).sum::<f64>() / n as f64;
        assert!((mean(&mut |s| s.uniform()) - 0.5).abs() < 0.005);
        assert!((mean(&mut |s| s.uniform().powi(2)) - 1.0 / 3.0).abs() < 0.005);
        assert!((mean(&mut |s| s.exponential()) - 1.0).abs() < 0.02);
        assert!((mean(&mut |s| s.exponential().powi(2)) - 2.0).abs() < 0.1);
        assert!(mean(&mut |s| s.normals()[0] * s.normals()[1]).abs() < 0.02);
        assert!((mean(&mut |s| s.normals()[1].powi(2)) - 1.0).abs() < 0.03);
        assert!((mean(&mut |s| s.normals()[0].powi(4)) - 3.0).abs() < 0.2);
        assert!(mean(&mut |s| s.sign()).abs() < 0.02);
        assert!((mean(&mut |s| s.below(5) as f64) - 2.0).abs() < 0.03);
    }
}
