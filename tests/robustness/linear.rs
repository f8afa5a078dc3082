//! Attacks against the closed-form optimum of a linear model.

use gauntlet::protocol::*;
use gauntlet::robustness::engine::Images;
use gauntlet::robustness::rng::Stream;
use tch::{Kind, Tensor};

use crate::support::*;

const SIDE: u32 = 5;
const DIMENSION: usize = (SIDE * SIDE) as usize;

/// The most that w·δ can be with ‖δ‖ ≤ ε and x + δ in the box.
fn optimum(w: &[f64], x: &[f64], norm: Norm, epsilon: f64) -> f64 {
    let room: Vec<f64> = w.iter().zip(x).map(|(w, x)| if *w > 0.0 { 1.0 - x } else { *x }).collect();
    let gain = |delta: &dyn Fn(usize) -> f64| (0..w.len()).map(|i| w[i].abs() * delta(i).min(room[i])).sum::<f64>();
    match norm {
        Norm::Linf => gain(&|_| epsilon),
        // The best pixels first, each to the box.
        Norm::L1 => {
            let mut order: Vec<usize> = (0..w.len()).collect();
            order.sort_by(|a, b| w[*b].abs().total_cmp(&w[*a].abs()));
            let mut left = epsilon;
            order.into_iter().fold(0.0, |gain, i| {
                let spent = room[i].min(left);
                left -= spent;
                gain + w[i].abs() * spent
            })
        }
        // δᵢ = min(t|wᵢ|, roomᵢ) with the largest t that the budget allows.
        Norm::L2 => {
            let length = |t: f64| (0..w.len()).map(|i| (t * w[i].abs()).min(room[i]).powi(2)).sum::<f64>().sqrt();
            let (mut low, mut high) = (0.0, 1e9);
            for _ in 0..200 {
                let middle = 0.5 * (low + high);
                if length(middle) <= epsilon { low = middle } else { high = middle }
            }
            gain(&|i| low * w[i].abs())
        }
    }
}

/// Logits (0, w·x − threshold), scaled.
fn model(w: &[f64], threshold: f64, scale: f64) -> impl gauntlet::robustness::model::Classifier {
    let w = Tensor::from_slice(w).view([-1, 1]);
    let logits = move |images: &Tensor| {
        let score = (images.flatten(1, -1).to_kind(Kind::Double).matmul(&w) - threshold) * scale;
        Tensor::cat(&[score.zeros_like(), score], 1).to_kind(Kind::Float)
    };
    Model { spec: spec([1, SIDE, SIDE], 2), logits }
}

fn is_broken(w: &[f64], pixels: &[u8], threshold: f64, scale: f64, norm: Norm, epsilon: f64, attack: &Attack) -> bool {
    let images = Images { indices: vec![0], pixels: pixels.to_vec(), labels: vec![0] };
    let model = model(w, threshold, scale);
    let outcomes =
        attack_with(&model, &images, &conditions(norm, &[epsilon], true, attack), VerdictRule::OneForward, 1);
    !outcomes[0].verdict.robust
}

/// A linear score's weights, an image with half of its pixels black or white, so that the box matters, and its score.
fn case(number: u32) -> (Vec<f64>, Vec<u8>, Vec<f64>, f64) {
    let mut stream = Stream::new(0, 0, number, 0);
    let w: Vec<f64> = (0..DIMENSION).map(|_| stream.normals()[0]).collect();
    let mut draw = |i: usize| if i.is_multiple_of(2) { stream.below(256) as u8 } else { 255 * (stream.below(2) as u8) };
    let pixels: Vec<u8> = (0..DIMENSION).map(&mut draw).collect();
    let x: Vec<f64> = pixels.iter().map(|v| f64::from(f32::from(*v) / 255.0)).collect();
    let score = w.iter().zip(&x).map(|(w, x)| w * x).sum();
    (w, pixels, x, score)
}

#[test]
fn every_attack_breaks_what_can_be_broken_and_nothing_else() {
    for number in 0..3 {
        let (w, pixels, x, score) = case(number);
        for (norm, epsilon) in [(Norm::Linf, 0.05), (Norm::L2, 0.4), (Norm::L1, 1.0)] {
            let best = optimum(&w, &x, norm, epsilon);
            for attack in autoattacks(100, 3000, 1, 1) {
                let broken = |share: f64, scale: f64| {
                    is_broken(&w, &pixels, score + share * best, scale, norm, epsilon, &attack)
                };
                // Random search finds corners of the cube, but wastes some of a round budget.
                let close = match (&attack, norm) {
                    (Attack::Square(_), Norm::L2 | Norm::L1) => 0.65,
                    _ => 0.98,
                };
                let name = attack.name();
                assert!(broken(close, 1.0), "case {number}: {name} {norm}");
                assert!(broken(close, 1e5), "case {number}: {name} {norm}, saturated logits");
                assert!(!broken(1.0001, 1.0), "case {number}: {name} {norm}, beyond the optimum");
            }
        }
    }
}

