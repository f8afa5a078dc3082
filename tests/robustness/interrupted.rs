//! Evaluations that are interrupted, and go on where they were.

use std::cell::{Cell, RefCell};
use std::ops::ControlFlow;

use gauntlet::protocol::*;
use gauntlet::robustness::corruption::{FrostTextures, Recipe};
use gauntlet::robustness::engine::{
    Checkpoint, Corrupter, EngineError, Images, Outcome, Progress, Run, Watch, evaluate_corrupted, evaluate_from,
};
use gauntlet::robustness::model::Classifier;

use crate::support::*;

pub const BATCH: u32 = 16;
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
    let textures = FrostTextures::procedural();
    let corrupter = Corrupter {
        threads: 2,
        apply: &|condition, image, random| Recipe::from(condition).apply(image, &textures, random),
        waiting: &|wait| wait(),
    };
    let corrupts = matches!(conditions[0].kind, ConditionKind::Corruption(_));
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
        let outcome = match corrupts {
            true => evaluate_corrupted(&run, &corrupter, from, &mut watch),
            false => evaluate_from(&run, from, &mut watch),
        };
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

/// Interrupted in many places, a run comes to the same outcomes, and loses little.
pub fn holds_for(model: &dyn Classifier, conditions: &[Condition]) {
    let images = images(model, 24, 7);
    let what = &conditions[0].id;
    let (whole, undisturbed, none) = in_parts(model, &images, conditions, u32::MAX);
    assert_eq!(none, 0);
    for patience in [20, 61].into_iter().filter(|patience| undisturbed > u64::from(patience * BATCH)) {
        let (parts, spent, interruptions) = in_parts(model, &images, conditions, patience);
        assert!(interruptions >= 1, "{what} {patience}: {interruptions} interruptions");
        let other = whole.iter().zip(&parts).find(|(whole, part)| whole != part);
        assert_eq!(other, None, "{what}: another outcome after {interruptions} interruptions");
        // Lost are the passes since the last checkpoint, and trajectories that were not there at the one before.
        let lost = u64::from(interruptions) * (u64::from(3 * EVERY * BATCH) + images.indices.len() as u64);
        assert!(spent <= undisturbed + lost, "{what}: {spent} forwards for {undisturbed}");
    }
}
