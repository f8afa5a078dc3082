//! Evaluations: the jobs that users submit.

use std::ops::Range;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::types::Json;
use sqlx::{PgConnection, PgExecutor, PgPool};
use uuid::Uuid;

use super::models::Model;
use super::{Outcome, QuotaError, Quotas, quota};
use crate::dataset::{Manifest, Shape};
use crate::protocol::plan::{self, Workload};
use crate::protocol::report::{Broken, Tally};
use crate::protocol::{Condition, ConditionKind, Diagnostics, Needs, NumericProfile, Protocol, Subject};

/// Which witnesses are stored. The rest can be regenerated from seeds and profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WitnessPolicy {
    None,
    /// Those of the first n images of the evaluated slice, per condition and seed.
    Sample(u32),
    All,
}

impl Default for WitnessPolicy {
    fn default() -> Self {
        Self::Sample(16)
    }
}

impl WitnessPolicy {
    /// How many of the slice's images, counted from its first, may store witnesses.
    pub fn images(self, slice: u32) -> u32 {
        match self {
            Self::None => 0,
            Self::Sample(n) => n.min(slice),
            Self::All => slice,
        }
    }
}

/// What the witnesses of `images` images take at most, in bytes: every attack condition breaks every image.
pub fn witness_bytes(images: u32, conditions: &[Condition], seeds: usize, shape: Shape) -> u64 {
    let attacks =
        conditions.iter().filter(|c| matches!(c.kind, ConditionKind::Attack(_) | ConditionKind::MinNorm(_))).count();
    let each = shape.bytes() as u64 * size_of::<f32>() as u64;
    u64::from(images) * attacks as u64 * seeds as u64 * each
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = EvaluationState)]
#[sqlx(type_name = "text", rename_all = "lowercase")]
pub enum State {
    Queued,
    Running,
    Cancelling,
    Succeeded,
    Failed,
    Cancelled,
}

impl State {
    pub const ALL: [Self; 6] =
        [Self::Queued, Self::Running, Self::Cancelling, Self::Succeeded, Self::Failed, Self::Cancelled];

    pub fn is_terminal(self) -> bool {
        matches!(self, State::Succeeded | State::Failed | State::Cancelled)
    }

    pub fn name(self) -> &'static str {
        match self {
            State::Queued => "queued",
            State::Running => "running",
            State::Cancelling => "cancelling",
            State::Succeeded => "succeeded",
            State::Failed => "failed",
            State::Cancelled => "cancelled",
        }
    }
}

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Evaluation {
    pub id: Uuid,
    pub owner: String,
    /// Whether everybody with a key may read it.
    pub shared: bool,
    pub model_id: Uuid,
    pub dataset: Json<Manifest>,
    pub dataset_hash: String,
    pub first_image: i32,
    pub images: i32,
    pub protocol: Json<Protocol>,
    pub conditions: Json<Vec<Condition>>,
    pub seeds: Vec<i64>,
    pub witnesses: Json<WitnessPolicy>,
    pub priority: i32,
    pub needs: Json<Needs>,
    /// The `x-request-id` that it was submitted with.
    pub request_id: Option<String>,
    pub state: State,
    pub outcome: Option<Json<Outcome>>,
    pub profile: Option<Json<NumericProfile>>,
    /// The judgement, once it has succeeded; missing from before there were any.
    pub diagnostics: Option<Json<Diagnostics>>,
    pub batch_limit: Option<i32>,
    pub generation: i32,
    pub planned: bool,
    pub shards_total: i32,
    pub shards_done: i32,
    pub created_at: DateTime<Utc>,
    pub started_at: Option<DateTime<Utc>>,
    pub cancel_requested_at: Option<DateTime<Utc>>,
    pub finished_at: Option<DateTime<Utc>>,
    pub version: i64,
}

/// An evaluation to be queued.
pub struct NewEvaluation<'a> {
    /// Submitting the same id again changes nothing.
    pub id: Uuid,
    pub owner: &'a str,
    pub model: Uuid,
    pub dataset: &'a Manifest,
    pub first_image: u32,
    pub images: u32,
    pub protocol: &'a Protocol,
    pub conditions: &'a [Condition],
    pub seeds: &'a [i64],
    pub witnesses: WitnessPolicy,
    pub priority: i32,
    pub needs: &'a Needs,
    pub request_id: Option<&'a str>,
    pub quotas: &'a Quotas,
}

