//! Keeping what an attempt left to be read.

use serde_json::json;
use sqlx::PgPool;
use sqlx::types::Json;

use super::{Lease, LeaseError};

/// Attempts at one shard whose logs are kept, the newest. Outages are not counted as attempts, and may be many.
const MOST: i64 = 20;

/// Evaluation first, then the shard, as everywhere. It does not wait for the disk: what ends the attempt does, and is written after it.
const KEEP: &str = "
with evaluation as (
    select id from evaluations where id = $1 for no key update
), held as (
    select s.id, s.ordinal, s.worker_id, s.started_at from evaluation e join shards s on s.evaluation_id = e.id
    where s.id = $2 and s.lease_token = $3 and s.state = 'running'
), dropped as (
    delete from shard_attempts where (shard_id, token) in (
        select a.shard_id, a.token from held h join shard_attempts a on a.shard_id = h.id
        order by a.finished_at desc, a.token offset $9)
    returning log_key
), kept as (
    insert into shard_attempts (shard_id, token, evaluation_id, attempt, worker_id, outcome, started_at, log_key, log_bytes)
    select id, $3, $1, $4, worker_id, $5, started_at, $6, $7 from held
), told as (
    insert into events (evaluation_id, kind, data) select $1, 'log', jsonb_build_object('shard', ordinal) || $8 from held
)
select array(select log_key from dropped where log_key is not null), set_config('synchronous_commit', 'off', true) from held";

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
        let end: Option<(Vec<String>,)> = sqlx::query_as(KEEP)
            .bind(self.evaluation)
            .bind(self.shard)
            .bind(self.token)
            .bind(self.attempt)
            .bind(ending.name())
            .bind(key)
            .bind(bytes as i32)
            .bind(Json(json!({"attempt": self.attempt, "ending": ending.name(), "lines": lines})))
            .bind(MOST - 1)
            .fetch_optional(pool)
            .await?;
        end.map(|(dropped,)| dropped).ok_or(LeaseError::Lost)
    }
}
