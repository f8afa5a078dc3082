//! Datasets: read from the formats people have, stored decoded, named by their content.
//!
//! A [`Source`] is a dataset where it lies: an image folder, MNIST's idx files, CIFAR's binary batches, npz / npy or
//! safetensors arrays. It decodes any range of images on demand. The [`Catalogue`] keeps imported datasets in the
//! artifact store as uint8 shards, so that nothing is decoded in the hot path and everyone evaluates identical pixels.
//! Images are uint8 [channels, height, width]; channels are 1 (grey) or 3 (RGB). A dataset is a list of images, or a published
//! corrupted set: the same images once per type and severity, and perhaps clean.

mod batch;
mod catalogue;
mod error;
mod geometry;
mod hash;
mod import;
mod manifest;
mod part;
mod published;
pub mod resample;
mod source;

pub use batch::{Batch, Shape};
pub use catalogue::{Catalogue, ImportOptions};
pub use error::DatasetError;
pub use geometry::{Geometry, Resize};
pub use hash::ContentHash;
pub use manifest::{Cell, Content, Data, Importer, Manifest, Origin, OriginFile, Preset, PublishedSet};
pub use part::Part;
pub use published::{PublishedCell, PublishedFiles, published_cells};
pub use source::{Channels, Progress, Source, SourceOptions, Split};
