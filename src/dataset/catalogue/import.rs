//! Importing: staged out of sight, then named.

use std::sync::Arc;

use chrono::{TimeDelta, Utc};
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutMode, PutOptions, PutPayload};
use uuid::Uuid;

use super::{Catalogue, LABELS, STAGING, check_name, damaged, data_folder, name_path, shard_name};
use crate::dataset::{
    Cell, Content, ContentHash, Data, DatasetError, Manifest, Origin, Part, Preset, Progress, PublishedFiles,
    PublishedSet, Source,
};

/// What a crashed import or removal left is deleted once it is this old.
const LEFTOVER_AGE: TimeDelta = TimeDelta::days(1);

/// How an import is to be named and recorded.
#[derive(Clone)]
pub struct ImportOptions {
    /// Which default budgets apply.
    pub preset: Option<Preset>,
    /// Lets the name move to other content.
    pub replace: bool,
    pub progress: Progress,
}

/// Images in a folder that nothing refers to yet.
struct Staged {
    folder: Path,
    objects: Vec<String>,
    data: Data,
}

impl Catalogue {
    /// Decodes a source into the store. Until the last step nothing refers to what is written, so a failure leaves no
    /// dataset behind; importing the same content under the same name again changes nothing.
    pub async fn import(
        &self,
        name: &str,
        source: Arc<Source>,
        options: &ImportOptions,
    ) -> Result<Manifest, DatasetError> {
        self.through_staging(name, async |staging| {
            let staged = self.stage(&source, options, staging).await?;
            let read = source.clone();
            let origin = blocking(move || read.origin()).await?;
            let content = Content::Images { images_per_shard: staged.data.images_per_shard };
            let mut manifest = described(name, &source, staged.data.hash, content, origin);
            manifest.preset = options.preset;
            self.publish(manifest, vec![staged], options.replace).await
        })
        .await
    }

    /// The same for a published corrupted set, as one dataset. `clean`, a dataset of the store, becomes its clean part: as many
    /// images of the same shape with the same labels.
    pub async fn import_published(
        &self,
        name: &str,
        files: PublishedFiles,
        clean: Option<&Manifest>,
        options: &ImportOptions,
    ) -> Result<Manifest, DatasetError> {
        let clean = match clean {
            Some(clean) => Some(self.clean_of(clean, &files).await?),
            None => None,
        };
        let files = Arc::new(files);
        self.through_staging(name, async |staging| {
            let (mut all, mut cells, mut origins) = (Vec::new(), Vec::new(), Vec::new());
            for (position, (corruption, severity)) in files.cells().enumerate() {
                let opened = files.clone();
                let source = Arc::new(blocking(move || opened.open(corruption, severity)).await?);
                let staged = self.stage(&source, options, &staging.clone().join(position.to_string())).await?;
                cells.push(Cell { corruption, severity, data: staged.data });
                all.push(staged);
                origins.push(blocking(move || source.origin()).await?);
            }
            let set = PublishedSet { clean, cells };
            let origin = files.origin(origins);
            let mut manifest = described(name, files.first(), set.hash(), Content::Published(set), origin);
            manifest.preset = options.preset;
            self.publish(manifest, all, options.replace).await
        })
        .await
    }

    /// The clean images of `manifest`, if they can be those that `files` were made of.
    async fn clean_of(&self, manifest: &Manifest, files: &PublishedFiles) -> Result<Data, DatasetError> {
        let unfit = |problem: String| DatasetError::option("clean", format!("dataset {} {problem}", manifest.name));
        let data = manifest.data(Part::Clean).ok_or_else(|| unfit("has no clean images".into()))?;
        let first = files.first();
        if (manifest.shape, manifest.images, manifest.classes) != (first.shape(), first.len() as u64, first.classes()) {
            return Err(unfit(format!(
                "has {} images of {} in {} classes, the published files {} of {} in {}",
                manifest.images,
                manifest.shape,
                manifest.classes,
                first.len(),
                first.shape(),
                first.classes()
            )));
        }
        let labels = self.labels(manifest, data, 0..first.len()).await?;
        match labels.iter().zip(first.labels()).position(|(a, b)| a != b) {
            None => Ok(data),
            Some(image) => Err(unfit(format!("has other labels than the published files, first at image {image}"))),
        }
    }

