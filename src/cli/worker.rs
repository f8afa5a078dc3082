//! `gauntlet worker`: serve one device until told to stop.

use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

use super::context;
use crate::config::Settings;
use crate::telemetry::exposition;
use crate::worker::{Shutdown, Worker};

/// Connections a worker needs: one for its work, one for its heartbeats, one to spare.
const CONNECTIONS: u32 = 3;

pub async fn run(settings: &Settings) -> anyhow::Result<()> {
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
