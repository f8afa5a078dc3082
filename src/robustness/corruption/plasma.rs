//! The plasma map of fog: diamond-square on a torus.

use super::random::Random;
use super::simd::vectorised;

/// A square map of `size` (a power of two, at least 2) in [0,1], both ends reached. `decay` divides the amplitude at every halving.
pub fn plasma(size: usize, decay: f64, random: &mut impl Random) -> Vec<f64> {
    assert!(size.is_power_of_two() && size >= 2, "a plasma map has a power of two as its side");
    let mut map = vec![0.0; size * size];
    let mut noise = vec![0.0; (size / 2) * (size / 2)];
    let mut amplitude = 100.0;
    let mut step = size;
    while step >= 2 {
        let half = step / 2;
        let cells = size / step;
        let last = (cells - 1) * step;
        let mut wibble = |noise: &mut [f64]| {
            random.uniforms(-amplitude, amplitude, noise);
            noise.iter_mut().for_each(|u| *u *= amplitude);
        };
        let noise = &mut noise[..cells * cells];
        // Line i and the line that wraps round after or before it.
        let next = |i: usize| if i == last { 0 } else { i + step };

        wibble(noise);
        for (y, noise) in noise.chunks(cells).enumerate() {
            let (top, bottom) = (y * step * size, next(y * step) * size);
            let centre = (y * step + half) * size + half;
            let mut left = map[top] + map[bottom];
            for (x, noise) in noise.iter().enumerate() {
                let right = next(x * step);
                let right = map[top + right] + map[bottom + right];
                map[centre + x * step] = (left + right) / 4.0 + noise;
                left = right;
            }
        }

        wibble(noise);
        for (y, noise) in noise.chunks(cells).enumerate() {
            let corners = y * step * size;
            let below = (y * step + half) * size + half;
            let above = (if y == 0 { last + half } else { y * step - half }) * size + half;
            for (x, noise) in noise.iter().enumerate() {
                let x = x * step;
                let centres = map[below + x] + map[above + x];
                let sides = map[corners + x] + map[corners + next(x)];
                map[corners + x + half] = (centres + sides) / 4.0 + noise;
            }
        }

        wibble(noise);
        for (y, noise) in noise.chunks(cells).enumerate() {
            let (top, bottom) = (y * step * size, next(y * step) * size);
            let middle = (y * step + half) * size;
            let mut before = map[middle + last + half];
            for (x, noise) in noise.iter().enumerate() {
                let x = x * step;
                let after = map[middle + x + half];
                map[middle + x] = ((after + before) + (map[top + x] + map[bottom + x])) / 4.0 + noise;
                before = after;
            }
        }

        step = half;
        amplitude /= decay;
    }
    normalise(&mut map);
    map
}

const LANES: usize = 16;

vectorised! {
    /// (v − min)/(max − min), the difference rounded before the division.
    fn normalise(map: &mut [f64]) {
        let (mut low, mut high) = ([f64::INFINITY; LANES], [f64::NEG_INFINITY; LANES]);
        let (whole, rest) = map.as_chunks::<LANES>();
        for part in whole {
            for i in 0..LANES {
                low[i] = if part[i] < low[i] { part[i] } else { low[i] };
                high[i] = if part[i] > high[i] { part[i] } else { high[i] };
            }
        }
        for &v in rest {
            low[0] = low[0].min(v);
            high[0] = high[0].max(v);
        }
        let low = low.into_iter().fold(f64::INFINITY, f64::min);
        let span = high.into_iter().fold(f64::NEG_INFINITY, f64::max) - low;
        for v in map {
            *v = (*v - low) / span;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::robustness::corruption::random::Keyed;

    #[test]
    fn a_map_spans_the_unit_interval_and_wraps_round() {
        for size in [2, 32, 128] {
            let map = plasma(size, 2.0, &mut Keyed::new(3, 0, size as u64));
            assert_eq!(map.iter().copied().fold(1.0, f64::min), 0.0);
            assert_eq!(map.iter().copied().fold(0.0, f64::max), 1.0);
            if size == 128 {
                let steps = |shift: usize| {
                    (0..size).map(|x| (map[x] - map[(size - shift) % size * size + x]).abs()).sum::<f64>()
                };
                assert!(steps(1) < 0.3 * steps(64), "neighbours across the edge are alike");
            }
        }
    }
}
