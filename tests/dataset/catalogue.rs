//! What the artifact store holds before, after and between.

use std::sync::Arc;

use crate::files::*;
use chrono::{TimeDelta, Utc};
use futures::TryStreamExt;
use gauntlet::dataset::{Catalogue, DatasetError, ImportOptions, Preset, Shape, Source};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

async fn objects(store: &InMemory) -> Vec<Path> {
    store.list(None).map_ok(|meta| meta.location).try_collect().await.unwrap()
}

#[tokio::test]
async fn every_range_reads_as_it_was_written() {
    let (catalogue, store) = catalogue();
    let set = sample(1);
    let manifest = import(&catalogue, "set", set.source()).await.unwrap();
    assert_eq!(objects(&store).await.len(), 5, "three shards, labels and the manifest");
    let size = set.shape.bytes();
    for start in 0..=N {
        for end in start..=N {
            let batch = catalogue.read(&manifest, start..end).await.unwrap();
            assert_eq!((batch.first, batch.shape), (start, set.shape));
            assert_eq!(batch.pixels, set.pixels[start * size..end * size]);
            assert!(batch.labels.iter().copied().eq(set.labels[start..end].iter().copied().map(u32::from)));
        }
    }
    assert!(matches!(catalogue.read(&manifest, 3..N + 1).await, Err(DatasetError::Range { images: N, .. })));
    catalogue.verify(&manifest).await.unwrap();
}

#[tokio::test]
async fn a_dataset_is_found_by_name_hash_and_beginning_of_hash() {
    let (catalogue, _) = catalogue();
    let manifest = import(&catalogue, "set", sample(1).source()).await.unwrap();
    import(&catalogue, "other", sample(3).source()).await.unwrap();
    let hash = manifest.hash.to_string();
    for key in ["set", &hash, &hash[..8]] {
        assert_eq!(catalogue.get(key).await.unwrap(), manifest, "{key}");
    }
    for key in ["sets", &hash[..7], "../names/set", ""] {
        assert!(matches!(catalogue.get(key).await, Err(DatasetError::NotFound(_))), "{key}");
    }
    let names: Vec<String> = catalogue.list().await.unwrap().into_iter().map(|m| m.name).collect();
    assert_eq!(names, ["other", "set"]);
}

#[tokio::test]
async fn importing_again_changes_nothing_and_other_content_needs_replace() {
    let (catalogue, store) = catalogue();
    let first = import(&catalogue, "set", sample(1).source()).await.unwrap();
    assert_eq!(import(&catalogue, "set", sample(1).source()).await.unwrap(), first);

    let refused = import(&catalogue, "set", sample(3).source()).await.unwrap_err();
    assert!(matches!(refused, DatasetError::Exists { difference: "content", .. }), "{refused}");
    let preset = ImportOptions { preset: Some(Preset::Mnist), ..import_options() };
    let refused = catalogue.import("set", Arc::new(sample(1).source()), &preset).await.unwrap_err();
    assert!(matches!(refused, DatasetError::Exists { difference: "preset", .. }), "{refused}");
    assert_eq!(catalogue.list().await.unwrap(), std::slice::from_ref(&first));
    catalogue.verify(&first).await.unwrap();

    let replace = ImportOptions { replace: true, ..import_options() };
    let second = catalogue.import("set", Arc::new(sample(3).source()), &replace).await.unwrap();
    assert_eq!(catalogue.list().await.unwrap(), std::slice::from_ref(&second));
    catalogue.verify(&second).await.unwrap();
    let old = first.hash.to_string();
    assert!(objects(&store).await.iter().all(|path| !path.as_ref().contains(&old)), "replaced data are deleted");
}

