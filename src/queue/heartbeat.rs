//! Keeping a lease alive, and hearing what became of the evaluation.

use sqlx::PgPool;

use super::{Lease, LeaseError};

/// What the heartbeat answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Continue,
    /// The evaluation was cancelled or has failed: kill the work and release the lease.
    Stop,
}

impl Lease {
    /// Whether the shard is still this lease's.
    pub async fn is_held(&self, pool: &PgPool) -> Result<bool, sqlx::Error> {
        sqlx::query_scalar(
            "select exists (select from shards where id = $1 and lease_token = $2 and state = 'running')",
        )
        .bind(self.shard)
        .bind(self.token)
        .fetch_one(pool)
        .await
    }

    /// Extends the lease and records how many verdicts the attempt has reached. It does not wait for the disk: after a crash of the
    /// database nobody's lease is taken back for as long as a lease lasts.
    pub async fn heartbeat(&self, pool: &PgPool, progress: u32) -> Result<Order, LeaseError> {
        let wanted: Option<bool> = sqlx::query_scalar(
            "update shards s set lease_expires_at = now() + make_interval(secs => $3), progress = $4
             from evaluations e
             where s.id = $1 and s.lease_token = $2 and s.state = 'running' and e.id = s.evaluation_id
             returning e.state in ('queued', 'running'), set_config('synchronous_commit', 'off', true)",
        )
        .bind(self.shard)
        .bind(self.token)
        .bind(self.duration.as_secs_f64())
        .bind(progress as i32)
        .fetch_optional(pool)
        .await?;
        match wanted {
            None => Err(LeaseError::Lost),
            Some(true) => Ok(Order::Continue),
            Some(false) => Ok(Order::Stop),
        }
    }
}
