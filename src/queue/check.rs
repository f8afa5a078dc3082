//! Model checks: the small queue beside the shards.

use std::time::Duration;

use sqlx::PgPool;
use sqlx::types::Json;
use uuid::Uuid;

use super::{LeaseError, MAX_ATTEMPTS};
use crate::protocol::{Capabilities, Finding};
use crate::store::Outcome;
use crate::store::evaluations::{fail_waiting, plan_waiting};
use crate::store::models::{self, Model, ProbeReport, Rejection};

/// The right to say what a model is.
#[must_use = "a check must be finished or given back"]
#[derive(Debug)]
pub struct CheckLease {
    pub model: Model,
    /// Hash of a dataset whose images have the model's shape and that an evaluation of it names, if any.
    pub dataset: Option<String>,
    token: Uuid,
}

/// Leases an unchecked model: of the owner with the fewest checks of late; among those one that was not tried before, then the
/// one put off longest ago, then the oldest. A model that evaluations wait for is checked where one of them could run. A check whose worker fell silent counts as unchecked.
pub async fn claim_check(
    pool: &PgPool,
    capabilities: &Capabilities,
    lease: Duration,
) -> Result<Option<CheckLease>, sqlx::Error> {
    let token = Uuid::new_v4();
    let id: Option<Uuid> = sqlx::query_scalar(
        "with lately as (
             select owner, count(*) as checks from models
             where checked_at > now() - interval '10 minutes' or (state = 'checking' and check_attempts > 0) group by owner
         )
         update models set check_token = $1, check_expires_at = now() + make_interval(secs => $2), check_attempts = check_attempts + 1
         where id = (select m.id from models m left join lately l on l.owner = m.owner
                     where m.state = 'checking' and m.deleted_at is null
                     and (m.check_expires_at is null or m.check_expires_at < now()) and m.check_attempts < $3
                     and (not exists (select 1 from evaluations e where e.model_id = m.id and e.state in ('queued', 'running'))
                          or exists (select 1 from evaluations e where e.model_id = m.id and e.state in ('queued', 'running')
                                     and meets($4, e.needs)))
                     order by coalesce(l.checks, 0), m.check_attempts, m.check_expires_at nulls first, m.created_at for update of m skip locked limit 1)
         returning id",
    )
    .bind(token)
    .bind(lease.as_secs_f64())
    .bind(MAX_ATTEMPTS)
    .bind(Json(capabilities))
    .fetch_optional(pool)
    .await?;
    let Some(id) = id else { return Ok(None) };
    let model = models::get_even_deleted(pool, id).await?.ok_or(sqlx::Error::RowNotFound)?;
    let dataset =
        sqlx::query_scalar("select dataset_hash from evaluations where model_id = $1 order by created_at limit 1")
            .bind(id)
            .fetch_optional(pool)
            .await?;
    Ok(Some(CheckLease { model, dataset, token }))
}

impl CheckLease {
    /// Extends the lease.
    pub async fn heartbeat(&self, pool: &PgPool, lease: Duration) -> Result<(), LeaseError> {
        let kept = sqlx::query(
            "update models set check_expires_at = now() + make_interval(secs => $3)
             where id = $1 and check_token = $2 and state = 'checking' and deleted_at is null",
        )
        .bind(self.model.id)
        .bind(self.token)
        .bind(lease.as_secs_f64())
        .execute(pool)
        .await?;
        if kept.rows_affected() == 1 { Ok(()) } else { Err(LeaseError::Lost) }
    }

    /// The model is usable: waiting evaluations get their shards.
    pub async fn accept(&self, pool: &PgPool, findings: &[Finding], probe: &ProbeReport) -> Result<(), LeaseError> {
        let mut tx = pool.begin().await?;
        let done = sqlx::query(
            "update models set state = 'ready', findings = $3, probe = $4, checked_at = now(), check_token = null,
                 check_expires_at = null, version = version + 1
             where id = $1 and check_token = $2 and state = 'checking'",
        )
        .bind(self.model.id)
        .bind(self.token)
        .bind(Json(findings))
        .bind(Json(probe))
        .execute(&mut *tx)
        .await?;
        if done.rows_affected() == 0 {
            return Err(LeaseError::Lost);
        }
        let model = Model { probe: Some(Json(probe.clone())), ..self.model.clone() };
        plan_waiting(&mut tx, &model).await?;
        Ok(tx.commit().await?)
    }

