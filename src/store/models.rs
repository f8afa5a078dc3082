//! Submitted models.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::types::Json;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::protocol::{Finding, ModelSpec};

/// Why a model cannot be evaluated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Rejection {
    /// Stable, snake_case; documented in docs/FINDINGS.md.
    pub code: String,
    /// What the probe saw, in a sentence.
    pub found: String,
}

/// What the probe measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ProbeReport {
    /// Wall seconds of one image's forward pass inside a full batch.
    pub seconds_per_forward: f64,
}

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Model {
    pub id: Uuid,
    pub owner: String,
    pub name: String,
    pub identity: String,
    pub sha256: String,
    pub bytes: i64,
    pub spec: Json<ModelSpec>,
    pub state: String,
    pub rejection: Option<Json<Rejection>>,
    pub findings: Json<Vec<Finding>>,
    pub probe: Option<Json<ProbeReport>>,
    pub created_at: DateTime<Utc>,
    pub checked_at: Option<DateTime<Utc>>,
    pub version: i64,
}

/// A model to be stored.
pub struct NewModel<'a> {
    pub owner: &'a str,
    pub name: &'a str,
    pub identity: &'a str,
    pub sha256: &'a str,
    pub bytes: i64,
    pub spec: &'a ModelSpec,
}

const COLUMNS: &str = "id, owner, name, identity, sha256, bytes, spec, state, rejection, findings, probe, created_at, checked_at, version";

fn select(rest: &str) -> sqlx::AssertSqlSafe<String> {
    sqlx::AssertSqlSafe(format!("select {COLUMNS} from models where deleted_at is null and {rest}"))
}

/// Stores a model, or finds the owner's existing one of the same identity. The flag says whether it is new.
pub async fn insert(pool: &PgPool, new: &NewModel<'_>) -> Result<(Model, bool), sqlx::Error> {
    let created: Option<Uuid> = sqlx::query_scalar(
        "insert into models (id, owner, name, identity, sha256, bytes, spec) values ($1, $2, $3, $4, $5, $6, $7)
         on conflict (owner, identity) where deleted_at is null do nothing returning id",
    )
    .bind(Uuid::now_v7())
    .bind(new.owner)
    .bind(new.name)
    .bind(new.identity)
    .bind(new.sha256)
    .bind(new.bytes)
    .bind(Json(new.spec))
    .fetch_optional(pool)
    .await?;
    let model = sqlx::query_as(select("owner = $1 and identity = $2"))
        .bind(new.owner)
        .bind(new.identity)
        .fetch_one(pool)
        .await?;
    Ok((model, created.is_some()))
}

pub async fn get(pool: &PgPool, id: Uuid) -> Result<Option<Model>, sqlx::Error> {
    sqlx::query_as(select("id = $1")).bind(id).fetch_optional(pool).await
}

/// The model of an evaluation, also when it was deleted since.
pub async fn get_even_deleted(pool: &PgPool, id: Uuid) -> Result<Option<Model>, sqlx::Error> {
    sqlx::query_as(sqlx::AssertSqlSafe(format!("select {COLUMNS} from models where id = $1")))
        .bind(id)
        .fetch_optional(pool)
        .await
}

/// Newest first, after the cursor `(created_at, id)`.
pub async fn list(pool: &PgPool, after: Option<(DateTime<Utc>, Uuid)>, limit: i64) -> Result<Vec<Model>, sqlx::Error> {
    let (time, id) = after.unzip();
    sqlx::query_as(select(
        "($1::timestamptz is null or (created_at, id) < ($1, $2)) order by created_at desc, id desc limit $3",
    ))
    .bind(time)
    .bind(id)
    .bind(limit)
    .fetch_all(pool)
    .await
}

/// What came of a deletion.
#[derive(Debug, PartialEq, Eq)]
pub enum Deletion {
    NotFound,
    /// Evaluations that still need the model.
    InUse(i64),
    /// Deleted; the artifact of this hash may go if the flag says that nobody else has it.
    Done {
        sha256: String,
        unreferenced: bool,
    },
}

/// Deletes a model that no unfinished evaluation needs. Its results stay.
pub async fn delete(pool: &PgPool, id: Uuid) -> Result<Deletion, sqlx::Error> {
    let mut tx = pool.begin().await?;
    let found: Option<String> =
        sqlx::query_scalar("select sha256 from models where id = $1 and deleted_at is null for update")
            .bind(id)
            .fetch_optional(&mut *tx)
            .await?;
    let Some(sha256) = found else { return Ok(Deletion::NotFound) };
    let open: i64 = sqlx::query_scalar(
        "select count(*) from evaluations where model_id = $1 and state in ('queued', 'running', 'cancelling')",
    )
    .bind(id)
    .fetch_one(&mut *tx)
    .await?;
    if open > 0 {
        return Ok(Deletion::InUse(open));
    }
    sqlx::query("update models set deleted_at = now(), version = version + 1 where id = $1")
        .bind(id)
        .execute(&mut *tx)
        .await?;
    let others: i64 = sqlx::query_scalar("select count(*) from models where sha256 = $1 and deleted_at is null")
        .bind(&sha256)
        .fetch_one(&mut *tx)
        .await?;
    tx.commit().await?;
    Ok(Deletion::Done { sha256, unreferenced: others == 0 })
}

/// Locks a model row so that its state cannot change before the transaction ends.
pub async fn lock(tx: &mut PgConnection, id: Uuid) -> Result<Option<Model>, sqlx::Error> {
    sqlx::query_as(sqlx::AssertSqlSafe(format!(
        "select {COLUMNS} from models where deleted_at is null and id = $1 for share"
    )))
    .bind(id)
    .fetch_optional(tx)
    .await
}
