//! Searching in reduced precision: what it finds counts only in float32, and nothing else is touched by it.

use gauntlet::protocol::*;
use gauntlet::robustness::attack::Goal;
use gauntlet::robustness::engine::{Kernel, Objective};
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
