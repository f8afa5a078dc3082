//! How much waits, and for what: the queue as operators watch it.

use sqlx::PgPool;

use crate::store::workers::GONE_AFTER_SECONDS;

/// The queue at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Depth {
    /// Shards that wait, those of a pause between attempts included.
    pub queued: i64,
    /// Shards a free worker of the right platform could take now.
    pub runnable: i64,
    pub running: i64,
    /// Age of the oldest evaluation of which nothing has run yet, in seconds; 0 without one.
    pub oldest_seconds: f64,
    /// Evaluations of which nothing runs, by the codes of [`Waiting`](super::Waiting).
    pub waiting: Vec<(String, i64)>,
}

/// Every code of [`Waiting`](super::Waiting).
pub const REASONS: [&str; 5] = ["model_check", "needs", "no_worker", "queue", "retry"];

/// Reads the depth. Costs what the open work costs, not the finished.
pub async fn depth(pool: &PgPool) -> Result<Depth, sqlx::Error> {
    let (queued, running): (i64, i64) = sqlx::query_as(
        "select (select count(*) from shards where state = 'queued'), (select count(*) from shards where state = 'running')",
    )
    .fetch_one(pool)
    .await?;
    let runnable: i64 = sqlx::query_scalar("select shards from report.runnable").fetch_one(pool).await?;
    let oldest_seconds: f64 = sqlx::query_scalar(
        "select coalesce(extract(epoch from now() - min(created_at)), 0)::float8 from evaluations where state = 'queued'",
    )
    .fetch_one(pool)
    .await?;
    // The same order of reasons as for one evaluation.
    let waiting = sqlx::query_as(
        "with live as (
             select distinct platform, capabilities from workers
             where not draining and not sandbox ? 'unavailable' and seen_at > now() - make_interval(secs => $1)
         ), open as (
             select e.id, e.profile, e.needs, m.state as model, rank() over (order by e.priority desc, e.created_at) - 1 as position
             from evaluations e join models m on m.id = e.model_id where e.state in ('queued', 'running')
         )
         select case
                when not exists (select 1 from live where o.profile is null or o.profile @> live.platform) then 'no_worker'
                when not exists (select 1 from live where (o.profile is null or o.profile @> live.platform)
                                 and meets(live.capabilities, o.needs)) then 'needs'
                when o.model = 'checking' then 'model_check'
                when o.position > 0 then 'queue'
                when exists (select 1 from shards s where s.evaluation_id = o.id and s.state = 'queued' and s.not_before > now())
                then 'retry' else 'queue' end as reason, count(*)
         from open o
         where not exists (select 1 from shards s where s.evaluation_id = o.id and s.state = 'running')
         group by 1 order by 1",
    )
    .bind(GONE_AFTER_SECONDS)
    .fetch_all(pool)
    .await?;
    Ok(Depth { queued, runnable, running, oldest_seconds, waiting })
}
