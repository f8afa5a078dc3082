//! `/leaderboard`

use std::cmp::Ordering;

use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::access::Caller;
use super::evaluation::{DatasetRef, ProtocolRef};
use super::extract::{Json, Query};
use super::problem::*;
use super::state::AppState;
use crate::protocol::Grade;
use crate::protocol::report::{self, Columns, Row};
use crate::store::report::{Standing, standings};

/// Finished evaluations of one protocol. Only what is comparable shares a table.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Leaderboard {
    /// The protocol's name.
    pub protocol: String,
    pub tables: Vec<LeaderboardTable>,
}

/// Evaluations of the same images with the same parameters.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct LeaderboardTable {
    pub dataset: DatasetRef,
    /// Index of the first image.
    pub offset: u32,
    pub images: u32,
    pub protocol: ProtocolRef,
    pub seeds: Vec<i64>,
    /// Best first: by overall mean, else white box, else the first median distance, else clean accuracy.
    pub rows: Vec<LeaderboardRow>,
}

/// The newest finished evaluation of a model.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct LeaderboardRow {
    pub model: Uuid,
    pub model_name: String,
    pub evaluation: Uuid,
    pub columns: Columns,
    pub conditions: Vec<LeaderboardCell>,
    /// Whether the figures can be believed.
    pub grade: Grade,
    /// Codes of the findings on model and run.
    pub findings: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct LeaderboardCell {
    pub id: String,
    pub accuracy: Option<f64>,
    /// Wilson 95 % interval.
    pub ci95: Option<[f64; 2]>,
    /// Of a condition without a budget: how far half of the images must be moved at most; `null`: infinitely far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<f64>)]
    pub median: Option<Option<f64>>,
}

pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(leaderboard))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct Which {
    /// A protocol's name.
    protocol: String,
}

/// Rank models under a protocol
#[utoipa::path(get, path = "/leaderboard", tag = "results", params(Which),
    responses((status = 200, body = Leaderboard), BadRequest))]
async fn leaderboard(
    State(state): State<AppState>,
    caller: Caller,
    Query(Which { protocol }): Query<Which>,
) -> Result<Json<Leaderboard>, Problem> {
    let mut tables: Vec<LeaderboardTable> = Vec::new();
    for standing in standings(&state.pool, caller.sees(), &protocol).await? {
        let fresh = table_of(&standing);
        let same = |t: &LeaderboardTable| {
            (&t.dataset.hash, t.offset, t.images, &t.protocol.hash, &t.seeds)
                == (&fresh.dataset.hash, fresh.offset, fresh.images, &fresh.protocol.hash, &fresh.seeds)
        };
        match tables.iter_mut().find(|t| same(t)) {
            Some(table) => table.rows.push(row_of(standing)),
            None => tables.push(LeaderboardTable { rows: vec![row_of(standing)], ..fresh }),
        }
    }
    tables.iter_mut().for_each(|table| table.rows.sort_by(better));
    tables.sort_by(|a, b| (&a.dataset.name, b.images).cmp(&(&b.dataset.name, a.images)));
    Ok(Json(Leaderboard { protocol, tables }))
}

fn table_of(standing: &Standing) -> LeaderboardTable {
    let e = &standing.evaluation;
    LeaderboardTable {
        dataset: DatasetRef { name: e.dataset.name.clone(), hash: e.dataset_hash.clone() },
        offset: e.first_image as u32,
        images: e.images as u32,
        protocol: ProtocolRef::of(e),
        seeds: e.seeds.clone(),
        rows: Vec::new(),
    }
}

fn row_of(standing: Standing) -> LeaderboardRow {
    let cell = |row: &Row| LeaderboardCell {
        id: row.condition.id.clone(),
        accuracy: row.accuracy,
        ci95: row.ci95,
        median: row.minimal.as_ref().map(|minimal| minimal.median),
    };
    // Evaluations from before there were grades have what was found of their model.
    let (grade, findings) = match &standing.evaluation.diagnostics {
        Some(diagnostics) => (diagnostics.grade, &diagnostics.findings),
        None => (Grade::NotAssessed, &standing.findings),
    };
    let mut findings: Vec<String> = findings.iter().map(|finding| finding.code.clone()).collect();
    findings.dedup();
    LeaderboardRow {
        model: standing.evaluation.model_id,
        model_name: standing.model_name,
        evaluation: standing.evaluation.id,
        columns: report::columns(&standing.rows, standing.evaluation.protocol.aggregate),
        conditions: standing.rows.iter().map(cell).collect(),
        grade,
        findings,
    }
}

fn better(a: &LeaderboardRow, b: &LeaderboardRow) -> Ordering {
    let key = |row: &LeaderboardRow| {
        let columns = &row.columns;
        let median = row.conditions.iter().find_map(|cell| cell.median).map(|median| median.unwrap_or(f64::INFINITY));
        [columns.overall_mean.or(columns.white_box).or(median), columns.clean]
            .map(|value| value.unwrap_or(f64::NEG_INFINITY))
    };
    let ([a1, a2], [b1, b2]) = (key(a), key(b));
    b1.total_cmp(&a1).then(b2.total_cmp(&a2)).then_with(|| a.model_name.cmp(&b.model_name))
}
