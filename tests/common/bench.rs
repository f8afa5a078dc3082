//! A server over TCP with its own database and artifact directory, and a stand-in for workers.

use std::sync::Arc;
use std::time::Duration;

use gauntlet::dataset::{Catalogue, ImportOptions, Manifest, Preset, Shape, Source};
use gauntlet::http::{self, AppState, Settings};
use gauntlet::protocol::report::Tally;
use gauntlet::protocol::{
    Capabilities, Device, Enforced, Labels, MemoryBound, MemoryFormat, NumericProfile, Platform, Sandbox, Signs, Stage,
    Verdict,
};
use gauntlet::queue::{self, Claimant, Claimed, ShardResult};
use gauntlet::store::evidence::{self, VerdictRow, WitnessSet};
use gauntlet::store::models::ProbeReport;
use gauntlet::store::{Artifacts, pool, workers};
use reqwest::multipart::{Form, Part};
use reqwest::{Client, Response};
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::postgres::{Guard, fresh_database};

/// Everything a test needs, torn down when dropped.
pub struct Bench {
    pub url: String,
    pub database_url: String,
    pub client: Client,
    pub pool: PgPool,
    pub artifacts: Artifacts,
    pub folder: tempfile::TempDir,
    pub shutdown: CancellationToken,
    pub server: Option<tokio::task::JoinHandle<std::io::Result<()>>>,
    _database: Guard,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// What the stand-in's workers call themselves.
pub fn platform() -> Platform {
    Platform { device: Device::Cpu, hardware: "AVX2".into(), libtorch: "2.11.0".into() }
}

pub fn capabilities() -> Capabilities {
    Capabilities { device: Device::Cpu, gpu_memory_bytes: None, labels: Labels::new() }
}

pub fn profile(batch: u32) -> NumericProfile {
    NumericProfile { platform: platform(), batch, threads: 1, memory_format: MemoryFormat::ChannelsFirst }
}

pub fn enforced() -> Sandbox {
    Sandbox::Enforced(Enforced { landlock_abi: 7, own_account: true, memory: MemoryBound::Rlimit })
}

pub const LEASE: Duration = Duration::from_secs(30);

impl Bench {
    pub async fn start() -> Self {
        Self::with(Settings::default()).await
    }

    /// A server with the dataset `tiny`: 40 grey images of 2×2 pixels in 3 classes, preset mnist.
    pub async fn with(settings: Settings) -> Self {
        // Installed once per process; later calls find it there.
        rustls::crypto::ring::default_provider().install_default().ok();
        let (database_url, database) = fresh_database().await;
        let pool = pool::connect(&database_url, 20).await.unwrap();
        pool::migrate(&pool).await.unwrap();
        let folder = scratch();
        let artifacts = Artifacts::local(folder.path()).unwrap();
        import(&Catalogue::new(artifacts.store()), "tiny", 40, 3).await;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shutdown = CancellationToken::new();
        let settings = Settings { open: true, ..settings };
        let state = AppState::new(pool.clone(), artifacts.clone(), settings);
        let server = Some(tokio::spawn(http::serve(listener, state, shutdown.clone())));
        Self {
            url,
            database_url,
            client: Client::new(),
            pool,
            artifacts,
            folder,
            shutdown,
            server,
            _database: database,
        }
    }

