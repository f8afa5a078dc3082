//! Webhooks and their deliveries. Triggers write deliveries (see the migrations); here they are claimed and their outcome kept.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use super::{deletion, quota};

/// Most webhooks that one owner may have. They are listed all at once.
pub const MOST: i64 = 50;
/// Kinds of events that can be asked for.
pub const KINDS: [&str; 5] = ["state", "progress", "results", "attempt_failed", "restart"];
/// Deliveries to one webhook that may be under way at once, over all servers.
const AT_ONCE: i64 = 4;
/// Deliveries to all webhooks of one owner that may be under way at once, over all servers: slow receivers hold up their own.
const OWNER_AT_ONCE: i64 = 8;
/// An attempt that has said nothing for this long has died with its server. Longer than any attempt may take.
const PRESUMED_DEAD: Duration = Duration::from_secs(120);
/// Attempts at one delivery: with the pauses between them, about a day.
pub const MAX_ATTEMPTS: i32 = 11;
/// Longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(8 * 3600);
/// A webhook to which nothing could be delivered for this long is disabled.
const GIVE_UP: Duration = Duration::from_secs(3 * 24 * 3600);

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Webhook {
    pub id: Uuid,
    pub url: String,
    pub events: Vec<String>,
    pub evaluation_id: Option<Uuid>,
    pub model_id: Option<Uuid>,
    pub created_at: DateTime<Utc>,
    pub failing_since: Option<DateTime<Utc>>,
    pub disabled_at: Option<DateTime<Utc>>,
    pub disabled_reason: Option<String>,
}

const COLUMNS: &str =
    "id, url, events, evaluation_id, model_id, created_at, failing_since, disabled_at, disabled_reason";

pub struct NewWebhook<'a> {
    /// Making the same id again changes nothing.
    pub id: Uuid,
    pub owner: &'a str,
    pub url: &'a str,
    pub events: &'a [String],
    pub evaluation: Option<Uuid>,
    pub model: Option<Uuid>,
    /// What deliveries are signed with.
    pub secret: &'a [u8],
}

/// Makes a webhook; `None` if the owner has [`MOST`] already.
pub async fn insert(pool: &PgPool, new: &NewWebhook<'_>) -> Result<Option<Webhook>, sqlx::Error> {
    let mut tx = pool.begin().await?;
    quota::lock(&mut tx, new.owner).await?;
    sqlx::query(
        "insert into webhooks (id, owner, url, events, evaluation_id, model_id, secret)
         select $1, $2, $3, $4, $5, $6, $7 where (select count(*) from webhooks where owner = $2 and id <> $1) < $8
         on conflict (id) do update set secret = excluded.secret",
    )
    .bind(new.id)
    .bind(new.owner)
    .bind(new.url)
    .bind(new.events)
    .bind(new.evaluation)
    .bind(new.model)
    .bind(new.secret)
    .bind(MOST)
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    get(pool, Some(new.owner), new.id).await
}

fn select(rest: &str) -> sqlx::AssertSqlSafe<String> {
    sqlx::AssertSqlSafe(format!("select {COLUMNS} from webhooks where ($1::text is null or owner = $1) and {rest}"))
}

/// `owner`: whose webhook it must be; anybody's if `None`.
pub async fn get(pool: &PgPool, owner: Option<&str>, id: Uuid) -> Result<Option<Webhook>, sqlx::Error> {
    sqlx::query_as(select("id = $2")).bind(owner).bind(id).fetch_optional(pool).await
}

/// Oldest first; of one owner, or of everybody.
pub async fn list(pool: &PgPool, owner: Option<&str>) -> Result<Vec<Webhook>, sqlx::Error> {
    sqlx::query_as(select("true order by created_at, id")).bind(owner).fetch_all(pool).await
}

/// Deletes a webhook with its deliveries; `false` if there is none.
pub async fn delete(pool: &PgPool, owner: Option<&str>, id: Uuid) -> Result<bool, sqlx::Error> {
    let mut tx = pool.begin().await?;
    let owner: Option<String> =
        sqlx::query_scalar("delete from webhooks where id = $2 and ($1::text is null or owner = $1) returning owner")
            .bind(owner)
            .bind(id)
            .fetch_optional(&mut *tx)
            .await?;
    let Some(owner) = owner else { return Ok(false) };
    deletion::forget_answers(&mut tx, &owner, id).await?;
    tx.commit().await?;
    Ok(true)
}

