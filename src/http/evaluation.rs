//! `/evaluations/{id}`: follow and cancel one.

use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::access::Caller;
use super::extract::{Json, Path, Query};
use super::problem::*;
use super::progress::{self, Progress};
use super::state::AppState;
use crate::protocol::{Needs, NumericProfile};
use crate::queue::{self, Cancellation, Waiting};
use crate::store::Outcome;
use crate::store::deletion::{self, Deletion};
use crate::store::evaluations::{self, Evaluation, State as EvaluationState, WitnessPolicy};
use crate::store::shards;

/// An evaluation, as listings show it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct EvaluationSummary {
    pub id: Uuid,
    pub model: Uuid,
    pub dataset: DatasetRef,
    /// Index of the first image.
    pub offset: u32,
    pub images: u32,
    pub protocol: ProtocolRef,
    pub seeds: Vec<i64>,
    pub witnesses: WitnessPolicy,
    /// What the stored witnesses may take at most.
    pub witness_bytes_estimate: u64,
    pub priority: i32,
    /// What its workers must have.
    #[serde(default, skip_serializing_if = "Needs::is_empty")]
    pub needs: Needs,
    /// The `x-request-id` of its submission; logs and traces of workers carry it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// Whether everybody with a key may read it and its results.
    #[serde(default)]
    pub shared: bool,
    pub state: EvaluationState,
    /// Why it ended; of terminal states only.
    pub outcome: Option<Outcome>,
    pub created_at: DateTime<Utc>,
    pub started_at: Option<DateTime<Utc>>,
    pub cancel_requested_at: Option<DateTime<Utc>>,
    pub finished_at: Option<DateTime<Utc>>,
    /// Fixed when the first shard starts.
    pub profile: Option<NumericProfile>,
    /// How often it was started over under a smaller numeric profile.
    pub generation: u32,
    pub shards: ShardCounts,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DatasetRef {
    pub name: String,
    pub hash: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProtocolRef {
    pub name: String,
    pub version: u32,
    /// SHA-256 of the document with all settings applied.
    pub hash: String,
}

impl ProtocolRef {
    pub fn of(evaluation: &Evaluation) -> Self {
        let document = &evaluation.protocol;
        Self { name: document.name.clone(), version: document.version, hash: document.hash() }
    }
}

/// Both are 0 until the work is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ShardCounts {
    pub done: u32,
    pub total: u32,
}

impl EvaluationSummary {
    pub fn of(e: &Evaluation) -> Self {
        let stored = e.witnesses.images(e.images as u32);
        Self {
            id: e.id,
            model: e.model_id,
            dataset: DatasetRef { name: e.dataset.name.clone(), hash: e.dataset_hash.clone() },
            offset: e.first_image as u32,
            images: e.images as u32,
            protocol: ProtocolRef::of(e),
            seeds: e.seeds.clone(),
            witnesses: e.witnesses.0,
            witness_bytes_estimate: evaluations::witness_bytes(stored, &e.conditions, e.seeds.len(), e.dataset.shape),
            priority: e.priority,
            needs: e.needs.0.clone(),
            request_id: e.request_id.clone(),
            shared: e.shared,
            state: e.state,
            outcome: e.outcome.as_ref().map(|o| o.0.clone()),
            created_at: e.created_at,
            started_at: e.started_at,
            cancel_requested_at: e.cancel_requested_at,
            finished_at: e.finished_at,
            profile: e.profile.as_ref().map(|p| p.0.clone()),
            generation: e.generation as u32,
            shards: ShardCounts { done: e.shards_done as u32, total: e.shards_total as u32 },
        }
    }
}

/// An evaluation with its progress.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(as = Evaluation)]
pub struct EvaluationView {
    #[serde(flatten)]
    pub summary: EvaluationSummary,
    /// Why nothing of it runs at the moment, and how many evaluations come first.
    pub waiting: Option<Waiting>,
    pub progress: Progress,
    /// Estimated from the shards that are done; absent while nothing is known.
    pub eta_seconds: Option<f64>,
    /// Rises with every change of state.
    pub version: i64,
}

impl EvaluationView {
    /// Weak: an ETA may move while the tag stays.
    fn etag(&self) -> String {
        let waiting = self.waiting.as_ref().map_or(String::new(), |w| format!("-{}-{}", w.code, w.position));
        format!("W/\"{}-{}{waiting}\"", self.version, self.progress.running)
    }

