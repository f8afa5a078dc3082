//! Models as closures, random images, and short ways to say "attack this".

use std::ops::ControlFlow;

use gauntlet::protocol::*;
use gauntlet::robustness::engine::{Images, Outcome, Run, evaluate};
use gauntlet::robustness::model::{Classifier, ModelError, checked_logits};
use gauntlet::robustness::{rng::Stream, runtime};
use tch::{Device, Kind, Tensor};

/// A classifier whose logits are whatever a closure says.
pub struct Model<F> {
    pub spec: ModelSpec,
    pub logits: F,
}

impl<F: Fn(&Tensor) -> Tensor> Classifier for Model<F> {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn device(&self) -> Device {
        Device::Cpu
    }

    fn logits(&self, images: &Tensor) -> Result<Tensor, ModelError> {
        checked_logits((self.logits)(images), images.size()[0], self.spec.classes)
    }
}

pub fn spec(input: [u32; 3], classes: u32) -> ModelSpec {
    runtime::initialise(1).expect("libtorch starts");
    ModelSpec { format: Format::Torchscript, input, classes, preprocessing: None, stochastic: false }
}

/// float32 values uniform on [low, high).
pub fn uniform(shape: &[i64], low: f64, high: f64, key: u32) -> Tensor {
    let mut stream = Stream::new(0, 0, 0, key);
    let count: i64 = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|_| (low + (high - low) * stream.uniform()) as f32).collect();
    Tensor::from_slice(&values).view(shape)
}

/// A small convolutional network with random weights: 3 classes, images 1 × 8 × 8.
pub fn convnet(key: u32) -> Model<impl Fn(&Tensor) -> Tensor> {
    let weights = [uniform(&[8, 1, 3, 3], -1.0, 1.0, key), uniform(&[3, 8 * 16], -0.4, 0.4, key + 1)];
    let logits = move |images: &Tensor| {
        let features = images.conv2d(&weights[0], None::<&Tensor>, [2, 2], [1, 1], [1, 1], 1).relu();
        features.flatten(1, -1).linear(&weights[1], None::<&Tensor>)
    };
    Model { spec: spec([1, 8, 8], 3), logits }
}

/// Random images labelled as `model` sees them, but for every `mislabelled`-th (0: none).
pub fn images(model: &dyn Classifier, count: u32, mislabelled: u32) -> Images {
    let [channels, height, width] = model.spec().input;
    let mut stream = Stream::new(1, 0, 0, 0);
    let pixels: Vec<u8> = (0..count * channels * height * width).map(|_| stream.below(256) as u8).collect();
    let shape = [count, channels, height, width].map(i64::from);
    let unit = Tensor::from_data_size(&pixels, &shape, Kind::Uint8).to_kind(Kind::Float) / 255.0;
    let predicted = model.logits(&unit).expect("the model runs").argmax(1, false);
    let mut labels: Vec<u32> =
        Vec::<i64>::try_from(predicted).expect("classes").into_iter().map(|label| label as u32).collect();
    for (image, label) in labels.iter_mut().enumerate() {
        if mislabelled > 0 && (image as u32).is_multiple_of(mislabelled) {
            *label = (*label + 1) % model.spec().classes;
        }
    }
    Images { indices: (0..count).map(|image| 1000 + image).collect(), pixels, labels }
}

/// 20 steps of ε/4 from the clean image, default rules.
pub fn pgd() -> Pgd {
    Pgd {
        steps: 20,
        step_size: StepSize::OfEpsilon(0.25),
        random_start: false,
        restarts: 1,
        loss: Loss::CrossEntropy,
        target: Target::Untargeted,
        projection: Projection::Euclidean,
        order: ClipOrder::ProjectThenClip,
        keep: Keep::Best,
        eot: 1,
    }
}

pub fn clean() -> Condition {
    Condition { id: "clean".into(), kind: ConditionKind::Clean }
}

/// One PGD condition per radius.
pub fn ladder(norm: Norm, radii: &[f64], independent: bool, pgd: &Pgd) -> Vec<Condition> {
    conditions(norm, radii, independent, &Attack::Pgd(pgd.clone()))
}

