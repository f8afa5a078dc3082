//! Pillow's 8-bit image resampling, bit for bit.
//!
//! Evaluation pixels must be the ones the published numbers were computed from, and those passed through Pillow. Per
//! axis: output i has its centre at (i + ½)·s with s = in / out; its support is the filter's radius times max(s, 1)
//! (which is what makes downscaling antialiased); its taps are the inputs in
//! [trunc(centre − support + ½), trunc(centre + support + ½)) that exist; weights are normalised in float64 and rounded
//! to 22 fractional bits; sums are rounded to bytes. The horizontal pass runs first and is stored as bytes. So do all
//! Pillow versions up to 12; Pillow 13 runs the vertical pass first where that is cheaper (never for ImageNet's recipe),
//! which moves some pixels by a level.

/// The reconstruction filter, as Pillow names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// Area average: weight 1 on (−½, ½].
    Box,
    /// Triangle of radius 1.
    Bilinear,
}

impl Filter {
    fn radius(self) -> f64 {
        match self {
            Self::Box => 0.5,
            Self::Bilinear => 1.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        match self {
            Self::Box => f64::from(u8::from(x > -0.5 && x <= 0.5)),
            Self::Bilinear => (1.0 - x.abs()).max(0.0),
        }
    }
}

const PRECISION: u32 = 22;
const HALF: i32 = 1 << (PRECISION - 1);

/// The taps of every output along one axis.
#[derive(Debug, Clone)]
struct Axis {
    input: usize,
    /// (first input, first weight, number of taps) per output.
    taps: Vec<(usize, usize, usize)>,
    weights: Vec<i32>,
}

impl Axis {
    fn new(input: usize, output: usize, filter: Filter) -> Self {
        let scale = input as f64 / output as f64;
        let stretch = scale.max(1.0);
        let support = filter.radius() * stretch;
        let mut axis = Self { input, taps: Vec::with_capacity(output), weights: Vec::new() };
        for i in 0..output {
            let centre = (i as f64 + 0.5) * scale;
            // The conversions saturate at zero, as Pillow's clamp does.
            let first = (centre - support + 0.5) as usize;
            let last = ((centre + support + 0.5) as usize).min(input);
            // Pillow multiplies by the reciprocal; dividing could differ in the last bit.
            let per_tap = 1.0 / stretch;
            let raw: Vec<f64> = (first..last).map(|j| filter.weight((j as f64 - centre + 0.5) * per_tap)).collect();
            let total: f64 = raw.iter().sum();
            axis.taps.push((first, axis.weights.len(), raw.len()));
            axis.weights.extend(raw.iter().map(|w| (0.5 + w / total * f64::from(1 << PRECISION)) as i32));
        }
        axis
    }

