//! What can go wrong with a dataset.

use std::path::{Path, PathBuf};

/// A sentence that names what is at fault and says what to do.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    #[error("{}: {problem}", path.display())]
    File { path: PathBuf, problem: String },
    #[error("{option}: {problem}")]
    Option { option: &'static str, problem: String },
    #[error(
        "dataset name {0:?}: use 1 to 64 of the characters a–z, A–Z, 0–9, '.', '_' and '-', beginning with a letter or digit"
    )]
    Name(String),
    #[error(
        "dataset {name} exists already and differs in its {difference}; choose another name, remove it first, or import with --replace"
    )]
    Exists { name: String, difference: &'static str },
    #[error("no dataset {0:?}; `gauntlet dataset list` shows what there is")]
    NotFound(String),
    #[error("{prefix:?} is the beginning of more than one dataset's hash; give more of it")]
    Ambiguous { prefix: String },
    #[error("dataset {name} is damaged in the artifact store: {problem}; remove it and import it again")]
    Damaged { name: String, problem: String },
    #[error("dataset {name} has no {part}")]
    NoPart { name: String, part: super::Part },
    #[error("images {start} to {end} were asked of a dataset of {images} images")]
    Range { start: usize, end: usize, images: usize },
    #[error("artifact store: {0}")]
    Store(#[from] object_store::Error),
}

impl DatasetError {
    /// A short name that stays the same between versions.
    pub fn code(&self) -> &'static str {
        match self {
            Self::File { .. } => "dataset_unreadable",
            Self::Option { .. } => "dataset_option",
            Self::Name(_) => "dataset_name",
            Self::Exists { .. } => "dataset_exists",
            Self::NotFound(_) => "dataset_not_found",
            Self::Ambiguous { .. } => "dataset_ambiguous",
            Self::Damaged { .. } => "dataset_damaged",
            Self::NoPart { .. } => "dataset_part",
            Self::Range { .. } => "dataset_range",
            Self::Store(_) => "artifact_store",
        }
    }

    pub(crate) fn file(path: impl AsRef<Path>, problem: impl Into<String>) -> Self {
        Self::File { path: path.as_ref().to_owned(), problem: problem.into() }
    }

    pub(crate) fn option(option: &'static str, problem: impl Into<String>) -> Self {
        Self::Option { option, problem: problem.into() }
    }

    /// Turns an IO error into one that names its file.
    pub(crate) fn io(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        move |error| Self::file(path, error.to_string())
    }
}
