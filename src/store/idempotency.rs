//! Requests that carried an `Idempotency-Key`, and the answers they got.

use std::time::Duration;

use sqlx::PgPool;
use sqlx::types::Json;
use uuid::Uuid;

/// Whoever carries out a request and has not been heard of ([`renew`]) for this long is presumed dead.
pub const PRESUMED_DEAD: Duration = Duration::from_secs(60);

/// An answer as it was given.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct StoredAnswer {
    pub status: i16,
    /// Name and value.
    pub headers: Json<Vec<(String, String)>>,
    pub body: Vec<u8>,
}

/// The right to carry out a request.
#[derive(Debug, Clone)]
pub struct Ticket {
    owner: String,
    key: String,
    token: Uuid,
    /// The id for the object that the request makes: the same when the request is started over.
    pub object: Uuid,
}

/// What to do with a request.
#[derive(Debug)]
pub enum Begin {
    Run(Ticket),
    /// It was carried out before.
    Stored(StoredAnswer),
    /// It is being carried out elsewhere.
    Busy,
    /// The key was used for another request.
    Mismatch,
}

/// Claims a request. Answers are kept for a day.
pub async fn begin(pool: &PgPool, owner: &str, key: &str, fingerprint: &[u8]) -> Result<Begin, sqlx::Error> {
    sqlx::query(
        "delete from idempotency_keys where (owner, key) in (
             select owner, key from idempotency_keys where created_at < now() - interval '24 hours' limit 100
             for update skip locked)",
    )
    .execute(pool)
    .await?;
    let token = Uuid::new_v4();
    let object: Option<Uuid> = sqlx::query_scalar(
        "insert into idempotency_keys as k (owner, key, fingerprint, object, token) values ($1, $2, $3, $4, $5)
         on conflict (owner, key) do update set token = excluded.token, claimed_at = now()
         where k.status is null and k.fingerprint = excluded.fingerprint
           and k.claimed_at < now() - make_interval(secs => $6)
         returning object",
    )
    .bind(owner)
    .bind(key)
    .bind(fingerprint)
    .bind(Uuid::now_v7())
    .bind(token)
    .bind(PRESUMED_DEAD.as_secs_f64())
    .fetch_optional(pool)
    .await?;
    if let Some(object) = object {
        return Ok(Begin::Run(Ticket { owner: owner.into(), key: key.into(), token, object }));
    }
    let same: Option<bool> =
        sqlx::query_scalar("select fingerprint = $3 from idempotency_keys where owner = $1 and key = $2")
            .bind(owner)
            .bind(key)
            .bind(fingerprint)
            .fetch_optional(pool)
            .await?;
    if same == Some(false) {
        return Ok(Begin::Mismatch);
    }
    let stored: Option<StoredAnswer> = sqlx::query_as(
        "select status, headers, body from idempotency_keys where owner = $1 and key = $2 and status is not null",
    )
    .bind(owner)
    .bind(key)
    .fetch_optional(pool)
    .await?;
    Ok(stored.map_or(Begin::Busy, Begin::Stored))
}

/// Shows that the request is still being carried out.
pub async fn renew(pool: &PgPool, ticket: &Ticket) -> Result<(), sqlx::Error> {
    sqlx::query(
        "update idempotency_keys set claimed_at = now() where owner = $1 and key = $2 and token = $3 and status is null",
    )
    .bind(&ticket.owner)
    .bind(&ticket.key)
    .bind(ticket.token)
    .execute(pool)
    .await
    .map(drop)
}

/// Keeps the answer, unless somebody else has taken the request over.
pub async fn finish(pool: &PgPool, ticket: &Ticket, answer: &StoredAnswer) -> Result<(), sqlx::Error> {
    sqlx::query(
        "update idempotency_keys set status = $4, headers = $5, body = $6
         where owner = $1 and key = $2 and token = $3 and status is null",
    )
    .bind(&ticket.owner)
    .bind(&ticket.key)
    .bind(ticket.token)
    .bind(answer.status)
    .bind(&answer.headers)
    .bind(&answer.body)
    .execute(pool)
    .await
    .map(drop)
}

/// Gives the request back: it failed in a way that another attempt may not. The object's id stays reserved.
pub async fn abandon(pool: &PgPool, ticket: &Ticket) -> Result<(), sqlx::Error> {
    sqlx::query(
        "update idempotency_keys set claimed_at = '-infinity' where owner = $1 and key = $2 and token = $3 and status is null",
    )
    .bind(&ticket.owner)
    .bind(&ticket.key)
    .bind(ticket.token)
    .execute(pool)
    .await
    .map(drop)
}
