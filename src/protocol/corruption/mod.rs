//! Corruptions as conditions of a table.

mod block;
mod published;
mod summary;
mod vocabulary;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use block::{CorruptionBlock, ModeChoice, OneOrMany, TableChoice};
#[cfg(test)]
pub(super) use published::alexnet;
pub use summary::{Corruptions, GroupMean, TypeMean};
pub(super) use summary::{even, figures};
pub use vocabulary::{Corruption, Group, NoSuchSeverity, Severity, Table};

/// One corruption at one severity, every parameter resolved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CorruptionCondition {
    #[serde(rename = "type")]
    pub corruption: Corruption,
    pub severity: Severity,
    /// The published parameters in use, named after the image side they are meant for.
    pub table: Table,
    pub mode: Mode,
    /// The pictures that frost is computed from; other types, and published images, have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pictures: Option<Pictures>,
    /// What keeps the condition out of official aggregates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<Label>,
}

/// Whether corrupted pixels reach the model as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    #[default]
    InMemory,
    /// After the loss of a JPEG file of quality 85 (4:2:0), as in the published ImageNet-C files.
    Saved,
    /// Read from published files that were imported as part of the dataset; nothing is computed.
    Published,
}

/// Which frost pictures a condition draws from. They differ, so they are part of the condition's identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Pictures {
    /// Those of the original package, known by their checksums.
    Published,
    /// Others, by the SHA-256 over the hexadecimal SHA-256s of the five files.
    Custom(String),
    /// Computed, for want of pictures.
    Procedural,
}

/// Why a corrupted condition is not the published benchmark's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Label {
    /// Grey images, or not of the size that the table was published for.
    UnofficialSize,
    /// The table was published for another dataset: ImageNet (224, 299) or CIFAR (32).
    OtherDataset,
    /// Frost from the procedural stand-in.
    FrostProc,
    /// Frost from pictures that are not the published ones.
    FrostCustom,
}

/// What the conditions of a protocol are resolved against.
#[derive(Debug, Clone, PartialEq)]
pub struct Scene<'a> {
    pub preset: Option<&'a str>,
    /// [channels, height, width]
    pub images: [u32; 3],
    pub pictures: Pictures,
    /// Of a published corrupted set, what it holds; any other dataset holds clean images.
    pub published: Option<Published>,
}

/// What a published corrupted set holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Published {
    /// Also the images before they were corrupted.
    pub clean: bool,
    pub cells: Vec<(Corruption, Severity)>,
}

impl<'a> Scene<'a> {
    /// Clean images of [channels, height, width].
    pub fn new(preset: Option<&'a str>, images: [u32; 3], pictures: Pictures) -> Self {
        Self { preset, images, pictures, published: None }
    }

    pub(super) fn has_clean_images(&self) -> bool {
        self.published.as_ref().is_none_or(|published| published.clean)
    }

    /// Images as the dataset behind the preset has them; `None` for a preset of no known size.
    pub fn of_preset(preset: &'a str) -> Option<Self> {
        let images = match preset {
            "imagenet" => [3, 224, 224],
            "cifar10" | "cifar100" => [3, 32, 32],
            "mnist" => [1, 28, 28],
            _ => return None,
        };
        Some(Self::new(Some(preset), images, Pictures::Procedural))
    }

    /// The table published for this size, else the preset's own.
    fn table(&self) -> Option<Table> {
        let [_, height, width] = self.images.map(|side| side as usize);
        let of_size = Table::ALL.into_iter().find(|table| height == table.side() && width == table.side());
        of_size.or(match self.preset {
            Some("imagenet") => Some(Table::Px224),
            Some("cifar10" | "cifar100" | "mnist") => Some(Table::Px32),
            _ => None,
        })
    }

    fn labels(&self, table: Table, pictures: Option<&Pictures>) -> Vec<Label> {
        let side = table.side() as u32;
        let published = match table {
            Table::Px224 | Table::Px299 => self.preset == Some("imagenet"),
            Table::Px32 => matches!(self.preset, Some("cifar10" | "cifar100")),
            Table::Px64 => true,
        };
        let size = if self.images != [3, side, side] {
            Some(Label::UnofficialSize)
        } else {
            (!published).then_some(Label::OtherDataset)
        };
        let frost = match pictures {
            None | Some(Pictures::Published) => None,
            Some(Pictures::Custom(_)) => Some(Label::FrostCustom),
            Some(Pictures::Procedural) => Some(Label::FrostProc),
        };
        size.into_iter().chain(frost).collect()
    }
}

impl CorruptionCondition {
    /// The condition's share of every random key: the same for both modes and whatever pictures, so that these differ in
    /// nothing but themselves.
    pub fn random_key(&self) -> u64 {
        let text = format!("corruption {} {} {}", self.corruption.name(), self.severity.get(), self.table.side());
        let digest = Sha256::digest(text.as_bytes());
        u64::from_le_bytes(digest[..8].try_into().expect("a digest has 32 bytes"))
    }
}
