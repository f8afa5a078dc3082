//! `/evaluations/{id}/shards`: the pieces of an evaluation, and the logs of the attempts at them. For its owner alone.

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::access::Caller;
use super::evaluation;
use super::extract::{Json, Path, Query};
use super::page;
use super::problem::*;
use super::state::AppState;
use crate::store::evaluations::Evaluation;
use crate::store::shards::{self, Attempt, Shard, ShardError};

pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list_shards)).routes(routes!(shard_log))
}

/// A piece of an evaluation: some conditions on some images.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(as = Shard)]
pub struct ShardView {
    /// Its number within the evaluation, from 0.
    pub shard: u32,
    pub state: ShardState,
    /// Ids.
    pub conditions: Vec<String>,
    pub seed: i64,
    /// Index of its first image.
    pub offset: u32,
    pub images: u32,
    /// Attempts begun; those that were given back untouched do not count.
    pub attempts: u32,
    /// Verdicts of the running attempt.
    pub progress: u32,
    /// Why the last attempt failed.
    pub error: Option<ShardError>,
    /// When it is tried again; of queued ones only.
    pub not_before: Option<DateTime<Utc>>,
    pub worker: Option<Uuid>,
    pub started_at: Option<DateTime<Utc>>,
    pub finished_at: Option<DateTime<Utc>>,
    /// What the attempt with results took.
    pub seconds: Option<f64>,
    /// Attempts that have ended, oldest first.
    pub log: Vec<AttemptView>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ShardState {
    Queued,
    Running,
    Done,
    Failed,
    Cancelled,
}

/// An attempt that has ended.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(as = Attempt)]
pub struct AttemptView {
    pub attempt: u32,
    /// `results`, `failed` or `stopped`.
    pub ending: String,
    pub worker: Option<Uuid>,
    pub started_at: Option<DateTime<Utc>>,
    pub finished_at: DateTime<Utc>,
    /// Length of its log; absent once that has expired.
    pub bytes: Option<u32>,
}

impl ShardView {
    fn of(shard: Shard, attempts: Vec<Attempt>, evaluation: &Evaluation) -> Result<Self, Problem> {
        let state = match shard.state.as_str() {
            "queued" => ShardState::Queued,
            "running" => ShardState::Running,
            "done" => ShardState::Done,
            "failed" => ShardState::Failed,
            "cancelled" => ShardState::Cancelled,
            other => return Err(Problem::internal(format!("shard {} is in state {other:?}", shard.id))),
        };
        let name = |&i: &i32| evaluation.conditions.get(i as usize).map_or_else(String::new, |c| c.id.clone());
        Ok(Self {
            shard: shard.ordinal as u32,
            state,
            conditions: shard.conditions.iter().map(name).collect(),
            seed: shard.seed,
            offset: shard.first_image as u32,
            images: shard.images as u32,
            attempts: shard.attempts as u32,
            progress: shard.progress as u32,
            error: shard.error.map(|error| error.0),
            not_before: (state == ShardState::Queued).then_some(shard.not_before),
            worker: shard.worker_id,
            started_at: shard.started_at,
            finished_at: shard.finished_at,
            seconds: shard.seconds,
            log: attempts.into_iter().map(AttemptView::of).collect(),
        })
    }
}

impl AttemptView {
    fn of(attempt: Attempt) -> Self {
        Self {
            attempt: attempt.attempt as u32,
            ending: attempt.outcome,
            worker: attempt.worker_id,
            started_at: attempt.started_at,
            finished_at: attempt.finished_at,
            bytes: attempt.log_key.is_some().then_some(attempt.log_bytes as u32),
        }
    }
}

#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Shards {
    items: Vec<ShardView>,
    /// Pass as `from` to get the next page; `null` on the last one.
    #[schema(required)]
    next: Option<u32>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct Listing {
    /// Rows of a page, 50 if absent.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<i64>,
    /// The first shard of the page, 0 if absent.
    #[param(minimum = 0, maximum = 2147483647)]
    from: Option<i32>,
}

/// The caller's own evaluation: logs are not shared with its results.
async fn own(state: &AppState, caller: &Caller, id: Uuid) -> Result<Evaluation, Problem> {
    let found = evaluation::find(&state.pool, caller, id).await?;
    match caller.sees() {
        Some(owner) if found.owner != owner => Err(evaluation::not_found(id)),
        _ => Ok(found),
    }
}

/// List the shards of an evaluation
///
/// Its owner's alone, also if its results are shared.
#[utoipa::path(get, path = "/evaluations/{id}/shards", tag = "evaluations", params(("id" = Uuid, Path), Listing),
    responses((status = 200, body = Shards), BadRequest, NotFound))]
async fn list_shards(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<Uuid>,
    Query(listing): Query<Listing>,
) -> Result<Json<Shards>, Problem> {
    let evaluation = own(&state, &caller, id).await?;
    let limit = page::limit(listing.limit)?;
    let from = listing.from.unwrap_or(0);
    if from < 0 {
        return Err(Problem::new(Code::BadQuery, "from is a shard's number").at("from"));
    }
    let mut rows = shards::list(&state.pool, id, from, limit + 1).await?;
    let more = rows.len() as i64 > limit;
    rows.truncate(limit as usize);
    let next = rows.last().filter(|_| more).map(|last| last.ordinal as u32 + 1);
    let ids: Vec<i64> = rows.iter().map(|shard| shard.id).collect();
    let mut attempts = shards::attempts(&state.pool, &ids).await?;
    let of = |shard: Shard| {
        let its = attempts.extract_if(.., |attempt| attempt.shard_id == shard.id).collect();
        ShardView::of(shard, its, &evaluation)
    };
    Ok(Json(Shards { items: rows.into_iter().map(of).collect::<Result<_, _>>()?, next }))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct Which {
    /// The newest that has ended if absent.
    #[param(minimum = 1, maximum = 2147483647)]
    attempt: Option<i32>,
}

/// Read the log of an attempt at a shard
///
/// What its worker did, and the last 64 KiB that the evaluator, the model in it, wrote. There is one as soon as an attempt has ended, however it
/// ended; a worker that died left none.
#[utoipa::path(get, path = "/evaluations/{id}/shards/{shard}/log", tag = "evaluations",
    params(("id" = Uuid, Path), ("shard" = u32, Path, description = "Its number, from 0"), Which),
    responses((status = 200, description = "The log", body = String, content_type = "text/plain"), BadRequest, NotFound))]
async fn shard_log(
    State(state): State<AppState>,
    caller: Caller,
    Path((id, shard)): Path<(Uuid, u32)>,
    Query(Which { attempt }): Query<Which>,
) -> Result<Response, Problem> {
    own(&state, &caller, id).await?;
    let key = match i32::try_from(shard) {
        Ok(ordinal) => shards::log_key(&state.pool, id, ordinal, attempt).await?,
        Err(_) => None,
    };
    let missing = || Problem::new(Code::LogNotFound, format!("shard {shard} has no log of such an attempt (yet)"));
    let text = state.artifacts.get(&key.ok_or_else(missing)?).await?;
    // A model chose the words: no browser is to take them for anything but text.
    let headers = [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    Ok((headers, text).into_response())
}
