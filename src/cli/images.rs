//! The images of `gauntlet run`: imported, or read where they lie.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use anyhow::Context;

use super::context;
use super::dataset::Reading;
use crate::config::Settings;
use crate::dataset::{
    Batch, Catalogue, Manifest, Part, Preset, PublishedFiles, Shape, Source, SourceOptions, published_cells,
};
use crate::protocol::{Pictures, Published, Scene};

/// Where the images come from.
pub enum Images {
    Imported(Catalogue, Box<Manifest>),
    Read(Arc<Source>),
    Published(Arc<PublishedCells>),
}

/// A published corrupted set, of which one cell is kept open.
pub struct PublishedCells {
    files: PublishedFiles,
    open: Mutex<Option<(Part, Arc<Source>)>>,
}

impl Images {
    /// The dataset of that path or, if there is none, of that name.
    pub async fn open(dataset: &str, reading: &Reading, settings: &Settings) -> anyhow::Result<Self> {
        let path = PathBuf::from(dataset);
        if path.exists() {
            let options = SourceOptions::from(reading.clone());
            let cells = published_cells(&path, &options)?;
            let opening = tokio::task::spawn_blocking(move || match cells.is_empty() {
                true => Source::open(&path, &options).map(|source| Self::Read(Arc::new(source))),
                false => PublishedFiles::new(cells)
                    .map(|files| Self::Published(Arc::new(PublishedCells { files, open: Mutex::default() }))),
            });
            return Ok(opening.await??);
        }
        let catalogue = Catalogue::new(context::artifacts(settings)?.store());
        let manifest = catalogue
            .get(dataset)
            .await
            .with_context(|| format!("{dataset} is neither a path nor an imported dataset"))?;
        Ok(Self::Imported(catalogue, Box::new(manifest)))
    }

    /// Of every part.
    pub fn len(&self) -> u32 {
        match self {
            Self::Imported(_, manifest) => manifest.images as u32,
            Self::Read(source) => source.len() as u32,
            Self::Published(cells) => cells.files.first().len() as u32,
        }
    }

    pub fn shape(&self) -> Shape {
        match self {
            Self::Imported(_, manifest) => manifest.shape,
            Self::Read(source) => source.shape(),
            Self::Published(cells) => cells.files.first().shape(),
        }
    }

    pub fn classes(&self) -> u32 {
        match self {
            Self::Imported(_, manifest) => manifest.classes,
            Self::Read(source) => source.classes(),
            Self::Published(cells) => cells.files.first().classes(),
        }
    }

    /// The parts that there are, at least one.
    pub fn parts(&self) -> Vec<Part> {
        match self {
            Self::Imported(_, manifest) => manifest.parts().map(|(part, _)| part).collect(),
            Self::Read(_) => vec![Part::Clean],
            Self::Published(cells) => cells.files.cells().map(|(c, s)| Part::Published(c, s)).collect(),
        }
    }

    /// What conditions are resolved against; a preset that is given wins over the images' own.
    pub fn scene(&self, preset: Option<Preset>, pictures: Pictures) -> Scene<'static> {
        let mut scene = match self {
            Self::Imported(_, manifest) => manifest.scene(pictures),
            Self::Read(source) => Scene::new(source.preset().map(Preset::name), source.shape().sides(), pictures),
            Self::Published(cells) => {
                let first = cells.files.first();
                let published = Published { clean: false, cells: cells.files.cells().collect() };
                let scene = Scene::new(first.preset().map(Preset::name), first.shape().sides(), pictures);
                Scene { published: Some(published), ..scene }
            }
        };
        if let Some(preset) = preset {
            scene.preset = Some(preset.name());
        }
        scene
    }

    /// The dataset's identity; what was not imported is decoded once more for it.
    pub async fn hash(&self) -> anyhow::Result<String> {
        Ok(match self {
            Self::Imported(_, manifest) => manifest.hash.to_string(),
            Self::Read(source) => {
                let source = source.clone();
                tokio::task::spawn_blocking(move || source.hash(&quiet())).await??.to_string()
            }
            Self::Published(cells) => {
                let cells = cells.clone();
                tokio::task::spawn_blocking(move || cells.files.hash(&quiet())).await??.to_string()
            }
        })
    }

    /// `count` images of a part, from image `first` on.
    pub async fn read(&self, part: Part, first: u32, count: u32) -> anyhow::Result<Batch> {
        let range = first as usize..(first + count) as usize;
        match self {
            Self::Imported(catalogue, manifest) => Ok(catalogue.read_part(manifest, part, range).await?),
            Self::Read(source) => {
                let source = source.clone();
                Ok(tokio::task::spawn_blocking(move || source.read(range, &quiet())).await??)
            }
            Self::Published(cells) => {
                let cells = cells.clone();
                tokio::task::spawn_blocking(move || Ok(cells.source(part)?.read(range, &quiet())?)).await?
            }
        }
    }
}

impl PublishedCells {
    fn source(&self, part: Part) -> anyhow::Result<Arc<Source>> {
        let Part::Published(corruption, severity) = part else { anyhow::bail!("there are no clean images") };
        let mut open = self.open.lock().expect("no panic holds it");
        if let Some((_, source)) = open.as_ref().filter(|(there, _)| *there == part) {
            return Ok(source.clone());
        }
        let source = Arc::new(self.files.open(corruption, severity)?);
        *open = Some((part, source.clone()));
        Ok(source)
    }
}

fn quiet() -> crate::dataset::Progress {
    Arc::new(|_| {})
}
