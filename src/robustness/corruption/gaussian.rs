//! Gaussian filters by SciPy's rules: truncated kernel, axis 0 then axis 1, double-precision sums.

use super::scratch::Scratch;
use super::simd::{byte_of_unit, vectorised};

/// What lies beyond the edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Border {
    /// The edge pixel, repeated.
    Replicate,
    /// The image mirrored with the edge pixel doubled, as often as needed.
    Symmetric,
}

impl Border {
    /// The index inside 0..n that stands for `i`.
    pub fn fold(self, i: isize, n: usize) -> usize {
        let n = n as isize;
        (match self {
            Border::Replicate => i.clamp(0, n - 1),
            Border::Symmetric => {
                let i = i.rem_euclid(2 * n);
                i.min(2 * n - 1 - i)
            }
        }) as usize
    }
}

/// exp(−i²/2σ²)/Σ for i = 0..=r, r = int(truncate·σ + ½); one weight of 1 where σ = 0.
pub fn weights(sigma: f64, truncate: f64) -> Vec<f64> {
    let radius = (truncate * sigma + 0.5) as i64;
    if radius == 0 {
        return vec![1.0];
    }
    let scale = -0.5 / (sigma * sigma);
    let phi: Vec<f64> = (-radius..=radius).map(|i| (scale * (i * i) as f64).exp()).collect();
    let sum = pairwise_sum(&phi);
    phi[radius as usize..].iter().map(|p| p / sum).collect()
}

/// NumPy's order of summation: flat images hang on the last bit of the weights.
fn pairwise_sum(x: &[f64]) -> f64 {
    if x.len() < 8 {
        x.iter().sum()
    } else if x.len() <= 128 {
        let (eights, rest) = x.as_chunks::<8>();
        let mut r = eights[0];
        for eight in &eights[1..] {
            for (sum, v) in r.iter_mut().zip(eight) {
                *sum += v;
            }
        }
        let sum = ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]));
        rest.iter().fold(sum, |sum, v| sum + v)
    } else {
        let half = x.len() / 2;
        let (a, b) = x.split_at(half - half % 8);
        pairwise_sum(a) + pairwise_sum(b)
    }
}

/// Blurs bytes taken as v/255 in `channels` interleaved channels; trunc(255·clip(·)) of the result.
pub fn blur_bytes(image: &[u8], width: usize, channels: usize, sigma: f64) -> Vec<u8> {
    let mut out = vec![0; image.len()];
    let row = width * channels;
    blur_rows(
        Plan { height: image.len() / row, width, channels, weights: &weights(sigma, 4.0), border: Border::Replicate },
        |y, to| units(&image[y * row..][..row], to),
        |v| v,
        |y, from| to_bytes(from, &mut out[y * row..][..row]),
    );
    out
}

/// Blurs a plane of doubles in place.
pub fn blur_plane(plane: &mut [f64], width: usize, sigma: f64, truncate: f64, border: Border) {
    let height = plane.len() / width;
    let weights = weights(sigma, truncate);
    // A wide kernel costs more than the matrix that it folds into.
    if 5 * weights.len() > height.max(width) && border == Border::Symmetric {
        let down = Folded::new(&weights, height);
        let mut other = Scratch::<f64>::zeros(plane.len());
        multiply(&down, plane, width, &mut other);
        transpose(&other, width, plane);
        let across = if width == height { down } else { Folded::new(&weights, width) };
        multiply(&across, plane, height, &mut other);
        transpose(&other, height, plane);
        return;
    }
    // A row is loaded before any row that it reaches is stored.
    let plane = std::cell::RefCell::new(plane);
    blur_rows(
        Plan { height, width, channels: 1, weights: &weights, border },
        |y, to| to.copy_from_slice(&plane.borrow()[y * width..][..width]),
        |v| v,
        |y, from| plane.borrow_mut()[y * width..][..width].copy_from_slice(from),
    );
}

/// Blurs a plane of singles, replicate border, truncated at 4σ: double-precision sums, a single-precision plane between the axes.
pub fn blur_plane_f32(plane: &[f32], width: usize, sigma: f64) -> Vec<f32> {
    let mut out = vec![0.0; plane.len()];
    blur_rows(
        Plan {
            height: plane.len() / width,
            width,
            channels: 1,
            weights: &weights(sigma, 4.0),
            border: Border::Replicate,
        },
        |y, to| to.iter_mut().zip(&plane[y * width..]).for_each(|(to, &v)| *to = f64::from(v)),
        |v| f64::from(v as f32),
        |y, from| out[y * width..].iter_mut().zip(from).for_each(|(to, &v)| *to = v as f32),
    );
    out
}

struct Plan<'a> {
    height: usize,
    width: usize,
    channels: usize,
    /// From the centre outwards.
    weights: &'a [f64],
    border: Border,
}

