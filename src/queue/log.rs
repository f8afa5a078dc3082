//! Keeping what an attempt left to be read.

use serde_json::json;
use sqlx::PgPool;
use sqlx::types::Json;

use super::commit::lock_evaluation;
use super::{Lease, LeaseError};

/// Attempts at one shard whose logs are kept, the newest. Outages are not counted as attempts, and may be many.
const MOST: i64 = 20;

/// What an attempt is about to end as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// With results, which are committed next.
    Results,
    Failed,
    /// Its shard was not wanted any more, or its worker is shut down.
    Stopped,
}

impl Ending {
    pub fn name(self) -> &'static str {
        match self {
            Self::Results => "results",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
        }
    }
}

impl Lease {
    /// Records the attempt with its log, which lies in the artifact store under `key`, and tells those who watch its last
    /// `lines`. Returns the keys of logs that are too many now, for deletion. [`LeaseError::Lost`] means that nothing was recorded.
    pub async fn keep_log(
        &self,
        pool: &PgPool,
        ending: Ending,
        key: &str,
        bytes: usize,
        lines: &[String],
    ) -> Result<Vec<String>, LeaseError> {
        let mut tx = pool.begin().await?;
        lock_evaluation(&mut tx, self.evaluation).await?;
        let ordinal: Option<i32> = sqlx::query_scalar(
            "with held as (
                 select id, ordinal, worker_id, started_at from shards
                 where id = $1 and lease_token = $2 and state = 'running'
             ), kept as (
                 insert into shard_attempts
                     (shard_id, token, evaluation_id, attempt, worker_id, outcome, started_at, log_key, log_bytes)
                 select id, $2, $3, $4, worker_id, $5, started_at, $6, $7 from held
             )
             select ordinal from held",
        )
        .bind(self.shard)
        .bind(self.token)
        .bind(self.evaluation)
        .bind(self.attempt)
        .bind(ending.name())
        .bind(key)
        .bind(bytes as i32)
        .fetch_optional(&mut *tx)
        .await?;
        let ordinal = ordinal.ok_or(LeaseError::Lost)?;
        sqlx::query("insert into events (evaluation_id, kind, data) values ($1, 'log', $2)")
            .bind(self.evaluation)
            .bind(Json(json!({"shard": ordinal, "attempt": self.attempt, "ending": ending.name(), "lines": lines})))
            .execute(&mut *tx)
            .await?;
        let dropped: Vec<Option<String>> = sqlx::query_scalar(
            "delete from shard_attempts where shard_id = $1 and token in (
                 select token from shard_attempts where shard_id = $1 order by finished_at desc, token offset $2)
             returning log_key",
        )
        .bind(self.shard)
        .bind(MOST)
        .fetch_all(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(dropped.into_iter().flatten().collect())
    }
}
