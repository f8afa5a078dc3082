//! Models' files that arrive in pieces, over several requests.

use chrono::{DateTime, Utc};
use futures::{Stream, StreamExt, TryStreamExt};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use super::artifacts::{ArtifactError, Uploaded};
use super::{Artifacts, QuotaError, Quotas, StoreError, deletion, quota};

/// Most uploads that one owner may have open.
pub const MOST: i64 = 20;

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Upload {
    pub id: Uuid,
    pub owner: String,
    /// What it will have in the end.
    pub bytes: i64,
    pub sha256: Option<String>,
    /// What has arrived, from the beginning on without gaps.
    pub received: i64,
    pub created_at: DateTime<Utc>,
    /// When it last grew.
    pub grown_at: DateTime<Utc>,
}

pub struct NewUpload<'a> {
    /// Opening the same id again changes nothing.
    pub id: Uuid,
    pub owner: &'a str,
    pub bytes: u64,
    pub sha256: Option<&'a str>,
    pub quotas: &'a Quotas,
}

fn select(rest: &str) -> sqlx::AssertSqlSafe<String> {
    sqlx::AssertSqlSafe(format!(
        "select id, owner, bytes, sha256, received, created_at, grown_at from uploads where {rest}"
    ))
}

/// Opens an upload, or finds the owner's open one of the same hash and size. The flag says whether it is new.
pub async fn open(pool: &PgPool, new: &NewUpload<'_>) -> Result<(Upload, bool), StoreError> {
    let mut tx = pool.begin().await?;
    quota::lock(&mut tx, new.owner).await?;
    let there: Option<Upload> =
        sqlx::query_as(select("owner = $1 and bytes = $2 and (sha256 = $3 or id = $4) order by received desc limit 1"))
            .bind(new.owner)
            .bind(new.bytes as i64)
            .bind(new.sha256)
            .bind(new.id)
            .fetch_optional(&mut *tx)
            .await?;
    if let Some(there) = there {
        return Ok((there, false));
    }
    let open: i64 =
        sqlx::query_scalar("select count(*) from uploads where owner = $1").bind(new.owner).fetch_one(&mut *tx).await?;
    if open >= MOST {
        return Err(QuotaError::Uploads(MOST).into());
    }
    sqlx::query("insert into uploads (id, owner, bytes, sha256) values ($1, $2, $3, $4)")
        .bind(new.id)
        .bind(new.owner)
        .bind(new.bytes as i64)
        .bind(new.sha256)
        .execute(&mut *tx)
        .await?;
    quota::storage(&mut tx, new.owner, new.quotas).await??;
    let opened = sqlx::query_as(select("id = $1")).bind(new.id).fetch_one(&mut *tx).await?;
    tx.commit().await?;
    Ok((opened, true))
}

/// `owner`: whose upload it must be; anybody's if `None`.
pub async fn get(pool: &PgPool, owner: Option<&str>, id: Uuid) -> Result<Option<Upload>, sqlx::Error> {
    sqlx::query_as(select("id = $1 and ($2::text is null or owner = $2)"))
        .bind(id)
        .bind(owner)
        .fetch_optional(pool)
        .await
}

/// Oldest first; of one owner, or of everybody.
pub async fn list(pool: &PgPool, owner: Option<&str>) -> Result<Vec<Upload>, sqlx::Error> {
    sqlx::query_as(select("($1::text is null or owner = $1) order by created_at, id")).bind(owner).fetch_all(pool).await
}

/// Adds a piece that lies in the artifact store already; `false` if the upload does not end where it begins (any more).
async fn grow(pool: &PgPool, id: Uuid, start: u64, bytes: u64, key: &str) -> Result<bool, sqlx::Error> {
    let done = sqlx::query(
        "with grown as (
             update uploads set received = received + $3, grown_at = now()
             where id = $1 and received = $2 and received + $3 <= bytes returning id
         )
         insert into upload_parts (upload_id, start, bytes, key) select id, $2, $3, $4 from grown",
    )
    .bind(id)
    .bind(start as i64)
    .bind(bytes as i64)
    .bind(key)
    .execute(pool)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Keeps bytes that continue an upload at `start`; `false`, and nothing is kept, if it does not end there (any more).
