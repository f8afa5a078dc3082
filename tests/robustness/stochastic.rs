use gauntlet::protocol::*;
use gauntlet::robustness::attack::Goal;
use gauntlet::robustness::engine::{Images, Kernel, Objective};
use tch::{Kind, Tensor};

use crate::support::*;

fn goal(loss: Loss) -> Goal {
    Goal { loss, target: None, float32_gradient: false }
}

#[test]
fn averaged_gradients_approach_the_analytic_gradient() {
    // Logits (0, (w + noise)·x): each draw's gradient is w + noise, and their mean is w.
    let w = uniform(&[1, 16], -1.0, 1.0, 1);
    let weights = w.shallow_clone();
    let logits = move |images: &Tensor| {
        let flat = images.flatten(1, -1);
        let noise = Tensor::randn([flat.size()[0], 16], (Kind::Float, tch::Device::Cpu));
        let score = (flat * (&weights + noise)).sum_dim_intlist(1, true, Kind::Float);
        Tensor::cat(&[score.zeros_like(), score], 1)
    };
    let model = Model { spec: ModelSpec { stochastic: true, ..spec([1, 4, 4], 2) }, logits };
    let objective = Objective::new(&[0, 0], &[Some(goal(Loss::Margin)); 2], tch::Device::Cpu);
    let points = uniform(&[2, 1, 4, 4], 0.0, 1.0, 2);
    let mean_error = |draws: i64| {
        tch::manual_seed(1);
        let kernel = Kernel::new(&model, 64);
        let found = kernel.evaluate(&points, &objective, draws, true).unwrap().answer.gradient;
        (found.flatten(1, -1) - &w).square().mean(Kind::Double).double_value(&[])
    };
    // The mean of n draws misses by a variance of 1/n.
    let (few, many) = (mean_error(4), mean_error(2500));
    assert!((0.1..0.6).contains(&few), "{few}");
    assert!((0.0002..0.0008).contains(&many), "{many}");
}

#[test]
fn averaging_over_draws_changes_nothing_on_a_deterministic_model() {
    let model = convnet(3);
    let points = uniform(&[3, 1, 8, 8], 0.0, 1.0, 4);
    let objective = Objective::new(&[0, 1, 2], &[Some(goal(Loss::CrossEntropy)); 3], tch::Device::Cpu);
    let kernel = Kernel::new(&model, 16);
    let once = kernel.evaluate(&points, &objective, 1, true).unwrap().answer;
    let often = kernel.evaluate(&points, &objective, 5, true).unwrap().answer;
    assert!(once.gradient.allclose(&often.gradient, 1e-5, 1e-7, false));
    assert!(once.loss.allclose(&often.loss, 1e-12, 0.0, false));
    assert_eq!(once.log_scale, often.log_scale);
}

/// A model that is wrong with probability 0.1 whatever it is shown, and images of class 0.
fn coin() -> (impl gauntlet::robustness::model::Classifier, Images) {
    let logits = |images: &Tensor| {
        let wrong = Tensor::rand([images.size()[0], 1], (Kind::Float, tch::Device::Cpu)).lt(0.1).to_kind(Kind::Float);
        let unmoved = images.flatten(1, -1).sum_dim_intlist(1, true, Kind::Float) * 1e-3;
        Tensor::cat(&[unmoved.zeros_like() + 1.0, &wrong * 2.0 + unmoved * 1e-3], 1)
    };
    let model = Model { spec: ModelSpec { stochastic: true, ..spec([1, 2, 2], 2) }, logits };
    let count = 600;
    (
        model,
        Images {
            indices: (0..count).collect(),
            pixels: vec![100; 4 * count as usize],
            labels: vec![0; count as usize],
        },
    )
}

#[test]
fn verdicts_of_a_stochastic_model_are_not_inflated_by_lucky_iterates() {
    let (model, images) = coin();
    // Twenty chances of 0.1 would break 88 % of the images if any lucky iterate counted.
    for keep in [Keep::Best, Keep::Any, Keep::Last] {
        let pgd = Pgd { keep, restarts: 2, random_start: true, steps: 10, ..pgd() };
        let conditions = ladder(Norm::Linf, &[0.05], false, &pgd);
        let share = |rule| {
            let outcomes = attack_with(&model, &images, &conditions, rule, 64);
            broken(&outcomes, 0).len() as f64 / images.labels.len() as f64
        };
        let once = share(VerdictRule::OneForward);
        assert!((0.04..0.16).contains(&once), "{keep:?}: {once}");
        let majority = share(VerdictRule::Majority(9));
        assert!(majority < 0.01, "{keep:?}: {majority}");
    }
}

#[test]
fn a_stochastic_model_has_no_ladder() {
    let (model, images) = coin();
    let conditions = ladder(Norm::Linf, &[0.05, 0.1, 0.2], false, &Pgd { steps: 2, ..pgd() });
    let outcomes = attack_with(&model, &images, &conditions, VerdictRule::OneForward, 64);
    assert!(outcomes.iter().all(|outcome| outcome.verdict.stage != Some(Stage::Ladder)));
    let [first, last] = [broken(&outcomes, 0), broken(&outcomes, 2)];
    assert!(first.iter().any(|image| !last.contains(image)), "each budget is a fresh chance");
}
