//! Interrupted evaluations go on where they were, and come to what they would have come to.

use std::ops::ControlFlow;

use gauntlet::protocol::*;
use gauntlet::robustness::engine::{Checkpoint, EngineError, Run, Watch, evaluate_from};

use crate::interrupted::{BATCH, holds_for};
use crate::support::*;

fn holds(conditions: &[Condition]) {
    holds_for(&convnet(3), conditions);
}

#[test]
fn every_attack_goes_on_where_it_was_interrupted() {
    for (norm, radii) in [(Norm::Linf, [0.01, 0.03]), (Norm::L2, [0.1, 0.3]), (Norm::L1, [0.4, 1.5])] {
        let mut attacks = autoattacks(24, 70, 2, 1);
        attacks.extend(nearest_attacks(norm, 8, 70, 1));
        attacks.push(Attack::Pgd(Pgd { steps: 40, random_start: true, restarts: 3, ..pgd() }));
        for attack in attacks {
            holds(&conditions(norm, &radii, false, &attack));
        }
    }
}

#[test]
fn a_search_for_the_nearest_goes_on_with_what_it_found() {
    for norm in [Norm::Linf, Norm::L2, Norm::L1] {
        let attacks = nearest_attacks(norm, 10, 70, 1);
        for attack in &attacks {
            holds(&[minimal(norm, attack)]);
        }
        holds(&[minimal(norm, &cascade(&attacks))]);
        // Rungs that are there before a trajectory is worth keeping, and after.
        let rungs =
            |walk: fn(Walk) -> Attack| [4, 9, 30, 70].map(|queries| minimal(norm, &walk(Walk { queries, eot: 1 })));
        match norm {
            Norm::Linf => holds(&rungs(Attack::HopSkipJump)),
            Norm::L2 => [rungs(Attack::HopSkipJump), rungs(Attack::Boundary)].iter().for_each(|rungs| holds(rungs)),
            Norm::L1 => {}
        }
    }
}

#[test]
fn a_cascade_goes_on_where_it_was_interrupted() {
    holds(&conditions(Norm::Linf, &[0.01, 0.03], false, &cascade(&autoattacks(24, 120, 1, 1))));
}

#[test]
fn a_checkpoint_of_something_else_is_refused() {
    let model = convnet(3);
    let few = images(&model, 6, 0);
    let attack = Attack::Pgd(Pgd { steps: 40, ..pgd() });
    let conditions = conditions(Norm::Linf, &[0.01, 0.03], false, &attack);
    let named: Vec<&Condition> = conditions.iter().collect();
    let run = |images, conditions| Run {
        model: &model,
        images,
        conditions,
        seed: 5,
        rule: VerdictRule::OneForward,
        batch: BATCH,
        wants_witness: &|_| false,
    };
    let mut kept = None;
    let mut keep = |checkpoint| kept = Some(checkpoint);
    let (mut always, mut on) = (|| true, |_| ControlFlow::Continue(()));
    evaluate_from(&run(&few, &named), None, &mut Watch { observer: &mut on, keep: Some((&mut always, &mut keep)) })
        .unwrap();
    let kept: Checkpoint = kept.expect("a checkpoint after every pass");
    let more = images(&model, 7, 0);
    for other in [run(&more, &named), run(&few, &named[..1])] {
        let taken = evaluate_from(&other, Some(kept.clone()), &mut Watch { observer: &mut on, keep: None });
        assert_eq!(taken.unwrap_err(), EngineError::Checkpoint);
    }
    evaluate_from(&run(&few, &named), Some(kept), &mut Watch { observer: &mut on, keep: None }).unwrap();
}