/// Has events delivered (again), from now on; what happened meanwhile is not made up for. `false` if there is none.
pub async fn enable(pool: &PgPool, owner: Option<&str>, id: Uuid) -> Result<bool, sqlx::Error> {
    let done = sqlx::query(
        "update webhooks set disabled_at = null, disabled_reason = null,
             failing_since = case when disabled_at is null then failing_since end
         where id = $2 and ($1::text is null or owner = $1)",
    )
    .bind(owner)
    .bind(id)
    .execute(pool)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Stops deliveries to a webhook; what waits is given up. `false` if there is none.
pub async fn disable(pool: &PgPool, owner: Option<&str>, id: Uuid, reason: &str) -> Result<bool, sqlx::Error> {
    let mut tx = pool.begin().await?;
    let done = sqlx::query(
        "update webhooks set disabled_at = coalesce(disabled_at, now()), disabled_reason = coalesce(disabled_reason, $3)
         where id = $2 and ($1::text is null or owner = $1)",
    )
    .bind(owner)
    .bind(id)
    .bind(reason)
    .execute(&mut *tx)
    .await?;
    if done.rows_affected() == 1 {
        give_up_waiting(&mut tx, id).await?;
    }
    tx.commit().await?;
    Ok(done.rows_affected() == 1)
}

/// Ends the deliveries of a webhook that is disabled by now.
async fn give_up_waiting(tx: &mut PgConnection, webhook: Uuid) -> Result<(), sqlx::Error> {
    sqlx::query(
        "update webhook_deliveries d set state = 'failed', token = null, error = coalesce(d.error, 'the webhook was disabled')
         from webhooks w where w.id = $1 and w.disabled_at is not null and d.webhook_id = w.id and d.state = 'waiting'",
    )
    .bind(webhook)
    .execute(tx)
    .await
    .map(drop)
}

/// A delivery as the log shows it.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Delivery {
    pub id: Uuid,
    pub body: Value,
    pub state: String,
    pub attempts: i32,
    pub not_before: DateTime<Utc>,
    pub response_status: Option<i16>,
    pub error: Option<String>,
    pub created_at: DateTime<Utc>,
    pub attempted_at: Option<DateTime<Utc>>,
}

/// Newest first, after the cursor `(created_at, id)`.
pub async fn deliveries(
    pool: &PgPool,
    webhook: Uuid,
    after: Option<(DateTime<Utc>, Uuid)>,
    limit: i64,
) -> Result<Vec<Delivery>, sqlx::Error> {
    let (time, id) = after.unzip();
    sqlx::query_as(
        "select id, body, state, attempts, not_before, response_status, error, created_at, attempted_at
         from webhook_deliveries
         where webhook_id = $1 and ($2::timestamptz is null or (created_at, id) < ($2, $3))
         order by created_at desc, id desc limit $4",
    )
    .bind(webhook)
    .bind(time)
    .bind(id)
    .bind(limit)
    .fetch_all(pool)
    .await
}

/// Has a test delivered. Asking again for the same id changes nothing.
pub async fn test(pool: &PgPool, webhook: Uuid, delivery: Uuid) -> Result<(), sqlx::Error> {
    sqlx::query(
        "insert into webhook_deliveries (id, webhook_id, body)
         values ($1, $2, jsonb_build_object('type', 'webhook.test', 'timestamp', now(),
                                            'data', jsonb_build_object('webhook', $2::uuid)))
         on conflict (id) do nothing",
    )
    .bind(delivery)
    .bind(webhook)
    .execute(pool)
    .await
    .map(drop)
}

/// Has a delivery made once more, with all its attempts; `false` if the webhook has none of this id.
pub async fn redeliver(pool: &PgPool, webhook: Uuid, delivery: Uuid) -> Result<bool, sqlx::Error> {
    let done = sqlx::query(
        "update webhook_deliveries set state = 'waiting', attempts = 0, not_before = now(), token = null
         where id = $1 and webhook_id = $2",
    )
    .bind(delivery)
    .bind(webhook)
    .execute(pool)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// A delivery to be attempted now, by whoever holds it.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Due {
    pub id: Uuid,
    pub webhook_id: Uuid,
    token: Uuid,
    pub attempts: i32,
    pub url: String,
    pub secret: Vec<u8>,
    pub body: Value,
}

