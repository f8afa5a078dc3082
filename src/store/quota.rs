//! What one owner may use. Only what was accepted counts.

use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

/// Limits of every owner that has a key; 0: none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Quotas {
    /// Unfinished evaluations of one owner; 0: no limit, as below.
    pub open_evaluations: u32,
    /// Evaluations of one owner accepted within 24 hours.
    pub evaluations_per_day: u32,
    /// Models and open uploads of one owner together.
    pub model_bytes: u64,
}

impl Default for Quotas {
    fn default() -> Self {
        Self { open_evaluations: 100, evaluations_per_day: 1000, model_bytes: 200 << 30 }
    }
}

impl Quotas {
    pub const NONE: Self = Self { open_evaluations: 0, evaluations_per_day: 0, model_bytes: 0 };
}

/// Which limit stands in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QuotaError {
    #[error("{0} evaluations are unfinished, the most that an owner may have: wait for one, or cancel one")]
    Open(u32),
    #[error(
        "{limit} evaluations were accepted within 24 hours, the most that an owner may have: the next one in {seconds} s"
    )]
    Day { limit: u32, seconds: u64 },
    #[error("models and open uploads may take {0} bytes together: delete one that is not needed any more")]
    Storage(u64),
    #[error("{0} uploads are open, the most that an owner may have: finish one, or delete one")]
    Uploads(i64),
}

/// Holds other submissions of this owner back until the transaction ends, so that two cannot both take the last place.
pub(super) async fn lock(tx: &mut PgConnection, owner: &str) -> Result<(), sqlx::Error> {
    sqlx::query("select pg_advisory_xact_lock(hashtextextended('quota ' || $1, 0))")
        .bind(owner)
        .execute(tx)
        .await
        .map(drop)
}

/// Whether the owner may submit one more evaluation. Call in the transaction that inserts it.
pub async fn evaluation(
    tx: &mut PgConnection,
    owner: &str,
    quotas: &Quotas,
) -> Result<Result<(), QuotaError>, sqlx::Error> {
    lock(tx, owner).await?;
    if quotas.open_evaluations > 0 {
        let open: i64 = sqlx::query_scalar(
            "select count(*) from evaluations where owner = $1 and state in ('queued', 'running', 'cancelling')",
        )
        .bind(owner)
        .fetch_one(&mut *tx)
        .await?;
        if open >= i64::from(quotas.open_evaluations) {
            return Ok(Err(QuotaError::Open(quotas.open_evaluations)));
        }
    }
    if quotas.evaluations_per_day > 0 {
        // The one whose ageing makes room.
        let oldest: Option<i64> = sqlx::query_scalar(
            "select ceil(extract(epoch from created_at + interval '24 hours' - now()))::bigint
             from (select owner, created_at from evaluations union all select owner, created_at from deleted_evaluations) a
             where owner = $1 and created_at > now() - interval '24 hours'
             order by created_at desc offset $2 limit 1",
        )
        .bind(owner)
        .bind(i64::from(quotas.evaluations_per_day) - 1)
        .fetch_optional(&mut *tx)
        .await?;
        if let Some(seconds) = oldest {
            let (limit, seconds) = (quotas.evaluations_per_day, seconds.max(1) as u64);
            return Ok(Err(QuotaError::Day { limit, seconds }));
        }
    }
    Ok(Ok(()))
}

/// Whether the owner's models and uploads, the newest among them, fit. Call in the transaction that has inserted it.
pub async fn storage(
    tx: &mut PgConnection,
    owner: &str,
    quotas: &Quotas,
) -> Result<Result<(), QuotaError>, sqlx::Error> {
    if quotas.model_bytes == 0 {
        return Ok(Ok(()));
    }
    lock(tx, owner).await?;
    let bytes: i64 = sqlx::query_scalar(
        "select ((select coalesce(sum(bytes), 0) from models where owner = $1 and deleted_at is null)
                 + (select coalesce(sum(bytes), 0) from uploads where owner = $1))::bigint",
    )
    .bind(owner)
    .fetch_one(tx)
    .await?;
    Ok(if bytes as u64 > quotas.model_bytes { Err(QuotaError::Storage(quotas.model_bytes)) } else { Ok(()) })
}
