//! Findings that a shard's own run gives rise to.

use serde_json::json;

use crate::protocol::{Attack, Condition, ConditionKind, Finding, Norm, Projection};
use crate::robustness::engine::Outcome;

/// Image ids in the evidence are cut after this many.
const MOST_IMAGES: usize = 20;

/// What a reader must know about this run of these conditions.
pub fn of_run(conditions: &[Condition], outcomes: &[Outcome]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (position, condition) in conditions.iter().enumerate() {
        let own: Vec<&Outcome> = outcomes.iter().filter(|o| o.condition == position).collect();
        let mut note = |code: &str, sentence: &str, seen: &dyn Fn(&Outcome) -> bool| {
            let images: Vec<u32> = own.iter().filter(|o| seen(o)).map(|o| o.verdict.image).collect();
            if !images.is_empty() {
                let shown = &images[..images.len().min(MOST_IMAGES)];
                let evidence = json!({"condition": condition.id, "count": images.len(), "images": shown});
                findings.push(Finding::new(code, sentence, evidence));
            }
        };
        note(
            "nan_gradients_in_attack",
            "Some gradients contained NaN; those entries counted as 0, which weakens the attack on these images.",
            &|o| o.notes.nan_gradients > 0,
        );
        note(
            "zero_gradients_in_attack",
            "Some images that still stand gave a gradient of exactly zero, so the attack could not move: their robustness is not shown.",
            &|o| o.notes.zero_gradients > 0 && o.verdict.robust,
        );
        note(
            "unconfirmed_candidates",
            "The search saw these images misclassified, but a fresh float32 pass did not confirm it; they count as robust.",
            &|o| o.notes.unconfirmed > 0 && o.verdict.robust,
        );
        if let ConditionKind::Attack(attack) = &condition.kind {
            let Attack::Pgd(pgd) = &attack.attack;
            if attack.threat.norm == Norm::L1 && pgd.projection == Projection::Radial {
                findings.push(Finding::new(
                    "weak_projection",
                    "Radial rescaling is not the projection on the L1 ball: the attack is far weaker than one with projection = \"euclidean\".",
                    json!({"condition": condition.id}),
                ));
            }
        }
    }
    findings
}
