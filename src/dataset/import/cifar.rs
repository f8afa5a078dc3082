//! CIFAR-10 and CIFAR-100 binary batches: records of one label byte (CIFAR-100: coarse, then fine) and 3×32×32 pixels.

use std::path::{Path, PathBuf};

use super::{ArrayImages, Files, Found, refuse_labels};
use crate::dataset::{DatasetError, Importer, Preset, Shape, SourceOptions, Split};

const SHAPE: Shape = Shape { channels: 3, height: 32, width: 32 };
const PIXELS: usize = 3 * 32 * 32;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Cifar10,
    Cifar100,
}

impl Kind {
    fn label_bytes(self) -> usize {
        match self {
            Self::Cifar10 => 1,
            Self::Cifar100 => 2,
        }
    }

    fn record(self) -> usize {
        self.label_bytes() + PIXELS
    }

    fn classes(self) -> u32 {
        match self {
            Self::Cifar10 => 10,
            Self::Cifar100 => 100,
        }
    }

    fn names_file(self) -> &'static str {
        match self {
            Self::Cifar10 => "batches.meta.txt",
            Self::Cifar100 => "fine_label_names.txt",
        }
    }
}

/// The batches of one split of a folder as it is distributed, in order.
pub(crate) fn in_folder(folder: &Path, options: &SourceOptions) -> Result<Option<Vec<PathBuf>>, DatasetError> {
    let present = |names: &[&str]| -> Vec<PathBuf> {
        names.iter().map(|name| folder.join(name)).filter(|path| path.is_file()).collect()
    };
    let test = present(&["test_batch.bin", "test.bin"]);
    let train = present(&[
        "data_batch_1.bin",
        "data_batch_2.bin",
        "data_batch_3.bin",
        "data_batch_4.bin",
        "data_batch_5.bin",
        "train.bin",
    ]);
    if test.is_empty() && train.is_empty() {
        return Ok(None);
    }
    let batches = match options.split {
        Some(Split::Train) => train,
        Some(Split::Test) => test,
        None if test.is_empty() => train,
        None => test,
    };
    if batches.is_empty() {
        return Err(DatasetError::file(folder, "holds no CIFAR batches of that split"));
    }
    Ok(Some(batches))
}

/// `batches` must not be empty.
pub(crate) fn read(batches: &[PathBuf], options: &SourceOptions) -> Result<Found, DatasetError> {
    refuse_labels(options, "CIFAR's binary format")?;
    let kind = kind(&batches[0], options)?;
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    for path in batches {
        let bytes = std::fs::read(path).map_err(DatasetError::io(path))?;
        if bytes.is_empty() || bytes.len() % kind.record() != 0 {
            let problem =
                format!("has {} bytes, not a multiple of {}; it is truncated or damaged", bytes.len(), kind.record());
            return Err(DatasetError::file(path, problem));
        }
        for (index, record) in bytes.chunks_exact(kind.record()).enumerate() {
            let (label, image) = record.split_at(kind.label_bytes());
            let label = u32::from(label[kind.label_bytes() - 1]);
            if label >= kind.classes() {
                let problem = format!("record {index} has label {label}, but there are {} classes", kind.classes());
                return Err(DatasetError::file(path, problem));
            }
            labels.push(label);
            pixels.extend_from_slice(image);
        }
    }
    let folder = batches[0].parent().unwrap_or(Path::new("."));
    Ok(Found {
        importer: Importer::CifarBinary,
        images: Box::new(ArrayImages::planar(SHAPE, pixels)),
        shape: SHAPE,
        labels,
        classes: Some(kind.classes()),
        class_names: class_names(&folder.join(kind.names_file()), kind),
        preset: Some(if kind == Kind::Cifar10 { Preset::Cifar10 } else { Preset::Cifar100 }),
        files: Files::Single(batches.to_vec()),
    })
}

/// By the name as distributed, by the class count the user gives, else by the record length that divides the file.
fn kind(path: &Path, options: &SourceOptions) -> Result<Kind, DatasetError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if name.starts_with("data_batch") || name.starts_with("test_batch") {
        return Ok(Kind::Cifar10);
    }
    if matches!(&*name, "test.bin" | "train.bin") {
        return Ok(Kind::Cifar100);
    }
    let bytes = std::fs::metadata(path).map_err(DatasetError::io(path))?.len() as usize;
    let fits = |kind: Kind| bytes > 0 && bytes.is_multiple_of(kind.record());
    match (options.classes, fits(Kind::Cifar10), fits(Kind::Cifar100)) {
        (Some(10), true, _) | (None, true, false) => Ok(Kind::Cifar10),
        (Some(100), _, true) | (None, false, true) => Ok(Kind::Cifar100),
        (None, true, true) => {
            Err(DatasetError::file(path, "may be CIFAR-10 or CIFAR-100; say which with --classes 10 or 100"))
        }
        _ => Err(DatasetError::file(
            path,
            format!(
                "has {bytes} bytes, not a whole number of CIFAR-10 (3073) or CIFAR-100 (3074) records; it is truncated or of another format"
            ),
        )),
    }
}

/// Present in the distributed folders; without them classes go unnamed.
fn class_names(path: &Path, kind: Kind) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(path).ok()?;
    let names: Vec<String> = text.lines().map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
    (names.len() == kind.classes() as usize).then_some(names)
}