    /// Runs an import that may write below the folder it is given, which is gone afterwards.
    async fn through_staging(
        &self,
        name: &str,
        import: impl AsyncFnOnce(&Path) -> Result<Manifest, DatasetError>,
    ) -> Result<Manifest, DatasetError> {
        check_name(name)?;
        self.sweep(Utc::now() - LEFTOVER_AGE).await?;
        let staging = Path::from(STAGING).join(Uuid::new_v4().to_string());
        let imported = import(&staging).await;
        let cleaned = self.delete_below(&staging).await;
        let manifest = imported?;
        cleaned?;
        Ok(manifest)
    }

    /// Writes shards and labels to `folder`.
    async fn stage(
        &self,
        source: &Arc<Source>,
        options: &ImportOptions,
        folder: &Path,
    ) -> Result<Staged, DatasetError> {
        let images_per_shard = (self.shard_bytes / source.shape().bytes()).max(1);
        let mut hasher = source.hasher();
        let mut objects = Vec::new();
        for start in (0..source.len()).step_by(images_per_shard) {
            let (source, progress) = (source.clone(), options.progress.clone());
            let range = start..(start + images_per_shard).min(source.len());
            let batch = blocking(move || source.read(range, &progress)).await?;
            hasher.pixels(&batch.pixels);
            let name = shard_name(objects.len());
            self.store.put(&folder.clone().join(name.as_str()), batch.pixels.into()).await?;
            objects.push(name);
        }
        let labels: Vec<u8> = source.labels().iter().flat_map(|label| label.to_le_bytes()).collect();
        self.store.put(&folder.clone().join(LABELS), labels.into()).await?;
        objects.push(LABELS.to_owned());
        let data = Data { hash: hasher.finish(source.labels()), images_per_shard: images_per_shard as u64 };
        Ok(Staged { folder: folder.clone(), objects, data })
    }

    /// Makes the name refer to the staged images, in the order of the manifest's parts.
    async fn publish(
        &self,
        mut manifest: Manifest,
        staged: Vec<Staged>,
        replace: bool,
    ) -> Result<Manifest, DatasetError> {
        let existing = self.named(&manifest.name).await?;
        if let Some(existing) = &existing {
            match difference(existing, &manifest) {
                None if self.is_whole(existing).await? => return Ok(existing.clone()),
                Some(difference) if !replace => {
                    return Err(DatasetError::Exists { name: manifest.name, difference });
                }
                _ => {}
            }
        }
        let others = self.list().await?;
        let mut splits = Vec::with_capacity(staged.len());
        for staged in &staged {
            splits.push(self.settle(staged, &others).await?);
        }
        match &mut manifest.content {
            Content::Images { images_per_shard } => *images_per_shard = splits[0],
            Content::Published(set) => {
                set.cells.iter_mut().zip(splits).for_each(|(cell, split)| cell.data.images_per_shard = split);
            }
        }
        self.write(&manifest, existing.is_some()).await?;
        if let Some(existing) = existing.filter(|existing| existing.hash != manifest.hash) {
            self.delete_unless_named(&existing).await?;
        }
        Ok(manifest)
    }

    /// Moves staged images to where their hash says, and tells how they are split there: data that another dataset has
    /// already are shared, in the split that it knows.
    async fn settle(&self, staged: &Staged, others: &[Manifest]) -> Result<u64, DatasetError> {
        let hash = staged.data.hash;
        let twin = others.iter().find_map(|other| {
            other.parts().map(|(_, data)| data).find(|data| data.hash == hash).map(|data| (other, data))
        });
        match twin {
            Some((other, data)) if self.is_there(data, other.images, other.shape).await? => {
                return Ok(data.images_per_shard);
            }
            Some((other, data)) if data.images_per_shard != staged.data.images_per_shard => {
                return Err(damaged(other, "its data are incomplete"));
            }
            _ => {}
        }
        for object in &staged.objects {
            let (from, to) = (staged.folder.clone(), data_folder(hash));
            self.store.copy(&from.join(object.as_str()), &to.join(object.as_str())).await?;
        }
        Ok(staged.data.images_per_shard)
    }

    async fn write(&self, manifest: &Manifest, over: bool) -> Result<(), DatasetError> {
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
}

/// A manifest of images like these.
fn described(name: &str, source: &Source, hash: ContentHash, content: Content, origin: Origin) -> Manifest {
    Manifest {
        name: name.to_owned(),
        hash,
        images: source.len() as u64,
        shape: source.shape(),
        classes: source.classes(),
        class_names: source.class_names().map(<[String]>::to_vec),
        preset: None,
        origin,
        created_at: Utc::now(),
        content,
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

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DatasetError> + Send + 'static,
) -> Result<T, DatasetError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
