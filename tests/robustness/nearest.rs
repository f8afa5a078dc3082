//! Conditions without a budget: how far each image must be moved.

use std::ops::ControlFlow;

use gauntlet::protocol::*;
use gauntlet::robustness::engine::{EngineError, Outcome, Run, evaluate};

use crate::cascade::{network, part};
use crate::support::*;

const NORMS: [Norm; 3] = [Norm::Linf, Norm::L2, Norm::L1];

/// A walk after each of these numbers of queries.
fn rungs(norm: Norm, walk: fn(Walk) -> Attack, queries: &[u32]) -> Vec<Condition> {
    queries.iter().map(|queries| minimal(norm, &walk(Walk { queries: *queries, eot: 1 }))).collect()
}

/// A norm, and an attack that walks.
type NamedWalk = (Norm, fn(Walk) -> Attack);
/// Every attack that walks, in the norms in which it does.
const WALKS: [NamedWalk; 3] =
    [(Norm::Linf, Attack::HopSkipJump), (Norm::L2, Attack::HopSkipJump), (Norm::L2, Attack::Boundary)];

#[test]
fn distances_do_not_depend_on_neighbours_order_or_sharding() {
    let model = convnet(1);
    let images = images(&model, 24, 9);
    let backwards: Vec<usize> = (0..24).rev().collect();
    for norm in NORMS {
        let attacks = nearest_attacks(norm, 9, 150, 2);
        let mut groups: Vec<Vec<Condition>> = attacks.iter().map(|attack_of| vec![minimal(norm, attack_of)]).collect();
        groups.push(vec![minimal(norm, &cascade(&attacks))]);
        let walks = WALKS.iter().filter(|(of, _)| *of == norm);
        groups.extend(walks.map(|(_, walk)| rungs(norm, *walk, &[40, 90, 150])));
        for conditions in &groups {
            let whole = attack(&model, &images, conditions);
            let found = broken(&whole, conditions.len() - 1).len();
            assert!(found >= 20, "{}: {found}", conditions[0].id);
            let shards = [&backwards[..1], &backwards[1..12], &backwards[12..]];
            for outcome in shards.iter().flat_map(|rows| attack(&model, &part(&images, rows), conditions)) {
                let row = (outcome.verdict.image - 1000) as usize;
                assert_eq!(outcome, whole[outcome.condition * 24 + row], "{}", conditions[outcome.condition].id);
            }
        }
    }
}

#[test]
fn the_nearest_of_all_stages_counts_and_its_stage_is_named() {
    let model = network([3, 4, 5], 6);
    let images = images(&model, 40, 10);
    for norm in NORMS {
        let stages = nearest_attacks(norm, 6, 100, 1);
        let together = attack(&model, &images, &[minimal(norm, &cascade(&stages))]);
        let alone: Vec<Vec<Outcome>> =
            stages.iter().map(|stage| attack(&model, &images, &[minimal(norm, stage)])).collect();
        let mut winners = std::collections::HashSet::new();
        for (image, outcome) in together.iter().enumerate() {
            let best = alone
                .iter()
                .map(|outcomes| &outcomes[image])
                .min_by(|a, b| distance(norm, &a.verdict).total_cmp(&distance(norm, &b.verdict)));
            let best = best.unwrap();
            assert_eq!((&outcome.verdict.stage, &outcome.witness), (&best.verdict.stage, &best.witness), "{norm}");
            winners.insert(format!("{:?}", outcome.verdict.stage));
        }
        assert!(winners.len() >= 3, "{norm}: {winners:?} have something to show");
    }
}

#[test]
fn an_attack_inside_a_budget_breaks_what_is_no_farther_than_that() {
    let model = network([1, 6, 6], 5);
    let images = images(&model, 30, 0);
    for (norm, epsilon) in [(Norm::Linf, 0.02), (Norm::L2, 0.1), (Norm::L1, 0.4)] {
        for attack_of in nearest_attacks(norm, 70, 1, 1).iter().filter(|attack| !attack.is_walk()) {
            let far = attack(&model, &images, &[minimal(norm, attack_of)]);
            let budgeted = attack(&model, &images, &conditions(norm, &[epsilon], true, attack_of));
            for (far, budgeted) in far.iter().zip(&budgeted) {
                let near = distance(norm, &far.verdict) <= epsilon;
                assert_eq!(near, !budgeted.verdict.robust, "{} {norm}", attack_of.name());
                assert!(budgeted.verdict.forwards <= far.verdict.forwards);
            }
            let count = broken(&budgeted, 0).len();
            assert!((3..28).contains(&count), "{} {norm}: {count} have something to show", attack_of.name());
        }
    }
}

