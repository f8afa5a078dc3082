//! Taking the next shard.

use std::time::Duration;

use sqlx::PgPool;
use sqlx::types::Json;
use uuid::Uuid;

use super::Lease;
use crate::protocol::{Capabilities, Platform};
use crate::store::evaluations::{self, Evaluation};
use crate::store::models::{self, Model};

/// A leased shard with all that is needed to run it.
#[derive(Debug)]
pub struct Claimed {
    pub lease: Lease,
    pub evaluation: Evaluation,
    pub model: Model,
    /// Indices into the evaluation's conditions.
    pub conditions: Vec<i32>,
    pub seed: i64,
    pub first_image: u32,
    pub images: u32,
}

/// Who wants a shard.
#[derive(Debug, Clone, Copy)]
pub struct Claimant<'a> {
    pub worker: Uuid,
    pub platform: &'a Platform,
    pub capabilities: &'a Capabilities,
    /// The model whose shards it would rather have, see [`Affinity`](super::Affinity).
    pub prefers: Option<Uuid>,
}

/// Highest priority first; among equals the owner with the fewest running shards; among those an evaluation of the model that
/// the worker prefers; then the oldest evaluation.
/// An evaluation goes only to workers that meet its needs, and once its numeric profile is fixed, only to those of the same
/// platform.
/// Shards another transaction holds are skipped, so workers never wait for each other.
const CLAIM: &str = "
with busy as (
    select e.owner, count(*) as running
    from shards s join evaluations e on e.id = s.evaluation_id where s.state = 'running' group by e.owner
), ranked as (
    select e.id, e.priority, e.created_at, coalesce(b.running, 0) as running, e.model_id is not distinct from $6 as preferred
    from evaluations e
    join models m on m.id = e.model_id
    left join busy b on b.owner = e.owner
    where e.state in ('queued', 'running') and m.state = 'ready'
      and (e.profile is null or e.profile @> $1) and meets($5, e.needs)
      and exists (select 1 from shards q where q.evaluation_id = e.id and q.state = 'queued' and q.not_before <= now())
    order by e.priority desc, running, preferred desc, e.created_at limit 32
), next as (
    select s.id
    from ranked r
    cross join lateral (
        select q.id, q.ordinal from shards q
        where q.evaluation_id = r.id and q.state = 'queued' and q.not_before <= now() order by q.ordinal limit 64
    ) c
    join shards s on s.id = c.id and s.state = 'queued'
    order by r.priority desc, r.running, r.preferred desc, r.created_at, c.ordinal
    for update of s skip locked limit 1
)
update shards set state = 'running', attempts = attempts + 1, worker_id = $2, lease_token = $3, progress = 0,
    lease_expires_at = now() + make_interval(secs => $4), started_at = now()
from next where shards.id = next.id
returning shards.id, shards.evaluation_id, shards.attempts, shards.conditions, shards.seed, shards.first_image, shards.images";

#[derive(sqlx::FromRow)]
struct Row {
    id: i64,
    evaluation_id: Uuid,
    attempts: i32,
    conditions: Vec<i32>,
    seed: i64,
    first_image: i32,
    images: i32,
}

/// Leases the next shard for a worker, or `None` when nothing is runnable on it.
pub async fn claim(pool: &PgPool, claimant: &Claimant<'_>, lease: Duration) -> Result<Option<Claimed>, sqlx::Error> {
    let token = Uuid::new_v4();
    let row: Option<Row> = sqlx::query_as(CLAIM)
        .bind(Json(claimant.platform))
        .bind(claimant.worker)
        .bind(token)
        .bind(lease.as_secs_f64())
        .bind(Json(claimant.capabilities))
        .bind(claimant.prefers)
        .fetch_optional(pool)
        .await?;
    let Some(row) = row else { return Ok(None) };
    // A statement of its own: the claim must not hold a shard while it waits for the evaluation.
    sqlx::query(
        "update evaluations set state = 'running', started_at = coalesce(started_at, now()), version = version + 1
         where id = $1 and state = 'queued'",
    )
    .bind(row.evaluation_id)
    .execute(pool)
    .await?;
    let evaluation = evaluations::get(pool, row.evaluation_id).await?.ok_or(sqlx::Error::RowNotFound)?;
    let model = models::get_even_deleted(pool, evaluation.model_id).await?.ok_or(sqlx::Error::RowNotFound)?;
    Ok(Some(Claimed {
        lease: Lease { evaluation: evaluation.id, shard: row.id, attempt: row.attempts, token, duration: lease },
        evaluation,
        model,
        conditions: row.conditions,
        seed: row.seed,
        first_image: row.first_image as u32,
        images: row.images as u32,
    }))
}
