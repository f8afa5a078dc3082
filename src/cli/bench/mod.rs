//! Measurements, each as a ratio to something measured in the same run.

pub mod poll;

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

pub async fn run(BenchCommand::Poll(arguments): BenchCommand) -> anyhow::Result<()> {
    let options = poll::PollOptions {
        server: arguments.server.trim_end_matches('/').to_owned(),
        evaluation: arguments.evaluation,
        rate: arguments.rate,
        duration: Duration::from_secs(arguments.seconds),
    };
    let report = poll::run(&options).await?;
    if arguments.json {
        return show::print_json(&report);
    }
    let mut grid = show::grid(["", "value", "", "rival", "ratio"]);
    for cell in &report.cells {
        let number = |value: f64| format!("{value:.3}");
        grid.add_row([cell.id.clone(), number(cell.value), cell.unit.into(), number(cell.rival), number(cell.ratio)]);
    }
    println!("{grid}");
    Ok(())
}

/// What `gauntlet bench NAME --json` prints.
#[derive(Debug, Serialize)]
pub struct Report {
    pub bench: &'static str,
    pub cells: Vec<Cell>,
    pub summary: Map<String, Value>,
}

/// One measured quantity.
#[derive(Debug, Serialize)]
pub struct Cell {
    pub id: String,
    pub value: f64,
    pub unit: &'static str,
    /// The same quantity of what it is compared with.
    pub rival: f64,
    /// `value` / `rival`
    pub ratio: f64,
}

impl Cell {
    pub fn new(id: impl Into<String>, value: f64, unit: &'static str, rival: f64) -> Self {
        Self { id: id.into(), value, unit, rival, ratio: value / rival }
    }
}
