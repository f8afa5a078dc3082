//! `gauntlet up` and `gauntlet serve`: the server, with or without database and workers of its own.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, anyhow};
use sqlx::PgPool;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::context;
use super::worker::stop_signal;
use crate::config::Settings;
use crate::http::{self, AppState};
use crate::postgres::{Cluster, Options};
use crate::store::{Artifacts, keys, pool};
use crate::webhook::Manner;
use crate::worker::{Shutdown, Worker};

/// Everything in one process group: the database (embedded unless one is configured), the API, and workers.
pub async fn up(settings: &Settings) -> anyhow::Result<()> {
    let _telemetry = context::telemetry(settings, "api")?;
    Running::start(settings, settings.workers).await?.until_told_to_stop().await
}

/// The API alone; workers run elsewhere.
pub async fn serve(settings: &Settings) -> anyhow::Result<()> {
    let _telemetry = context::telemetry(settings, "api")?;
    let problem = "`gauntlet serve` needs DATABASE_URL; `gauntlet up` brings its own database";
    anyhow::ensure!(settings.database_url.is_some(), problem);
    Running::start(settings, 0).await?.until_told_to_stop().await
}

/// `gauntlet migrate`: brings a configured database forward.
pub async fn migrate(settings: &Settings) -> anyhow::Result<()> {
    let database = context::database(settings, 1).await?;
    pool::migrate(&database).await?;
    println!("The schema is up to date.");
    Ok(())
}

/// Whoever can reach the address could use and see everything.
const NO_KEYS: &str = "the API would be open to others, and there are no access keys: make one with \
                       `gauntlet key create --owner NAME --scope admin` (which needs the database to be up), or listen on 127.0.0.1";

/// A server in this process.
pub struct Running {
    /// Where the API answers.
    pub address: SocketAddr,
    cluster: Option<Cluster>,
    database: PgPool,
    servers: JoinSet<std::io::Result<()>>,
    crew: JoinSet<()>,
    stop: CancellationToken,
    shutdown: Shutdown,
}

impl Running {
    /// Starts database, API and workers. What had started is stopped again when something cannot start.
    pub async fn start(settings: &Settings, workers: u32) -> anyhow::Result<Self> {
        let listener = listen(settings.listen, "listen").await?;
        let metrics = listen(settings.metrics_listen, "metrics_listen").await?;
        let (address, metrics_address) = (listener.local_addr()?, metrics.local_addr()?);
        let cluster = match &settings.database_url {
            Some(_) => None,
            None => {
                let options = Options { bin_dir: settings.postgres_bin.clone(), ..Options::default() };
                let cluster = Cluster::start(&settings.data_dir, &options).await?;
                info!(origin = ?cluster.origin(), pid = cluster.pid(), log = %cluster.log().display(), "embedded Postgres is up");
                Some(cluster)
            }
        };
        let url =
            cluster.as_ref().map(Cluster::url).or(settings.database_url.as_deref()).context("no database")?.to_owned();
        let database =
            pool::connect(&url, settings.database_connections).await.context("the database does not answer")?;
        pool::migrate(&database).await.context("the migrations failed")?;
        let keys = keys::any(&database).await?;
        anyhow::ensure!(keys || address.ip().is_loopback(), NO_KEYS);
        let artifacts = context::artifacts(settings)?;

        let (stop, shutdown) = (CancellationToken::new(), Shutdown::default());
        let limits = http::Settings {
            max_model_bytes: settings.max_model_bytes,
            upload_hours: settings.upload_hours,
            max_witness_bytes: settings.max_witness_bytes,
            open: settings.listen.ip().is_loopback(),
            rate_per_minute: settings.rate_per_minute,
            quotas: settings.quotas,
            retention: settings.retention,
            webhooks: Manner {
                private: settings.webhook_private_addresses,
                timeout: Duration::from_secs(settings.webhook_timeout_seconds.clamp(1, 60)),
            },
            pictures: context::frost_pictures(settings, &artifacts).await?,
            ..http::Settings::default()
        };
        let crew =
            start_workers(settings, &url, &artifacts, workers, &shutdown).await.context("a worker cannot start")?;
        let mut servers = JoinSet::new();
        let metrics_router = http::metrics_router(database.clone(), artifacts.clone());
        let stopped = stop.clone().cancelled_owned();
        servers.spawn(async move { axum::serve(metrics, metrics_router).with_graceful_shutdown(stopped).await });
        servers.spawn(http::serve(listener, AppState::new(database.clone(), artifacts, limits), stop.clone()));
        info!("API on http://{address} (documentation at /docs), metrics on http://{metrics_address}/metrics");
        if !keys {
            info!(
                "no access key is needed: the API is on loopback, and no key was made (`gauntlet key create` makes one)"
            );
        }
        Ok(Self { address, cluster, database, servers, crew, stop, shutdown })
    }

    /// Runs until SIGINT or SIGTERM, then stops in order; an error when a part ended that should not have.
    pub async fn until_told_to_stop(mut self) -> anyhow::Result<()> {
        let ended = tokio::select! {
            signal = stop_signal() => signal.map_err(anyhow::Error::from),
            _ = self.servers.join_next() => Err(anyhow!("the API ended by itself")),
            Some(_) = self.crew.join_next() => Err(anyhow!("a worker ended by itself")),
            log = gone(self.cluster.as_ref()) => Err(anyhow!("the embedded Postgres ended by itself; its log is {log}")),
        };
        let stopped = self.stop().await;
        ended.and(stopped)
    }

    /// Gives shards in hand back to the queue, answers what is in flight, and stops the database last.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        info!("stopping; shards in hand go back to the queue");
        self.shutdown.now.cancel();
        while self.crew.join_next().await.is_some() {}
        self.stop.cancel();
        while self.servers.join_next().await.is_some() {}
        self.database.close().await;
        if let Some(cluster) = self.cluster {
            cluster.stop().await?;
            info!("embedded Postgres has stopped");
        }
        Ok(())
    }
}

/// Waits until the embedded database is no more; for ever if there is none. Returns where its log is.
async fn gone(cluster: Option<&Cluster>) -> String {
    let Some(cluster) = cluster else { return std::future::pending().await };
    while cluster.is_running() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    cluster.log().display().to_string()
}

pub(super) async fn listen(address: SocketAddr, setting: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}: choose another address with the setting `{setting}`"))
}

async fn start_workers(
    settings: &Settings,
    url: &str,
    artifacts: &Artifacts,
    count: u32,
    shutdown: &Shutdown,
) -> anyhow::Result<JoinSet<()>> {
    let mut crew = JoinSet::new();
    for _ in 0..count {
        // A pool of their own, so that a flood of requests cannot starve heartbeats.
        let pool = pool::connect(url, 3).await?;
        let worker = Worker::start(pool, artifacts.clone(), context::worker_options(settings, count)?).await?;
        crew.spawn(worker.run(shutdown.clone()));
    }
    Ok(crew)
}
