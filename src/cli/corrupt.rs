//! `gauntlet corrupt`: one picture, corrupted; or a sheet of all corruptions.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use image::imageops::{FilterType, overlay, resize};
use image::{DynamicImage, GrayImage, RgbImage};

use crate::config::Settings;
use crate::protocol::{Corruption, CorruptionCondition, Mode, Pictures, Severity, Table};
use crate::robustness::corruption::{Channels, FrostTextures, Image, Keyed, NumpyCompat, Recipe, Shape};
use crate::store::frost::FrostFiles;

#[derive(Debug, Args)]
pub struct CorruptArguments {
    /// A PNG or JPEG file.
    picture: PathBuf,
    /// gaussian_noise, fog, jpeg_compression, …
    #[arg(long = "type", value_name = "TYPE", value_parser = corruption, required_unless_present = "sheet")]
    corruption: Option<Corruption>,
    /// 1 to 5.
    #[arg(long, value_parser = severity, required_unless_present = "sheet")]
    severity: Option<Severity>,
    /// Draw every type at every severity on one sheet instead.
    #[arg(long, conflicts_with_all = ["corruption", "severity"])]
    sheet: bool,
    /// Side of a picture on the sheet, in pixels.
    #[arg(long, value_name = "S", default_value_t = 112, value_parser = clap::value_parser!(u32).range(16..=1024))]
    tile: u32,
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u32,
    /// Draw NumPy's numbers, as the Python packages do after `numpy.random.seed(N)`.
    #[arg(long)]
    numpy_compat: bool,
    /// The side of the images that the wanted parameters were published for: 224, 299, 64 or 32 [default: the picture's].
    #[arg(long, value_name = "SIDE", value_parser = table)]
    table: Option<Table>,
    /// Add what a JPEG file of quality 85 loses, as in the published ImageNet-C.
    #[arg(long)]
    saved: bool,
    /// Where to write the result; PNG or JPEG by its ending.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

fn corruption(text: &str) -> Result<Corruption, String> {
    let names = || Corruption::ALL.map(Corruption::name).join(", ");
    Corruption::from_name(text).ok_or_else(|| format!("there are {}", names()))
}

fn severity(text: &str) -> Result<Severity, String> {
    text.parse::<u8>().ok().and_then(|s| Severity::new(s).ok()).ok_or_else(|| "severities are 1 to 5".into())
}

fn table(text: &str) -> Result<Table, String> {
    Table::ALL.into_iter().find(|t| t.side().to_string() == text).ok_or_else(|| "tables are 224, 299, 64 and 32".into())
}

pub fn run(arguments: &CorruptArguments, settings: &Settings) -> anyhow::Result<()> {
    let picture = read(&arguments.picture)?;
    let shape = picture.shape();
    let Some(table) = arguments.table.or(Table::for_shape(shape)) else {
        let (height, width) = (shape.height, shape.width);
        bail!(
            "{}: no parameters were published for pictures of {width}×{height} pixels; choose with --table 224 (or 299, 64, 32)",
            arguments.picture.display()
        );
    };
    let textures = match settings.frost_folder() {
        None => FrostTextures::procedural(),
        Some(folder) => FrostTextures::decode(&FrostFiles::read(&folder)?.0)?,
    };
    let frost = arguments.sheet || arguments.corruption == Some(Corruption::Frost);
    if frost && *textures.pictures() == Pictures::Procedural {
        eprintln!(
            "Note: frost is drawn from computed pictures (frost-proc); `make provision` fetches the published ones."
        );
    }
    let corrupted = |corruption, severity| {
        let condition = CorruptionCondition {
            corruption,
            severity,
            table,
            mode: if arguments.saved { Mode::Saved } else { Mode::InMemory },
            pictures: None,
            labels: Vec::new(),
        };
        let recipe = Recipe::from(&condition);
        if arguments.numpy_compat {
            recipe.apply(&picture, &textures, &mut NumpyCompat::new(arguments.seed))
        } else {
            let key = condition.random_key();
            recipe.apply(&picture, &textures, &mut Keyed::new(arguments.seed.into(), key, 0))
        }
    };
    let result = match (arguments.corruption, arguments.severity) {
        (Some(corruption), Some(severity)) => drawn(corrupted(corruption, severity)),
        _ => sheet(&picture, arguments.tile, corrupted),
    };
    result.save(&arguments.output).with_context(|| arguments.output.display().to_string())
}

fn read(path: &Path) -> anyhow::Result<Image> {
    let picture = image::ImageReader::open(path)
        .and_then(image::ImageReader::with_guessed_format)
        .map_err(anyhow::Error::from)
        .and_then(|reader| Ok(reader.decode()?))
        .with_context(|| path.display().to_string())?;
    let grey = !picture.color().has_color();
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let (channels, bytes) = match grey {
        true => (Channels::Grey, picture.into_luma8().into_raw()),
        false => (Channels::Rgb, picture.into_rgb8().into_raw()),
    };
    Ok(Image::new(Shape { height, width, channels }, bytes)?)
}

fn drawn(image: Image) -> DynamicImage {
    let Shape { height, width, channels } = image.shape();
    let (width, height, bytes) = (width as u32, height as u32, image.into_bytes());
    let whole = "an image has as many bytes as its shape says";
    match channels {
        Channels::Grey => GrayImage::from_raw(width, height, bytes).expect(whole).into(),
        Channels::Rgb => RgbImage::from_raw(width, height, bytes).expect(whole).into(),
    }
}

/// Types of a band; the last place of the second band shows the picture itself.
const ACROSS: usize = 10;
/// Pixels between the bands.
const GAP: u32 = 8;

/// Two bands of ten columns: a type a column in the benchmark's order, severities 1 to 5 downwards.
fn sheet(picture: &Image, tile: u32, corrupted: impl Fn(Corruption, Severity) -> Image) -> DynamicImage {
    let rows = Severity::ALL.len() as u32;
    let mut sheet = RgbImage::from_pixel(tile * ACROSS as u32, 2 * rows * tile + GAP, image::Rgb([255; 3]));
    let mut put = |place: usize, row: usize, image: Image| {
        let small = resize(&drawn(image).into_rgb8(), tile, tile, FilterType::Triangle);
        let band = place / ACROSS;
        let y = (band as u32 * (rows * tile + GAP) + row as u32 * tile).into();
        overlay(&mut sheet, &small, i64::from(tile) * (place % ACROSS) as i64, y);
    };
    for (row, severity) in Severity::ALL.into_iter().enumerate() {
        for (place, corruption) in Corruption::ALL.into_iter().enumerate() {
            put(place, row, corrupted(corruption, severity));
        }
        put(Corruption::ALL.len(), row, picture.clone());
    }
    sheet.into()
}
