//! A database, an artifact store and real worker processes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gauntlet::dataset::{Catalogue, ImportOptions, Source, SourceOptions};
use gauntlet::protocol::{Format, ModelSpec, Needs, Pictures, Protocol};
use gauntlet::store::artifacts::ArtifactError;
use gauntlet::store::evaluations::{self, Evaluation, NewEvaluation, WitnessPolicy};
use gauntlet::store::evidence::{self, VerdictRow};
use gauntlet::store::models::{self, Model, NewModel};
use gauntlet::store::{Artifacts, LOCAL_OWNER, Quotas, pool, shards};
use sqlx::PgPool;
use tempfile::TempDir;
use uuid::Uuid;

use super::postgres::{Guard, fresh_database};

/// How long anything may take before a test gives up on it.
const PATIENCE: Duration = Duration::from_secs(120);

pub struct World {
    pub pool: PgPool,
    pub artifacts: Artifacts,
    pub catalogue: Catalogue,
    pub url: String,
    pub data: TempDir,
    _database: Option<Guard>,
}

/// The repository's own small inputs.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

impl World {
    pub async fn new() -> Self {
        let (url, guard) = fresh_database().await;
        Self { _database: Some(guard), ..Self::on(url, tempfile::tempdir().unwrap()).await }
    }

    /// The same on a database and in a folder that the caller takes care of.
    pub async fn on(url: String, data: TempDir) -> Self {
        let pool = pool::connect(&url, 8).await.unwrap();
        pool::migrate(&pool).await.unwrap();
        let artifacts = Artifacts::local(&data.path().join("artifacts")).unwrap();
        let catalogue = Catalogue::new(artifacts.store());
        Self { pool, artifacts, catalogue, url, data, _database: None }
    }

    /// Imports the digits at 32×32 under the name `digits`.
    pub async fn import_digits(&self) {
        let options = SourceOptions { geometry: digits_geometry(), ..SourceOptions::default() };
        let source = Source::open(&repository("data/digits/digits.npz"), &options).unwrap();
        let quiet = ImportOptions { preset: None, replace: true, progress: Arc::new(|_| {}) };
        self.catalogue.import("digits", Arc::new(source), &quiet).await.unwrap();
    }

    /// Stores a model file as an upload would.
    pub async fn add_model(&self, path: &Path, spec: &ModelSpec) -> Model {
        let bytes = std::fs::read(path).unwrap();
        let stream = futures::stream::iter([Ok::<_, ArtifactError>(bytes.into())]);
        let upload = self.artifacts.upload(stream, u64::MAX).await.unwrap();
        let new = NewModel {
            owner: LOCAL_OWNER,
            name: "test model",
            identity: &Uuid::new_v4().to_string(),
            spec,
            quotas: &Quotas::NONE,
        };
        models::insert(&self.pool, &self.artifacts, &upload, &new).await.unwrap().0
    }

    pub async fn submit(&self, model: Uuid, protocol: &Protocol, first_image: u32, images: u32, seeds: &[i64]) -> Uuid {
        let dataset = self.catalogue.get("digits").await.unwrap();
        let conditions = protocol.conditions_for(&dataset.scene(Pictures::Procedural)).unwrap();
        let new = NewEvaluation {
            id: Uuid::now_v7(),
            owner: LOCAL_OWNER,
            model,
            dataset: &dataset,
            first_image,
            images,
            protocol,
            conditions: &conditions,
            seeds,
            witnesses: WitnessPolicy::Sample(8),
            priority: 0,
            needs: &Needs::default(),
            request_id: None,
            quotas: &Quotas::NONE,
        };
        evaluations::insert(&self.pool, &new).await.unwrap().id
    }

    /// Starts a `gauntlet worker` process with short leases.
    pub fn worker(&self) -> Worker {
        self.worker_with(&[])
    }