/// Why an evaluation was not queued.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    #[error("the model does not exist")]
    NoModel,
    #[error("the model was rejected")]
    Rejected(Box<Model>),
    #[error(transparent)]
    Quota(#[from] QuotaError),
    #[error("{}", too_many_shards(*.0))]
    TooManyShards(u64),
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

const COLUMNS: &str = "id, owner, shared, model_id, dataset, dataset_hash, first_image, images, protocol, conditions, seeds, witnesses, \
     priority, needs, request_id, state, outcome, profile, diagnostics, batch_limit, generation, planned, shards_total, shards_done, created_at, started_at, \
     cancel_requested_at, finished_at, version";

pub(super) fn select(rest: &str) -> sqlx::AssertSqlSafe<String> {
    sqlx::AssertSqlSafe(format!("select {COLUMNS} from evaluations where {rest}"))
}

/// Queues an evaluation; its shards are cut at once if the model is ready, else when it becomes so.
pub async fn insert(pool: &PgPool, new: &NewEvaluation<'_>) -> Result<Evaluation, SubmitError> {
    if let Some(there) = get(pool, new.id).await? {
        return Ok(there);
    }
    let mut tx = pool.begin().await?;
    let model = super::models::lock(&mut tx, new.model).await?.ok_or(SubmitError::NoModel)?;
    if model.state == "rejected" {
        return Err(SubmitError::Rejected(Box::new(model)));
    }
    let shards =
        plan::count(&workload(&model, new.conditions, new.seeds, new.first_image..new.first_image + new.images));
    if shards > plan::MAX_SHARDS {
        return Err(SubmitError::TooManyShards(shards));
    }
    quota::evaluation(&mut tx, new.owner, new.quotas).await??;
    let id = new.id;
    let inserted = sqlx::query(
        "insert into evaluations (id, owner, model_id, dataset, dataset_hash, first_image, images, protocol_name, protocol,
                                  conditions, seeds, witnesses, priority, needs, request_id)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
         on conflict (id) do nothing",
    )
    .bind(id)
    .bind(new.owner)
    .bind(new.model)
    .bind(Json(new.dataset))
    .bind(new.dataset.hash.to_string())
    .bind(new.first_image as i32)
    .bind(new.images as i32)
    .bind(&new.protocol.name)
    .bind(Json(new.protocol))
    .bind(Json(new.conditions))
    .bind(new.seeds)
    .bind(Json(new.witnesses))
    .bind(new.priority)
    .bind(Json(new.needs))
    .bind(new.request_id)
    .execute(&mut *tx)
    .await?;
    if inserted.rows_affected() == 0 {
        return Ok(get(pool, id).await?.ok_or(sqlx::Error::RowNotFound)?);
    }
    if model.state == "ready" {
        plan_one(&mut tx, id, &model).await?;
    }
    tx.commit().await?;
    Ok(get(pool, id).await?.ok_or(sqlx::Error::RowNotFound)?)
}

pub async fn get(pool: &PgPool, id: Uuid) -> Result<Option<Evaluation>, sqlx::Error> {
    sqlx::query_as(select("id = $1")).bind(id).fetch_optional(pool).await
}

/// Whether the owner (anybody, if `None`) may read this evaluation: it exists, and is theirs or shared.
pub async fn readable(pool: &PgPool, owner: Option<&str>, id: Uuid) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        "select exists (select 1 from evaluations where id = $1 and (shared or $2::text is null or owner = $2))",
    )
    .bind(id)
    .bind(owner)
    .fetch_one(pool)
    .await
}

/// Whether an evaluation has ended; `None` if there is none that the owner (anybody, if `None`) may read.
pub async fn ended(pool: &PgPool, owner: Option<&str>, id: Uuid) -> Result<Option<bool>, sqlx::Error> {
    let state: Option<State> = sqlx::query_scalar(
        "select state from evaluations where id = $1 and (shared or $2::text is null or owner = $2)",
    )
    .bind(id)
    .bind(owner)
    .fetch_optional(pool)
    .await?;
    Ok(state.map(State::is_terminal))
}

