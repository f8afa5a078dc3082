use std::cell::{Cell, RefCell};
use std::ops::ControlFlow;

use gauntlet::protocol::*;
use gauntlet::robustness::engine::{EngineError, Images, Outcome, Run, evaluate};
use gauntlet::robustness::model::Classifier;
use tch::{Kind, Tensor};

use crate::support::*;

const NORMS: [(Norm, [f64; 3]); 3] =
    [(Norm::Linf, [0.01, 0.04, 0.1]), (Norm::L2, [0.05, 0.2, 0.6]), (Norm::L1, [0.2, 1.0, 3.0])];

fn without_condition(outcomes: Vec<Outcome>) -> Vec<Outcome> {
    outcomes.into_iter().map(|outcome| Outcome { condition: 0, ..outcome }).collect()
}

fn part(images: &Images, rows: &[usize]) -> Images {
    let each = images.pixels.len() / images.labels.len();
    Images {
        indices: rows.iter().map(|row| images.indices[*row]).collect(),
        pixels: rows.iter().flat_map(|row| images.pixels[row * each..(row + 1) * each].iter().copied()).collect(),
        labels: rows.iter().map(|row| images.labels[*row]).collect(),
    }
}

#[test]
fn witnesses_hold_their_budget_and_fool_a_fresh_forward() {
    let model = convnet(1);
    let images = images(&model, 40, 10);
    for (norm, radii) in NORMS {
        for projection in [Projection::Euclidean, Projection::Radial] {
            let pgd = Pgd { random_start: true, projection, ..pgd() };
            let conditions = ladder(norm, &radii, false, &pgd);
            let mut found = 0;
            for outcome in attack(&model, &images, &conditions) {
                let verdict = &outcome.verdict;
                let Some(witness) = &outcome.witness else {
                    assert!(verdict.robust);
                    continue;
                };
                assert!(!verdict.robust);
                let row = images.indices.iter().position(|index| *index == verdict.image).unwrap();
                let clean = images.pixels[row * 64..(row + 1) * 64].iter().map(|v| f32::from(*v) / 255.0);
                let delta: Vec<f64> = witness.iter().zip(clean).map(|(w, x)| f64::from(*w) - f64::from(x)).collect();
                assert!(witness.iter().all(|pixel| (0.0..=1.0).contains(pixel)));
                let sizes = [
                    delta.iter().map(|d| d.abs()).sum::<f64>(),
                    delta.iter().map(|d| d * d).sum::<f64>().sqrt(),
                    delta.iter().fold(0.0f64, |most, d| most.max(d.abs())),
                ];
                for (measured, told) in sizes.iter().zip([verdict.l1, verdict.l2, verdict.linf]) {
                    assert!((measured - told).abs() <= 1e-12 * measured);
                }
                let size = sizes[[Norm::L1, Norm::L2, Norm::Linf].iter().position(|n| *n == norm).unwrap()];
                assert!(size <= radii[outcome.condition] * (1.0 + 1e-6));
                let logits = (model.logits)(&Tensor::from_slice(witness).view([1, 1, 8, 8]));
                assert_eq!(logits.argmax(1, false).int64_value(&[0]), i64::from(verdict.predicted));
                assert_ne!(verdict.predicted, verdict.label);
                found += 1;
            }
            assert!(found > 20, "{norm} {projection:?}: {found} witnesses");
        }
    }
}

#[test]
fn without_budget_the_verdict_is_the_clean_one() {
    let model = convnet(1);
    let images = images(&model, 30, 4);
    let expected = broken(&attack(&model, &images, &[clean()]), 0);
    assert_eq!(expected.len(), 8);
    for (norm, _) in NORMS {
        for keep in [Keep::Best, Keep::Last, Keep::Any] {
            for independent in [false, true] {
                let pgd = Pgd { keep, random_start: true, steps: 3, ..pgd() };
                let outcomes = attack(&model, &images, &ladder(norm, &[0.0], independent, &pgd));
                assert_eq!(broken(&outcomes, 0), expected, "{norm} {keep:?}");
                assert!(outcomes.iter().all(|outcome| outcome.verdict.linf == 0.0 && outcome.verdict.l1 == 0.0));
            }
        }
    }
}

