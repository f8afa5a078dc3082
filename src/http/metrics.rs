//! `/metrics`, for a port that is not public.

use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::extract::State;
use axum::http::Method;
use axum::response::Response;
use axum::routing::get;
use prometheus::{
    HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, register_histogram_vec,
    register_int_counter_vec,
};
use sqlx::PgPool;

use crate::queue;
use crate::store::{Artifacts, evaluations, models, workers};
use crate::telemetry::exposition;

pub static REQUESTS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let labels = &["method", "route", "status"];
    register_int_counter_vec!("gauntlet_http_requests_total", "HTTP requests answered.", labels)
        .expect("each metric is registered once")
});

pub static SECONDS: LazyLock<HistogramVec> = LazyLock::new(|| {
    let buckets = vec![0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];
    let help = "Time until the response began, waiting in long polls included.";
    register_histogram_vec!("gauntlet_http_request_seconds", help, &["method", "route"], buckets)
        .expect("each metric is registered once")
});

/// Clients may invent methods; labels must stay few.
pub fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        _ => "other",
    }
}

#[derive(Clone)]
struct Sources {
    pool: PgPool,
    artifacts: Artifacts,
    gauges: Arc<Gauges>,
}

/// `/metrics`: what this process counts, and the queue as the database has it at the time of the scrape.
pub fn metrics_router(pool: PgPool, artifacts: Artifacts) -> Router {
    let sources = Sources { pool, artifacts, gauges: Arc::new(Gauges::new()) };
    Router::new().route("/metrics", get(scrape)).with_state(sources)
}

/// A database that does not answer is itself a figure: the others are still told.
async fn scrape(State(Sources { pool, artifacts, gauges }): State<Sources>) -> Response {
    let idle = pool.num_idle() as i64;
    gauges.connections.with_label_values(&["idle"]).set(idle);
    gauges.connections.with_label_values(&["busy"]).set(i64::from(pool.size()) - idle);
    gauges.most_connections.set(pool.options().get_max_connections().into());
    let space = artifacts.space();
    let mut families = exposition::own();
    match gauges.read_database(&pool).await {
        Ok(()) => gauges.database_up.set(1),
        Err(error) => {
            tracing::warn!(%error, "the queue cannot be read for metrics");
            gauges.database_up.set(0);
        }
    }
    families.extend(gauges.of_process.gather());
    if gauges.database_up.get() == 1 {
        families.extend(gauges.of_database.gather());
    }
    if let Some(space) = space {
        gauges.free_bytes.set(space.free as i64);
        gauges.size_bytes.set(space.size as i64);
        families.extend(gauges.of_disk.gather());
    }
    exposition::encode(&families)
}

/// What is read at scrape time.
struct Gauges {
    of_process: Registry,
    database_up: IntGauge,
    connections: IntGaugeVec,
    most_connections: IntGauge,
    of_disk: Registry,
    free_bytes: IntGauge,
    size_bytes: IntGauge,
    of_database: Registry,
    evaluations: IntGaugeVec,
    models: IntGaugeVec,
    shards: IntGaugeVec,
    runnable: IntGauge,
    oldest: prometheus::Gauge,
    waiting: IntGaugeVec,
    workers: IntGaugeVec,
}

fn plain(registry: &Registry, name: &str, help: &str) -> IntGauge {
    let gauge = IntGauge::new(name, help).expect("a valid name");
    registry.register(Box::new(gauge.clone())).expect("each metric is registered once");
    gauge
}

fn labelled(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    let gauge = IntGaugeVec::new(Opts::new(name, help), labels).expect("a valid name");
    registry.register(Box::new(gauge.clone())).expect("each metric is registered once");
    gauge
}

impl Gauges {
    fn new() -> Self {
        let (of_process, of_disk, of_database) = (Registry::new(), Registry::new(), Registry::new());
        let oldest = prometheus::Gauge::new(
            "gauntlet_queue_oldest_seconds",
            "Age of the oldest evaluation of which nothing has run yet; 0 without one.",
        );
        let oldest = oldest.expect("a valid name");
        of_database.register(Box::new(oldest.clone())).expect("each metric is registered once");
        let runnable_help = "Shards that a free worker of the right platform could take now.";
        let waiting_help = "Evaluations of which nothing runs, by the reason that their owners are told.";
        let workers_help = "Workers that showed signs of life, by whether they take new work.";
        let d = &of_database;
        Self {
            database_up: plain(&of_process, "gauntlet_database_up", "Whether the database answered this scrape."),
            connections: labelled(
                &of_process,
                "gauntlet_database_connections",
                "Open connections of the server's pool.",
                &["state"],
            ),
            most_connections: plain(
                &of_process,
                "gauntlet_database_connections_limit",
                "Most connections the server opens.",
            ),
            free_bytes: plain(&of_disk, "gauntlet_artifacts_free_bytes", "Free space where artifacts are kept."),
            size_bytes: plain(
                &of_disk,
                "gauntlet_artifacts_size_bytes",
                "Size of the volume where artifacts are kept.",
            ),
            evaluations: labelled(d, "gauntlet_evaluations", "Evaluations by state.", &["state"]),
            models: labelled(d, "gauntlet_models", "Models by state.", &["state"]),
            shards: labelled(d, "gauntlet_shards", "Shards that are not finished, by state.", &["state"]),
            runnable: plain(d, "gauntlet_queue_runnable_shards", runnable_help),
            waiting: labelled(d, "gauntlet_queue_waiting_evaluations", waiting_help, &["reason"]),
            workers: labelled(d, "gauntlet_workers", workers_help, &["device", "state"]),
            oldest,
            of_process,
            of_disk,
            of_database,
        }
    }

    /// Every series exists even at zero: what is absent cannot alarm.
    async fn read_database(&self, pool: &PgPool) -> Result<(), sqlx::Error> {
        let depth = queue::depth(pool).await?;
        self.shards.with_label_values(&["queued"]).set(depth.queued);
        self.shards.with_label_values(&["running"]).set(depth.running);
        self.runnable.set(depth.runnable);
        self.oldest.set(depth.oldest_seconds);
        set(&self.waiting, &queue::REASONS, &depth.waiting);
        set(
            &self.evaluations,
            &evaluations::State::ALL.map(evaluations::State::name),
            &evaluations::counts(pool).await?,
        );
        set(&self.models, &models::STATES, &models::counts(pool).await?);
        for device in ["cpu", "cuda"] {
            for state in ["accepting", "draining"] {
                self.workers.with_label_values(&[device, state]).set(0);
            }
        }
        for (device, draining, count) in workers::counts(pool).await? {
            let state = if draining { "draining" } else { "accepting" };
            self.workers.with_label_values(&[device.as_str(), state]).set(count);
        }
        Ok(())
    }
}

/// Sets a family's known values, those that do not occur to zero.
fn set(family: &IntGaugeVec, known: &[&str], counts: &[(String, i64)]) {
    for value in known {
        let count = counts.iter().find(|(name, _)| name == value).map_or(0, |(_, count)| *count);
        family.with_label_values(&[value]).set(count);
    }
}
