//! Collecting what nobody needs any more: what has expired, and files that no row names.
//!
//! Everything here may run beside working servers and workers, and on several machines at once. A file that no row names yet may
//! be about to be named: evidence is written before the row. So files are left alone for a day.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use chrono::Utc;
use futures::TryStreamExt;
use object_store::{ObjectMeta, ObjectStore as _};
use serde::Serialize;
use sqlx::PgPool;
use uuid::Uuid;

use super::retention::Retention;
use super::{Artifacts, StoreError, deletion, models, uploads};

/// Age from which a file that no row names is nobody's. Longer than any attempt, upload or request takes between writing a
/// file and naming it.
pub const GRACE: Duration = Duration::from_secs(24 * 3600);
/// Rows that are handled by one statement.
const BATCH: i64 = 500;
/// Days that the log of a webhook's deliveries reaches back.
const DELIVERY_DAYS: i32 = 30;
/// Hours that answers to requests with an `Idempotency-Key` are kept.
const ANSWER_HOURS: i32 = 24;

/// What to collect.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    pub retention: Retention,
    /// Hours after which an upload that does not grow is deleted.
    pub upload_hours: u32,
    /// Only count.
    pub dry_run: bool,
}

/// What was removed (or would be).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Removed {
    pub count: u64,
    /// Of files; rows count as nothing.
    pub bytes: u64,
}

/// By what it was, in words.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Sweep(pub BTreeMap<&'static str, Removed>);

impl Sweep {
    fn add(&mut self, what: &'static str, count: u64, bytes: u64) {
        if count > 0 {
            let entry = self.0.entry(what).or_default();
            entry.count += count;
            entry.bytes += bytes;
        }
    }

    pub fn bytes(&self) -> u64 {
        self.0.values().map(|removed| removed.bytes).sum()
    }
}

/// Removes what has expired: a matter of rows that say so. Cheap enough for every hour.
pub async fn expire(pool: &PgPool, artifacts: &Artifacts, rules: &Rules) -> Result<Sweep, StoreError> {
    let mut sweep = Sweep::default();
    witnesses(pool, artifacts, rules, &mut sweep).await?;
    logs(pool, artifacts, rules, &mut sweep).await?;
    unused_models(pool, artifacts, rules, &mut sweep).await?;
    for upload in uploads::stale(pool, rules.upload_hours).await? {
        if rules.dry_run || uploads::expire(pool, artifacts, upload.id, rules.upload_hours).await? {
            sweep.add("uploads that grew no more", 1, upload.received as u64);
        }
    }
    rows(pool, rules, &mut sweep).await?;
    Ok(sweep)
}

