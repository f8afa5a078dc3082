//! Tables assembled from database rows.

use std::collections::HashMap;

use serde_json::{Value, json};
use sqlx::PgPool;
use uuid::Uuid;

use super::evaluations::{self, Evaluation, State};
use super::{diagnosis, models, shards};
use crate::protocol::report::{self, Row, Table, Tally};
use crate::protocol::{ConditionKind, Finding};

/// The table of an evaluation, of what has been committed so far.
pub async fn table(pool: &PgPool, evaluation: &Evaluation) -> Result<Table, sqlx::Error> {
    let model = models::get_even_deleted(pool, evaluation.model_id).await?.ok_or(sqlx::Error::RowNotFound)?;
    let tallies = evaluations::tallies(pool, evaluation.id).await?;
    let conditions = rows(evaluation, &tallies);
    let (total, corruption) = shards::cpu_seconds(pool, evaluation.id).await?;
    let cpu_time = report::cpu_time(total, corruption);
    Ok(Table {
        evaluation: evaluation.id.to_string(),
        complete: evaluation.state == State::Succeeded,
        columns: report::columns(&conditions, evaluation.protocol.aggregate),
        conditions,
        diagnostics: diagnosis::of(&mut *pool.acquire().await?, evaluation).await?,
        provenance: provenance(evaluation, &model, sandbox(pool, evaluation.id).await?, cpu_time),
    })
}

/// The rows of an evaluation's table, from `(condition, seed, tally)`.
pub fn rows(evaluation: &Evaluation, tallies: &[(usize, i64, Tally)]) -> Vec<Row> {
    let of = |i: usize| -> Vec<(i64, Tally)> {
        tallies.iter().filter(|(condition, ..)| *condition == i).map(|(_, seed, t)| (*seed, t.clone())).collect()
    };
    evaluation.conditions.iter().enumerate().map(|(i, condition)| report::row(condition, &of(i))).collect()
}

/// What the model ran in; a list where shards differ, null before the first has been committed.
async fn sandbox(pool: &PgPool, evaluation: Uuid) -> Result<Value, sqlx::Error> {
    let mut seen: Vec<Value> = sqlx::query_scalar(
        "select distinct coalesce(sandbox, '\"off\"') from shards where evaluation_id = $1 and state = 'done'",
    )
    .bind(evaluation)
    .fetch_all(pool)
    .await?;
    Ok(match seen.len() {
        0 => Value::Null,
        1 => seen.remove(0),
        _ => Value::Array(seen),
    })
}

fn provenance(evaluation: &Evaluation, model: &models::Model, sandbox: Value, cpu_time: Value) -> Value {
    json!({
        "model": {
            "id": model.id, "name": model.name, "identity": model.identity, "sha256": model.sha256, "spec": model.spec.0,
        },
        "dataset": evaluation.dataset.0,
        "slice": {"offset": evaluation.first_image, "images": evaluation.images},
        "protocol": {"hash": evaluation.protocol.hash(), "document": evaluation.protocol.0},
        "seeds": evaluation.seeds,
        "profile": evaluation.profile.as_ref().map(|p| &p.0),
        "generation": evaluation.generation,
        "sandbox": sandbox,
        "software": {"gauntlet": env!("CARGO_PKG_VERSION")},
        "state": evaluation.state,
        "outcome": evaluation.outcome.as_ref().map(|o| &o.0),
        "cpu_time": cpu_time,
        "submitted_at": evaluation.created_at,
        "started_at": evaluation.started_at,
        "finished_at": evaluation.finished_at,
    })
}

/// A finished evaluation as a leaderboard shows it.
pub struct Standing {
    pub evaluation: Evaluation,
    pub model_name: String,
    pub rows: Vec<Row>,
    pub findings: Vec<Finding>,
}

/// Of what the owner (anybody, if `None`) may read: the newest finished evaluation per model, dataset slice, seeds and resolved document of the protocols of this name.
pub async fn standings(pool: &PgPool, owner: Option<&str>, protocol: &str) -> Result<Vec<Standing>, sqlx::Error> {
    #[derive(sqlx::FromRow)]
    struct Finished {
        #[sqlx(flatten)]
        evaluation: Evaluation,
        model_name: String,
        model_findings: sqlx::types::Json<Vec<Finding>>,
    }
    let finished: Vec<Finished> = sqlx::query_as(
        "select distinct on (e.model_id, e.dataset_hash, e.first_image, e.images, e.seeds, e.protocol)
             e.*, m.name as model_name, m.findings as model_findings
         from evaluations e join models m on m.id = e.model_id
         where e.protocol_name = $1 and e.state = 'succeeded' and (e.shared or $2::text is null or e.owner = $2)
         order by e.model_id, e.dataset_hash, e.first_image, e.images, e.seeds, e.protocol, e.finished_at desc",
    )
    .bind(protocol)
    .bind(owner)
    .fetch_all(pool)
    .await?;
    let ids: Vec<Uuid> = finished.iter().map(|f| f.evaluation.id).collect();
    let counts: Vec<(Uuid, i32, i64, i64, i64)> = sqlx::query_as(
        "select evaluation_id, condition, seed, sum(n)::bigint, sum(correct)::bigint from tallies
         where evaluation_id = any($1) group by 1, 2, 3 order by 1, 2, 3",
    )
    .bind(&ids)
    .fetch_all(pool)
    .await?;
    let mut distances = HashMap::new();
    let searched = |f: &&Finished| f.evaluation.conditions.iter().any(|c| matches!(c.kind, ConditionKind::MinNorm(_)));
    for f in finished.iter().filter(searched) {
        distances.insert(f.evaluation.id, evaluations::tallies(pool, f.evaluation.id).await?);
    }
    let standing = |f: Finished| {
        if let Some(tallies) = distances.get(&f.evaluation.id) {
            return Standing {
                rows: rows(&f.evaluation, tallies),
                evaluation: f.evaluation,
                model_name: f.model_name,
                findings: f.model_findings.0,
            };
        }
        let tallies: Vec<(usize, i64, Tally)> = counts
            .iter()
            .filter(|(id, ..)| *id == f.evaluation.id)
            .map(|(_, condition, seed, n, correct)| {
                let tally = Tally { n: *n as u64, correct: *correct as u64, ..Tally::default() };
                (*condition as usize, *seed, tally)
            })
            .collect();
        Standing {
            rows: rows(&f.evaluation, &tallies),
            evaluation: f.evaluation,
            model_name: f.model_name,
            findings: f.model_findings.0,
        }
    };
    Ok(finished.into_iter().map(standing).collect())
}
