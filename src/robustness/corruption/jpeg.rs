//! What a baseline JPEG file does to the pixels (libjpeg-turbo, 4:2:0, accurate integer DCT), without the file: entropy coding
//! loses nothing, so it is left out.

use super::simd::vectorised;

/// Blocks transformed together, one per vector lane.
const LANES: usize = 16;

/// Annex K of ITU-T T.81, row by row.
const LUMA: [u16; 64] = [
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51,
    87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121, 120, 101,
    72, 92, 95, 98, 112, 100, 103, 99,
];
const CHROMA: [u16; 64] = [
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99, 99,
    99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99,
    99, 99, 99, 99, 99, 99,
];

/// A table scaled to a quality of 1..=100.
fn scaled(table: &[u16; 64], quality: u32) -> [i32; 64] {
    let scale = if quality < 50 { 5000 / quality } else { 200 - 2 * quality };
    table.map(|entry| ((u32::from(entry) * scale + 50) / 100).clamp(1, 255) as i32)
}

/// The pixels after saving at `quality` and loading again.
pub fn round_trip(image: &[u8], width: usize, channels: usize, quality: u32) -> Vec<u8> {
    let height = image.len() / (width * channels);
    let mut luma = Plane::new(height, width);
    if channels == 1 {
        for (y, row) in image.chunks(width).enumerate() {
            luma.row_mut(y).copy_from_slice(row);
        }
        luma.extend();
        luma.code(&scaled(&LUMA, quality));
        return (0..height).flat_map(|y| luma.row(y).iter().copied()).collect();
    }
    let mut blue = Plane::new(height.div_ceil(2), width.div_ceil(2));
    let mut red = Plane::new(height.div_ceil(2), width.div_ceil(2));
    let fine = 2 * blue.stride;
    let mut full = vec![0u8; 4 * fine];
    let (blues, reds) = full.split_at_mut(2 * fine);
    for (pair, rows) in image.chunks(2 * width * 3).enumerate() {
        for (half, row) in rows.chunks(width * 3).enumerate() {
            let (b, r) = (&mut blues[half * fine..][..fine], &mut reds[half * fine..][..fine]);
            to_ycc(row, luma.row_mut(2 * pair + half), &mut b[..width], &mut r[..width]);
            let (last_b, last_r) = (b[width - 1], r[width - 1]);
            b[width..].fill(last_b);
            r[width..].fill(last_r);
        }
        if rows.len() == width * 3 {
            // An odd last row stands for its missing partner.
            blues.copy_within(..fine, fine);
            reds.copy_within(..fine, fine);
        }
        halve(&blues[..fine], &blues[fine..], blue.line_mut(pair));
        halve(&reds[..fine], &reds[fine..], red.line_mut(pair));
    }
    luma.extend();
    blue.extend_down();
    red.extend_down();
    luma.code(&scaled(&LUMA, quality));
    let chroma = scaled(&CHROMA, quality);
    blue.code(&chroma);
    red.code(&chroma);

    let mut out = vec![0; image.len()];
    let mut sums = vec![0u16; blue.width];
    let (mut b, mut r) = (vec![0; 2 * blue.width], vec![0; 2 * blue.width]);
    for (y, out) in out.chunks_mut(width * 3).enumerate() {
        blue.double(y, &mut sums, &mut b);
        red.double(y, &mut sums, &mut r);
        to_rgb(luma.row(y), &b[..width], &r[..width], out);
    }
    out
}

/// Samples in whole 8×8 blocks.
struct Plane {
    height: usize,
    width: usize,
    stride: usize,
    samples: Vec<u8>,
}

impl Plane {
    fn new(height: usize, width: usize) -> Self {
        let stride = width.next_multiple_of(8);
        Self { height, width, stride, samples: vec![0; stride * height.next_multiple_of(8)] }
    }

    fn row(&self, y: usize) -> &[u8] {
        &self.samples[y * self.stride..][..self.width]
    }

    fn row_mut(&mut self, y: usize) -> &mut [u8] {
        &mut self.samples[y * self.stride..][..self.width]
    }

