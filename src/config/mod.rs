//! Settings: defaults, then `gauntlet.toml`, then `GAUNTLET_*` variables, then flags.

mod check;
mod source;
mod table;

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::protocol::Device;
use crate::store::Quotas;
use crate::store::retention::Retention;

pub use check::{Problem, check};
pub use source::Sources;
pub use table::table;

/// Every setting, with its default in [`Settings::default`]. README's table is made of these comments.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where everything lives that has no place of its own: artifacts and the embedded database.
    #[schema(value_type = String)]
    pub data_dir: PathBuf,
    /// Models, datasets, verdicts, witnesses: a directory, or `s3://bucket/prefix` with the usual `AWS_…` variables; unset:
    /// `<data_dir>/artifacts`.
    pub artifacts: Option<String>,
    /// Postgres; unset: the embedded cluster in `data_dir`. `DATABASE_URL` is read too.
    pub database_url: Option<String>,
    /// File that holds `database_url` and nothing else, such as a mounted secret.
    #[schema(value_type = Option<String>)]
    pub database_url_file: Option<PathBuf>,
    /// Folder with `postgres`, `initdb` and `pg_ctl` for the embedded cluster; unset: found on the system.
    #[schema(value_type = Option<String>)]
    pub postgres_bin: Option<PathBuf>,
    /// The API; any other address than loopback needs access keys.
    #[schema(value_type = String)]
    pub listen: SocketAddr,
    /// Prometheus metrics.
    #[schema(value_type = String)]
    pub metrics_listen: SocketAddr,
    /// Prometheus metrics of `gauntlet worker`, a port per worker of a machine; unset: none.
    #[schema(value_type = Option<String>)]
    pub worker_metrics_listen: Option<SocketAddr>,
    /// Workers inside `gauntlet up`.
    pub workers: u32,
    /// `cpu` or `cuda`; unset: `cuda` where a GPU is found.
    #[schema(value_type = Option<String>)]
    pub device: Option<Device>,
    /// What workers call themselves, for evaluations that ask for it: `gpu=h100,zone=b`; unset: nothing.
    pub labels: Option<String>,
    /// GPU memory that a worker offers; unset: what its GPU has.
    pub gpu_memory_bytes: Option<u64>,
    /// CPU threads of each evaluator; unset: what a calibration finds best for each model, at most the cores shared among the
    /// workers of `up`.
    pub threads: Option<u32>,
    /// A `gauntlet` binary with the evaluator, for builds without; unset: this binary.
    #[schema(value_type = Option<String>)]
    pub evaluator: Option<PathBuf>,
    /// Folder with the pictures of the corruption frost (`frost1.png` … `frost5.jpg`); unset: what provisioning fetched,
    /// else a computed stand-in.
    #[schema(value_type = Option<String>)]
    pub frost: Option<PathBuf>,
    /// A worker silent for this long loses its shard.
    pub lease_seconds: u64,
    /// An evaluator silent for this long is hung.
    pub no_progress_seconds: u64,
    /// Time between two checkpoints of a running shard, from which an interrupted one goes on; 0: it starts over.
    pub checkpoint_milliseconds: u64,
    /// Longest time for one shard or one model's check, however lively the evaluator is.
    pub wall_seconds: u64,
    /// `required`: models run inside a sandbox or not at all. `off`: they can do what the worker can.
    #[schema(value_type = String)]
    pub sandbox: SandboxChoice,
    /// Most memory of an evaluator on a CPU; unset: three quarters of the machine's, shared among the workers of `up`.
    pub evaluator_memory_bytes: Option<u64>,
    /// How often an idle worker looks for work.
    pub poll_milliseconds: u64,
    /// Largest model accepted.
    pub max_model_bytes: u64,
    /// Hours after which an upload in pieces that does not grow is deleted.
    pub upload_hours: u32,
    /// Largest estimate of stored witnesses accepted for one evaluation.
    pub max_witness_bytes: u64,
    /// Requests a minute of one owner; 0: no limit.
    pub rate_per_minute: u32,
    /// What one owner may use.
    #[schema(inline)]
    pub quotas: Quotas,
    /// How long things are kept; owners may have rules of their own (`gauntlet retention`).
    #[schema(inline)]
    pub retention: Retention,
    /// Whether webhooks may lead to private, loopback and link-local addresses, and go without encryption.
    pub webhook_private_addresses: bool,
    /// How long the receiver of a webhook may take to answer.
    pub webhook_timeout_seconds: u64,
    /// Database connections of the server.
    pub database_connections: u32,
    /// `human` or `json`; `GAUNTLET_LOG_LEVEL=debug` for more.
    #[schema(value_type = String)]
    pub log: LogFormat,
    /// Base URL of an OTLP/HTTP collector that traces go to; unset: none.
    pub otlp_endpoint: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SandboxChoice {
    Required,
    Off,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Human,
    Json,
}

