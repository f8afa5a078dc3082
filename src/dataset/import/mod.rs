//! The importers, one file per format, and how a format is recognised.

mod array;
mod cifar;
mod folder;
mod idx;
mod images;
mod npy;
mod npz;
mod numbering;
mod safetensors;
mod synsets;

use std::io::Read;
use std::path::{Path, PathBuf};

use super::geometry::Picture;
use super::source::{Images, SourceOptions};
use super::{DatasetError, Importer, Preset, Shape};

use crate::protocol::Severity;

pub(crate) use array::ArrayImages;

/// What an importer found.
pub(crate) struct Found {
    pub importer: Importer,
    pub images: Box<dyn Images>,
    /// Shape of the first image before resize and crop; after them all images must agree, which the importer checks.
    pub shape: Shape,
    /// One per image.
    pub labels: Vec<u32>,
    /// Where the format fixes it.
    pub classes: Option<u32>,
    pub class_names: Option<Vec<String>>,
    pub preset: Option<Preset>,
    pub files: Files,
}

impl Found {
    /// The images of one severity, of five that lie one after the other.
    pub fn fifth(mut self, severity: Severity) -> Result<Self, String> {
        let images = self.labels.len();
        if images == 0 || !images.is_multiple_of(5) {
            return Err(format!("holds {images} images, which are not five severities of equally many"));
        }
        let (part, before) = (images / 5, usize::from(severity.get()) - 1);
        self.labels = self.labels[before * part..(before + 1) * part].to_vec();
        self.images = Box::new(Shifted { first: before * part, images: self.images });
        Ok(self)
    }
}

/// Images from some index on.
struct Shifted {
    first: usize,
    images: Box<dyn Images>,
}

impl Images for Shifted {
    fn image(&self, index: usize) -> Result<Picture, DatasetError> {
        self.images.image(self.first + index)
    }
}

/// The original files.
pub(crate) enum Files {
    Single(Vec<PathBuf>),
    /// Images relative to a folder, in dataset order.
    Folder {
        root: PathBuf,
        files: Vec<PathBuf>,
    },
}

/// Recognises the format by the file's first bytes, or by what the folder holds, and reads it.
pub(crate) fn find(path: &Path, options: &SourceOptions) -> Result<Found, DatasetError> {
    let meta = std::fs::metadata(path).map_err(DatasetError::io(path))?;
    if meta.is_dir() {
        return match (cifar::in_folder(path, options)?, idx::in_folder(path, options)?) {
            (Some(batches), _) => cifar::read(&batches, options),
            (None, Some(images)) => idx::read(&images, options),
            (None, None) => folder::read(path, options),
        };
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    if [".tar", ".tar.gz", ".tgz", ".tar.xz"].iter().any(|end| name.ends_with(end)) {
        return Err(DatasetError::file(path, "is an archive; unpack it and give the folder"));
    }
    let mut start = Vec::new();
    let file = std::fs::File::open(path).map_err(DatasetError::io(path))?;
    file.take(16).read_to_end(&mut start).map_err(DatasetError::io(path))?;
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    match start.as_slice() {
        [0x1f, 0x8b, ..] | [0, 0, 8..=14, 1..=4, ..] => idx::read(path, options),
        [b'P', b'K', 3, 4, ..] => npz::read(path, options),
        [0x93, b'N', b'U', b'M', b'P', b'Y', ..] => npy::read(path, options),
        [0xff, 0xd8, 0xff, ..] | [0x89, b'P', b'N', b'G', ..] => {
            Err(DatasetError::file(path, "is a single image; give the folder that holds the images"))
        }
        _ if extension == "safetensors" => safetensors::read(path, options),
        _ if extension == "bin" => cifar::read(&[path.to_owned()], options),
        _ => Err(DatasetError::file(
            path,
            "is of no known format; known are image folders (JPEG, PNG), MNIST idx, CIFAR binary, npz, npy and safetensors",
        )),
    }
}

/// For formats whose images and labels lie in known places.
fn refuse_labels(options: &SourceOptions, format: &str) -> Result<(), DatasetError> {
    match &options.labels {
        Some(_) => Err(DatasetError::option("labels", format!("{format} carries its labels; leave this out"))),
        None => Ok(()),
    }
}

fn check_count(path: &Path, images: usize, labels: usize) -> Result<(), DatasetError> {
    if images == labels {
        return Ok(());
    }
    Err(DatasetError::file(
        path,
        format!("holds {images} images but there are {labels} labels; the two belong to different sets"),
    ))
}