#[tokio::test]
async fn two_names_share_one_copy_until_the_last_is_removed() {
    let (catalogue, store) = catalogue();
    let one = import(&catalogue, "one", sample(1).source()).await.unwrap();
    // A later version may split the same pixels differently; the identity does not change and the data are shared.
    let wider = Catalogue::new(store.clone());
    let two = import(&wider, "two", sample(1).source()).await.unwrap();
    assert_eq!((two.hash, objects(&store).await.len()), (one.hash, 6));
    wider.verify(&two).await.unwrap();

    catalogue.remove("one").await.unwrap();
    wider.verify(&two).await.unwrap();
    catalogue.remove("two").await.unwrap();
    assert_eq!(objects(&store).await, []);
    assert!(matches!(catalogue.remove("two").await, Err(DatasetError::NotFound(_))));
}

#[tokio::test]
async fn the_split_does_not_enter_the_identity() {
    let (small, _) = catalogue();
    let large = Catalogue::new(Arc::new(InMemory::new()));
    let small = import(&small, "set", sample(1).source()).await.unwrap();
    let large = import(&large, "set", sample(1).source()).await.unwrap();
    assert_ne!(small.content, large.content);
    assert_eq!(small.hash, large.hash);
}

#[tokio::test]
async fn an_image_that_fails_to_decode_late_leaves_nothing() {
    let (catalogue, store) = catalogue();
    import(&catalogue, "before", sample(3).source()).await.unwrap();
    let before = objects(&store).await;

    let folder = tempfile::tempdir().unwrap();
    for image in 0..N as u8 {
        png(folder.path(), &format!("{}/{image}.png", image / 5), 4, 5, &[image; 20]);
    }
    let last = folder.path().join("1/6.png");
    let bytes = std::fs::read(&last).unwrap();
    std::fs::write(&last, &bytes[..bytes.len() - 20]).unwrap();
    let refused = import(&catalogue, "set", open(folder.path()).unwrap()).await.unwrap_err();
    assert!(refused.to_string().contains("1/6.png"), "{refused}");
    assert_eq!(objects(&store).await, before);
}

#[tokio::test]
async fn a_sweep_deletes_what_a_crash_left_and_nothing_else() {
    let (catalogue, store) = catalogue();
    let manifest = import(&catalogue, "set", sample(1).source()).await.unwrap();
    let whole = objects(&store).await;
    let left = ["datasets/staging/0f/pixels-00000.bin", "datasets/data/abc/labels.bin"];
    for path in left {
        store.put(&Path::from(path), "rest".into()).await.unwrap();
    }
    catalogue.sweep(Utc::now() - TimeDelta::hours(1)).await.unwrap();
    assert_eq!(objects(&store).await.len(), whole.len() + 2, "an import may still be under way");
    catalogue.sweep(Utc::now() + TimeDelta::hours(1)).await.unwrap();
    assert_eq!(objects(&store).await, whole);
    catalogue.verify(&manifest).await.unwrap();
}

#[tokio::test]
async fn damage_in_the_store_is_noticed_and_mended_by_importing_again() {
    let (catalogue, store) = catalogue();
    let manifest = import(&catalogue, "set", sample(1).source()).await.unwrap();
    let shard = Path::from(format!("datasets/data/{}/pixels-00001.bin", manifest.hash));
    let good = store.get(&shard).await.unwrap().bytes().await.unwrap();
    let mut flipped = good.to_vec();
    flipped[0] ^= 1;
    let is_damage = |error: DatasetError| matches!(error, DatasetError::Damaged { .. });

    store.put(&shard, flipped.into()).await.unwrap();
    assert!(catalogue.verify(&manifest).await.is_err_and(is_damage), "a flipped bit");
    store.put(&shard, good.slice(..10).into()).await.unwrap();
    assert!(catalogue.read(&manifest, 0..N).await.is_err_and(is_damage), "a short object");
    store.delete(&shard).await.unwrap();
    assert!(catalogue.read(&manifest, 0..N).await.is_err_and(is_damage), "a missing object");
    assert!(catalogue.read(&manifest, 0..3).await.is_ok(), "the other shards can be read");

    let again = import(&catalogue, "set", sample(1).source()).await.unwrap();
    catalogue.verify(&again).await.unwrap();
}

