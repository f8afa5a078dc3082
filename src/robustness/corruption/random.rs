//! The random numbers of a corruption, behind one trait: keyed and counter-based by default, NumPy's on request.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::poisson::PoissonTable;
use super::simd::vectorised;

/// A source of random numbers. Fields come row by row; how many raw draws a call takes is the source's affair.
pub trait Random {
    /// Fills `out` with U[low, high).
    fn uniforms(&mut self, low: f64, high: f64, out: &mut [f64]);

    /// Fills `out` with the standard normal.
    fn normals(&mut self, out: &mut [f64]);

    /// Fills `out` with Poisson counts of mean `rate`·v/255, v being the byte at the same place of `values`.
    fn poissons(&mut self, rate: f64, values: &[u8], out: &mut [u32]);

    /// Fills `out` with true, each with probability `p`.
    fn coins(&mut self, p: f64, out: &mut [bool]);

    /// Fills `out` uniformly from low..high, which holds at least one integer.
    fn integers(&mut self, low: i32, high: i32, out: &mut [i32]);

    /// One draw from U[low, high).
    fn uniform(&mut self, low: f64, high: f64) -> f64 {
        let mut one = [0.0];
        self.uniforms(low, high, &mut one);
        one[0]
    }

    /// One integer from low..high.
    fn integer(&mut self, low: i32, high: i32) -> i32 {
        let mut one = [0];
        self.integers(low, high, &mut one);
        one[0]
    }
}

/// ChaCha8 under a key of its own for every (seed, condition, image): no draw depends on any other image or on order.
pub struct Keyed {
    stream: ChaCha8Rng,
}

impl Keyed {
    /// The stream of one image in one condition; `condition` is the condition's random key.
    pub fn new(seed: u64, condition: u64, image: u64) -> Self {
        let mut key = *b"........................corrupt.";
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8..16].copy_from_slice(&condition.to_le_bytes());
        key[16..24].copy_from_slice(&image.to_le_bytes());
        Self::from_key(key)
    }

    /// The stream of a key that the caller derived.
    pub fn from_key(key: [u8; 32]) -> Self {
        Self { stream: ChaCha8Rng::from_seed(key) }
    }

    /// Hands `out` to `fill` in chunks, each with its raw words: `words(n)` of them for n places.
    fn chunks<T>(&mut self, out: &mut [T], words: fn(usize) -> usize, mut fill: impl FnMut(&[u32], &mut [T])) {
        let mut bytes = [0u8; 4 * CHUNK];
        let mut raw = [0u32; CHUNK];
        for part in out.chunks_mut(CHUNK) {
            let n = words(part.len());
            self.stream.fill_bytes(&mut bytes[..4 * n]);
            for (word, four) in raw.iter_mut().zip(bytes[..4 * n].as_chunks().0) {
                *word = u32::from_le_bytes(*four);
            }
            fill(&raw[..n], part);
        }
    }
}

/// Places filled at a time: raw words and results stay in the first-level cache.
const CHUNK: usize = 1024;

impl Random for Keyed {
    fn uniforms(&mut self, low: f64, high: f64, out: &mut [f64]) {
        self.chunks(out, |n| n, |raw, out| uniforms_of(low, high - low, raw, out));
    }

    fn normals(&mut self, out: &mut [f64]) {
        self.chunks(out, |n| n.next_multiple_of(2), normals_of);
    }

    fn poissons(&mut self, rate: f64, values: &[u8], out: &mut [u32]) {
        let table = PoissonTable::shared(rate);
        let mut values = values.chunks(CHUNK);
        self.chunks(
            out,
            |n| n,
            |raw, out| {
                let values = values.next().expect("as many values as places");
                for ((count, &word), &value) in out.iter_mut().zip(raw).zip(values) {
                    *count = table.count(value, word);
                }
            },
        );
    }

    fn coins(&mut self, p: f64, out: &mut [bool]) {
        if p == 0.5 {
            self.chunks(out, |n| n.div_ceil(32), bits_of);
        } else {
            let threshold = (p * 4294967296.0).round() as u64;
            self.chunks(out, |n| n, |raw, out| below(threshold, raw, out));
        }
    }

