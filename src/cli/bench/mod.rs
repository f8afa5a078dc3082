//! Measurements, each as a ratio to something measured in the same run.

pub mod poll;

use serde::Serialize;
use serde_json::{Map, Value};

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
