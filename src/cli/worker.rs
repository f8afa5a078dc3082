//! `gauntlet worker`: serve one device until told to stop.

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

use super::context;
use crate::config::Settings;
use crate::telemetry::exposition;
use crate::worker::{Shutdown, Worker};

/// Connections a worker needs: one for its work, one for its heartbeats, one to spare.
const CONNECTIONS: u32 = 3;

/// What `gauntlet worker` takes beside the settings.
#[derive(Debug, Args)]
pub struct WorkerArguments {
    /// What this worker calls itself, in place of the setting `labels`: gpu=h100,zone=b.
    #[arg(long, value_name = "NAME=VALUE,…")]
    labels: Option<String>,
    /// The GPU memory it offers, in place of the setting `gpu_memory_bytes`.
    #[arg(long, value_name = "BYTES")]
    gpu_memory_bytes: Option<u64>,
}

impl WorkerArguments {
    fn over(self, settings: &Settings) -> Settings {
        let (labels, bytes) =
            (self.labels.or(settings.labels.clone()), self.gpu_memory_bytes.or(settings.gpu_memory_bytes));
        Settings { labels, gpu_memory_bytes: bytes, ..settings.clone() }
    }
}

pub async fn run(arguments: WorkerArguments, settings: &Settings) -> anyhow::Result<()> {
    let settings = &arguments.over(settings);
    let _telemetry = context::telemetry(settings, "worker")?;
    let metrics = match settings.worker_metrics_listen {
        Some(address) => Some(super::up::listen(address, "worker_metrics_listen").await?),
        None => None,
    };
    let pool = context::database(settings, CONNECTIONS).await?;
    let options = context::worker_options(settings, 1)?;
    let worker = Worker::start(pool, context::artifacts(settings)?, options).await?;
    let shutdown = Shutdown::default();
    tokio::spawn(heed_signals(shutdown.clone()));
    if let Some(listener) = metrics {
        tokio::spawn(async { axum::serve(listener, exposition::router()).await });
    }
    worker.run(shutdown).await;
    Ok(())
}

/// The first signal drains, the second drops everything.
async fn heed_signals(shutdown: Shutdown) {
    if stop_signal().await.is_ok() {
        info!("finishing the shard in hand; signal again to drop it");
        shutdown.drain.cancel();
    }
    if stop_signal().await.is_ok() {
        shutdown.now.cancel();
    }
}

/// Waits for SIGINT or SIGTERM.
pub async fn stop_signal() -> std::io::Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}