/// The evaluations that ended so many days ago, by their owner's rule or else the installation's.
macro_rules! ended_before {
    ($column:literal) => {
        concat!(
            "e.finished_at < now() - make_interval(days => coalesce(r.",
            $column,
            ", $1))
             and coalesce(r.",
            $column,
            ", $1) > 0"
        )
    };
}

async fn witnesses(pool: &PgPool, artifacts: &Artifacts, rules: &Rules, sweep: &mut Sweep) -> Result<(), StoreError> {
    let mut last = 0i64;
    loop {
        let found: Vec<(i64, Uuid, String)> = sqlx::query_as(concat!(
            "select s.id, e.id, s.witnesses_key from shards s
             join evaluations e on e.id = s.evaluation_id left join retention r on r.owner = e.owner
             where s.id > $2 and s.witnesses_key is not null and ",
            ended_before!("witness_days"),
            " order by s.id limit $3"
        ))
        .bind(rules.retention.witness_days as i32)
        .bind(last)
        .bind(BATCH)
        .fetch_all(pool)
        .await?;
        let Some(&(id, ..)) = found.last() else { return Ok(()) };
        last = id;
        for (_, _, key) in &found {
            sweep.add("witnesses past their time", 1, artifacts.size(key).await?);
        }
        if rules.dry_run {
            continue;
        }
        let (shards, evaluations): (Vec<i64>, HashSet<Uuid>) = found.iter().map(|(s, e, _)| (*s, *e)).unzip();
        let evaluations: Vec<Uuid> = evaluations.into_iter().collect();
        let mut tx = pool.begin().await?;
        sqlx::query("update evaluations set witnesses_expired_at = now(), version = version + 1 where id = any($1)")
            .bind(&evaluations)
            .execute(&mut *tx)
            .await?;
        sqlx::query("update shards set witnesses_key = null where id = any($1)")
            .bind(&shards)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        for (_, _, key) in &found {
            artifacts.delete(key).await?;
        }
    }
}

async fn logs(pool: &PgPool, artifacts: &Artifacts, rules: &Rules, sweep: &mut Sweep) -> Result<(), StoreError> {
    let mut last = Uuid::nil();
    loop {
        let found: Vec<(Uuid, String, i32)> = sqlx::query_as(concat!(
            "select a.token, a.log_key, a.log_bytes from shard_attempts a
             join evaluations e on e.id = a.evaluation_id left join retention r on r.owner = e.owner
             where a.token > $2 and a.log_key is not null and ",
            ended_before!("log_days"),
            " order by a.token limit $3"
        ))
        .bind(rules.retention.log_days as i32)
        .bind(last)
        .bind(BATCH)
        .fetch_all(pool)
        .await?;
        let Some((token, ..)) = found.last() else { break };
        last = *token;
        found.iter().for_each(|(_, _, bytes)| sweep.add("logs past their time", 1, *bytes as u64));
        if rules.dry_run {
            continue;
        }
        let tokens: Vec<Uuid> = found.iter().map(|(token, ..)| *token).collect();
        sqlx::query("update shard_attempts set log_key = null where token = any($1)")
            .bind(&tokens)
            .execute(pool)
            .await?;
        for (_, key, _) in &found {
            artifacts.delete(key).await?;
        }
    }
    let old = concat!(
        "from events v join evaluations e on e.id = v.evaluation_id left join retention r on r.owner = e.owner
         where v.kind <> 'state' and ",
        ended_before!("log_days")
    );
    let old = if rules.dry_run {
        format!("select count(*) {old}")
    } else {
        format!(
            "with old as (select v.id {old} limit {BATCH}),
                 gone as (delete from events where id in (select id from old) returning 1) select count(*) from gone"
        )
    };
    loop {
        let count: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(old.as_str()))
            .bind(rules.retention.log_days as i32)
            .fetch_one(pool)
            .await?;
        sweep.add("events past their time", count as u64, 0);
        if rules.dry_run || count < BATCH {
            return Ok(());
        }
    }
}

async fn unused_models(
    pool: &PgPool,
    artifacts: &Artifacts,
    rules: &Rules,
    sweep: &mut Sweep,
) -> Result<(), StoreError> {
    let found: Vec<(Uuid, i64)> = sqlx::query_as(
        "select m.id, m.bytes from models m left join retention r on r.owner = m.owner
         where m.deleted_at is null and coalesce(r.model_days, $1) > 0
           and m.used_at < now() - make_interval(days => coalesce(r.model_days, $1))
           and not exists (select 1 from evaluations e where e.model_id = m.id
               and (e.finished_at is null or e.finished_at > now() - make_interval(days => coalesce(r.model_days, $1))))
         order by m.id",
    )
    .bind(rules.retention.model_days as i32)
    .fetch_all(pool)
    .await?;
    for (id, bytes) in found {
        if rules.dry_run {
            sweep.add("models past their time", 1, bytes as u64);
        } else if let models::Deletion::Done { sha256 } = models::delete(pool, None, id).await? {
            // Bytes that another model has as well are not gone.
            let gone = models::forget_artifact(pool, artifacts, &sha256).await?;
            sweep.add("models past their time", 1, if gone { bytes as u64 } else { 0 });
        }
    }
    Ok(())
}

/// Rows that only get old.
async fn rows(pool: &PgPool, rules: &Rules, sweep: &mut Sweep) -> Result<(), StoreError> {
    let tables = [
        ("stored answers", "idempotency_keys where created_at < now() - make_interval(hours => $1)", ANSWER_HOURS),
        (
            "webhook deliveries",
            "webhook_deliveries where state <> 'waiting' and created_at < now() - make_interval(days => $1)",
            DELIVERY_DAYS,
        ),
        (
            "marks of deleted evaluations",
            "deleted_evaluations where created_at < now() - make_interval(hours => $1)",
            24,
        ),
    ];
    for (what, from, age) in tables {
        let sql = match rules.dry_run {
            true => format!("select count(*) from {from}"),
            false => format!("with gone as (delete from {from} returning 1) select count(*) from gone"),
        };
        let count: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).bind(age).fetch_one(pool).await?;
        sweep.add(what, count as u64, 0);
    }
    Ok(())
}

