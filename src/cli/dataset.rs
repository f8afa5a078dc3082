//! `gauntlet dataset`: import, list, show, remove.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use comfy_table::{Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use object_store::ObjectStore;

use crate::dataset::{
    Catalogue, Channels, Content, Geometry, ImportOptions, Manifest, Preset, PublishedFiles, Resize, Source,
    SourceOptions, Split, published_cells,
};

/// Import and manage datasets.
#[derive(Debug, Subcommand)]
pub enum DatasetCommand {
    /// Import an image folder, MNIST idx, CIFAR binary, npz, npy or safetensors under a name, or a published corrupted set
    /// (ImageNet-C's tree, CIFAR-10-C's arrays) as one dataset.
    Import(Import),
    /// List the imported datasets.
    List {
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Show one dataset, by name or content hash.
    Show {
        name: String,
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Remove a dataset; its data stay while another name has the same content.
    Remove {
        name: String,
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
}

#[derive(Debug, Args)]
pub struct Import {
    /// A file or a folder; the format is recognised.
    path: PathBuf,
    /// What to call the dataset: letters, digits, '.', '_' and '-'.
    #[arg(long)]
    name: String,
    /// Which default budgets apply; implied by some formats.
    #[arg(long, value_enum)]
    preset: Option<PresetArgument>,
    #[command(flatten)]
    reading: Reading,
    /// Of a published corrupted set: the imported dataset of the images before they were corrupted.
    #[arg(long, value_name = "DATASET")]
    clean: Option<String>,
    /// Let the name move to other content.
    #[arg(long)]
    replace: bool,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// How a source is read.
#[derive(Debug, Clone, Default, Args)]
pub struct Reading {
    /// Resize every image to S×S pixels.
    #[arg(long, value_name = "S", conflicts_with = "resize")]
    size: Option<u32>,
    /// Resize the short side to S pixels (ImageNet: 256).
    #[arg(long, value_name = "S")]
    resize: Option<u32>,
    /// Keep the S×S pixels at the centre (ImageNet: 224).
    #[arg(long, value_name = "S")]
    crop: Option<u32>,
    /// Labels: CSV `file,label` for an image folder, else an idx or npy file.
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// Number of classes, where the labels do not reach the last one.
    #[arg(long, value_name = "K")]
    pub(super) classes: Option<u32>,
    /// Which part of a folder that holds both [default: test].
    #[arg(long, value_enum)]
    split: Option<Split>,
    /// Convert every image.
    #[arg(long, value_enum)]
    channels: Option<Channels>,
}

impl From<Reading> for SourceOptions {
    fn from(reading: Reading) -> Self {
        let resize = reading.size.map(Resize::Square).or(reading.resize.map(Resize::ShortSide));
        Self {
            labels: reading.labels,
            classes: reading.classes,
            split: reading.split,
            channels: reading.channels,
            geometry: Geometry { resize, crop: reading.crop },
            fifth: None,
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PresetArgument {
    None,
    Mnist,
    Cifar10,
    Cifar100,
    Imagenet,
}

impl PresetArgument {
    fn preset(self) -> Option<Preset> {
        match self {
            Self::None => None,
            Self::Mnist => Some(Preset::Mnist),
            Self::Cifar10 => Some(Preset::Cifar10),
            Self::Cifar100 => Some(Preset::Cifar100),
            Self::Imagenet => Some(Preset::Imagenet),
        }
    }
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub enum Format {
    #[default]
    Table,
    Json,
}

/// Runs the command on the datasets in `store`; results go to standard output, progress to standard error.
pub async fn run(command: DatasetCommand, store: Arc<dyn ObjectStore>) -> anyhow::Result<()> {
    let catalogue = Catalogue::new(store);
    match command {
        DatasetCommand::Import(arguments) => import(&catalogue, arguments).await,
        DatasetCommand::List { format } => {
            let manifests = catalogue.list().await?;
            match format {
                Format::Json => print_json(&manifests),
                Format::Table if manifests.is_empty() => {
                    println!("No datasets yet. Import one with `gauntlet dataset import PATH --name NAME`.");
                    Ok(())
                }
                Format::Table => {
                    println!("{}", overview(&manifests));
                    Ok(())
                }
            }
        }
        DatasetCommand::Show { name, format } => show(&catalogue.get(&name).await?, format),
        DatasetCommand::Remove { name, format } => {
            catalogue.remove(&name).await?;
            match format {
                Format::Json => print_json(&serde_json::json!({ "removed": name })),
                Format::Table => {
                    println!("Removed {name}.");
                    Ok(())
                }
            }
        }
    }
}

async fn import(catalogue: &Catalogue, arguments: Import) -> anyhow::Result<()> {
    let Import { path, name, preset, reading, clean, replace, format } = arguments;
    let options = SourceOptions::from(reading);
    let cells = published_cells(&path, &options)?;
    anyhow::ensure!(clean.is_none() || !cells.is_empty(), "--clean: {} is no published corrupted set", path.display());
    let clean = match clean {
        Some(name) => Some(catalogue.get(&name).await.context("--clean")?),
        None => None,
    };
    let opened = tokio::task::spawn_blocking(move || match cells.is_empty() {
        true => Source::open(&path, &options).map(Opened::Images),
        false => PublishedFiles::new(cells).map(Opened::Published),
    });
    let opened = opened.await.context("reading stopped")??;
    let images = match &opened {
        Opened::Images(source) => source.len(),
        Opened::Published(files) => files.first().len() * files.cells().count(),
    };
    let bar = if std::io::stderr().is_terminal() { ProgressBar::new(images as u64) } else { ProgressBar::hidden() };
    bar.set_style(ProgressStyle::with_template("{msg} {wide_bar} {human_pos}/{human_len} images, {eta} left")?);
    bar.set_message(format!("Importing {name}"));
    let ticker = bar.clone();
    let said = preset.map(PresetArgument::preset);
    let options = |implied| ImportOptions {
        preset: said.unwrap_or(implied),
        replace,
        progress: Arc::new(move |images| ticker.inc(images)),
    };
    let manifest = match opened {
        Opened::Images(source) => {
            let options = options(source.preset());
            catalogue.import(&name, Arc::new(source), &options).await
        }
        Opened::Published(files) => {
            let options = options(files.first().preset().or(clean.as_ref().and_then(|clean| clean.preset)));
            catalogue.import_published(&name, files, clean.as_ref(), &options).await
        }
    };
    bar.finish_and_clear();
    show(&manifest?, format)
}

/// What an import reads.
enum Opened {
    Images(Source),
    Published(PublishedFiles),
}

fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

fn show(manifest: &Manifest, format: Format) -> anyhow::Result<()> {
    match format {
        Format::Json => print_json(manifest),
        Format::Table => {
            println!("{}", details(manifest));
            Ok(())
        }
    }
}

fn preset(manifest: &Manifest) -> String {
    manifest.preset.map_or("none".into(), |preset| preset.to_string())
}

fn overview(manifests: &[Manifest]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(["name", "images", "shape", "classes", "preset", "imported", "hash"]);
    for manifest in manifests {
        table.add_row([
            manifest.name.clone(),
            manifest.images.to_string(),
            manifest.shape.to_string(),
            manifest.classes.to_string(),
            preset(manifest),
            manifest.created_at.format("%Y-%m-%d").to_string(),
            manifest.hash.to_string()[..12].to_owned(),
        ]);
    }
    table
}

/// Original files that are listed; a published set has many.
const MOST_FILES: usize = 6;

fn details(manifest: &Manifest) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    let mut row = |key: &str, value: String| {
        table.add_row([key.to_owned(), value]);
    };
    row("name", manifest.name.clone());
    row("hash", manifest.hash.to_string());
    row("images", manifest.images.to_string());
    row("shape", format!("{} (channels×height×width)", manifest.shape));
    row("classes", manifest.classes.to_string());
    if let Some(names) = &manifest.class_names {
        let some: Vec<&str> = names.iter().take(4).map(|name| name.split(',').next().unwrap_or(name)).collect();
        let more = if names.len() > some.len() { ", …" } else { "" };
        row("class names", format!("{}{more}", some.join(", ")));
    }
    row("preset", preset(manifest));
    if let Content::Published(set) = &manifest.content {
        row("published", format!("{} cells of {} images", set.cells.len(), manifest.images));
        row("clean images", set.clean.map_or("none".into(), |data| format!("hash {}", data.hash)));
    }
    let files = &manifest.origin.files;
    for file in files.iter().take(MOST_FILES) {
        row(
            "from",
            format!("{} ({} bytes, sha256 {}…)", file.name, file.bytes, &file.sha256[..12.min(file.sha256.len())]),
        );
    }
    if files.len() > MOST_FILES {
        row("", format!("and {} more", files.len() - MOST_FILES));
    }
    match manifest.origin.geometry.resize {
        Some(Resize::ShortSide(side)) => row("resized", format!("short side to {side}, antialiased bilinear")),
        Some(Resize::Square(side)) => row("resized", format!("{side}×{side}, antialiased bilinear")),
        None => {}
    }
    if let Some(side) = manifest.origin.geometry.crop {
        row("cropped", format!("{side}×{side} at the centre"));
    }
    row("imported", manifest.created_at.format("%Y-%m-%d %H:%M UTC").to_string());
    table
}