    fn output(&self) -> usize {
        self.taps.len()
    }
}

fn to_byte(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// A resize from one fixed size to another, prepared once and applied to any number of images.
#[derive(Debug, Clone)]
pub struct Resampler {
    horizontal: Axis,
    vertical: Axis,
}

impl Resampler {
    /// Sizes are (height, width) in pixels, each at least 1.
    ///
    /// # Panics
    /// If a size is zero.
    pub fn new(from: (usize, usize), to: (usize, usize), filter: Filter) -> Self {
        assert!(from.0 > 0 && from.1 > 0 && to.0 > 0 && to.1 > 0, "cannot resample {from:?} to {to:?}");
        Self { vertical: Axis::new(from.0, to.0, filter), horizontal: Axis::new(from.1, to.1, filter) }
    }

    /// One plane [height, width] → [height', width'].
    ///
    /// # Panics
    /// If `plane` does not have the prepared size.
    pub fn plane(&self, plane: &[u8]) -> Vec<u8> {
        self.run::<1>(plane)
    }

    /// Planes one after the other, [channels, height, width] → [channels, height', width'].
    ///
    /// # Panics
    /// If `pixels` is not a whole number of planes.
    pub fn planar(&self, pixels: &[u8]) -> Vec<u8> {
        let size = self.vertical.input * self.horizontal.input;
        assert_eq!(pixels.len() % size, 0, "not a whole number of planes");
        pixels.chunks_exact(size).flat_map(|plane| self.run::<1>(plane)).collect()
    }

    /// Interleaved RGB, [height, width, 3] → [height', width', 3].
    ///
    /// # Panics
    /// If `pixels` does not have the prepared size.
    pub fn rgb(&self, pixels: &[u8]) -> Vec<u8> {
        self.run::<3>(pixels)
    }

    fn run<const C: usize>(&self, pixels: &[u8]) -> Vec<u8> {
        assert_eq!(pixels.len(), self.vertical.input * self.horizontal.input * C, "image of another size");
        self.vertical_pass(&self.horizontal_pass::<C>(pixels), self.horizontal.output() * C)
    }

    fn horizontal_pass<const C: usize>(&self, pixels: &[u8]) -> Vec<u8> {
        let axis = &self.horizontal;
        let mut out = Vec::with_capacity(self.vertical.input * axis.output() * C);
        for row in pixels.chunks_exact(axis.input * C) {
            for &(first, weight, count) in &axis.taps {
                let mut sums = [HALF; C];
                let taps = row[first * C..(first + count) * C].chunks_exact(C);
                for (pixel, k) in taps.zip(&axis.weights[weight..weight + count]) {
                    for (sum, value) in sums.iter_mut().zip(pixel) {
                        *sum += k * i32::from(*value);
                    }
                }
                out.extend(sums.map(to_byte));
            }
        }
        out
    }

    /// `stride` is the number of bytes in a row.
    fn vertical_pass(&self, pixels: &[u8], stride: usize) -> Vec<u8> {
        let axis = &self.vertical;
        let mut out = Vec::with_capacity(axis.output() * stride);
        let mut sums = vec![HALF; stride];
        for &(first, weight, count) in &axis.taps {
            sums.fill(HALF);
            let rows = pixels[first * stride..(first + count) * stride].chunks_exact(stride);
            for (row, k) in rows.zip(&axis.weights[weight..weight + count]) {
                for (sum, value) in sums.iter_mut().zip(row) {
                    *sum += k * i32::from(*value);
                }
            }
            out.extend(sums.iter().copied().map(to_byte));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_flat_image_stays_flat(h in 1usize..40, w in 1usize..40, oh in 1usize..40, ow in 1usize..40, v: u8) {
            for filter in [Filter::Box, Filter::Bilinear] {
                let out = Resampler::new((h, w), (oh, ow), filter).plane(&vec![v; h * w]);
                prop_assert!(out.len() == oh * ow && out.iter().all(|p| *p == v));
            }
        }

        #[test]
        fn the_same_size_is_the_identity(w in 1usize..9, pixels in proptest::collection::vec(any::<u8>(), 1..60)) {
            let h = pixels.len() / w;
            prop_assume!(h > 0);
            for filter in [Filter::Box, Filter::Bilinear] {
                let out = Resampler::new((h, w), (h, w), filter).plane(&pixels[..h * w]);
                prop_assert_eq!(&out, &pixels[..h * w]);
            }
        }

        #[test]
        fn interleaved_and_planar_agree(h in 1usize..12, w in 1usize..12, oh in 1usize..12, ow in 1usize..12, seed: u32) {
            let at = |c: usize, i: usize| (seed as usize ^ (i * 31 + c * 7919)).wrapping_mul(2654435761) as u8;
            let planar: Vec<u8> = (0..3).flat_map(|c| (0..h * w).map(move |i| at(c, i))).collect();
            let rgb: Vec<u8> = (0..h * w).flat_map(|i| (0..3).map(move |c| at(c, i))).collect();
            let resampler = Resampler::new((h, w), (oh, ow), Filter::Bilinear);
            let (planar, rgb) = (resampler.planar(&planar), resampler.rgb(&rgb));
            for i in 0..oh * ow {
                for c in 0..3 {
                    prop_assert_eq!(planar[c * oh * ow + i], rgb[i * 3 + c]);
                }
            }
        }
    }

    #[test]
    fn halving_with_the_box_filter_averages_pairs() {
        assert_eq!(Resampler::new((1, 4), (1, 2), Filter::Box).plane(&[0, 10, 20, 41]), [5, 31]);
    }
}
