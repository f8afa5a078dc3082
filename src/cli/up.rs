//! `gauntlet up` and `gauntlet serve`: the server, with or without database and workers of its own.

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::context;
use super::worker::stop_signal;
use crate::config::Settings;
use crate::http::{self, AppState, Limits};
use crate::postgres::{Cluster, Options};
use crate::store::{Artifacts, pool};
use crate::worker::{Shutdown, Worker};

/// Everything in one process group: the database (embedded unless one is configured), the API, and workers.
pub async fn up(settings: &Settings) -> anyhow::Result<()> {
    context::init_logging(settings.log);
    let cluster = match &settings.database_url {
        Some(_) => None,
        None => {
            let options = Options { bin_dir: settings.postgres_bin.clone(), ..Options::default() };
            let cluster = Cluster::start(&settings.data_dir, &options).await?;
            info!(origin = ?cluster.origin(), pid = cluster.pid(), log = %cluster.log().display(), "embedded Postgres is up");
            Some(cluster)
        }
    };
    let url = cluster.as_ref().map(Cluster::url).or(settings.database_url.as_deref()).context("no database")?.to_owned();
    let outcome = run(settings, &url, settings.workers).await;
    if let Some(cluster) = cluster {
        cluster.stop().await?;
        info!("embedded Postgres has stopped");
    }
    outcome
}

/// The API alone; workers run elsewhere.
pub async fn serve(settings: &Settings) -> anyhow::Result<()> {
    context::init_logging(settings.log);
    let url = settings.database_url.clone().context("`gauntlet serve` needs DATABASE_URL; `gauntlet up` brings its own database")?;
    run(settings, &url, 0).await
}

async fn run(settings: &Settings, url: &str, workers: u32) -> anyhow::Result<()> {
    let database = pool::connect(url, settings.database_connections).await.context("the database does not answer")?;
    pool::migrate(&database).await.context("the migrations failed")?;
    let artifacts = context::artifacts(settings)?;
    let listener = listen(settings.listen, "listen").await?;
    let metrics = listen(settings.metrics_listen, "metrics_listen").await?;
    let (address, metrics_address) = (listener.local_addr()?, metrics.local_addr()?);

    let stop = CancellationToken::new();
    let limits = Limits { model_bytes: settings.max_model_bytes, witness_bytes: settings.max_witness_bytes };
    let state = AppState::new(database, artifacts.clone(), limits);
    let mut tasks = JoinSet::new();
    tasks.spawn(http::serve_metrics(metrics, state.clone(), stop.clone()));
    tasks.spawn(http::serve(listener, state, stop.clone()));
    info!("API on http://{address} (documentation at /docs), metrics on http://{metrics_address}/metrics");

    let shutdown = Shutdown::default();
    let started = start_workers(settings, url, &artifacts, workers, &shutdown).await;
    let crew = match started {
        Ok(crew) => crew,
        Err(problem) => {
            stop.cancel();
            return Err(problem.context("a worker could not start"));
        }
    };
    tokio::select! {
        signal = stop_signal() => signal?,
        Some(ended) = tasks.join_next() => {
            error!(?ended, "the server ended by itself");
        }
    }
    info!("stopping; shards in hand go back to the queue");
    // Workers first: their last words to the database need the server's pool only for as long as they last.
    shutdown.now.cancel();
    crew.join_all().await;
    stop.cancel();
    while tasks.join_next().await.is_some() {}
    Ok(())
}

async fn listen(address: std::net::SocketAddr, setting: &str) -> anyhow::Result<TcpListener> {
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

/// `gauntlet migrate`: brings a configured database forward.
pub async fn migrate(settings: &Settings) -> anyhow::Result<()> {
    let database = context::database(settings, 1).await?;
    pool::migrate(&database).await?;
    println!("The schema is up to date.");
    Ok(())
}
