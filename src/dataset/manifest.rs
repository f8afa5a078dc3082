//! What is known about an imported dataset.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{ContentHash, Geometry, Part, Shape};
use crate::protocol::{Corruption, Pictures, Published as PublishedImages, Scene, Severity};

/// An imported dataset.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Manifest {
    pub name: String,
    /// Identity: the same images and labels in the same order have the same hash, under any name.
    #[schema(value_type = String)]
    pub hash: ContentHash,
    /// Of a published corrupted set: the images of each of its parts.
    pub images: u64,
    #[serde(flatten)]
    pub shape: Shape,
    pub classes: u32,
    /// One per class, where the source names them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_names: Option<Vec<String>>,
    /// Which default budgets apply.
    pub preset: Option<Preset>,
    pub origin: Origin,
    pub created_at: DateTime<Utc>,
    #[serde(flatten)]
    pub content: Content,
}

/// Where the pixels are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(untagged)]
pub enum Content {
    Published(PublishedSet),
    Images {
        /// How the pixels are split over objects in the store.
        images_per_shard: u64,
    },
}

/// Published corrupted images: each cell holds the same images in the same order with the same labels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PublishedSet {
    /// The images before they were corrupted, of a dataset imported earlier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clean: Option<Data>,
    pub cells: Vec<Cell>,
}

impl PublishedSet {
    /// The identity of a dataset of these parts.
    pub(crate) fn hash(&self) -> ContentHash {
        let cells = self.cells.iter().map(|cell| (cell.corruption, cell.severity, cell.data.hash));
        ContentHash::of_set(self.clean.map(|data| data.hash), cells)
    }
}

/// One corruption at one severity.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = PublishedCell)]
pub struct Cell {
    #[serde(rename = "type")]
    pub corruption: Corruption,
    pub severity: Severity,
    #[serde(flatten)]
    pub data: Data,
}

/// Images and labels in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = StoredImages)]
pub struct Data {
    /// As of a dataset of these images alone.
    #[schema(value_type = String)]
    pub hash: ContentHash,
    pub images_per_shard: u64,
}

impl Manifest {
    /// The clean images first, where there are any.
    pub fn parts(&self) -> impl Iterator<Item = (Part, Data)> + '_ {
        let (clean, cells) = match &self.content {
            Content::Images { images_per_shard } => {
                (Some(Data { hash: self.hash, images_per_shard: *images_per_shard }), &[][..])
            }
            Content::Published(set) => (set.clean, &set.cells[..]),
        };
        let clean = clean.map(|data| (Part::Clean, data));
        clean.into_iter().chain(cells.iter().map(|cell| (Part::Published(cell.corruption, cell.severity), cell.data)))
    }

    /// Where the images of a part are, if there is such a part.
    pub fn data(&self, part: Part) -> Option<Data> {
        self.parts().find(|(there, _)| *there == part).map(|(_, data)| data)
    }

    /// What the conditions of a protocol are resolved against, frost being drawn from these pictures.
    pub fn scene(&self, pictures: Pictures) -> Scene<'static> {
        let published = match &self.content {
            Content::Images { .. } => None,
            Content::Published(set) => Some(PublishedImages {
                clean: set.clean.is_some(),
                cells: set.cells.iter().map(|cell| (cell.corruption, cell.severity)).collect(),
            }),
        };
        Scene { preset: self.preset.map(Preset::name), images: self.shape.sides(), pictures, published }
    }
}

/// The well-known dataset whose default budgets apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    Mnist,
    Cifar10,
    Cifar100,
    Imagenet,
}

impl Preset {
    pub fn name(self) -> &'static str {
        match self {
            Self::Mnist => "mnist",
            Self::Cifar10 => "cifar10",
            Self::Cifar100 => "cifar100",
            Self::Imagenet => "imagenet",
        }
    }
}

impl std::fmt::Display for Preset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The format a dataset was read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Importer {
    ImageFolder,
    Idx,
    CifarBinary,
    Npz,
    Npy,
    Safetensors,
    /// Arrays handed over by a program.
    Memory,
}

/// Where a dataset came from and what was done to its images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Origin {
    pub importer: Importer,
    pub files: Vec<OriginFile>,
    #[serde(flatten)]
    pub geometry: Geometry,
}

/// One original file; an image folder counts as one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct OriginFile {
    /// Without its directory.
    pub name: String,
    pub bytes: u64,
    /// Of a file, its SHA-256. Of an image folder, the SHA-256 of what `sha256sum` prints for its images, in dataset
    /// order, with paths relative to the folder.
    pub sha256: String,
}
