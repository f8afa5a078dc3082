//! Imported datasets in the artifact store.
//!
//! ```text
//! datasets/names/<name>.json           the manifest, written last: what it names is whole
//! datasets/data/<hash>/labels.bin      u32 little-endian
//! datasets/data/<hash>/pixels-00000.bin …   images_per_shard images each, uint8 [channels, height, width]
//! datasets/staging/<uuid>/…            an import under way
//! ```

mod import;

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};

use super::hash::Hasher;
use super::{Batch, Content, ContentHash, Data, DatasetError, Manifest, Part, Shape};

pub use import::ImportOptions;

const NAMES: &str = "datasets/names";
const DATA: &str = "datasets/data";
const STAGING: &str = "datasets/staging";
const LABELS: &str = "labels.bin";
const SHARD_BYTES: usize = 64 << 20;

/// The datasets of one artifact store.
#[derive(Debug, Clone)]
pub struct Catalogue {
    store: Arc<dyn ObjectStore>,
    shard_bytes: usize,
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

    /// The clean images in `range`, fetching only their bytes.
    pub async fn read(&self, manifest: &Manifest, range: Range<usize>) -> Result<Batch, DatasetError> {
        self.read_part(manifest, Part::Clean, range).await
    }

    /// The images of a part.
    pub async fn read_part(&self, manifest: &Manifest, part: Part, range: Range<usize>) -> Result<Batch, DatasetError> {
        let data = manifest.data(part).ok_or_else(|| DatasetError::NoPart { name: manifest.name.clone(), part })?;
        self.read_data(manifest, data, range).await
    }

    async fn read_data(&self, manifest: &Manifest, data: Data, range: Range<usize>) -> Result<Batch, DatasetError> {
        let images = manifest.images as usize;
        if range.start > range.end || range.end > images {
            return Err(DatasetError::Range { start: range.start, end: range.end, images });
        }
        let labels = self.labels(manifest, data, range.clone()).await?;
        let folder = data_folder(data.hash);
        let size = manifest.shape.bytes();
        let per_shard = (data.images_per_shard as usize).max(1);
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

    async fn labels(&self, manifest: &Manifest, data: Data, range: Range<usize>) -> Result<Vec<u32>, DatasetError> {
        let path = data_folder(data.hash).join(LABELS);
        let labels = self.bytes(manifest, &path, range.start * 4..range.end * 4).await?;
        let labels: Vec<u32> = labels.as_chunks().0.iter().map(|label| u32::from_le_bytes(*label)).collect();
        if labels.iter().any(|label| *label >= manifest.classes) {
            return Err(damaged(manifest, "a label is out of range"));
        }
        Ok(labels)
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

    /// Reads everything and compares it with the content hashes.
    pub async fn verify(&self, manifest: &Manifest) -> Result<(), DatasetError> {
        for (part, data) in manifest.parts() {
            if self.hash(manifest, data).await? != data.hash {
                return Err(damaged(manifest, format!("the content of its {part} does not have its hash")));
            }
        }
        match &manifest.content {
            Content::Published(set) if set.hash() != manifest.hash => {
                Err(damaged(manifest, "its parts do not make its hash"))
            }
            _ => Ok(()),
        }
    }

    async fn hash(&self, manifest: &Manifest, data: Data) -> Result<ContentHash, DatasetError> {
        let images = manifest.images as usize;
        let mut hasher = Hasher::new(images, manifest.shape, manifest.classes);
        let mut labels = Vec::with_capacity(images);
        let step = (data.images_per_shard as usize).max(1);
        for start in (0..images).step_by(step) {
            let batch = self.read_data(manifest, data, start..(start + step).min(images)).await?;
            hasher.pixels(&batch.pixels);
            labels.extend(batch.labels);
        }
        Ok(hasher.finish(&labels))
    }

    /// Whether every object of every part is there and has its length.
    async fn is_whole(&self, manifest: &Manifest) -> Result<bool, DatasetError> {
        for (_, data) in manifest.parts() {
            if !self.is_there(data, manifest.images, manifest.shape).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn is_there(&self, data: Data, images: u64, shape: Shape) -> Result<bool, DatasetError> {
        let folder = data_folder(data.hash);
        let per_shard = data.images_per_shard.max(1);
        let shards = (0..images.div_ceil(per_shard)).map(|shard| {
            let held = per_shard.min(images - shard * per_shard);
            (shard_name(shard as usize), held * shape.bytes() as u64)
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
            Some(manifest) => self.delete_unless_named(&manifest).await,
            None => Ok(()),
        }
    }

    /// Deletes what this manifest, which is no longer there, was the last to name.
    async fn delete_unless_named(&self, manifest: &Manifest) -> Result<(), DatasetError> {
        let named = self.named_data().await?;
        for (_, data) in manifest.parts().filter(|(_, data)| !named.contains(&data.hash)) {
            self.delete_below(&data_folder(data.hash)).await?;
        }
        Ok(())
    }

    async fn named_data(&self) -> Result<HashSet<ContentHash>, DatasetError> {
        let manifests = self.list().await?;
        Ok(manifests.iter().flat_map(Manifest::parts).map(|(_, data)| data.hash).collect())
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
        let named: HashSet<Path> = self.named_data().await?.into_iter().map(data_folder).collect();
        for folder in candidates.iter().filter(|folder| !named.contains(folder)) {
            let objects: Vec<ObjectMeta> = self.store.list(Some(folder)).try_collect().await?;
            if objects.iter().all(|object| object.last_modified < before) {
                self.delete_below(folder).await?;
            }
        }
        Ok(())
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
