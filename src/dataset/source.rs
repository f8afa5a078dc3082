//! A dataset where it lies, decoded on demand.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::geometry::Picture;
use super::hash::Hasher;
use super::import::{self, Found};
use super::{Batch, ContentHash, DatasetError, Geometry, Importer, Origin, OriginFile, Preset, Resize, Shape};
use crate::protocol::{ModelSpec, Severity};

/// How to read a source. The default reads what is there, as it is.
#[derive(Debug, Clone, Default)]
pub struct SourceOptions {
    /// Where the labels are: a CSV of `file,label` for an image folder, an idx file for idx images, a `.npy` file for a
    /// `.npy` array.
    pub labels: Option<PathBuf>,
    /// The number of classes, where the labels do not reach the last one.
    pub classes: Option<u32>,
    /// Which part of a folder that holds both; the test part if nothing is said.
    pub split: Option<Split>,
    /// Converts every image; an image folder otherwise becomes grey if all its images are, else RGB.
    pub channels: Option<Channels>,
    pub geometry: Geometry,
    /// Of arrays that hold five severities one after the other, as CIFAR-10-C's do: the part of this one.
    pub fifth: Option<Severity>,
}

/// A part of a published dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Split {
    Test,
    Train,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Channels {
    Grey,
    Rgb,
}

impl Channels {
    pub(crate) fn count(self) -> usize {
        match self {
            Self::Grey => 1,
            Self::Rgb => 3,
        }
    }
}

/// Called with the number of images just decoded, from any thread.
pub type Progress = Arc<dyn Fn(u64) + Send + Sync>;

/// Undecoded images, each obtainable on its own.
pub(crate) trait Images: Send + Sync {
    fn image(&self, index: usize) -> Result<Picture, DatasetError>;
}

/// A dataset where it lies: labels known and checked, pixels decoded on demand.
pub struct Source {
    shape: Shape,
    labels: Vec<u32>,
    classes: u32,
    class_names: Option<Vec<String>>,
    preset: Option<Preset>,
    geometry: Geometry,
    importer: Importer,
    /// What the origin lists.
    files: import::Files,
    images: Box<dyn Images>,
}

impl Source {
    /// Recognises the format at `path`, a file or a folder, and reads what is needed to know every image's shape and label.
    pub fn open(path: &Path, options: &SourceOptions) -> Result<Self, DatasetError> {
        check_options(options)?;
        let found = import::find(path, options)?;
        let found = match options.fifth {
            None => found,
            Some(severity) => found.fifth(severity).map_err(|problem| DatasetError::file(path, problem))?,
        };
        Self::from_found(path, found, options)
    }

    /// Arrays of a program: pixels [n, channels, height, width] and n labels below `classes`.
    pub fn in_memory(shape: Shape, classes: u32, pixels: Vec<u8>, labels: Vec<u32>) -> Result<Self, DatasetError> {
        let problem = match (matches!(shape.channels, 1 | 3), shape.bytes()) {
            (false, _) => Some(format!("channels must be 1 or 3, not {}", shape.channels)),
            (true, 0) => Some("images have no pixels".to_owned()),
            (true, image) if pixels.len() != labels.len() * image => {
                Some(format!("{} bytes do not make {} images of {shape}", pixels.len(), labels.len()))
            }
            _ => None,
        };
        if let Some(problem) = problem {
            return Err(DatasetError::option("pixels", problem));
        }
        let found = Found {
            importer: Importer::Memory,
            images: Box::new(import::ArrayImages::planar(shape, pixels)),
            shape,
            labels,
            classes: Some(classes),
            class_names: None,
            preset: None,
            files: import::Files::Single(Vec::new()),
        };
        Self::from_found(Path::new("arrays"), found, &SourceOptions::default())
    }

    fn from_found(path: &Path, found: Found, options: &SourceOptions) -> Result<Self, DatasetError> {
        let classes = check_labels(path, &found, options)?;
        let from = (found.shape.height as usize, found.shape.width as usize);
        let (height, width) = options
            .geometry
            .output(from)
            .map_err(|problem| DatasetError::file(path, format!("an image {problem}; choose a smaller crop")))?;
        let shape = Shape {
            channels: options.channels.map_or(found.shape.channels, |c| c.count() as u32),
            height: height as u32,
            width: width as u32,
        };
        let limit = ModelSpec::MAX_SIDE;
        if shape.height > limit || shape.width > limit {
            return Err(DatasetError::file(
                path,
                format!("images of {shape} are larger than {limit} pixels a side; resize them"),
            ));
        }
        Ok(Self {
            shape,
            labels: found.labels,
            classes,
            class_names: found.class_names.filter(|names| names.len() == classes as usize),
            preset: found.preset,
            geometry: options.geometry,
            importer: found.importer,
            files: found.files,
            images: found.images,
        })
    }

