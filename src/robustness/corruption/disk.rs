//! Correlation of bytes with the antialiased disk of defocus blur.
//!
//! The kernel has few distinct weights, so the bytes under each weight are summed in integers first, whole runs of a row
//! through prefix sums; only one product per distinct weight is left.

use super::simd::{truncate, vectorised};

/// The disk of a radius, blurred by a 3×3 (radius ≤ 8) or 5×5 Gaussian, as single-precision weights.
#[derive(Debug, Clone)]
pub struct Disk {
    /// The kernel reaches from −reach to reach on both axes.
    pub reach: usize,
    /// (2·reach + 1)² weights, row by row.
    pub weights: Vec<f32>,
}

impl Disk {
    /// The blur mirrors at the edge of the small array itself, as the reference does: where the disk touches that edge
    /// the weights sum to more than 1.
    pub fn new(radius: f64, alias_sigma: f64) -> Self {
        let (reach, half) = if radius <= 8.0 { (8, 1) } else { (radius as isize, 2) };
        let side = (2 * reach + 1) as usize;
        let inside = |x: isize, y: isize| (x * x + y * y) as f64 <= radius * radius;
        let grid = || (-reach..=reach).flat_map(|y| (-reach..=reach).map(move |x| (x, y)));
        let count = grid().filter(|&(x, y)| inside(x, y)).count();
        let flat: Vec<f32> = grid().map(|(x, y)| if inside(x, y) { 1.0 / count as f32 } else { 0.0 }).collect();
        let kernel = blur_kernel(half, alias_sigma);
        let mirror = |i: isize| {
            let last = side as isize - 1;
            (if i < 0 {
                -i
            } else if i > last {
                2 * last - i
            } else {
                i
            }) as usize
        };
        let pass = |from: &[f32], index: &dyn Fn(usize, usize) -> usize| -> Vec<f32> {
            let mut to = vec![0f32; side * side];
            for line in 0..side {
                for i in 0..side {
                    let at = |k: isize| from[index(line, mirror(i as isize + k))];
                    let mut sum = at(0) * kernel[0];
                    for k in 1..=half {
                        sum += (at(-k) + at(k)) * kernel[k as usize];
                    }
                    to[index(line, i)] = sum;
                }
            }
            to
        };
        let rows = pass(&flat, &|line, i| line * side + i);
        let weights = pass(&rows, &|line, i| i * side + line);
        Self { reach: reach as usize, weights }
    }
}

/// OpenCV's single-precision Gaussian of 2·half + 1 taps, from the centre outwards.
fn blur_kernel(half: isize, sigma: f64) -> Vec<f32> {
    let raw: Vec<f64> = (0..=half).map(|i| (-0.5 / (sigma * sigma) * (i * i) as f64).exp()).collect();
    let sum = raw[0] + 2.0 * raw[1..].iter().sum::<f64>();
    raw.iter().map(|r| (r / sum) as f32).collect()
}

/// One run of equal weights in one kernel row, columns `from..to` relative to the leftmost.
#[derive(Debug, Clone, Copy)]
struct Run {
    row: usize,
    from: usize,
    to: usize,
}

/// The places of one weight, in batches whose byte sums fit 16 bits.
struct Level {
    weight: f64,
    batches: Vec<Vec<Run>>,
}

/// Weights closer than this (relative) are one level: single-precision rounding is all that tells them apart.
const SAME: f64 = 1e-6;

fn levels(disk: &Disk) -> Vec<Level> {
    let side = 2 * disk.reach + 1;
    let same = |a: f64, b: f64| (a - b).abs() <= SAME * a.max(b);
    let mut levels: Vec<(f64, f64, usize, Vec<Run>)> = Vec::new();
    for (row, weights) in disk.weights.chunks(side).enumerate() {
        let mut from = 0;
        for run in weights.chunk_by(|&a, &b| same(a.into(), b.into())) {
            let (first, to) = (f64::from(run[0]), from + run.len());
            // A weight below 1e-12 moves no sum of bytes by as much as rounding does.
            if first > 1e-12 {
                let at = levels.iter().position(|level| same(level.0, first)).unwrap_or_else(|| {
                    levels.push((first, 0.0, 0, Vec::new()));
                    levels.len() - 1
                });
                let (_, mass, places, runs) = &mut levels[at];
                *mass += run.iter().map(|&w| f64::from(w)).sum::<f64>();
                *places += run.len();
                runs.push(Run { row, from, to });
            }
            from = to;
        }
    }
    levels
        .into_iter()
        .map(|(_, mass, places, runs)| {
            let mut batches: Vec<Vec<Run>> = vec![Vec::new()];
            let mut room = 257;
            for run in runs {
                let size = run.to - run.from;
                if size > room {
                    batches.push(Vec::new());
                    room = 257;
                }
                room -= size;
                batches.last_mut().expect("never empty").push(run);
            }
            // The mean keeps the kernel's sum, on which flat images hang.
            Level { weight: mass / places as f64, batches }
        })
        .collect()
}

