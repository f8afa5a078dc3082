//! How long `GET /v1/evaluations/{id}` takes at a constant rate of requests, against `/healthz` in the same run.
//!
//! The load is open: requests start when they are due, however slow the answers are, and a latency counts from when its
//! request was due. A server that falls behind therefore looks as slow as its users would find it.

use std::time::Duration;

use anyhow::{Context, ensure};
use reqwest::Client;
use serde_json::{Map, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use super::{Cell, Report, quantile};

/// What to measure.
#[derive(Debug, Clone)]
pub struct PollOptions {
    /// The server, without a trailing slash.
    pub server: String,
    /// The evaluation that is polled.
    pub evaluation: Uuid,
    /// Polls per second, at least 1.
    pub rate: u32,
    pub duration: Duration,
}

/// `/healthz` is asked once for so many polls.
const POLLS_PER_HEALTH_CHECK: u32 = 10;
/// At the start, so many seconds are not counted.
const WARM_UP: Duration = Duration::from_secs(1);

/// Polls and reports latencies in milliseconds; fails if any answer was not a 200.
pub async fn run(options: &PollOptions) -> anyhow::Result<Report> {
    ensure!(options.rate >= 1, "the rate must be at least one request per second");
    let client = Client::new();
    let poll = format!("{}/v1/evaluations/{}", options.server, options.evaluation);
    let health = format!("{}/healthz", options.server);
    let (polls, checks) = tokio::try_join!(
        load(&client, &poll, f64::from(options.rate), options.duration),
        load(&client, &health, f64::from(options.rate.div_ceil(POLLS_PER_HEALTH_CHECK)), options.duration),
    )?;
    let cells = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0)]
        .map(|(id, share)| Cell::new(id, quantile(&polls, share), "ms", quantile(&checks, share)));
    let summary =
        [("rate", json!(options.rate)), ("polls", json!(polls.len())), ("health_checks", json!(checks.len()))];
    Ok(Report {
        bench: "poll",
        cells: cells.into(),
        summary: Map::from_iter(summary.map(|(key, value)| (key.to_owned(), value))),
    })
}

/// Milliseconds from when each request was due to the end of its answer, ascending.
async fn load(client: &Client, url: &str, per_second: f64, duration: Duration) -> anyhow::Result<Vec<f64>> {
    let start = Instant::now();
    let mut requests = JoinSet::new();
    for i in 0.. {
        let due = Duration::from_secs_f64(f64::from(i) / per_second);
        if due >= WARM_UP + duration {
            break;
        }
        sleep_until(start + due).await;
        let request = client.get(url);
        requests.spawn(async move {
            let answer = request.send().await?.error_for_status()?;
            answer.bytes().await?;
            anyhow::Ok((due >= WARM_UP).then(|| (Instant::now() - (start + due)).as_secs_f64() * 1e3))
        });
    }
    let mut latencies = Vec::new();
    while let Some(request) = requests.join_next().await {
        latencies.extend(request?.with_context(|| format!("GET {url}"))?);
    }
    ensure!(!latencies.is_empty(), "the run was too short to count a request");
    latencies.sort_by(f64::total_cmp);
    Ok(latencies)
}
