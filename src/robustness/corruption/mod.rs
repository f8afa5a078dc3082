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

pub use frost::{FrostError, FrostOrigin, FrostTextures, Texture};
pub use image::{Channels, Image, ImageError, Shape};
pub use numpy::NumpyCompat;
pub use random::{Keyed, Random};

/// A type of corruption; names are the benchmark's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Corruption {
    GaussianNoise,
    ShotNoise,
    ImpulseNoise,
    DefocusBlur,
    GlassBlur,
    MotionBlur,
    ZoomBlur,
    Snow,
    Frost,
    Fog,
    Brightness,
    Contrast,
    ElasticTransform,
    Pixelate,
    JpegCompression,
    SpeckleNoise,
    GaussianBlur,
    Spatter,
    Saturate,
}

/// The groups whose means papers report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    Noise,
    Blur,
    Weather,
    Digital,
    /// The validation corruptions, in no mean of the benchmark.
    Extra,
}

impl Corruption {
    /// The fifteen of the benchmark in its order, then the four extra ones.
    pub const ALL: [Corruption; 19] = [
        Corruption::GaussianNoise,
        Corruption::ShotNoise,
        Corruption::ImpulseNoise,
        Corruption::DefocusBlur,
        Corruption::GlassBlur,
        Corruption::MotionBlur,
        Corruption::ZoomBlur,
        Corruption::Snow,
        Corruption::Frost,
        Corruption::Fog,
        Corruption::Brightness,
        Corruption::Contrast,
        Corruption::ElasticTransform,
        Corruption::Pixelate,
        Corruption::JpegCompression,
        Corruption::SpeckleNoise,
        Corruption::GaussianBlur,
        Corruption::Spatter,
        Corruption::Saturate,
    ];

    /// The name in the benchmark's files, such as `gaussian_noise`.
    pub fn name(self) -> &'static str {
        match self {
            Corruption::GaussianNoise => "gaussian_noise",
            Corruption::ShotNoise => "shot_noise",
            Corruption::ImpulseNoise => "impulse_noise",
            Corruption::DefocusBlur => "defocus_blur",
            Corruption::GlassBlur => "glass_blur",
            Corruption::MotionBlur => "motion_blur",
            Corruption::ZoomBlur => "zoom_blur",
            Corruption::Snow => "snow",
            Corruption::Frost => "frost",
            Corruption::Fog => "fog",
            Corruption::Brightness => "brightness",
            Corruption::Contrast => "contrast",
            Corruption::ElasticTransform => "elastic_transform",
            Corruption::Pixelate => "pixelate",
            Corruption::JpegCompression => "jpeg_compression",
            Corruption::SpeckleNoise => "speckle_noise",
            Corruption::GaussianBlur => "gaussian_blur",
            Corruption::Spatter => "spatter",
            Corruption::Saturate => "saturate",
        }
    }

    /// The corruption of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|c| c.name() == name)
    }

    pub fn group(self) -> Group {
        match self {
            Corruption::GaussianNoise | Corruption::ShotNoise | Corruption::ImpulseNoise => Group::Noise,
            Corruption::DefocusBlur | Corruption::GlassBlur | Corruption::MotionBlur | Corruption::ZoomBlur => {
                Group::Blur
            }
            Corruption::Snow | Corruption::Frost | Corruption::Fog | Corruption::Brightness => Group::Weather,
            Corruption::Contrast
            | Corruption::ElasticTransform
            | Corruption::Pixelate
            | Corruption::JpegCompression => Group::Digital,
            Corruption::SpeckleNoise | Corruption::GaussianBlur | Corruption::Spatter | Corruption::Saturate => {
                Group::Extra
            }
        }
    }

    /// Whether the result depends on random numbers.
    pub fn is_random(self) -> bool {
        !matches!(
            self,
            Corruption::DefocusBlur
                | Corruption::ZoomBlur
                | Corruption::Brightness
                | Corruption::Contrast
                | Corruption::Pixelate
                | Corruption::JpegCompression
                | Corruption::GaussianBlur
                | Corruption::Saturate
        )
    }

    /// Whether the channels are mixed in, so that a grey image has to be corrupted in colour.
    fn has_colour(self) -> bool {
        matches!(self, Corruption::Frost | Corruption::Spatter | Corruption::Saturate)
    }
}

