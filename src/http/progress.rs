//! How far an evaluation is, and how long it may still take.

use chrono::Utc;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::protocol::Subject;
use crate::protocol::plan::forward_equivalents;
use crate::store::evaluations::{Evaluation, State};
use crate::store::shards::GroupProgress;

/// Verdicts: one per image, condition and seed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Progress {
    /// Committed, or reported by running attempts.
    pub done: u64,
    /// The part of `done` that running attempts report and that may be lost with them.
    pub running: i64,
    pub total: u64,
    pub conditions: Vec<ConditionProgress>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConditionProgress {
    pub id: String,
    pub done: u64,
    pub total: u64,
}

/// Progress per condition, in the protocol's order.
pub fn of(evaluation: &Evaluation, groups: &[GroupProgress]) -> Progress {
    let total = evaluation.images as u64 * evaluation.seeds.len() as u64;
    let done = |condition: usize| -> u64 {
        let of_it = groups.iter().filter(|g| g.conditions.contains(&(condition as i32)));
        of_it.map(|g| (g.images_done + g.images_running()) as u64).sum()
    };
    let conditions: Vec<ConditionProgress> = evaluation
        .conditions
        .iter()
        .enumerate()
        .map(|(i, condition)| ConditionProgress { id: condition.id.clone(), done: done(i), total })
        .collect();
    Progress {
        done: conditions.iter().map(|c| c.done).sum(),
        running: groups.iter().map(|g| g.running_verdicts).sum(),
        total: total * conditions.len() as u64,
        conditions,
    }
}

/// Seconds of work left, divided among the shards that run now. The price of a forward pass is taken from committed
/// shards; before the first of them, from how far the running ones have come.
pub fn eta_seconds(evaluation: &Evaluation, groups: &[GroupProgress]) -> Option<f64> {
    let running: i64 = groups.iter().map(|g| g.running_shards).sum();
    if !matches!(evaluation.state, State::Queued | State::Running) || running == 0 {
        return None;
    }
    // As far as the evaluation's own row says: draws weigh on all attacks alike.
    let model = Subject { classes: evaluation.dataset.classes, stochastic: true };
    let (mut committed, mut seconds, mut reported, mut left) = (0.0, 0.0, 0.0, 0.0);
    for group in groups {
        let each: f64 = group
            .conditions
            .iter()
            .filter_map(|&i| evaluation.conditions.get(i as usize))
            .map(|condition| forward_equivalents(condition, &model))
            .sum();
        committed += each * group.images_done as f64;
        seconds += group.seconds_done;
        reported += each * group.images_running() as f64;
        left += each * (group.images - group.images_done - group.images_running()) as f64;
    }
    // A first tiny shard spends most of its time on loading the model: it prices nothing.
    let per_unit = if committed > 0.02 * (committed + reported + left) {
        seconds / committed
    } else if reported > 0.0 {
        let elapsed = (Utc::now() - evaluation.started_at?).as_seconds_f64();
        elapsed * running as f64 / reported
    } else {
        return None;
    };
    Some((left * per_unit / running as f64).max(0.0))
}
