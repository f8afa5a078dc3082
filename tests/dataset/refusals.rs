//! Corrupt or mislabelled input gets an error that names the file and the fault.

use std::path::Path;

use crate::files::*;
use gauntlet::dataset::{DatasetError, Geometry, Resize, Source, SourceOptions};

/// Opening must fail, naming `file` and saying `fault`.
fn refuses(path: &Path, options: &SourceOptions, file: &str, fault: &str) {
    let Err(error) = Source::open(path, options) else { panic!("{} was accepted", path.display()) };
    assert!(matches!(error, DatasetError::File { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(file) && text.contains(fault), "{text:?} should name {file:?} and say {fault:?}");
}

fn refuses_plainly(path: &Path, fault: &str) {
    refuses(path, &SourceOptions::default(), path.file_name().unwrap().to_str().unwrap(), fault);
}

#[test]
fn damaged_idx_files() {
    let folder = tempfile::tempdir().unwrap();
    let good = idx(&[2, 2, 2], &[9; 8]);
    let labels = idx(&[2], &[0, 1]);
    let set = |images: &[u8], labels: &[u8]| {
        write(folder.path(), "a-labels-idx1-ubyte", labels);
        write(folder.path(), "a-images-idx3-ubyte", images)
    };
    assert!(open(&set(&good, &labels)).is_ok());
    refuses_plainly(&set(&good[..good.len() - 1], &labels), "truncated");
    refuses_plainly(&set(&good[..7], &labels), "truncated");
    refuses_plainly(&set(&[&good[..], &[1]].concat(), &labels), "holds more");
    refuses_plainly(&set(&idx(&[u32::MAX, u32::MAX, u32::MAX], &[]), &labels), "more than its 16 bytes");
    refuses_plainly(&set(&idx(&[u32::MAX, 28, 28], &[0; 8]), &labels), "more than its");
    refuses_plainly(&set(&labels, &labels), "holds idx labels");
    refuses_plainly(&set(&good, &idx(&[3], &[0, 1, 0])), "2 images but there are 3 labels");
    refuses(&set(&good, &good), &SourceOptions::default(), "a-labels-idx1-ubyte", "holds idx images");
    let two = SourceOptions { classes: Some(2), ..SourceOptions::default() };
    refuses(&set(&good, &idx(&[2], &[0, 2])), &two, "a-images", "label 2 of image 1 is out of range");

    let packed = write(folder.path(), "b-images-idx3-ubyte.gz", &gzip(&good)[..20]);
    write(folder.path(), "b-labels-idx1-ubyte.gz", &gzip(&labels));
    refuses_plainly(&packed, "damaged");
    // 4 GiB promised by a few bytes.
    write(folder.path(), "b-images-idx3-ubyte.gz", &gzip(&idx(&[1 << 20, 64, 64], &[])));
    refuses_plainly(&packed, "more than its");
    let lonely = write(folder.path(), "c-images-idx3-ubyte", &good);
    refuses_plainly(&lonely, "--labels");
}

#[test]
fn damaged_and_mistaken_arrays() {
    let folder = tempfile::tempdir().unwrap();
    let y = || npy("|u1", &[2], &[0, 1]);
    let x = || npy("|u1", &[2, 2, 2], &[9; 8]);
    let set = |arrays: &[(&str, Vec<u8>)]| write(folder.path(), "set.npz", &npz(arrays));
    assert!(open(&set(&[("x", x()), ("y", y())])).is_ok());
    refuses_plainly(&set(&[("x", x()), ("why", y())]), "present: x, why");
    refuses_plainly(&set(&[("x", x()), ("y", npy("|u1", &[3], &[0; 3]))]), "2 images but there are 3 labels");
    refuses_plainly(&set(&[("x", x()), ("y", npy("|i1", &[2], &[0, 0xff]))]), "image 1 is not a class number");
    refuses_plainly(&set(&[("x", x()), ("y", npy("|u1", &[1, 2], &[0, 1]))]), "shape [1, 2]");
    refuses_plainly(&set(&[("x", npy("|u1", &[2, 4], &[9; 8])), ("y", y())]), "[n, height, width]");
    refuses_plainly(&set(&[("x", npy("|u1", &[2, 2, 3], &[9; 8])), ("y", y())]), "array x: ");
    refuses_plainly(&set(&[("x", npy("<i2", &[2, 1, 1], &[9, 0, 0, 1])), ("y", y())]), "image 1 has a pixel outside");
    refuses_plainly(&set(&[("x", npy("<f2", &[2, 1, 1], &[0; 4])), ("y", y())]), "float16");
    refuses_plainly(&set(&[("x", npy("|O", &[2, 1, 1], &[0; 4])), ("y", y())]), "uint8");
    refuses_plainly(&set(&[("x", npy("|u1", &[0, 1, 1], &[])), ("y", npy("|u1", &[0], &[]))]), "no images");

    for (value, ok) in
        [(100.0 / 255.0, true), (100.0 / 255.0 + 9e-5, true), (0.3935, false), (2.0, false), (f32::NAN, false)]
    {
        let floats = [0.0f32.to_le_bytes(), value.to_le_bytes()].concat();
        let path = set(&[("x", npy("<f4", &[2, 1, 1], &floats)), ("y", y())]);
        if ok {
            assert_eq!(open(&path).unwrap().read(1..2, &quiet()).unwrap().pixels, [100]);
        } else {
            refuses_plainly(&path, "8-bit");
        }
    }

    let bytes = npz(&[("x", x()), ("y", y())]);
    refuses_plainly(&write(folder.path(), "cut.npz", &bytes[..bytes.len() - 30]), "truncated");
    refuses_plainly(&write(folder.path(), "cut.safetensors", &[200, 0, 0, 0, 0, 0, 0, 0, b'{']), "truncated");
    refuses_plainly(&write(folder.path(), "x.npy", &x()), "--labels");
    refuses_plainly(&write(folder.path(), "x.parquet", b"PAR1"), "no known format");
    refuses_plainly(&write(folder.path(), "cifar-10-binary.tar.gz", b"\x1f\x8b"), "unpack it");
    refuses_plainly(&folder.path().join("absent.npz"), "No such file");
}

/// A zip whose directory promises far more than its bytes can inflate to.
#[test]
fn a_zip_that_promises_too_much() {
    let folder = tempfile::tempdir().unwrap();
    let mut bytes = npz(&[("y", npy("|u1", &[2], &[0, 1])), ("x", npy("|u1", &[2, 2, 2], &[9; 8]))]);
    // The uncompressed size lies 24 bytes into the last central directory entry.
    let entry = bytes.windows(4).rposition(|w| w == b"PK\x01\x02").unwrap();
    bytes[entry + 24..entry + 28].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
    refuses_plainly(&write(folder.path(), "bomb.npz", &bytes), "more than its");
}

#[test]
fn damaged_cifar_batches() {
    let folder = tempfile::tempdir().unwrap();
    refuses_plainly(&write(folder.path(), "test_batch.bin", &[0; 3072]), "not a multiple of 3073");
    refuses_plainly(&write(folder.path(), "test_batch.bin", &[10; 3073]), "record 0 has label 10");
    refuses_plainly(&write(folder.path(), "mine.bin", &[0; 100]), "not a whole number");
}

#[test]
fn image_folders_that_cannot_be_a_dataset() {
    let root = tempfile::tempdir().unwrap();
    let folder = |name: &str| {
        let path = root.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path
    };
    refuses_plainly(&folder("empty"), "no JPEG or PNG");

    let hollow = folder("hollow");
    png(&hollow, "a/1.png", 1, 1, &[0]);
    std::fs::create_dir(hollow.join("b")).unwrap();
    refuses(&hollow, &SourceOptions::default(), "hollow/b", "without");

    let mixed = folder("mixed");
    png(&mixed, "a/1.png", 4, 3, &[0; 12]);
    png(&mixed, "b/2.png", 3, 4, &[0; 12]);
    refuses(&mixed, &SourceOptions::default(), "b/2.png", "is 3×4 pixels where a/1.png is 4×3");
    let crop =
        |crop| SourceOptions { geometry: Geometry { resize: None, crop: Some(crop) }, ..SourceOptions::default() };
    assert!(Source::open(&mixed, &crop(3)).is_ok());
    refuses(&mixed, &crop(4), "a/1.png", "smaller than the crop");
    let three = SourceOptions { classes: Some(3), ..SourceOptions::default() };
    refuses(&mixed, &three, "mixed", "holds 2 classes, but --classes says 3");

    let stray = folder("stray");
    png(&stray, "a/1.png", 1, 1, &[0]);
    png(&stray, "top.png", 1, 1, &[0]);
    refuses_plainly(&stray, "holds both");

    let unnamed = folder("unnamed");
    let image = png(&unnamed, "cat.png", 1, 1, &[0]);
    refuses(&unnamed, &SourceOptions::default(), "cat.png", "--labels");
    refuses_plainly(&image, "give the folder");

    let broken = folder("broken");
    png(&broken, "a/1.png", 1, 1, &[0]);
    write(&broken, "b/2.jpg", b"\xff\xd8\xff\xd9");
    refuses(&broken, &SourceOptions::default(), "b/2.jpg", "cannot be decoded");
    let jpeg = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/pipeline/full.jpg")).unwrap();
    for keep in [jpeg.len() / 2, jpeg.len() - 2] {
        write(&broken, "b/2.jpg", &jpeg[..keep]);
        refuses(&broken, &SourceOptions::default(), "b/2.jpg", "truncated");
    }
    std::fs::remove_file(broken.join("b/2.jpg")).unwrap();
    write(&broken, "b/2.webp", b"RIFF");
    refuses(&broken, &SourceOptions::default(), "b/2.webp", "neither JPEG nor PNG");

    let deep = folder("deep");
    image::save_buffer(deep.join("n01440764_x.png"), &[0; 2], 1, 1, image::ExtendedColorType::L16).unwrap();
    refuses(&deep, &SourceOptions::default(), "n01440764_x.png", "more than 8 bits");
}

#[test]
fn labels_files_that_do_not_fit() {
    let root = tempfile::tempdir().unwrap();
    png(root.path(), "a.png", 1, 1, &[0]);
    for (text, fault) in [
        ("a.png,0\nb.png,1\n", "line 2: b.png is not in"),
        ("a.png\n", "line 1: needs two fields"),
        ("a.png,0\na.png,cat\n", "line 2: \"cat\" is not a class number"),
        ("a.png,0\na.png,-1\n", "line 2: \"-1\" is not a class number"),
    ] {
        let labels = Some(write(root.path(), "labels.csv", text.as_bytes()));
        refuses(root.path(), &SourceOptions { labels, ..SourceOptions::default() }, "labels.csv", fault);
    }
    let labels = Some(write(root.path(), "labels.csv", b"file,label\n"));
    refuses(root.path(), &SourceOptions { labels, ..SourceOptions::default() }, "", "no images");
}

#[test]
fn options_out_of_range() {
    let set = tempfile::tempdir().unwrap();
    png(set.path(), "a/1.png", 1, 1, &[0]);
    let geometry = |resize, crop| SourceOptions { geometry: Geometry { resize, crop }, ..SourceOptions::default() };
    for (option, options) in [
        ("size", geometry(Some(Resize::Square(0)), None)),
        ("resize", geometry(Some(Resize::ShortSide(5000)), None)),
        ("crop", geometry(None, Some(0))),
        ("classes", SourceOptions { classes: Some(1), ..SourceOptions::default() }),
    ] {
        let refused = Source::open(set.path(), &options).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(refused.starts_with(&format!("{option}: must be ")), "{refused}");
    }
}

/// A PNG of which the header says what we want, with a correct checksum, and the picture is missing.
fn png_that_claims(width: u32, height: u32) -> Vec<u8> {
    let mut header = b"IHDR".to_vec();
    header.extend([width.to_be_bytes(), height.to_be_bytes()].concat());
    header.extend([8, 2, 0, 0, 0]);
    let mut crc = flate2::Crc::new();
    crc.update(&header);
    let end = *b"\0\0\0\0IDAT\x35\xaf\x06\x1e\0\0\0\0IEND\xae\x42\x60\x82";
    [b"\x89PNG\r\n\x1a\n\0\0\0\x0d", &header[..], &crc.sum().to_be_bytes(), &end].concat()
}

/// Pictures of a few bytes that claim gigabytes of pixels: the claim alone takes no memory.
#[test]
fn pictures_that_promise_too_much() {
    let root = tempfile::tempdir().unwrap();
    png(root.path(), "a/1.png", 1, 1, &[0]);
    let jpeg = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/pipeline/full.jpg")).unwrap();
    let frame = jpeg.windows(2).position(|w| w[0] == 0xff && matches!(w[1], 0xc0 | 0xc2)).unwrap();
    let mut huge = jpeg.clone();
    huge[frame + 5..frame + 9].fill(0xff);
    for (name, bytes) in [
        ("b/2.png", png_that_claims(60_000, 60_000)),
        ("b/2.png", png_that_claims(u32::MAX, u32::MAX)),
        ("b/2.jpg", huge),
    ] {
        std::fs::remove_dir_all(root.path().join("b")).ok();
        write(root.path(), name, &bytes);
        let options = SourceOptions {
            geometry: Geometry { resize: Some(Resize::Square(8)), crop: None },
            ..SourceOptions::default()
        };
        let read = Source::open(root.path(), &options).and_then(|source| source.read(0..2, &quiet()));
        let error = read.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains(name), "{name}: {error:?}");
    }
}

#[test]
fn absurd_safetensors_and_npy_headers() {
    let folder = tempfile::tempdir().unwrap();
    let tensors = |header: &str, data: &[u8]| {
        write(
            folder.path(),
            "absurd.safetensors",
            &[&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat(),
        )
    };
    let y = r#""y": {"dtype": "U8", "shape": [2], "data_offsets": [8, 10]}"#;
    let x = |shape: &str, offsets: &str| {
        format!(r#"{{"x": {{"dtype": "U8", "shape": {shape}, "data_offsets": {offsets}}}, {y}}}"#)
    };
    let data = [0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    assert!(open(&tensors(&x("[2, 2, 2]", "[0, 8]"), &data)).is_ok());
    for (shape, offsets) in [
        ("[2, 2, 2]", "[0, 9]"),
        ("[2, 2, 2]", "[8, 0]"),
        ("[2, 2, 2]", "[0, 18446744073709551615]"),
        ("[4294967296, 4294967296, 4294967296]", "[0, 8]"),
        ("[2, -2, 2]", "[0, 8]"),
    ] {
        refuses_plainly(&tensors(&x(shape, offsets), &data), "safetensors");
    }
    let path = write(folder.path(), "absurd.safetensors", &[&u64::MAX.to_le_bytes()[..], b"{}"].concat());
    refuses_plainly(&path, "safetensors");
    let deep = format!("{}1{}", "[".repeat(200_000), "]".repeat(200_000));
    refuses_plainly(&tensors(&deep, &data), "safetensors");

    let y = || npy("|u1", &[2], &[0, 1]);
    for shape in [&[usize::MAX, 2, 2][..], &[1 << 40, 1 << 40, 1 << 40]] {
        let bytes = npz(&[("x", npy("|u1", shape, &[9; 8])), ("y", y())]);
        refuses_plainly(&write(folder.path(), "absurd.npz", &bytes), "array x");
    }
    let mut long = npy("|u1", &[2, 2, 2], &[9; 8]);
    long[8..10].copy_from_slice(&u16::MAX.to_le_bytes());
    refuses_plainly(&write(folder.path(), "absurd.npz", &npz(&[("x", long), ("y", y())])), "absurd.npz");
}
