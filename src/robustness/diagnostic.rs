//! Is this evaluation trustworthy? Findings computed from the run itself.

use serde_json::json;

use super::engine::{Notes, Outcome};
use crate::protocol::{Attack, AttackCondition, Condition, ConditionKind, Finding, Label, Norm, Projection};

/// Most image ids that a finding's evidence lists.
const LISTED: usize = 20;

/// What a reader must know about `outcomes`, whose positions refer to `conditions`.
pub fn findings(conditions: &[&Condition], outcomes: &[Outcome]) -> Vec<Finding> {
    let known = conditions.iter().flat_map(|condition| [weak_projection(condition), frost_stand_in(condition)]);
    let mut findings: Vec<Finding> = known.flatten().collect();
    for (position, condition) in conditions.iter().enumerate() {
        let outcomes = || outcomes.iter().filter(|outcome| outcome.condition == position);
        let mut note = |code: &str, sentence: &str, count: fn(&Notes) -> u32| {
            let images: Vec<u32> =
                outcomes().filter(|outcome| count(&outcome.notes) > 0).map(|outcome| outcome.verdict.image).collect();
            if !images.is_empty() {
                let listed = &images[..images.len().min(LISTED)];
                let evidence = json!({ "condition": condition.id, "count": images.len(), "images": listed });
                findings.push(Finding::new(code, sentence, evidence));
            }
        };
        note(
            "nan_gradients",
            "Some gradients during the attack were not numbers and counted as 0; the attack was weaker for it.",
            |notes| notes.nan_gradients,
        );
        note(
            "zero_gradients",
            "Some gradients during the attack were zero in every pixel, so that it could not move; surviving it proves \
             little.",
            |notes| notes.zero_gradients,
        );
        note(
            "unconfirmed_candidates",
            "Some examples that the search took for a success were not confirmed by a fresh forward pass; these images \
             count as robust.",
            |notes| notes.unconfirmed,
        );
        note(
            "undefined_logits",
            "Some examined images gave logits that are infinite or not numbers; such an image counts as what argmax makes \
             of them, which is no answer of the model's.",
            |notes| notes.undefined_logits,
        );
    }
    findings
}

fn weak_projection(condition: &Condition) -> Option<Finding> {
    let ConditionKind::Attack(AttackCondition { threat, attack: Attack::Pgd(pgd), .. }) = &condition.kind else {
        return None;
    };
    (threat.norm == Norm::L1 && pgd.projection == Projection::Radial).then(|| {
        Finding::new(
            "weak_projection",
            "The radial L1 projection rescales a step instead of finding the nearest admissible image; it exists for \
             parity with published numbers and understates what an L1 adversary can do.",
            json!({ "condition": condition.id }),
        )
    })
}

fn frost_stand_in(condition: &Condition) -> Option<Finding> {
    let ConditionKind::Corruption(corruption) = &condition.kind else { return None };
    corruption.labels.contains(&Label::FrostProc).then(|| {
        Finding::new(
            "frost_stand_in",
            "Frost was drawn from computed pictures, because the published ones are not installed; it is not the benchmark's \
             frost, and counts in none of its aggregates. `make provision` fetches the pictures.",
            json!({ "condition": condition.id }),
        )
    })
}
