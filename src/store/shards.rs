//! Reading shards; the queue is what changes them.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use sqlx::types::Json;
use uuid::Uuid;

/// A committed shard and where its evidence lies.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct DoneShard {
    pub id: i64,
    pub ordinal: i32,
    pub conditions: Vec<i32>,
    pub seed: i64,
    pub first_image: i32,
    pub images: i32,
    pub verdicts_key: String,
    pub witnesses_key: Option<String>,
}

pub async fn done(pool: &PgPool, evaluation: Uuid) -> Result<Vec<DoneShard>, sqlx::Error> {
    sqlx::query_as(
        "select id, ordinal, conditions, seed, first_image, images, verdicts_key, witnesses_key from shards
         where evaluation_id = $1 and state = 'done' order by ordinal",
    )
    .bind(evaluation)
    .fetch_all(pool)
    .await
}

/// How far the shards of one group of conditions are.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct GroupProgress {
    pub conditions: Vec<i32>,
    /// Images × seeds of all shards, and of committed ones.
    pub images: i64,
    pub images_done: i64,
    /// Verdicts that running attempts reported.
    pub running_verdicts: i64,
    pub running_shards: i64,
    /// Seconds that the committed shards took.
    pub seconds_done: f64,
}

impl GroupProgress {
    /// Images that running attempts are through with, as far as their verdict count tells.
    pub fn images_running(&self) -> i64 {
        self.running_verdicts / (self.conditions.len() as i64).max(1)
    }
}

/// Progress by group of conditions; empty before the shards are cut.
pub async fn progress(pool: &PgPool, evaluation: Uuid) -> Result<Vec<GroupProgress>, sqlx::Error> {
    sqlx::query_as(
        "select conditions, sum(images)::bigint as images,
             coalesce(sum(images) filter (where state = 'done'), 0)::bigint as images_done,
             coalesce(sum(progress) filter (where state = 'running'), 0)::bigint as running_verdicts,
             count(*) filter (where state = 'running') as running_shards,
             coalesce(sum(seconds) filter (where state = 'done'), 0)::float8 as seconds_done
         from shards where evaluation_id = $1 group by conditions order by conditions",
    )
    .bind(evaluation)
    .fetch_all(pool)
    .await
}

/// Processor seconds of the committed shards' evaluators, and the part that went to corrupting images.
pub async fn cpu_seconds(pool: &PgPool, evaluation: Uuid) -> Result<(f64, f64), sqlx::Error> {
    sqlx::query_as(
        "select coalesce(sum(cpu_seconds), 0)::float8, coalesce(sum(corruption_seconds), 0)::float8 from shards
         where evaluation_id = $1 and state = 'done'",
    )
    .bind(evaluation)
    .fetch_one(pool)
    .await
}

/// A shard as its owner sees it.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Shard {
    pub id: i64,
    pub ordinal: i32,
    pub state: String,
    pub conditions: Vec<i32>,
    pub seed: i64,
    pub first_image: i32,
    pub images: i32,
    pub attempts: i32,
    pub progress: i32,
    pub error: Option<Json<ShardError>>,
    pub not_before: DateTime<Utc>,
    pub worker_id: Option<Uuid>,
    pub started_at: Option<DateTime<Utc>>,
    pub finished_at: Option<DateTime<Utc>>,
    pub seconds: Option<f64>,
}

/// Why the last attempt at a shard failed.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ShardError {
    /// Stable, snake_case.
    pub code: String,
    pub detail: String,
}

/// An evaluation's shards in order, from number `from` on.
pub async fn list(pool: &PgPool, evaluation: Uuid, from: i32, limit: i64) -> Result<Vec<Shard>, sqlx::Error> {
    sqlx::query_as(
        "select id, ordinal, state, conditions, seed, first_image, images, attempts, progress, error, not_before, worker_id,
             started_at, finished_at, seconds
         from shards where evaluation_id = $1 and ordinal >= $2 order by ordinal limit $3",
    )
    .bind(evaluation)
    .bind(from)
    .bind(limit)
    .fetch_all(pool)
    .await
}

/// An attempt at a shard that has ended.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Attempt {
    pub shard_id: i64,
    pub attempt: i32,
    pub worker_id: Option<Uuid>,
    pub outcome: String,
    pub started_at: Option<DateTime<Utc>>,
    pub finished_at: DateTime<Utc>,
    pub log_key: Option<String>,
    pub log_bytes: i32,
}

/// The attempts at these shards, oldest first.
pub async fn attempts(pool: &PgPool, shards: &[i64]) -> Result<Vec<Attempt>, sqlx::Error> {
    sqlx::query_as(
        "select shard_id, attempt, worker_id, outcome, started_at, finished_at, log_key, log_bytes from shard_attempts
         where shard_id = any($1) order by finished_at",
    )
    .bind(shards)
    .fetch_all(pool)
    .await
}

/// Where the log of an attempt lies: of the newest with this number, or of the newest at all.
pub async fn log_key(
    pool: &PgPool,
    evaluation: Uuid,
    ordinal: i32,
    attempt: Option<i32>,
) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar(
        "select a.log_key from shard_attempts a join shards s on s.id = a.shard_id
         where s.evaluation_id = $1 and s.ordinal = $2 and ($3::integer is null or a.attempt = $3) and a.log_key is not null
         order by a.finished_at desc limit 1",
    )
    .bind(evaluation)
    .bind(ordinal)
    .bind(attempt)
    .fetch_optional(pool)
    .await
}

/// A committed shard and the time it took.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct TimedShard {
    pub conditions: Vec<i32>,
    pub images: i32,
    /// Of the attempt that committed: images read, model loaded if it was not, evidence written.
    pub seconds: f64,
    pub worker_id: Option<Uuid>,
    pub finished_at: DateTime<Utc>,
}

pub async fn timed(pool: &PgPool, evaluation: Uuid) -> Result<Vec<TimedShard>, sqlx::Error> {
    sqlx::query_as(
        "select conditions, images, seconds, worker_id, finished_at from shards
         where evaluation_id = $1 and state = 'done' and seconds is not null and finished_at is not null order by ordinal",
    )
    .bind(evaluation)
    .fetch_all(pool)
    .await
}

/// Shards that are still to be done, in order: conditions and images.
pub async fn left(pool: &PgPool, evaluation: Uuid) -> Result<Vec<(Vec<i32>, i32)>, sqlx::Error> {
    sqlx::query_as(
        "select conditions, images from shards where evaluation_id = $1 and state in ('queued', 'running') order by ordinal",
    )
    .bind(evaluation)
    .fetch_all(pool)
    .await
}