/// When the stored witnesses of an evaluation were deleted because their time was up.
pub async fn witnesses_expired(pool: &PgPool, id: Uuid) -> Result<Option<DateTime<Utc>>, sqlx::Error> {
    let found: Option<Option<DateTime<Utc>>> =
        sqlx::query_scalar("select witnesses_expired_at from evaluations where id = $1")
            .bind(id)
            .fetch_optional(pool)
            .await?;
    Ok(found.flatten())
}

/// Shares an evaluation of this owner (of anybody, if `None`) or takes it back; `false` if there is none.
pub async fn share(pool: &PgPool, owner: Option<&str>, id: Uuid, shared: bool) -> Result<bool, sqlx::Error> {
    let found = sqlx::query(
        "update evaluations set shared = $3, version = version + 1 where id = $1 and ($2::text is null or owner = $2)",
    )
    .bind(id)
    .bind(owner)
    .bind(shared)
    .execute(pool)
    .await?;
    Ok(found.rows_affected() == 1)
}

/// A mark that differs whenever the evaluation's row or its progress does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    pub version: i64,
    /// Verdicts that running attempts reported.
    pub progress: i64,
    /// Shards that run.
    pub running: i64,
}

/// The stamps of those of these evaluations that exist.
pub async fn stamps(pool: &PgPool, ids: &[Uuid]) -> Result<Vec<(Uuid, Stamp)>, sqlx::Error> {
    let rows: Vec<(Uuid, i64, i64, i64)> = sqlx::query_as(
        "select e.id, e.version, coalesce(sum(s.progress), 0)::bigint, count(s.id)
         from evaluations e left join shards s on s.evaluation_id = e.id and s.state = 'running'
         where e.id = any($1) group by e.id",
    )
    .bind(ids)
    .fetch_all(pool)
    .await?;
    Ok(rows.into_iter().map(|(id, version, progress, running)| (id, Stamp { version, progress, running })).collect())
}

/// Evaluations by state.
pub async fn counts(pool: &PgPool) -> Result<Vec<(String, i64)>, sqlx::Error> {
    sqlx::query_as("select state, count(*) from evaluations group by state").fetch_all(pool).await
}

/// Filters of a listing.
#[derive(Debug, Default, Clone)]
pub struct Filter {
    /// Of one owner; of everybody if `None`.
    pub owner: Option<String>,
    pub model: Option<Uuid>,
    pub state: Option<State>,
    pub protocol: Option<String>,
}

/// Newest first, after the cursor `(created_at, id)`.
pub async fn list(
    pool: &PgPool,
    filter: &Filter,
    after: Option<(DateTime<Utc>, Uuid)>,
    limit: i64,
) -> Result<Vec<Evaluation>, sqlx::Error> {
    let (time, id) = after.unzip();
    sqlx::query_as(select(
        "($1::timestamptz is null or (created_at, id) < ($1, $2)) and ($3::uuid is null or model_id = $3)
         and ($4::text is null or state = $4) and ($5::text is null or protocol_name = $5)
         and ($7::text is null or owner = $7)
         order by created_at desc, id desc limit $6",
    ))
    .bind(time)
    .bind(id)
    .bind(filter.model)
    .bind(filter.state.map(State::name))
    .bind(&filter.protocol)
    .bind(limit)
    .bind(&filter.owner)
    .fetch_all(pool)
    .await
}

/// Cuts the shards of every evaluation that waited for this model. Call in the transaction that makes it ready.
pub async fn plan_waiting(tx: &mut PgConnection, model: &Model) -> Result<(), sqlx::Error> {
    let waiting: Vec<Uuid> = sqlx::query_scalar(
        "select id from evaluations where model_id = $1 and not planned and state = 'queued' for update",
    )
    .bind(model.id)
    .fetch_all(&mut *tx)
    .await?;
    for id in waiting {
        plan_one(tx, id, model).await?;
    }
    Ok(())
}

#[derive(Serialize)]
struct ShardRow<'a> {
    ordinal: usize,
    conditions: &'a [usize],
    seed: i64,
    first_image: u32,
    images: u32,
}