#[test]
fn ladders_are_monotone_and_name_the_rung_that_won() {
    let model = convnet(1);
    let images = images(&model, 60, 12);
    for (norm, radii) in NORMS {
        let outcomes = attack(&model, &images, &ladder(norm, &radii, false, &pgd()));
        let counts = [0, 1, 2].map(|rung| broken(&outcomes, rung).len());
        assert!(counts[0] < counts[2] && counts[0] >= 5, "{norm}: {counts:?} have something to show");
        for image in 0..60 {
            let rungs: Vec<&Verdict> = [0, 1, 2].map(|rung| &outcomes[rung * 60 + image].verdict).to_vec();
            for pair in rungs.windows(2) {
                assert!(pair[0].robust || !pair[1].robust);
                let expected = match &pair[0].stage {
                    None => continue,
                    Some(Stage::Clean) => Stage::Clean,
                    Some(_) => Stage::Ladder,
                };
                assert_eq!(pair[1].stage, Some(expected));
                assert_eq!((pair[1].forwards, pair[1].backwards), (0, 0));
                assert_eq!(pair[1].linf, pair[0].linf);
            }
        }
    }
}

#[test]
fn verdicts_do_not_depend_on_neighbours_order_or_sharding() {
    let model = convnet(1);
    let images = images(&model, 50, 9);
    let backwards: Vec<usize> = (0..50).rev().collect();
    for (norm, radii) in NORMS {
        for keep in [Keep::Best, Keep::Last] {
            for independent in [false, true] {
                let pgd = Pgd { random_start: true, restarts: 2, keep, eot: 2, steps: 8, ..pgd() };
                let conditions = ladder(norm, &radii, independent, &pgd);
                let whole = attack(&model, &images, &conditions);
                let shards = [&backwards[..1], &backwards[1..20], &backwards[20..]];
                let parts: Vec<Vec<Outcome>> =
                    shards.iter().map(|rows| attack(&model, &part(&images, rows), &conditions)).collect();
                for outcome in parts.into_iter().flatten() {
                    let row = (outcome.verdict.image - 1000) as usize;
                    assert_eq!(outcome, whole[outcome.condition * 50 + row], "{norm} {keep:?} {independent}");
                }
            }
        }
    }
}

#[test]
fn independent_cells_do_not_depend_on_how_they_are_grouped() {
    let model = convnet(1);
    let images = images(&model, 20, 5);
    let conditions = ladder(Norm::L2, &[0.1, 0.3], true, &Pgd { random_start: true, ..pgd() });
    let together = attack(&model, &images, &conditions);
    let second = attack(&model, &images, &conditions[1..]);
    assert_eq!(without_condition(together[20..].to_vec()), second);
}

#[test]
fn more_restarts_never_raise_accuracy() {
    let model = convnet(1);
    let images = images(&model, 60, 0);
    for (norm, radii) in NORMS {
        for keep in [Keep::Best, Keep::Last, Keep::Any] {
            let attack_with = |restarts| {
                let pgd = Pgd { random_start: true, restarts, keep, steps: 2, ..pgd() };
                broken(&attack(&model, &images, &ladder(norm, &radii[1..2], true, &pgd)), 0)
            };
            let (few, many) = (attack_with(1), attack_with(6));
            assert!(few.iter().all(|image| many.contains(image)), "{norm} {keep:?}");
        }
    }
}

#[test]
fn passes_are_counted_exactly() {
    let mut model = convnet(1);
    let images = images(&model, 12, 0);
    let counted = |model: &dyn Classifier, pgd: &Pgd, independent| {
        let outcome = attack(model, &images, &ladder(Norm::Linf, &[1e-7], independent, pgd)).remove(3);
        assert!(outcome.verdict.robust);
        (outcome.verdict.forwards, outcome.verdict.backwards)
    };
    let cost = |pgd: &Pgd, independent| counted(&model, pgd, independent);
    let pgd = Pgd { steps: 5, ..pgd() };
    // Five gradients, then the examination of the last iterate.
    assert_eq!(cost(&Pgd { keep: Keep::Last, ..pgd.clone() }, true), (6, 5));
    // The last iterate's loss is looked at too.
    assert_eq!(cost(&Pgd { keep: Keep::Best, ..pgd.clone() }, true), (7, 5));
    // A ladder begins with the clean image.
    assert_eq!(cost(&pgd, false), (8, 5));
    // Three restarts of five steps, one examination; a deterministic model is not asked four times.
    let restarts = Pgd { restarts: 3, random_start: true, eot: 4, ..pgd.clone() };
    assert_eq!(cost(&restarts, true), (3 * 6 + 1, 3 * 5));
    // Every restart's last iterate is examined.
    let last = Pgd { keep: Keep::Last, ..restarts.clone() };
    assert_eq!(cost(&last, true), (3 * (5 + 1), 3 * 5));
    // The targets' clean logits.
    let least_likely = Pgd { target: Target::LeastLikely, ..pgd };
    assert_eq!(cost(&least_likely, true), (8, 5));
    // So are they before a ladder, which begins with the clean image.
    assert_eq!(cost(&least_likely, false), (9, 5));
    // A stochastic model is asked four times at every point, and examined once.
    model.spec.stochastic = true;
    for pgd in [restarts, last] {
        assert_eq!(counted(&model, &pgd, true), (3 * 6 * 4 + 1, 3 * 5 * 4));
    }
}