#[test]
fn a_curve_over_queries_has_the_points_of_runs_by_themselves() {
    let model = network([3, 4, 5], 4);
    let images = images(&model, 30, 10);
    for (norm, walk) in WALKS {
        let queries = [20, 150, 400];
        let curve = attack(&model, &images, &rungs(norm, walk, &queries));
        for (rung, each) in queries.iter().enumerate() {
            let alone = attack(&model, &images, &rungs(norm, walk, &[*each]));
            for (image, alone) in alone.iter().enumerate() {
                let on_curve = &curve[rung * 30 + image];
                let seen = |outcome: &Outcome| (outcome.verdict.stage.clone(), outcome.witness.clone());
                assert_eq!(seen(on_curve), seen(alone), "{norm} {each}");
                let before: u32 = (0..rung).map(|rung| curve[rung * 30 + image].verdict.forwards).sum();
                // The clean image is looked at once, every query and every witness once.
                let spent = if image % 10 == 0 { 1 } else { 1 + each + rung as u32 + 1 };
                assert_eq!(before + on_curve.verdict.forwards, spent, "{norm} {each}");
            }
        }
        let median = |rung: usize| {
            let mut all: Vec<f64> = (0..30).map(|image| distance(norm, &curve[rung * 30 + image].verdict)).collect();
            all.sort_by(f64::total_cmp);
            all[15]
        };
        assert!(median(2) < 0.8 * median(1) && median(1) < median(0), "{norm}");
    }
}

#[test]
fn witnesses_are_as_far_as_their_verdicts_say_with_few_classes_in_grey_and_colour() {
    for classes in [2, 3, 4] {
        for input in [[1, 5, 9], [3, 7, 4]] {
            let model = network(input, classes);
            let images = images(&model, 12, 0);
            let pixels = input.iter().product::<u32>() as usize;
            for norm in NORMS {
                // Some of these images have a corner of the box between them and the boundary, where the margin is at its highest for
                // all around: only another start leads on.
                for attack_of in nearest_attacks(norm, 30, 400, 8) {
                    let outcomes = attack(&model, &images, &[minimal(norm, &attack_of)]);
                    let name = attack_of.name();
                    let found = broken(&outcomes, 0).len();
                    assert_eq!(found, 12, "{name} {norm} {classes} classes {input:?}");
                    for (row, outcome) in outcomes.iter().enumerate() {
                        assert_eq!(outcome.notes.unconfirmed, 0);
                        let Some(witness) = &outcome.witness else { continue };
                        assert!(witness.iter().all(|pixel| (0.0..=1.0).contains(pixel)), "{name} {norm}");
                        let clean = images.pixels[row * pixels..].iter().map(|v| f64::from(f32::from(*v) / 255.0));
                        let delta: Vec<f64> =
                            witness.iter().zip(clean).map(|(w, x)| (f64::from(*w) - x).abs()).collect();
                        let size = norm.of(
                            delta.iter().sum::<f64>(),
                            delta.iter().map(|d| d * d).sum::<f64>().sqrt(),
                            delta.iter().fold(0.0, |most, d| d.max(most)),
                        );
                        assert!((size - distance(norm, &outcome.verdict)).abs() <= 1e-12 * size, "{name} {norm}");
                    }
                }
            }
        }
    }
}

#[test]
fn passes_are_counted_exactly() {
    let model = network([1, 4, 4], 5);
    let images = images(&model, 3, 0);
    let cost = |attack_of: Attack| {
        let outcome = attack(&model, &images, &[minimal(Norm::L2, &attack_of)]).remove(1);
        (outcome.verdict.forwards, outcome.verdict.backwards)
    };
    let untargeted = Untargeted { steps: 5, restarts: 1, eot: 1 };
    // The clean image, five steps and a look at the end, and one examination.
    assert_eq!(cost(Attack::Fmn(untargeted.clone())), (8, 5));
    assert_eq!(cost(Attack::Ddn(untargeted)), (8, 5));
    // Two descents.
    assert_eq!(cost(Attack::Cw(CarliniWagner { steps: 5, searches: 2, restarts: 1, eot: 1 })), (14, 10));
    for (_, walk) in WALKS {
        assert_eq!(cost(walk(Walk { queries: 77, eot: 1 })), (79, 0));
    }
}

#[test]
fn a_stochastic_model_is_refused() {
    let deterministic = convnet(1);
    let model =
        Model { spec: ModelSpec { stochastic: true, ..deterministic.spec.clone() }, logits: &deterministic.logits };
    let images = images(&deterministic, 2, 0);
    let condition = minimal(Norm::L2, &Attack::Ddn(Untargeted { steps: 5, restarts: 1, eot: 1 }));
    let run = Run {
        model: &model,
        images: &images,
        conditions: &[&condition],
        seed: 0,
        rule: VerdictRule::OneForward,
        batch: 4,
        wants_witness: &|_| false,
    };
    match evaluate(&run, &mut |_| ControlFlow::Continue(())) {
        Err(EngineError::Input(problem)) => assert!(problem.contains("ddn-l2") && problem.contains("stochastic")),
        other => panic!("{other:?}"),
    }
}
