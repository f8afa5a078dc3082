//! What a run shows of its own trustworthiness: signs, which [`crate::protocol::diagnose`] judges once all shards are in.
//!
//! [`signs`] reads them off verdicts and notes that exist anyway. [`second_opinion`] probes a sample of images.

mod second_opinion;

pub use second_opinion::second_opinion;

use super::engine::Outcome;
use crate::protocol::{AttackCondition, Condition, ConditionKind, Sign, Signs};

/// A standing image whose examined perturbation is smaller than this share of the budget leaves budget unused.
const USED: f64 = 0.5;

/// The signs in `outcomes`, whose positions refer to `conditions`; one entry per condition.
pub fn signs(conditions: &[&Condition], outcomes: &[Outcome], stochastic: bool) -> Vec<Signs> {
    let mut signs = vec![Signs::default(); conditions.len()];
    for outcome in outcomes {
        let signs = &mut signs[outcome.condition];
        signs.look(Sign::UndefinedLogits, outcome.verdict.image, outcome.notes.undefined_logits > 0);
        if let ConditionKind::Attack(condition) = &conditions[outcome.condition].kind {
            of_attack(signs, condition, outcome, stochastic);
        }
    }
    signs
}

fn of_attack(signs: &mut Signs, condition: &AttackCondition, outcome: &Outcome, stochastic: bool) {
    let Outcome { verdict, notes, .. } = outcome;
    signs.look(Sign::Unconfirmed, verdict.image, notes.unconfirmed > 0);
    if verdict.backwards == 0 {
        return;
    }
    signs.look(Sign::NanGradients, verdict.image, notes.nan_gradients > 0);
    if !verdict.robust {
        return;
    }
    let steps = verdict.backwards / condition.attack.draws(stochastic);
    signs.look(Sign::ZeroGradients, verdict.image, 2 * notes.zero_gradients >= steps);
    if notes.ascents > 0 {
        signs.look(Sign::Unconverged, verdict.image, notes.unconverged == notes.ascents);
    }
    if condition.attack.ascends() {
        let used = condition.threat.norm.of(verdict.l1, verdict.l2, verdict.linf);
        signs.look(Sign::UnusedBudget, verdict.image, used < USED * condition.threat.epsilon.get());
    }
}
