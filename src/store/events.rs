//! What happened to an evaluation, in order. Triggers write it (see the migrations); here it is read.

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::PgPool;
use uuid::Uuid;

/// Most events read at once.
pub const BATCH: i64 = 500;

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Event {
    /// Rises with every event of an evaluation.
    pub id: i64,
    /// `state`, `restart`, `progress`, `results`, `attempt_failed` or `log`.
    pub kind: String,
    pub data: Value,
    pub created_at: DateTime<Utc>,
}

/// The evaluation's next events after `last`, at most [`BATCH`]; `logs`: with what attempts wrote, which is for the owner alone.
pub async fn after(pool: &PgPool, evaluation: Uuid, last: i64, logs: bool) -> Result<Vec<Event>, sqlx::Error> {
    sqlx::query_as(
        "select id, kind, data, created_at from events where evaluation_id = $1 and id > $2
             and ($4 or kind <> 'log') order by id limit $3",
    )
    .bind(evaluation)
    .bind(last)
    .bind(BATCH)
    .bind(logs)
    .fetch_all(pool)
    .await
}
