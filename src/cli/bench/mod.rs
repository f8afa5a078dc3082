//! Measurements, each as a ratio to something measured in the same run.

#[cfg(feature = "evaluator")]
mod attacks;
pub mod corruption_rate;
pub mod corruptions;
pub mod poll;
pub mod queue;
pub mod watch;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::show;

#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// `GET /v1/evaluations/{id}` at a constant rate against `/healthz` of the same server.
    Poll(PollArguments),
    /// AutoAttack and PGD on two small models against torchattacks, and the engine's efficiency.
    #[cfg(feature = "evaluator")]
    Attacks(attacks::AttackArguments),
    /// Every corruption and severity on one thread against the Python package imagecorruptions-imaug.
    Corruptions(CorruptionArguments),
    /// Corrupted images per second of the protocol imagenet-c by number of threads, as an evaluator makes them.
    CorruptionRate(RateArguments),
    /// The lease queue with a hundred thousand shards and many workers, against single-row commits by pgbench, in a private database.
    Queue(QueueArguments),
    /// The server's memory while many clients follow one evaluation by streams of events and long polls.
    Watch(WatchArguments),
}

#[derive(Debug, Args)]
pub struct CorruptionArguments {
    /// A PNG or JPEG file [default: a picture of 224 pixels that this program carries].
    #[arg(long)]
    picture: Option<PathBuf>,
    /// A Python with the packages that tools/bench/corruptions.py names.
    #[arg(long, default_value = "python3")]
    python: PathBuf,
    /// Milliseconds spent on each cell, on each side and turn.
    #[arg(long, default_value_t = 150)]
    milliseconds: u64,
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct RateArguments {
    /// A PNG or JPEG file [default: a picture of 224 pixels that this program carries].
    #[arg(long)]
    picture: Option<PathBuf>,
    /// Numbers of threads to try [default: 1, 2, 4 and so on up to the machine's].
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Vec<u16>,
    /// Seconds spent on each.
    #[arg(long, default_value_t = 6)]
    seconds: u64,
    #[arg(long)]
    json: bool,
}

impl RateArguments {
    fn options(self) -> corruption_rate::RateOptions {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let doubled = || std::iter::successors(Some(1), |n| Some(n * 2)).take_while(|n| *n < cores).chain([cores]);
        let named: Vec<usize> = self.threads.iter().copied().map(usize::from).collect();
        let threads = if named.is_empty() { doubled().collect() } else { named };
        corruption_rate::RateOptions { picture: self.picture, threads, budget: Duration::from_secs(self.seconds) }
    }
}

#[derive(Debug, Args)]
pub struct PollArguments {
    /// Address of the server.
    #[arg(long, env = "GAUNTLET_SERVER", value_name = "URL", default_value = "http://127.0.0.1:8080")]
    server: String,
    /// The evaluation to poll.
    #[arg(long)]
    evaluation: Uuid,
    /// Requests per second.
    #[arg(long, default_value_t = 500)]
    rate: u32,
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct WatchArguments {
    /// Address of the server, on this machine.
    #[arg(long, env = "GAUNTLET_SERVER", value_name = "URL", default_value = "http://127.0.0.1:8080")]
    server: String,
    /// Process id of the server.
    #[arg(long)]
    pid: u32,
    /// An evaluation that lasts longer than the measurement.
    #[arg(long)]
    evaluation: Uuid,
    #[arg(long, default_value_t = 2000)]
    clients: u32,
    /// For how long they watch.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct QueueArguments {
    /// Evaluations of 100 shards each.
    #[arg(long, default_value_t = 1000)]
    evaluations: u32,
    #[arg(long, default_value_t = 32)]
    workers: u32,
    /// Seconds spent on each part.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Postgres' own benchmark.
    #[arg(long, default_value = "pgbench")]
    pgbench: PathBuf,
    #[arg(long)]
    json: bool,
}

pub async fn run(command: BenchCommand) -> anyhow::Result<()> {
    match command {
        BenchCommand::Poll(arguments) => poll(arguments).await,
        #[cfg(feature = "evaluator")]
        BenchCommand::Attacks(arguments) => print(&attacks::run(&arguments)?, arguments.json),
        BenchCommand::Corruptions(CorruptionArguments { picture, python, milliseconds, json }) => {
            let budget = Duration::from_millis(milliseconds);
            print(&corruptions::run(&corruptions::CorruptionOptions { picture, python, budget })?, json)
        }
        BenchCommand::CorruptionRate(arguments) => {
            let json = arguments.json;
            print(&corruption_rate::run(&arguments.options())?, json)
        }
        BenchCommand::Watch(WatchArguments { server, pid, evaluation, clients, seconds, json }) => {
            let (server, duration) = (server.trim_end_matches('/').to_owned(), Duration::from_secs(seconds));
            print(&watch::run(&watch::WatchOptions { server, pid, evaluation, clients, duration }).await?, json)
        }
        BenchCommand::Queue(QueueArguments { evaluations, workers, seconds, pgbench, json }) => {
            let duration = Duration::from_secs(seconds);
            print(&queue::run(&queue::QueueOptions { evaluations, workers, duration, pgbench }).await?, json)
        }
    }
}

async fn poll(arguments: PollArguments) -> anyhow::Result<()> {
    let options = poll::PollOptions {
        server: arguments.server.trim_end_matches('/').to_owned(),
        evaluation: arguments.evaluation,
        rate: arguments.rate,
        duration: Duration::from_secs(arguments.seconds),
    };
    print(&poll::run(&options).await?, arguments.json)
}

fn print(report: &Report, json: bool) -> anyhow::Result<()> {
    if json {
        return show::print_json(report);
    }
    let mut grid = show::grid(["", "value", "", "rival", "ratio"]);
    for cell in &report.cells {
        let number = |value: f64| format!("{value:.3}");
        grid.add_row([cell.id.clone(), number(cell.value), cell.unit.into(), number(cell.rival), number(cell.ratio)]);
    }
    println!("{grid}\n{}", serde_json::to_string(&report.summary)?);
    Ok(())
}

/// What `gauntlet bench NAME --json` prints.
#[derive(Debug, Serialize)]
pub struct Report {
    pub bench: &'static str,
    pub cells: Vec<Cell>,
    pub summary: Map<String, Value>,
}

/// The smallest value that at least `share` of the ascending values do not exceed.
fn quantile(ascending: &[f64], share: f64) -> f64 {
    let rank = (share * ascending.len() as f64).ceil() as usize;
    ascending[rank.clamp(1, ascending.len()) - 1]
}

/// One measured quantity.
#[derive(Debug, Serialize)]
pub struct Cell {
    pub id: String,
    pub value: f64,
    pub unit: &'static str,
    /// The same quantity of what it is compared with.
    pub rival: f64,
    /// `value` / `rival`, or the other way round where it says how much faster this is.
    pub ratio: f64,
}

impl Cell {
    pub fn new(id: impl Into<String>, value: f64, unit: &'static str, rival: f64) -> Self {
        Self { id: id.into(), value, unit, rival, ratio: value / rival }
    }

    /// The same of a time, with how many times faster it is than the rival's as ratio.
    pub fn speedup(id: impl Into<String>, value: f64, unit: &'static str, rival: f64) -> Self {
        Self { ratio: rival / value, ..Self::new(id, value, unit, rival) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_occurred() {
        let values: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!([0.5, 0.99, 1.0].map(|share| quantile(&values, share)), [100.0, 198.0, 200.0]);
        assert_eq!(quantile(&[7.0], 0.5), 7.0);
    }
}
