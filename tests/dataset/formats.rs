//! Every format yields the images and labels that were written.

use crate::files::*;
use gauntlet::dataset::{Channels, ContentHash, Preset, Shape, Source, SourceOptions, Split};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

fn hash(source: &Source) -> ContentHash {
    source.hash(&quiet()).unwrap()
}

#[test]
fn the_same_content_has_one_hash_in_every_array_format() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let set = sample(1);
    let expected = hash(&set.source());

    let images = idx(&[7, 5, 4], &set.pixels);
    let plain = write(folder, "plain-images-idx3-ubyte", &images);
    write(folder, "plain-labels-idx1-ubyte", &idx(&[7], &set.labels));
    let packed = write(folder, "packed-images-idx3-ubyte.gz", &gzip(&images));
    write(folder, "packed-labels-idx1-ubyte.gz", &gzip(&idx(&[7], &set.labels)));

    let wide: Vec<u8> = set.labels.iter().flat_map(|label| i64::from(*label).to_le_bytes()).collect();
    let floats: Vec<u8> = set.pixels.iter().flat_map(|v| (f32::from(*v) / 255.0).to_le_bytes()).collect();
    let big_endian: Vec<u8> = set.pixels.iter().flat_map(|v| u16::from(*v).to_be_bytes()).collect();
    let labels = || npy("<i8", &[7], &wide);
    let bytes = npz(&[("x", npy("|u1", &[7, 5, 4], &set.pixels)), ("y", labels())]);
    let bytes = write(folder, "bytes.npz", &bytes);
    let floats = npz(&[("target", npy("|u1", &[7, 1], &set.labels)), ("data", npy("<f4", &[7, 1, 5, 4], &floats))]);
    let floats = write(folder, "floats.npz", &floats);
    let shorts = npz(&[("labels", labels()), ("images", npy(">u2", &[7, 5, 4, 1], &big_endian))]);
    let shorts = write(folder, "shorts.npz", &shorts);

    let tensors = [
        ("images", TensorView::new(Dtype::U8, vec![7, 5, 4], &set.pixels).unwrap()),
        ("labels", TensorView::new(Dtype::I64, vec![7], &wide).unwrap()),
    ];
    let tensors = write(folder, "set.safetensors", &safetensors::serialize(tensors, None).unwrap());

    for path in [plain, packed, bytes, floats, shorts, tensors] {
        let source = open(&path).unwrap();
        assert_eq!((source.len(), source.classes(), source.shape()), (N, 4, set.shape), "{}", path.display());
        assert_eq!(hash(&source), expected, "{}", path.display());
    }

    let array = write(folder, "x.npy", &npy("|u1", &[7, 5, 4], &set.pixels));
    let labels = Some(write(folder, "y.npy", &labels()));
    let source = Source::open(&array, &SourceOptions { labels, ..SourceOptions::default() }).unwrap();
    assert_eq!(hash(&source), expected);
}

#[test]
fn the_hash_changes_with_pixels_labels_order_shape_and_classes() {
    let set = sample(1);
    let labels: Vec<u32> = set.labels.iter().copied().map(u32::from).collect();
    let of = |shape, classes, pixels: &[u8], labels: &[u32]| {
        hash(&Source::in_memory(shape, classes, pixels.to_vec(), labels.to_vec()).unwrap())
    };
    let mut pixel = set.pixels.clone();
    pixel[9] ^= 1;
    let mut label = labels.clone();
    label[2] = 0;
    let mut order = labels.clone();
    order.swap(0, 1);
    let turned = Shape { channels: 1, height: 4, width: 5 };
    let mut hashes = vec![
        of(set.shape, 4, &set.pixels, &labels),
        of(set.shape, 5, &set.pixels, &labels),
        of(turned, 4, &set.pixels, &labels),
        of(set.shape, 4, &pixel, &labels),
        of(set.shape, 4, &set.pixels, &label),
        of(set.shape, 4, &set.pixels, &order),
    ];
    hashes.sort();
    hashes.dedup();
    assert_eq!(hashes.len(), 6);
}

/// An independent statement of the canonical form; a change of the hash would orphan every imported dataset.
#[test]
fn the_content_hash_is_sha_256_of_the_documented_bytes() {
    use sha2::Digest;
    let shape = Shape { channels: 1, height: 1, width: 2 };
    let source = Source::in_memory(shape, 3, vec![7, 8, 9, 10], vec![2, 1]).unwrap();
    let mut bytes = b"gauntlet dataset v1\n".to_vec();
    bytes.extend([2u64, 1, 1, 2, 3].iter().flat_map(|v| v.to_le_bytes()));
    bytes.extend([7, 8, 9, 10, 2, 0, 0, 0, 1, 0, 0, 0]);
    assert_eq!(hash(&source).to_string(), hex::encode(sha2::Sha256::digest(bytes)));
}

#[test]
fn channels_last_and_channels_first_are_the_same_images() {
    let folder = tempfile::tempdir().unwrap();
    let set = sample(3);
    let labels = npy("|u1", &[7], &set.labels);
    let last = npz(&[("x", npy("|u1", &[7, 5, 4, 3], &set.interleaved())), ("y", labels.clone())]);
    let first = npz(&[("x", npy("|u1", &[7, 3, 5, 4], &set.pixels)), ("y", labels)]);
    for (name, bytes) in [("last.npz", last), ("first.npz", first)] {
        let source = open(&write(folder.path(), name, &bytes)).unwrap();
        let batch = source.read(0..N, &quiet()).unwrap();
        assert!(batch.pixels == set.pixels && batch.shape == set.shape, "{name}");
    }
}

