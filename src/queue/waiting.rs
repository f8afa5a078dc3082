//! Why an evaluation is not running yet, in words its owner can act on.

use serde::{Deserialize, Serialize};
use sqlx::PgPool;

use crate::protocol::{Needs, gib};
use crate::store::evaluations::{Evaluation, State};
use crate::store::models;
use crate::store::workers::{self, Crew, SandboxState};

/// The reason a queued evaluation waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Waiting {
    /// `model_check`, `needs`, `no_worker`, `queue`, or `retry`.
    pub code: String,
    pub sentence: String,
    /// Evaluations that will be served first.
    pub position: i64,
}

/// `None` once the evaluation runs or has ended.
pub async fn waiting(pool: &PgPool, evaluation: &Evaluation) -> Result<Option<Waiting>, sqlx::Error> {
    if evaluation.state.is_terminal() || evaluation.state == State::Cancelling {
        return Ok(None);
    }
    let running: i64 = sqlx::query_scalar("select count(*) from shards where evaluation_id = $1 and state = 'running'")
        .bind(evaluation.id)
        .fetch_one(pool)
        .await?;
    if running > 0 {
        return Ok(None);
    }
    let position: i64 = sqlx::query_scalar(
        "select count(*) from evaluations where state in ('queued', 'running') and id <> $1
         and (priority > $2 or (priority = $2 and created_at < $3))",
    )
    .bind(evaluation.id)
    .bind(evaluation.priority)
    .bind(evaluation.created_at)
    .fetch_one(pool)
    .await?;
    let say = |code: &str, sentence: String| Ok(Some(Waiting { code: code.into(), sentence, position }));
    let profile = evaluation.profile.as_deref();
    let crew = workers::crew(pool, profile, &evaluation.needs).await?;
    if crew.fitting == 0 {
        let like =
            profile.map_or(String::new(), |p| format!(" with {} ({})", p.platform.hardware, p.platform.libtorch));
        let refuses = |state: &SandboxState| matches!(state, SandboxState::Unavailable(_));
        return if workers::unconfined(pool).await?.iter().any(refuses) {
            say(
                "no_worker",
                "the connected workers refuse models, because they cannot have a sandbox; /readyz says why".into(),
            )
        } else {
            say("no_worker", format!("no worker{like} is connected: start one with `gauntlet worker`"))
        };
    }
    if crew.capable == 0 {
        return say("needs", unmet(&evaluation.needs, &crew));
    }
    let model = models::get_even_deleted(pool, evaluation.model_id).await?;
    if model.is_some_and(|m| m.state == "checking") {
        return say("model_check", "the model is still being checked".into());
    }
    if position > 0 {
        return say("queue", format!("{position} evaluation(s) were submitted before or have a higher priority"));
    }
    let retry: Option<(Option<String>, f64)> = sqlx::query_as(
        "select error ->> 'code', greatest(0, extract(epoch from not_before - now()))::float8 from shards
         where evaluation_id = $1 and state = 'queued' and not_before > now() order by not_before limit 1",
    )
    .bind(evaluation.id)
    .fetch_optional(pool)
    .await?;
    match retry {
        Some((code, seconds)) => {
            let code = code.unwrap_or_else(|| "unknown".into());
            say("retry", format!("an attempt failed ({code}); the next one starts in {seconds:.0} s"))
        }
        None if crew.busy >= crew.capable => {
            let which = if evaluation.needs.is_empty() { "" } else { " that meets its needs" };
            say("queue", format!("every worker{which} is busy ({} of {})", crew.busy, crew.capable))
        }
        None => say("queue", "a worker will take it within seconds".into()),
    }
}

/// What no connected worker has, and how near they come.
fn unmet(needs: &Needs, crew: &Crew) -> String {
    let nearest = match (needs.gpu_memory_bytes, crew.most_gpu_memory) {
        (Some(_), Some(most)) => format!(" (the largest GPU has {})", gib(most as u64)),
        (Some(_), None) => " (no worker has a GPU whose memory is known)".into(),
        (None, _) => String::new(),
    };
    format!(
        "none of {} connected worker(s) has {needs}{nearest}: start one that has, or submit with other needs",
        crew.fitting
    )
}
