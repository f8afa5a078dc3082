//! Workers that have announced themselves.

use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use sqlx::types::Json;
use uuid::Uuid;

use crate::protocol::{Capabilities, Needs, NumericProfile, Platform, Sandbox};

/// A worker not seen for this long counts as gone.
pub const GONE_AFTER_SECONDS: f64 = 30.0;

pub struct NewWorker<'a> {
    pub id: Uuid,
    pub host: &'a str,
    pub platform: &'a Platform,
    pub capabilities: &'a Capabilities,
    pub sandbox: &'a SandboxState,
}

/// Whether a worker can confine the models it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SandboxState {
    /// A layer is missing: the worker takes no work.
    Unavailable(String),
    #[serde(untagged)]
    Known(Sandbox),
}

pub async fn register(pool: &PgPool, worker: &NewWorker<'_>) -> Result<(), sqlx::Error> {
    sqlx::query(
        "insert into workers (id, host, pid, platform, version, sandbox, capabilities) values ($1, $2, $3, $4, $5, $6, $7)
         on conflict (id) do update set seen_at = now(), draining = false",
    )
    .bind(worker.id)
    .bind(worker.host)
    .bind(std::process::id() as i32)
    .bind(Json(worker.platform))
    .bind(env!("CARGO_PKG_VERSION"))
    .bind(Json(worker.sandbox))
    .bind(Json(worker.capabilities))
    .execute(pool)
    .await?;
    sqlx::query("delete from workers where seen_at < now() - interval '1 day'").execute(pool).await?;
    Ok(())
}

pub async fn seen(pool: &PgPool, id: Uuid, draining: bool) -> Result<(), sqlx::Error> {
    sqlx::query("update workers set seen_at = now(), draining = $2 where id = $1")
        .bind(id)
        .bind(draining)
        .execute(pool)
        .await?;
    Ok(())
}

pub async fn unregister(pool: &PgPool, id: Uuid) -> Result<(), sqlx::Error> {
    sqlx::query("delete from workers where id = $1").bind(id).execute(pool).await?;
    Ok(())
}

/// The live workers that take new work, seen from one evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, sqlx::FromRow)]
pub struct Crew {
    /// Those of the platform it began on; all of them, if it has not begun.
    pub fitting: i64,
    /// Those among them that meet its needs.
    pub capable: i64,
    /// Those among these that have a shard in hand.
    pub busy: i64,
    /// The largest GPU memory among the fitting, in bytes.
    pub most_gpu_memory: Option<i64>,
}

pub async fn crew(pool: &PgPool, profile: Option<&NumericProfile>, needs: &Needs) -> Result<Crew, sqlx::Error> {
    sqlx::query_as(
        "select count(*) as fitting, count(*) filter (where meets(capabilities, $3)) as capable,
             count(*) filter (where meets(capabilities, $3)
                 and exists (select 1 from shards s where s.worker_id = workers.id and s.state = 'running')) as busy,
             max((capabilities ->> 'gpu_memory_bytes')::bigint) as most_gpu_memory
         from workers
         where not draining and not sandbox ? 'unavailable' and seen_at > now() - make_interval(secs => $1)
           and ($2::jsonb is null or platform = $2)",
    )
    .bind(GONE_AFTER_SECONDS)
    .bind(profile.map(|p| Json(&p.platform)))
    .bind(Json(needs))
    .fetch_one(pool)
    .await
}

/// Live workers that do not refuse models: device, whether draining, how many.
pub async fn counts(pool: &PgPool) -> Result<Vec<(String, bool, i64)>, sqlx::Error> {
    sqlx::query_as(
        "select platform ->> 'device', draining, count(*) from workers
         where not sandbox ? 'unavailable' and seen_at > now() - make_interval(secs => $1) group by 1, 2",
    )
    .bind(GONE_AFTER_SECONDS)
    .fetch_all(pool)
    .await
}

/// Live workers that take no work, or work without a sandbox; equal ones once.
pub async fn unconfined(pool: &PgPool) -> Result<Vec<SandboxState>, sqlx::Error> {
    let states: Vec<Json<SandboxState>> = sqlx::query_scalar(
        "select distinct sandbox from workers
         where seen_at > now() - make_interval(secs => $1) and not sandbox ? 'enforced'",
    )
    .bind(GONE_AFTER_SECONDS)
    .fetch_all(pool)
    .await?;
    Ok(states.into_iter().map(|state| state.0).collect())
}