    fn integers(&mut self, low: i32, high: i32, out: &mut [i32]) {
        let range = (high - low) as u32;
        self.chunks(out, |n| n, |raw, out| integers_of(low, range, raw, out));
    }
}

vectorised! {
    /// 32 bits each, at the middle of their cell.
    fn uniforms_of(low: f64, width: f64, raw: &[u32], out: &mut [f64]) {
        for (u, &word) in out.iter_mut().zip(raw) {
            *u = low + width * ((f64::from(word) + 0.5) * (1.0 / 4294967296.0));
        }
    }

    /// Box–Muller on pairs of words, 31 bits for the radius: |N| ≤ 6.66. Single precision, its own ln, sin and cos, so that
    /// the numbers are the same on every machine.
    fn normals_of(raw: &[u32], out: &mut [f64]) {
        let half = raw.len() / 2;
        let (radii, angles) = raw.split_at(half);
        let (cosines, sines) = out.split_at_mut(half);
        // An odd chunk has no place for the last sine.
        for (i, (&r, &a)) in radii.iter().zip(angles).enumerate() {
            let (c, s) = normal_pair(r, a);
            cosines[i] = f64::from(c);
            if let Some(place) = sines.get_mut(i) {
                *place = f64::from(s);
            }
        }
    }

    fn bits_of(raw: &[u32], out: &mut [bool]) {
        for (coins, &word) in out.chunks_mut(32).zip(raw) {
            for (bit, coin) in coins.iter_mut().enumerate() {
                *coin = (word >> bit) & 1 == 1;
            }
        }
    }

    fn below(threshold: u64, raw: &[u32], out: &mut [bool]) {
        for (coin, &word) in out.iter_mut().zip(raw) {
            *coin = u64::from(word) < threshold;
        }
    }

    /// Multiply-shift: no integer is likelier than another by more than 2⁻³² absolute.
    fn integers_of(low: i32, range: u32, raw: &[u32], out: &mut [i32]) {
        for (n, &word) in out.iter_mut().zip(raw) {
            *n = low + ((u64::from(word) * u64::from(range)) >> 32) as i32;
        }
    }
}

/// Two independent standard normals from two words.
#[inline(always)]
fn normal_pair(radius: u32, angle: u32) -> (f32, f32) {
    let u = ((radius >> 1) as i32 as f32 + 0.5) * (1.0 / 2147483648.0);
    let r = (-2.0 * ln(u)).max(0.0).sqrt();
    let (c, s) = cos_sin_of_turn(angle);
    (r * c, r * s)
}

/// Natural logarithm of a positive normal number, to 2 ulp: exponent apart, then the minimax polynomial of Cephes' `logf`.
#[inline(always)]
fn ln(x: f32) -> f32 {
    let bits = x.to_bits();
    // Mantissa in [√½, √2).
    let shifted = bits.wrapping_sub(0x3f35_04f3);
    let exponent = ((shifted as i32) >> 23) as f32;
    let m = f32::from_bits((shifted & 0x007f_ffff).wrapping_add(0x3f35_04f3)) - 1.0;
    let z = m * m;
    let mut p = 7.037_683_6e-2f32;
    for c in [
        -1.151_461e-1,
        1.167_699_9e-1,
        -1.242_014_1e-1,
        1.424_932_3e-1,
        -1.666_805_8e-1,
        2.000_071_5e-1,
        -2.499_999_4e-1,
        3.333_333e-1,
    ] {
        p = p * m + c;
    }
    m + (m * z * p - 0.5 * z) + exponent * std::f32::consts::LN_2
}

