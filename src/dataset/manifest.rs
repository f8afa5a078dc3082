//! What is known about an imported dataset.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{ContentHash, Geometry, Shape};

/// An imported dataset.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Manifest {
    pub name: String,
    /// Identity: the same images and labels in the same order have the same hash, under any name.
    #[schema(value_type = String)]
    pub hash: ContentHash,
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
    /// How the pixels are split over objects in the store.
    pub images_per_shard: u64,
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

impl std::fmt::Display for Preset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Mnist => "mnist",
            Self::Cifar10 => "cifar10",
            Self::Cifar100 => "cifar100",
            Self::Imagenet => "imagenet",
        })
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
