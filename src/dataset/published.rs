//! Published corrupted sets: ImageNet-C's tree `type/severity/wnid/*.JPEG` and CIFAR-10-C's `type.npy` beside `labels.npy`.

use std::path::{Path, PathBuf};

use super::{ContentHash, DatasetError, Origin, OriginFile, Progress, Source, SourceOptions};
use crate::protocol::{Corruption, Severity};

/// One corruption at one severity of a published set, where it lies.
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

/// A published set where it lies. Its cells are opened one at a time: arrays are large.
pub struct PublishedFiles {
    cells: Vec<PublishedCell>,
    /// The first cell, to which all others are held.
    first: Source,
}

impl PublishedFiles {
    /// Opens the first of these cells, of which there must be one.
    pub fn new(cells: Vec<PublishedCell>) -> Result<Self, DatasetError> {
        let first = cells.first().ok_or_else(|| DatasetError::option("dataset", "there are no published images"))?;
        let first = Source::open(&first.path, &first.options)?;
        Ok(Self { cells, first })
    }

    pub fn cells(&self) -> impl Iterator<Item = (Corruption, Severity)> + '_ {
        self.cells.iter().map(|cell| (cell.corruption, cell.severity))
    }

    /// The first cell: what it says of shape, labels and classes holds of all.
    pub fn first(&self) -> &Source {
        &self.first
    }

    /// Opens a cell. The error names it if it is not there, or its images cannot be those of the first one.
    pub fn open(&self, corruption: Corruption, severity: Severity) -> Result<Source, DatasetError> {
        let is_it = |cell: &&PublishedCell| (cell.corruption, cell.severity) == (corruption, severity);
        let cell = self.cells.iter().find(is_it).ok_or_else(|| {
            let problem = format!("there are no published images of {} at {}", corruption.name(), severity.get());
            DatasetError::option("dataset", problem)
        })?;
        let source = Source::open(&cell.path, &cell.options)?;
        let alike = |source: &Source| (source.shape(), source.classes(), source.len());
        if alike(&source) == alike(&self.first) && source.labels() == self.first.labels() {
            return Ok(source);
        }
        let first = &self.cells[0];
        let problem = format!(
            "holds {} images of {} in {} classes, {}-{} holds {} of {} in {}, or their labels differ: the cells of a published \
             set are the same images; is something missing?",
            source.len(),
            source.shape(),
            source.classes(),
            first.corruption.name(),
            first.severity.get(),
            self.first.len(),
            self.first.shape(),
            self.first.classes()
        );
        Err(DatasetError::file(&cell.path, problem))
    }

    /// Decodes everything once, for the content hash of the set without clean images.
    pub fn hash(&self, progress: &Progress) -> Result<ContentHash, DatasetError> {
        let hash =
            |(corruption, severity)| Ok((corruption, severity, self.open(corruption, severity)?.hash(progress)?));
        let cells = self.cells().map(hash).collect::<Result<Vec<_>, DatasetError>>()?;
        Ok(ContentHash::of_set(None, cells))
    }

    /// The origin of the whole, given those of its cells in order.
    pub(super) fn origin(&self, cells: Vec<Origin>) -> Origin {
        let (importer, geometry) = (cells[0].importer, cells[0].geometry);
        let mut files: Vec<OriginFile> = Vec::new();
        for (cell, origin) in self.cells.iter().zip(cells) {
            let folder = cell.path.is_dir().then(|| format!("{}/{}/", cell.corruption.name(), cell.severity.get()));
            for file in origin.files {
                let file = OriginFile { name: folder.clone().unwrap_or(file.name), ..file };
                // The severities of an array are one file, and all arrays share their labels.
                if !files.contains(&file) {
                    files.push(file);
                }
            }
        }
        Origin { importer, files, geometry }
    }
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
