//! The baselines that attacks must beat: noise, and a single gradient step.

use gauntlet::protocol::*;
use gauntlet::robustness::engine::Images;
use tch::{Kind, Tensor};

use crate::support::*;

const NORMS: [Norm; 3] = [Norm::Linf, Norm::L2, Norm::L1];

/// Grey images, far from the box, of class 0.
fn grey(input: [u32; 3], count: u32) -> Images {
    let pixels = vec![128; (input.iter().product::<u32>() * count) as usize];
    Images { indices: (0..count).collect(), pixels, labels: vec![0; count as usize] }
}

/// Logits (0, score).
fn binary(input: [u32; 3], score: impl Fn(&Tensor) -> Tensor) -> Model<impl Fn(&Tensor) -> Tensor> {
    let logits = move |images: &Tensor| {
        let score = score(&images.flatten(1, -1).to_kind(Kind::Double)).view([-1, 1]);
        Tensor::cat(&[score.zeros_like(), score], 1).to_kind(Kind::Float)
    };
    Model { spec: spec(input, 2), logits }
}

fn sum(rows: Tensor) -> Tensor {
    rows.sum_dim_intlist(1, false, Kind::Double)
}

#[test]
fn fgsm_breaks_exactly_what_one_step_can_break_of_a_linear_model() {
    let w = uniform(&[1, 25], 0.5, 1.0, 3).to_kind(Kind::Double) * 0.7;
    let gains = [sum(w.abs()), sum(w.square()).sqrt(), w.amax(1, false)].map(|gain| gain.double_value(&[0]));
    let images = grey([1, 5, 5], 1);
    for (norm, gain) in NORMS.into_iter().zip(gains) {
        // In L1 a step this short moves one pixel.
        let epsilon = 0.15;
        let broken_at = |share: f64| {
            let weights = w.shallow_clone();
            let threshold =
                f64::from(128.0f32 / 255.0) * sum(w.shallow_clone()).double_value(&[0]) + share * epsilon * gain;
            let model = binary([1, 5, 5], move |x| sum(x * &weights) - threshold);
            let fgsm = Attack::Fgsm(Fgsm { loss: Loss::CrossEntropy, eot: 1 });
            let outcome = attack(&model, &images, &conditions(norm, &[epsilon], true, &fgsm)).remove(0);
            assert_eq!((outcome.verdict.forwards, outcome.verdict.backwards), (2, 1));
            !outcome.verdict.robust
        };
        assert!(broken_at(0.999) && !broken_at(1.001), "{norm}");
    }
}

#[test]
fn noise_is_as_long_as_the_budget_and_distributed_as_it_says() {
    // Anything that moves is misclassified, so that the first draw is the witness.
    let grey_value = f64::from(128.0f32 / 255.0);
    let model = binary([3, 32, 32], move |x| sum((x - grey_value).abs()) - 1e-4);
    for norm in NORMS {
        for (distribution, kurtosis) in [(Distribution::Uniform, 1.8), (Distribution::Gaussian, 3.0)] {
            let noise = Attack::Noise(Noise { distribution, queries: 1, eot: 1 });
            let found = attack(&model, &grey([3, 32, 32], 4), &conditions(norm, &[0.3], true, &noise));
            for outcome in &found {
                let verdict = &outcome.verdict;
                assert!((norm.of(verdict.l1, verdict.l2, verdict.linf) / 0.3 - 1.0).abs() < 1e-3, "{norm}");
                let witness = outcome.witness.as_ref().expect("broken");
                let delta: Vec<f64> = witness.iter().map(|pixel| f64::from(*pixel) - grey_value).collect();
                let moment = |power: i32| delta.iter().map(|d| d.powi(power)).sum::<f64>() / delta.len() as f64;
                let found = moment(4) / moment(2).powi(2);
                assert!((found - kurtosis).abs() < 0.35, "{norm} {distribution:?}: {found}");
                // The mean of d pixels with this variance.
                assert!(moment(1).abs() < 4.0 * (moment(2) / delta.len() as f64).sqrt(), "{norm} {distribution:?}");
            }
            assert_ne!(found[0].witness, found[1].witness, "every image has its own noise");
        }
    }
}

#[test]
fn more_noise_breaks_more_and_costs_a_forward_each() {
    let model = convnet(1);
    let images = images(&model, 60, 0);
    for (norm, epsilon) in [(Norm::Linf, 0.2), (Norm::L2, 1.0), (Norm::L1, 8.0)] {
        let under = |queries: u32| {
            let noise = Attack::Noise(Noise { distribution: Distribution::Uniform, queries, eot: 1 });
            attack(&model, &images, &conditions(norm, &[epsilon], true, &noise))
        };
        let (few, many) = (under(3), under(60));
        let (weak, strong) = (broken(&few, 0), broken(&many, 0));
        assert!(
            strong.len() > weak.len() && weak.iter().all(|image| strong.contains(image)),
            "{norm}: {weak:?} {strong:?}"
        );
        // Every query, and the examination.
        assert!(many.iter().filter(|o| o.verdict.robust).all(|o| (o.verdict.forwards, o.verdict.backwards) == (61, 0)));
    }
}
