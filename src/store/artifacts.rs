//! Bytes: models, datasets, verdicts and witnesses, in an object store.

use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt};
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::prefix::PrefixStore;
use object_store::{ClientOptions, ObjectStore, ObjectStoreExt, PutPayload, RetryConfig, WriteMultipart};
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;
use uuid::Uuid;

/// A failure of the artifact store or of the stream being stored.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    #[error("artifact store: {0}")]
    Store(#[from] object_store::Error),
    #[error("artifact directory {0}: {1}")]
    Directory(PathBuf, #[source] std::io::Error),
    #[error("the upload broke off: {0}")]
    Upload(String),
    #[error("{0:?} is no place for artifacts: give a directory, or s3://bucket or s3://bucket/prefix")]
    Location(String),
    #[error("{variable} names the file {file}: {error}")]
    Secret { variable: String, file: String, error: std::io::Error },
    #[error("model {sha256} is damaged in the artifact store: its bytes have the hash {found}")]
    Damaged { sha256: String, found: String },
    #[error("larger than the limit of {limit} bytes")]
    TooLarge { limit: u64 },
}

impl ArtifactError {
    /// Whether the bytes are not there, or are not what they were: waiting brings them back no more.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Store(object_store::Error::NotFound { .. }) | Self::Damaged { .. })
    }

    /// Whether the volume has no room left.
    pub fn is_full(&self) -> bool {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = cause {
            let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
            if matches!(kind, Some(ErrorKind::StorageFull | ErrorKind::QuotaExceeded)) {
                return true;
            }
            cause = error.source();
        }
        false
    }
}

/// The artifact store.
#[derive(Clone)]
pub struct Artifacts {
    store: Arc<dyn ObjectStore>,
    /// The directory itself, or where a remote store's models are kept while they are used.
    root: PathBuf,
    remote: bool,
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
    /// Where the bytes are until [`Artifacts::discard`].
    pub key: Key,
    pub sha256: String,
    pub bytes: u64,
}

/// Variables whose value may lie in a file that a variable named `…_FILE` names.
const SECRETS: [&str; 3] = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"];
const PART_BYTES: usize = 8 << 20;
/// S3 copies no object larger than this by itself.
const LARGEST_COPY: u64 = 5 << 30;
/// Models of a remote store that stay on this machine after use.
const KEPT_MODELS: usize = 16;

/// Folders of a directory that files are written to, but for datasets, whose imports clean up after themselves.
const WRITTEN: [&str; 6] = ["models", "parts", "verdicts", "witnesses", "logs", "checkpoints"];