/// 1 to 5.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Severity(u8);

/// A severity that is not 1 to 5.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("severity {0}: severities are 1 to 5")]
pub struct NoSuchSeverity(pub u8);

impl Severity {
    pub const ALL: [Severity; 5] = [Severity(1), Severity(2), Severity(3), Severity(4), Severity(5)];

    pub fn new(severity: u8) -> Result<Self, NoSuchSeverity> {
        if (1..=5).contains(&severity) { Ok(Self(severity)) } else { Err(NoSuchSeverity(severity)) }
    }

    pub fn get(self) -> u8 {
        self.0
    }
}

impl TryFrom<u8> for Severity {
    type Error = NoSuchSeverity;

    fn try_from(severity: u8) -> Result<Self, NoSuchSeverity> {
        Self::new(severity)
    }
}

impl From<Severity> for u8 {
    fn from(severity: Severity) -> u8 {
        severity.0
    }
}

/// A published table of severity parameters, named after the image side it is meant for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Table {
    #[serde(rename = "224")]
    Px224,
    #[serde(rename = "299")]
    Px299,
    #[serde(rename = "64")]
    Px64,
    #[serde(rename = "32")]
    Px32,
}

impl Table {
    pub const ALL: [Table; 4] = [Table::Px224, Table::Px299, Table::Px64, Table::Px32];

    /// The image side that the table was published for, in pixels.
    pub fn side(self) -> usize {
        match self {
            Table::Px224 => 224,
            Table::Px299 => 299,
            Table::Px64 => 64,
            Table::Px32 => 32,
        }
    }

    /// The table published for images of this shape; other shapes need an explicit choice.
    pub fn for_shape(shape: Shape) -> Option<Self> {
        Self::ALL.into_iter().find(|t| shape.height == t.side() && shape.width == t.side())
    }
}

/// Whether a corrupted image may stand in the benchmark's own aggregates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    Official,
    /// Grey, or not of the size that the table was published for.
    UnofficialSize,
    /// Frost, but not with the published pictures.
    FrostProc,
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

/// Quality of the published JPEG files.
const SAVED_QUALITY: u32 = 85;
/// Shorter sides are extended to this length before the corruption, and cut again after it.
const SHORTEST_SIDE: usize = 32;

impl Recipe {
    pub fn standing(&self, shape: Shape, textures: &FrostTextures) -> Standing {
        if Table::for_shape(shape) != Some(self.table) || shape.channels != Channels::Rgb {
            Standing::UnofficialSize
        } else if self.corruption == Corruption::Frost && textures.origin() != FrostOrigin::Published {
            Standing::FrostProc
        } else {
            Standing::Official
        }
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_severities_are_read_back() {
        for corruption in Corruption::ALL {
            assert_eq!(Corruption::from_name(corruption.name()), Some(corruption));
            assert_eq!(serde_json::to_value(corruption).unwrap(), corruption.name());
        }
        assert_eq!(Corruption::from_name("rain"), None);
        assert_eq!(Severity::new(0), Err(NoSuchSeverity(0)));
        assert_eq!(serde_json::from_str::<Severity>("5").unwrap(), Severity::ALL[4]);
        assert!(serde_json::from_str::<Severity>("6").is_err());
    }

    #[test]
    fn only_colour_images_of_the_tables_side_are_official() {
        let recipe =
            Recipe { corruption: Corruption::Frost, severity: Severity::ALL[0], table: Table::Px32, saved: false };
        let textures = FrostTextures::procedural();
        let standing =
            |recipe: Recipe, side, channels| recipe.standing(Shape { height: side, width: side, channels }, &textures);
        assert_eq!(standing(recipe, 32, Channels::Rgb), Standing::FrostProc);
        let fog = Recipe { corruption: Corruption::Fog, ..recipe };
        assert_eq!(standing(fog, 32, Channels::Rgb), Standing::Official);
        assert_eq!(standing(fog, 32, Channels::Grey), Standing::UnofficialSize);
        assert_eq!(standing(fog, 28, Channels::Rgb), Standing::UnofficialSize);
        assert_eq!(standing(fog, 64, Channels::Rgb), Standing::UnofficialSize);
    }
}
