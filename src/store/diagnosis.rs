//! The judgement on an evaluation, from what its shards left behind.

use sqlx::PgConnection;
use sqlx::types::Json;
use uuid::Uuid;

use super::evaluations::{self, Evaluation, State};
use crate::protocol::report::Tally;
use crate::protocol::{Diagnostics, Finding, ModelSpec, Observed, Signs, diagnose};

/// Judges an evaluation that has just succeeded, and keeps the judgement; `None` while it is something else. Call in the
/// transaction that commits its last shard.
pub async fn conclude(tx: &mut PgConnection, id: Uuid) -> Result<Option<Diagnostics>, sqlx::Error> {
    let ended: Option<Evaluation> = sqlx::query_as(evaluations::select("id = $1 and state = 'succeeded'"))
        .bind(id)
        .fetch_optional(&mut *tx)
        .await?;
    let Some(evaluation) = ended else { return Ok(None) };
    let diagnostics = of(tx, &evaluation).await?;
    sqlx::query("update evaluations set diagnostics = $2 where id = $1")
        .bind(id)
        .bind(Json(&diagnostics))
        .execute(tx)
        .await?;
    Ok(Some(diagnostics))
}

/// The judgement on what has been committed so far.
pub async fn of(connection: &mut PgConnection, evaluation: &Evaluation) -> Result<Diagnostics, sqlx::Error> {
    if let Some(Json(concluded)) = &evaluation.diagnostics {
        return Ok(concluded.clone());
    }
    let (Json(spec), Json(of_model)): (Json<ModelSpec>, Json<Vec<Finding>>) =
        sqlx::query_as("select spec, findings from models where id = $1")
            .bind(evaluation.model_id)
            .fetch_one(&mut *connection)
            .await?;
    let mut tallies = vec![Tally::default(); evaluation.conditions.len()];
    for (condition, _, tally) in evaluations::tallies(&mut *connection, evaluation.id).await? {
        tallies[condition].add(&tally);
    }
    let (signs, earlier) = signs(connection, evaluation).await?;
    let observed = Observed {
        conditions: &evaluation.conditions,
        tallies: &tallies,
        signs: &signs,
        seeds: evaluation.seeds.len(),
        stochastic: spec.stochastic,
        complete: evaluation.state == State::Succeeded,
    };
    Ok(diagnose(&[of_model, earlier].concat(), &observed))
}

/// Signs by condition, summed over committed shards, and the findings of shards from before there were signs.
async fn signs(
    connection: &mut PgConnection,
    evaluation: &Evaluation,
) -> Result<(Vec<Signs>, Vec<Finding>), sqlx::Error> {
    type Row = (Vec<i32>, Option<Json<Vec<Signs>>>, Json<Vec<Finding>>);
    let shards: Vec<Row> = sqlx::query_as(
        "select conditions, signs, findings from shards where evaluation_id = $1 and state = 'done' order by ordinal",
    )
    .bind(evaluation.id)
    .fetch_all(connection)
    .await?;
    let mut sums = vec![Signs::default(); evaluation.conditions.len()];
    let mut earlier: Vec<Finding> = Vec::new();
    for (conditions, signs, Json(findings)) in shards {
        for (condition, signs) in conditions.iter().zip(signs.map(|Json(signs)| signs).unwrap_or_default()) {
            sums[*condition as usize].add(&signs);
        }
        for finding in findings {
            if !earlier.contains(&finding) {
                earlier.push(finding);
            }
        }
    }
    Ok((sums, earlier))
}
