//! Cancelling an evaluation.

use sqlx::PgPool;
use uuid::Uuid;

use super::commit::{lock_evaluation, settle};
use crate::store::evaluations::State;

/// What came of a request to cancel.
#[derive(Debug, PartialEq, Eq)]
pub enum Cancellation {
    NotFound,
    /// Accepted now or before: waiting shards are closed, running ones are told at their next heartbeat.
    Accepted,
    /// It had already ended.
    Ended(State),
}

/// Stops an evaluation of this owner (of anybody, if `None`). Workers kill what still runs; the last one, or the reaper, makes it `cancelled`.
pub async fn cancel(pool: &PgPool, owner: Option<&str>, id: Uuid) -> Result<Cancellation, sqlx::Error> {
    let mut tx = pool.begin().await?;
    lock_evaluation(&mut tx, id).await?;
    let state: Option<State> =
        sqlx::query_scalar("select state from evaluations where id = $1 and ($2::text is null or owner = $2)")
            .bind(id)
            .bind(owner)
            .fetch_optional(&mut *tx)
            .await?;
    match state {
        None => return Ok(Cancellation::NotFound),
        Some(State::Cancelling) => return Ok(Cancellation::Accepted),
        Some(ended) if ended.is_terminal() => {
            return Ok(if ended == State::Cancelled { Cancellation::Accepted } else { Cancellation::Ended(ended) });
        }
        Some(_) => {}
    }
    sqlx::query(
        "update evaluations set state = 'cancelling', cancel_requested_at = now(), version = version + 1 where id = $1",
    )
    .bind(id)
    .execute(&mut *tx)
    .await?;
    sqlx::query("update shards set state = 'cancelled' where evaluation_id = $1 and state = 'queued'")
        .bind(id)
        .execute(&mut *tx)
        .await?;
    settle(&mut tx, id).await?;
    tx.commit().await?;
    Ok(Cancellation::Accepted)
}
