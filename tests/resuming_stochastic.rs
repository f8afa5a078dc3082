//! Interrupted evaluations of stochastic models. libtorch has one generator for a whole process, so these have a process of their own.
#![cfg(feature = "evaluator")]

#[path = "robustness/interrupted.rs"]
mod interrupted;
#[allow(dead_code)]
#[path = "robustness/support.rs"]
mod support;

use gauntlet::protocol::*;
use tch::Tensor;

use interrupted::holds_for;
use support::*;

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
fn a_stochastic_model_draws_what_it_would_have_drawn() {
    let mut attacks = autoattacks(12, 40, 2, 2);
    attacks.push(cascade(&attacks));
    attacks.push(Attack::Pgd(Pgd { steps: 12, random_start: true, restarts: 3, eot: 2, ..pgd() }));
    attacks.push(Attack::HopSkipJump(Walk { queries: 60, eot: 2 }));
    for attack in attacks {
        holds_for(&noisy(), &conditions(Norm::L2, &[0.3], false, &attack));
    }
    let mut corruptions = builtin("cifar10-c").unwrap().conditions(Some("cifar10")).unwrap();
    corruptions.retain(|condition| match &condition.kind {
        ConditionKind::Corruption(found) => matches!(found.corruption, Corruption::ShotNoise | Corruption::Fog),
        _ => false,
    });
    assert_eq!(corruptions.len(), 10);
    holds_for(&noisy(), &corruptions);
}
