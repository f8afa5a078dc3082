//! Corruption protocols from a client's side: a server over HTTP, real workers, and the command line; computed images and
//! published files.

mod common;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use common::bench::id;
use common::torchscript::write_model;
use common::world::{Worker, World, repository};
use gauntlet::dataset::{ImportOptions, Preset, Shape as ImageShape, Source};
use gauntlet::http::{self, AppState, Settings};
use gauntlet::protocol::{Condition, ConditionKind, Pictures, Protocol, Scene, builtin};
use gauntlet::robustness::corruption::{Channels, FrostTextures, Image, Keyed, Recipe, Shape};
use reqwest::Client;
use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// A world that answers over HTTP and works.
struct Server {
    world: World,
    url: String,
    client: Client,
    shutdown: CancellationToken,
    _crew: [Worker; 2],
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Server {
    async fn start() -> Self {
        rustls::crypto::ring::default_provider().install_default().ok();
        let world = World::new().await;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let shutdown = CancellationToken::new();
        let settings = Settings { open: true, ..Settings::default() };
        let state = AppState::new(world.pool.clone(), world.artifacts.clone(), settings);
        tokio::spawn(http::serve(listener, state, shutdown.clone()));
        let _crew = [world.worker(), world.worker()];
        Self { world, url, client: Client::new(), shutdown, _crew }
    }

    async fn upload(&self, file: &Path, spec: Value) -> Uuid {
        let form = Form::new().text("spec", spec.to_string()).part("file", Part::bytes(std::fs::read(file).unwrap()));
        let answer = self.client.post(format!("{}/models", self.url)).multipart(form).send().await.unwrap();
        assert_eq!(answer.status(), 201);
        id(&answer.json().await.unwrap())
    }

    async fn post(&self, request: &Value) -> (u16, Value) {
        let answer = self.client.post(format!("{}/evaluations", self.url)).json(request).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    /// Submits, waits for the end, and returns id and table.
    async fn evaluate(&self, request: &Value) -> (Uuid, Value) {
        let (status, body) = self.post(request).await;
        assert_eq!(status, 202, "{body}");
        let evaluation = id(&body);
        self.world.until_ended(evaluation).await;
        let table: Value = serde_json::from_str(&self.text(evaluation, "json").await).unwrap();
        assert_eq!(table["complete"], true, "{}", table["provenance"]["outcome"]);
        (evaluation, table)
    }

    async fn text(&self, evaluation: Uuid, format: &str) -> String {
        let url = format!("{}/evaluations/{evaluation}/table.{format}", self.url);
        self.client.get(url).send().await.unwrap().text().await.unwrap()
    }

    /// Imports images under a name. Their order is theirs: random numbers depend on it.
    async fn import(&self, name: &str, preset: Option<Preset>, images: &Images) {
        let Images { shape, pixels, labels } = images;
        let source = Source::in_memory(*shape, 10, pixels.clone(), labels.clone()).unwrap();
        let options = ImportOptions { preset, replace: false, progress: Arc::new(|_| {}) };
        self.world.catalogue.import(name, Arc::new(source), &options).await.unwrap();
    }

    /// `gauntlet` on this world's data; what it prints.
    fn gauntlet(&self, arguments: &[&str]) -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_gauntlet"))
            .args(arguments)
            .arg("--data-dir")
            .arg(self.world.data.path())
            .env("DATABASE_URL", &self.world.url)
            // No frost pictures but the stand-in.
            .env("XDG_CACHE_HOME", self.world.data.path())
            .env("GAUNTLET_DEVICE", "cpu")
            .env("GAUNTLET_THREADS", "1")
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn gauntlet_json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.gauntlet(&[arguments, &["--format", "json"]].concat())).unwrap()
    }
}

struct Images {
    shape: ImageShape,
    pixels: Vec<u8>,
    labels: Vec<u32>,
}