    pub fn at(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    pub async fn get(&self, path: &str) -> Response {
        self.client.get(self.at(path)).send().await.unwrap()
    }

    /// A 200 and its JSON.
    pub async fn json(&self, path: &str) -> Value {
        let response = self.get(path).await;
        assert_eq!(response.status(), 200, "{path}");
        response.json().await.unwrap()
    }

    pub async fn post(&self, path: &str, body: &Value) -> Response {
        self.client.post(self.at(path)).json(body).send().await.unwrap()
    }

    pub async fn upload(&self, form: Form) -> Response {
        self.client.post(self.at("/v1/models")).multipart(form).send().await.unwrap()
    }

    /// Submits `bytes` as a model for the dataset `tiny`; its id.
    pub async fn model(&self, bytes: &str) -> Uuid {
        let response = self.upload(model_form(bytes)).await;
        assert!(response.status().is_success());
        id(&response.json().await.unwrap())
    }

    /// The same, already found to be usable.
    pub async fn ready_model(&self, bytes: &str) -> Uuid {
        let model = self.model(bytes).await;
        let check = queue::claim_check(&self.pool, &capabilities(), LEASE).await.unwrap().unwrap();
        assert_eq!(check.model.id, model);
        // A forward pass so slow that 40 images make two shards per group.
        check.accept(&self.pool, &[], &ProbeReport { seconds_per_forward: 3.0, calibration: None }).await.unwrap();
        model
    }

    /// Submits an evaluation of `model` on `tiny`: clean and two PGD budgets. `more` is laid over the request.
    pub async fn evaluation(&self, model: Uuid, more: Value) -> Uuid {
        let response = self.post("/v1/evaluations", &evaluation_request(model, more)).await;
        assert_eq!(response.status(), 202);
        id(&response.json().await.unwrap())
    }

    /// Leases the next shard for a worker of [`platform`].
    pub async fn claim(&self) -> Option<Claimed> {
        self.claim_as(&platform(), &capabilities(), None).await
    }

    /// The same for another worker, which prefers a model.
    pub async fn claim_as(
        &self,
        platform: &Platform,
        capabilities: &Capabilities,
        prefers: Option<Uuid>,
    ) -> Option<Claimed> {
        let claimant = Claimant { worker: Uuid::new_v4(), platform, capabilities, prefers };
        queue::claim(&self.pool, &claimant, LEASE).await.unwrap()
    }

    /// Runs every queued shard; `robust` decides each verdict.
    pub async fn work(&self, robust: impl Fn(&str, u32) -> bool) -> usize {
        let mut done = 0;
        while let Some(claimed) = self.claim().await {
            self.finish(claimed, &robust).await;
            done += 1;
        }
        done
    }

    /// Commits a leased shard with made-up verdicts and evidence.
    pub async fn finish(&self, claimed: Claimed, robust: &impl Fn(&str, u32) -> bool) {
        claimed.lease.fix_profile(&self.pool, &profile(32)).await.unwrap();
        let result = self.result(&claimed, robust).await;
        claimed.lease.commit(&self.pool, &result).await.unwrap();
    }

    /// A result for a leased shard, its evidence written.
    pub async fn result(&self, claimed: &Claimed, robust: &impl Fn(&str, u32) -> bool) -> ShardResult {
        let (mut rows, mut sets, mut tallies) = (Vec::new(), Vec::new(), Vec::new());
        for &condition in &claimed.conditions {
            let cell = &claimed.evaluation.conditions[condition as usize];
            let id = &cell.id;
            let images = claimed.first_image..claimed.first_image + claimed.images;
            let verdicts: Vec<Verdict> = images.map(|image| verdict(id, image, robust(id, image))).collect();
            tallies.push((condition, Tally::of(cell, &verdicts)));
            let broken: Vec<u32> = verdicts.iter().filter(|v| !v.robust).map(|v| v.image).collect();
            if id != "clean" && !broken.is_empty() {
                sets.push(WitnessSet {
                    condition: id.clone(),
                    seed: claimed.seed,
                    pixels: broken.iter().flat_map(|&image| [image as f32; 4]).collect(),
                    images: broken,
                    shape: [1, 2, 2],
                });
            }
            let row = |verdict| VerdictRow { condition: id.clone(), seed: claimed.seed, verdict };
            rows.extend(verdicts.into_iter().map(row));
        }
        let name = format!("{}/{}", claimed.evaluation.id, claimed.lease.token());
        let verdicts_key = format!("verdicts/{name}.parquet");
        self.artifacts.put(&verdicts_key, evidence::to_parquet(&rows).unwrap()).await.unwrap();
        let witnesses_key = (!sets.is_empty()).then(|| format!("witnesses/{name}.safetensors"));
        if let Some(key) = &witnesses_key {
            self.artifacts.put(key, evidence::to_safetensors(&sets).unwrap()).await.unwrap();
        }
        ShardResult {
            tallies,
            verdicts_key,
            witnesses_key,
            signs: vec![Signs::default(); claimed.conditions.len()],
            sandbox: Sandbox::Off,
            seconds: 1.0,
            cpu_seconds: 1.0,
            corruption_seconds: 0.0,
        }
    }

    /// Makes a worker known, so that waiting has other reasons than its absence.
    pub async fn announce_worker(&self) {
        self.announce(&workers::SandboxState::Known(enforced())).await;
    }

    /// The same with this sandbox.
    pub async fn announce(&self, sandbox: &workers::SandboxState) {
        self.announce_one(sandbox, &capabilities()).await;
    }

    /// The same with these capabilities.
    pub async fn announce_one(&self, sandbox: &workers::SandboxState, capabilities: &Capabilities) {
        let (id, platform) = (Uuid::new_v4(), platform());
        let worker = workers::NewWorker { id, host: "test", platform: &platform, capabilities, sandbox };
        workers::register(&self.pool, &worker).await.unwrap();
    }

    /// Makes every lease run out now.
    pub async fn expire_leases(&self) {
        let sql = "update shards set lease_expires_at = now() - interval '1 second' where state = 'running'";
        sqlx::query(sql).execute(&self.pool).await.unwrap();
    }

    /// Files under a folder of the artifact store.
    pub fn files(&self, folder: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.folder.path().join(folder)) else { return Vec::new() };
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

/// In memory where there is room. Artifacts are written with `fsync`, some thousand times over all tests, and a disk that has much
/// else to write lets each of them wait.
fn scratch() -> tempfile::TempDir {
    let memory = "/dev/shm";
    let room = nix::sys::statvfs::statvfs(memory).map_or(0, |of| of.blocks_available() * of.fragment_size());
    let folder = if room > 1 << 30 { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    folder.unwrap()
}

fn verdict(condition: &str, image: u32, robust: bool) -> Verdict {
    let label = image % 3;
    Verdict {
        image,
        label,
        predicted: if robust { label } else { (label + 1) % 3 },
        robust,
        stage: (!robust).then(|| if condition == "clean" { Stage::Clean } else { Stage::Attack("pgd".into()) }),
        l1: 0.0,
        l2: 0.0,
        linf: 0.0,
        forwards: 2,
        backwards: 1,
    }
}

/// Imports `images` grey 2×2 images with labels 0, 1, …, `classes` − 1, 0, …
pub async fn import(catalogue: &Catalogue, name: &str, images: u32, classes: u32) -> Manifest {
    let shape = Shape { channels: 1, height: 2, width: 2 };
    let pixels = (0..images * 4).map(|i| (i % 251) as u8).collect();
    let labels = (0..images).map(|i| i % classes).collect();
    let source = Source::in_memory(shape, classes, pixels, labels).unwrap();
    let options = ImportOptions { preset: Some(Preset::Mnist), replace: false, progress: Arc::new(|_| ()) };
    catalogue.import(name, Arc::new(source), &options).await.unwrap()
}

/// The spec of a model for the dataset `tiny`.
pub fn spec() -> Value {
    json!({"input": [1, 2, 2], "classes": 3})
}

pub fn model_form(bytes: &str) -> Form {
    Form::new().text("spec", spec().to_string()).part("file", Part::bytes(bytes.to_owned().into_bytes()))
}

/// A request for clean accuracy and a PGD ladder of ε 0.1 and 0.3; `more` is laid over it.
pub fn evaluation_request(model: Uuid, more: Value) -> Value {
    let set = json!({"steps": 2, "attack.linf.epsilon": [0.1, 0.3]});
    let mut request = json!({"model": model, "dataset": "tiny", "protocol": "pgd-linf", "set": set});
    for (key, value) in more.as_object().unwrap() {
        request[key] = value.clone();
    }
    request
}

/// The `id` of an answer.
pub fn id(answer: &Value) -> Uuid {
    answer["id"].as_str().unwrap().parse().unwrap()
}