/// cos and sin of 2π·angle/2³²: the nearest quarter turn apart, then Taylor polynomials on ±π/4 (error below 3e-7).
#[inline(always)]
fn cos_sin_of_turn(angle: u32) -> (f32, f32) {
    let quarter = angle.wrapping_add(0x2000_0000) >> 30;
    let rest = angle.wrapping_sub(quarter << 30) as i32 as f32;
    let t = rest * (std::f32::consts::TAU / 4294967296.0);
    let z = t * t;
    let s = t + t * z * (-1.0 / 6.0 + z * (1.0 / 120.0 + z * (-1.0 / 5040.0)));
    let c = 1.0 - 0.5 * z + z * z * (1.0 / 24.0 + z * (-1.0 / 720.0 + z * (1.0 / 40320.0)));
    let (x, y) = if quarter & 1 == 0 { (c, s) } else { (s, c) };
    let negative = |flag: u32, v: f32| f32::from_bits(v.to_bits() ^ (flag << 31));
    (negative(((quarter + 1) >> 1) & 1, x), negative((quarter >> 1) & 1, y))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithm_and_circle_agree_with_the_standard_library() {
        for i in 0..200_000u32 {
            let word = i.wrapping_mul(2_654_435_761);
            let x = (f32::from_bits(0x3f80_0000 | (word >> 9)) - 1.0).max(1e-10);
            assert!((ln(x) - x.ln()).abs() <= 3e-7 * (1.0 + x.ln().abs()), "ln {x}");
            let (c, s) = cos_sin_of_turn(word);
            let t = f64::from(word) / 4294967296.0 * std::f64::consts::TAU;
            assert!((f64::from(c) - t.cos()).abs() < 5e-7 && (f64::from(s) - t.sin()).abs() < 5e-7, "turn {word}");
        }
    }

    #[test]
    fn streams_differ_by_seed_condition_and_image_and_repeat() {
        let draw = |s, c, i| {
            let mut out = [0.0; 5];
            Keyed::new(s, c, i).normals(&mut out);
            out
        };
        assert_eq!(draw(1, 2, 3), draw(1, 2, 3));
        for other in [draw(2, 2, 3), draw(1, 3, 3), draw(1, 2, 4), draw(2, 1, 3)] {
            assert_ne!(draw(1, 2, 3), other);
        }
    }

    #[test]
    fn normals_have_the_normal_law() {
        let mut draws = vec![0.0; 1 << 20];
        Keyed::new(5, 0, 0).normals(&mut draws);
        // Cells of equal probability by the quantiles of the normal (deciles), so the oracle is a table.
        let deciles = [-1.2815515655, -0.8416212336, -0.5244005127, -0.2533471031, 0.0];
        let mut counts = [0f64; 10];
        for &x in &draws {
            let cell = if x < 0.0 {
                deciles.iter().filter(|&&d| d <= x).count()
            } else {
                9 - deciles.iter().filter(|&&d| d < -x).count()
            };
            counts[cell] += 1.0;
        }
        let expected = draws.len() as f64 / 10.0;
        let chi2: f64 = counts.iter().map(|c| (c - expected).powi(2) / expected).sum();
        assert!(chi2 < 33.7, "χ² {chi2} of 9 degrees of freedom (p = 1e-4)");
        let fourth = draws.iter().map(|x| x.powi(4)).sum::<f64>() / draws.len() as f64;
        assert!((fourth - 3.0).abs() < 0.05, "fourth moment {fourth}");
        let lag = draws.windows(2).map(|w| w[0] * w[1]).sum::<f64>() / draws.len() as f64;
        let pair = draws[..512].iter().zip(&draws[512..1024]).map(|(a, b)| a * b).sum::<f64>() / 512.0;
        assert!(lag.abs() < 4.0 / 1024.0 && pair.abs() < 4.0 / 512f64.sqrt(), "correlation {lag} {pair}");
    }

    #[test]
    fn integers_and_coins_are_uniform() {
        let mut random = Keyed::new(9, 0, 0);
        let mut draws = vec![0; 600_000];
        random.integers(-3, 3, &mut draws);
        for n in -3..3 {
            let share = draws.iter().filter(|&&d| d == n).count() as f64;
            assert!((share - 100_000.0).abs() < 4.0 * (100_000f64 * 5.0 / 6.0).sqrt(), "{n}: {share}");
        }
        for p in [0.5, 0.03] {
            let mut coins = vec![false; 600_001];
            random.coins(p, &mut coins);
            let heads = coins.iter().filter(|&&c| c).count() as f64;
            assert!((heads - p * 600_001.0).abs() < 4.0 * (600_001.0 * p * (1.0 - p)).sqrt(), "{p}: {heads}");
        }
    }
}
