//! Interrupted evaluations go on where they were, and come to what they would have come to.

use std::cell::{Cell, RefCell};
use std::ops::ControlFlow;

use gauntlet::protocol::*;
use gauntlet::robustness::corruption::{FrostTextures, Recipe};
use gauntlet::robustness::engine::{
    Checkpoint, Corrupter, EngineError, Images, Outcome, Progress, Run, Watch, evaluate_corrupted, evaluate_from,
};
use gauntlet::robustness::model::Classifier;
use tch::Tensor;

use crate::support::*;

const BATCH: u32 = 16;
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

fn holds(conditions: &[Condition]) {
    holds_for(&convnet(3), conditions);
}

fn holds_for(model: &dyn Classifier, conditions: &[Condition]) {
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
        let rungs = |walk: fn(Walk) -> Attack| {
            [4, 9, 30, 70].map(|queries| minimal(norm, &walk(Walk { queries, eot: 1 })))
        };
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

/// A convolutional network that sees its images through Poisson noise: how many random numbers a row takes depends on its pixels.
fn noisy() -> Model<impl Fn(&Tensor) -> Tensor> {
    let Model { spec, logits } = convnet(3);
    let seen = move |images: &Tensor| {
        let photons = images.detach() * 40.0;
        logits(&(images + (photons.poisson() - photons) / 40.0))
    };
    Model { spec: ModelSpec { stochastic: true, ..spec }, logits: seen }
}

#[test]
fn an_attack_on_a_stochastic_model_draws_what_it_would_have_drawn() {
    let mut attacks = autoattacks(12, 40, 2, 2);
    attacks.push(cascade(&attacks));
    attacks.push(Attack::Pgd(Pgd { steps: 12, random_start: true, restarts: 3, eot: 2, ..pgd() }));
    attacks.push(Attack::HopSkipJump(Walk { queries: 60, eot: 2 }));
    for attack in attacks {
        holds_for(&noisy(), &conditions(Norm::L2, &[0.3], false, &attack));
    }
}

#[test]
fn corruptions_go_on_after_the_images_that_are_done() {
    let protocol = builtin("cifar10-c").unwrap();
    let mut conditions = protocol.conditions(Some("cifar10")).unwrap();
    conditions.retain(|condition| match &condition.kind {
        ConditionKind::Corruption(found) => matches!(found.corruption, Corruption::ShotNoise | Corruption::Fog),
        _ => false,
    });
    assert_eq!(conditions.len(), 10);
    holds_for(&convnet(3), &conditions);
    holds_for(&noisy(), &conditions);
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
