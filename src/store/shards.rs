//! Reading shards; the queue is what changes them.

use sqlx::PgPool;
use uuid::Uuid;

use super::evaluations::Evaluation;
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

/// Finished evaluations of a protocol, newest per model and dataset slice.
pub async fn newest_finished(pool: &PgPool, protocol: &str) -> Result<Vec<(Evaluation, String)>, sqlx::Error> {
    #[derive(sqlx::FromRow)]
    struct Row {
        #[sqlx(flatten)]
        evaluation: Evaluation,
        model_name: String,
    }
    let rows: Vec<Row> = sqlx::query_as(
        "select distinct on (e.model_id, e.dataset_hash, e.first_image, e.images, e.protocol) e.*, m.name as model_name
         from evaluations e join models m on m.id = e.model_id
         where e.protocol_name = $1 and e.state = 'succeeded'
         order by e.model_id, e.dataset_hash, e.first_image, e.images, e.protocol, e.finished_at desc",
    )
    .bind(protocol)
    .fetch_all(pool)
    .await?;
    Ok(rows.into_iter().map(|row| (row.evaluation, row.model_name)).collect())
}

/// Evaluations that have not ended, by state; and shards by state. For operators.
pub async fn counts(pool: &PgPool) -> Result<Vec<(String, i64)>, sqlx::Error> {
    sqlx::query_as("select state, count(*) from shards group by state").fetch_all(pool).await
}
