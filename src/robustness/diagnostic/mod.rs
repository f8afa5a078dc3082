//! What a run shows of its own trustworthiness: signs, which [`crate::protocol::diagnose`] judges once all shards are in.
//!
//! [`signs`] reads them off verdicts and notes that exist anyway. [`second_opinion`] probes a sample of images.

mod second_opinion;

pub use second_opinion::second_opinion;

use super::engine::Outcome;
use crate::protocol::{Attack, AttackCondition, Condition, ConditionKind, Sign, Signs};

/// A standing image whose examined perturbation is smaller than this share of the budget leaves budget unused.
const USED: f64 = 0.5;

/// The signs in `outcomes`, whose positions refer to `conditions`; one entry per condition.
pub fn signs(conditions: &[&Condition], outcomes: &[Outcome], stochastic: bool) -> Vec<Signs> {
    let mut signs = vec![Signs::default(); conditions.len()];
    for outcome in outcomes {
        let signs = &mut signs[outcome.condition];
        signs.look(Sign::UndefinedLogits, outcome.verdict.image, outcome.notes.undefined_logits > 0);
        match &conditions[outcome.condition].kind {
            ConditionKind::Attack(condition) => of_attack(signs, condition, outcome, stochastic),
            ConditionKind::MinNorm(condition) => of_search(signs, &condition.attack, outcome, stochastic),
            ConditionKind::Clean | ConditionKind::Corruption(_) => {}
        }
    }
    signs
}

/// Of an image that was attacked, with a budget or without.
fn of_gradients(signs: &mut Signs, attack: &Attack, outcome: &Outcome, stochastic: bool) {
    let Outcome { verdict, notes, .. } = outcome;
    signs.look(Sign::Unconfirmed, verdict.image, notes.unconfirmed > 0);
    if verdict.backwards == 0 {
        return;
    }
    signs.look(Sign::NanGradients, verdict.image, notes.nan_gradients > 0);
    if verdict.robust {
        let steps = verdict.backwards / attack.draws(stochastic);
        signs.look(Sign::ZeroGradients, verdict.image, 2 * notes.zero_gradients >= steps);
    }
}

/// Of an image whose nearest adversarial example was searched for.
fn of_search(signs: &mut Signs, attack: &Attack, outcome: &Outcome, stochastic: bool) {
    of_gradients(signs, attack, outcome, stochastic);
    signs.look(Sign::NoneFound, outcome.verdict.image, outcome.verdict.robust);
}

fn of_attack(signs: &mut Signs, condition: &AttackCondition, outcome: &Outcome, stochastic: bool) {
    of_gradients(signs, &condition.attack, outcome, stochastic);
    let Outcome { verdict, notes, .. } = outcome;
    if verdict.backwards == 0 || !verdict.robust {
        return;
    }
    if notes.ascents > 0 {
        signs.look(Sign::Unconverged, verdict.image, notes.unconverged == notes.ascents);
    }
    if condition.attack.ascends() {
        let used = condition.threat.norm.of(verdict.l1, verdict.l2, verdict.linf);
        signs.look(Sign::UnusedBudget, verdict.image, used < USED * condition.threat.epsilon.get());
    }
}