/// Removes files that no row names and that are older than [`GRACE`]. Lists the whole store but datasets. A database that
/// knows of nothing while the store is full is taken for another installation's: [`StoreError::Strangers`].
pub async fn orphans(pool: &PgPool, artifacts: &Artifacts, dry_run: bool) -> Result<Sweep, StoreError> {
    let mut sweep = Sweep::default();
    let known: bool = sqlx::query_scalar("select exists (select 1 from models) or exists (select 1 from evaluations)")
        .fetch_one(pool)
        .await?;
    if !known && !artifacts.is_empty("models").await? {
        return Err(StoreError::Strangers);
    }
    for folder in deletion::FOLDERS.into_iter().chain(["parts", "models", "uploads"]) {
        let prefix = object_store::path::Path::from(folder);
        let store = artifacts.store();
        let mut listed = store.list(Some(&prefix)).try_chunks(BATCH as usize);
        while let Some(objects) = listed.try_next().await.map_err(|e| super::artifacts::ArtifactError::from(e.1))? {
            let old: Vec<ObjectMeta> = objects
                .into_iter()
                .filter(|o| (Utc::now() - o.last_modified).to_std().is_ok_and(|age| age > GRACE))
                .collect();
            let named = named(pool, folder, &old).await?;
            for object in old.iter().filter(|o| !named.contains(o.location.as_ref())) {
                if !dry_run {
                    remove(pool, artifacts, folder, object.location.as_ref()).await?;
                }
                sweep.add("files that nothing names", 1, object.size);
            }
        }
    }
    if !dry_run {
        sweep.add("files that were never written to their end", artifacts.sweep_uploads(GRACE).await? as u64, 0);
    }
    Ok(sweep)
}

async fn remove(pool: &PgPool, artifacts: &Artifacts, folder: &str, key: &str) -> Result<(), StoreError> {
    match key.strip_prefix("models/") {
        // Asks again, holding back whoever is about to refer to it.
        Some(sha256) if folder == "models" => models::forget_artifact(pool, artifacts, sha256).await.map(drop),
        _ => Ok(artifacts.delete(key).await?),
    }
}

/// Those of these files that must stay: rows name them, or they are none of ours.
async fn named(pool: &PgPool, folder: &str, files: &[ObjectMeta]) -> Result<HashSet<String>, StoreError> {
    let keys: Vec<String> = files.iter().map(|file| file.location.to_string()).collect();
    let evaluation = |key: &String| key.split('/').nth(1).and_then(|id| id.parse::<Uuid>().ok());
    let rows = match folder {
        // What is about to be copied to its place is younger than a day.
        "uploads" => return Ok(HashSet::new()),
        "parts" => "select key from upload_parts where key = any($1)",
        "models" => "select 'models/' || sha256 from models where deleted_at is null and 'models/' || sha256 = any($1)",
        // Evidence and logs: found by their evaluation, for whose shards there is an index.
        _ => {
            let strangers = keys.iter().filter(|key| evaluation(key).is_none()).cloned();
            let mut named: HashSet<String> = strangers.collect();
            let evaluations: HashSet<Uuid> = keys.iter().filter_map(evaluation).collect();
            let evaluations: Vec<Uuid> = evaluations.into_iter().collect();
            let rows = match folder {
                "verdicts" => {
                    "select verdicts_key from shards where evaluation_id = any($1) and verdicts_key is not null"
                }
                "witnesses" => {
                    "select witnesses_key from shards where evaluation_id = any($1) and witnesses_key is not null"
                }
                "logs" => "select log_key from shard_attempts where evaluation_id = any($1) and log_key is not null",
                // Checkpoints: of shards that may still be gone on with.
                _ => {
                    let open: Vec<Uuid> =
                        sqlx::query_scalar("select id from evaluations where id = any($1) and finished_at is null")
                            .bind(&evaluations)
                            .fetch_all(pool)
                            .await?;
                    named.extend(
                        keys.iter().filter(|key| evaluation(key).is_some_and(|id| open.contains(&id))).cloned(),
                    );
                    return Ok(named);
                }
            };
            let rows: Vec<String> = sqlx::query_scalar(rows).bind(&evaluations).fetch_all(pool).await?;
            named.extend(rows);
            return Ok(named);
        }
    };
    let rows: Vec<String> = sqlx::query_scalar(rows).bind(&keys).fetch_all(pool).await?;
    Ok(rows.into_iter().collect())
}
