//! Milliseconds per image of every corruption and severity on one thread, against the fastest maintained Python package.
//!
//! The kernels run before and after the rival, and the slower of their two figures counts. A cell is the fastest of repeated
//! calls after one to warm up, on both sides: other work on the machine can only add.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Cell, Report};
use crate::robustness::corruption::{
    Channels, Corruption, FrostTextures, Image, Keyed, Recipe, Severity, Shape, Table,
};

/// What is timed unless a picture is named, 224 × 224 pixels.
const PICTURE: &[u8] = include_bytes!("../../../tests/data/corruption/astronaut-224.png");
const RIVAL: &str = include_str!("../../../tools/bench/corruptions.py");

/// What to measure.
#[derive(Debug, Clone)]
pub struct CorruptionOptions {
    pub picture: Option<PathBuf>,
    /// A Python that has the rival installed.
    pub python: PathBuf,
    /// Time spent on a cell, on each side and turn.
    pub budget: Duration,
}

/// What the rival's script prints.
#[derive(Deserialize)]
struct Rival {
    /// Milliseconds, by cell.
    cells: HashMap<String, f64>,
    versions: Value,
}

pub fn run(options: &CorruptionOptions) -> anyhow::Result<Report> {
    let (image, bytes) = picture(options.picture.as_deref())?;
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(&bytes)?;

    let before = kernels(&image, options.budget);
    let rival = rival(&options.python, file.path(), options.budget)?;
    let after = kernels(&image, options.budget);
    let cells = before.into_iter().zip(after).map(|((id, a), (_, b))| {
        let rival = *rival.cells.get(&id).with_context(|| format!("the rival has no {id}"))?;
        Ok(Cell::speedup(id, a.max(b), "ms", rival))
    });
    let cells: Vec<Cell> = cells.collect::<anyhow::Result<_>>()?;
    let (total, rival_total): (f64, f64) = (cells.iter().map(|c| c.value).sum(), cells.iter().map(|c| c.rival).sum());
    let mut ratios: Vec<f64> = cells.iter().map(|c| c.ratio).collect();
    ratios.sort_by(f64::total_cmp);
    let summary = [
        ("total_ms", json!(total)),
        ("rival_total_ms", json!(rival_total)),
        ("total_ratio", json!(rival_total / total)),
        ("median_ratio", json!(ratios[ratios.len() / 2])),
        ("smallest_ratio", json!(ratios[0])),
        ("rival", rival.versions),
        ("optimised_build", json!(!cfg!(debug_assertions))),
    ];
    Ok(Report {
        bench: "corruptions",
        cells,
        summary: Map::from_iter(summary.map(|(key, value)| (key.to_owned(), value))),
    })
}

/// The picture to corrupt, and the file it comes from.
pub fn picture(path: Option<&Path>) -> anyhow::Result<(Image, Vec<u8>)> {
    let bytes = match path {
        None => PICTURE.to_vec(),
        Some(path) => std::fs::read(path).with_context(|| path.display().to_string())?,
    };
    let picture = image::load_from_memory(&bytes).context("the picture cannot be read")?.into_rgb8();
    let shape = Shape { height: picture.height() as usize, width: picture.width() as usize, channels: Channels::Rgb };
    Ok((Image::new(shape, picture.into_raw())?, bytes))
}

fn rival(python: &Path, picture: &Path, budget: Duration) -> anyhow::Result<Rival> {
    let output = Command::new(python)
        .args(["-c", RIVAL, "--min-time", &budget.as_secs_f64().to_string()])
        .arg(picture)
        .stderr(std::process::Stdio::inherit())
        .output()
        .with_context(|| format!("{} does not start", python.display()))?;
    ensure!(
        output.status.success(),
        "the rival failed; `--python` names a Python that has it, tools/bench/corruptions.py says which packages it needs"
    );
    serde_json::from_slice(&output.stdout).context("the rival printed something else")
}

/// (cell, milliseconds)
fn kernels(image: &Image, budget: Duration) -> Vec<(String, f64)> {
    let textures = FrostTextures::procedural();
    let table = Table::for_shape(image.shape()).unwrap_or(Table::Px224);
    let cell = |corruption: Corruption, severity: Severity| {
        let recipe = Recipe { corruption, severity, table, saved: false };
        let milliseconds = fastest(budget, |draw| {
            let mut random = Keyed::new(0, u64::from(severity.get()), draw);
            std::hint::black_box(recipe.apply(std::hint::black_box(image), &textures, &mut random));
        });
        (format!("{}-{}", corruption.name(), severity.get()), milliseconds)
    };
    Corruption::ALL.into_iter().flat_map(|c| Severity::ALL.map(|s| cell(c, s))).collect()
}

/// Milliseconds of the fastest of repeated calls, after one to warm up.
fn fastest(budget: Duration, mut call: impl FnMut(u64)) -> f64 {
    call(0);
    let end = Instant::now() + budget;
    let mut least = f64::INFINITY;
    let mut draw = 0;
    while draw < 5 || Instant::now() < end {
        draw += 1;
        let start = Instant::now();
        call(draw);
        least = least.min(start.elapsed().as_secs_f64() * 1e3);
    }
    least
}
