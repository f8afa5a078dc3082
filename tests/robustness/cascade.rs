//! AutoAttack's attacks and cascades of them, as the engine runs them.

use gauntlet::protocol::*;
use gauntlet::robustness::engine::{Images, Outcome};
use tch::{Kind, Tensor};

use crate::support::*;

const NORMS: [(Norm, [f64; 2]); 3] = [(Norm::Linf, [0.01, 0.04]), (Norm::L2, [0.05, 0.25]), (Norm::L1, [0.3, 1.2])];

pub fn part(images: &Images, rows: &[usize]) -> Images {
    let each = images.pixels.len() / images.labels.len();
    Images {
        indices: rows.iter().map(|row| images.indices[*row]).collect(),
        pixels: rows.iter().flat_map(|row| images.pixels[row * each..(row + 1) * each].iter().copied()).collect(),
        labels: rows.iter().map(|row| images.labels[*row]).collect(),
    }
}

/// A random network of `classes` classes on images of `input`.
pub fn network(input: [u32; 3], classes: u32) -> Model<impl Fn(&Tensor) -> Tensor> {
    let [channels, height, width] = input.map(i64::from);
    let hidden = uniform(&[12, channels * height * width], -0.5, 0.5, classes);
    let out = uniform(&[classes.into(), 12], -1.0, 1.0, classes + 100);
    let logits = move |images: &Tensor| {
        let features = images.flatten(1, -1).linear(&hidden, None::<&Tensor>).relu();
        features.linear(&out, None::<&Tensor>)
    };
    Model { spec: spec(input, classes), logits }
}

#[test]
fn verdicts_of_every_attack_do_not_depend_on_neighbours_order_or_sharding() {
    let model = convnet(1);
    let images = images(&model, 30, 9);
    let backwards: Vec<usize> = (0..30).rev().collect();
    let mut attacks = autoattacks(9, 25, 2, 1);
    attacks.push(cascade(&autoattacks(4, 12, 1, 2)));
    attacks.push(Attack::Fgsm(Fgsm { loss: Loss::Dlr, eot: 1 }));
    attacks.push(Attack::Noise(Noise { distribution: Distribution::Gaussian, queries: 12, eot: 1 }));
    for (norm, radii) in NORMS {
        for attack_of in &attacks {
            let conditions = conditions(norm, &radii, false, attack_of);
            let whole = attack(&model, &images, &conditions);
            let counts = [0, 1].map(|rung| broken(&whole, rung).len());
            // Noise this short breaks nothing, but has its best point all the same.
            let weak = matches!(attack_of, Attack::Noise(_));
            assert!(counts[0] >= 3 && (weak || counts[1] > counts[0]), "{norm} {}: {counts:?}", attack_of.name());
            let shards = [&backwards[..1], &backwards[1..12], &backwards[12..]];
            let parts: Vec<Vec<Outcome>> =
                shards.iter().map(|rows| attack(&model, &part(&images, rows), &conditions)).collect();
            for outcome in parts.into_iter().flatten() {
                let row = (outcome.verdict.image - 1000) as usize;
                assert_eq!(outcome, whole[outcome.condition * 30 + row], "{norm} {}", attack_of.name());
            }
        }
    }
}

#[test]
fn every_attack_holds_budget_and_box_at_few_classes_in_grey_and_colour_square_or_not() {
    for classes in [2, 3, 4] {
        for input in [[1, 5, 9], [3, 7, 4]] {
            let model = network(input, classes);
            let images = images(&model, 20, 0);
            let pixels = input.iter().product::<u32>() as usize;
            for (norm, epsilon) in [(Norm::Linf, 0.15), (Norm::L2, 0.8), (Norm::L1, 5.0)] {
                for attack_of in autoattacks(20, 300, 1, 1) {
                    let outcomes = attack(&model, &images, &conditions(norm, &[epsilon], true, &attack_of));
                    let name = attack_of.name();
                    let found = broken(&outcomes, 0).len();
                    let expected = if matches!(attack_of, Attack::Square(_)) { 3 } else { 8 };
                    assert!(found >= expected, "{name} {norm} {classes} classes {input:?}: {found}");
                    for (row, outcome) in outcomes.iter().enumerate() {
                        let Some(witness) = &outcome.witness else { continue };
                        assert!(witness.iter().all(|pixel| (0.0..=1.0).contains(pixel)), "{name} {norm}");
                        let clean = images.pixels[row * pixels..].iter().map(|v| f64::from(f32::from(*v) / 255.0));
                        let delta: Vec<f64> =
                            witness.iter().zip(clean).map(|(w, x)| (f64::from(*w) - x).abs()).collect();
                        let size = match norm {
                            Norm::L1 => delta.iter().sum::<f64>(),
                            Norm::L2 => delta.iter().map(|d| d * d).sum::<f64>().sqrt(),
                            Norm::Linf => delta.iter().fold(0.0, |most, d| d.max(most)),
                        };
                        assert!(size <= epsilon * (1.0 + 1e-6), "{name} {norm}: {size}");
                        assert_eq!(outcome.notes.unconfirmed, 0);
                    }
                }
            }
        }
    }
}