    fn line_mut(&mut self, y: usize) -> &mut [u8] {
        &mut self.samples[y * self.stride..][..self.stride]
    }

    /// Repeats the last column and the last row to the end of the blocks.
    fn extend(&mut self) {
        let width = self.width;
        if width < self.stride {
            for y in 0..self.height {
                let line = self.line_mut(y);
                let last = line[width - 1];
                line[width..].fill(last);
            }
        }
        self.extend_down();
    }

    fn extend_down(&mut self) {
        let (stride, end) = (self.stride, self.height * self.stride);
        for y in self.height..self.samples.len() / stride {
            self.samples.copy_within(end - stride..end, y * stride);
        }
    }

    /// DCT, quantisation, and back, in place.
    fn code(&mut self, table: &[i32; 64]) {
        for strip in self.samples.chunks_mut(8 * self.stride) {
            code_strip(strip, self.stride, table);
        }
    }

    /// Row `y` of the plane at twice the size: triangle filter in both directions, as libjpeg's "fancy upsampling";
    /// planes of one or two columns are repeated.
    fn double(&self, y: usize, sums: &mut [u16], out: &mut [u8]) {
        let near = y / 2;
        if self.width <= 2 {
            for (pair, &v) in out.chunks_mut(2).zip(self.row(near)) {
                pair.fill(v);
            }
            return;
        }
        let far = if y.is_multiple_of(2) { near.saturating_sub(1) } else { (near + 1).min(self.height - 1) };
        double_row(self.row(near), self.row(far), sums, out);
    }
}

#[inline(always)]
fn shift(x: i32, bits: u32) -> i32 {
    (x + (1 << (bits - 1))) >> bits
}

/// sin and cos multiples in 13-bit fixed point (FIX(…) of the "islow" DCT).
mod fix {
    pub const F0_298: i32 = 2446;
    pub const F0_390: i32 = 3196;
    pub const F0_541: i32 = 4433;
    pub const F0_765: i32 = 6270;
    pub const F0_899: i32 = 7373;
    pub const F1_175: i32 = 9633;
    pub const F1_501: i32 = 12299;
    pub const F1_847: i32 = 15137;
    pub const F1_961: i32 = 16069;
    pub const F2_053: i32 = 16819;
    pub const F2_562: i32 = 20995;
    pub const F3_072: i32 = 25172;
}
use fix::*;

/// One dimension of the forward transform (Loeffler, Ligtenberg, Moschytz 1989); results scaled by √8·2^extra.
#[inline(always)]
fn forward(d: [i32; 8], even: impl Fn(i32) -> i32, bits: u32) -> [i32; 8] {
    let (s07, d07, s16, d16) = (d[0] + d[7], d[0] - d[7], d[1] + d[6], d[1] - d[6]);
    let (s25, d25, s34, d34) = (d[2] + d[5], d[2] - d[5], d[3] + d[4], d[3] - d[4]);
    let (e0, e3, e1, e2) = (s07 + s34, s07 - s34, s16 + s25, s16 - s25);
    let z = (e2 + e3) * F0_541;
    let z5 = (d34 + d16 + d25 + d07) * F1_175;
    let (z1, z2) = ((d34 + d07) * -F0_899, (d25 + d16) * -F2_562);
    let (z3, z4) = ((d34 + d16) * -F1_961 + z5, (d25 + d07) * -F0_390 + z5);
    [
        even(e0 + e1),
        shift(d07 * F1_501 + z1 + z4, bits),
        shift(z + e3 * F0_765, bits),
        shift(d16 * F3_072 + z2 + z3, bits),
        even(e0 - e1),
        shift(d25 * F2_053 + z2 + z4, bits),
        shift(z - e2 * F1_847, bits),
        shift(d34 * F0_298 + z1 + z3, bits),
    ]
}