    /// When it is worth asking again: sooner near the end, seldom in the middle of long work.
    fn retry_after(&self) -> Option<u64> {
        if self.summary.state.is_terminal() {
            return None;
        }
        Some(self.eta_seconds.map_or(2, |eta| (eta / 10.0).clamp(1.0, 30.0) as u64))
    }
}

/// Reads what a row alone does not say.
pub async fn view(pool: &PgPool, evaluation: Evaluation) -> Result<EvaluationView, sqlx::Error> {
    let groups = shards::progress(pool, evaluation.id).await?;
    let running = groups.iter().any(|group| group.running_shards > 0);
    let waiting = if running { None } else { queue::waiting(pool, &evaluation).await? };
    Ok(EvaluationView {
        progress: progress::of(&evaluation, &groups),
        eta_seconds: progress::eta_seconds(&evaluation, &groups),
        waiting,
        version: evaluation.version,
        summary: EvaluationSummary::of(&evaluation),
    })
}

/// With `ETag` and, while it has not ended, `Retry-After`.
pub fn answer(view: &EvaluationView) -> Response {
    let mut response = Json(view).into_response();
    mark(&mut response, view);
    response
}

fn mark(response: &mut Response, view: &EvaluationView) {
    let headers = response.headers_mut();
    headers.insert(header::ETAG, HeaderValue::try_from(view.etag()).expect("tags are ASCII"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    if let Some(seconds) = view.retry_after() {
        headers.insert(header::RETRY_AFTER, seconds.into());
    }
}

/// Operations that must answer quickly.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(delete_evaluation))
        .routes(routes!(cancel_evaluation))
        .routes(routes!(share_evaluation, unshare_evaluation))
}

/// The operation that may wait.
pub fn waiting_router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(get_evaluation))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct Wait {
    /// How long the answer may be held back, e.g. `30s` or `30`; at most 60 s.
    #[param(pattern = "^[0-9]{1,4}s?$")]
    wait: Option<String>,
}

const MAX_WAIT: u64 = 60;

fn wait_time(text: Option<&str>) -> Result<Duration, Problem> {
    let Some(text) = text else { return Ok(Duration::ZERO) };
    let digits = text.strip_suffix('s').unwrap_or(text);
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    match digits.parse::<u64>() {
        Ok(seconds) if plain => Ok(Duration::from_secs(seconds.min(MAX_WAIT))),
        _ => {
            Err(Problem::new(Code::BadQuery, format!("wait is a number of seconds such as 30s, not {text:?}"))
                .at("wait"))
        }
    }
}

pub fn not_found(id: Uuid) -> Problem {
    Problem::new(Code::EvaluationNotFound, format!("there is no evaluation {id}"))
}

/// The evaluation of a path, if the caller may read it. If not, the answer is that of one that does not exist.
pub async fn find(pool: &PgPool, caller: &Caller, id: Uuid) -> Result<Evaluation, Problem> {
    let readable = |e: &Evaluation| e.shared || caller.sees().is_none_or(|owner| e.owner == owner);
    evaluations::get(pool, id).await?.filter(readable).ok_or_else(|| not_found(id))
}

/// Get an evaluation
///
/// With `If-None-Match`, 304 if nothing has changed. With `wait` the answer is held back: with `If-None-Match` until
/// something changes, without it until the evaluation has ended; after the time given, what is known is answered.
#[utoipa::path(get, path = "/evaluations/{id}", tag = "evaluations",
    params(("id" = Uuid, Path), Wait, ("If-None-Match" = Option<String>, Header, description = "`ETag` of an answer before")),
    responses(
        (status = 200, body = EvaluationView, headers(("ETag" = String), ("Retry-After" = u64, description = "Seconds; absent once it has ended"))),
        (status = 304, description = "Unchanged", headers(("ETag" = String))),
        BadRequest, NotFound))]
