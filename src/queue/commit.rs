//! Committing a shard: results and completion in one transaction, once.

use serde::Serialize;
use sqlx::types::Json;
use sqlx::{Acquire, PgConnection, PgPool};
use uuid::Uuid;

use super::{Lease, LeaseError};
use crate::protocol::report::{Broken, Tally};
use crate::protocol::{Diagnostics, NumericProfile, Sandbox, Signs};
use crate::store::{Outcome, diagnosis};

/// What a finished shard leaves behind. The artifacts were written before.
#[derive(Debug)]
pub struct ShardResult {
    /// One per condition of the shard: index into the evaluation's conditions, and its counts.
    pub tallies: Vec<(i32, Tally)>,
    pub verdicts_key: String,
    pub witnesses_key: Option<String>,
    /// One per condition of the shard.
    pub signs: Vec<Signs>,
    /// What the model ran in.
    pub sandbox: Sandbox,
    pub seconds: f64,
    /// Processor seconds of the evaluator, and its part spent on corrupting images.
    pub cpu_seconds: f64,
    pub corruption_seconds: f64,
}

/// What a commit brought about.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Committed {
    /// The judgement on the evaluation, if this was its last result.
    pub diagnostics: Option<Diagnostics>,
    /// Seconds from the evaluation's submission, if this was its first result.
    pub first_result_after: Option<f64>,
}

/// How a result gets in. Both ways lock the evaluation before the shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// A statement by itself, for any result but the last. The evaluation is locked while rows are written, not while the disk is
    /// waited for, so that workers that commit to one evaluation wait for the disk together.
    Short,
    /// In a transaction that goes on: what may be the last result, or the evaluation was stopped.
    Long,
}

/// The function is in the migrations: row by row, on what is there once the evaluation is locked.
const COUNT: &str =
    "select done, age from commit_shard($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) where done is not null";

#[derive(sqlx::FromRow)]
struct Counted {
    /// Results that the evaluation has now.
    done: i32,
    /// Seconds since it was submitted.
    age: f64,
}

impl Counted {
    fn first_result_after(&self) -> Option<f64> {
        (self.done == 1).then_some(self.age)
    }
}

#[derive(Serialize)]
struct TallyRow<'a> {
    condition: i32,
    n: u64,
    correct: u64,
    broken: &'a std::collections::BTreeMap<String, Broken>,
    forwards: u64,
    backwards: u64,
}

