//! Protocols that users posted.

use chrono::{DateTime, Utc};
use sqlx::PgPool;
use sqlx::types::Json;
use uuid::Uuid;

use crate::protocol::Protocol;

/// Most protocols that one owner may keep. They are listed all at once.
pub const MOST: i64 = 1000;

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct StoredProtocol {
    pub document: Json<Protocol>,
    pub created_at: DateTime<Utc>,
}

/// What came of storing a protocol.
#[derive(Debug, PartialEq, Eq)]
pub enum Stored {
    New,
    /// The same document was there already.
    Same,
    /// Another document holds this name and version.
    Taken,
    /// The owner has [`MOST`] already.
    Full,
}

/// Stores a protocol. Name and version, once taken, never change their meaning.
pub async fn insert(pool: &PgPool, owner: &str, protocol: &Protocol) -> Result<Stored, sqlx::Error> {
    let done = sqlx::query(
        "insert into protocols (id, owner, name, version, document)
         select $1, $2, $3, $4, $5 where (select count(*) from protocols where owner = $2) < $6 on conflict do nothing",
    )
    .bind(Uuid::now_v7())
    .bind(owner)
    .bind(&protocol.name)
    .bind(protocol.version as i32)
    .bind(Json(protocol))
    .bind(MOST)
    .execute(pool)
    .await?;
    if done.rows_affected() == 1 {
        return Ok(Stored::New);
    }
    let there = get(pool, owner, &protocol.name, Some(protocol.version)).await?;
    Ok(match there {
        Some(there) if there.document.0 == *protocol => Stored::Same,
        Some(_) => Stored::Taken,
        None => Stored::Full,
    })
}

/// A protocol by name; the newest version unless one is asked for.
pub async fn get(
    pool: &PgPool,
    owner: &str,
    name: &str,
    version: Option<u32>,
) -> Result<Option<StoredProtocol>, sqlx::Error> {
    sqlx::query_as(
        "select document, created_at from protocols
         where owner = $1 and name = $2 and ($3::integer is null or version = $3) order by version desc limit 1",
    )
    .bind(owner)
    .bind(name)
    .bind(version.map(|v| v as i32))
    .fetch_optional(pool)
    .await
}

pub async fn list(pool: &PgPool, owner: &str) -> Result<Vec<StoredProtocol>, sqlx::Error> {
    sqlx::query_as("select document, created_at from protocols where owner = $1 order by name, version")
        .bind(owner)
        .fetch_all(pool)
        .await
}
