//! Checking what a child claims, before anything of it is kept. The child runs a stranger's code.

use crate::dataset::Batch;
use crate::protocol::{Condition, ConditionKind, ModelSpec, Stage, Verdict};
use crate::wire::WitnessAt;

/// Holds a shard's results to the request: every image once and in order, its true label, classes that exist, and
/// "not robust" only with a misclassification inside the budget. The error is a sentence.
pub fn results(
    conditions: &[Condition],
    batch: &Batch,
    spec: &ModelSpec,
    verdicts: &[Vec<Verdict>],
    witnesses: &[WitnessAt],
    payload: &[u8],
) -> Result<(), String> {
    if verdicts.len() != conditions.len() {
        return Err(format!("verdicts for {} conditions instead of {}", verdicts.len(), conditions.len()));
    }
    for (condition, verdicts) in conditions.iter().zip(verdicts) {
        if verdicts.len() != batch.labels.len() {
            return Err(format!("{}: {} verdicts for {} images", condition.id, verdicts.len(), batch.labels.len()));
        }
        for (position, verdict) in verdicts.iter().enumerate() {
            let image = batch.first + position;
            if verdict.image as usize != image || verdict.label != batch.labels[position] {
                return Err(format!("{}: image {image} has another index or label", condition.id));
            }
            one(condition, spec, verdict).map_err(|problem| format!("{}: image {image}: {problem}", condition.id))?;
        }
    }
    let each = spec.input.iter().map(|&side| side as usize).product::<usize>() * 4;
    if payload.len() != witnesses.len() * each {
        return Err(format!("{} witnesses in {} bytes", witnesses.len(), payload.len()));
    }
    for w in witnesses {
        let verdict =
            (w.image as usize).checked_sub(batch.first).and_then(|i| verdicts.get(w.condition as usize)?.get(i));
        if verdict.is_none_or(|v| v.robust) {
            return Err(format!("a witness for image {}, which has none", w.image));
        }
    }
    Ok(())
}

fn one(condition: &Condition, spec: &ModelSpec, verdict: &Verdict) -> Result<(), String> {
    if verdict.predicted >= spec.classes {
        return Err(format!("class {} of {}", verdict.predicted, spec.classes));
    }
    if verdict.robust != (verdict.predicted == verdict.label) || verdict.robust == verdict.stage.is_some() {
        return Err("robust, prediction and stage contradict each other".into());
    }
    let ConditionKind::Attack(attack) = &condition.kind else {
        let clean = verdict.linf == 0.0 && verdict.stage.as_ref().is_none_or(|s| *s == Stage::Clean);
        return if clean { Ok(()) } else { Err("a clean image was changed".into()) };
    };
    let size = match attack.threat.norm {
        crate::protocol::Norm::Linf => verdict.linf,
        crate::protocol::Norm::L2 => verdict.l2,
        crate::protocol::Norm::L1 => verdict.l1,
    };
    if verdict.robust || attack.threat.admits(size) { Ok(()) } else { Err(format!("a perturbation of size {size}")) }
}