/// Where scripts/provision.py puts the frost pictures, in the per-user cache.
const PROVISIONED_FROST: &str = "frost-1.1.2";

impl Default for Settings {
    fn default() -> Self {
        Self {
            data_dir: default_data_dir(),
            artifacts: None,
            database_url: None,
            database_url_file: None,
            postgres_bin: None,
            listen: ([127, 0, 0, 1], 8080).into(),
            metrics_listen: ([127, 0, 0, 1], 9464).into(),
            worker_metrics_listen: None,
            workers: 1,
            device: None,
            labels: None,
            gpu_memory_bytes: None,
            threads: None,
            evaluator: None,
            frost: None,
            lease_seconds: 30,
            no_progress_seconds: 600,
            checkpoint_milliseconds: 15_000,
            wall_seconds: 4 * 3600,
            sandbox: SandboxChoice::Required,
            evaluator_memory_bytes: None,
            poll_milliseconds: 1000,
            max_model_bytes: 20 << 30,
            upload_hours: 24,
            max_witness_bytes: 2 << 30,
            rate_per_minute: 600,
            quotas: Quotas::default(),
            retention: Retention::default(),
            webhook_private_addresses: false,
            webhook_timeout_seconds: 15,
            database_connections: 16,
            log: LogFormat::Human,
            otlp_endpoint: None,
        }
    }
}

fn default_data_dir() -> PathBuf {
    let var = |name| std::env::var_os(name).filter(|v: &std::ffi::OsString| !v.is_empty()).map(PathBuf::from);
    let home = || var("HOME").map(|home| home.join(".local/share"));
    var("XDG_DATA_HOME").or_else(home).unwrap_or_else(|| "/var/lib".into()).join("gauntlet")
}

impl Settings {
    /// Where artifacts are: a directory or a URL.
    pub fn artifacts_location(&self) -> String {
        self.artifacts.clone().unwrap_or_else(|| self.data_dir.join("artifacts").to_string_lossy().into_owned())
    }

    /// Memory of one evaluator when `sharing` of them run side by side.
    pub fn memory_for(&self, sharing: u32) -> Option<u64> {
        let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let total = text
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse().ok());
        let share = |kib: u64| kib * 1024 / 4 * 3 / u64::from(sharing.max(1));
        self.evaluator_memory_bytes.or(total.map(share))
    }

    /// Where the frost pictures are, if anywhere.
    pub fn frost_folder(&self) -> Option<PathBuf> {
        let cache = || {
            let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache"));
            let cache = std::env::var_os("XDG_CACHE_HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from);
            Some(cache.or_else(home)?.join("gauntlet").join(PROVISIONED_FROST)).filter(|folder| folder.is_dir())
        };
        self.frost.clone().or_else(cache)
    }

    /// CPU threads of one evaluator when `sharing` of them run side by side.
    pub fn threads_for(&self, sharing: u32) -> u32 {
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
        self.threads.unwrap_or_else(|| (cores / sharing.max(1)).max(1))
    }
}
