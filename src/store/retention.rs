//! How long things are kept: the installation's rule, and owners' own.

use serde::{Deserialize, Serialize};
use sqlx::PgPool;

/// Days; 0: for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Retention {
    /// Days after which a model is deleted that no evaluation has used since; 0: never, as below.
    pub model_days: u32,
    /// Days that stored witnesses outlive the end of their evaluation. Verdicts and tables stay.
    pub witness_days: u32,
    /// Days that logs of attempts, and events other than changes of state, outlive the end of their evaluation.
    pub log_days: u32,
}

impl Default for Retention {
    fn default() -> Self {
        Self { model_days: 0, witness_days: 0, log_days: 90 }
    }
}

/// What an owner has instead of the installation's rule, where it is not `None`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, sqlx::FromRow)]
pub struct Own {
    pub owner: String,
    pub model_days: Option<i32>,
    pub witness_days: Option<i32>,
    pub log_days: Option<i32>,
}

/// Gives an owner a rule of their own; what is `None` stays as it was.
pub async fn set(pool: &PgPool, own: &Own) -> Result<(), sqlx::Error> {
    sqlx::query(
        "insert into retention as r (owner, model_days, witness_days, log_days) values ($1, $2, $3, $4)
         on conflict (owner) do update set model_days = coalesce(excluded.model_days, r.model_days),
             witness_days = coalesce(excluded.witness_days, r.witness_days),
             log_days = coalesce(excluded.log_days, r.log_days)",
    )
    .bind(&own.owner)
    .bind(own.model_days)
    .bind(own.witness_days)
    .bind(own.log_days)
    .execute(pool)
    .await
    .map(drop)
}

/// Has the installation's rule hold for an owner again; `false` if it did.
pub async fn clear(pool: &PgPool, owner: &str) -> Result<bool, sqlx::Error> {
    let gone = sqlx::query("delete from retention where owner = $1").bind(owner).execute(pool).await?;
    Ok(gone.rows_affected() == 1)
}

pub async fn list(pool: &PgPool) -> Result<Vec<Own>, sqlx::Error> {
    sqlx::query_as("select owner, model_days, witness_days, log_days from retention order by owner")
        .fetch_all(pool)
        .await
}
