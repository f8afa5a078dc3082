//! `/metrics`, for a port that is not public.

use std::sync::LazyLock;

use axum::Router;
use axum::extract::State;
use axum::http::{Method, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus::{
    Encoder, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder, register_histogram_vec,
    register_int_counter_vec,
};
use sqlx::PgPool;

use super::problem::Problem;
use crate::store::workers;

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

/// `/metrics`: what this process counts, and the queue as the database has it at the time of the scrape.
pub fn metrics_router(pool: PgPool) -> Router {
    Router::new().route("/metrics", get(scrape)).with_state(pool)
}

async fn scrape(State(pool): State<PgPool>) -> Result<Response, Problem> {
    let mut families = prometheus::gather();
    families.extend(queue(&pool).await?.gather());
    let encoder = TextEncoder::new();
    let mut text = Vec::new();
    encoder.encode(&families, &mut text).map_err(Problem::internal)?;
    Ok(([(header::CONTENT_TYPE, encoder.format_type().to_owned())], text).into_response())
}

/// Gauges of the queue. They live for one scrape: the database is the only place that knows.
async fn queue(pool: &PgPool) -> Result<Registry, Problem> {
    let registry = Registry::new();
    for (name, help, table) in [
        ("gauntlet_evaluations", "Evaluations by state.", "evaluations"),
        ("gauntlet_shards", "Shards by state.", "shards"),
        ("gauntlet_models", "Models by state.", "models"),
    ] {
        let gauge = IntGaugeVec::new(Opts::new(name, help), &["state"]).map_err(Problem::internal)?;
        let sql = format!("select state, count(*) from {table} group by state");
        let counts: Vec<(String, i64)> = sqlx::query_as(sqlx::AssertSqlSafe(sql)).fetch_all(pool).await?;
        for (state, count) in counts {
            gauge.with_label_values(&[&state]).set(count);
        }
        registry.register(Box::new(gauge)).map_err(Problem::internal)?;
    }
    let oldest: i64 = sqlx::query_scalar(
        "select coalesce(extract(epoch from now() - min(created_at)), 0)::bigint from evaluations where state = 'queued'",
    )
    .fetch_one(pool)
    .await?;
    for (name, help, value) in [
        ("gauntlet_queue_oldest_seconds", "Age of the oldest queued evaluation.", oldest),
        ("gauntlet_workers_live", "Workers that take new work.", workers::live(pool, None).await?),
    ] {
        let gauge = IntGauge::new(name, help).map_err(Problem::internal)?;
        gauge.set(value);
        registry.register(Box::new(gauge)).map_err(Problem::internal)?;
    }
    Ok(registry)
}
