//! Every corruption, severity and table against the original Python package, byte for byte, under NumPy's random numbers.
//!
//! `tests/data/corruption/reference.txt` holds hashes of the package's output (made by `tools/golden/corruptions.py`). Where a kernel
//! does not give the same bytes, `differences.txt` lists the places and the package's bytes: put in, they must complete the hash, and
//! they must keep within the bounds that [`allowed`] gives with their causes.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use gauntlet::robustness::corruption::{
    Channels, Corruption, FrostTextures, Image, NumpyCompat, Recipe, Severity, Shape, Table, Texture, saved,
};
use sha2::{Digest, Sha256};

/// How far a cell may be from the reference.
struct Bound {
    /// Share of the bytes that may differ.
    share: f64,
    /// Grey levels.
    levels: u8,
}

/// The differences that are understood. Every other cell must match to the last bit.
fn allowed(cell: &Cell) -> Bound {
    let share = match cell.name.as_str() {
        // OpenCV multiplies spectra where kernels are as large as these; its noise meets sums that are whole numbers.
        "defocus_blur" => 2e-5,
        // OpenCV's grey conversion fuses multiplications and additions.
        "snow" => 2e-5,
        _ => return Bound { share: 0.0, levels: 0 },
    };
    Bound { share, levels: 1 }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Cell {
    table: usize,
    picture: String,
    name: String,
    severity: u8,
}

struct Reference {
    cell: Cell,
    seed: u32,
    hash: String,
}

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/corruption").join(name)
}

fn references() -> Vec<Reference> {
    let text = std::fs::read_to_string(data("reference.txt")).unwrap();
    let line = |line: &str| {
        let fields: Vec<&str> = line.split(' ').collect();
        let cell = cell_of(&fields[..4]);
        Reference { cell, seed: fields[4].parse().unwrap(), hash: fields[5].into() }
    };
    text.lines().filter(|l| !l.starts_with('#')).map(line).collect()
}

fn cell_of(fields: &[&str]) -> Cell {
    Cell {
        table: fields[0].parse().unwrap(),
        picture: fields[1].into(),
        name: fields[2].into(),
        severity: fields[3].parse().unwrap(),
    }
}

/// (place, the reference's byte) of every cell that has any.
fn differences() -> HashMap<Cell, Vec<(usize, u8)>> {
    let text = std::fs::read_to_string(data("differences.txt")).unwrap();
    let pair = |pair: &str| {
        let (place, byte) = pair.split_once(':').unwrap();
        (place.parse().unwrap(), byte.parse().unwrap())
    };
    let line = |line: &str| {
        let fields: Vec<&str> = line.split(' ').collect();
        (cell_of(&fields[..4]), fields[4].split(',').map(pair).collect())
    };
    text.lines().filter(|l| !l.starts_with('#')).map(line).collect()
}

/// The pictures of `tools/golden/corruptions.py`.
fn picture(name: &str, side: usize) -> Image {
    let shape = Shape { height: side, width: side, channels: Channels::Rgb };
    let pixels = |value: &dyn Fn(usize, usize) -> [u8; 3]| {
        (0..side * side).flat_map(|i| value(i / side, i % side)).collect::<Vec<u8>>()
    };
    let bytes = match name {
        "flat" => vec![200; side * side * 3],
        "ramp" => pixels(&|y, x| {
            [x * 255 / (side - 1), y * 255 / (side - 1), (x + y) * 255 / (2 * side - 2)].map(|v| v as u8)
        }),
        "checker" => pixels(&|y, x| if (x / 8 + y / 8).is_multiple_of(2) { [255, 0, 30] } else { [10, 250, 90] }),
        "noise" => {
            let mut state = 1u64;
            let step = || {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 56) as u8
            };
            std::iter::repeat_with(step).take(side * side * 3).collect()
        }
        natural => image::open(data(&format!("{natural}-{side}.png"))).unwrap().to_rgb8().into_raw(),
    };
    Image::new(shape, bytes).unwrap()
}

/// The stand-ins that the reference run used for the published frost pictures.
fn frost() -> FrostTextures {
    let sizes = [(600, 900), (315, 560), (315, 560), (350, 527), (495, 660)];
    FrostTextures::from_pictures(std::array::from_fn(|i| {
        let (height, width) = sizes[i];
        let value = |n: usize| {
            let (y, x, c) = (n / 3 / width, n / 3 % width, n % 3);
            ((x * (3 + i) + y * 5 + c * 40 + x * y / 7) % 256) as u8
        };
        Texture { height, width, rgb: (0..height * width * 3).map(value).collect() }
    }))
}

