//! `/compare`

use std::collections::HashMap;

use axum::extract::State;
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::access::Caller;
use super::evaluation::{DatasetRef, ProtocolRef, find};
use super::evidence::shard_verdicts;
use super::extract::{Json, Query};
use super::problem::*;
use super::state::AppState;
use crate::protocol::{Condition, ConditionKind, Held, Paired, paired};
use crate::store::evaluations::{Evaluation, State as EvaluationState};
use crate::store::shards;

/// Two evaluations, image by image.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Comparison {
    pub a: ComparisonSide,
    pub b: ComparisonSide,
    pub dataset: DatasetRef,
    /// Seeds of both.
    pub seeds: Vec<i64>,
    /// The conditions whose ids occur in both.
    pub conditions: Vec<ComparisonRow>,
}

#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ComparisonSide {
    pub evaluation: Uuid,
    pub model: Uuid,
    pub protocol: ProtocolRef,
    /// Whether every verdict is in.
    pub complete: bool,
}

impl ComparisonSide {
    fn of(e: &Evaluation) -> Self {
        let complete = e.state == EvaluationState::Succeeded;
        Self { evaluation: e.id, model: e.model_id, protocol: ProtocolRef::of(e), complete }
    }
}

#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ComparisonRow {
    pub id: String,
    /// Whether every parameter of the condition is the same in both. If not, the difference is not the models' alone.
    pub same_parameters: bool,
    #[serde(flatten)]
    pub paired: Paired,
}

/// Operations that read evidence.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(compare))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct Pair {
    /// An evaluation.
    a: Uuid,
    /// Another evaluation of the same dataset.
    b: Uuid,
}

/// Compare two evaluations on the images that both have
#[utoipa::path(get, path = "/compare", tag = "results", params(Pair),
    responses((status = 200, body = Comparison), BadRequest, NotFound, Unprocessable))]
async fn compare(
    State(state): State<AppState>,
    caller: Caller,
    Query(pair): Query<Pair>,
) -> Result<Json<Comparison>, Problem> {
    let (a, b) = (find(&state.pool, &caller, pair.a).await?, find(&state.pool, &caller, pair.b).await?);
    let seeds = comparable(&a, &b)?;
    let held_a = held(&state, &a, &b, &seeds).await?;
    let held_b = held(&state, &b, &a, &seeds).await?;
    let row = |condition: &Condition| {
        let other = b.conditions.iter().find(|other| other.id == condition.id)?;
        let (in_a, in_b) = (held_a.get(&condition.id)?, held_b.get(&condition.id)?);
        Some(ComparisonRow {
            id: condition.id.clone(),
            same_parameters: other == condition,
            paired: paired(in_a, in_b, seeds.len() as u32),
        })
    };
    Ok(Json(Comparison {
        conditions: a.conditions.iter().filter_map(row).collect(),
        dataset: DatasetRef { name: a.dataset.name.clone(), hash: a.dataset_hash.clone() },
        a: ComparisonSide::of(&a),
        b: ComparisonSide::of(&b),
        seeds,
    }))
}

/// Whether it says of an image that it held. Without a budget there are distances instead, and an image that held is one on
/// which the search found nothing.
fn has_verdicts(condition: &Condition) -> bool {
    !matches!(condition.kind, ConditionKind::MinNorm(_))
}

/// The common seeds, if the two have anything in common.
fn comparable(a: &Evaluation, b: &Evaluation) -> Result<Vec<i64>, Problem> {
    let refuse = |detail: String| Err(Problem::new(Code::NotComparable, detail));
    if a.dataset_hash != b.dataset_hash {
        return refuse(format!("a is of dataset {}, b of {}, which has other content", a.dataset.name, b.dataset.name));
    }
    let end = |e: &Evaluation| e.first_image + e.images;
    if a.first_image >= end(b) || b.first_image >= end(a) {
        return refuse("their slices of the dataset have no image in common".into());
    }
    if !a.conditions.iter().any(|c| has_verdicts(c) && b.conditions.iter().any(|d| c.id == d.id)) {
        return refuse("their protocols have no condition in common that says of an image whether it held".into());
    }
    let seeds: Vec<i64> = a.seeds.iter().copied().filter(|seed| b.seeds.contains(seed)).collect();
    if seeds.is_empty() { refuse("they have no seed in common".into()) } else { Ok(seeds) }
}

/// Which images held, for every condition that the other evaluation has too; two small words per image are in memory,
/// and the verdicts of one shard.
async fn held(
    state: &AppState,
    evaluation: &Evaluation,
    other: &Evaluation,
    seeds: &[i64],
) -> Result<HashMap<String, Held>, Problem> {
    let fresh = || Held::new(evaluation.first_image as u32, evaluation.images as u32);
    let common =
        evaluation.conditions.iter().filter(|c| has_verdicts(c) && other.conditions.iter().any(|d| c.id == d.id));
    let mut held: HashMap<String, Held> = common.map(|c| (c.id.clone(), fresh())).collect();
    let mut shards = shards::done(&state.pool, evaluation.id).await?;
    shards.retain(|shard| {
        let ids = shard.conditions.iter().filter_map(|&i| evaluation.conditions.get(i as usize));
        seeds.contains(&shard.seed) && ids.into_iter().any(|c| held.contains_key(&c.id))
    });
    let mut shards = std::pin::pin!(shard_verdicts(state.artifacts.clone(), shards));
    while let Some(rows) = shards.next().await {
        for row in rows.map_err(Problem::internal)? {
            if let Some(images) = held.get_mut(&row.condition) {
                images.add(row.verdict.image, row.verdict.robust);
            }
        }
    }
    Ok(held)
}