impl Images {
    /// The corrupted images that these conditions make with seed 0, planar, by condition.
    fn corrupted<'a>(&self, conditions: &'a [Condition]) -> Vec<(&'a Condition, Vec<u8>)> {
        let [channels, height, width] = self.shape.sides();
        let shape = Shape {
            height: height as usize,
            width: width as usize,
            channels: if channels == 1 { Channels::Grey } else { Channels::Rgb },
        };
        let textures = FrostTextures::procedural();
        let cell = |condition: &'a Condition| {
            let ConditionKind::Corruption(corruption) = &condition.kind else { return None };
            let image = |(index, planes): (usize, &[u8])| {
                let mut random = Keyed::new(0, condition.random_key(), index as u64);
                let image = Image::from_planes(shape, planes).unwrap();
                Recipe::from(corruption).apply(&image, &textures, &mut random).to_planes()
            };
            Some((condition, self.pixels.chunks(self.shape.bytes()).enumerate().flat_map(image).collect()))
        };
        conditions.iter().filter_map(cell).collect()
    }
}

fn conditions(scene: &Scene, mode: &str) -> Vec<Condition> {
    let document = serde_json::to_value(builtin("imagenet-c").unwrap()).unwrap();
    Protocol::from_value(document, &[("mode".into(), mode.into())]).unwrap().conditions_for(scene).unwrap()
}

/// Correct answers by condition, whatever form its images had.
fn correct(table: &Value) -> Vec<(String, u64)> {
    let row = |row: &Value| {
        let id = row["id"].as_str().unwrap();
        let name = id.strip_suffix("-published").or(id.strip_suffix("-saved")).unwrap_or(id);
        (name.to_owned(), row["correct"].as_u64().unwrap())
    };
    table["conditions"].as_array().unwrap().iter().map(row).collect()
}

fn npy(path: &Path, shape: &[usize], data: &[u8]) {
    let shape: String = shape.iter().map(|side| format!("{side}, ")).collect();
    let header = format!("{{'descr': '|u1', 'fortran_order': False, 'shape': ({shape}), }}\n");
    let head = [b"\x93NUMPY\x01\x00", &(header.len() as u16).to_le_bytes()[..], header.as_bytes()].concat();
    std::fs::write(path, [&head, data].concat()).unwrap();
}