    /// The model cannot be evaluated: waiting evaluations end with the same reason.
    pub async fn reject(&self, pool: &PgPool, rejection: &Rejection) -> Result<(), LeaseError> {
        let mut tx = pool.begin().await?;
        let done = sqlx::query(
            "update models set state = 'rejected', rejection = $3, checked_at = now(), check_token = null,
                 check_expires_at = null, version = version + 1
             where id = $1 and check_token = $2 and state = 'checking'",
        )
        .bind(self.model.id)
        .bind(self.token)
        .bind(Json(rejection))
        .execute(&mut *tx)
        .await?;
        if done.rows_affected() == 0 {
            return Err(LeaseError::Lost);
        }
        let detail = format!("the model was rejected ({}): {}", rejection.code, rejection.found);
        fail_waiting(&mut tx, self.model.id, &Outcome::new("model_rejected", detail, "worker")).await?;
        Ok(tx.commit().await?)
    }

    /// The check could not be carried out here and now, whatever the model. It is tried again after `delay`, and not counted.
    pub async fn postpone(&self, pool: &PgPool, delay: Duration) -> Result<(), LeaseError> {
        let postponed = sqlx::query(
            "update models set check_token = null, check_attempts = check_attempts - 1,
                 check_expires_at = now() + make_interval(secs => $3)
             where id = $1 and check_token = $2 and state = 'checking'",
        )
        .bind(self.model.id)
        .bind(self.token)
        .bind(delay.as_secs_f64())
        .execute(pool)
        .await?;
        if postponed.rows_affected() == 1 { Ok(()) } else { Err(LeaseError::Lost) }
    }

    /// The check could not be carried out, through no fault that is known to be the model's. It is tried again after
    /// `delay`; after `most` attempts the model is rejected with this reason.
    pub async fn give_back(
        &self,
        pool: &PgPool,
        reason: &Rejection,
        delay: Duration,
        most: i32,
    ) -> Result<(), LeaseError> {
        let attempts: Option<i32> = sqlx::query_scalar(
            "update models set check_token = case when check_attempts < $3 then null else check_token end,
                 check_expires_at = case when check_attempts < $3 then now() + make_interval(secs => $4) else check_expires_at end
             where id = $1 and check_token = $2 and state = 'checking' returning check_attempts",
        )
        .bind(self.model.id)
        .bind(self.token)
        .bind(most)
        .bind(delay.as_secs_f64())
        .fetch_optional(pool)
        .await?;
        match attempts {
            None => Err(LeaseError::Lost),
            Some(n) if n < most => Ok(()),
            Some(_) => self.reject(pool, reason).await,
        }
    }
}

/// Rejects models whose every check killed its worker.
pub(super) async fn reap_checks(pool: &PgPool) -> Result<(), sqlx::Error> {
    let reason = Rejection {
        code: "check_lost".into(),
        found: format!("the worker that checked it stopped answering, {MAX_ATTEMPTS} times"),
    };
    let mut tx = pool.begin().await?;
    let lost: Vec<Uuid> = sqlx::query_scalar(
        "update models set state = 'rejected', rejection = $2, checked_at = now(), check_token = null,
             check_expires_at = null, version = version + 1
         where state = 'checking' and check_attempts >= $1 and check_expires_at < now() returning id",
    )
    .bind(MAX_ATTEMPTS)
    .bind(Json(&reason))
    .fetch_all(&mut *tx)
    .await?;
    for model in lost {
        let detail = format!("the model was rejected ({}): {}", reason.code, reason.found);
        fail_waiting(&mut tx, model, &Outcome::new("model_rejected", detail, "worker")).await?;
    }
    tx.commit().await
}
