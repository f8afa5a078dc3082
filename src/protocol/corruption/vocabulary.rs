//! The words of corruptions: types, groups, severities, tables of parameters.

use serde::{Deserialize, Serialize};

/// A type of corruption; names are the benchmark's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    Noise,
    Blur,
    Weather,
    Digital,
    /// The validation corruptions, in no mean of the benchmark.
    Extra,
}

impl Group {
    pub const ALL: [Group; 5] = [Group::Noise, Group::Blur, Group::Weather, Group::Digital, Group::Extra];

    pub fn name(self) -> &'static str {
        match self {
            Group::Noise => "noise",
            Group::Blur => "blur",
            Group::Weather => "weather",
            Group::Digital => "digital",
            Group::Extra => "extra",
        }
    }
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
}

/// 1 to 5.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(try_from = "u8", into = "u8")]
#[schema(value_type = u8, minimum = 1, maximum = 5)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = SeverityTable)]
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
}
