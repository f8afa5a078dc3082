//! Motion blur along a line, as ImageMagick 6 computes it.

use super::scratch::Scratch;
use super::simd::vectorised;

/// A one-sided line of taps: half a Gaussian that starts at the pixel and runs off at an angle.
#[derive(Debug, Clone)]
pub struct Line {
    /// (weight, x offset, y offset)
    taps: Vec<(f64, isize, isize)>,
}

impl Line {
    /// 2·radius + 1 taps, weights ∝ exp(−i²/2σ²), offsets on the nearest pixel of the line at `angle` degrees.
    pub fn new(radius: usize, sigma: f64, angle: f64) -> Self {
        let width = 2 * radius + 1;
        let norm = (2.0 * std::f64::consts::PI).sqrt() * sigma;
        let raw: Vec<f64> = (0..width).map(|i| (-((i * i) as f64) / (2.0 * sigma * sigma)).exp() / norm).collect();
        let sum: f64 = raw.iter().sum();
        let radians = std::f64::consts::PI * angle / 180.0;
        let (x, y) = (width as f64 * radians.cos(), width as f64 * radians.sin());
        let length = x.hypot(y);
        let place = |i: usize, along: f64| (i as f64 * along / length - 0.5).ceil() as isize;
        Self { taps: raw.iter().enumerate().map(|(i, w)| (w / sum, place(i, x), place(i, y))).collect() }
    }
}

/// Σ w·v along the line, edge pixels repeated, in ImageMagick's 16-bit quanta: a byte is trunc(trunc(257·Σ + ½)/257).
pub fn blur_bytes(image: &[u8], width: usize, channels: usize, line: &Line) -> Vec<u8> {
    let row = width * channels;
    let height = image.len() / row;
    let left = line.taps.iter().map(|t| -t.1).max().unwrap_or(0).max(0) as usize;
    let right = line.taps.iter().map(|t| t.1).max().unwrap_or(0).max(0) as usize;
    let padded = row + (left + right) * channels;
    let mut quanta = Scratch::<f64>::zeros(height * padded);
    for (from, to) in image.chunks(row).zip(quanta.chunks_mut(padded)) {
        to_quanta(from, &mut to[left * channels..][..row]);
        for c in 0..channels {
            let (first, last) = (to[left * channels + c], to[(left + width - 1) * channels + c]);
            for i in 0..left {
                to[i * channels + c] = first;
            }
            for i in 0..right {
                to[(left + width + i) * channels + c] = last;
            }
        }
    }
    let weights: Vec<f64> = line.taps.iter().map(|t| t.0).collect();
    let mut lines = Vec::with_capacity(weights.len());
    let mut out = vec![0; image.len()];
    for (y, out) in out.chunks_mut(row).enumerate() {
        lines.clear();
        lines.extend(line.taps.iter().map(|&(_, x, down)| {
            let y = (y as isize + down).clamp(0, height as isize - 1) as usize;
            &quanta[y * padded + (left as isize + x) as usize * channels..][..row]
        }));
        weigh(&lines, &weights, out);
    }
    out
}

const BLOCK: usize = 32;

vectorised! {
    fn to_quanta(from: &[u8], to: &mut [f64]) {
        for (q, &v) in to.iter_mut().zip(from) {
            *q = f64::from(u32::from(v) * 257);
        }
    }

    fn weigh(lines: &[&[f64]], weights: &[f64], out: &mut [u8]) {
        let n = out.len();
        let whole = n - n % BLOCK;
        for start in (0..whole).step_by(BLOCK) {
            let mut sum = [0.0; BLOCK];
            for (line, w) in lines.iter().zip(weights) {
                let line = &line[start..start + BLOCK];
                for j in 0..BLOCK {
                    sum[j] += w * line[j];
                }
            }
            let out = &mut out[start..start + BLOCK];
            for j in 0..BLOCK {
                out[j] = byte_of_quantum(sum[j]);
            }
        }
        for (j, byte) in out.iter_mut().enumerate().skip(whole) {
            let mut sum = 0.0;
            for (line, w) in lines.iter().zip(weights) {
                sum += w * line[j];
            }
            *byte = byte_of_quantum(sum);
        }
    }
}

#[inline(always)]
fn byte_of_quantum(q: f64) -> u8 {
    // SAFETY: a convex combination of 0..=65535 (up to rounding), never NaN.
    let quantum = (unsafe { (q + 0.5).to_int_unchecked::<i32>() }) as u32;
    // ⌊quantum/257⌋ for quantum ≤ 65536.
    ((quantum * 65281) >> 24) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantum_is_divided_exactly() {
        for q in 0..=65535u32 {
            assert_eq!(u32::from(byte_of_quantum(f64::from(q))), q / 257, "{q}");
        }
    }

    #[test]
    fn a_point_is_drawn_out_along_the_line() {
        let (w, h) = (40, 40);
        let mut image = vec![0; w * h];
        image[20 * w + 20] = 255;
        let out = blur_bytes(&image, w, 1, &Line::new(5, 3.0, 0.0));
        for x in 0..w {
            let lit = (10..=20).contains(&x) && out[20 * w + x] > 0;
            // A tap at +x reads to the right, so the trace runs to the left, bright at the point itself.
            assert_eq!(out[20 * w + x] > 0, lit, "{x}");
        }
        assert!(out[20 * w + 20] > out[20 * w + 15]);
        assert!(out.iter().enumerate().all(|(i, &v)| v == 0 || i / w == 20));
    }

    #[test]
    fn a_flat_image_stays() {
        for angle in [-135.0, -44.0, 17.0] {
            assert_eq!(blur_bytes(&[200; 300], 10, 3, &Line::new(20, 15.0, angle)), [200; 300]);
        }
    }
}