#[test]
fn targets_are_the_classes_they_are_named_after() {
    // Each class has its own pixel; a targeted step raises the target's and lowers the label's.
    let bias = [5.0f32, 1.0, 3.0, 2.0];
    let logits = move |images: &Tensor| images.flatten(1, -1) + Tensor::from_slice(&bias);
    let inner = Model { spec: spec([1, 2, 2], 4), logits };
    let images = Images { indices: vec![7], pixels: vec![128; 4], labels: vec![0] };
    let raised = |target, seed| {
        // What the verdict's own pass was shown: the last input of the run.
        let last = RefCell::new(Tensor::new());
        let watched = |images: &Tensor| {
            *last.borrow_mut() = images.detach();
            (inner.logits)(images)
        };
        let model = Model { spec: inner.spec.clone(), logits: watched };
        let pgd = Pgd { target, loss: Loss::Margin, keep: Keep::Last, steps: 1, ..pgd() };
        let condition = ladder(Norm::L2, &[0.4], true, &pgd).remove(0);
        let run = Run {
            model: &model,
            images: &images,
            conditions: &[&condition],
            seed,
            rule: VerdictRule::OneForward,
            batch: 1,
            wants_witness: &|_| false,
        };
        evaluate(&run, &mut |_| ControlFlow::Continue(())).unwrap();
        last.borrow().view([-1]).argmax(0, false).int64_value(&[])
    };
    assert_eq!(raised(Target::NextClass, 0), 1);
    assert_eq!(raised(Target::LeastLikely, 0), 1);
    assert_eq!(raised(Target::MostLikely, 0), 2);
    let drawn: Vec<i64> = (0..20).map(|seed| raised(Target::Random, seed)).collect();
    assert!((1..4).all(|class| drawn.contains(&class)) && !drawn.contains(&0), "{drawn:?}");
}

#[test]
fn logits_that_are_no_numbers_are_noted() {
    // 0/0 for the second class of black images; otherwise the first class wins.
    let logits = |images: &Tensor| {
        let mean = images.flatten(1, -1).mean_dim(1, true, Kind::Float);
        Tensor::cat(&[mean.ones_like(), &mean / &mean - 1.0], 1)
    };
    let model = Model { spec: spec([1, 2, 2], 2), logits };
    let images = Images { indices: vec![1, 2], pixels: [[0; 4], [100; 4]].concat(), labels: vec![0, 0] };
    let outcomes = attack(&model, &images, &[clean()]);
    let seen = |outcome: &Outcome| (outcome.notes.undefined_logits, outcome.verdict.robust);
    assert_eq!(outcomes.iter().map(seen).collect::<Vec<_>>(), [(1, false), (0, true)]);
}

#[test]
fn a_candidate_that_the_examination_does_not_confirm_leaves_the_image_robust() {
    // Wrong whenever gradients are wanted, right otherwise: what search sees is not what the verdict sees.
    let logits = |images: &Tensor| {
        let lie = if images.requires_grad() { 1.0 } else { -1.0 };
        let score = images.flatten(1, -1).sum_dim_intlist(1, true, Kind::Float) * 1e-3 + lie;
        Tensor::cat(&[score.zeros_like(), score], 1)
    };
    let model = Model { spec: spec([1, 2, 2], 2), logits };
    let images = Images { indices: vec![1, 2], pixels: vec![100; 8], labels: vec![0, 0] };
    for outcome in attack(&model, &images, &ladder(Norm::Linf, &[0.1], true, &pgd())) {
        assert!(outcome.verdict.robust && outcome.witness.is_none());
        assert_eq!(outcome.notes.unconfirmed, 1);
    }
}

