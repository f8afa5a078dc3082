//! NumPy's `.npz`: a zip archive of `.npy` files.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use zip::ZipArchive;

use super::array::{Array, IMAGE_NAMES, LABEL_NAMES, found, pick};
use super::{Found, npy, refuse_labels};
use crate::dataset::{DatasetError, Importer, SourceOptions};

pub(crate) fn read(path: &Path, options: &SourceOptions) -> Result<Found, DatasetError> {
    refuse_labels(options, "npz")?;
    let file = File::open(path).map_err(DatasetError::io(path))?;
    let mut archive = ZipArchive::new(file)
        .map_err(|error| DatasetError::file(path, format!("is not a whole npz file ({error}); it may be truncated")))?;
    let names: Vec<String> =
        archive.file_names().filter_map(|name| name.strip_suffix(".npy")).map(str::to_owned).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let images = pick(path, &names, &IMAGE_NAMES, "images")?;
    let labels = pick(path, &names, &LABEL_NAMES, "labels")?;
    let labels = entry(path, &mut archive, labels)?;
    let images = entry(path, &mut archive, images)?;
    found(Importer::Npz, path, path, images, labels)
}

/// Deflate's best case: 258 bytes from two bits, about 1 : 1032.
pub(super) const MAX_RATIO: u64 = 1032;

fn entry(path: &Path, archive: &mut ZipArchive<File>, name: &str) -> Result<Array, DatasetError> {
    let fail = |problem: String| DatasetError::file(path, format!("array {name}: {problem}"));
    let entry = archive.by_name(&format!("{name}.npy")).map_err(|error| fail(error.to_string()))?;
    let size = entry.size();
    if size > entry.compressed_size().saturating_mul(MAX_RATIO).saturating_add(1024) {
        return Err(fail(format!(
            "claims {size} bytes, more than its {} compressed bytes can hold",
            entry.compressed_size()
        )));
    }
    // Grows with what is really there, and never past what the archive declares.
    let mut bytes = Vec::new();
    entry.take(size.saturating_add(1)).read_to_end(&mut bytes).map_err(|error| fail(error.to_string()))?;
    npy::parse(bytes).map_err(fail)
}
