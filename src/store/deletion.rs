//! Deleting an evaluation: its rows, its files, and what was said about it.

use sqlx::PgPool;
use uuid::Uuid;

use super::evaluations::State;
use super::{Artifacts, StoreError};

/// Folders of the artifact store that have a folder per evaluation.
pub const FOLDERS: [&str; 4] = ["verdicts", "witnesses", "logs", "checkpoints"];

/// What came of a deletion.
#[derive(Debug, PartialEq, Eq)]
pub enum Deletion {
    NotFound,
    /// It has not ended.
    Unfinished(State),
    Done,
}

/// Deletes an evaluation (of this owner, or of anybody) that has ended. Rows go first, in one transaction; files that are left
/// when this is cut off are found by `gauntlet gc`. It goes on to count in the quota of the day it was accepted on.
pub async fn evaluation(
    pool: &PgPool,
    artifacts: &Artifacts,
    owner: Option<&str>,
    id: Uuid,
) -> Result<Deletion, StoreError> {
    let mut tx = pool.begin().await?;
    let found: Option<(String, State, Uuid)> = sqlx::query_as(
        "select owner, state, model_id from evaluations where id = $1 and ($2::text is null or owner = $2) for update",
    )
    .bind(id)
    .bind(owner)
    .fetch_optional(&mut *tx)
    .await?;
    let Some((owner, state, model)) = found else { return Ok(Deletion::NotFound) };
    if !state.is_terminal() {
        return Ok(Deletion::Unfinished(state));
    }
    sqlx::query(
        "insert into deleted_evaluations (owner, created_at) select owner, created_at from evaluations where id = $1",
    )
    .bind(id)
    .execute(&mut *tx)
    .await?;
    // Their bodies name it, with no reference that would cascade.
    sqlx::query(
        "delete from webhook_deliveries d using webhooks w
         where w.id = d.webhook_id and w.owner = $2 and d.body -> 'data' ->> 'evaluation' = $1::text",
    )
    .bind(id)
    .bind(&owner)
    .execute(&mut *tx)
    .await?;
    forget_answers(&mut tx, &owner, id).await?;
    // Shards, tallies, attempts, events and webhooks of it alone go with it.
    sqlx::query("delete from evaluations where id = $1").bind(id).execute(&mut *tx).await?;
    // A model that was deleted while its results were kept has nothing to be kept for any more.
    sqlx::query(
        "delete from models m where id = $1 and deleted_at is not null
           and not exists (select 1 from evaluations e where e.model_id = m.id)",
    )
    .bind(model)
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    for folder in FOLDERS {
        artifacts.delete_folder(&format!("{folder}/{id}")).await?;
    }
    Ok(Deletion::Done)
}

/// Forgets answers to requests with an `Idempotency-Key` that name something which is no more: whoever repeats such a request
/// must not be told that it is there.
pub(super) async fn forget_answers(tx: &mut sqlx::PgConnection, owner: &str, id: Uuid) -> Result<(), sqlx::Error> {
    sqlx::query(
        "delete from idempotency_keys
         where object = $1 or (owner = $2 and position(convert_to($1::text, 'UTF8') in body) > 0)",
    )
    .bind(id)
    .bind(owner)
    .execute(tx)
    .await
    .map(drop)
}
