//! The two geometric steps of the elastic transform: OpenCV's affine warp, and sampling along a displacement field by SciPy's rules.

use super::scratch::Scratch;
use super::simd::{byte_of_unit_f32, vectorised};

/// Rows of the map (x, y) → (m₀₀x + m₀₁y + m₀₂, m₁₀x + m₁₁y + m₁₂).
pub type Affine = [[f64; 3]; 2];

/// The affine map that takes three points to three others. `None` if the points lie on a line.
pub fn affine_through(from: [[f32; 2]; 3], to: [[f32; 2]; 3]) -> Option<Affine> {
    let p = from.map(|p| p.map(f64::from));
    let q = to.map(|p| p.map(f64::from));
    let (ax, ay) = (p[1][0] - p[0][0], p[1][1] - p[0][1]);
    let (bx, by) = (p[2][0] - p[0][0], p[2][1] - p[0][1]);
    let area = ax * by - bx * ay;
    if area == 0.0 {
        return None;
    }
    Some(std::array::from_fn(|k| {
        let (a, b) = (q[1][k] - q[0][k], q[2][k] - q[0][k]);
        let (mx, my) = ((a * by - b * ay) / area, (b * ax - a * bx) / area);
        [mx, my, q[0][k] - mx * p[0][0] - my * p[0][1]]
    }))
}

/// Up to three channels in four lanes, which is what vectors hold.
pub type Pixel = [f32; 4];

vectorised! {
    /// Interleaved bytes as v/255, moved by `map`: bilinear on a grid of 1/32 pixel, border mirrored about the edge pixel.
    pub fn warp_affine(image: &[u8], width: usize, channels: usize, map: &Affine) -> Scratch<Pixel> {
        let units: [f32; 256] = std::array::from_fn(|v| v as f32 / 255.0);
        let mut pixels = Scratch::<Pixel>::zeros(image.len() / channels);
        for (to, from) in pixels.iter_mut().zip(image.chunks_exact(channels)) {
            for c in 0..channels {
                to[c] = units[usize::from(from[c])];
            }
        }
        let height = pixels.len() / width;
        let [[a, b, c], [d, e, f]] = *map;
        let determinant = a * e - b * d;
        let scale = if determinant == 0.0 { 0.0 } else { 1.0 / determinant };
        let (a, e, b, d) = (e * scale, a * scale, -b * scale, -d * scale);
        let (c, f) = (-a * c - b * f, -d * c - e * f);
        // 10 fraction bits while stepping, 5 when sampling.
        let fixed = |v: f64| (v * 1024.0).round_ties_even() as i64;
        let columns: Vec<(i64, i64)> = (0..width).map(|x| (fixed(a * x as f64), fixed(d * x as f64))).collect();
        let mut out = Scratch::<Pixel>::zeros(pixels.len());
        for (y, row) in out.chunks_mut(width).enumerate() {
            let (x0, y0) = (fixed(b * y as f64 + c) + 16, fixed(e * y as f64 + f) + 16);
            for (&(dx, dy), out) in columns.iter().zip(row) {
                let (px, py) = ((x0 + dx) >> 5, (y0 + dy) >> 5);
                let (fx, fy) = ((px & 31) as f32 / 32.0, (py & 31) as f32 / 32.0);
                let (left, right) = neighbours(px >> 5, width, mirror);
                let (top, bottom) = neighbours(py >> 5, height, mirror);
                let taps = [top * width + left, top * width + right, bottom * width + left, bottom * width + right];
                let weights = [(1.0 - fy) * (1.0 - fx), (1.0 - fy) * fx, fy * (1.0 - fx), fy * fx];
                let (p, q, r, s) = (&pixels[taps[0]], &pixels[taps[1]], &pixels[taps[2]], &pixels[taps[3]]);
                for k in 0..4 {
                    out[k] = p[k] * weights[0] + q[k] * weights[1] + r[k] * weights[2] + s[k] * weights[3];
                }
            }
        }
        out
    }

    /// trunc(255·clip(·)) of the image sampled at (row + dy, column + dx): bilinear in double precision, rounded to single, border
    /// mirrored with the edge pixel doubled.
    pub fn displace(pixels: &[Pixel], width: usize, channels: usize, dx: &[f32], dy: &[f32]) -> Vec<u8> {
        let height = pixels.len() / width;
        let mut out = vec![0; pixels.len() * channels];
        for (y, row) in out.chunks_mut(width * channels).enumerate() {
            let (dx, dy) = (&dx[y * width..][..width], &dy[y * width..][..width]);
            for (x, out) in row.chunks_exact_mut(channels).enumerate() {
                let py = reflect(y as f64 + f64::from(dy[x]), height);
                let px = reflect(x as f64 + f64::from(dx[x]), width);
                let (y0, x0) = (py.floor(), px.floor());
                let (fy, fx) = (py - y0, px - x0);
                let (top, bottom) = neighbours(y0 as i64, height, clamp);
                let (left, right) = neighbours(x0 as i64, width, clamp);
                let taps = [top * width + left, top * width + right, bottom * width + left, bottom * width + right];
                let (p, q, r, s) = (&pixels[taps[0]], &pixels[taps[1]], &pixels[taps[2]], &pixels[taps[3]]);
                let (gy, gx) = (1.0 - fy, 1.0 - fx);
                let mut sums = [0.0; 4];
                for k in 0..4 {
                    sums[k] = f64::from(p[k]) * gy * gx
                        + f64::from(q[k]) * gy * fx
                        + f64::from(r[k]) * fy * gx
                        + f64::from(s[k]) * fy * fx;
                }
                let mut bytes = [0; 4];
                for k in 0..4 {
                    bytes[k] = byte_of_unit_f32(sums[k] as f32);
                }
                out.copy_from_slice(&bytes[..channels]);
            }
        }
        out
    }
}

