//! Searching in reduced precision: what it finds counts only in float32, and nothing else is touched by it.

use gauntlet::protocol::*;
use gauntlet::robustness::attack::Goal;
use gauntlet::robustness::engine::{Kernel, Objective, Outcome};
use gauntlet::robustness::model::Classifier;
use gauntlet::robustness::runtime;
use tch::{Device, Tensor};

use crate::support::*;

#[test]
fn reduced_precision_stays_in_the_search() {
    let model = convnet(3);
    let points = uniform(&[6, 1, 8, 8], 0.0, 1.0, 8);
    let goal = Goal { loss: Loss::Margin, target: None, float32_gradient: false };
    let objective = Objective::new(&[0; 6], &[Some(goal); 6], Device::Cpu);
    let gradient = |search: Precision| {
        let kernel = Kernel::new(&model, 6).searching_in(search);
        kernel.evaluate(&points, &objective, 1, true).unwrap().answer.gradient
    };
    let exact = gradient(Precision::Float32);
    let reduced = gradient(Precision::Bfloat16);
    let length = |gradient: &Tensor| gradient.norm().double_value(&[]);
    let apart = length(&(&reduced - &exact)) / length(&exact);
    assert!(apart > 1e-4 && apart < 0.1, "bfloat16 has 8 bits: {apart}");
    assert_eq!(gradient(Precision::Float32), exact);
    // Examinations by a kernel that searches roughly are float32 all the same.
    let rough = Kernel::new(&model, 6).searching_in(Precision::Bfloat16);
    assert_eq!(rough.logits(&points).unwrap(), model.logits(&points).unwrap());
    // A pass that panics leaves nothing behind.
    let panics = || runtime::in_precision(Precision::Bfloat16, || panic!("as libtorch's errors do"));
    assert!(std::panic::catch_unwind(panics).is_err());
    assert_eq!(gradient(Precision::Float32), exact);
}

#[test]
fn what_a_rough_search_finds_is_examined_in_float32() {
    let model = convnet(3);
    let images = images(&model, 40, 0);
    let plain = ladder(Norm::Linf, &[0.02, 0.05], false, &pgd());
    let mut rough = plain.clone();
    for condition in &mut rough {
        if let ConditionKind::Attack(attack) = &mut condition.kind {
            attack.search_precision = Precision::Bfloat16;
        }
    }
    let broken = |conditions: &[Condition]| {
        let outcomes = attack(&model, &images, conditions);
        for outcome in outcomes.iter().filter(|outcome| !outcome.verdict.robust) {
            let witness = Tensor::from_slice(outcome.witness.as_ref().unwrap()).view([1, 1, 8, 8]);
            let class = model.logits(&witness).unwrap().argmax(1, false).int64_value(&[0]);
            assert_ne!(class, i64::from(outcome.verdict.label), "a witness is one in float32");
        }
        outcomes.iter().filter(|outcome| !outcome.verdict.robust).count()
    };
    let (exactly, roughly) = (broken(&plain), broken(&rough));
    assert!(exactly > 10 && roughly.abs_diff(exactly) <= 4, "{exactly} and {roughly} of 80");
}

#[test]
fn a_search_does_not_believe_its_own_rounding() {
    // Logits near 100 are half a unit apart in bfloat16, and their differences here are smaller.
    let (weights, bias) = (uniform(&[3, 64], -0.01, 0.01, 5), Tensor::from_slice(&[100.0f32; 3]));
    let logits = move |images: &Tensor| images.flatten(1, -1).linear(&weights, Some(&bias));
    let model = Model { spec: spec([1, 8, 8], 3), logits };
    let images = images(&model, 20, 0);
    let mut conditions = ladder(Norm::Linf, &[1e-5], false, &pgd());
    let ConditionKind::Attack(condition) = &mut conditions[0].kind else { unreachable!("a ladder of attacks") };
    condition.search_precision = Precision::Bfloat16;
    let Attack::Pgd(pgd) = &condition.attack else { unreachable!("it is PGD") };
    let steps = pgd.steps;
    let standing: Vec<Outcome> =
        attack(&model, &images, &conditions).into_iter().filter(|outcome| outcome.verdict.robust).collect();
    assert!(standing.len() >= 15, "{}", standing.len());
    assert!(standing.iter().all(|outcome| outcome.notes.unconfirmed == 0 && outcome.verdict.backwards >= steps));
    let looked_again = |outcome: &&Outcome| outcome.verdict.forwards > 2 * steps;
    assert!(
        standing.iter().filter(looked_again).count() >= 5,
        "ties were misclassified in bfloat16 and not in float32"
    );
}
