//! Frost pictures: from an operator's folder into the artifact store, where every worker finds the same ones.

use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::Artifacts;
use super::artifacts::ArtifactError;
use crate::protocol::Pictures;
use crate::robustness::corruption::{FROST_FILES, FrostError, FrostTextures, identify};

/// Five picture files as bytes, in the order of [`FROST_FILES`].
pub struct FrostFiles(pub [Bytes; 5]);

/// A folder that holds no frost pictures.
#[derive(Debug, thiserror::Error)]
#[error("{folder}: {problem}", folder = folder.display())]
pub struct FolderError {
    pub folder: PathBuf,
    #[source]
    pub problem: FrostError,
}

impl FrostFiles {
    /// Reads the five files of a folder, and makes sure that they are pictures.
    pub fn read(folder: &Path) -> Result<Self, FolderError> {
        let mut files: [Bytes; 5] = Default::default();
        let mut next = files.iter_mut();
        let textures = FrostTextures::read(|name| {
            let bytes = std::fs::read(folder.join(name))?;
            *next.next().expect("five files are read") = bytes.clone().into();
            Ok(bytes)
        });
        match textures {
            Ok(_) => Ok(Self(files)),
            Err(problem) => Err(FolderError { folder: folder.to_owned(), problem }),
        }
    }

    /// Which pictures they are.
    pub fn pictures(&self) -> Pictures {
        identify(&self.0)
    }
}

impl Artifacts {
    /// Keeps the pictures under their identity, which is returned.
    pub async fn keep_frost(&self, files: &FrostFiles) -> Result<Pictures, ArtifactError> {
        let pictures = files.pictures();
        for (name, bytes) in FROST_FILES.iter().zip(&files.0) {
            self.put(&key(&pictures, name), bytes.to_vec()).await?;
        }
        Ok(pictures)
    }

    /// The files of these pictures; the procedural ones have none.
    pub async fn frost(&self, pictures: &Pictures) -> Result<FrostFiles, ArtifactError> {
        let mut files: [Bytes; 5] = Default::default();
        for (file, name) in files.iter_mut().zip(FROST_FILES) {
            *file = self.get(&key(pictures, name)).await?;
        }
        Ok(FrostFiles(files))
    }
}

fn key(pictures: &Pictures, file: &str) -> String {
    let folder = match pictures {
        Pictures::Published => "published",
        Pictures::Custom(sum) => sum,
        Pictures::Procedural => "procedural",
    };
    format!("frost/{folder}/{file}")
}
