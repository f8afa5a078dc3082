//! Bytes: models, datasets, verdicts and witnesses, in an object store.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload, WriteMultipart};
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// A failure of the artifact store or of the stream being stored.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    #[error("artifact store: {0}")]
    Store(#[from] object_store::Error),
    #[error("artifact directory {0}: {1}")]
    Directory(PathBuf, std::io::Error),
    #[error("the upload broke off: {0}")]
    Upload(String),
    #[error("larger than the limit of {limit} bytes")]
    TooLarge { limit: u64 },
}

/// The artifact store.
#[derive(Clone)]
pub struct Artifacts {
    store: Arc<dyn ObjectStore>,
    root: PathBuf,
}

/// The volume that artifacts lie on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes that this process may still write.
    pub free: u64,
    pub size: u64,
}

/// What an upload turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uploaded {
    /// Where the bytes are until [`Artifacts::keep_model`] or [`Artifacts::discard`] decides.
    pub key: Key,
    pub sha256: String,
    pub bytes: u64,
}

const PART_BYTES: usize = 8 << 20;

impl Artifacts {
    /// Opens (and if needed makes) a local directory.
    pub fn local(root: &Path) -> Result<Self, ArtifactError> {
        std::fs::create_dir_all(root).map_err(|e| ArtifactError::Directory(root.to_owned(), e))?;
        let root = root.canonicalize().map_err(|e| ArtifactError::Directory(root.to_owned(), e))?;
        let store = LocalFileSystem::new_with_prefix(&root)?.with_fsync(true);
        Ok(Self { store: Arc::new(store), root })
    }

    /// The store itself, for the dataset catalogue.
    pub fn store(&self) -> Arc<dyn ObjectStore> {
        self.store.clone()
    }

    /// Writes a stream under a temporary key and hashes it on the way; memory stays at a few parts of 8 MiB.
    /// Nothing is left behind when the stream fails or exceeds `limit` bytes.
    pub async fn upload<E: std::fmt::Display>(
        &self,
        mut stream: impl Stream<Item = Result<Bytes, E>> + Unpin,
        limit: u64,
    ) -> Result<Uploaded, ArtifactError> {
        let key = Key::from(format!("uploads/{}", Uuid::now_v7()));
        let mut writer = WriteMultipart::new_with_chunk_size(self.store.put_multipart(&key).await?, PART_BYTES);
        let (mut hasher, mut bytes) = (Sha256::new(), 0u64);
        let outcome = loop {
            match stream.next().await {
                None => break Ok(()),
                Some(Err(e)) => break Err(ArtifactError::Upload(e.to_string())),
                Some(Ok(chunk)) => {
                    bytes += chunk.len() as u64;
                    if bytes > limit {
                        break Err(ArtifactError::TooLarge { limit });
                    }
                    hasher.update(&chunk);
                    if let Err(e) = writer.wait_for_capacity(4).await {
                        break Err(e.into());
                    }
                    writer.put(chunk);
                }
            }
        };
        if let Err(error) = outcome {
            writer.abort().await.ok();
            return Err(error);
        }
        writer.finish().await?;
        Ok(Uploaded { key, sha256: hex::encode(hasher.finalize()), bytes })
    }

    /// Deletes what is left of uploads that have not grown for `age`; returns how many files that were. Below the object
    /// store, because it hides what is half written.
    pub async fn sweep_uploads(&self, age: Duration) -> Result<usize, ArtifactError> {
        let folder = self.root.join("uploads");
        let failed = |e| ArtifactError::Directory(folder.clone(), e);
        let mut entries = match tokio::fs::read_dir(&folder).await {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(0),
            Err(e) => return Err(failed(e)),
        };
        let mut swept = 0;
        while let Some(entry) = entries.next_entry().await.map_err(failed)? {
            // What is gone meanwhile needs no deleting.
            let Ok(modified) = entry.metadata().await.and_then(|found| found.modified()) else { continue };
            if modified.elapsed().is_ok_and(|elapsed| elapsed > age) {
                swept += usize::from(tokio::fs::remove_file(entry.path()).await.is_ok());
            }
        }
        Ok(swept)
    }

    fn model_key(sha256: &str) -> Key {
        Key::from(format!("models/{sha256}"))
    }

    /// Moves an upload to where models of its hash lie.
    pub async fn keep_model(&self, upload: &Uploaded) -> Result<(), ArtifactError> {
        Ok(self.store.rename(&upload.key, &Self::model_key(&upload.sha256)).await?)
    }

    pub async fn discard(&self, upload: &Uploaded) -> Result<(), ArtifactError> {
        Ok(self.store.delete(&upload.key).await?)
    }

    pub async fn delete_model(&self, sha256: &str) -> Result<(), ArtifactError> {
        match self.store.delete(&Self::model_key(sha256)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// A model's bytes as a file that the evaluator child can open.
    pub async fn model_file(&self, sha256: &str) -> Result<PathBuf, ArtifactError> {
        let key = Self::model_key(sha256);
        self.store.head(&key).await?;
        Ok(self.root.join(key.as_ref()))
    }

    pub async fn put(&self, key: &str, bytes: Vec<u8>) -> Result<(), ArtifactError> {
        self.store.put(&Key::from(key), PutPayload::from(bytes)).await?;
        Ok(())
    }

    pub async fn get(&self, key: &str) -> Result<Bytes, ArtifactError> {
        Ok(self.store.get(&Key::from(key)).await?.bytes().await?)
    }

    /// Some bytes of an object.
    pub async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, ArtifactError> {
        Ok(self.store.get_range(&Key::from(key), range).await?)
    }

    /// How full the volume is; `None` where that cannot be known.
    pub fn space(&self) -> Option<Space> {
        let volume = nix::sys::statvfs::statvfs(&self.root).ok()?;
        let block = volume.fragment_size();
        Some(Space { free: volume.blocks_available() * block, size: volume.blocks() * block })
    }

    /// Whether the store answers: lists one key.
    pub async fn check(&self) -> Result<(), ArtifactError> {
        match self.store.list(None).next().await {
            Some(Err(e)) => Err(e.into()),
            _ => Ok(()),
        }
    }
}
