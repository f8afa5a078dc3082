//! Centre zoom with bilinear sampling, by `scipy.ndimage.zoom`'s rules.

use super::scratch::Scratch;
use super::simd::{byte_of_unit_f32, vectorised};

/// Where the outputs of one axis are sampled.
#[derive(Debug, Clone)]
struct Axis {
    /// (first of two neighbouring inputs, weight of the first, weight of the second)
    samples: Vec<(usize, f64, f64)>,
}

impl Axis {
    /// An axis of `n` pixels: crop ⌈n/z⌉ around the centre, stretch end to end to round(crop·z), cut the excess.
    fn new(n: usize, factor: f64) -> Self {
        let crop = (n as f64 / factor).ceil() as usize;
        let first = (n - crop) / 2;
        let size = ((crop as f64 * factor).round_ties_even() as usize).max(n);
        let trim = (size - n) / 2;
        let scale = if size > 1 { (crop - 1) as f64 / (size - 1) as f64 } else { 1.0 };
        let sample = |i: usize| {
            let position = ((i + trim) as f64 * scale).min((crop - 1) as f64);
            // The last input has no neighbour: stand on the one before it with the whole weight on the second.
            let base = (position.floor() as usize).min(crop.saturating_sub(2));
            let part = position - base as f64;
            (first + base, 1.0 - part, part)
        };
        Self { samples: (0..n).map(sample).collect() }
    }
}

/// A plane of doubles, zoomed.
pub fn zoom_plane(plane: &[f64], width: usize, factor: f64) -> Vec<f64> {
    let height = plane.len() / width;
    if factor == 1.0 {
        return plane.to_vec();
    }
    let (down, across) = (Axis::new(height, factor), Axis::new(width, factor));
    let mut out = vec![0.0; plane.len()];
    let mut line = vec![0.0; width + 1];
    for (&(y, w0, w1), out) in down.samples.iter().zip(out.chunks_mut(width)) {
        let below = (y + 1).min(height - 1);
        mix(&plane[y * width..][..width], &plane[below * width..][..width], w0, w1, &mut line);
        for (&(x, w0, w1), out) in across.samples.iter().zip(out) {
            *out = line[x] * w0 + line[x + 1] * w1;
        }
    }
    out
}

/// Mean of the image and its zooms by every factor, single precision: trunc(255·clip((x + Σ zoom)/(n + 1))).
pub fn blur_bytes(image: &[u8], width: usize, channels: usize, factors: &[f64]) -> Vec<u8> {
    match channels {
        1 => blur_channels::<1>(image, width, factors),
        3 => blur_channels::<3>(image, width, factors),
        n => unreachable!("images have 1 or 3 channels, not {n}"),
    }
}

fn blur_channels<const C: usize>(image: &[u8], width: usize, factors: &[f64]) -> Vec<u8> {
    let row = width * C;
    let height = image.len() / row;
    let mut units = Scratch::<f64>::zeros(image.len());
    to_units(image, &mut units);
    let zooms: Vec<(Axis, Axis)> = factors.iter().map(|&z| (Axis::new(height, z), Axis::new(width, z))).collect();
    let mut out = vec![0; image.len()];
    // More than a row, so that the right neighbour of the last pixel exists, and its idle lane.
    let mut line = vec![0.0; row + C + 1];
    let mut sum = vec![0f32; row];
    for (y, out) in out.chunks_mut(row).enumerate() {
        let own = &units[y * row..][..row];
        sum.fill(0.0);
        for ((down, across), &factor) in zooms.iter().zip(factors) {
            if factor == 1.0 {
                add_plain(own, &mut sum);
                continue;
            }
            let (top, w0, w1) = down.samples[y];
            let below = (top + 1).min(height - 1);
            mix(&units[top * row..][..row], &units[below * row..][..row], w0, w1, &mut line);
            if C == 3 {
                add_zoomed_rgb(&line, &across.samples, &mut sum)
            } else {
                add_zoomed(&line, &across.samples, &mut sum)
            }
        }
        finish(own, &sum, (factors.len() + 1) as f32, out);
    }
    out
}

vectorised! {
    /// v/255 rounded to single precision.
    fn to_units(bytes: &[u8], out: &mut [f64]) {
        for (u, &v) in out.iter_mut().zip(bytes) {
            *u = f64::from((f64::from(v) / 255.0) as f32);
        }
    }

    fn mix(a: &[f64], b: &[f64], w0: f64, w1: f64, out: &mut [f64]) {
        for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
            *out = a * w0 + b * w1;
        }
    }

    fn add_zoomed(line: &[f64], samples: &[(usize, f64, f64)], sum: &mut [f32]) {
        for (&(x, w0, w1), sum) in samples.iter().zip(sum) {
            *sum += (line[x] * w0 + line[x + 1] * w1) as f32;
        }
    }

    fn add_zoomed_rgb(line: &[f64], samples: &[(usize, f64, f64)], sum: &mut [f32]) {
        for (&(x, w0, w1), sum) in samples.iter().zip(sum.as_chunks_mut::<3>().0) {
            // Four lanes, of which the last is idle.
            let (left, right) = (&line[3 * x..3 * x + 4], &line[3 * x + 3..3 * x + 7]);
            let mut mixed = [0f32; 4];
            for c in 0..4 {
                mixed[c] = (left[c] * w0 + right[c] * w1) as f32;
            }
            for c in 0..3 {
                sum[c] += mixed[c];
            }
        }
    }

    fn add_plain(from: &[f64], sum: &mut [f32]) {
        for (sum, &v) in sum.iter_mut().zip(from) {
            *sum += v as f32;
        }
    }

    fn finish(own: &[f64], sum: &[f32], count: f32, out: &mut [u8]) {
        for ((byte, &x), &sum) in out.iter_mut().zip(own).zip(sum) {
            *byte = byte_of_unit_f32((x as f32 + sum) / count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linear_ramp_is_stretched_about_its_centre() {
        let (n, z) = (64, 1.25);
        let plane: Vec<f64> = (0..n * n).map(|i| (i % n) as f64).collect();
        let out = zoom_plane(&plane, n, z);
        let crop = (n as f64 / z).ceil();
        let first = ((n as f64 - crop) / 2.0).floor();
        let size = (crop * z).round();
        for x in 0..n {
            let expected = first + (x as f64 + ((size - n as f64) / 2.0).floor()) * (crop - 1.0) / (size - 1.0);
            assert!((out[5 * n + x] - expected).abs() < 1e-12);
        }
    }

    #[test]
    fn flat_images_and_single_pixels_stay() {
        assert_eq!(blur_bytes(&[77; 48], 4, 3, &[1.0, 1.3, 1.7]), [77; 48]);
        assert_eq!(blur_bytes(&[9], 1, 1, &[1.0, 2.0]), [9]);
        assert_eq!(zoom_plane(&[2.5], 1, 4.5), [2.5]);
    }
}
