//! Many people watching one evaluation at once: half of them over a stream of events, half by long polls.
//!
//! What is asked is whether the server keeps everybody connected and whether its memory stays what it was once all had come.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use futures::StreamExt;
use reqwest::header::{ETAG, IF_NONE_MATCH};
use reqwest::{Client, StatusCode};
use serde_json::{Map, json};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::{Cell, Report};

/// What to measure.
#[derive(Debug, Clone)]
pub struct WatchOptions {
    /// The server, without a trailing slash, on this machine.
    pub server: String,
    /// Its process.
    pub pid: u32,
    /// An evaluation that will not end before the measurement does.
    pub evaluation: Uuid,
    pub clients: u32,
    /// For how long all of them watch.
    pub duration: Duration,
}

/// What the clients have seen.
#[derive(Debug, Default)]
struct Seen {
    connected: AtomicU64,
    events: AtomicU64,
    polls: AtomicU64,
    broken: AtomicU64,
}

/// Connects everybody, keeps them for a while, and reports the server's resident memory in MiB; fails if a connection broke off.
pub async fn run(options: &WatchOptions) -> anyhow::Result<Report> {
    ensure!(options.clients >= 2, "there must be two clients at least");
    let seen = Arc::new(Seen::default());
    let alone = resident_mib(options.pid)?;
    let client = Client::new();
    let url = format!("{}/v1/evaluations/{}", options.server, options.evaluation);
    let mut watchers = JoinSet::new();
    for i in 0..options.clients {
        let (client, url, seen) = (client.clone(), url.clone(), seen.clone());
        watchers.spawn(async move {
            let watched =
                if i % 2 == 0 { stream(&client, &url, &seen).await } else { poll(&client, &url, &seen).await };
            if watched.is_err() {
                seen.broken.fetch_add(1, Ordering::Relaxed);
            }
            watched
        });
    }
    while seen.connected.load(Ordering::Relaxed) < u64::from(options.clients) {
        if let Some(ended) = watchers.try_join_next() {
            ended?.context("a client did not get in")?;
            anyhow::bail!("the evaluation has ended: give one that takes longer");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let all_there = resident_mib(options.pid)?;
    tokio::time::sleep(options.duration).await;
    let at_the_end = resident_mib(options.pid)?;
    watchers.abort_all();
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    ensure!(count(&seen.broken) == 0, "{} connections broke off", count(&seen.broken));
    let cells = vec![
        Cell::new("memory with everybody there", all_there, "MiB", alone),
        Cell::new("memory at the end", at_the_end, "MiB", all_there),
    ];
    let summary = [
        ("clients", json!(options.clients)),
        ("seconds", json!(options.duration.as_secs())),
        ("kib_per_client", json!((all_there - alone) * 1024.0 / f64::from(options.clients))),
        ("events", json!(count(&seen.events))),
        ("polls_answered", json!(count(&seen.polls))),
    ];
    let summary = Map::from_iter(summary.map(|(key, value)| (key.to_owned(), value)));
    Ok(Report { bench: "watch", cells, summary })
}

/// Reads events until the stream ends.
async fn stream(client: &Client, url: &str, seen: &Seen) -> anyhow::Result<()> {
    let answer = client.get(format!("{url}/events")).send().await?.error_for_status()?;
    seen.connected.fetch_add(1, Ordering::Relaxed);
    let mut bytes = answer.bytes_stream();
    while let Some(piece) = bytes.next().await {
        let events = piece?.windows(5).filter(|at| at == b"data:").count() as u64;
        seen.events.fetch_add(events, Ordering::Relaxed);
    }
    Ok(())
}

/// Asks again and again for what is newer.
async fn poll(client: &Client, url: &str, seen: &Seen) -> anyhow::Result<()> {
    let mut known = None;
    loop {
        let mut request = client.get(format!("{url}?wait=30s"));
        match &known {
            Some(etag) => request = request.header(IF_NONE_MATCH, etag),
            None => request = client.get(url),
        }
        let answer = request.send().await?;
        let status = answer.status();
        ensure!(status.is_success() || status == StatusCode::NOT_MODIFIED, "{status}");
        match answer.headers().get(ETAG) {
            Some(etag) => {
                if known.replace(etag.clone()).is_none() {
                    seen.connected.fetch_add(1, Ordering::Relaxed);
                }
            }
            None => anyhow::bail!("an answer without an ETag"),
        }
        answer.bytes().await?;
        seen.polls.fetch_add(1, Ordering::Relaxed);
    }
}

fn resident_mib(pid: u32) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"));
    let status =
        status.with_context(|| format!("process {pid} cannot be looked at: is it the server's, on this machine?"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: f64 = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).context("no VmRSS")?;
    Ok(kib / 1024.0)
}
