//! A folder of JPEG and PNG images: one sub-folder per class, or flat with WordNet ids in the names or a labels file.

use std::path::{Path, PathBuf};

use super::images::{self, ImageFiles};
use super::numbering::number;
use super::{Files, Found, synsets};
use crate::dataset::{DatasetError, Importer, Preset, Shape, SourceOptions};

/// Files in dataset order, and their labels.
struct Listing {
    files: Vec<PathBuf>,
    labels: Vec<u32>,
    classes: Option<u32>,
    class_names: Option<Vec<String>>,
    preset: Option<Preset>,
}

pub(crate) fn read(root: &Path, options: &SourceOptions) -> Result<Found, DatasetError> {
    let listing = match &options.labels {
        Some(labels) => by_labels_file(root, labels, options.classes)?,
        None => by_names(root, options.classes)?,
    };
    let shape = agree(root, &listing.files, options)?;
    Ok(Found {
        importer: Importer::ImageFolder,
        images: Box::new(ImageFiles { root: root.to_owned(), files: listing.files.clone() }),
        shape,
        labels: listing.labels,
        classes: listing.classes,
        class_names: listing.class_names,
        preset: listing.preset,
        files: Files::Folder { root: root.to_owned(), files: listing.files },
    })
}

fn by_names(root: &Path, classes: Option<u32>) -> Result<Listing, DatasetError> {
    let (flat, folders) = entries(root)?;
    let mut files = Vec::new();
    let mut class_of_image = Vec::new();
    match (flat.is_empty(), folders.is_empty()) {
        (true, true) => return Err(DatasetError::file(root, "holds no JPEG or PNG images")),
        (false, false) => {
            let problem =
                format!("holds both images ({}) and folders; move the images into class folders", flat[0].display());
            return Err(DatasetError::file(root, problem));
        }
        (true, false) => {
            for folder in folders {
                let images = walk(&root.join(&folder), &folder, 0)?;
                if images.is_empty() {
                    return Err(DatasetError::file(
                        root.join(folder),
                        "is a class folder without JPEG or PNG images; fill or remove it",
                    ));
                }
                class_of_image.extend(std::iter::repeat_n(folder.to_string_lossy().into_owned(), images.len()));
                files.extend(images);
            }
        }
        (false, true) => {
            for file in flat {
                let Some(id) = file.to_str().and_then(synsets::id_in).map(str::to_owned) else {
                    return Err(DatasetError::file(
                        root.join(file),
                        "does not say its class: make one folder per class, begin names with a WordNet id (n01514668_…), or give --labels FILE",
                    ));
                };
                class_of_image.push(id);
                files.push(file);
            }
        }
    }
    let numbering = number(&class_of_image, classes).map_err(|problem| DatasetError::file(root, problem))?;
    Ok(Listing {
        files,
        labels: numbering.labels,
        classes: Some(numbering.classes),
        class_names: Some(numbering.names),
        preset: numbering.preset,
    })
}

/// A CSV of `file,label`, with or without that header: which images, in which order, and their class numbers or names.
fn by_labels_file(root: &Path, path: &Path, classes: Option<u32>) -> Result<Listing, DatasetError> {
    let fail = |line: u64, problem: String| DatasetError::file(path, format!("line {line}: {problem}"));
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .trim(csv::Trim::All)
        .flexible(true)
        .from_path(path)
        .map_err(|error| DatasetError::file(path, error.to_string()))?;
    let (mut files, mut values) = (Vec::new(), Vec::new());
    for (index, row) in reader.records().enumerate() {
        let row = row.map_err(|error| DatasetError::file(path, error.to_string()))?;
        let line = row.position().map_or(0, csv::Position::line);
        let (Some(file), Some(label), 2) = (row.get(0), row.get(1), row.len()) else {
            return Err(fail(line, "needs two fields, file and label".into()));
        };
        if index == 0 && label.eq_ignore_ascii_case("label") {
            continue;
        }
        if !root.join(file).is_file() {
            return Err(fail(line, format!("{file} is not in {}", root.display())));
        }
        files.push(PathBuf::from(file));
        values.push((line, label.to_owned()));
    }
    let numbers: Vec<Option<u32>> = values.iter().map(|(_, value)| value.parse().ok()).collect();
    if numbers.iter().all(Option::is_none) && !values.is_empty() {
        let names: Vec<String> = values.into_iter().map(|(_, value)| value).collect();
        let numbering = number(&names, classes).map_err(|problem| DatasetError::file(path, problem))?;
        return Ok(Listing {
            files,
            labels: numbering.labels,
            classes: Some(numbering.classes),
            class_names: Some(numbering.names),
            preset: numbering.preset,
        });
    }
    let labels = numbers
        .into_iter()
        .zip(&values)
        .map(|(number, (line, value))| {
            number.ok_or_else(|| fail(*line, format!("{value:?} is not a class number, but other labels are")))
        })
        .collect::<Result<_, _>>()?;
    Ok(Listing { files, labels, classes: None, class_names: None, preset: None })
}

