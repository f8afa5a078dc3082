//! The protocol `imagenet-c` through real workers: the same verdicts for any cut and for a local run, judged like clean
//! images, with groups, labels and intervals in the table.

mod common;

use std::process::Command;
use std::sync::Arc;

use common::world::{World, by_cell, digits_spec, repository};
use gauntlet::dataset::{ImportOptions, Source};
use gauntlet::protocol::{ConditionKind, Label, Pictures, Protocol, Scene};
use gauntlet::robustness::corruption::{Channels, FrostTextures, Image, Keyed, Recipe, Shape};
use gauntlet::store::evaluations::{self, State};
use gauntlet::store::{evidence, report};
use serde_json::Value;

const FIRST: u32 = 1297;
const IMAGES: u32 = 70;
const SEED: i64 = 5;

fn protocol() -> Protocol {
    let document = include_str!("../src/protocol/builtin/imagenet-c.toml");
    Protocol::from_toml(document, &[("severity".into(), "[1, 4]".into())]).unwrap()
}

#[tokio::test]
async fn imagenet_c_on_the_digits_does_not_depend_on_the_cut_and_has_groups_intervals_and_labels() {
    let world = World::new().await;
    world.import_digits().await;
    let model = world.add_model(&repository("models/digits/standard.pt"), &digits_spec()).await;
    let _crew = [world.worker(), world.worker()];
    assert_eq!(world.until_checked(model.id).await.state, "ready");
    world.pretend_speed(model.id, 1e-9).await;
    let whole = world.submit(model.id, &protocol(), FIRST, IMAGES, &[SEED]).await;
    let ended = world.until_ended(whole).await;
    assert_eq!((ended.state, ended.shards_total), (State::Succeeded, 16), "{:?}", ended.outcome);
    world.pretend_speed(model.id, 1e3).await;
    let cut = world.submit(model.id, &protocol(), FIRST, IMAGES, &[SEED]).await;
    assert_eq!(world.until_ended(cut).await.shards_total, 48);

    let expected = world.verdicts(whole).await;
    assert_eq!(expected.len(), 31 * IMAGES as usize);
    assert_eq!(world.verdicts(cut).await, expected);
    let (local, verdicts) = local_run(&world, &[]);
    assert_eq!(by_cell(evidence::from_parquet(verdicts.into()).unwrap()), expected);
    judged_like_clean_images(&world, model.id, whole).await;

    let evaluation = evaluations::get(&world.pool, whole).await.unwrap().unwrap();
    let table = report::table(&world.pool, &evaluation).await.unwrap();
    let parts = table.columns.corruptions.clone().unwrap();
    assert!(!parts.official && table.columns.mce.is_none());
    assert_eq!((parts.groups.len(), parts.types.len()), (4, 15));
    let noise: Vec<f64> = table.conditions[1..7].iter().map(|row| row.accuracy.unwrap()).collect();
    assert!((parts.groups[0].accuracy - noise.iter().sum::<f64>() / 6.0).abs() < 1e-12);
    let cells: Vec<f64> = table.conditions[1..].iter().map(|row| row.accuracy.unwrap()).collect();
    let mean = cells.iter().sum::<f64>() / 30.0;
    assert!((table.columns.corruption.unwrap() - mean).abs() < 1e-12);
    assert!((table.columns.corruption_error.unwrap() - (1.0 - mean)).abs() < 1e-12);
    assert!(mean < table.columns.clean.unwrap(), "corruptions cost nothing");
    assert!(table.conditions.iter().all(|row| row.ci95.is_some()));
    assert!(table.provenance["cpu_time"]["corruption_seconds"].as_f64().unwrap() > 0.0, "{}", table.provenance);
    assert!(table.diagnostics.findings.iter().any(|f| f.code == "frost_stand_in"));
    let ConditionKind::Corruption(frost) = &table.conditions[17].condition.kind else { panic!("frost-1") };
    assert_eq!(frost.labels, [Label::UnofficialSize, Label::FrostProc]);
    assert_eq!(local["columns"], serde_json::to_value(&table.columns).unwrap());

    // An operator's own pictures reach the evaluator, and are said to be no others.
    let folder = world.data.path().join("pictures");
    std::fs::create_dir(&folder).unwrap();
    for (i, name) in gauntlet::robustness::corruption::FROST_FILES.iter().enumerate() {
        image::RgbImage::from_pixel(90, 80, image::Rgb([40 * i as u8; 3])).save(folder.join(name)).unwrap();
    }
    let (own, _) = local_run(&world, &[("GAUNTLET_FROST", folder.to_str().unwrap())]);
    let row = |table: &Value, id: &str| -> Value {
        table["conditions"].as_array().unwrap().iter().find(|row| row["id"] == id).unwrap().clone()
    };
    assert_eq!(row(&own, "frost-4")["labels"], serde_json::json!(["unofficial-size", "frost-custom"]));
    assert_eq!(row(&own, "fog-4"), row(&local, "fog-4"));
}