/// One condition per radius.
pub fn conditions(norm: Norm, radii: &[f64], independent: bool, attack: &Attack) -> Vec<Condition> {
    let condition = |radius: &f64| {
        let threat = ThreatModel { norm, epsilon: Epsilon::new(*radius).expect("a radius") };
        let attack = AttackCondition {
            threat,
            independent,
            eight_bit: false,
            search_precision: Precision::Float32,
            attack: attack.clone(),
        };
        Condition { id: format!("{}-{norm}-{radius}", attack.attack.name()), kind: ConditionKind::Attack(attack) }
    };
    radii.iter().map(condition).collect()
}

/// Every attack of AutoAttack with these many steps and queries, one run (or target) after another.
pub fn autoattacks(steps: u32, queries: u32, restarts: u32, eot: u32) -> Vec<Attack> {
    let untargeted = Untargeted { steps, restarts, eot };
    let targeted = Targeted { steps, targets: 9, restarts, eot };
    vec![
        Attack::ApgdCe(untargeted.clone()),
        Attack::ApgdDlr(untargeted.clone()),
        Attack::ApgdT(targeted.clone()),
        Attack::Fab(untargeted),
        Attack::FabT(targeted),
        Attack::Square(Square { queries, p: 0.8, schedule: Schedule::Published, restarts, eot }),
    ]
}

/// Every attack that looks for the nearest adversarial example in `norm`, with these many steps and queries.
pub fn nearest_attacks(norm: Norm, steps: u32, queries: u32, restarts: u32) -> Vec<Attack> {
    let untargeted = Untargeted { steps, restarts, eot: 1 };
    let targeted = Targeted { steps, targets: 9, restarts, eot: 1 };
    let mut attacks = vec![Attack::Fab(untargeted.clone()), Attack::FabT(targeted), Attack::Fmn(untargeted.clone())];
    if norm == Norm::L2 {
        attacks.push(Attack::Ddn(untargeted));
        attacks.push(Attack::Cw(CarliniWagner { steps, searches: 9, restarts, eot: 1 }));
        attacks.push(Attack::Boundary(Walk { queries, eot: 1 }));
    }
    if norm != Norm::L1 {
        attacks.push(Attack::HopSkipJump(Walk { queries, eot: 1 }));
    }
    attacks
}

/// A condition without a budget.
pub fn minimal(norm: Norm, attack: &Attack) -> Condition {
    let kind = ConditionKind::MinNorm(MinNormCondition { norm, attack: attack.clone() });
    Condition { id: format!("{}-{norm}", attack.name()), kind }
}

/// How far the image of a verdict was moved.
pub fn distance(norm: Norm, verdict: &Verdict) -> f64 {
    if verdict.robust { f64::INFINITY } else { norm.of(verdict.l1, verdict.l2, verdict.linf) }
}

pub fn cascade(stages: &[Attack]) -> Attack {
    Attack::Cascade(Cascade { cascade: stages.to_vec() })
}

pub fn attack(model: &dyn Classifier, images: &Images, conditions: &[Condition]) -> Vec<Outcome> {
    attack_with(model, images, conditions, VerdictRule::OneForward, 16)
}

pub fn attack_with(
    model: &dyn Classifier,
    images: &Images,
    conditions: &[Condition],
    rule: VerdictRule,
    batch: u32,
) -> Vec<Outcome> {
    let conditions: Vec<&Condition> = conditions.iter().collect();
    let run = Run { model, images, conditions: &conditions, seed: 5, rule, batch, wants_witness: &|_| true };
    evaluate(&run, &mut |_| ControlFlow::Continue(())).expect("the run ends")
}

/// Indices of the images that `condition` broke.
pub fn broken(outcomes: &[Outcome], condition: usize) -> Vec<u32> {
    let of_condition = outcomes.iter().filter(|outcome| outcome.condition == condition && !outcome.verdict.robust);
    of_condition.map(|outcome| outcome.verdict.image).collect()
}

pub fn to_vec(tensor: &Tensor) -> Vec<f64> {
    Vec::<f64>::try_from(tensor.to_kind(Kind::Double).contiguous().view([-1])).expect("numbers")
}