/// One dimension of the inverse transform.
#[inline(always)]
fn inverse(c: [i32; 8], bits: u32) -> [i32; 8] {
    let z = (c[2] + c[6]) * F0_541;
    let (e2, e3) = (z - c[6] * F1_847, z + c[2] * F0_765);
    let (e0, e1) = ((c[0] + c[4]) << 13, (c[0] - c[4]) << 13);
    let (s0, s3, s1, s2) = (e0 + e3, e0 - e3, e1 + e2, e1 - e2);
    let z5 = (c[7] + c[3] + c[5] + c[1]) * F1_175;
    let (z1, z2) = ((c[7] + c[1]) * -F0_899, (c[5] + c[3]) * -F2_562);
    let (z3, z4) = ((c[7] + c[3]) * -F1_961 + z5, (c[5] + c[1]) * -F0_390 + z5);
    let (o0, o1) = (c[7] * F0_298 + z1 + z3, c[5] * F2_053 + z2 + z4);
    let (o2, o3) = (c[3] * F3_072 + z2 + z3, c[1] * F1_501 + z1 + z4);
    [
        shift(s0 + o3, bits),
        shift(s1 + o2, bits),
        shift(s2 + o1, bits),
        shift(s3 + o0, bits),
        shift(s3 - o0, bits),
        shift(s2 - o1, bits),
        shift(s1 - o2, bits),
        shift(s0 - o3, bits),
    ]
}

vectorised! {
    /// Eight rows of samples: every block to the quantised frequencies and back.
    fn code_strip(strip: &mut [u8], stride: usize, table: &[i32; 64]) {
        let mut blocks = [[0i32; LANES]; 64];
        for first in (0..stride).step_by(8 * LANES) {
            let count = LANES.min((stride - first) / 8);
            for y in 0..8 {
                let row = strip[y * stride + first..][..8 * count].as_chunks::<8>().0;
                for (lane, eight) in row.iter().enumerate() {
                    for x in 0..8 {
                        blocks[8 * y + x][lane] = i32::from(eight[x]) - 128;
                    }
                }
            }
            for y in 0..8 {
                for lane in 0..LANES {
                    let d = std::array::from_fn(|x| blocks[8 * y + x][lane]);
                    let c = forward(d, |e| e << 2, 11);
                    for x in 0..8 {
                        blocks[8 * y + x][lane] = c[x];
                    }
                }
            }
            for x in 0..8 {
                let steps: [i32; 8] = std::array::from_fn(|y| table[8 * y + x]);
                for lane in 0..LANES {
                    let d = std::array::from_fn(|y| blocks[8 * y + x][lane]);
                    let mut c = forward(d, |e| shift(e, 2), 15);
                    for y in 0..8 {
                        c[y] = quantised(c[y], steps[y]);
                    }
                    let s = inverse(c, 11);
                    for y in 0..8 {
                        blocks[8 * y + x][lane] = s[y];
                    }
                }
            }
            for y in 0..8 {
                for lane in 0..LANES {
                    let s = inverse(std::array::from_fn(|x| blocks[8 * y + x][lane]), 18);
                    for x in 0..8 {
                        blocks[8 * y + x][lane] = (s[x] + 128).clamp(0, 255);
                    }
                }
                let row = strip[y * stride + first..][..8 * count].as_chunks_mut::<8>().0;
                for (lane, eight) in row.iter_mut().enumerate() {
                    for x in 0..8 {
                        eight[x] = blocks[8 * y + x][lane] as u8;
                    }
                }
            }
        }
    }

    /// 16-bit fixed point.
    fn to_ycc(rgb: &[u8], luma: &mut [u8], blue: &mut [u8], red: &mut [u8]) {
        let pixels = rgb.as_chunks::<3>().0;
        let n = pixels.len();
        let (luma, blue, red) = (&mut luma[..n], &mut blue[..n], &mut red[..n]);
        for i in 0..n {
            let [r, g, b] = pixels[i].map(i32::from);
            luma[i] = ((19595 * r + 38470 * g + 7471 * b + 32768) >> 16) as u8;
            blue[i] = ((-11059 * r - 21709 * g + 32768 * b + (128 << 16) + 32767) >> 16) as u8;
            red[i] = ((32768 * r - 27439 * g - 5329 * b + (128 << 16) + 32767) >> 16) as u8;
        }
    }

    fn to_rgb(luma: &[u8], blue: &[u8], red: &[u8], rgb: &mut [u8]) {
        let pixels = rgb.as_chunks_mut::<3>().0;
        let n = pixels.len();
        let (luma, blue, red) = (&luma[..n], &blue[..n], &red[..n]);
        for i in 0..n {
            let (y, b, r) = (i32::from(luma[i]), i32::from(blue[i]) - 128, i32::from(red[i]) - 128);
            let byte = |v: i32| v.clamp(0, 255) as u8;
            pixels[i] = [
                byte(y + ((91881 * r + 32768) >> 16)),
                byte(y + ((-22554 * b - 46802 * r + 32768) >> 16)),
                byte(y + ((116130 * b + 32768) >> 16)),
            ];
        }
    }

    /// Means of 2×2 samples, halves rounded down and up in turn.
    fn halve(top: &[u8], bottom: &[u8], out: &mut [u8]) {
        let (top, bottom) = (top.as_chunks::<2>().0, bottom.as_chunks::<2>().0);
        for (i, ((t, b), out)) in top.iter().zip(bottom).zip(out).enumerate() {
            let bias = 1 + (i as u16 & 1);
            let sum = u16::from(t[0]) + u16::from(t[1]) + u16::from(b[0]) + u16::from(b[1]);
            *out = ((sum + bias) >> 2) as u8;
        }
    }

    fn double_row(near: &[u8], far: &[u8], sums: &mut [u16], out: &mut [u8]) {
        for ((sum, &near), &far) in sums.iter_mut().zip(near).zip(far) {
            *sum = 3 * u16::from(near) + u16::from(far);
        }
        let n = sums.len();
        let pairs = out.as_chunks_mut::<2>().0;
        pairs[0] = [((4 * sums[0] + 8) >> 4) as u8, ((3 * sums[0] + sums[1] + 7) >> 4) as u8];
        pairs[n - 1] = [((3 * sums[n - 1] + sums[n - 2] + 8) >> 4) as u8, ((4 * sums[n - 1] + 7) >> 4) as u8];
        let (before, own, after) = (&sums[..n - 2], &sums[1..n - 1], &sums[2..]);
        for (((pair, &own), &before), &after) in pairs[1..n - 1].iter_mut().zip(own).zip(before).zip(after) {
            *pair = [((3 * own + before + 8) >> 4) as u8, ((3 * own + after + 7) >> 4) as u8];
        }
    }
}

