//! Metrics as Prometheus reads them.
//!
//! Names follow Prometheus' rules: base units in the name, `_total` on counters only. Labels have few values, and never
//! come from a client or a model unchecked.

use std::sync::LazyLock;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus::proto::MetricFamily;
use prometheus::{Encoder, Histogram, HistogramOpts, IntCounter, IntGauge, IntGaugeVec, Opts, TextEncoder};

/// A counter of this process.
pub fn counter(name: &str, help: &str) -> IntCounter {
    prometheus::register_int_counter!(name, help).expect("each metric is registered once")
}

/// A gauge of this process.
pub fn gauge(name: &str, help: &str) -> IntGauge {
    prometheus::register_int_gauge!(name, help).expect("each metric is registered once")
}

/// A histogram of this process.
pub fn histogram(name: &str, help: &str, buckets: &[f64]) -> Histogram {
    let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
    prometheus::register_histogram!(options).expect("each metric is registered once")
}

static BUILD: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    let options = Opts::new("gauntlet_build_info", "Always 1; its labels say which program this is.");
    prometheus::register_int_gauge_vec!(options, &["version", "evaluator"]).expect("each metric is registered once")
});

/// `/metrics` of a process whose metrics are all its own.
pub fn router() -> Router {
    Router::new().route("/metrics", get(async || encode(&own())))
}

/// What this process counts itself.
pub fn own() -> Vec<MetricFamily> {
    let evaluator = if cfg!(feature = "evaluator") { "true" } else { "false" };
    BUILD.with_label_values(&[env!("CARGO_PKG_VERSION"), evaluator]).set(1);
    prometheus::gather()
}

/// The text format.
pub fn encode(families: &[MetricFamily]) -> Response {
    let (encoder, mut text) = (TextEncoder::new(), Vec::new());
    match encoder.encode(families, &mut text) {
        Ok(()) => ([(header::CONTENT_TYPE, encoder.format_type().to_owned())], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
