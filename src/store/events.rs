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
    /// `state`, `restart`, `progress`, `results` or `attempt_failed`.
    pub kind: String,
    pub data: Value,
    pub created_at: DateTime<Utc>,
}

/// The evaluation's next events after `last`, at most [`BATCH`].
pub async fn after(pool: &PgPool, evaluation: Uuid, last: i64) -> Result<Vec<Event>, sqlx::Error> {
    sqlx::query_as(
        "select id, kind, data, created_at from events where evaluation_id = $1 and id > $2 order by id limit $3",
    )
    .bind(evaluation)
    .bind(last)
    .bind(BATCH)
    .fetch_all(pool)
    .await
}
