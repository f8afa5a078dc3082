//! Interrupted evaluations go on where they were, and come to what they would have come to.

use std::cell::{Cell, RefCell};
use std::ops::ControlFlow;

use gauntlet::protocol::*;
use gauntlet::robustness::engine::{Checkpoint, EngineError, Images, Outcome, Progress, Run, Watch, evaluate_from};
use gauntlet::robustness::model::Classifier;

use crate::support::*;

const BATCH: u32 = 8;
/// Passes between two checkpoints.
const EVERY: u32 = 6;

/// Evaluates in parts of at most `patience` passes, each from the last part's latest checkpoint on; returns the outcomes,
/// the forwards of all parts together, and the number of interruptions.
fn in_parts(
    model: &dyn Classifier,
    images: &Images,
    conditions: &[Condition],
    patience: u32,
) -> (Vec<Outcome>, u64, u32) {
    let conditions: Vec<&Condition> = conditions.iter().collect();
    let wants_witness = |image: u32| image.is_multiple_of(2);
    let run = Run {
        model,
        images,
        conditions: &conditions,
        seed: 5,
        rule: VerdictRule::OneForward,
        batch: BATCH,
        wants_witness: &wants_witness,
    };
    let (mut bytes, mut spent, mut interruptions) = (None, 0, 0);
    loop {
        let (passes, forwards, latest) = (Cell::new(0), Cell::new(0), RefCell::new(None));
        let from = bytes.as_ref().map(|bytes: &Vec<u8>| Checkpoint::decode(bytes).expect("a checkpoint"));
        let mut observer = |progress: Progress| {
            passes.set(passes.get() + 1);
            forwards.set(progress.forwards);
            if passes.get() < patience { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        let mut at = 0;
        let mut due = || {
            let due = passes.get() >= at + EVERY;
            at = if due { passes.get() } else { at };
            due
        };
        let mut keep = |checkpoint: Checkpoint| *latest.borrow_mut() = Some(checkpoint.encode());
        let mut watch = Watch { observer: &mut observer, keep: Some((&mut due, &mut keep)) };
        let outcome = evaluate_from(&run, from, &mut watch);
        spent += forwards.get();
        match outcome {
            Ok(outcomes) => return (outcomes, spent, interruptions),
            Err(EngineError::Stopped) => {
                interruptions += 1;
                assert!(latest.borrow().is_some() || bytes.is_none(), "{patience} passes brought it no further");
                bytes = latest.into_inner().or(bytes);
            }
            Err(error) => panic!("{error}"),
        }
    }
}

fn holds(norm: Norm, radii: &[f64], attack: &Attack) {
    let model = convnet(3);
    let images = images(&model, 20, 7);
    let conditions = conditions(norm, radii, false, attack);
    let (whole, undisturbed, none) = in_parts(&model, &images, &conditions, u32::MAX);
    assert_eq!(none, 0);
    for patience in [40, 97] {
        let (parts, spent, interruptions) = in_parts(&model, &images, &conditions, patience);
        assert!(interruptions >= 1, "{norm} {patience}: {interruptions} interruptions");
        assert!(parts == whole, "{norm} {}: other outcomes after {interruptions} interruptions", attack.name());
        // Lost are the passes since the last checkpoint, and trajectories that were not there at the one before.
        let lost = u64::from(interruptions) * (u64::from(3 * EVERY * BATCH) + images.indices.len() as u64);
        assert!(spent <= undisturbed + lost, "{norm} {}: {spent} forwards for {undisturbed}", attack.name());
    }
}

#[test]
fn every_attack_goes_on_where_it_was_interrupted() {
    for (norm, radii) in [(Norm::Linf, [0.01, 0.03]), (Norm::L2, [0.1, 0.3]), (Norm::L1, [0.4, 1.5])] {
        for attack in autoattacks(24, 120, 2, 1) {
            holds(norm, &radii, &attack);
        }
        let restarted = Pgd { steps: 40, random_start: true, restarts: 3, ..pgd() };
        holds(norm, &radii, &Attack::Pgd(restarted));
    }
}

#[test]
fn a_cascade_goes_on_where_it_was_interrupted() {
    holds(Norm::Linf, &[0.01, 0.03], &cascade(&autoattacks(24, 120, 1, 1)));
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