#[tokio::test]
async fn imagenet_c_on_the_digits_gives_the_same_table_computed_and_out_of_published_arrays() {
    let server = Server::start().await;
    server.world.import_digits().await;
    let digits = server.world.catalogue.get("digits").await.unwrap();
    let batch = server.world.catalogue.read(&digits, 1297..1317).await.unwrap();
    let images = Images { shape: batch.shape, pixels: batch.pixels, labels: batch.labels };
    server.import("few", None, &images).await;
    let model_file = repository("models/digits/standard.pt");
    let model = server.upload(&model_file, json!({"input": [1, 32, 32], "classes": 10})).await;
    let (computed_id, computed) =
        server.evaluate(&json!({"model": model, "dataset": "few", "protocol": "imagenet-c"})).await;
    assert_eq!(computed["conditions"].as_array().unwrap().len(), 76);
    let parts = &computed["columns"]["corruptions"];
    assert_eq!((parts["groups"].as_array().unwrap().len(), parts["types"].as_array().unwrap().len()), (4, 15));
    let share = computed["provenance"]["cpu_time"]["corruption_share"].as_f64().unwrap();
    assert!((0.0..=1.0).contains(&share) && share > 0.0, "{share}");
    let interval = &parts["groups"][0]["ci95"];
    let mean = parts["groups"][0]["accuracy"].as_f64().unwrap();
    assert!(interval[0].as_f64().unwrap() < mean && mean < interval[1].as_f64().unwrap());
    let csv = server.text(computed_id, "csv").await;
    assert_eq!(csv.lines().filter(|line| line.contains(",corruption_group,")).count(), 4);
    assert_eq!(csv.lines().filter(|line| line.contains(",corruption_type,")).count(), 15);
    let markdown = server.text(computed_id, "md").await;
    assert!(markdown.contains("| noise (group) |") && markdown.contains("| elastic transform |"), "{markdown}");

    // The same images as CIFAR-10-C's files hold theirs: per type, five severities one after the other.
    let scene = Scene::new(None, images.shape.sides(), Pictures::Procedural);
    let conditions = conditions(&scene, "in-memory");
    let folder = server.world.data.path().join("few-c");
    std::fs::create_dir(&folder).unwrap();
    let labels: Vec<u8> = images.labels.iter().map(|&label| label as u8).collect();
    npy(&folder.join("labels.npy"), &[100], &labels.repeat(5));
    for severities in images.corrupted(&conditions).chunks(5) {
        let (kind, _) = severities[0].0.id.rsplit_once('-').unwrap();
        let pixels: Vec<u8> = severities.iter().flat_map(|(_, pixels)| pixels.clone()).collect();
        npy(&folder.join(format!("{kind}.npy")), &[100, 32, 32], &pixels);
    }
    let path = folder.to_str().unwrap();
    let imported = server.gauntlet_json(&["dataset", "import", path, "--name", "few-c", "--clean", "few"]);
    assert_eq!(imported["cells"].as_array().unwrap().len(), 75);
    let request = json!({"model": model, "dataset": "few-c", "protocol": "imagenet-c"});
    let (published_id, published) = server.evaluate(&request).await;
    assert_eq!(published["conditions"][1]["mode"], "published");
    assert_eq!(correct(&published), correct(&computed));
    for column in ["clean", "corruption", "corruption_error"] {
        assert_eq!(published["columns"][column], computed["columns"][column], "{column}");
    }
    let means = |table: &Value| -> Value {
        let parts = &table["columns"]["corruptions"];
        json!([parts["groups"], parts["types"]])
    };
    assert_eq!(means(&published), means(&computed));

    // The evidence is proven again, and the same table comes without a server and without an import.
    let verified = server.gauntlet_json(&["verify", &published_id.to_string()]);
    assert_eq!((&verified["cells"], &verified["cells_equal"]), (&json!(76), &json!(76)), "{verified}");
    assert!(verified["regenerated"].as_u64() > Some(0) && verified["regenerated"] == verified["regenerated_equal"]);
    let model_file = model_file.to_str().unwrap();
    let local = server.gauntlet_json(&["run", model_file, "--dataset", "few-c", "--protocol", "imagenet-c"]);
    assert_eq!(local["columns"], published["columns"]);
    let in_place = ["run", model_file, "--dataset", path, "--protocol", "imagenet-c", "--set", "clean=false"];
    let in_place = server.gauntlet_json(&in_place);
    assert_eq!(in_place["columns"]["corruptions"], published["columns"]["corruptions"]);
    assert_eq!(correct(&in_place), correct(&published)[1..]);
}

/// Ten colour photographs of 224 pixels, each with one cell of a 2×5 grid brightened: its label.
fn photographs() -> Images {
    let shape = ImageShape { channels: 3, height: 224, width: 224 };
    let photographs = ["astronaut", "chelsea"].map(|name| {
        image::open(repository(&format!("tests/data/corruption/{name}-224.png"))).unwrap().into_rgb8().into_raw()
    });
    let planes = |label: u32| {
        let pixels = &photographs[label as usize % 2];
        let value = move |c: usize, y: usize, x: usize| {
            let lit = (y / 112) * 5 + (x * 5 / 224) == label as usize;
            pixels[(y * 224 + x) * 3 + c] / 4 + if lit { 60 } else { 0 }
        };
        (0..3).flat_map(move |c| (0..224).flat_map(move |y| (0..224).map(move |x| value(c, y, x))))
    };
    Images { shape, pixels: (0..10).flat_map(planes).collect(), labels: (0..10).collect() }
}

/// Ten WordNet ids, in order.
fn synset(label: u32) -> String {
    format!("n0144076{label}")
}