    /// Number of images, at least 1.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Never true: a source holds at least one image.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The shape of every image after resize and crop.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    pub fn classes(&self) -> u32 {
        self.classes
    }

    /// One per class, where the source names them.
    pub fn class_names(&self) -> Option<&[String]> {
        self.class_names.as_deref()
    }

    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// The preset that the format itself implies.
    pub fn preset(&self) -> Option<Preset> {
        self.preset
    }

    /// Decodes the images in `range` on all processors.
    ///
    /// Errors name the first image that cannot be read.
    pub fn read(&self, range: Range<usize>, progress: &Progress) -> Result<Batch, DatasetError> {
        if range.start > range.end || range.end > self.len() {
            return Err(DatasetError::Range { start: range.start, end: range.end, images: self.len() });
        }
        let bytes = self.shape.bytes();
        let mut pixels = vec![0; range.len() * bytes];
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let share = range.len().div_ceil(threads).max(1);
        std::thread::scope(|scope| {
            let workers: Vec<_> = pixels
                .chunks_mut(share * bytes)
                .enumerate()
                .map(|(worker, out)| {
                    let first = range.start + worker * share;
                    scope.spawn(move || -> Result<(), DatasetError> {
                        for (offset, out) in out.chunks_exact_mut(bytes).enumerate() {
                            self.decode(first + offset, out)?;
                            progress(1);
                        }
                        Ok(())
                    })
                })
                .collect();
            // In order, so that the error reported is that of the first bad image.
            workers
                .into_iter()
                .try_for_each(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })?;
        Ok(Batch { first: range.start, shape: self.shape, pixels, labels: self.labels[range].to_vec() })
    }

    fn decode(&self, index: usize, out: &mut [u8]) -> Result<(), DatasetError> {
        let picture = self.images.image(index)?.with_channels(self.shape.channels as usize);
        self.geometry.apply(picture).write_planar(out);
        Ok(())
    }

    /// Decodes everything once, a bounded piece at a time, for the content hash.
    pub fn hash(&self, progress: &Progress) -> Result<ContentHash, DatasetError> {
        let mut hasher = self.hasher();
        let step = ((64 << 20) / self.shape.bytes()).max(1);
        for start in (0..self.len()).step_by(step) {
            hasher.pixels(&self.read(start..(start + step).min(self.len()), progress)?.pixels);
        }
        Ok(hasher.finish(&self.labels))
    }

    pub(crate) fn hasher(&self) -> Hasher {
        Hasher::new(self.len(), self.shape, self.classes)
    }

    /// Reads every original file once more, for its hash.
    pub fn origin(&self) -> Result<Origin, DatasetError> {
        let files = match &self.files {
            import::Files::Single(paths) => paths.iter().map(|path| origin_file(path)).collect::<Result<_, _>>()?,
            import::Files::Folder { root, files } => vec![origin_folder(root, files)?],
        };
        Ok(Origin { importer: self.importer, files, geometry: self.geometry })
    }
}

fn check_options(options: &SourceOptions) -> Result<(), DatasetError> {
    let side = |option, side: u32| match side {
        1..=ModelSpec::MAX_SIDE => Ok(()),
        _ => Err(DatasetError::option(option, format!("must be 1 to {} pixels, not {side}", ModelSpec::MAX_SIDE))),
    };
    match options.geometry.resize {
        Some(Resize::ShortSide(length)) => side("resize", length)?,
        Some(Resize::Square(length)) => side("size", length)?,
        None => {}
    }
    if let Some(crop) = options.geometry.crop {
        side("crop", crop)?;
    }
    match options.classes {
        Some(classes) if !(2..=ModelSpec::MAX_CLASSES).contains(&classes) => {
            Err(DatasetError::option("classes", format!("must be 2 to {}, not {classes}", ModelSpec::MAX_CLASSES)))
        }
        _ => Ok(()),
    }
}

/// The number of classes: as the user says, as the format says, else one more than the largest label.
fn check_labels(path: &Path, found: &Found, options: &SourceOptions) -> Result<u32, DatasetError> {
    let Some(largest) = found.labels.iter().copied().max() else {
        return Err(DatasetError::file(path, "holds no images"));
    };
    let classes = options.classes.or(found.classes).unwrap_or((largest.saturating_add(1)).max(2));
    if let Some(index) = found.labels.iter().position(|label| *label >= classes) {
        let label = found.labels[index];
        return Err(DatasetError::file(
            path,
            format!(
                "label {label} of image {index} is out of range: with {classes} classes labels are 0 to {}",
                classes - 1
            ),
        ));
    }
    if classes > ModelSpec::MAX_CLASSES {
        return Err(DatasetError::file(path, format!("label {largest} is too large to be a class")));
    }
    Ok(classes)
}

fn origin_file(path: &Path) -> Result<OriginFile, DatasetError> {
    let (bytes, sha256) = digest(path)?;
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    Ok(OriginFile { name, bytes, sha256 })
}

fn origin_folder(root: &Path, files: &[PathBuf]) -> Result<OriginFile, DatasetError> {
    let mut listing = Sha256::new();
    let mut total = 0;
    for file in files {
        let (bytes, sha256) = digest(&root.join(file))?;
        listing.update(format!("{sha256}  {}\n", file.display()));
        total += bytes;
    }
    let name = root.canonicalize().map_err(DatasetError::io(root))?;
    let name = name.file_name().unwrap_or(root.as_os_str()).to_string_lossy();
    Ok(OriginFile { name: format!("{name}/"), bytes: total, sha256: hex::encode(listing.finalize()) })
}

fn digest(path: &Path) -> Result<(u64, String), DatasetError> {
    let mut hasher = Sha256::new();
    let mut file = std::fs::File::open(path).map_err(DatasetError::io(path))?;
    let bytes = std::io::copy(&mut file, &mut hasher).map_err(DatasetError::io(path))?;
    Ok((bytes, hex::encode(hasher.finalize())))
}
