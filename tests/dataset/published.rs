//! Published corrupted sets: ImageNet-C's tree and CIFAR-10-C's arrays.

use std::path::Path;

use gauntlet::dataset::{Geometry, Resize, Source, SourceOptions, published_cells};

fn quiet() -> gauntlet::dataset::Progress {
    std::sync::Arc::new(|_| {})
}

fn npy(path: &Path, shape: &str, data: &[u8]) {
    let header = format!("{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n");
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend((header.len() as u16).to_le_bytes());
    file.extend(header.as_bytes());
    file.extend(data);
    std::fs::write(path, file).unwrap();
}

#[test]
fn cifar_10_c_arrays_fall_into_five_severities_with_their_labels() {
    let folder = tempfile::tempdir().unwrap();
    let (labels, pixels): (Vec<u8>, Vec<u8>) = ((0..10).collect(), (0..10).flat_map(|i| [i; 32 * 32 * 3]).collect());
    npy(&folder.path().join("labels.npy"), "(10,)", &labels);
    for name in ["fog", "saturate", "test_images"] {
        npy(&folder.path().join(format!("{name}.npy")), "(10, 32, 32, 3)", &pixels);
    }
    let cells = published_cells(folder.path(), &SourceOptions::default()).unwrap();
    let names: Vec<String> = cells.iter().map(|c| format!("{}-{}", c.corruption.name(), c.severity.get())).collect();
    assert_eq!(names.len(), 10);
    assert_eq!(names[..6], ["fog-1", "fog-2", "fog-3", "fog-4", "fog-5", "saturate-1"]);
    let fog_4 = Source::open(&cells[3].path, &cells[3].options).unwrap();
    assert_eq!(fog_4.labels(), [6, 7]);
    let batch = fog_4.read(0..2, &quiet()).unwrap();
    assert!(batch.pixels[..3072].iter().all(|&v| v == 6) && batch.pixels[3072..].iter().all(|&v| v == 7));
    assert_eq!(published_cells(&folder.path().join("test_images.npy"), &SourceOptions::default()).unwrap().len(), 0);

    npy(&folder.path().join("fog.npy"), "(9, 32, 32, 3)", &pixels[..9 * 3072]);
    npy(&folder.path().join("labels.npy"), "(9,)", &labels[..9]);
    let error = Source::open(&cells[0].path, &cells[0].options).err().unwrap().to_string();
    assert!(error.contains("five severities"), "{error}");
}

#[test]
fn an_imagenet_c_tree_is_cropped_and_never_resized_again() {
    let folder = tempfile::tempdir().unwrap();
    for (severity, class, level) in [(1, "n01514668", 10u8), (1, "n01440764", 20), (3, "n01514668", 30)] {
        let leaf = folder.path().join(format!("motion_blur/{severity}/{class}"));
        std::fs::create_dir_all(&leaf).unwrap();
        image::RgbImage::from_pixel(228, 226, image::Rgb([level; 3])).save(leaf.join("ILSVRC2012_val_1.png")).unwrap();
    }
    let crop = SourceOptions { geometry: Geometry { resize: None, crop: Some(224) }, ..SourceOptions::default() };
    let parts = ["", "motion_blur", "motion_blur/3"].map(|part| {
        let cells = published_cells(&folder.path().join(part), &crop).unwrap();
        cells.iter().map(|c| (c.corruption.name(), c.severity.get())).collect::<Vec<_>>()
    });
    assert_eq!(parts[0], [("motion_blur", 1), ("motion_blur", 3)]);
    assert_eq!((&parts[1], &parts[2]), (&parts[0], &vec![("motion_blur", 3)]));
    let cells = published_cells(folder.path(), &crop).unwrap();
    let source = Source::open(&cells[0].path, &cells[0].options).unwrap();
    assert_eq!((source.labels(), source.shape().height, source.classes()), (&[0, 7][..], 224, 1000));
    let resized = Geometry { resize: Some(Resize::ShortSide(256)), crop: Some(224) };
    let error = published_cells(folder.path(), &SourceOptions { geometry: resized, ..crop }).unwrap_err().to_string();
    assert!(error.contains("second resize"), "{error}");
}
