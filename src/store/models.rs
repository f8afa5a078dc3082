//! Submitted models.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use sqlx::types::Json;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use super::artifacts::Uploaded;
use super::{Artifacts, Quotas, StoreError, deletion, quota, uploads};
use crate::protocol::{Calibration, Finding, ModelSpec};

/// Why a model cannot be evaluated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Rejection {
    /// Stable, snake_case; documented in docs/FINDINGS.md.
    pub code: String,
    /// What the probe saw, in a sentence.
    pub found: String,
}

/// SHA-256 over the artifact's own hash and the canonical spec: what makes two submissions the same model.
pub fn identity(sha256: &str, spec: &ModelSpec) -> String {
    let spec = serde_json::to_string(spec).expect("a spec is plain data");
    hex::encode(Sha256::digest(format!("{sha256}\n{spec}")))
}

/// What the probe measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ProbeReport {
    /// Wall seconds of one image's forward pass inside a full batch.
    pub seconds_per_forward: f64,
    /// The profile that suits the model best where it was checked, and how fast its passes are there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Calibration>,
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
    pub spec: &'a ModelSpec,
    pub quotas: &'a Quotas,
}

const COLUMNS: &str = "id, owner, name, identity, sha256, bytes, spec, state, rejection, findings, probe, created_at, checked_at, version";

fn select(rest: &str) -> sqlx::AssertSqlSafe<String> {
    sqlx::AssertSqlSafe(format!("select {COLUMNS} from models where deleted_at is null and {rest}"))
}

/// Every state a model can be in.
pub const STATES: [&str; 3] = ["checking", "ready", "rejected"];

/// Models by state.
pub async fn counts(pool: &PgPool) -> Result<Vec<(String, i64)>, sqlx::Error> {
    sqlx::query_as("select state, count(*) from models where deleted_at is null group by state").fetch_all(pool).await
}

/// Stores an uploaded model, or finds the owner's existing one of the same identity. The flag says whether it is new.
/// The upload is gone afterwards.
pub async fn insert(
    pool: &PgPool,
    artifacts: &Artifacts,
    upload: &Uploaded,
    new: &NewModel<'_>,
) -> Result<(Model, bool), StoreError> {
    insert_joined(pool, artifacts, upload, None, new).await
}

/// The same for a file that was joined from the pieces of an upload, which is closed when its model is there.
pub async fn insert_joined(
    pool: &PgPool,
    artifacts: &Artifacts,
    upload: &Uploaded,
    pieces: Option<Uuid>,
    new: &NewModel<'_>,
) -> Result<(Model, bool), StoreError> {
    let stored = insert_with_bytes(pool, artifacts, upload, pieces, new).await;
    artifacts.discard(upload).await.ok();
    if stored.is_err() {
        forget_artifact(pool, artifacts, &upload.sha256).await.ok();
    }
    stored
}

async fn insert_with_bytes(
    pool: &PgPool,
    artifacts: &Artifacts,
    upload: &Uploaded,
    pieces: Option<Uuid>,
    new: &NewModel<'_>,
) -> Result<(Model, bool), StoreError> {
    loop {
        // Before the lock and its connection are taken: a large object's copy may take minutes.
        if !artifacts.has_model(&upload.sha256).await? {
            artifacts.keep_model(upload).await?;
        }
        if let Some(stored) = insert_row(pool, artifacts, upload, pieces, new).await? {
            return Ok(stored);
        }
    }
}

/// `None` if the last model of the same bytes was deleted, and the bytes with it, before this one referred to them.
async fn insert_row(
    pool: &PgPool,
    artifacts: &Artifacts,
    upload: &Uploaded,
    pieces: Option<Uuid>,
    new: &NewModel<'_>,
) -> Result<Option<(Model, bool)>, StoreError> {
    let mut tx = pool.begin().await?;
    let closed = match pieces {
        Some(id) => uploads::close(&mut tx, id).await?,
        None => None,
    };
    lock_artifact(&mut tx, &upload.sha256).await?;
    let created: Option<Uuid> = sqlx::query_scalar(
        "insert into models (id, owner, name, identity, sha256, bytes, spec) values ($1, $2, $3, $4, $5, $6, $7)
         on conflict (owner, identity) where deleted_at is null do nothing returning id",
    )
    .bind(Uuid::now_v7())
    .bind(new.owner)
    .bind(new.name)
    .bind(new.identity)
    .bind(&upload.sha256)
    .bind(upload.bytes as i64)
    .bind(Json(new.spec))
    .fetch_optional(&mut *tx)
    .await?;
    let model = sqlx::query_as(select("owner = $1 and identity = $2"))
        .bind(new.owner)
        .bind(new.identity)
        .fetch_one(&mut *tx)
        .await?;
    if created.is_some() {
        quota::storage(&mut tx, new.owner, new.quotas).await??;
        if !artifacts.has_model(&upload.sha256).await? {
            return Ok(None);
        }
    } else {
        sqlx::query("update models set used_at = now() where owner = $1 and identity = $2 and deleted_at is null")
            .bind(new.owner)
            .bind(new.identity)
            .execute(&mut *tx)
            .await?;
    }
    tx.commit().await?;
    uploads::discard(artifacts, &closed.unwrap_or_default()).await;
    Ok(Some((model, created.is_some())))
}