async fn get_evaluation(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<Uuid>,
    Query(Wait { wait }): Query<Wait>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let wait = wait_time(wait.as_deref())?;
    let known = headers.get(header::IF_NONE_MATCH).and_then(|v| v.to_str().ok());
    let deadline = tokio::time::Instant::now() + wait;
    if !evaluations::readable(&state.pool, caller.sees(), id).await? {
        return Err(not_found(id));
    }
    // Watched before it is read, so that no change falls between the two.
    let mut changes = (!wait.is_zero()).then(|| state.watcher.watch(id));
    let read = async || state.views.get(id).await?.ok_or_else(|| not_found(id));
    let mut current = read().await?;
    let news = |view: &EvaluationView| match known {
        Some(known) => !matches(known, &view.etag()),
        None => view.summary.state.is_terminal(),
    };
    while let Some(changed) = &mut changes
        && !news(&current)
    {
        let ended = tokio::select! {
            changed = changed.changed() => changed.is_err(),
            () = tokio::time::sleep_until(deadline) => true,
            () = state.shutdown.cancelled() => true,
        };
        current = read().await?;
        if ended {
            break;
        }
    }
    if known.is_some_and(|known| matches(known, &current.etag())) {
        let mut response = StatusCode::NOT_MODIFIED.into_response();
        mark(&mut response, &current);
        return Ok(response);
    }
    Ok(answer(&current))
}

/// Weak comparison (RFC 9110, 13.1.2).
fn matches(if_none_match: &str, etag: &str) -> bool {
    let opaque = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    if_none_match.trim() == "*" || if_none_match.split(',').any(|tag| opaque(tag) == opaque(etag))
}

/// Cancel an evaluation
///
/// Waiting work is dropped at once; running work is stopped within seconds, then `cancelling` becomes `cancelled`.
/// Cancelling again changes nothing. 409 if it had already succeeded or failed.
#[utoipa::path(post, path = "/evaluations/{id}/cancel", tag = "evaluations", params(("id" = Uuid, Path)),
    responses((status = 202, description = "Accepted, now or before", body = EvaluationView), BadRequest, NotFound, Conflict))]
async fn cancel_evaluation(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<Response, Problem> {
    match queue::cancel(&state.pool, caller.sees(), id).await? {
        Cancellation::NotFound => Err(not_found(id)),
        Cancellation::Ended(ended) => {
            Err(Problem::new(Code::AlreadyEnded, format!("evaluation {id} has already {}", ended.name())))
        }
        Cancellation::Accepted => {
            let current = view(&state.pool, find(&state.pool, &caller, id).await?).await?;
            Ok((StatusCode::ACCEPTED, answer(&current)).into_response())
        }
    }
}

/// Delete an evaluation
///
/// With its table, verdicts, witnesses, logs and events; nothing of it is left, also for those it was shared with. Refused until it has
/// ended. It goes on to count in the day's quota.
#[utoipa::path(delete, path = "/evaluations/{id}", tag = "evaluations", params(("id" = Uuid, Path)),
    responses((status = 204, description = "Deleted"), BadRequest, NotFound, Conflict))]
async fn delete_evaluation(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<StatusCode, Problem> {
    match deletion::evaluation(&state.pool, &state.artifacts, caller.sees(), id).await? {
        Deletion::NotFound => Err(not_found(id)),
        Deletion::Unfinished(now) => {
            let detail = format!("it is {}: cancel it first, or wait for its end", now.name());
            Err(Problem::new(Code::EvaluationUnfinished, detail))
        }
        Deletion::Done => Ok(StatusCode::NO_CONTENT),
    }
}

/// Share an evaluation
///
/// Everybody with a key may then read it, its table and its evidence. The model itself stays private.
#[utoipa::path(put, path = "/evaluations/{id}/share", tag = "evaluations", params(("id" = Uuid, Path)),
    responses((status = 204, description = "Shared, now or before"), BadRequest, NotFound))]
async fn share_evaluation(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<StatusCode, Problem> {
    set_shared(&state, &caller, id, true).await
}

/// Make an evaluation private again
#[utoipa::path(delete, path = "/evaluations/{id}/share", tag = "evaluations", params(("id" = Uuid, Path)),
    responses((status = 204, description = "Private, now or before"), BadRequest, NotFound))]
async fn unshare_evaluation(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<StatusCode, Problem> {
    set_shared(&state, &caller, id, false).await
}

async fn set_shared(state: &AppState, caller: &Caller, id: Uuid, shared: bool) -> Result<StatusCode, Problem> {
    match evaluations::share(&state.pool, caller.sees(), id, shared).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(not_found(id)),
    }
}