#[test]
fn a_cascade_is_the_worst_case_of_its_stages_and_names_the_one_that_won() {
    let model = convnet(1);
    let images = images(&model, 60, 10);
    for (norm, radii) in NORMS {
        // The weaker first, so that the stronger have something left.
        let mut stages = autoattacks(3, 6, 1, 1);
        stages.reverse();
        let together = attack(&model, &images, &conditions(norm, &radii[1..], true, &cascade(&stages)));
        let alone: Vec<Vec<Outcome>> =
            stages.iter().map(|stage| attack(&model, &images, &conditions(norm, &radii[1..], true, stage))).collect();
        let mut winners = std::collections::HashSet::new();
        for (image, outcome) in together.iter().enumerate() {
            // A stage does in the cascade what it does alone, so the first that breaks the image alone wins.
            let first = alone.iter().map(|outcomes| &outcomes[image]).find(|outcome| !outcome.verdict.robust);
            assert_eq!(outcome.verdict.stage, first.and_then(|first| first.verdict.stage.clone()));
            assert_eq!(outcome.witness, first.and_then(|first| first.witness.clone()));
            winners.insert(format!("{:?}", outcome.verdict.stage));
            let forwards: u32 = alone.iter().map(|outcomes| outcomes[image].verdict.forwards).sum();
            assert!(outcome.verdict.forwards <= forwards);
        }
        assert!(winners.len() >= 3, "{norm}: {winners:?} have something to show");
    }
}

#[test]
fn more_restarts_and_targets_never_raise_accuracy() {
    let model = network([1, 6, 6], 6);
    let images = images(&model, 60, 0);
    for (norm, epsilon) in [(Norm::Linf, 0.02), (Norm::L2, 0.12), (Norm::L1, 0.5)] {
        for (few, many) in autoattacks(2, 4, 1, 1).iter().zip(autoattacks(2, 4, 5, 1)) {
            let broken_by = |attack_of: &Attack| {
                broken(&attack(&model, &images, &conditions(norm, &[epsilon], true, attack_of)), 0)
            };
            let (few, more) = (broken_by(few), broken_by(&many));
            assert!(few.iter().all(|image| more.contains(image)), "{norm} {}", many.name());
        }
    }
}

#[test]
fn passes_of_every_attack_are_counted_exactly() {
    let model = network([1, 4, 4], 5);
    let images = images(&model, 3, 0);
    let cost = |attack_of: &Attack| {
        let outcome = attack(&model, &images, &conditions(Norm::Linf, &[1e-7], true, attack_of)).remove(1);
        assert!(outcome.verdict.robust);
        (outcome.verdict.forwards, outcome.verdict.backwards)
    };
    let untargeted = Untargeted { steps: 5, restarts: 2, eot: 1 };
    let targeted = Targeted { steps: 5, targets: 9, restarts: 1, eot: 1 };
    // Two restarts of five steps and a look at the end, and one examination.
    assert_eq!(cost(&Attack::ApgdCe(untargeted.clone())), (13, 10));
    // Four wrong classes, and their ranking.
    assert_eq!(cost(&Attack::ApgdT(targeted)), (4 * 6 + 2, 4 * 5));
    // The start is a query, and so is every window. Draws are averaged on stochastic models only.
    assert_eq!(
        cost(&Attack::Square(Square { queries: 7, p: 0.8, schedule: Schedule::Published, restarts: 2, eot: 3 })),
        (2 * 7 + 1, 0)
    );
}

#[test]
fn stages_of_different_losses_see_their_own() {
    // One image at a time and all at once must agree where every stage is in the batch together.
    let model = network([1, 6, 6], 5);
    let images = images(&model, 48, 0);
    let mut stages =
        vec![Attack::Pgd(Pgd { steps: 3, ..pgd() }), Attack::Pgd(Pgd { steps: 3, loss: Loss::Margin, ..pgd() })];
    stages.extend(autoattacks(3, 5, 1, 1));
    let condition = conditions(Norm::L2, &[0.15], true, &cascade(&stages));
    let together = attack_with(&model, &images, &condition, VerdictRule::OneForward, 16);
    for (row, outcome) in together.iter().enumerate() {
        let alone = attack_with(&model, &part(&images, &[row]), &condition, VerdictRule::OneForward, 16);
        assert_eq!(alone[0], *outcome);
    }
    let stages: std::collections::HashSet<String> =
        together.iter().filter_map(|outcome| outcome.verdict.stage.as_ref()).map(|stage| stage.to_string()).collect();
    assert!(stages.len() >= 2, "{stages:?}");
}

#[test]
fn more_stages_do_not_mean_more_chances_on_a_stochastic_model() {
    // Wrong with probability 0.1 whatever it is shown.
    let logits = |images: &Tensor| {
        let wrong = Tensor::rand([images.size()[0], 1], (Kind::Float, tch::Device::Cpu)).lt(0.1).to_kind(Kind::Float);
        let seen = images.flatten(1, -1).sum_dim_intlist(1, true, Kind::Float) * 1e-3;
        Tensor::cat(&[seen.zeros_like() + 1.0, &wrong * 2.0 + seen * 1e-3], 1)
    };
    let model = Model { spec: ModelSpec { stochastic: true, ..spec([1, 3, 3], 2) }, logits };
    let images = Images { indices: (0..600).collect(), pixels: vec![100; 9 * 600], labels: vec![0; 600] };
    for norm in [Norm::Linf, Norm::L2, Norm::L1] {
        let condition = conditions(norm, &[0.05], false, &cascade(&autoattacks(4, 4, 2, 2)));
        let outcomes = attack_with(&model, &images, &condition, VerdictRule::OneForward, 64);
        let share = broken(&outcomes, 0).len() as f64 / 600.0;
        assert!((0.04..0.16).contains(&share), "{norm}: {share}");
    }
}