/// Serialises everything that adds or takes away references to an artifact. Held until the transaction ends.
async fn lock_artifact(tx: &mut PgConnection, sha256: &str) -> Result<(), sqlx::Error> {
    sqlx::query("select pg_advisory_xact_lock(hashtextextended($1, 0))").bind(sha256).execute(tx).await.map(drop)
}

/// Deletes a model's bytes unless a model refers to them; whether it did.
pub async fn forget_artifact(pool: &PgPool, artifacts: &Artifacts, sha256: &str) -> Result<bool, StoreError> {
    let mut tx = pool.begin().await?;
    lock_artifact(&mut tx, sha256).await?;
    let references: i64 = sqlx::query_scalar("select count(*) from models where sha256 = $1 and deleted_at is null")
        .bind(sha256)
        .fetch_one(&mut *tx)
        .await?;
    if references == 0 {
        artifacts.delete_model(sha256).await?;
    }
    tx.commit().await?;
    Ok(references == 0)
}

/// `owner`: whose model it must be; anybody's if `None`.
pub async fn get(pool: &PgPool, owner: Option<&str>, id: Uuid) -> Result<Option<Model>, sqlx::Error> {
    sqlx::query_as(select("id = $1 and ($2::text is null or owner = $2)"))
        .bind(id)
        .bind(owner)
        .fetch_optional(pool)
        .await
}

/// The model of an evaluation, also when it was deleted since.
pub async fn get_even_deleted(pool: &PgPool, id: Uuid) -> Result<Option<Model>, sqlx::Error> {
    sqlx::query_as(sqlx::AssertSqlSafe(format!("select {COLUMNS} from models where id = $1")))
        .bind(id)
        .fetch_optional(pool)
        .await
}

/// Newest first, after the cursor `(created_at, id)`; of one owner, or of everybody.
pub async fn list(
    pool: &PgPool,
    owner: Option<&str>,
    after: Option<(DateTime<Utc>, Uuid)>,
    limit: i64,
) -> Result<Vec<Model>, sqlx::Error> {
    let (time, id) = after.unzip();
    sqlx::query_as(select(
        "($1::timestamptz is null or (created_at, id) < ($1, $2)) and ($4::text is null or owner = $4)
         order by created_at desc, id desc limit $3",
    ))
    .bind(time)
    .bind(id)
    .bind(limit)
    .bind(owner)
    .fetch_all(pool)
    .await
}

/// What came of a deletion.
#[derive(Debug, PartialEq, Eq)]
pub enum Deletion {
    NotFound,
    /// Evaluations that still need the model, oldest first.
    InUse(Vec<Uuid>),
    /// Deleted; call [`forget_artifact`] for its bytes.
    Done {
        sha256: String,
    },
}

/// Deletes a model (of this owner, or of anybody) that no unfinished evaluation needs. Its results stay, and with them what
/// they say about it: name, spec, hash.
pub async fn delete(pool: &PgPool, owner: Option<&str>, id: Uuid) -> Result<Deletion, sqlx::Error> {
    let mut tx = pool.begin().await?;
    let found: Option<(String, String)> =
        sqlx::query_as("select owner, sha256 from models where id = $1 and deleted_at is null and ($2::text is null or owner = $2) for update")
            .bind(id)
            .bind(owner)
            .fetch_optional(&mut *tx)
            .await?;
    let Some((owner, sha256)) = found else { return Ok(Deletion::NotFound) };
    let open: Vec<Uuid> = sqlx::query_scalar(
        "select id from evaluations where model_id = $1 and state in ('queued', 'running', 'cancelling') order by created_at",
    )
    .bind(id)
    .fetch_all(&mut *tx)
    .await?;
    if !open.is_empty() {
        return Ok(Deletion::InUse(open));
    }
    sqlx::query("update models set deleted_at = now(), version = version + 1 where id = $1")
        .bind(id)
        .execute(&mut *tx)
        .await?;
    let unused =
        "delete from models m where id = $1 and not exists (select 1 from evaluations e where e.model_id = m.id)";
    sqlx::query(unused).bind(id).execute(&mut *tx).await?;
    deletion::forget_answers(&mut tx, &owner, id).await?;
    tx.commit().await?;
    Ok(Deletion::Done { sha256 })
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
