//! Pixels equal Pillow's.

use std::path::PathBuf;

use crate::files::quiet;
use gauntlet::dataset::resample::{Filter, Resampler};
use gauntlet::dataset::{Geometry, Resize, Source, SourceOptions};
use serde::Deserialize;
use sha2::Digest;

fn data(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

#[derive(Deserialize)]
struct Goldens {
    cases: Vec<Golden>,
}

#[derive(Deserialize, Debug)]
struct Golden {
    seed: u64,
    from: (usize, usize),
    to: (usize, usize),
    channels: usize,
    filter: String,
    sha256: String,
}

#[test]
fn resampling_is_pillows_bit_for_bit() {
    let goldens: Goldens = serde_json::from_slice(&std::fs::read(data("resample.json")).unwrap()).unwrap();
    assert!(goldens.cases.len() >= 20);
    for case in goldens.cases {
        let count = (case.from.0 * case.from.1 * case.channels) as u64;
        let input: Vec<u8> =
            (0..count).map(|i| (((i * 2_654_435_761 + case.seed * 97) & 0xffff_ffff) >> 24) as u8).collect();
        let filter = if case.filter == "box" { Filter::Box } else { Filter::Bilinear };
        let resampler = Resampler::new(case.from, case.to, filter);
        let output = if case.channels == 3 { resampler.rgb(&input) } else { resampler.plane(&input) };
        assert_eq!(hex::encode(sha2::Sha256::digest(output)), case.sha256, "{case:?}");
    }
}

/// Decoded, resized and cropped here and by Pillow: largest difference in levels, and mean.
fn differences(name: &str) -> (u8, f64) {
    let folder = tempfile::tempdir().unwrap();
    let file = data("pipeline").join(name);
    let labels = folder.path().join("labels.csv");
    std::fs::write(&labels, format!("{name},0\n")).unwrap();
    let options = SourceOptions {
        labels: Some(labels),
        channels: Some(gauntlet::dataset::Channels::Rgb),
        geometry: Geometry { resize: Some(Resize::ShortSide(32)), crop: Some(28) },
        ..SourceOptions::default()
    };
    let batch = Source::open(file.parent().unwrap(), &options).unwrap().read(0..1, &quiet()).unwrap();
    let expected = std::fs::read(file.with_extension("rgb")).unwrap();
    assert_eq!(expected.len(), batch.pixels.len());
    let difference = |i: usize| batch.pixels[i].abs_diff(expected[i % 784 * 3 + i / 784]);
    let total: f64 = (0..expected.len()).map(|i| f64::from(difference(i))).sum();
    ((0..expected.len()).map(difference).max().unwrap(), total / expected.len() as f64)
}

#[test]
fn png_of_every_kind_comes_out_exactly_as_from_pillow() {
    for name in ["rgb.png", "tall.png", "alpha.png", "grey.png", "palette.png"] {
        assert_eq!(differences(name).0, 0, "{name}");
    }
}

#[test]
fn jpeg_stays_within_the_decoders_rounding() {
    for name in ["full.jpg", "subsampled.jpg"] {
        let (largest, mean) = differences(name);
        assert!(largest <= 3 && mean < 0.5, "{name}: at most {largest}, mean {mean}");
    }
}
