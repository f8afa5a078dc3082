//! Published corrupted sets: ImageNet-C's tree `type/severity/wnid/*.JPEG` and CIFAR-10-C's `type.npy` beside `labels.npy`.

use std::path::{Path, PathBuf};

use super::{DatasetError, SourceOptions};
use crate::protocol::{Corruption, Severity};

/// One corruption at one severity of a published set: a dataset of its own.
#[derive(Debug, Clone)]
pub struct PublishedCell {
    pub corruption: Corruption,
    pub severity: Severity,
    pub path: PathBuf,
    pub options: SourceOptions,
}

/// The cells of the published set at `path`, or of a part of it (one type's folder, one severity's, one type's file); none
/// where this is no such set. Published pixels were resized before they were corrupted, so they may be cropped and nothing
/// else.
pub fn published_cells(path: &Path, options: &SourceOptions) -> Result<Vec<PublishedCell>, DatasetError> {
    let cells = if path.is_dir() { tree(path, options) } else { array(path, options) };
    if !cells.is_empty() && options.geometry.resize.is_some() {
        let problem = "published corrupted images were resized before they were corrupted; a second resize would change \
                       the benchmark: give --crop alone";
        return Err(DatasetError::option("resize", problem));
    }
    Ok(cells)
}

fn tree(path: &Path, options: &SourceOptions) -> Vec<PublishedCell> {
    let cell = |corruption, severity: Severity, path: PathBuf| {
        path.is_dir().then(|| PublishedCell { corruption, severity, path, options: options.clone() })
    };
    let severities = |corruption, folder: &Path| -> Vec<PublishedCell> {
        let of = |s: Severity| cell(corruption, s, folder.join(s.get().to_string()));
        Severity::ALL.into_iter().filter_map(of).collect()
    };
    if let Some(corruption) = named(path) {
        return severities(corruption, path);
    }
    if let (Some(corruption), Some(severity)) = (path.parent().and_then(named), severity(path)) {
        return cell(corruption, severity, path.to_owned()).into_iter().collect();
    }
    let of = |corruption: Corruption| {
        let file = path.join(format!("{}.npy", corruption.name()));
        let mut cells = severities(corruption, &path.join(corruption.name()));
        if file.is_file() {
            cells.extend(array(&file, options));
        }
        cells
    };
    Corruption::ALL.into_iter().flat_map(of).collect()
}

/// Five severities, one after the other, in one file.
fn array(path: &Path, options: &SourceOptions) -> Vec<PublishedCell> {
    let labels = path.with_file_name("labels.npy");
    let of_a_type = path.extension().is_some_and(|e| e == "npy").then(|| named(&path.with_extension(""))).flatten();
    let Some(corruption) = of_a_type.filter(|_| options.labels.is_some() || labels.is_file()) else {
        return Vec::new();
    };
    let cell = |severity: Severity| PublishedCell {
        corruption,
        severity,
        path: path.to_owned(),
        options: SourceOptions {
            labels: Some(options.labels.clone().unwrap_or_else(|| labels.clone())),
            fifth: Some(severity),
            ..options.clone()
        },
    };
    Severity::ALL.map(cell).to_vec()
}

fn named(path: &Path) -> Option<Corruption> {
    Corruption::from_name(path.file_name()?.to_str()?)
}

fn severity(path: &Path) -> Option<Severity> {
    Severity::new(path.file_name()?.to_str()?.parse().ok()?).ok()
}
