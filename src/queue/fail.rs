//! Giving up an attempt.

use std::fmt;

use serde_json::json;
use sqlx::types::Json;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use super::commit::{lock_evaluation, settle};
use super::{Lease, LeaseError, MAX_ATTEMPTS};
use crate::store::Outcome;

/// The machine, or what it depends on, does not work. It says nothing about the work in hand.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {detail}")]
pub struct Outage {
    pub code: String,
    /// For the operator: it may name folders, addresses and accounts.
    pub detail: String,
}

/// What owners are told of an outage.
pub const NOT_THE_MODELS_FAULT: &str = "the machine or the store failed, not the model; the operator's log says how";

/// Why an attempt failed, and whether another may do better.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// Worth trying again, as often as it takes.
    Outage(Outage),
    /// A crash, a hang, a lost connection: worth trying again.
    Transient { code: String, detail: String },
    /// The same inputs would fail again.
    Permanent { code: String, detail: String },
    /// The device's or host's memory did not hold the batch: the evaluation restarts under a smaller profile.
    OutOfMemory { batch: u32, detail: String },
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Outage(outage) => write!(f, "{}: {NOT_THE_MODELS_FAULT}", outage.code),
            Self::Transient { code, detail } | Self::Permanent { code, detail } => write!(f, "{code}: {detail}"),
            Self::OutOfMemory { batch, detail } => write!(f, "out_of_memory at batch {batch}: {detail}"),
        }
    }
}

impl Lease {
    /// Ends the attempt without results. Transient failures are retried with growing delay, up to [`MAX_ATTEMPTS`]; outages,
    /// which are not counted, until they are over.
    pub async fn fail(&self, pool: &PgPool, failure: &Failure) -> Result<(), LeaseError> {
        let mut tx = pool.begin().await?;
        lock_evaluation(&mut tx, self.evaluation).await?;
        let held: Option<i32> = sqlx::query_scalar(
            "select attempts from shards where id = $1 and lease_token = $2 and state = 'running' for update",
        )
        .bind(self.shard)
        .bind(self.token)
        .fetch_optional(&mut *tx)
        .await?;
        let attempts = held.ok_or(LeaseError::Lost)?;
        match failure {
            Failure::Outage(outage) => {
                sqlx::query(
                    "update shards set state = 'queued', lease_token = null, lease_expires_at = null, worker_id = null,
                         progress = 0, attempts = attempts - 1,
                         error = $2 || jsonb_build_object('outages', coalesce((error ->> 'outages')::int, 0) + 1),
                         not_before = now() + make_interval(secs => 2 ^ least(6, coalesce((error ->> 'outages')::int, 0)))
                     where id = $1",
                )
                .bind(self.shard)
                .bind(Json(json!({"code": outage.code, "detail": NOT_THE_MODELS_FAULT, "attempt": attempts})))
                .execute(&mut *tx)
                .await?;
                close_if_stopped(&mut tx, self.evaluation).await?;
            }
            Failure::Transient { code, detail } if attempts < MAX_ATTEMPTS => {
                sqlx::query(
                    "update shards set state = 'queued', lease_token = null, lease_expires_at = null, worker_id = null,
                         progress = 0, error = $2, not_before = now() + make_interval(secs => $3) where id = $1",
                )
                .bind(self.shard)
                .bind(Json(json!({"code": code, "detail": detail, "attempt": attempts})))
                .bind(f64::from(1 << (attempts - 1)))
                .execute(&mut *tx)
                .await?;
                // A cancelled evaluation keeps no shard waiting.
                close_if_stopped(&mut tx, self.evaluation).await?;
            }
            Failure::Transient { code, detail } | Failure::Permanent { code, detail } => {
                fail_shard(&mut tx, self.evaluation, self.shard, code, detail, attempts).await?;
            }
            Failure::OutOfMemory { batch, detail } if *batch > 1 => {
                restart_smaller(&mut tx, self.evaluation, self.shard, batch / 2, detail).await?;
            }
            Failure::OutOfMemory { detail, .. } => {
                fail_shard(&mut tx, self.evaluation, self.shard, "out_of_memory", detail, attempts).await?;
            }
        }
        settle(&mut tx, self.evaluation).await?;
        Ok(tx.commit().await?)
    }
}

/// Marks a shard failed and with it the evaluation; its other shards are closed.
pub(super) async fn fail_shard(
    tx: &mut PgConnection,
    evaluation: Uuid,
    shard: i64,
    code: &str,
    detail: &str,
    attempts: i32,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "update shards set state = 'failed', lease_token = null, lease_expires_at = null, progress = 0, error = $2,
             finished_at = now() where id = $1",
    )
    .bind(shard)
    .bind(Json(json!({"code": code, "detail": detail, "attempt": attempts})))
    .execute(&mut *tx)
    .await?;
    let ordinal: i32 =
        sqlx::query_scalar("select ordinal from shards where id = $1").bind(shard).fetch_one(&mut *tx).await?;
    let detail = format!("shard {ordinal} failed at attempt {attempts}: {detail}");
    sqlx::query(
        "update evaluations set state = 'failed', outcome = $2, finished_at = now(), version = version + 1
         where id = $1 and state in ('queued', 'running')",
    )
    .bind(evaluation)
    .bind(Json(Outcome::new(code, detail, "worker")))
    .execute(&mut *tx)
    .await?;
    close_if_stopped(tx, evaluation).await
}

async fn close_if_stopped(tx: &mut PgConnection, evaluation: Uuid) -> Result<(), sqlx::Error> {
    sqlx::query(
        "update shards s set state = 'cancelled' from evaluations e
         where s.evaluation_id = $1 and e.id = $1 and s.state = 'queued' and e.state not in ('queued', 'running')",
    )
    .bind(evaluation)
    .execute(tx)
    .await
    .map(drop)
}

/// Starts an evaluation over with at most `batch` images per kernel launch: verdicts of two profiles must not mix.
/// Of an evaluation that was stopped meanwhile, only this shard is closed.
async fn restart_smaller(
    tx: &mut PgConnection,
    evaluation: Uuid,
    shard: i64,
    batch: u32,
    detail: &str,
) -> Result<(), sqlx::Error> {
    let restarted = sqlx::query(
        "update evaluations set generation = generation + 1, profile = null, batch_limit = $2, shards_done = 0,
             version = version + 1 where id = $1 and state in ('queued', 'running')",
    )
    .bind(evaluation)
    .bind(batch as i32)
    .execute(&mut *tx)
    .await?;
    if restarted.rows_affected() == 0 {
        return sqlx::query(
            "update shards set state = 'cancelled', lease_token = null, lease_expires_at = null, progress = 0 where id = $1",
        )
        .bind(shard)
        .execute(tx)
        .await
        .map(drop);
    }
    sqlx::query("delete from tallies where evaluation_id = $1").bind(evaluation).execute(&mut *tx).await?;
    sqlx::query(
        "update shards set state = 'queued', lease_token = null, lease_expires_at = null, worker_id = null, progress = 0,
             attempts = 0, verdicts_key = null, witnesses_key = null, findings = '[]', signs = null, error = $2, finished_at = null
         where evaluation_id = $1 and state in ('queued', 'running', 'done')",
    )
    .bind(evaluation)
    .bind(Json(json!({"code": "out_of_memory", "detail": format!("{detail}; restarted with batch {batch}")})))
    .execute(tx)
    .await
    .map(drop)
}