/// Takes up to `limit` deliveries that are due, a few per webhook and owner, owners by turns. No two servers get the same one.
pub async fn claim(pool: &PgPool, limit: i64) -> Result<Vec<Due>, sqlx::Error> {
    sqlx::query_as(
        "with under_way as (
             select w.id, w.owner, count(*) as n from webhook_deliveries d join webhooks w on w.id = d.webhook_id
             where d.state = 'waiting' and d.not_before > now() and d.token is not null group by w.id
         ), of_owner as (
             select owner, sum(n) as n from under_way group by owner
         ), candidate as (
             select c.id, c.not_before,
                 coalesce(o.n, 0) + row_number() over (partition by w.owner order by c.not_before) as turn
             from webhooks w
             left join under_way u on u.id = w.id
             left join of_owner o on o.owner = w.owner
             cross join lateral (
                 select id, not_before from webhook_deliveries
                 where webhook_id = w.id and state = 'waiting' and not_before <= now()
                 order by not_before limit greatest($2 - coalesce(u.n, 0), 0)
             ) c
             where w.disabled_at is null
         ), due as (
             select d.id from candidate c
             join webhook_deliveries d on d.id = c.id and d.state = 'waiting' and d.not_before <= now()
             where c.turn <= $4 order by c.turn, c.not_before
             for update of d skip locked limit $1
         )
         update webhook_deliveries d set token = gen_random_uuid(), attempts = attempts + 1, attempted_at = now(),
             not_before = now() + make_interval(secs => $3)
         from due, webhooks w
         where d.id = due.id and w.id = d.webhook_id
         returning d.id, d.webhook_id, d.token, d.attempts, w.url, w.secret, d.body",
    )
    .bind(limit)
    .bind(AT_ONCE)
    .bind(PRESUMED_DEAD.as_secs_f64())
    .bind(OWNER_AT_ONCE)
    .fetch_all(pool)
    .await
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// Of the answer, if there was one.
    pub status: Option<u16>,
    /// Why it did not succeed.
    pub error: Option<String>,
    /// The receiver says that it is gone for good.
    pub gone: bool,
}

/// Records how an attempt ended, unless somebody else holds the delivery by now. A failed one is tried again after a pause
/// that triples, give or take a fifth.
pub async fn finish(pool: &PgPool, due: &Due, attempt: &Attempt) -> Result<(), sqlx::Error> {
    let failed = attempt.error.is_some();
    let final_failure = failed && due.attempts >= MAX_ATTEMPTS;
    let state = if !failed {
        "delivered"
    } else if final_failure {
        "failed"
    } else {
        "waiting"
    };
    let mut tx = pool.begin().await?;
    // The webhook first, as everybody who touches both.
    sqlx::query("select 1 from webhooks where id = $1 for no key update")
        .bind(due.webhook_id)
        .execute(&mut *tx)
        .await?;
    let held = sqlx::query(
        "update webhook_deliveries set state = $3, token = null, response_status = $4, error = $5,
             not_before = now() + make_interval(secs => $6 * (0.8 + 0.4 * random()))
         where id = $1 and token = $2",
    )
    .bind(due.id)
    .bind(due.token)
    .bind(state)
    .bind(attempt.status.map(|status| status as i16))
    .bind(&attempt.error)
    .bind(pause(due.attempts).as_secs_f64())
    .execute(&mut *tx)
    .await?;
    if held.rows_affected() == 0 {
        return Ok(());
    }
    match &attempt.error {
        None => {
            sqlx::query("update webhooks set failing_since = null where id = $1 and failing_since is not null")
                .bind(due.webhook_id)
                .execute(&mut *tx)
                .await?;
        }
        Some(error) => {
            sqlx::query(
                "update webhooks set failing_since = coalesce(failing_since, now()),
                     disabled_at = case when $2 or failing_since < now() - make_interval(secs => $3) then now() end,
                     disabled_reason = case when $2 then 'the receiver answered 410: it is gone'
                         when failing_since < now() - make_interval(secs => $3)
                         then 'nothing could be delivered since ' || failing_since::text || '; the last error: ' || $4 end
                 where id = $1 and disabled_at is null",
            )
            .bind(due.webhook_id)
            .bind(attempt.gone)
            .bind(GIVE_UP.as_secs_f64())
            .bind(error)
            .execute(&mut *tx)
            .await?;
            give_up_waiting(&mut tx, due.webhook_id).await?;
        }
    }
    tx.commit().await
}

/// The pause after the n-th failed attempt: 10 s, 30 s, 90 s, …, 8 h.
fn pause(attempts: i32) -> Duration {
    let exponent = attempts.clamp(1, 12) as u32 - 1;
    Duration::from_secs(10 * 3u64.pow(exponent)).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_attempts_together_take_about_a_day() {
        let pauses: u64 = (1..MAX_ATTEMPTS).map(|n| pause(n).as_secs()).sum();
        assert!((24..27).contains(&(pauses / 3600)), "{pauses}");
        assert_eq!([1, 2, 3].map(|n| pause(n).as_secs()), [10, 30, 90]);
    }
}