#[test]
fn cifar_batches_are_read_in_order_with_their_names() {
    let folder = tempfile::tempdir().unwrap();
    let record = |label: &[u8], fill: u8| [label, &[fill; 3072][..]].concat();
    let ten = folder.path().join("ten");
    write(&ten, "data_batch_1.bin", &record(&[9], 1));
    write(&ten, "data_batch_2.bin", &[record(&[4], 2), record(&[0], 3)].concat());
    write(&ten, "test_batch.bin", &record(&[7], 4));
    let names: String = (0..10).map(|i| format!("class{i}\n")).collect();
    write(&ten, "batches.meta.txt", format!("{names}\n").as_bytes());

    let test = open(&ten).unwrap();
    assert_eq!((test.labels(), test.classes(), test.preset()), (&[7][..], 10, Some(Preset::Cifar10)));
    assert_eq!(test.class_names().unwrap()[7], "class7");
    let train = Source::open(&ten, &SourceOptions { split: Some(Split::Train), ..SourceOptions::default() }).unwrap();
    assert_eq!(train.labels(), [9, 4, 0]);
    assert_eq!(train.read(2..3, &quiet()).unwrap().pixels, [3; 3072]);

    let hundred = write(folder.path(), "hundred/test.bin", &record(&[19, 99], 5));
    let source = open(&hundred).unwrap();
    assert_eq!((source.labels(), source.classes(), source.preset()), (&[99][..], 100, Some(Preset::Cifar100)));
}

#[test]
fn a_folder_with_both_mnist_parts_means_the_test_part() {
    let folder = tempfile::tempdir().unwrap();
    for (part, label) in [("t10k", 4), ("train", 6)] {
        write(folder.path(), &format!("{part}-images-idx3-ubyte"), &idx(&[1, 28, 28], &[label; 784]));
        write(folder.path(), &format!("{part}-labels-idx1-ubyte"), &idx(&[1], &[label]));
    }
    write(folder.path(), "t10k-images-idx3-ubyte.gz", &gzip(&idx(&[1, 28, 28], &[4; 784])));
    let source = open(folder.path()).unwrap();
    assert_eq!((source.labels(), source.classes(), source.preset()), (&[4][..], 10, Some(Preset::Mnist)));
    let train = SourceOptions { split: Some(Split::Train), ..SourceOptions::default() };
    assert_eq!(Source::open(folder.path(), &train).unwrap().labels(), [6]);
}

#[test]
fn class_folders_are_numbered_in_name_order() {
    let folder = tempfile::tempdir().unwrap();
    for (name, value) in
        [("dog/b.png", 3), ("cat/z.png", 1), ("dog/a.png", 2), ("dog/more/0.png", 4), (".cache/x.png", 9)]
    {
        png(folder.path(), name, 2, 1, &[value; 2]);
    }
    write(folder.path(), "notes.txt", b"not an image");
    let source = open(folder.path()).unwrap();
    assert_eq!(source.class_names().unwrap(), ["cat", "dog"]);
    assert_eq!(source.labels(), [0, 1, 1, 1]);
    let batch = source.read(0..4, &quiet()).unwrap();
    assert_eq!(batch.shape, Shape { channels: 1, height: 1, width: 2 }, "grey images stay grey");
    assert_eq!(batch.pixels, [1, 1, 2, 2, 3, 3, 4, 4]);
    let rgb = SourceOptions { channels: Some(Channels::Rgb), ..SourceOptions::default() };
    assert_eq!(Source::open(folder.path(), &rgb).unwrap().read(1..2, &quiet()).unwrap().pixels, [2; 6]);
}

#[test]
fn flat_names_with_wordnet_ids_get_imagenet_classes() {
    let folder = tempfile::tempdir().unwrap();
    png(folder.path(), "n02123159_tiger_cat.png", 1, 1, &[1]);
    png(folder.path(), "n01440764_tench.png", 1, 1, &[2]);
    let source = open(folder.path()).unwrap();
    assert_eq!((source.labels(), source.classes(), source.preset()), (&[0, 282][..], 1000, Some(Preset::Imagenet)));
    assert_eq!(source.class_names().unwrap()[282], "tiger cat");
}

#[test]
fn a_labels_file_says_which_images_in_which_order() {
    let folder = tempfile::tempdir().unwrap();
    for (name, value) in [("a.png", 1), ("b.png", 2), ("c.png", 3)] {
        png(folder.path(), name, 1, 1, &[value]);
    }
    let with = |text: &str| {
        let labels = Some(write(folder.path(), "labels.csv", text.as_bytes()));
        Source::open(folder.path(), &SourceOptions { labels, ..SourceOptions::default() }).unwrap()
    };
    let numbers = with("file,label\nc.png,5\na.png,0\n");
    assert_eq!((numbers.labels(), numbers.classes()), (&[5, 0][..], 6));
    assert_eq!(numbers.read(0..2, &quiet()).unwrap().pixels, [3, 1]);
    let names = with("b.png, zebra\na.png, ant\n");
    assert_eq!(
        (names.labels(), names.class_names().unwrap()),
        (&[1, 0][..], &["ant".to_owned(), "zebra".to_owned()][..])
    );
}

#[test]
fn the_shipped_digits_open_at_32_pixels() {
    let options = SourceOptions {
        geometry: gauntlet::dataset::Geometry { resize: Some(gauntlet::dataset::Resize::Square(32)), crop: None },
        ..SourceOptions::default()
    };
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("data/digits/digits.npz");
    let source = Source::open(&path, &options).unwrap();
    assert_eq!((source.len(), source.classes()), (1797, 10));
    assert_eq!(source.shape(), Shape { channels: 1, height: 32, width: 32 });
}