impl Lease {
    /// Records the evaluation's numeric profile if none is fixed yet, and returns the one in force.
    pub async fn fix_profile(&self, pool: &PgPool, profile: &NumericProfile) -> Result<NumericProfile, LeaseError> {
        let mut tx = pool.begin().await?;
        lock_evaluation(&mut tx, self.evaluation).await?;
        let held: Option<i64> =
            sqlx::query_scalar("select id from shards where id = $1 and lease_token = $2 and state = 'running'")
                .bind(self.shard)
                .bind(self.token)
                .fetch_optional(&mut *tx)
                .await?;
        held.ok_or(LeaseError::Lost)?;
        let fixed: Json<NumericProfile> = sqlx::query_scalar(
            "update evaluations set profile = coalesce(profile, $2) where id = $1 returning profile",
        )
        .bind(self.evaluation)
        .bind(Json(profile))
        .fetch_one(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(fixed.0)
    }

    /// Commits the shard. [`LeaseError::Lost`] means that nothing was written, because the lease is somebody else's. Said
    /// again after its answer was lost, it changes nothing and succeeds.
    pub async fn commit(&self, pool: &PgPool, result: &ShardResult) -> Result<Committed, LeaseError> {
        let mut connection = pool.acquire().await?;
        if let Some(counted) = self.count(&mut connection, result, Way::Short).await? {
            until_on_disk(&mut connection).await?;
            return Ok(Committed { diagnostics: None, first_result_after: counted.first_result_after() });
        }
        let mut tx = connection.begin().await?;
        let Some(counted) = self.count(&mut tx, result, Way::Long).await? else {
            if !is_ours(&mut tx, self.shard, result).await? {
                return Err(LeaseError::Lost);
            }
            tx.rollback().await?;
            until_on_disk(&mut connection).await?;
            return Ok(Committed::default());
        };
        settle(&mut tx, self.evaluation).await?;
        let diagnostics = diagnosis::conclude(&mut tx, self.evaluation).await?;
        tx.commit().await?;
        Ok(Committed { diagnostics, first_result_after: counted.first_result_after() })
    }

    /// Writes the result and counts it; `None` if the shard is not this lease's, or this is not the way for it.
    async fn count(
        &self,
        connection: &mut PgConnection,
        result: &ShardResult,
        way: Way,
    ) -> Result<Option<Counted>, sqlx::Error> {
        let rows: Vec<TallyRow> = result
            .tallies
            .iter()
            .map(|(condition, t)| TallyRow {
                condition: *condition,
                n: t.n,
                correct: t.correct,
                broken: &t.broken,
                forwards: t.forwards,
                backwards: t.backwards,
            })
            .collect();
        sqlx::query_as(COUNT)
            .bind(self.evaluation)
            .bind(self.shard)
            .bind(self.token)
            .bind(&result.verdicts_key)
            .bind(&result.witnesses_key)
            .bind(Json(&result.signs))
            .bind(result.seconds)
            .bind(Json(&result.sandbox))
            .bind(result.cpu_seconds)
            .bind(result.corruption_seconds)
            .bind(Json(rows))
            .bind(way == Way::Long)
            .fetch_optional(connection)
            .await
    }

    /// Gives the shard back untouched, without counting the attempt; of a stopped evaluation it becomes cancelled.
    pub async fn release(&self, pool: &PgPool) -> Result<(), LeaseError> {
        let mut tx = pool.begin().await?;
        lock_evaluation(&mut tx, self.evaluation).await?;
        let released = sqlx::query(
            "update shards s set lease_token = null, lease_expires_at = null, worker_id = null, progress = 0,
                 state = case when e.state in ('queued', 'running') then 'queued' else 'cancelled' end,
                 attempts = s.attempts - 1
             from evaluations e
             where s.id = $1 and s.lease_token = $2 and s.state = 'running' and e.id = s.evaluation_id",
        )
        .bind(self.shard)
        .bind(self.token)
        .execute(&mut *tx)
        .await?;
        if released.rows_affected() == 0 {
            return Err(LeaseError::Lost);
        }
        settle(&mut tx, self.evaluation).await?;
        Ok(tx.commit().await?)
    }
}

/// Returns once everything that was committed before is on disk: the log is written in order.
async fn until_on_disk(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query("select pg_logical_emit_message(true, 'gauntlet', '')").execute(connection).await.map(drop)
}

/// Whether the shard is done with this very result; the name of its evidence is this attempt's alone.
async fn is_ours(tx: &mut PgConnection, shard: i64, result: &ShardResult) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("select exists (select 1 from shards where id = $1 and state = 'done' and verdicts_key = $2)")
        .bind(shard)
        .bind(&result.verdicts_key)
        .fetch_one(tx)
        .await
}

/// Evaluation first, shards second: the one lock order.
pub(super) async fn lock_evaluation(tx: &mut PgConnection, id: Uuid) -> Result<(), sqlx::Error> {
    sqlx::query("select 1 from evaluations where id = $1 for update").bind(id).execute(tx).await.map(drop)
}

/// Ends an evaluation whose shards have all ended: succeeded when all are done, cancelled when it was cancelling.
pub(super) async fn settle(tx: &mut PgConnection, id: Uuid) -> Result<(), sqlx::Error> {
    let completed = Outcome::new("completed", "every shard is done", "worker");
    let cancelled = Outcome::new("cancelled", "cancelled on request", "user");
    sqlx::query(
        "update evaluations e set
             state = case when e.state = 'cancelling' then 'cancelled' else 'succeeded' end,
             outcome = case when e.state = 'cancelling' then $3 else $2 end,
             finished_at = now(), version = version + 1
         where e.id = $1 and e.state in ('running', 'queued', 'cancelling')
           and (e.state = 'cancelling' or (e.planned and e.shards_done = e.shards_total))
           and not exists (select 1 from shards s where s.evaluation_id = e.id and s.state in ('queued', 'running'))",
    )
    .bind(id)
    .bind(Json(completed))
    .bind(Json(cancelled))
    .execute(tx)
    .await
    .map(drop)
}
