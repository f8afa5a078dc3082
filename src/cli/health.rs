//! `gauntlet health`: for container health checks, so that images need no HTTP client.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::ValueEnum;

use crate::config::Settings;

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Part {
    /// Whether the API is ready to serve.
    Api,
    /// Whether a worker answers on `worker_metrics_listen`.
    Worker,
}

/// Asks the process that runs with these settings on this machine.
pub async fn run(part: Part, settings: &Settings) -> anyhow::Result<()> {
    let (address, path) = match part {
        Part::Api => (settings.listen, "readyz"),
        Part::Worker => (settings.worker_metrics_listen.context("set worker_metrics_listen")?, "metrics"),
    };
    let url = format!("http://{}/{path}", reachable(address));
    let client = reqwest::Client::builder().timeout(Duration::from_secs(5)).build()?;
    let answer = client.get(&url).send().await.with_context(|| format!("{url} does not answer"))?;
    let status = answer.status();
    ensure!(status.is_success(), "{url} answers {status}: {}", answer.text().await.unwrap_or_default());
    Ok(())
}

/// An address to listen on may name every interface; one to ask names one.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}