/// trunc(Σ w·v), clamped, with the border mirrored about the edge pixel, in double precision.
pub fn correlate_bytes(image: &[u8], width: usize, channels: usize, disk: &Disk) -> Vec<u8> {
    let row = width * channels;
    let height = image.len() / row;
    let reach = disk.reach;
    let side = 2 * reach + 1;
    let levels = levels(disk);
    let padded = row + 2 * reach * channels;
    // Blocks may run over the end of a line.
    let stride = padded + channels + BLOCK;
    // Lines in a ring: bytes as 16-bit numbers, and their prefix sums modulo 2¹⁶ (a run's sum is below that).
    let mut bytes = vec![0u16; side * stride];
    let mut prefix = vec![0u16; side * stride];
    let fill = |line: isize, bytes: &mut [u16], prefix: &mut [u16]| {
        let slot = (line + reach as isize) as usize % side;
        let from = &image[mirror(line, height) * row..][..row];
        let to = &mut bytes[slot * stride..][..padded];
        for (to, &v) in to[reach * channels..].iter_mut().zip(from) {
            *to = u16::from(v);
        }
        for i in 0..reach {
            for (column, place) in [(i as isize - reach as isize, i), ((width + i) as isize, reach + width + i)] {
                let source = (reach + mirror(column, width)) * channels;
                for c in 0..channels {
                    to[place * channels + c] = to[source + c];
                }
            }
        }
        let sums = &mut prefix[slot * stride..][..padded + channels];
        for j in 0..padded {
            sums[j + channels] = sums[j].wrapping_add(to[j]);
        }
    };
    for line in -(reach as isize)..reach as isize {
        fill(line, &mut bytes, &mut prefix);
    }
    let mut out = vec![0; image.len()];
    let mut sums = vec![0.0; row.next_multiple_of(BLOCK)];
    for (y, out) in out.chunks_mut(row).enumerate() {
        fill((y + reach) as isize, &mut bytes, &mut prefix);
        let mut batches = Vec::with_capacity(levels.len());
        for level in &levels {
            for runs in &level.batches {
                let (mut single, mut ends) = (Vec::with_capacity(runs.len()), Vec::with_capacity(runs.len()));
                for run in runs {
                    let line = (y + run.row) % side * stride;
                    if run.to - run.from == 1 {
                        single.push(&bytes[line + run.from * channels..][..sums.len()]);
                    } else {
                        let at = |column: usize| &prefix[line + column * channels..][..sums.len()];
                        ends.push((at(run.from), at(run.to)));
                    }
                }
                batches.push(Batch { single, ends, weight: level.weight });
            }
        }
        weigh(&batches, &mut sums);
        finish(&sums, out);
    }
    out
}

/// The lines that one weight applies to: single places, and the prefix sums at both ends of runs.
struct Batch<'a> {
    single: Vec<&'a [u16]>,
    ends: Vec<(&'a [u16], &'a [u16])>,
    weight: f64,
}

/// The border `dcb|abcd|cba`.
fn mirror(i: isize, n: usize) -> usize {
    if n == 1 {
        return 0;
    }
    let period = 2 * (n as isize - 1);
    let i = i.rem_euclid(period);
    i.min(period - i) as usize
}

const BLOCK: usize = 96;

vectorised! {
    /// Σ weight · (Σ single + Σ (end − start)), the bracket in 16-bit integers.
    fn weigh(batches: &[Batch], sums: &mut [f64]) {
        for (block, sums) in sums.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
            let start = block * BLOCK;
            let mut total = [0.0; BLOCK];
            for batch in batches {
                let mut sum = [0u16; BLOCK];
                for line in &batch.single {
                    let line = &line[start..start + BLOCK];
                    for j in 0..BLOCK {
                        sum[j] = sum[j].wrapping_add(line[j]);
                    }
                }
                for (from, to) in &batch.ends {
                    let (from, to) = (&from[start..start + BLOCK], &to[start..start + BLOCK]);
                    for j in 0..BLOCK {
                        sum[j] = sum[j].wrapping_add(to[j].wrapping_sub(from[j]));
                    }
                }
                for j in 0..BLOCK {
                    total[j] += f64::from(sum[j]) * batch.weight;
                }
            }
            *sums = total;
        }
    }

    fn finish(sums: &[f64], out: &mut [u8]) {
        for (byte, &sum) in out.iter_mut().zip(sums) {
            *byte = truncate(sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_sums_are_the_measured_ones() {
        for (radius, sigma, expected) in [
            (3.0, 0.1, 1.0),
            (4.0, 0.5, 1.0),
            (6.0, 0.5, 1.0),
            (8.0, 0.5, 1.01298),
            (10.0, 0.5, 1.01079),
            (12.0, 0.5, 1.00775),
        ] {
            let sum: f64 = Disk::new(radius, sigma).weights.iter().map(|&w| f64::from(w)).sum();
            assert!((sum - expected).abs() < 1e-5, "radius {radius}: {sum}");
        }
    }

    #[test]
    fn runs_and_levels_equal_the_direct_sum() {
        let (h, w, c) = (13, 19, 3);
        let image: Vec<u8> = (0..h * w * c).map(|i| ((i * 7919) >> 3) as u8).collect();
        for (radius, sigma) in [(1.5, 0.1), (6.0, 0.5), (12.0, 0.5)] {
            let disk = Disk::new(radius, sigma);
            let got = correlate_bytes(&image, w, c, &disk);
            let (reach, side) = (disk.reach as isize, 2 * disk.reach + 1);
            for (i, &byte) in got.iter().enumerate() {
                let (y, x, k) = ((i / c / w) as isize, (i / c % w) as isize, i % c);
                let mut sum = 0.0;
                for dy in -reach..=reach {
                    for dx in -reach..=reach {
                        let weight = disk.weights[(dy + reach) as usize * side + (dx + reach) as usize];
                        let v = image[(mirror(y + dy, h) * w + mirror(x + dx, w)) * c + k];
                        sum += f64::from(weight) * f64::from(v);
                    }
                }
                assert!((sum.min(255.0) - f64::from(byte) - 0.5).abs() < 0.5 + 1e-9, "{radius} at {i}: {sum} {byte}");
            }
        }
    }
}