#[tokio::test]
async fn an_unreadable_manifest_is_named_and_can_be_removed() {
    let (catalogue, store) = catalogue();
    store.put(&Path::from("datasets/names/bad.json"), "{".into()).await.unwrap();
    let error = catalogue.list().await.unwrap_err();
    assert!(error.to_string().contains("dataset bad"), "{error}");
    catalogue.remove("bad").await.unwrap();
    assert_eq!(catalogue.list().await.unwrap(), []);
}

#[tokio::test]
async fn names_that_could_leave_their_folder_are_refused() {
    let (catalogue, store) = catalogue();
    for name in ["", ".", "..", "a/b", "../x", "-x", ".x", "a b", "é", &"x".repeat(65)] {
        let refused = import(&catalogue, name, sample(1).source()).await;
        assert!(matches!(refused, Err(DatasetError::Name(_))), "{name}");
    }
    assert_eq!(objects(&store).await, []);
}

#[tokio::test]
async fn a_local_directory_holds_datasets_and_keeps_no_staging() {
    let folder = tempfile::tempdir().unwrap();
    let store =
        object_store::local::LocalFileSystem::new_with_prefix(folder.path()).unwrap().with_automatic_cleanup(true);
    let catalogue = Catalogue::new(Arc::new(store)).with_shard_bytes(60);
    let manifest = import(&catalogue, "set", sample(1).source()).await.unwrap();
    catalogue.verify(&manifest).await.unwrap();
    assert!(!folder.path().join("datasets/staging").exists());
    let shard = folder.path().join(format!("datasets/data/{}/pixels-00002.bin", manifest.hash));
    std::fs::OpenOptions::new().write(true).open(&shard).unwrap().set_len(3).unwrap();
    for range in [6..7, 0..7] {
        assert!(matches!(catalogue.read(&manifest, range).await, Err(DatasetError::Damaged { .. })));
    }
    std::fs::write(shard, b"").unwrap();
    assert!(matches!(catalogue.read(&manifest, 6..7).await, Err(DatasetError::Damaged { .. })));
}

#[tokio::test]
async fn the_manifest_says_where_the_dataset_came_from() {
    let (catalogue, _) = catalogue();
    let folder = tempfile::tempdir().unwrap();
    let set = sample(1);
    let bytes = npz(&[("x", npy("|u1", &[7, 5, 4], &set.pixels)), ("y", npy("|u1", &[7], &set.labels))]);
    let source = open(&write(folder.path(), "set.npz", &bytes)).unwrap();
    let manifest = import(&catalogue, "set", source).await.unwrap();
    use sha2::Digest;
    let file = &manifest.origin.files[0];
    let sha256 = hex::encode(sha2::Sha256::digest(&bytes));
    assert_eq!((file.name.as_str(), file.bytes, &file.sha256), ("set.npz", bytes.len() as u64, &sha256));
    let json = serde_json::to_value(&manifest).unwrap();
    assert_eq!((&json["channels"], &json["origin"]["importer"]), (&1.into(), &"npz".into()));
    assert_eq!(serde_json::from_value::<gauntlet::dataset::Manifest>(json).unwrap(), manifest);
}

#[test]
fn arrays_that_do_not_fit_are_refused() {
    let shape = |channels, height| Shape { channels, height, width: 2 };
    let open =
        |shape, classes, bytes, labels: &[u32]| Source::in_memory(shape, classes, vec![0; bytes], labels.to_vec());
    assert!(open(shape(1, 2), 2, 8, &[0, 1]).is_ok());
    assert!(open(shape(1, 2), 2, 7, &[0, 1]).is_err(), "a byte short");
    assert!(open(shape(1, 2), 2, 8, &[0, 2]).is_err(), "a label too large");
    assert!(open(shape(2, 2), 2, 16, &[0, 1]).is_err(), "two channels");
    assert!(open(shape(1, 0), 2, 0, &[0, 1]).is_err(), "no pixels");
    assert!(open(shape(1, 2), 2, 0, &[]).is_err(), "no images");
}