#[test]
fn fab_finds_perturbations_within_two_percent_of_the_shortest() {
    for number in 0..6 {
        let (w, pixels, x, score) = case(number);
        for (norm, reach) in [(Norm::Linf, 0.06), (Norm::L2, 0.5), (Norm::L1, 1.5)] {
            // The budget at which the optimum is exactly at the boundary is `reach`.
            let threshold = score + optimum(&w, &x, norm, reach);
            for attack in autoattacks(100, 1, 1, 1) {
                if matches!(attack, Attack::Fab(_) | Attack::FabT(_)) {
                    let broken = |share: f64| is_broken(&w, &pixels, threshold, 1.0, norm, share * reach, &attack);
                    assert!(broken(1.02), "case {number}: {} {norm}", attack.name());
                    assert!(!broken(0.999), "case {number}: {} {norm} below the optimum", attack.name());
                }
            }
        }
    }
}

#[test]
fn minimal_perturbations_are_within_two_percent_of_the_shortest() {
    for number in 0..6 {
        let (w, pixels, x, score) = case(number);
        let images = Images { indices: vec![0], pixels, labels: vec![0] };
        // With long reaches the box holds most pixels back.
        for (norm, reaches) in [(Norm::Linf, [0.06, 0.3]), (Norm::L2, [0.5, 1.5]), (Norm::L1, [1.5, 5.0])] {
            for (reach, scale) in [(reaches[0], 1.0), (reaches[1], 1.0), (reaches[0], 1e4)] {
                let model = model(&w, score + optimum(&w, &x, norm, reach), scale);
                for attack_of in nearest_attacks(norm, 200, 8000, 1) {
                    // Noise must lead beyond the boundary somewhere.
                    if attack_of.is_walk() && (number > 1 || reach > reaches[0] || scale > 1.0) {
                        continue;
                    }
                    let outcomes =
                        attack_with(&model, &images, &[minimal(norm, &attack_of)], VerdictRule::OneForward, 1);
                    let share = distance(norm, &outcomes[0].verdict) / reach;
                    let what = format!("case {number}: {} {norm} {reach} {scale}: {share}", attack_of.name());
                    assert!((0.9999..1.02).contains(&share), "{what}");
                }
            }
        }
    }
}

#[test]
fn pgd_reaches_the_optimum_of_a_linear_model_in_every_norm() {
    for case in 0..6 {
        let mut stream = Stream::new(0, 0, case, 0);
        let w: Vec<f64> = (0..DIMENSION).map(|_| stream.normals()[0]).collect();
        // Half of the pixels black or white, so that the box matters.
        let pixels: Vec<u8> = (0..DIMENSION)
            .map(|_| if stream.uniform() < 0.5 { stream.below(256) as u8 } else { (stream.below(2) * 255) as u8 })
            .collect();
        let x: Vec<f64> = pixels.iter().map(|v| f64::from(*v) / 255.0).collect();
        let score: f64 = w.iter().zip(&x).map(|(w, x)| w * x).sum();
        let pgd = Pgd { steps: 100, step_size: StepSize::OfEpsilon(0.1), ..pgd() };
        for (norm, radii) in [(Norm::Linf, [0.02, 0.3]), (Norm::L2, [0.1, 1.5]), (Norm::L1, [0.4, 4.0])] {
            for epsilon in radii {
                let best = optimum(&w, &x, norm, epsilon);
                let attack = |share: f64, scale: f64, loss: Loss| {
                    let pgd = Pgd { loss, ..pgd.clone() };
                    is_broken(&w, &pixels, score + share * best, scale, norm, epsilon, &Attack::Pgd(pgd))
                };
                assert!(attack(0.99, 1.0, Loss::CrossEntropy), "case {case}: {norm} {epsilon}, within one percent");
                assert!(attack(0.99, 1.0, Loss::Margin), "case {case}: {norm} {epsilon}, margin loss");
                assert!(attack(0.99, 1e6, Loss::CrossEntropy), "case {case}: {norm} {epsilon}, saturated logits");
                assert!(!attack(1.0001, 1.0, Loss::CrossEntropy), "case {case}: {norm} {epsilon}, beyond the optimum");
            }
        }
    }
}

#[test]
fn the_first_step_moves_the_length_it_was_told() {
    let w = vec![1.0; DIMENSION];
    let images = Images { indices: vec![0], pixels: vec![128; DIMENSION], labels: vec![0] };
    let model = model(&w, 0.0, 1.0);
    for (norm, length) in [(Norm::Linf, 0.05), (Norm::L2, 0.05), (Norm::L1, 0.05)] {
        for projection in [Projection::Euclidean, Projection::Radial] {
            let pgd = Pgd { steps: 1, step_size: StepSize::Absolute(length), keep: Keep::Last, projection, ..pgd() };
            let outcome = &attack(&model, &images, &ladder(norm, &[0.2], true, &pgd))[0];
            let sizes = [outcome.verdict.linf, outcome.verdict.l2, outcome.verdict.l1];
            let moved = sizes[[Norm::Linf, Norm::L2, Norm::L1].iter().position(|n| *n == norm).unwrap()];
            assert!((moved - length).abs() < 1e-5, "{norm} {projection:?}: {moved}");
        }
    }
}