/// Both axes, one output row at a time; only the rows under the kernel are kept as doubles.
fn blur_rows(
    plan: Plan,
    mut load: impl FnMut(usize, &mut [f64]),
    between: impl Fn(f64) -> f64,
    mut store: impl FnMut(usize, &[f64]),
) {
    let Plan { height, width, channels, weights, border } = plan;
    let radius = weights.len() - 1;
    let row = width * channels;
    let kept = (2 * radius + 1).min(height);
    let mut rows = vec![0.0; kept * row];
    let mut padded = vec![0.0; row + 2 * radius * channels];
    let mut out = vec![0.0; row];
    let mut loaded = 0;
    // Outermost taps first, as SciPy adds them.
    let outwards: Vec<f64> = weights[1..].iter().rev().copied().collect();
    for y in 0..height {
        while loaded < height && loaded <= y + radius {
            load(loaded, &mut rows[loaded % kept * row..][..row]);
            loaded += 1;
        }
        let at = |i: isize| &rows[border.fold(i, height) % kept * row..][..row];
        let y_ = y as isize;
        let columns: Vec<_> = (1..=radius as isize).rev().map(|k| (at(y_ - k), at(y_ + k))).collect();
        let margin = radius * channels;
        weigh(at(y_), &columns, weights[0], &outwards, &mut padded[margin..margin + row]);
        if radius > 0 {
            padded[margin..margin + row].iter_mut().for_each(|v| *v = between(*v));
        }
        for i in 1..=radius {
            let (left, right) = (border.fold(-(i as isize), width), border.fold((width + i - 1) as isize, width));
            for c in 0..channels {
                padded[margin - i * channels + c] = padded[margin + left * channels + c];
                padded[margin + row + (i - 1) * channels + c] = padded[margin + right * channels + c];
            }
        }
        let shifted = |by: usize| &padded[by..by + row];
        let across: Vec<_> =
            (1..=radius).rev().map(|k| (shifted(margin - k * channels), shifted(margin + k * channels))).collect();
        weigh(shifted(margin), &across, weights[0], &outwards, &mut out);
        store(y, &out);
    }
}

/// A filter on n places with symmetric borders as a matrix. It commutes with reversal, so it splits into two matrices of half the size:
/// one for the sums of mirrored places, one for their differences.
struct Folded {
    n: usize,
    even: Vec<f64>,
    odd: Vec<f64>,
}

impl Folded {
    fn new(weights: &[f64], n: usize) -> Self {
        let half = n.div_ceil(2);
        // A mirrored line repeats after 2n places.
        let mut periodic = vec![0.0; 2 * n];
        for (k, weight) in weights.iter().enumerate() {
            periodic[k % (2 * n)] += weight;
            if k > 0 {
                periodic[(2 * n - k % (2 * n)) % (2 * n)] += weight;
            }
        }
        // The weight of place j at place i: of j itself and of its mirror image beyond the edge.
        let weight = |i: usize, j: usize| periodic[(2 * n + j - i) % (2 * n)] + periodic[(4 * n - 1 - j - i) % (2 * n)];
        // Differences are kept in the order of the lower half, where there are as many.
        let below = n / 2;
        let (mut even, mut odd) = (vec![0.0; half * half], vec![0.0; below * below]);
        for i in 0..half {
            for j in 0..half {
                let (own, mirrored) = (weight(i, j), weight(i, n - 1 - j));
                // A middle place is its own mirror image, and counts once.
                even[i * half + j] = if 2 * j + 1 == n { own } else { own + mirrored };
                if i < below && j < below {
                    odd[(below - 1 - i) * below + below - 1 - j] = own - mirrored;
                }
            }
        }
        Self { n, even, odd }
    }
}

/// The matrix applied to every column of a plane of `matrix.n` rows, which is used up.
fn multiply(matrix: &Folded, plane: &mut [f64], width: usize, out: &mut [f64]) {
    let n = matrix.n;
    let half = n.div_ceil(2);
    // Half sums of mirrored rows above, half differences below; a middle row is its own sum.
    butterfly(plane, width, 0.5);
    let (sums, differences) = plane.split_at(half * width);
    let (even, odd) = out.split_at_mut(half * width);
    product(&matrix.even, sums, width, even);
    product(&matrix.odd, differences, width, odd);
    butterfly(out, width, 1.0);
}

/// Row i and its mirror row become scale·(sum) and scale·(difference); the middle row of an odd number stays.
fn butterfly(plane: &mut [f64], width: usize, scale: f64) {
    let n = plane.len() / width;
    let (top, bottom) = plane.split_at_mut(n.div_ceil(2) * width);
    for (a, b) in top.chunks_mut(width).zip(bottom.chunks_mut(width).rev()) {
        for (a, b) in a.iter_mut().zip(b) {
            (*a, *b) = ((*a + *b) * scale, (*a - *b) * scale);
        }
    }
}

fn transpose(plane: &[f64], width: usize, out: &mut [f64]) {
    const TILE: usize = 8;
    let height = plane.len() / width;
    for y0 in (0..height).step_by(TILE) {
        for x0 in (0..width).step_by(TILE) {
            for x in x0..(x0 + TILE).min(width) {
                for y in y0..(y0 + TILE).min(height) {
                    out[x * height + y] = plane[y * width + x];
                }
            }
        }
    }
}

const BLOCK: usize = 32;
/// Output rows and columns of a matrix product held in registers.
const TILE_ROWS: usize = 4;
const TILE_COLUMNS: usize = 16;

