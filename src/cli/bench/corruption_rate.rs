//! Corrupted images per second of the protocol `imagenet-c`, by number of threads: what an evaluator can offer its model.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Map, json};

use super::corruptions::picture;
use super::{Cell, Report};
use crate::robustness::corruption::{
    Corruption, FrostTextures, Group, Image, Keyed, Recipe, Severity, Table, prefetched,
};

/// Items made ahead of the consumer, as for kernel batches of 32.
const WINDOW: usize = 64;

/// What to measure.
#[derive(Debug, Clone)]
pub struct RateOptions {
    pub picture: Option<PathBuf>,
    /// Numbers of threads to try.
    pub threads: Vec<usize>,
    /// Least time spent on each.
    pub budget: Duration,
}

/// A rate per number of threads, against that of one thread in the same run.
pub fn run(options: &RateOptions) -> anyhow::Result<Report> {
    let image = picture(options.picture.as_deref())?.0;
    let table = Table::for_shape(image.shape()).unwrap_or(Table::Px224);
    let mix: Vec<Recipe> = Corruption::ALL
        .into_iter()
        .filter(|corruption| corruption.group() != Group::Extra)
        .flat_map(|corruption| Severity::ALL.map(|severity| Recipe { corruption, severity, table, saved: false }))
        .collect();
    let one = rate(&image, &mix, 1, options.budget);
    let cells: Vec<Cell> = options
        .threads
        .iter()
        .map(|&threads| {
            let value = if threads == 1 { one } else { rate(&image, &mix, threads, options.budget) };
            Cell::new(format!("threads-{threads}"), value, "images/s", one)
        })
        .collect();
    let summary = [
        ("cores", json!(std::thread::available_parallelism().map_or(1, usize::from))),
        ("milliseconds_per_image_and_core", json!(1e3 / one)),
        ("optimised_build", json!(!cfg!(debug_assertions))),
    ];
    Ok(Report {
        bench: "corruption-rate",
        cells,
        summary: Map::from_iter(summary.map(|(key, value)| (key.to_owned(), value))),
    })
}

/// Images per second through the evaluator's prefetcher, planar as the model takes them; best of three turns, because other
/// work on the machine can only slow it down.
fn rate(image: &Image, mix: &[Recipe], threads: usize, budget: Duration) -> f64 {
    let textures = FrostTextures::procedural();
    let turn = |rounds: usize| {
        let make = |item: usize| {
            let mut random = Keyed::new(0, (item % mix.len()) as u64, item as u64);
            mix[item % mix.len()].apply(image, &textures, &mut random).to_planes()
        };
        let items = rounds * mix.len();
        let start = Instant::now();
        prefetched(items, threads, WINDOW + threads, make, |images| {
            (0..items).for_each(|_| drop(std::hint::black_box(images.take())));
        });
        start.elapsed().as_secs_f64() / items as f64
    };
    // The first warms up, and tells how many rounds fill a third of the time.
    let rounds = ((budget.as_secs_f64() / 3.0 / (turn(1) * mix.len() as f64)) as usize).max(1);
    1.0 / (0..3).map(|_| turn(rounds)).fold(f64::INFINITY, f64::min)
}