/// Whether the object store gave a file this name while it was being written: its own and `#N`.
fn is_draft(name: &std::ffi::OsStr) -> bool {
    name.to_str()
        .and_then(|name| name.rsplit_once('#'))
        .is_some_and(|(_, n)| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

impl Artifacts {
    /// Opens a directory, or a bucket by URL: `s3://bucket/prefix`, with keys, region and endpoint from the usual `AWS_…`
    /// variables. `cache` is where models of a bucket are kept while they are used. Whether the bucket answers, and to
    /// these keys, only [`check`](Self::check) tells.
    pub fn open(location: &str, cache: &Path) -> Result<Self, ArtifactError> {
        match location.split_once("://") {
            None => Self::local(Path::new(location)),
            Some(("s3", rest)) => {
                let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
                if bucket.is_empty() {
                    return Err(ArtifactError::Location(location.into()));
                }
                Self::s3(bucket, prefix, std::env::vars(), cache)
            }
            Some(_) => Err(ArtifactError::Location(location.into())),
        }
    }

    /// Opens a bucket; of `variables` those count that are named like AWS's own, such as `AWS_ACCESS_KEY_ID`,
    /// `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, `AWS_ENDPOINT_URL` and `AWS_ALLOW_HTTP`. Keys and token may lie in files that
    /// `AWS_SECRET_ACCESS_KEY_FILE` and the like name.
    pub fn s3(
        bucket: &str,
        prefix: &str,
        variables: impl IntoIterator<Item = (String, String)>,
        cache: &Path,
    ) -> Result<Self, ArtifactError> {
        // No limit on a whole transfer, which may be of gigabytes, but on silence.
        let client = ClientOptions::new()
            .with_timeout_disabled()
            .with_connect_timeout(Duration::from_secs(5))
            .with_read_timeout(Duration::from_secs(30));
        let retry = RetryConfig { max_retries: 4, retry_timeout: Duration::from_secs(60), ..RetryConfig::default() };
        let mut builder = AmazonS3Builder::new().with_client_options(client).with_retry(retry);
        for (name, value) in variables.into_iter().filter(|(name, _)| name.starts_with("AWS_")) {
            let (name, value) = match name.strip_suffix("_FILE").filter(|name| SECRETS.contains(name)) {
                Some(secret) => {
                    let text = std::fs::read_to_string(&value);
                    let text =
                        text.map_err(|e| ArtifactError::Secret { variable: name.clone(), file: value, error: e })?;
                    (secret.to_owned(), text.trim().to_owned())
                }
                None => (name, value),
            };
            if let Ok(key) = name.to_ascii_lowercase().parse() {
                builder = builder.with_config(key, value);
            }
        }
        let bucket = builder.with_bucket_name(bucket).build()?;
        let prefix = prefix.trim_matches('/');
        let store: Arc<dyn ObjectStore> =
            if prefix.is_empty() { Arc::new(bucket) } else { Arc::new(PrefixStore::new(bucket, prefix)) };
        for folder in ["models", "uploads"].map(|name| cache.join(name)) {
            std::fs::create_dir_all(&folder).map_err(|e| ArtifactError::Directory(folder, e))?;
        }
        let root = cache.canonicalize().map_err(|e| ArtifactError::Directory(cache.to_owned(), e))?;
        Ok(Self { store, root, remote: true })
    }

    /// Opens (and if needed makes) a local directory.
    pub fn local(root: &Path) -> Result<Self, ArtifactError> {
        std::fs::create_dir_all(root).map_err(|e| ArtifactError::Directory(root.to_owned(), e))?;
        let root = root.canonicalize().map_err(|e| ArtifactError::Directory(root.to_owned(), e))?;
        let store = LocalFileSystem::new_with_prefix(&root)?.with_fsync(true);
        Ok(Self { store: Arc::new(store), root, remote: false })
    }

    /// The store itself, for the dataset catalogue.
    pub fn store(&self) -> Arc<dyn ObjectStore> {
        self.store.clone()
    }

    /// Writes a stream under a temporary key and hashes it on the way; memory stays at a few parts of 8 MiB.
    /// Nothing is left behind when the stream fails or exceeds `limit` bytes.
    pub async fn upload(
        &self,
        mut stream: impl Stream<Item = Result<Bytes, ArtifactError>> + Unpin,
        limit: u64,
    ) -> Result<Uploaded, ArtifactError> {
        let key = Key::from(format!("uploads/{}", Uuid::now_v7()));
        let mut writer = WriteMultipart::new_with_chunk_size(self.store.put_multipart(&key).await?, PART_BYTES);
        let (mut hasher, mut bytes) = (Sha256::new(), 0u64);
        let outcome = loop {
            match stream.next().await {
                None => break Ok(()),
                Some(Err(e)) => break Err(e),
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

    /// Deletes what is left of uploads and fetches, and of files that were being written, and that have not grown for `age`;
    /// returns how many that were. Below the object store, which hides what is half written. (What is half written in a
    /// bucket, its own lifecycle rules end.)
    pub async fn sweep_uploads(&self, age: Duration) -> Result<usize, ArtifactError> {
        let (mut swept, mut folders) = (0, vec![(self.root.join("uploads"), false)]);
        if !self.remote {
            folders.extend(WRITTEN.map(|folder| (self.root.join(folder), true)));
        }
        while let Some((folder, drafts_only)) = folders.pop() {
            let failed = |e| ArtifactError::Directory(folder.clone(), e);
            let mut entries = match tokio::fs::read_dir(&folder).await {
                Ok(entries) => entries,
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                Err(e) => return Err(failed(e)),
            };
            while let Some(entry) = entries.next_entry().await.map_err(failed)? {
                // What is gone meanwhile needs no deleting.
                let Ok(found) = entry.metadata().await else { continue };
                let old = found.modified().is_ok_and(|at| at.elapsed().is_ok_and(|elapsed| elapsed > age));
                if found.is_dir() {
                    folders.push((entry.path(), drafts_only));
                } else if old && (!drafts_only || is_draft(&entry.file_name())) {
                    swept += usize::from(tokio::fs::remove_file(entry.path()).await.is_ok());
                }
            }
        }
        Ok(swept)
    }

    fn model_key(sha256: &str) -> Key {
        Key::from(format!("models/{sha256}"))
    }

    /// Copies an upload to where models of its hash lie; in a directory that is a second name for the same bytes. Doing it
    /// twice changes nothing.
    pub async fn keep_model(&self, upload: &Uploaded) -> Result<(), ArtifactError> {
        let to = Self::model_key(&upload.sha256);
        if self.remote && upload.bytes > LARGEST_COPY {
            return self.copy_through(&upload.key, &to).await;
        }
        Ok(self.store.copy(&upload.key, &to).await?)
    }

    pub async fn has_model(&self, sha256: &str) -> Result<bool, ArtifactError> {
        match self.store.head(&Self::model_key(sha256)).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Copies an object by way of this process.
    async fn copy_through(&self, from: &Key, to: &Key) -> Result<(), ArtifactError> {
        let mut bytes = self.store.get(from).await?.into_stream();
        let mut writer = WriteMultipart::new_with_chunk_size(self.store.put_multipart(to).await?, PART_BYTES);
        let copied = async {
            while let Some(chunk) = bytes.try_next().await? {
                writer.wait_for_capacity(4).await?;
                writer.put(chunk);
            }
            Ok::<(), object_store::Error>(())
        };
        if let Err(error) = copied.await {
            writer.abort().await.ok();
            return Err(error.into());
        }
        writer.finish().await?;
        Ok(())
    }

    pub async fn discard(&self, upload: &Uploaded) -> Result<(), ArtifactError> {
        Ok(self.store.delete(&upload.key).await?)
    }

    pub async fn delete_model(&self, sha256: &str) -> Result<(), ArtifactError> {
        self.delete(Self::model_key(sha256).as_ref()).await
    }

    /// A model's bytes as a file that the evaluator child can open.
    pub async fn model_file(&self, sha256: &str) -> Result<PathBuf, ArtifactError> {
        let key = Self::model_key(sha256);
        let file = self.root.join(key.as_ref());
        if !self.remote {
            self.store.head(&key).await?;
        } else if std::fs::File::open(&file).and_then(|f| f.set_modified(SystemTime::now())).is_err() {
            self.fetch(&key, sha256, &file).await?;
        }
        Ok(file)
    }

    /// Brings a model here. What arrives must have the hash it is known by; a broken transfer leaves nothing behind.
    async fn fetch(&self, key: &Key, sha256: &str, file: &Path) -> Result<(), ArtifactError> {
        let folder = self.root.join("uploads");
        let failed = |e| ArtifactError::Directory(folder.clone(), e);
        let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        let draft = tempfile::Builder::new().permissions(readable).tempfile_in(&folder).map_err(failed)?;
        let mut writer = tokio::fs::File::from_std(draft.reopen().map_err(failed)?);
        let (mut bytes, mut hasher) = (self.store.get(key).await?.into_stream(), Sha256::new());
        while let Some(chunk) = bytes.try_next().await? {
            hasher.update(&chunk);
            writer.write_all(&chunk).await.map_err(failed)?;
        }
        writer.flush().await.map_err(failed)?;
        let found = hex::encode(hasher.finalize());
        if found != sha256 {
            return Err(ArtifactError::Damaged { sha256: sha256.into(), found });
        }
        draft.persist(file).map_err(|e| failed(e.error))?;
        self.forget_old_models().map_err(failed)
    }

    /// Keeps the models used last. One that is open elsewhere stays readable there.
    fn forget_old_models(&self) -> std::io::Result<()> {
        let mut kept: Vec<(SystemTime, PathBuf)> = std::fs::read_dir(self.root.join("models"))?
            .flatten()
            .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
            .collect();
        kept.sort_unstable_by(|a, b| b.cmp(a));
        kept.iter().skip(KEPT_MODELS).for_each(|(_, path)| drop(std::fs::remove_file(path)));
        Ok(())
    }

    pub async fn put(&self, key: &str, bytes: impl Into<Bytes>) -> Result<(), ArtifactError> {
        self.store.put(&Key::from(key), PutPayload::from(bytes.into())).await?;
        Ok(())
    }

    pub async fn get(&self, key: &str) -> Result<Bytes, ArtifactError> {
        Ok(self.store.get(&Key::from(key)).await?.bytes().await?)
    }

    /// An object's bytes as they come.
    pub async fn stream(
        &self,
        key: &str,
    ) -> Result<impl Stream<Item = Result<Bytes, ArtifactError>> + use<>, ArtifactError> {
        Ok(self.store.get(&Key::from(key)).await?.into_stream().map_err(ArtifactError::from))
    }

    /// Deletes an object; one that is not there is deleted.
    pub async fn delete(&self, key: &str) -> Result<(), ArtifactError> {
        match self.store.delete(&Key::from(key)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Length of an object; 0 if it is not there.
    pub async fn size(&self, key: &str) -> Result<u64, ArtifactError> {
        match self.store.head(&Key::from(key)).await {
            Ok(found) => Ok(found.size),
            Err(object_store::Error::NotFound { .. }) => Ok(0),
            Err(e) => Err(e.into()),
        }
    }

    /// Deletes every object below a folder.
    pub async fn delete_folder(&self, folder: &str) -> Result<(), ArtifactError> {
        let mut objects = self.store.list(Some(&Key::from(folder)));
        while let Some(object) = objects.try_next().await? {
            self.delete(object.location.as_ref()).await?;
        }
        if !self.remote {
            std::fs::remove_dir(self.root.join(folder)).ok();
        }
        Ok(())
    }

    /// Some bytes of an object.
    pub async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, ArtifactError> {
        Ok(self.store.get_range(&Key::from(key), range).await?)
    }

    /// How full the volume is; `None` where that cannot be known.
    pub fn space(&self) -> Option<Space> {
        if self.remote {
            return None;
        }
        let volume = nix::sys::statvfs::statvfs(&self.root).ok()?;
        let block = volume.fragment_size();
        Some(Space { free: volume.blocks_available() * block, size: volume.blocks() * block })
    }

    /// Whether the store takes bytes: writes a few and deletes them. `who` keeps processes apart that ask at once.
    pub async fn check_writable(&self, who: Uuid) -> Result<(), ArtifactError> {
        let key = Key::from(format!("uploads/check-{who}"));
        self.store.put(&key, PutPayload::from_static(b"is there room?")).await?;
        Ok(self.store.delete(&key).await?)
    }

    /// Whether nothing lies in a folder of the store.
    pub async fn is_empty(&self, folder: &str) -> Result<bool, ArtifactError> {
        Ok(self.store.list(Some(&Key::from(folder))).try_next().await?.is_none())
    }

    /// Whether the store answers: lists one key.
    pub async fn check(&self) -> Result<(), ArtifactError> {
        match self.store.list(None).next().await {
            Some(Err(e)) => Err(e.into()),
            _ => Ok(()),
        }
    }
}
