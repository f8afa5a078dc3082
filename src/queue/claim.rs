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
/// All open evaluations are put in order, which an index suffices for; whether one has a shard for this worker is asked one by
/// one, until the first that has.
/// Shards another transaction holds are skipped, so workers never wait for each other. Nor do they wait for the disk: a claim that a
/// crash of the database takes back is a lease lost.
const CLAIM: &str = "
with busy as (
    select e.owner, sum(s.running)::bigint as running
    from (select evaluation_id, count(*) as running from shards where state = 'running' group by evaluation_id) s
    join evaluations e on e.id = s.evaluation_id group by e.owner
), turns as materialized (
    select e.id
    from evaluations e left join busy b on b.owner = e.owner
    where e.state in ('queued', 'running')
    order by e.priority desc, coalesce(b.running, 0), e.model_id is not distinct from $6 desc, e.created_at
), next as (
    select c.id
    from turns t cross join lateral (
        select q.id
        from evaluations e join models m on m.id = e.model_id join shards q on q.evaluation_id = e.id
        where e.id = t.id and m.state = 'ready' and (e.profile is null or e.profile @> $1) and meets($5, e.needs)
          and q.state = 'queued' and q.not_before <= now()
        order by q.ordinal limit 1 for update of q skip locked
    ) c
    limit 1
)
update shards set state = 'running', attempts = attempts + 1, worker_id = $2, lease_token = $3, progress = 0,
    lease_expires_at = now() + make_interval(secs => $4), started_at = now()
from next where shards.id = next.id
returning shards.id, shards.evaluation_id, shards.attempts, shards.conditions, shards.seed, shards.first_image, shards.images,
    (select e.state = 'queued' from evaluations e where e.id = shards.evaluation_id) as is_first,
    set_config('synchronous_commit', 'off', true)";

#[derive(sqlx::FromRow)]
struct Row {
    id: i64,
    evaluation_id: Uuid,
    attempts: i32,
    conditions: Vec<i32>,
    seed: i64,
    first_image: i32,
    images: i32,
    /// Whether nothing of the evaluation has run yet.
    is_first: bool,
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
    if row.is_first {
        // A statement of its own: the claim must not hold a shard while it waits for the evaluation.
        sqlx::query(
            "update evaluations set state = 'running', started_at = coalesce(started_at, now()), version = version + 1
             where id = $1 and state = 'queued'",
        )
        .bind(row.evaluation_id)
        .execute(pool)
        .await?;
    }
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
