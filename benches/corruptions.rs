//! Milliseconds per image of every corruption and severity, one thread: `cargo bench --bench corruptions [-- IMAGE]`.
//!
//! Prints `{"bench": …, "cells": [{"id", "value", "unit"}], "summary": {…}}`. The image is the 224-pixel test picture unless a file
//! is named. `tools/bench/corruptions.py` runs the Python rival on the same picture and joins the two.

use std::time::{Duration, Instant};

use gauntlet::robustness::corruption::{
    Channels, Corruption, FrostTextures, Image, Keyed, Recipe, Severity, Shape, Table,
};
use serde_json::json;

/// Time spent on a cell.
const BUDGET: Duration = Duration::from_millis(150);

fn main() {
    let named = std::env::args().skip(1).find(|a| !a.starts_with('-'));
    let path =
        named.unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/corruption/astronaut-224.png").into());
    let picture = image::open(&path).expect("the picture can be read").to_rgb8();
    let shape = Shape { height: picture.height() as usize, width: picture.width() as usize, channels: Channels::Rgb };
    let image = Image::new(shape, picture.into_raw()).expect("the decoder fills the shape");
    let textures = FrostTextures::procedural();

    let mut cells = Vec::new();
    let mut total = 0.0;
    for corruption in Corruption::ALL {
        for severity in Severity::ALL {
            let table = Table::for_shape(shape).unwrap_or(Table::Px224);
            let recipe = Recipe { corruption, severity, table, saved: false };
            let milliseconds = fastest(|draw| {
                let mut random = Keyed::new(0, u64::from(severity.get()), draw);
                std::hint::black_box(recipe.apply(std::hint::black_box(&image), &textures, &mut random));
            });
            total += milliseconds;
            let id = format!("{}-{}", corruption.name(), severity.get());
            cells.push(json!({"id": id, "value": milliseconds, "unit": "ms"}));
        }
    }
    let report = json!({"bench": "corruptions", "cells": cells, "summary": {"total_19x5_ms": total}});
    println!("{}", serde_json::to_string_pretty(&report).expect("plain data"));
}

/// Milliseconds of the fastest of repeated calls, after one to warm up: other work on the machine can only add.
fn fastest(mut call: impl FnMut(u64)) -> f64 {
    call(0);
    let end = Instant::now() + BUDGET;
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