vectorised! {
    /// out = centre·w₀ + Σ (left + right)·w, pairs in the given order.
    fn weigh(centre: &[f64], pairs: &[(&[f64], &[f64])], w0: f64, weights: &[f64], out: &mut [f64]) {
        let n = out.len();
        let whole = n - n % BLOCK;
        for start in (0..whole).step_by(BLOCK) {
            let mut sum = [0.0; BLOCK];
            let c = &centre[start..start + BLOCK];
            for j in 0..BLOCK {
                sum[j] = c[j] * w0;
            }
            for ((left, right), w) in pairs.iter().zip(weights) {
                let (left, right) = (&left[start..start + BLOCK], &right[start..start + BLOCK]);
                for j in 0..BLOCK {
                    sum[j] += (left[j] + right[j]) * w;
                }
            }
            out[start..start + BLOCK].copy_from_slice(&sum);
        }
        for j in whole..n {
            let mut sum = centre[j] * w0;
            for ((left, right), w) in pairs.iter().zip(weights) {
                sum += (left[j] + right[j]) * w;
            }
            out[j] = sum;
        }
    }

    /// out = matrix · columns, the matrix square. Fused multiply-adds: the same on every machine, slow only where there are none.
    fn product(matrix: &[f64], columns: &[f64], width: usize, out: &mut [f64]) {
        let n = out.len() / width;
        for y0 in (0..n).step_by(TILE_ROWS) {
            let rows = TILE_ROWS.min(n - y0);
            for x0 in (0..width).step_by(TILE_COLUMNS) {
                let count = TILE_COLUMNS.min(width - x0);
                if rows == TILE_ROWS && count == TILE_COLUMNS {
                    let mut sums = [[0.0; TILE_COLUMNS]; TILE_ROWS];
                    for j in 0..n {
                        let line = &columns[j * width + x0..][..TILE_COLUMNS];
                        for (i, sums) in sums.iter_mut().enumerate() {
                            let weight = matrix[(y0 + i) * n + j];
                            for x in 0..TILE_COLUMNS {
                                sums[x] = line[x].mul_add(weight, sums[x]);
                            }
                        }
                    }
                    for (i, sums) in sums.iter().enumerate() {
                        out[(y0 + i) * width + x0..][..TILE_COLUMNS].copy_from_slice(sums);
                    }
                } else {
                    for y in y0..y0 + rows {
                        out[y * width + x0..][..count].fill(0.0);
                        for j in 0..n {
                            let weight = matrix[y * n + j];
                            let line = &columns[j * width + x0..][..count];
                            for (out, v) in out[y * width + x0..][..count].iter_mut().zip(line) {
                                *out = v.mul_add(weight, *out);
                            }
                        }
                    }
                }
            }
        }
    }

    /// v/255.
    fn units(bytes: &[u8], out: &mut [f64]) {
        for (u, &v) in out.iter_mut().zip(bytes) {
            *u = f64::from(v) / 255.0;
        }
    }

    fn to_bytes(from: &[f64], out: &mut [u8]) {
        for (byte, &v) in out.iter_mut().zip(from) {
            *byte = byte_of_unit(v);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_impulse_becomes_the_product_of_two_kernels() {
        let (h, w, sigma) = (21, 23, 1.3);
        let mut plane = vec![0.0; h * w];
        plane[10 * w + 11] = 1.0;
        let mut out = plane;
        blur_plane(&mut out, w, sigma, 4.0, Border::Replicate);
        let k = weights(sigma, 4.0);
        assert_eq!(k.len(), 6);
        for y in 0..h {
            for x in 0..w {
                let tap = |d: usize| k.get(d).copied().unwrap_or(0.0);
                let expected = tap(y.abs_diff(10)) * tap(x.abs_diff(11));
                assert!((out[y * w + x] - expected).abs() < 1e-16);
            }
        }
    }

    #[test]
    fn borders_match_a_direct_sum_even_where_the_kernel_is_larger_than_the_image() {
        for (h, w) in [(5, 7), (8, 6)] {
            let plane: Vec<f64> = (0..h * w).map(|i| ((i * 37) % 11) as f64).collect();
            for border in [Border::Replicate, Border::Symmetric] {
                let mut out = plane.clone();
                blur_plane(&mut out, w, 6.0, 3.0, border);
                let k = weights(6.0, 3.0);
                let r = k.len() as isize - 1;
                for y in 0..h as isize {
                    for x in 0..w as isize {
                        let mut sum = 0.0;
                        for dy in -r..=r {
                            for dx in -r..=r {
                                let v = plane[border.fold(y + dy, h) * w + border.fold(x + dx, w)];
                                sum += v * k[dy.unsigned_abs()] * k[dx.unsigned_abs()];
                            }
                        }
                        assert!((out[y as usize * w + x as usize] - sum).abs() < 1e-12, "{border:?} {y} {x}");
                    }
                }
            }
        }
    }

    #[test]
    fn no_sigma_is_no_blur() {
        let image: Vec<u8> = (0..=255).collect();
        assert_eq!(blur_bytes(&image, 16, 1, 0.05), image);
    }
}
