//! Taking leases back from workers that fell silent.

use sqlx::PgPool;
use uuid::Uuid;

use super::MAX_ATTEMPTS;
use super::check::reap_checks;
use super::commit::{lock_evaluation, settle};
use super::fail::fail_shard;

/// What the reaper did to one expired lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reaped {
    Requeued,
    /// Failed for good: its workers kept dying.
    Failed,
    /// Its evaluation was stopped: closed.
    Closed,
}

/// Handles every expired lease, those of cancelled evaluations too. Any process may call this at any time, but
/// whoever has just found the database again should wait for as long as a lease lasts: the others could not be heard either.
pub async fn reap(pool: &PgPool) -> Result<Vec<Reaped>, sqlx::Error> {
    reap_checks(pool).await?;
    let expired: Vec<(Uuid, i64)> = sqlx::query_as(
        "select evaluation_id, id from shards where state = 'running' and lease_expires_at < now() order by evaluation_id limit 1000",
    )
    .fetch_all(pool)
    .await?;
    let mut reaped = Vec::new();
    for (evaluation, shard) in expired {
        reaped.extend(reap_one(pool, evaluation, shard).await?);
    }
    Ok(reaped)
}

async fn reap_one(pool: &PgPool, evaluation: Uuid, shard: i64) -> Result<Option<Reaped>, sqlx::Error> {
    let mut tx = pool.begin().await?;
    lock_evaluation(&mut tx, evaluation).await?;
    let expired: Option<(i32, bool)> = sqlx::query_as(
        "select s.attempts, e.state in ('queued', 'running') from shards s join evaluations e on e.id = s.evaluation_id
         where s.id = $1 and s.state = 'running' and s.lease_expires_at < now() for update of s",
    )
    .bind(shard)
    .fetch_optional(&mut *tx)
    .await?;
    let Some((attempts, wanted)) = expired else { return Ok(None) };
    let reaped = match (wanted, attempts < MAX_ATTEMPTS) {
        (false, _) => Reaped::Closed,
        (true, true) => Reaped::Requeued,
        (true, false) => Reaped::Failed,
    };
    if reaped == Reaped::Failed {
        let detail = "its worker stopped answering, every time";
        fail_shard(&mut tx, evaluation, shard, "worker_lost", detail, attempts).await?;
    } else {
        sqlx::query(
            "update shards set state = $2, lease_token = null, lease_expires_at = null, worker_id = null, progress = 0,
                 error = jsonb_build_object('code', 'worker_lost', 'detail', 'its worker stopped answering', 'attempt', attempts)
             where id = $1",
        )
        .bind(shard)
        .bind(if reaped == Reaped::Closed { "cancelled" } else { "queued" })
        .execute(&mut *tx)
        .await?;
    }
    settle(&mut tx, evaluation).await?;
    tx.commit().await?;
    Ok(Some(reaped))
}
