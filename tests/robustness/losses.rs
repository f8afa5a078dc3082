use gauntlet::protocol::Loss;
use gauntlet::robustness::loss::ascend;
use tch::{Kind, Tensor};

use crate::support::{to_vec, uniform};

/// Loss and gradient as autograd has them, float64.
fn by_autograd(loss: Loss, logits: &Tensor, labels: &Tensor, targets: Option<&Tensor>) -> (Tensor, Tensor) {
    let logits = logits.to_kind(Kind::Double).detach().set_requires_grad(true);
    let at = |class: &Tensor| logits.gather(1, &class.unsqueeze(1), false).squeeze_dim(1);
    let log_probability = |class: &Tensor| at(class) - logits.logsumexp(1, false);
    let values = match (loss, targets) {
        (Loss::CrossEntropy, None) => -log_probability(labels),
        (Loss::CrossEntropy, Some(targets)) => log_probability(targets),
        (Loss::Margin, Some(targets)) => at(targets) - at(labels),
        (Loss::Dlr, targets) => {
            let wrong = logits.scatter_value(1, &labels.unsqueeze(1), f64::NEG_INFINITY);
            let margin = targets.map_or_else(|| wrong.amax(1, false), &at) - at(labels);
            let (sorted, _) = logits.sort(1, true);
            let nth = |n: i64| sorted.select(1, n);
            match (logits.size()[1], targets) {
                (2, _) => margin,
                (4.., Some(_)) => margin / (nth(0) - (nth(2) + nth(3)) * 0.5),
                _ => margin / (nth(0) - nth(2)),
            }
        }
        (Loss::Margin, None) => {
            let wrong = logits.scatter_value(1, &labels.unsqueeze(1), f64::NEG_INFINITY);
            wrong.amax(1, false) - at(labels)
        }
    };
    values.sum(Kind::Double).backward();
    (values.detach(), logits.grad())
}

#[test]
fn losses_and_gradients_agree_with_autograd() {
    for classes in [2i64, 3, 4, 5] {
        let logits = uniform(&[6, classes], -4.0, 4.0, classes as u32);
        let labels = Tensor::from_slice(&[0i64, 1, 2, 3, 4, 0]).remainder(classes);
        let targets = (&labels + Tensor::from_slice(&[1i64, 1, 1, 2, 3, 4]).clamp_max(classes - 1)).remainder(classes);
        for loss in [Loss::CrossEntropy, Loss::Margin, Loss::Dlr] {
            for targets in [None, Some(&targets)] {
                let found = ascend(loss, &logits, &labels, targets);
                let gradient = found.cotangent.to_kind(Kind::Double) * found.log_scale.exp().unsqueeze(1);
                let (values, expected) = by_autograd(loss, &logits, &labels, targets);
                assert!(found.loss.allclose(&values, 1e-9, 1e-9, false), "{loss:?} {targets:?} of {classes}");
                assert!(gradient.allclose(&expected, 1e-6, 1e-6, false), "{loss:?} {targets:?} of {classes}");
                let plain = found.with_float32_gradient(loss, &logits, &labels, targets);
                let gradient = plain.cotangent.to_kind(Kind::Double) * plain.log_scale.exp().unsqueeze(1);
                assert!(gradient.allclose(&expected, 1e-6, 1e-6, false), "float32, {loss:?} {targets:?}");
            }
        }
    }
}

#[test]
fn the_logit_ratio_does_not_depend_on_the_scale_of_the_logits() {
    let logits = uniform(&[4, 6], -4.0, 4.0, 3).to_kind(Kind::Double);
    let labels = Tensor::from_slice(&[0i64, 1, 2, 3]);
    let small = ascend(Loss::Dlr, &(&logits * 1e-4), &labels, None);
    let large = ascend(Loss::Dlr, &(&logits * 1e6), &labels, None);
    assert!(small.loss.allclose(&large.loss, 1e-6, 0.0, false));
    assert!(small.cotangent.allclose(&large.cotangent, 1e-6, 1e-6, false));
}

#[test]
fn saturated_cross_entropy_still_points_at_the_nearest_rival() {
    let logits = Tensor::from_slice(&[3e5f32, 1e5, -2e5]).view([1, 3]);
    let found = ascend(Loss::CrossEntropy, &logits, &Tensor::from_slice(&[0i64]), None);
    assert_eq!(to_vec(&found.cotangent), [-1.0, 1.0, 0.0]);
    assert_eq!(to_vec(&found.log_scale), [-2e5]);
    assert_eq!(to_vec(&found.loss), [0.0]);
}