    /// The same with more settings.
    pub fn worker_with(&self, variables: &[(&str, &str)]) -> Worker {
        let child = Command::new(env!("CARGO_BIN_EXE_gauntlet"))
            .args(["worker", "--data-dir"])
            .arg(self.data.path())
            .env("DATABASE_URL", &self.url)
            .env("GAUNTLET_LEASE_SECONDS", "3")
            .env("GAUNTLET_POLL_MILLISECONDS", "50")
            .env("GAUNTLET_THREADS", "1")
            .env("GAUNTLET_DEVICE", "cpu")
            .env("GAUNTLET_LOG_LEVEL", "error")
            .envs(variables.iter().copied())
            .current_dir(self.data.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Worker(child)
    }

    /// Waits until `wanted` holds of the evaluation.
    pub async fn until(&self, id: Uuid, wanted: impl Fn(&Evaluation) -> bool) -> Evaluation {
        let start = Instant::now();
        loop {
            let evaluation = evaluations::get(&self.pool, id).await.unwrap().unwrap();
            if wanted(&evaluation) {
                return evaluation;
            }
            assert!(start.elapsed() < PATIENCE, "evaluation {id} is still {:?}", evaluation.state);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub async fn until_ended(&self, id: Uuid) -> Evaluation {
        self.until(id, |e| e.state.is_terminal()).await
    }

    /// Waits until a query that gives one truth value gives true.
    pub async fn until_true(&self, query: &str) {
        let start = Instant::now();
        while !sqlx::query_scalar::<_, bool>(sqlx::AssertSqlSafe(query)).fetch_one(&self.pool).await.unwrap() {
            assert!(start.elapsed() < PATIENCE, "not so: {query}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Every committed verdict, by condition, seed and image.
    pub async fn verdicts(&self, id: Uuid) -> Verdicts {
        let mut all = Vec::new();
        for shard in shards::done(&self.pool, id).await.unwrap() {
            let bytes = self.artifacts.get(&shard.verdicts_key).await.unwrap();
            all.extend(evidence::from_parquet(bytes).unwrap());
        }
        by_cell(all)
    }

    /// Waits until the model has been checked.
    pub async fn until_checked(&self, id: Uuid) -> Model {
        let start = Instant::now();
        loop {
            let model = models::get(&self.pool, None, id).await.unwrap().unwrap();
            if model.state != "checking" {
                return model;
            }
            assert!(start.elapsed() < PATIENCE, "the model is still being checked");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Makes the planner believe that a forward pass of this model takes so long, and so decides the size of shards.
    pub async fn pretend_speed(&self, model: Uuid, seconds_per_forward: f64) {
        sqlx::query("update models set probe = coalesce(probe, '{}') || jsonb_build_object('seconds_per_forward', $2) where id = $1")
            .bind(model)
            .bind(seconds_per_forward)
            .execute(&self.pool)
            .await
            .unwrap();
    }
}

pub type Verdicts = BTreeMap<(String, i64, u32), VerdictRow>;

/// Verdicts by cell; a cell may occur once only.
pub fn by_cell(rows: Vec<VerdictRow>) -> Verdicts {
    let mut cells = BTreeMap::new();
    for row in rows {
        let key = (row.condition.clone(), row.seed, row.verdict.image);
        assert!(cells.insert(key.clone(), row).is_none(), "two verdicts for {key:?}");
    }
    cells
}

pub fn digits_geometry() -> gauntlet::dataset::Geometry {
    gauntlet::dataset::Geometry { resize: Some(gauntlet::dataset::Resize::Square(32)), crop: None }
}

/// The spec of the models under `models/digits`.
pub fn digits_spec() -> ModelSpec {
    ModelSpec { format: Format::Torchscript, input: [1, 32, 32], classes: 10, preprocessing: None, stochastic: false }
}

/// Builds a library of the repository's C code, to be preloaded into processes.
pub fn preloadable(world: &World, source: &str) -> PathBuf {
    let source = repository(source);
    let library = world.data.path().join(source.file_stem().unwrap()).with_extension("so");
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).arg("-ldl");
    assert!(compiler.status().unwrap().success());
    library
}

/// Puts the sleeping evaluator, whose shards take so long, into a folder of its own.
pub fn sleeping_evaluator(world: &World, seconds: f64) -> PathBuf {
    let folder = world.data.path().join("sleeper");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("seconds"), seconds.to_string()).unwrap();
    let program = folder.join("evaluator");
    std::fs::copy(repository("tests/data/sleeping_evaluator.py"), &program).unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    program
}

/// A worker process, killed when it goes out of scope.
pub struct Worker(Child);

impl Worker {
    pub fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    /// Process ids of its evaluator children.
    pub fn children(&self) -> Vec<i32> {
        let path = format!("/proc/{0}/task", self.pid());
        let tasks = std::fs::read_dir(path).into_iter().flatten().flatten();
        tasks
            .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok())
            .flat_map(|text| text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>())
            .collect()
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid()), signal).ok();
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }

    pub fn has_ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }

    pub fn wait(&mut self) -> std::process::ExitStatus {
        self.0.wait().unwrap()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.kill();
    }
}
