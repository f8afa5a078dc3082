//! MNIST's idx format, plain or gzipped: big-endian magic (type, dimensions), sizes, bytes.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use super::npz::MAX_RATIO;
use super::{ArrayImages, Files, Found, check_count};
use crate::dataset::{DatasetError, Importer, Preset, Shape, SourceOptions, Split};

/// The images file of a folder that holds idx files.
pub(crate) fn in_folder(folder: &Path, options: &SourceOptions) -> Result<Option<PathBuf>, DatasetError> {
    let mut images = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(DatasetError::io(folder))? {
        let path = entry.map_err(DatasetError::io(folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.contains("images") && (name.ends_with("-ubyte") || name.ends_with("-ubyte.gz")) {
            images.push(path);
        }
    }
    images.sort();
    // A file may lie there both packed and unpacked.
    images.dedup_by(|packed, plain| packed.to_string_lossy().strip_suffix(".gz") == plain.to_str());
    let split = options.split.unwrap_or(Split::Test);
    let is_train = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().starts_with("train");
    match images.as_slice() {
        [] => Ok(None),
        [only] if options.split.is_none() => Ok(Some(only.clone())),
        _ => {
            images.retain(|path| is_train(path) == (split == Split::Train));
            match images.as_slice() {
                [one] => Ok(Some(one.clone())),
                [] => Err(DatasetError::file(folder, "holds no idx images of that split")),
                _ => Err(DatasetError::file(folder, "holds several idx image files; give the one to import")),
            }
        }
    }
}

pub(crate) fn read(path: &Path, options: &SourceOptions) -> Result<Found, DatasetError> {
    let label_path = match &options.labels {
        Some(labels) => labels.clone(),
        None => labels_of(path)?,
    };
    let (sides, labels) = load::<1>(&label_path, "labels")?;
    debug_assert_eq!(sides, [labels.len()]);
    let ([count, height, width], pixels) = load::<3>(path, "images")?;
    check_count(path, count, labels.len())?;
    let side = |side: usize| u32::try_from(side).ok().filter(|side| *side > 0);
    let (Some(height), Some(width)) = (side(height), side(width)) else {
        return Err(DatasetError::file(path, format!("images of {width}×{height} pixels")));
    };
    let labels: Vec<u32> = labels.into_iter().map(u32::from).collect();
    let shape = Shape { channels: 1, height, width };
    let is_mnist = (height, width) == (28, 28) && labels.iter().all(|label| *label < 10);
    Ok(Found {
        importer: Importer::Idx,
        images: Box::new(ArrayImages::planar(shape, pixels)),
        shape,
        labels,
        classes: is_mnist.then_some(10),
        class_names: None,
        preset: is_mnist.then_some(Preset::Mnist),
        files: Files::Single(vec![path.to_owned(), label_path]),
    })
}

/// `t10k-images-idx3-ubyte.gz` has its labels in `t10k-labels-idx1-ubyte[.gz]`.
fn labels_of(path: &Path) -> Result<PathBuf, DatasetError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let labels = name.replace("images", "labels").replace("idx3", "idx1");
    if *name == labels {
        return Err(DatasetError::file(
            path,
            "does not have \"images\" in its name; give the labels file with --labels",
        ));
    }
    let unpacked = labels.strip_suffix(".gz").unwrap_or(&labels).to_owned();
    let packed = format!("{unpacked}.gz");
    [labels.clone(), unpacked, packed]
        .into_iter()
        .map(|name| path.with_file_name(name))
        .find(|path| path.is_file())
        .ok_or_else(|| {
            DatasetError::file(path, format!("its labels, {labels}, do not lie beside it; give them with --labels"))
        })
}

/// The sizes and bytes of an idx file of `D` dimensions.
fn load<const D: usize>(path: &Path, what: &str) -> Result<([usize; D], Vec<u8>), DatasetError> {
    let fail = |problem: String| DatasetError::file(path, problem);
    let mut file = File::open(path).map_err(DatasetError::io(path))?;
    let on_disk = file.metadata().map_err(DatasetError::io(path))?.len();
    let mut magic = [0; 2];
    file.read_exact(&mut magic).map_err(|_| fail("is empty".into()))?;
    let file = File::open(path).map_err(DatasetError::io(path))?;
    let (mut reader, most): (Box<dyn Read>, u64) = if magic == [0x1f, 0x8b] {
        (Box::new(MultiGzDecoder::new(file)), on_disk.saturating_mul(MAX_RATIO))
    } else {
        (Box::new(file), on_disk)
    };
    let truncated = |error: std::io::Error| fail(format!("is truncated or damaged ({error})"));

    let mut magic = [0; 4];
    reader.read_exact(&mut magic).map_err(truncated)?;
    if magic != [0, 0, 8, D as u8] {
        let problem = match magic {
            [0, 0, 8, 1] => "holds idx labels, not images; give the images file".to_owned(),
            [0, 0, 8, 3] => "holds idx images, not labels; give the labels file".to_owned(),
            _ => format!("is not an idx file of 8-bit {what} (magic {})", hex::encode(magic)),
        };
        return Err(fail(problem));
    }
    let mut sides = [0; D];
    for side in &mut sides {
        let mut bytes = [0; 4];
        reader.read_exact(&mut bytes).map_err(truncated)?;
        *side = u32::from_be_bytes(bytes) as usize;
    }
    let expected =
        sides.iter().try_fold(1u64, |size, side| size.checked_mul(*side as u64)).filter(|size| *size <= most);
    let Some(expected) = expected else {
        return Err(fail(format!(
            "declares {sides:?} values, more than its {on_disk} bytes can hold; it is truncated or damaged"
        )));
    };
    let mut bytes = Vec::new();
    reader.take(expected + 1).read_to_end(&mut bytes).map_err(truncated)?;
    if bytes.len() as u64 != expected {
        let found = if bytes.len() as u64 > expected { "more".to_owned() } else { format!("only {}", bytes.len()) };
        return Err(fail(format!(
            "declares {sides:?}, {expected} bytes, but holds {found}; it is truncated or damaged"
        )));
    }
    Ok((sides, bytes))
}