/// The multiple of `step` nearest to `c`/8, halves away from zero.
#[inline(always)]
fn quantised(c: i32, step: i32) -> i32 {
    // Both numbers are far below 2²⁴, so the single-precision quotient truncates to the integer one.
    let magnitude = (c.abs() + 4 * step) as f32 / (8 * step) as f32;
    // SAFETY: finite and below 2¹⁶.
    let level = unsafe { magnitude.to_int_unchecked::<i32>() } * step;
    if c < 0 { -level } else { level }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantisation_is_integer_division() {
        for step in [1, 3, 16, 99, 255] {
            for c in (-70_000i32..70_000).step_by(13) {
                let exact = (c.abs() + 4 * step) / (8 * step) * step * c.signum();
                assert_eq!(quantised(c, step), exact, "{c}/{step}");
            }
        }
    }

    #[test]
    fn flat_images_keep_their_grey_at_any_size() {
        for (h, w) in [(1, 1), (5, 3), (8, 8), (17, 33)] {
            for channels in [1, 3] {
                let image = vec![128; h * w * channels];
                assert_eq!(round_trip(&image, w, channels, 10), image, "{h}×{w}×{channels}");
            }
        }
    }

    #[test]
    fn forward_then_inverse_is_the_identity_but_for_rounding() {
        let mut image: Vec<u8> = (0..64 * 64).map(|i| ((i * i) >> 3) as u8).collect();
        let before = image.clone();
        for strip in image.chunks_mut(8 * 64) {
            code_strip(strip, 64, &[1; 64]);
        }
        assert!(image.iter().zip(&before).all(|(a, b)| a.abs_diff(*b) <= 1));
    }
}