pub async fn append(
    pool: &PgPool,
    artifacts: &Artifacts,
    id: Uuid,
    start: u64,
    bytes: Vec<u8>,
) -> Result<bool, StoreError> {
    // A name of its own for every try: two that race cannot overwrite each other.
    let key = format!("parts/{id}-{start:015}-{}", Uuid::new_v4().simple());
    let length = bytes.len() as u64;
    artifacts.put(&key, bytes).await?;
    // After an error a row may well name the piece; if none does, `gauntlet gc` finds it.
    let grown = grow(pool, id, start, length, &key).await?;
    if !grown {
        artifacts.delete(&key).await.ok();
    }
    Ok(grown)
}

/// Joins the pieces of a whole upload, and hashes them on the way. The pieces stay until [`close`].
pub async fn join(pool: &PgPool, artifacts: &Artifacts, upload: &Upload) -> Result<Uploaded, StoreError> {
    let keys: Vec<String> = sqlx::query_scalar("select key from upload_parts where upload_id = $1 order by start")
        .bind(upload.id)
        .fetch_all(pool)
        .await?;
    let bytes = pieces(artifacts.clone(), keys);
    Ok(artifacts.upload(Box::pin(bytes), upload.bytes as u64).await?)
}

fn pieces(artifacts: Artifacts, keys: Vec<String>) -> impl Stream<Item = Result<bytes::Bytes, ArtifactError>> {
    futures::stream::iter(keys)
        .then(move |key| {
            let artifacts = artifacts.clone();
            async move { artifacts.stream(&key).await }
        })
        .try_flatten()
}

/// Removes an upload's rows; the keys of its pieces, for [`discard`]. Call it in a transaction of its own, or in the one that
/// makes a model of it. `None` if there is none.
pub async fn close(connection: &mut PgConnection, id: Uuid) -> Result<Option<Vec<String>>, sqlx::Error> {
    // The pieces are gone with the upload, so they are read first; the lock keeps others from adding any.
    let there: Option<i32> = sqlx::query_scalar("select 1 from uploads where id = $1 for update")
        .bind(id)
        .fetch_optional(&mut *connection)
        .await?;
    if there.is_none() {
        return Ok(None);
    }
    let keys = sqlx::query_scalar("select key from upload_parts where upload_id = $1")
        .bind(id)
        .fetch_all(&mut *connection)
        .await?;
    sqlx::query("delete from uploads where id = $1").bind(id).execute(connection).await?;
    Ok(Some(keys))
}

/// Deletes pieces whose rows are gone. What fails here is found by `gauntlet gc`.
pub async fn discard(artifacts: &Artifacts, keys: &[String]) {
    for key in keys {
        if let Err(error) = artifacts.delete(key).await {
            tracing::warn!(key, %error, "a piece of an upload could not be deleted; `gauntlet gc` will");
        }
    }
}

/// Closes and discards an upload that has not grown for so many hours; `false` if it has, or is gone.
pub async fn expire(pool: &PgPool, artifacts: &Artifacts, id: Uuid, hours: u32) -> Result<bool, StoreError> {
    let mut tx = pool.begin().await?;
    let still: Option<i32> = sqlx::query_scalar(
        "select 1 from uploads where id = $1 and grown_at < now() - make_interval(hours => $2) for update",
    )
    .bind(id)
    .bind(hours as i32)
    .fetch_optional(&mut *tx)
    .await?;
    let (Some(_), Some(keys)) = (still, close(&mut tx, id).await?) else { return Ok(false) };
    tx.commit().await?;
    discard(artifacts, &keys).await;
    Ok(true)
}

/// Closes and discards an upload; `false` if the owner (anybody, if `None`) has none of this id.
pub async fn delete(pool: &PgPool, artifacts: &Artifacts, owner: Option<&str>, id: Uuid) -> Result<bool, StoreError> {
    let Some(upload) = get(pool, owner, id).await? else { return Ok(false) };
    let mut tx = pool.begin().await?;
    let Some(keys) = close(&mut tx, id).await? else { return Ok(false) };
    deletion::forget_answers(&mut tx, &upload.owner, id).await?;
    tx.commit().await?;
    discard(artifacts, &keys).await;
    Ok(true)
}

/// Uploads that have not grown for so many hours.
pub async fn stale(pool: &PgPool, hours: u32) -> Result<Vec<Upload>, sqlx::Error> {
    sqlx::query_as(select("grown_at < now() - make_interval(hours => $1) order by grown_at limit 1000"))
        .bind(hours as i32)
        .fetch_all(pool)
        .await
}