/// A model that was not probed yet counts as infinitely fast.
pub fn workload<'a>(model: &Model, conditions: &'a [Condition], seeds: &'a [i64], images: Range<u32>) -> Workload<'a> {
    Workload {
        conditions,
        model: Subject { classes: model.spec.classes, stochastic: model.spec.stochastic },
        seeds,
        first: images.start,
        images: images.end - images.start,
        image_bytes: model.spec.input.iter().map(|&n| u64::from(n)).product(),
        seconds_per_forward: model.probe.as_ref().map_or(0.0, |p| p.seconds_per_forward),
    }
}

fn too_many_shards(shards: u64) -> String {
    let most = plan::MAX_SHARDS;
    format!(
        "this would take {shards} shards of about a minute, more than {most}: ask for fewer images, seeds or conditions"
    )
}

async fn plan_one(tx: &mut PgConnection, id: Uuid, model: &Model) -> Result<(), sqlx::Error> {
    let evaluation: Evaluation = sqlx::query_as(select("id = $1")).bind(id).fetch_one(&mut *tx).await?;
    let first = evaluation.first_image as u32;
    let images = first..first + evaluation.images as u32;
    let work = workload(model, &evaluation.conditions, &evaluation.seeds, images);
    let shards = plan::count(&work);
    if shards > plan::MAX_SHARDS {
        // Only now is it known how slow the model is.
        return fail(tx, "id = $1", id, &Outcome::new("too_many_shards", too_many_shards(shards), "worker")).await;
    }
    let plans = plan::shards(&work);
    let rows: Vec<ShardRow> = plans
        .iter()
        .enumerate()
        .map(|(ordinal, plan)| ShardRow {
            ordinal,
            conditions: &plan.conditions,
            seed: plan.seed,
            first_image: plan.first,
            images: plan.images,
        })
        .collect();
    sqlx::query(
        "insert into shards (evaluation_id, ordinal, conditions, seed, first_image, images)
         select $1, r.ordinal, r.conditions, r.seed, r.first_image, r.images
         from jsonb_to_recordset($2) as r(ordinal int, conditions int[], seed bigint, first_image int, images int)",
    )
    .bind(id)
    .bind(Json(&rows))
    .execute(&mut *tx)
    .await?;
    sqlx::query("update evaluations set planned = true, shards_total = $2, version = version + 1 where id = $1")
        .bind(id)
        .bind(rows.len() as i32)
        .execute(&mut *tx)
        .await?;
    Ok(())
}

/// Ends every evaluation of a model that turned out to be unusable. Call in the transaction that rejects it.
pub async fn fail_waiting(tx: &mut PgConnection, model: Uuid, outcome: &Outcome) -> Result<(), sqlx::Error> {
    fail(tx, "model_id = $1 and state = 'queued' and not planned", model, outcome).await
}

async fn fail(tx: &mut PgConnection, which: &'static str, id: Uuid, outcome: &Outcome) -> Result<(), sqlx::Error> {
    sqlx::query(sqlx::AssertSqlSafe(format!(
        "update evaluations set state = 'failed', outcome = $2, finished_at = now(), version = version + 1 where {which}"
    )))
    .bind(id)
    .bind(Json(outcome))
    .execute(tx)
    .await
    .map(drop)
}

#[derive(sqlx::FromRow)]
struct TallyRow {
    condition: i32,
    seed: i64,
    n: i64,
    correct: i64,
    broken: Json<std::collections::BTreeMap<String, Broken>>,
    forwards: i64,
    backwards: i64,
}

/// Committed counts, summed over shards: `(condition, seed, tally)`.
pub async fn tallies(connection: impl PgExecutor<'_>, id: Uuid) -> Result<Vec<(usize, i64, Tally)>, sqlx::Error> {
    let rows: Vec<TallyRow> = sqlx::query_as(
        "select condition, seed, n, correct, broken, forwards, backwards from tallies where evaluation_id = $1
         order by condition, seed",
    )
    .bind(id)
    .fetch_all(connection)
    .await?;
    let mut sums: Vec<(usize, i64, Tally)> = Vec::new();
    for row in rows {
        let tally = Tally {
            n: row.n as u64,
            correct: row.correct as u64,
            broken: row.broken.0,
            forwards: row.forwards as u64,
            backwards: row.backwards as u64,
        };
        match sums.last_mut() {
            Some((condition, seed, sum)) if (*condition as i32, *seed) == (row.condition, row.seed) => sum.add(&tally),
            _ => sums.push((row.condition as usize, row.seed, tally)),
        }
    }
    Ok(sums)
}
