//! Imported datasets in the artifact store.
//!
//! ```text
//! datasets/names/<name>.json           the manifest, written last: what it names is whole
//! datasets/data/<hash>/labels.bin      u32 little-endian
//! datasets/data/<hash>/pixels-00000.bin …   images_per_shard images each, uint8 [channels, height, width]
//! datasets/staging/<uuid>/…            an import under way
//! ```

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use uuid::Uuid;

use super::hash::Hasher;
use super::{Batch, ContentHash, DatasetError, Manifest, Preset, Progress, Source};

const NAMES: &str = "datasets/names";
const DATA: &str = "datasets/data";
const STAGING: &str = "datasets/staging";
const LABELS: &str = "labels.bin";
const SHARD_BYTES: usize = 64 << 20;
/// What a crashed import or removal left is deleted once it is this old.
const LEFTOVER_AGE: TimeDelta = TimeDelta::days(1);

/// The datasets of one artifact store.
#[derive(Debug, Clone)]
pub struct Catalogue {
    store: Arc<dyn ObjectStore>,
    shard_bytes: usize,
}

/// How an import is to be named and recorded.
#[derive(Clone)]
pub struct ImportOptions {
    /// Which default budgets apply.
    pub preset: Option<Preset>,
    /// Lets the name move to other content.
    pub replace: bool,
    pub progress: Progress,
}

impl Catalogue {
    pub fn new(store: Arc<dyn ObjectStore>) -> Self {
        Self { store, shard_bytes: SHARD_BYTES }
    }

    /// With objects of at most this many bytes (but at least one image each) for new imports.
    pub fn with_shard_bytes(self, shard_bytes: usize) -> Self {
        Self { shard_bytes, ..self }
    }

    /// Every dataset, by name.
    pub async fn list(&self) -> Result<Vec<Manifest>, DatasetError> {
        let names: Vec<ObjectMeta> = self.store.list(Some(&Path::from(NAMES))).try_collect().await?;
        let mut manifests: Vec<Manifest> = futures::stream::iter(names)
            .map(|meta| async move {
                let bytes = match self.store.get(&meta.location).await {
                    Err(object_store::Error::NotFound { .. }) => return Ok(None), // removed meanwhile
                    other => other?.bytes().await?,
                };
                parse_manifest(&meta.location, &bytes).map(Some)
            })
            .buffer_unordered(8)
            .try_filter_map(|manifest| async { Ok::<_, DatasetError>(manifest) })
            .try_collect()
            .await?;
        manifests.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(manifests)
    }

    /// By name, content hash, or the first 8 or more digits of a content hash.
    pub async fn get(&self, name_or_hash: &str) -> Result<Manifest, DatasetError> {
        if check_name(name_or_hash).is_ok()
            && let Some(manifest) = self.named(name_or_hash).await?
        {
            return Ok(manifest);
        }
        let prefix = name_or_hash.to_ascii_lowercase();
        if prefix.len() < 8 {
            return Err(DatasetError::NotFound(name_or_hash.to_owned()));
        }
        let mut matches = self.list().await?;
        matches.retain(|manifest| manifest.hash.to_string().starts_with(&prefix));
        let hashes: HashSet<ContentHash> = matches.iter().map(|manifest| manifest.hash).collect();
        match hashes.len() {
            0 => Err(DatasetError::NotFound(name_or_hash.to_owned())),
            1 => Ok(matches.swap_remove(0)),
            _ => Err(DatasetError::Ambiguous { prefix }),
        }
    }

