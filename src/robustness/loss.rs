//! What attacks ascend: losses of logits, with gradients that survive saturation.

pub(crate) mod host;

use tch::{Kind, Tensor};

use crate::protocol::Loss;

/// Keeps the difference-of-logits ratio finite where all logits are equal.
const DLR_GUARD: f64 = 1e-12;

/// A loss and its gradient with respect to logits, row by row.
///
/// The gradient is `exp(log_scale) · cotangent`. Cross-entropy's gradient vanishes with the probability of being wrong,
/// and in float32 it is exactly zero for a confident model long before its direction has become meaningless; keeping the
/// vanishing factor apart, in the log domain, keeps the direction exact however confident the model.
#[derive(Debug)]
pub struct Ascent {
    /// float64 [n]
    pub loss: Tensor,
    /// float32 [n, K]
    pub cotangent: Tensor,
    /// float64 [n]
    pub log_scale: Tensor,
}

/// `logits` float32 [n, K]; `labels` and, for a targeted loss, `targets` int64 [n].
pub fn ascend(loss: Loss, logits: &Tensor, labels: &Tensor, targets: Option<&Tensor>) -> Ascent {
    let logits = logits.detach().to_kind(Kind::Double);
    let classes = logits.size()[1];
    let one_hot = |class: &Tensor| class.one_hot(classes).to_kind(Kind::Double);
    let at = |class: &Tensor| logits.gather(1, &class.unsqueeze(1), false).squeeze_dim(1);
    let without = |class: &Tensor| logits.masked_fill(&one_hot(class).to_kind(Kind::Bool), f64::NEG_INFINITY);
    match (loss, targets) {
        (Loss::CrossEntropy, None) => {
            // −log p_y = softplus(a) and its gradient is σ(a)·(softmax over the wrong classes − e_y),
            // a = log-sum-exp of the wrong logits − z_y.
            let wrong = without(labels);
            let advantage = wrong.logsumexp(1, false) - at(labels);
            Ascent {
                loss: softplus(&advantage),
                cotangent: (wrong.softmax(1, Kind::Double) - one_hot(labels)).to_kind(Kind::Float),
                log_scale: -softplus(&-&advantage),
            }
        }
        (Loss::CrossEntropy, Some(target)) => {
            let others = without(target);
            let deficit = others.logsumexp(1, false) - at(target);
            Ascent {
                loss: -softplus(&deficit),
                cotangent: (one_hot(target) - others.softmax(1, Kind::Double)).to_kind(Kind::Float),
                log_scale: -softplus(&-&deficit),
            }
        }
        (Loss::Margin, target) => {
            let rival = target.map_or_else(|| without(labels).argmax(1, false), Tensor::shallow_clone);
            let margin = at(&rival) - at(labels);
            Ascent {
                log_scale: margin.zeros_like(),
                loss: margin,
                cotangent: (one_hot(&rival) - one_hot(labels)).to_kind(Kind::Float),
            }
        }
        (Loss::Dlr, target) => {
            let rival = target.map_or_else(|| without(labels).argmax(1, false), Tensor::shallow_clone);
            let margin = at(&rival) - at(labels);
            let Some((spread, pull)) = spread(&logits, target.is_some()) else {
                return Ascent {
                    log_scale: margin.zeros_like(),
                    cotangent: (one_hot(&rival) - one_hot(labels)).to_kind(Kind::Float),
                    loss: margin,
                };
            };
            let spread = spread + DLR_GUARD;
            let loss = margin / &spread;
            let cotangent = one_hot(&rival) - one_hot(labels) - loss.unsqueeze(1) * pull;
            Ascent { loss, cotangent: cotangent.to_kind(Kind::Float), log_scale: -spread.log() }
        }
    }
}

/// The denominator of the difference-of-logits ratio and its gradient, from `logits` [n, K] with π their falling order:
/// z_π1 − z_π3, or z_π1 − (z_π3 + z_π4)/2 towards a target (Croce and Hein 2020, equations 6 and 7). With three classes
/// there is no fourth logit, and the third stands for it; with two there is no ratio, and the plain margin is ascended.
fn spread(logits: &Tensor, targeted: bool) -> Option<(Tensor, Tensor)> {
    let classes = logits.size()[1];
    if classes < 3 {
        return None;
    }
    let (values, order) = logits.topk(classes.min(4), 1, true, true);
    let weights: &[f64] = match (targeted, classes) {
        (true, 4..) => &[1.0, 0.0, -0.5, -0.5],
        (false, 4..) => &[1.0, 0.0, -1.0, 0.0],
        _ => &[1.0, 0.0, -1.0],
    };
    let weights = Tensor::from_slice(weights).to_device(logits.device()).unsqueeze(0).expand_as(&values);
    let spread = (&values * &weights).sum_dim_intlist(1, false, Kind::Double);
    Some((spread, logits.zeros_like().scatter(1, &order, &weights)))
}

/// log(1 + eˣ), accurate at both ends.
fn softplus(x: &Tensor) -> Tensor {
    x.clamp_min(0.0) + (-x.abs()).exp().log1p()
}

impl Ascent {
    /// Cross-entropy's gradient as plain float32 has it (softmax − e_y, untargeted), rounding and fading included: what a
    /// published procedure followed on confident images. Other losses stay as they are.
    pub fn with_float32_gradient(self, loss: Loss, logits: &Tensor, labels: &Tensor, targets: Option<&Tensor>) -> Self {
        if loss != Loss::CrossEntropy {
            return self;
        }
        let logits = logits.detach();
        let one_hot = |class: &Tensor| class.one_hot(logits.size()[1]).to_kind(Kind::Float);
        // By way of log-softmax, as libtorch's own loss goes: on saturated rows the rounding decides the direction.
        let softmax = logits.log_softmax(1, Kind::Float).exp();
        let cotangent = match targets {
            None => softmax - one_hot(labels),
            Some(targets) => one_hot(targets) - softmax,
        };
        Self { cotangent, log_scale: self.log_scale.zeros_like(), ..self }
    }
}