#[tokio::test]
async fn a_224_pixel_model_gets_an_mce_for_saved_images_out_of_an_imagenet_c_tree_and_for_no_others() {
    let server = Server::start().await;
    let images = photographs();
    server.import("photographs", Some(Preset::Imagenet), &images).await;
    let file = server.world.data.path().join("brightest.pt");
    write_model(&file, "return torch.flatten(torch.mean(torch.adaptive_avg_pool2d(x, [2, 5]), [1]), 1)");
    let model = server.upload(&file, json!({"input": [3, 224, 224], "classes": 10})).await;
    let set = json!({"mode": "saved"});
    let request = json!({"model": model, "dataset": "photographs", "protocol": "imagenet-c", "set": set});
    let (_, computed) = server.evaluate(&request).await;
    assert_eq!(computed["columns"]["clean"], 1.0);
    // Frost is the stand-in.
    assert!(computed["columns"].get("mce").is_none());
    assert_eq!(computed["columns"]["corruptions"]["official"], false);

    // The saved pixels as the published tree holds them.
    let scene = Scene::new(Some("imagenet"), images.shape.sides(), Pictures::Procedural);
    let saved = conditions(&scene, "saved");
    let tree = server.world.data.path().join("tree");
    for (condition, planes) in images.corrupted(&saved) {
        let ConditionKind::Corruption(cell) = &condition.kind else { panic!("{}", condition.id) };
        for (label, planes) in planes.chunks(images.shape.bytes()).enumerate() {
            let class = format!("{}/{}/{}", cell.corruption.name(), cell.severity.get(), synset(label as u32));
            std::fs::create_dir_all(tree.join(&class)).unwrap();
            let pixel = |x, y| image::Rgb(std::array::from_fn(|c| planes[(c * 224 + y as usize) * 224 + x as usize]));
            image::RgbImage::from_fn(224, 224, pixel).save(tree.join(class).join("ILSVRC2012_val_1.png")).unwrap();
        }
    }
    let import =
        ["dataset", "import", tree.to_str().unwrap(), "--name", "tree", "--preset", "imagenet", "--crop", "224"];
    let without_clean = [&import[..], &["--classes", "10"]].concat();
    server.gauntlet(&without_clean);
    let request = json!({"model": model, "dataset": "tree", "protocol": "imagenet-c"});
    let (status, refused) = server.post(&request).await;
    assert_eq!((status, &refused["field"]), (422, &json!("protocol.clean")), "{refused}");
    server.gauntlet(&[&without_clean[..], &["--clean", "photographs", "--replace"]].concat());
    let (_, published) = server.evaluate(&request).await;
    assert_eq!(correct(&published), correct(&computed));
    let columns = &published["columns"];
    let parts = &columns["corruptions"];
    assert_eq!((&parts["official"], &parts["published_form"]), (&json!(true), &json!(true)));

    // The benchmark's own arithmetic, from the rows.
    let alexnet = [
        88.6428, 89.4468, 92.2640, 81.9880, 82.6268, 78.5948, 79.8360, 86.6816, 82.6572, 81.9324, 56.4592, 85.3204,
        64.6056, 71.7840, 60.6500,
    ];
    let error = |row: &Value| 1.0 - row["accuracy"].as_f64().unwrap();
    let rows = &published["conditions"].as_array().unwrap()[1..];
    let errors: Vec<f64> = rows.chunks(5).map(|cells| cells.iter().map(error).sum::<f64>() / 5.0).collect();
    let mce = errors.iter().zip(alexnet).map(|(e, a)| e / (a / 100.0)).sum::<f64>() / 15.0;
    assert!((columns["mce"].as_f64().unwrap() - mce).abs() < 1e-12 && mce > 0.0, "{mce}");
    let relative = errors.iter().zip(alexnet).map(|(e, a)| e / (a / 100.0 - 0.435)).sum::<f64>() / 15.0;
    assert!((columns["relative_mce"].as_f64().unwrap() - relative).abs() < 1e-12, "{relative}");
}