    async fn named(&self, name: &str) -> Result<Option<Manifest>, DatasetError> {
        let path = name_path(name);
        match self.store.get(&path).await {
            Ok(object) => parse_manifest(&path, &object.bytes().await?).map(Some),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The images in `range`, fetching only their bytes.
    pub async fn read(&self, manifest: &Manifest, range: Range<usize>) -> Result<Batch, DatasetError> {
        let images = manifest.images as usize;
        if range.start > range.end || range.end > images {
            return Err(DatasetError::Range { start: range.start, end: range.end, images });
        }
        let folder = data_folder(manifest.hash);
        let labels = self.bytes(manifest, &folder.clone().join(LABELS), range.start * 4..range.end * 4).await?;
        let labels: Vec<u32> = labels.as_chunks().0.iter().map(|label| u32::from_le_bytes(*label)).collect();
        if labels.iter().any(|label| *label >= manifest.classes) {
            return Err(damaged(manifest, "a label is out of range"));
        }

        let size = manifest.shape.bytes();
        let per_shard = (manifest.images_per_shard as usize).max(1);
        let mut pixels = Vec::with_capacity(range.len() * size);
        let mut at = range.start;
        while at < range.end {
            let shard = at / per_shard;
            let end = ((shard + 1) * per_shard).min(range.end);
            let within = (at - shard * per_shard) * size..(end - shard * per_shard) * size;
            pixels.extend_from_slice(&self.bytes(manifest, &folder.clone().join(shard_name(shard)), within).await?);
            at = end;
        }
        Ok(Batch { first: range.start, shape: manifest.shape, pixels, labels })
    }

    /// Exactly these bytes of an object.
    async fn bytes(&self, manifest: &Manifest, path: &Path, range: Range<usize>) -> Result<Bytes, DatasetError> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let wanted = range.start as u64..range.end as u64;
        match self.store.get_range(path, wanted).await {
            Ok(bytes) if bytes.len() == range.len() => Ok(bytes),
            Ok(_) => Err(damaged(manifest, format!("{path} is shorter than it should be"))),
            Err(object_store::Error::NotFound { .. }) => Err(damaged(manifest, format!("{path} is missing"))),
            // Stores differ in how they say that a range lies past the end; the length tells.
            Err(error) => match self.store.head(path).await {
                Ok(meta) if meta.size < range.end as u64 => {
                    Err(damaged(manifest, format!("{path} is shorter than it should be")))
                }
                _ => Err(error.into()),
            },
        }
    }

    /// Reads everything and compares it with the content hash.
    pub async fn verify(&self, manifest: &Manifest) -> Result<(), DatasetError> {
        let images = manifest.images as usize;
        let mut hasher = Hasher::new(images, manifest.shape, manifest.classes);
        let mut labels = Vec::with_capacity(images);
        let step = (manifest.images_per_shard as usize).max(1);
        for start in (0..images).step_by(step) {
            let batch = self.read(manifest, start..(start + step).min(images)).await?;
            hasher.pixels(&batch.pixels);
            labels.extend(batch.labels);
        }
        if hasher.finish(&labels) == manifest.hash {
            return Ok(());
        }
        Err(damaged(manifest, "its content does not have its hash"))
    }

    /// Decodes a source into the store. Until the last step nothing refers to what is written, so a failure leaves no
    /// dataset behind; importing the same content under the same name again changes nothing.
    pub async fn import(
        &self,
        name: &str,
        source: Arc<Source>,
        options: &ImportOptions,
    ) -> Result<Manifest, DatasetError> {
        check_name(name)?;
        self.sweep(Utc::now() - LEFTOVER_AGE).await?;
        let staging = Path::from(STAGING).join(Uuid::new_v4().to_string());
        let imported = self.stage_and_publish(name, source, options, &staging).await;
        let cleaned = self.delete_below(&staging).await;
        let manifest = imported?;
        cleaned?;
        Ok(manifest)
    }

    async fn stage_and_publish(
        &self,
        name: &str,
        source: Arc<Source>,
        options: &ImportOptions,
        staging: &Path,
    ) -> Result<Manifest, DatasetError> {
        let images_per_shard = (self.shard_bytes / source.shape().bytes()).max(1);
        let (objects, hash) = self.stage(&source, options, staging, images_per_shard).await?;
        let origin = blocking(source.clone(), |source| source.origin()).await?;
        let mut manifest = Manifest {
            name: name.to_owned(),
            hash,
            images: source.len() as u64,
            shape: source.shape(),
            classes: source.classes(),
            class_names: source.class_names().map(<[String]>::to_vec),
            preset: options.preset,
            origin,
            created_at: Utc::now(),
            images_per_shard: images_per_shard as u64,
        };

        let existing = self.named(name).await?;
        if let Some(existing) = &existing {
            match difference(existing, &manifest) {
                None if self.is_whole(existing).await? => return Ok(existing.clone()),
                Some(difference) if !options.replace => {
                    return Err(DatasetError::Exists { name: name.to_owned(), difference });
                }
                _ => {}
            }
        }
        // Data already there under another name are shared, in the split that name knows.
        let twin = self.list().await?.into_iter().find(|other| other.hash == hash);
        match twin {
            Some(twin) if self.is_whole(&twin).await? => manifest.images_per_shard = twin.images_per_shard,
            Some(twin) if twin.images_per_shard != manifest.images_per_shard => {
                return Err(damaged(&twin, "its data are incomplete"));
            }
            _ => {
                for object in &objects {
                    self.store
                        .copy(&staging.clone().join(object.as_str()), &data_folder(hash).join(object.as_str()))
                        .await?;
                }
            }
        }
        self.publish(&manifest, existing.is_some()).await?;
        if let Some(existing) = existing.filter(|existing| existing.hash != hash) {
            self.delete_unless_named(existing.hash).await?;
        }
        Ok(manifest)
    }

    /// Writes shards and labels to `staging`: their names and the content hash.
    async fn stage(
        &self,
        source: &Arc<Source>,
        options: &ImportOptions,
        staging: &Path,
        images_per_shard: usize,
    ) -> Result<(Vec<String>, ContentHash), DatasetError> {
        let mut hasher = source.hasher();
        let mut objects = Vec::new();
        for start in (0..source.len()).step_by(images_per_shard) {
            let progress = options.progress.clone();
            let range = start..(start + images_per_shard).min(source.len());
            let batch = blocking(source.clone(), move |source| source.read(range, &progress)).await?;
            hasher.pixels(&batch.pixels);
            let name = shard_name(objects.len());
            self.store.put(&staging.clone().join(name.as_str()), batch.pixels.into()).await?;
            objects.push(name);
        }
        let labels: Vec<u8> = source.labels().iter().flat_map(|label| label.to_le_bytes()).collect();
        self.store.put(&staging.clone().join(LABELS), labels.into()).await?;
        objects.push(LABELS.to_owned());
        Ok((objects, hasher.finish(source.labels())))
    }

    async fn publish(&self, manifest: &Manifest, over: bool) -> Result<(), DatasetError> {
        let json = serde_json::to_vec_pretty(manifest).map_err(|error| damaged(manifest, error.to_string()))?;
        let mode = if over { PutMode::Overwrite } else { PutMode::Create };
        let options = PutOptions { mode, ..PutOptions::default() };
        match self.store.put_opts(&name_path(&manifest.name), PutPayload::from(json), options).await {
            Ok(_) => Ok(()),
            Err(object_store::Error::AlreadyExists { .. }) => Err(DatasetError::Exists {
                name: manifest.name.clone(),
                difference: "import, which ran at the same time",
            }),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether every object is there and has its length.
    async fn is_whole(&self, manifest: &Manifest) -> Result<bool, DatasetError> {
        let folder = data_folder(manifest.hash);
        let (images, per_shard) = (manifest.images, manifest.images_per_shard.max(1));
        let shards = (0..images.div_ceil(per_shard)).map(|shard| {
            let held = per_shard.min(images - shard * per_shard);
            (shard_name(shard as usize), held * manifest.shape.bytes() as u64)
        });
        for (name, size) in shards.chain([(LABELS.to_owned(), images * 4)]) {
            match self.store.head(&folder.clone().join(name)).await {
                Ok(meta) if meta.size == size => {}
                Ok(_) | Err(object_store::Error::NotFound { .. }) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    /// Forgets a name, and deletes its data unless another name has the same content. A dataset whose manifest is
    /// unreadable can be removed too; its data then go with the next sweep.
    pub async fn remove(&self, name: &str) -> Result<(), DatasetError> {
        check_name(name)?;
        let manifest = match self.named(name).await {
            Ok(None) => return Err(DatasetError::NotFound(name.to_owned())),
            Ok(manifest) => manifest,
            Err(DatasetError::Damaged { .. }) => None,
            Err(error) => return Err(error),
        };
        self.store.delete(&name_path(name)).await?;
        match manifest {
            Some(manifest) => self.delete_unless_named(manifest.hash).await,
            None => Ok(()),
        }
    }

    async fn delete_unless_named(&self, hash: ContentHash) -> Result<(), DatasetError> {
        if self.list().await?.iter().any(|manifest| manifest.hash == hash) {
            return Ok(());
        }
        self.delete_below(&data_folder(hash)).await
    }

    async fn delete_below(&self, folder: &Path) -> Result<(), DatasetError> {
        let objects: Vec<ObjectMeta> = self.store.list(Some(folder)).try_collect().await?;
        for object in objects {
            match self.store.delete(&object.location).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Deletes what crashed imports and removals left, where nothing of it is younger than `before`.
    pub async fn sweep(&self, before: DateTime<Utc>) -> Result<(), DatasetError> {
        let mut candidates = Vec::new();
        for root in [DATA, STAGING] {
            candidates.extend(self.store.list_with_delimiter(Some(&Path::from(root))).await?.common_prefixes);
        }
        if candidates.is_empty() {
            return Ok(());
        }
        let named: HashSet<Path> = self.list().await?.iter().map(|manifest| data_folder(manifest.hash)).collect();
        for folder in candidates.iter().filter(|folder| !named.contains(folder)) {
            let objects: Vec<ObjectMeta> = self.store.list(Some(folder)).try_collect().await?;
            if objects.iter().all(|object| object.last_modified < before) {
                self.delete_below(folder).await?;
            }
        }
        Ok(())
    }
}

/// In what, beyond time and origin, two manifests of one name differ.
fn difference(existing: &Manifest, new: &Manifest) -> Option<&'static str> {
    match existing {
        _ if existing.hash != new.hash => Some("content"),
        _ if existing.preset != new.preset => Some("preset"),
        _ if existing.class_names != new.class_names => Some("class names"),
        _ => None,
    }
}

fn check_name(name: &str) -> Result<(), DatasetError> {
    let mut bytes = name.bytes();
    let first = bytes.next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if first && name.len() <= 64 && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)) {
        return Ok(());
    }
    Err(DatasetError::Name(name.to_owned()))
}

fn name_path(name: &str) -> Path {
    Path::from(format!("{NAMES}/{name}.json"))
}

fn data_folder(hash: ContentHash) -> Path {
    Path::from(format!("{DATA}/{hash}"))
}

fn shard_name(shard: usize) -> String {
    format!("pixels-{shard:05}.bin")
}

fn damaged(manifest: &Manifest, problem: impl Into<String>) -> DatasetError {
    DatasetError::Damaged { name: manifest.name.clone(), problem: problem.into() }
}

fn parse_manifest(path: &Path, bytes: &[u8]) -> Result<Manifest, DatasetError> {
    let name = path.filename().unwrap_or_default().trim_end_matches(".json");
    let problem = |problem: String| DatasetError::Damaged { name: name.to_owned(), problem };
    let manifest: Manifest = serde_json::from_slice(bytes)
        .map_err(|error| problem(format!("its manifest {path} is unreadable ({error})")))?;
    if manifest.name != name {
        return Err(problem(format!("its manifest is that of {}", manifest.name)));
    }
    Ok(manifest)
}

async fn blocking<T: Send + 'static>(
    source: Arc<Source>,
    work: impl FnOnce(&Source) -> Result<T, DatasetError> + Send + 'static,
) -> Result<T, DatasetError> {
    match tokio::task::spawn_blocking(move || work(&source)).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