/// `i` and `i + 1`, brought inside 0..n by `fold` where they are not.
#[inline(always)]
fn neighbours(i: i64, n: usize, fold: impl Fn(i64, usize) -> usize) -> (usize, usize) {
    if i >= 0 && i + 1 < n as i64 { (i as usize, i as usize + 1) } else { (fold(i, n), fold(i + 1, n)) }
}

#[cold]
fn clamp(i: i64, n: usize) -> usize {
    i.clamp(0, n as i64 - 1) as usize
}

/// The border `dcb|abcd|cba`.
fn mirror(i: i64, n: usize) -> usize {
    let last = n as i64 - 1;
    let i = i.abs();
    if i <= last {
        return i as usize;
    }
    if i <= 2 * last {
        return (2 * last - i) as usize;
    }
    if last == 0 {
        return 0;
    }
    let i = i % (2 * last);
    i.min(2 * last - i) as usize
}

/// Folds a position into [−1, n): SciPy's `reflect`.
#[inline(always)]
fn reflect(position: f64, n: usize) -> f64 {
    let n = n as f64;
    if position >= 0.0 && position <= n - 1.0 {
        return position;
    }
    reflect_far(position, n)
}

#[cold]
fn reflect_far(position: f64, n: f64) -> f64 {
    if n <= 1.0 {
        return 0.0;
    }
    let period = 2.0 * n;
    let mut p = position;
    if p < 0.0 {
        if p < -period {
            p += period * (-p / period).trunc();
        }
        if p < -n { p + period } else { -p - 1.0 }
    } else {
        p -= period * (p / period).trunc();
        if p >= n { period - p - 1.0 } else { p }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(h: usize, w: usize) -> Vec<u8> {
        (0..h * w * 3).map(|i| ((i * 31) >> 2) as u8).collect()
    }

    #[test]
    fn three_points_fix_the_map() {
        let from = [[10.0, 10.0], [10.0, 2.0], [2.0, 2.0]];
        let to = [[11.0, 9.5], [10.0, 2.5], [1.0, 3.0]];
        let m = affine_through(from, to).expect("a triangle");
        for (p, q) in from.iter().zip(to) {
            for k in 0..2 {
                let got = m[k][0] * f64::from(p[0]) + m[k][1] * f64::from(p[1]) + m[k][2];
                assert!((got - f64::from(q[k])).abs() < 1e-12);
            }
        }
        assert!(affine_through([[1.0, 1.0]; 3], to).is_none());
    }

    #[test]
    fn whole_pixel_moves_copy_pixels() {
        let (h, w) = (9, 11);
        let image = picture(h, w);
        let moved = warp_affine(&image, w, 3, &[[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]]);
        for y in 0..h {
            for x in 0..w {
                let source = (mirror(y as i64 + 1, h) * w + mirror(x as i64 - 2, w)) * 3;
                assert_eq!(moved[y * w + x][0], f32::from(image[source]) / 255.0);
            }
        }
    }

    #[test]
    fn displacement_samples_between_pixels_and_mirrors_beyond_the_edge() {
        let image: Vec<Pixel> = (0..5).map(|v| [v as f32 / 255.0; 4]).collect();
        let sample = |by: f32| displace(&image, 5, 1, &[by; 5], &[0.0; 5]);
        assert_eq!(sample(0.0), [0, 1, 2, 3, 4]);
        assert_eq!(sample(1.0), [1, 2, 3, 4, 4]);
        assert_eq!(sample(-7.0), [3, 4, 4, 3, 2]);
    }
}