/// The shape of the first image; all must agree with it after resize and crop.
fn agree(root: &Path, files: &[PathBuf], options: &SourceOptions) -> Result<Shape, DatasetError> {
    let sizes = sizes(root, files)?;
    let mut first = None;
    for (file, (_, height, width)) in files.iter().zip(&sizes) {
        let fail = |problem: String| DatasetError::file(root.join(file), problem);
        let output = options
            .geometry
            .output((*height, *width))
            .map_err(|problem| fail(format!("{problem}; add --resize or choose a smaller --crop")))?;
        let (first_file, expected) = *first.get_or_insert((file, output));
        if output != expected {
            return Err(fail(format!(
                "is {}×{} pixels where {} is {}×{}; bring all to one size with --resize 256 --crop 224 or --size 32",
                output.1,
                output.0,
                first_file.display(),
                expected.1,
                expected.0
            )));
        }
    }
    let Some((_, height, width)) = sizes.first().copied() else {
        return Err(DatasetError::file(root, "holds no images"));
    };
    let channels = if sizes.iter().all(|(channels, ..)| *channels == 1) { 1 } else { 3 };
    Ok(Shape { channels, height: height as u32, width: width as u32 })
}

/// Reads every header, on all processors.
fn sizes(root: &Path, files: &[PathBuf]) -> Result<Vec<(usize, usize, usize)>, DatasetError> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = files.len().div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        let workers: Vec<_> = files
            .chunks(share)
            .map(|files| scope.spawn(|| files.iter().map(|file| images::size(&root.join(file))).collect::<Vec<_>>()))
            .collect();
        workers
            .into_iter()
            .flat_map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}

/// (images, sub-folders) of a folder, each in byte order, hidden ones left out.
fn entries(folder: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>), DatasetError> {
    let (mut files, mut folders) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(folder).map_err(DatasetError::io(folder))? {
        let entry = entry.map_err(DatasetError::io(folder))?;
        let name = PathBuf::from(entry.file_name());
        if name.to_string_lossy().starts_with('.') {
            continue;
        }
        // Follows links: image collections are often farms of them.
        let path = entry.path();
        if std::fs::metadata(&path).map_err(DatasetError::io(&path))?.is_dir() {
            folders.push(name);
            continue;
        }
        let extension = name.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
        match extension.as_str() {
            "jpg" | "jpeg" | "png" => files.push(name),
            // Others than images (notes, lists) do no harm; an image left out would change the dataset.
            "bmp" | "gif" | "pgm" | "ppm" | "tif" | "tiff" | "webp" => {
                return Err(DatasetError::file(path, "is neither JPEG nor PNG; convert or remove it"));
            }
            _ => {}
        }
    }
    files.sort();
    folders.sort();
    Ok((files, folders))
}

/// All images below a class folder, those of a folder before those of its sub-folders.
fn walk(folder: &Path, relative: &Path, depth: usize) -> Result<Vec<PathBuf>, DatasetError> {
    if depth > 16 {
        return Err(DatasetError::file(folder, "is nested too deeply; is there a link to a folder above?"));
    }
    let (files, folders) = entries(folder)?;
    let mut images: Vec<PathBuf> = files.into_iter().map(|file| relative.join(file)).collect();
    for sub in folders {
        images.extend(walk(&folder.join(&sub), &relative.join(&sub), depth + 1)?);
    }
    Ok(images)
}