fn corrupted(reference: &Reference, frost: &FrostTextures) -> Vec<u8> {
    let Cell { table, picture: name, name: kind, severity } = &reference.cell;
    let image = picture(name, *table);
    let side = *table;
    match kind.as_str() {
        "saved" => saved(&image).into_bytes(),
        "saved_17x23" => {
            let crop = (3..20).flat_map(|y| image.bytes()[(y * side + 5) * 3..(y * side + 28) * 3].to_vec()).collect();
            let shape = Shape { height: 17, width: 23, channels: Channels::Rgb };
            saved(&Image::new(shape, crop).unwrap()).into_bytes()
        }
        "saved_grey" => {
            let shape = Shape { channels: Channels::Grey, ..image.shape() };
            let red = image.bytes().iter().step_by(3).copied().collect();
            saved(&Image::new(shape, red).unwrap()).into_bytes()
        }
        _ => {
            let recipe = Recipe {
                corruption: Corruption::from_name(kind).unwrap(),
                severity: Severity::new(*severity).unwrap(),
                table: Table::for_shape(image.shape()).unwrap(),
                saved: false,
            };
            recipe.apply(&image, frost, &mut NumpyCompat::new(reference.seed)).into_bytes()
        }
    }
}

fn hash(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))[..16].into()
}

/// Runs `work` on every reference on all processors.
fn for_all(work: impl Fn(&Reference, Vec<u8>) + Sync) {
    let (queue, frost) = (Mutex::new(references()), frost());
    let processors = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| {
        for _ in 0..processors {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap().pop();
                    let Some(reference) = next else { break };
                    let bytes = corrupted(&reference, &frost);
                    work(&reference, bytes);
                }
            });
        }
    });
}

#[test]
fn bytes_equal_the_original_package_up_to_the_listed_differences() {
    let differences = differences();
    let failures = Mutex::new(Vec::new());
    for_all(|reference, mut bytes| {
        let listed = differences.get(&reference.cell).map_or(&[][..], |d| d);
        let bound = allowed(&reference.cell);
        let (mut levels, size) = (0, bytes.len());
        for &(place, byte) in listed {
            levels = levels.max(bytes[place].abs_diff(byte));
            bytes[place] = byte;
        }
        if hash(&bytes) != reference.hash {
            failures.lock().unwrap().push(format!("{:?}: other bytes than the reference's", reference.cell));
        }
        if levels > bound.levels || listed.len() as f64 > bound.share * size as f64 {
            let text = format!("{:?}: {} of {size} bytes differ, by up to {levels}", reference.cell, listed.len());
            failures.lock().unwrap().push(text);
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{} cells:\n{}", failures.len(), failures.join("\n"));
}

/// `GAUNTLET_GOLDEN_RAW=RAW_DIR cargo test --test corruption_golden -- --ignored` rewrites `differences.txt`.
#[test]
#[ignore = "needs the raw output of tools/golden/corruptions.py"]
fn record_differences() {
    let raw = PathBuf::from(std::env::var("GAUNTLET_GOLDEN_RAW").expect("GAUNTLET_GOLDEN_RAW names the folder"));
    let lines = Mutex::new(Vec::new());
    for_all(|reference, bytes| {
        let Cell { table, picture, name, severity } = &reference.cell;
        let theirs = std::fs::read(raw.join(format!("{table}-{picture}-{name}-{severity}.bin"))).unwrap();
        let different: Vec<usize> = (0..bytes.len()).filter(|&i| bytes[i] != theirs[i]).collect();
        if different.is_empty() {
            return;
        }
        let largest = different.iter().map(|&i| bytes[i].abs_diff(theirs[i])).max().unwrap();
        eprintln!("{table} {picture} {name} {severity}: {} of {} by ≤ {largest}", different.len(), bytes.len());
        let mut line = format!("{table} {picture} {name} {severity} ");
        for (n, i) in different.iter().take(3000).enumerate() {
            write!(line, "{}{i}:{}", if n > 0 { "," } else { "" }, theirs[*i]).unwrap();
        }
        lines.lock().unwrap().push(line);
    });
    let mut lines = lines.into_inner().unwrap();
    lines.sort();
    let head = "# table picture corruption severity place:byte,… (the reference's byte where ours is another)\n";
    std::fs::write(data("differences.txt"), format!("{head}{}\n", lines.join("\n"))).unwrap();
}
