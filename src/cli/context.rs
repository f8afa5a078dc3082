//! What most commands need: settings, logging, stores, options of the evaluator child.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use sqlx::PgPool;

use crate::config::{SandboxChoice, Settings, Sources};
use crate::postgres::Cluster;
use crate::protocol::{Capabilities, Device, LabelList, Pictures};
use crate::store::frost::FrostFiles;
use crate::store::{Artifacts, pool};
use crate::telemetry::gpu;
use crate::telemetry::logs::{self, Telemetry};
use crate::wire::Confinement;
use crate::worker::{ChildOptions, WorkerOptions};

/// Flags that every command takes.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Configuration file [default: gauntlet.toml, if there is one].
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where data live [default: ~/.local/share/gauntlet].
    #[arg(long, global = true, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

impl Global {
    /// File and environment; flags go over them.
    pub fn sources(&self) -> anyhow::Result<Sources> {
        Sources::new(self.config.as_deref())
    }

    /// Whether a flag gives this setting.
    pub fn overrides(&self, setting: &str) -> bool {
        setting == "data_dir" && self.data_dir.is_some()
    }

    pub fn settings(&self) -> anyhow::Result<Settings> {
        let mut settings = self.sources()?.settings()?;
        if let Some(dir) = &self.data_dir {
            settings.data_dir = dir.clone();
        }
        // Postgres and the artifact store want absolute paths.
        settings.data_dir = std::path::absolute(&settings.data_dir)?;
        Ok(settings)
    }
}

/// Starts logs and traces of a process that serves; `role` is `api` or `worker`.
pub fn telemetry(settings: &Settings, role: &str) -> anyhow::Result<Telemetry> {
    logs::init("info,sqlx=warn", settings.log, settings.otlp_endpoint.as_deref().filter(|url| !url.is_empty()), role)
}

/// The same for a command whose own words are on the screen: warnings only, unless asked for more.
pub fn quiet_telemetry(settings: &Settings) -> anyhow::Result<Telemetry> {
    logs::init("warn,sqlx=error", settings.log, None, "cli")
}

pub fn artifacts(settings: &Settings) -> anyhow::Result<Artifacts> {
    Ok(Artifacts::open(&settings.artifacts_location(), &settings.data_dir.join("cache"))?)
}

/// The frost pictures of this installation, kept in the artifact store where workers and evaluators get them from: the
/// folder that the settings name, else what provisioning fetched, else the computed stand-in.
pub async fn frost_pictures(settings: &Settings, artifacts: &Artifacts) -> anyhow::Result<Pictures> {
    match settings.frost_folder() {
        None => Ok(Pictures::Procedural),
        Some(folder) => Ok(artifacts.keep_frost(&FrostFiles::read(&folder)?).await?),
    }
}

/// The database of a running server: the configured one, or the embedded cluster if it is up.
pub async fn database(settings: &Settings, connections: u32) -> anyhow::Result<PgPool> {
    let url = match &settings.database_url {
        Some(url) => url.clone(),
        None => Cluster::url_if_running(&settings.data_dir)?.with_context(|| {
            let dir = settings.data_dir.display();
            format!("no database: set DATABASE_URL, or start `gauntlet up`, whose embedded database lives in {dir}")
        })?,
    };
    pool::connect(&url, connections).await.context("the database does not answer")
}

/// How to start evaluator children when `sharing` of them run side by side on this machine.
pub fn child_options(settings: &Settings, sharing: u32) -> anyhow::Result<ChildOptions> {
    let binary = match &settings.evaluator {
        Some(path) => path.clone(),
        None if cfg!(feature = "evaluator") => std::env::current_exe()?,
        None => anyhow::bail!("this binary has no evaluator: name one that has in the setting `evaluator`"),
    };
    Ok(ChildOptions {
        binary,
        device: settings.device.unwrap_or_else(found_device),
        threads: settings.threads_for(sharing),
        choose_threads: settings.threads.is_none(),
        confinement: match settings.sandbox {
            SandboxChoice::Required => Some(Confinement { memory_bytes: settings.memory_for(sharing) }),
            SandboxChoice::Off => None,
        },
        no_progress: Duration::from_secs(settings.no_progress_seconds),
        checkpoint: Duration::from_millis(settings.checkpoint_milliseconds),
        wall: Duration::from_secs(settings.wall_seconds.max(1)),
    })
}

fn found_device() -> Device {
    if std::path::Path::new("/dev/nvidia0").exists() { Device::Cuda } else { Device::Cpu }
}

/// What a worker offers: its GPU's memory as the settings or the driver say it, and the labels of the settings.
fn capabilities(settings: &Settings, device: Device) -> anyhow::Result<Capabilities> {
    let LabelList(labels) = settings
        .labels
        .as_deref()
        .unwrap_or_default()
        .parse()
        .map_err(|problem| anyhow::anyhow!("the setting `labels`: {problem}"))?;
    let gpu_memory_bytes = match device {
        Device::Cpu => None,
        Device::Cuda => settings.gpu_memory_bytes.or_else(gpu::memory_bytes),
    };
    Ok(Capabilities { device, gpu_memory_bytes, labels })
}

pub fn worker_options(settings: &Settings, sharing: u32) -> anyhow::Result<WorkerOptions> {
    let child = child_options(settings, sharing)?;
    Ok(WorkerOptions {
        capabilities: capabilities(settings, child.device)?,
        child,
        lease: Duration::from_secs(settings.lease_seconds.max(1)),
        poll: Duration::from_millis(settings.poll_milliseconds.max(1)),
    })
}
