//! Access keys: `gauntlet_<id>_<secret>`. The database has the id and a hash of the secret.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};
use sqlx::PgPool;
use subtle::ConstantTimeEq;
use uuid::Uuid;

const PREFIX: &str = "gauntlet";

/// What a key is good for. `Admin` includes the others and sees everybody's objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Scope {
    Read,
    Submit,
    Admin,
}

impl Scope {
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Submit => "submit",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Scope {
    type Err = sqlx::Error;

    fn from_str(text: &str) -> Result<Self, sqlx::Error> {
        let all = [Self::Read, Self::Submit, Self::Admin];
        let unknown = || sqlx::Error::Protocol(format!("a key has the unknown scope {text:?}"));
        all.into_iter().find(|scope| scope.name() == text).ok_or_else(unknown)
    }
}

/// A key as its owner holds it. It can be shown once, when it is made; it has no `Debug`, so that it cannot end in a log.
pub struct Secret {
    id: String,
    secret: String,
}

impl Secret {
    /// Two random UUIDs have 244 random bits.
    fn new() -> Self {
        let random = || Uuid::new_v4().simple().to_string();
        Self { id: random()[..12].to_owned(), secret: random() + &random() }
    }

    /// Reads what a client sent; `None` if it cannot be a key.
    pub fn parse(text: &str) -> Option<Self> {
        let (id, secret) = text.strip_prefix(PREFIX)?.strip_prefix('_')?.split_once('_')?;
        let plausible = |part: &str, length| part.len() == length && part.bytes().all(|b| b.is_ascii_hexdigit());
        (plausible(id, 12) && plausible(secret, 64)).then(|| Self { id: id.into(), secret: secret.into() })
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// The whole key.
    pub fn reveal(&self) -> String {
        format!("{PREFIX}_{}_{}", self.id, self.secret)
    }

    fn hash(&self) -> Vec<u8> {
        Sha256::digest(&self.secret).to_vec()
    }
}

/// A key as listings show it.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Key {
    pub id: String,
    pub owner: String,
    pub label: String,
    pub scopes: Vec<String>,
    pub created_at: DateTime<Utc>,
    pub expires_at: Option<DateTime<Utc>>,
    pub revoked_at: Option<DateTime<Utc>>,
    pub last_used_at: Option<DateTime<Utc>>,
}

pub struct NewKey<'a> {
    pub owner: &'a str,
    pub label: &'a str,
    pub scopes: &'a [Scope],
    pub expires_at: Option<DateTime<Utc>>,
}

/// Makes a key. The secret is kept nowhere but in what this returns.
pub async fn create(pool: &PgPool, new: &NewKey<'_>) -> Result<Secret, sqlx::Error> {
    let secret = Secret::new();
    let scopes: Vec<&str> = new.scopes.iter().map(|scope| scope.name()).collect();
    sqlx::query(
        "insert into api_keys (id, owner, label, scopes, secret_hash, expires_at) values ($1, $2, $3, $4, $5, $6)",
    )
    .bind(&secret.id)
    .bind(new.owner)
    .bind(new.label)
    .bind(scopes)
    .bind(secret.hash())
    .bind(new.expires_at)
    .execute(pool)
    .await?;
    Ok(secret)
}

pub async fn list(pool: &PgPool) -> Result<Vec<Key>, sqlx::Error> {
    sqlx::query_as(
        "select id, owner, label, scopes, created_at, expires_at, revoked_at, last_used_at from api_keys
         order by owner, created_at",
    )
    .fetch_all(pool)
    .await
}

/// Makes a key useless from now on; `false` if there is no such key, or it was revoked before.
pub async fn revoke(pool: &PgPool, id: &str) -> Result<bool, sqlx::Error> {
    let revoked = sqlx::query("update api_keys set revoked_at = now() where id = $1 and revoked_at is null")
        .bind(id)
        .execute(pool)
        .await?;
    Ok(revoked.rows_affected() == 1)
}

/// Lets a key expire within this many seconds, so that its successor can take its place; `false` if there is none in use.
pub async fn retire(pool: &PgPool, id: &str, seconds: f64) -> Result<bool, sqlx::Error> {
    let retired = sqlx::query(
        "update api_keys set expires_at = least(expires_at, now() + make_interval(secs => $2))
         where id = $1 and revoked_at is null and (expires_at is null or expires_at > now())",
    )
    .bind(id)
    .bind(seconds)
    .execute(pool)
    .await?;
    Ok(retired.rows_affected() == 1)
}

/// Whether a key was ever made. From then on keys are asked for, also when all of them have been revoked.
pub async fn any(pool: &PgPool) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("select exists (select 1 from api_keys)").fetch_one(pool).await
}

/// Whom a valid key speaks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The key's id.
    pub key: String,
    pub owner: String,
    pub scopes: Vec<Scope>,
}

/// Whom this key speaks for; `None` if it is unknown, wrong, expired or revoked, which takes the same time to find out.
pub async fn authenticate(pool: &PgPool, secret: &Secret) -> Result<Option<Holder>, sqlx::Error> {
    let found: Option<(String, Vec<String>, Vec<u8>, bool)> = sqlx::query_as(
        "select owner, scopes, secret_hash, revoked_at is null and (expires_at is null or expires_at > now())
         from api_keys where id = $1",
    )
    .bind(&secret.id)
    .fetch_optional(pool)
    .await?;
    let (owner, scopes, hash, usable) = found.unwrap_or_else(|| (String::new(), Vec::new(), vec![0; 32], false));
    let matches = bool::from(hash.ct_eq(&secret.hash()));
    if !(matches && usable) {
        return Ok(None);
    }
    // Once a minute is enough to tell a key in use from a forgotten one.
    sqlx::query(
        "update api_keys set last_used_at = now()
         where id = $1 and (last_used_at is null or last_used_at < now() - interval '1 minute')",
    )
    .bind(&secret.id)
    .execute(pool)
    .await?;
    let scopes = scopes.iter().map(|scope| scope.parse()).collect::<Result<_, _>>()?;
    Ok(Some(Holder { key: secret.id.clone(), owner, scopes }))
}

/// Whether the key of this id is neither expired nor revoked.
pub async fn usable(pool: &PgPool, id: &str) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        "select exists (select 1 from api_keys
                        where id = $1 and revoked_at is null and (expires_at is null or expires_at > now()))",
    )
    .bind(id)
    .fetch_one(pool)
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_reads_back_and_nothing_else_passes_for_a_key() {
        let key = Secret::new();
        let read = Secret::parse(&key.reveal()).unwrap();
        assert_eq!((read.id, read.secret), (key.id.clone(), key.secret.clone()));
        assert_ne!(Secret::new().secret, key.secret);
        for wrong in ["", "gauntlet__", &key.secret, &key.reveal()[1..], &format!("{}0", key.reveal())] {
            assert!(Secret::parse(wrong).is_none(), "{wrong}");
        }
    }
}