#[test]
fn bad_gradients_are_survived_and_counted() {
    // √ at 0 has an infinite derivative, and 0 · ∞ is not a number; the second model rounds its input away.
    let nan = |images: &Tensor| {
        let flat = images.flatten(1, -1);
        let score =
            flat.sum_dim_intlist(1, true, Kind::Float) + (&flat * 0.0).sqrt().sum_dim_intlist(1, true, Kind::Float);
        Tensor::cat(&[score.ones_like() * 9.0, score], 1)
    };
    let flat = |images: &Tensor| {
        let score = (images * 255.0).round().flatten(1, -1).sum_dim_intlist(1, true, Kind::Float);
        Tensor::cat(&[score.ones_like() * 1e6, score], 1)
    };
    let images = Images { indices: vec![1], pixels: vec![100; 4], labels: vec![0] };
    let conditions = ladder(Norm::L2, &[0.1], true, &Pgd { steps: 6, ..pgd() });
    let outcome = attack(&Model { spec: spec([1, 2, 2], 2), logits: nan }, &images, &conditions).remove(0);
    assert_eq!((outcome.notes.nan_gradients, outcome.notes.zero_gradients), (6, 0));
    let outcome = attack(&Model { spec: spec([1, 2, 2], 2), logits: flat }, &images, &conditions).remove(0);
    assert_eq!((outcome.notes.nan_gradients, outcome.notes.zero_gradients), (0, 6));
    assert!(outcome.verdict.robust && outcome.verdict.linf == 0.0);
}

#[test]
fn every_launch_has_the_same_shape() {
    let other = Cell::new(0);
    let inner = convnet(1);
    let logits = |images: &Tensor| {
        other.set(other.get() + i32::from(images.size()[0] != 16));
        (inner.logits)(images)
    };
    let model = Model { spec: spec([1, 8, 8], 3), logits };
    let images = images(&inner, 21, 4);
    for eot in [1, 3, 40] {
        let pgd = Pgd { eot, restarts: 2, random_start: true, steps: 3, ..pgd() };
        attack(&model, &images, &ladder(Norm::L2, &[0.1, 0.2], false, &pgd));
    }
    assert_eq!(other.get(), 0);
}

#[test]
fn the_observer_sees_all_work_and_can_stop_it() {
    let model = convnet(1);
    let images = images(&model, 10, 3);
    let conditions = ladder(Norm::Linf, &[0.01, 0.02], false, &pgd());
    let conditions: Vec<&Condition> = conditions.iter().collect();
    let run = Run {
        model: &model,
        images: &images,
        conditions: &conditions,
        seed: 0,
        rule: VerdictRule::OneForward,
        batch: 4,
        wants_witness: &|_| false,
    };
    let mut last = None;
    let outcomes = evaluate(&run, &mut |progress| {
        last = Some(progress);
        ControlFlow::Continue(())
    });
    let (outcomes, last) = (outcomes.unwrap(), last.unwrap());
    assert_eq!((last.done, last.total), (20, 20));
    assert_eq!(last.forwards, outcomes.iter().map(|outcome| u64::from(outcome.verdict.forwards)).sum::<u64>());
    assert_eq!(last.backwards, outcomes.iter().map(|outcome| u64::from(outcome.verdict.backwards)).sum::<u64>());
    assert!(outcomes.iter().all(|outcome| outcome.witness.is_none()));
    assert_eq!(evaluate(&run, &mut |_| ControlFlow::Break(())), Err(EngineError::Stopped));
}

#[test]
fn input_that_does_not_fit_is_named() {
    let model = convnet(1);
    let mut images = images(&model, 3, 0);
    let complaint = |images: &Images| {
        let run = Run {
            model: &model,
            images,
            conditions: &[&clean()],
            seed: 0,
            rule: VerdictRule::OneForward,
            batch: 4,
            wants_witness: &|_| false,
        };
        evaluate(&run, &mut |_| ControlFlow::Continue(())).unwrap_err().to_string()
    };
    images.labels[1] = 3;
    assert_eq!(complaint(&images), "image 1001 has label 3, but the model has 3 classes");
    images.labels[1] = 0;
    images.pixels.pop();
    assert_eq!(complaint(&images), "3 images need as many labels (have 3) and 64 pixels each (have 191 in all)");
}