/// `gauntlet run`: its table and its verdicts.
fn local_run(world: &World, environment: &[(&str, &str)]) -> (Value, Vec<u8>) {
    let file = world.data.path().join("protocol.toml");
    std::fs::write(&file, toml::to_string(&protocol()).unwrap()).unwrap();
    let out = world.data.path().join("verdicts.parquet");
    let output = Command::new(env!("CARGO_BIN_EXE_gauntlet"))
        .args(["run", "--dataset", "digits", "--threads", "1", "--format", "json", "--seed", &SEED.to_string()])
        .args(["--offset", &FIRST.to_string(), "--images", &IMAGES.to_string()])
        .arg("--protocol")
        .arg(&file)
        .arg("--verdicts")
        .arg(&out)
        .arg("--data-dir")
        .arg(world.data.path())
        .arg(repository("models/digits/standard.pt"))
        // No pictures but those that the test names.
        .env("XDG_CACHE_HOME", world.data.path())
        .env("GAUNTLET_DEVICE", "cpu")
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    (serde_json::from_slice(&output.stdout).unwrap(), std::fs::read(out).unwrap())
}

/// Corrupts the digits here, imports the result as a dataset of its own, and compares its clean verdicts.
async fn judged_like_clean_images(world: &World, model: uuid::Uuid, evaluation: uuid::Uuid) {
    let scene = Scene::new(None, [1, 32, 32], Pictures::Procedural);
    let conditions = protocol().conditions_for(&scene).unwrap();
    let digits = world.catalogue.get("digits").await.unwrap();
    let batch = world.catalogue.read(&digits, FIRST as usize..(FIRST + IMAGES) as usize).await.unwrap();
    let shape = Shape { height: 32, width: 32, channels: Channels::Grey };
    let textures = FrostTextures::procedural();
    let (mut pixels, mut labels, mut ids) = (Vec::new(), Vec::new(), Vec::new());
    for condition in &conditions[1..] {
        let ConditionKind::Corruption(corruption) = &condition.kind else { panic!("{}", condition.id) };
        for (offset, planes) in batch.pixels.chunks(32 * 32).enumerate() {
            let image = Image::from_planes(shape, planes).unwrap();
            let index = u64::from(FIRST) + offset as u64;
            let mut random = Keyed::new(SEED as u64, condition.random_key(), index);
            pixels.extend(Recipe::from(corruption).apply(&image, &textures, &mut random).to_planes());
            labels.push(batch.labels[offset]);
            ids.push((condition.id.clone(), index as u32));
        }
    }
    let source = Source::in_memory(batch.shape, 10, pixels, labels).unwrap();
    let options = ImportOptions { preset: None, replace: true, progress: Arc::new(|_| {}) };
    world.catalogue.import("digits", Arc::new(source), &options).await.unwrap();
    let clean = Protocol::from_toml(include_str!("../src/protocol/builtin/clean.toml"), &[]).unwrap();
    let id = world.submit(model, &clean, 0, ids.len() as u32, &[SEED]).await;
    assert_eq!(world.until_ended(id).await.state, State::Succeeded);
    let (clean, corrupted) = (world.verdicts(id).await, world.verdicts(evaluation).await);
    for (position, (condition, image)) in ids.into_iter().enumerate() {
        let seen = &clean[&("clean".to_owned(), SEED, position as u32)].verdict;
        let verdict = &corrupted[&(condition.clone(), SEED, image)].verdict;
        assert_eq!((seen.predicted, seen.robust), (verdict.predicted, verdict.robust), "{condition} of image {image}");
        assert!(verdict.linf <= 1.0 && verdict.linf <= verdict.l2 && verdict.l2 <= verdict.l1);
    }
    world.import_digits().await;
}
