//! Common corruptions: the fifteen of ImageNet-C and its four extra ones (Hendrycks & Dietterich 2019, arXiv:1903.12261).
//!
//! Bytes in, bytes out. An image is interleaved RGB (or grey) bytes: most kernels then run over whole rows whatever the channel, and
//! NumPy's draw order is the storage order. [`Image::from_planes`] and [`Image::to_planes`] convert from and to the planar layout of the
//! data set store. A corruption of one image is a pure function of the bytes, the recipe and the random source, so images may be
//! corrupted in parallel in any order.
//!
//! Formulas, rounding and quirks are those of the original package `imagenet_c`: results are truncated to bytes, never rounded.

// Loops over lanes and taps index several arrays at once; written so, they vectorise.
#![allow(clippy::needless_range_loop)]

mod blur;
mod digital;
mod disk;
mod frost;
mod gaussian;
mod hsv;
mod image;
mod jpeg;
mod liquid;
mod motion;
mod noise;
mod numpy;
mod plasma;
mod poisson;
mod prefetch;
mod random;
mod resample;
mod scratch;
mod simd;
mod spatter;
mod tables;
mod warp;
mod weather;
mod zoom;

use serde::{Deserialize, Serialize};

use crate::protocol::{CorruptionCondition, Mode};

pub use crate::protocol::{Corruption, Group, NoSuchSeverity, Severity, Table};
pub use frost::{FROST_FILES, FrostError, FrostTextures, Texture, identify};
pub use image::{Channels, Image, ImageError, Shape};
pub use numpy::NumpyCompat;
pub use prefetch::{Prefetch, prefetched};
pub use random::{Keyed, Random};

impl Corruption {
    /// Whether the channels are mixed in, so that a grey image has to be corrupted in colour.
    fn has_colour(self) -> bool {
        matches!(self, Corruption::Frost | Corruption::Spatter | Corruption::Saturate)
    }
}

impl Table {
    /// The table published for images of this shape; other shapes need an explicit choice.
    pub fn for_shape(shape: Shape) -> Option<Self> {
        Self::ALL.into_iter().find(|t| shape.height == t.side() && shape.width == t.side())
    }
}

/// One corruption, every parameter resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Recipe {
    pub corruption: Corruption,
    pub severity: Severity,
    pub table: Table,
    /// Followed by what a JPEG file of quality 85 (4:2:0) loses, as in the published ImageNet-C files.
    pub saved: bool,
}

impl From<&CorruptionCondition> for Recipe {
    fn from(condition: &CorruptionCondition) -> Self {
        let &CorruptionCondition { corruption, severity, table, mode, .. } = condition;
        Self { corruption, severity, table, saved: mode == Mode::Saved }
    }
}

/// Quality of the published JPEG files.
const SAVED_QUALITY: u32 = 85;
/// Shorter sides are extended to this length before the corruption, and cut again after it.
const SHORTEST_SIDE: usize = 32;

impl Recipe {
    /// The corrupted image, of the same shape.
    ///
    /// Sides under 32 pixels are extended by repeating the edge, half on each side. Grey images are corrupted as one channel where
    /// channels do not mix; frost, spatter and saturate are applied to three equal channels, and the ITU-R 601 luma is kept.
    pub fn apply(&self, image: &Image, textures: &FrostTextures, random: &mut impl Random) -> Image {
        let shape = image.shape();
        if shape.height < SHORTEST_SIDE || shape.width < SHORTEST_SIDE {
            let padded = image.padded(shape.height.max(SHORTEST_SIDE), shape.width.max(SHORTEST_SIDE));
            return self.apply(&padded, textures, random).centre(shape.height, shape.width);
        }
        if shape.channels == Channels::Grey && self.corruption.has_colour() {
            return self.apply(&image.to_rgb(), textures, random).to_grey();
        }
        let bytes = self.corrupt(image.bytes(), shape, textures, random);
        let bytes =
            if self.saved { jpeg::round_trip(&bytes, shape.width, shape.channels(), SAVED_QUALITY) } else { bytes };
        Image::new(shape, bytes).expect("a corruption keeps the shape")
    }

    fn corrupt(&self, image: &[u8], shape: Shape, textures: &FrostTextures, random: &mut impl Random) -> Vec<u8> {
        let (t, s) = (self.table, self.severity);
        match self.corruption {
            Corruption::GaussianNoise => noise::gaussian(image, tables::gaussian_noise(t, s), random),
            Corruption::ShotNoise => noise::shot(image, tables::shot_noise(t, s), random),
            Corruption::ImpulseNoise => noise::impulse(image, tables::impulse_noise(t, s), random),
            Corruption::SpeckleNoise => noise::speckle(image, tables::speckle_noise(t, s), random),
            Corruption::DefocusBlur => blur::defocus(image, shape, tables::defocus_blur(t, s)),
            Corruption::GlassBlur => blur::glass(image, shape, tables::glass_blur(t, s), random),
            Corruption::MotionBlur => blur::motion(image, shape, tables::motion_blur(t, s), random),
            Corruption::ZoomBlur => blur::zoom(image, shape, tables::zoom_blur(t, s)),
            Corruption::GaussianBlur => blur::gaussian(image, shape, tables::gaussian_blur(t, s)),
            Corruption::Snow => weather::snow(image, shape, tables::snow_layer(t, s), random),
            Corruption::Frost => weather::frost(image, shape, tables::frost(t, s), t, textures, random),
            Corruption::Fog => weather::fog(image, shape, tables::fog(t, s), t, random),
            Corruption::Brightness => weather::brightness(image, shape, tables::brightness(t, s)),
            Corruption::Saturate => weather::saturate(image, tables::saturate(t, s)),
            Corruption::Contrast => digital::contrast(image, shape, tables::contrast(t, s)),
            Corruption::ElasticTransform => digital::elastic(image, shape, tables::elastic_transform(t, s), random),
            Corruption::Pixelate => digital::pixelate(image, shape, tables::pixelate(t, s)),
            Corruption::JpegCompression => digital::jpeg_compression(image, shape, tables::jpeg_compression(t, s)),
            Corruption::Spatter => spatter::spatter(image, shape, tables::spatter(t, s), random),
        }
    }
}

/// What a JPEG file of quality 85 makes of an image: the loss that `saved` recipes end with.
pub fn saved(image: &Image) -> Image {
    let shape = image.shape();
    let bytes = jpeg::round_trip(image.bytes(), shape.width, shape.channels(), SAVED_QUALITY);
    Image::new(shape, bytes).expect("a JPEG file keeps the shape")
}
