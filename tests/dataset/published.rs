//! Published corrupted sets: ImageNet-C's tree and CIFAR-10-C's arrays.

use std::path::Path;
use std::sync::Arc;

use crate::files::*;
use futures::TryStreamExt;
use gauntlet::dataset::{
    Catalogue, Content, DatasetError, Geometry, ImportOptions, Manifest, Part, Preset, PublishedFiles, Resize, Source,
    SourceOptions, published_cells,
};
use gauntlet::protocol::{Corruption, Severity};
use object_store::ObjectStore;

#[test]
fn cifar_10_c_arrays_fall_into_five_severities_with_their_labels() {
    let folder = tempfile::tempdir().unwrap();
    let (labels, pixels): (Vec<u8>, Vec<u8>) = ((0..10).collect(), (0..10).flat_map(|i| [i; 32 * 32 * 3]).collect());
    write(folder.path(), "labels.npy", &npy("|u1", &[10], &labels));
    for name in ["fog", "saturate", "test_images"] {
        write(folder.path(), &format!("{name}.npy"), &npy("|u1", &[10, 32, 32, 3], &pixels));
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

    write(folder.path(), "fog.npy", &npy("|u1", &[9, 32, 32, 3], &pixels[..9 * 3072]));
    write(folder.path(), "labels.npy", &npy("|u1", &[9], &labels[..9]));
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

/// CIFAR-10-C's form of the grey sample: of every type five severities, whose pixels are the clean ones plus type and severity.
fn cifar_form(folder: &Path, types: &[Corruption]) {
    let set = sample(1);
    write(folder, "labels.npy", &npy("|u1", &[5 * N], &set.labels.repeat(5)));
    for &corruption in types {
        let pixels: Vec<u8> = Severity::ALL.iter().flat_map(|&severity| corrupted(corruption, severity)).collect();
        write(folder, &format!("{}.npy", corruption.name()), &npy("|u1", &[5 * N, 5, 4], &pixels));
    }
}

fn corrupted(corruption: Corruption, severity: Severity) -> Vec<u8> {
    let more = corruption as u8 * 5 + severity.get();
    sample(1).pixels.iter().map(|pixel| pixel.wrapping_add(more)).collect()
}

async fn import_set(catalogue: &Catalogue, folder: &Path, clean: Option<&Manifest>) -> Result<Manifest, DatasetError> {
    let files = PublishedFiles::new(published_cells(folder, &SourceOptions::default())?)?;
    let options = ImportOptions { preset: Some(Preset::Cifar10), ..import_options() };
    catalogue.import_published("set-c", files, clean, &options).await
}

const TWO: [Corruption; 2] = [Corruption::Fog, Corruption::Pixelate];

#[tokio::test]
async fn a_published_set_is_one_dataset_of_cells_and_the_clean_images_they_were_made_of() {
    let (catalogue, store) = catalogue();
    let objects = async || -> usize { store.list(None).try_collect::<Vec<_>>().await.unwrap().len() };
    let clean = import(&catalogue, "set", sample(1).source()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    cifar_form(folder.path(), &TWO);
    let set = import_set(&catalogue, folder.path(), Some(&clean)).await.unwrap();
    assert_eq!((set.images, set.shape, set.parts().count()), (N as u64, clean.shape, 11));
    // Clean images are shared; a cell has three objects and labels.
    assert_eq!(objects().await, 5 + 10 * 4 + 1);
    assert_eq!(catalogue.read(&set, 2..5).await.unwrap(), catalogue.read(&clean, 2..5).await.unwrap());
    for (corruption, severity) in [(TWO[0], Severity::ALL[0]), (TWO[1], Severity::ALL[4])] {
        let read = catalogue.read_part(&set, Part::Published(corruption, severity), 1..N).await.unwrap();
        assert_eq!(read.pixels, corrupted(corruption, severity)[20..]);
        assert_eq!(read.labels, [0, 1, 2, 0, 3, 1]);
    }
    let snow = catalogue.read_part(&set, Part::Published(Corruption::Snow, Severity::ALL[0]), 0..1).await;
    assert!(snow.unwrap_err().to_string().contains("dataset set-c has no published images of snow at severity 1"));
    catalogue.verify(&set).await.unwrap();
    let names: Vec<&str> = set.origin.files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(names, ["fog.npy", "labels.npy", "pixelate.npy"]);
    let json = serde_json::to_value(&set).unwrap();
    assert_eq!(json["cells"][9]["type"], "pixelate");
    assert_eq!(serde_json::from_value::<Manifest>(json).unwrap(), set);

    // Again is the same; without the clean images it is another dataset.
    assert_eq!(import_set(&catalogue, folder.path(), Some(&clean)).await.unwrap(), set);
    let other = import_set(&catalogue, folder.path(), None).await.unwrap_err();
    assert!(matches!(other, DatasetError::Exists { difference: "content", .. }), "{other}");
    // What the set names outlives the dataset it came from, and a sweep; the last name takes everything along.
    catalogue.remove("set").await.unwrap();
    catalogue.sweep(chrono::Utc::now() + chrono::TimeDelta::hours(1)).await.unwrap();
    catalogue.verify(&set).await.unwrap();
    catalogue.remove("set-c").await.unwrap();
    assert_eq!(objects().await, 0);
}

#[tokio::test]
async fn files_that_cannot_be_one_set_are_refused_and_leave_nothing() {
    let (catalogue, store) = catalogue();
    let folder = tempfile::tempdir().unwrap();
    cifar_form(folder.path(), &TWO);
    let refusal =
        async |clean: Option<&Manifest>| import_set(&catalogue, folder.path(), clean).await.unwrap_err().to_string();

    let mut other = sample(1);
    other.labels[3] = 1;
    let wrong = import(&catalogue, "wrong", other.source()).await.unwrap();
    assert!(refusal(Some(&wrong)).await.contains("other labels than the published files, first at image 3"));
    let few = Source::in_memory(other.shape, 4, other.pixels[..60].to_vec(), vec![3, 0, 1]).unwrap();
    let few = import(&catalogue, "few", few).await.unwrap();
    assert!(refusal(Some(&few)).await.contains("dataset few has 3 images"));

    // A cell of a tree that lacks an image.
    for (severity, images) in [("1", 4), ("2", 3)] {
        for image in 0..images {
            png(folder.path(), &format!("snow/{severity}/{}/{image}.png", image % 2), 4, 5, &[image as u8; 20]);
        }
    }
    std::fs::remove_file(folder.path().join("fog.npy")).unwrap();
    std::fs::remove_file(folder.path().join("pixelate.npy")).unwrap();
    let before = store.list(None).try_collect::<Vec<_>>().await.unwrap().len();
    let refused = refusal(None).await;
    assert!(
        refused.contains("snow/2") && refused.contains("3 images") && refused.contains("snow-1 holds 4"),
        "{refused}"
    );
    assert_eq!(store.list(None).try_collect::<Vec<_>>().await.unwrap().len(), before);
}

#[tokio::test]
async fn files_read_where_they_lie_have_the_hash_of_the_imported_set() {
    let (catalogue, _) = catalogue();
    let folder = tempfile::tempdir().unwrap();
    cifar_form(folder.path(), &TWO[..1]);
    let set = import_set(&catalogue, folder.path(), None).await.unwrap();
    assert!(matches!(&set.content, Content::Published(set) if set.clean.is_none()));
    assert!(matches!(catalogue.read(&set, 0..1).await, Err(DatasetError::NoPart { part: Part::Clean, .. })));
    let files = PublishedFiles::new(published_cells(folder.path(), &SourceOptions::default()).unwrap()).unwrap();
    assert_eq!(files.hash(&(Arc::new(|_| {}) as _)).unwrap(), set.hash);
}
