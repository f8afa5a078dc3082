//! The probe: a first look at a model on a few real images.
//!
//! What cannot be evaluated at all is rejected. Everything else that is odd becomes a finding: a misleading model must be
//! evaluated and exposed, not turned away.

use serde_json::json;
use tch::{Kind, Tensor};

use super::{Classifier, ModelError, to_unit};
use crate::protocol::{Finding, Loss, Weight};
use crate::robustness::engine::pull_back;
use crate::robustness::loss;
use crate::robustness::threat::{flat, to_vec};

/// Differences of logits below this share of their largest magnitude are rounding, not behaviour.
const ROUNDING: f64 = 1e-4;
/// AutoAttack's tolerance for "these are probabilities".
const PROBABILITY_TOLERANCE: f64 = 1e-5;
/// Median distance between the two largest logits beyond which float32 cross-entropy has long been exactly 0
/// (that happens at about 17).
const LARGEST_GAP: f64 = 50.0;
/// Median distance between the largest and the smallest logit below which rounding drowns differences.
const SMALLEST_RANGE: f64 = 1e-3;

/// Why a model cannot be evaluated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{found}")]
pub struct Rejection {
    /// Stable, snake_case; documented in docs/FINDINGS.md.
    pub code: &'static str,
    /// A sentence that says what was found.
    pub found: String,
}

impl From<ModelError> for Rejection {
    fn from(error: ModelError) -> Self {
        let code = match &error {
            ModelError::DoesNotLoad(_) => "does_not_load",
            ModelError::ForwardFails(_) => "forward_fails",
            ModelError::BackwardFails(_) => "backward_fails",
            ModelError::WrongShape { expected, found } if found.len() == 2 && found[0] == expected[0] => {
                "wrong_class_count"
            }
            ModelError::WrongShape { .. } => "wrong_output_shape",
            ModelError::WrongType(_) => "wrong_output_type",
            ModelError::OutOfMemory(_) => "out_of_memory",
            ModelError::DeviceFailed(_) => "device_failed",
        };
        Self { code, found: error.to_string() }
    }
}

/// Looks at `model` on real images, uint8 [n, C, H, W], at least one; 8 to 64 are a good number.
pub fn probe(model: &dyn Classifier, images: &Tensor) -> Result<Vec<Finding>, Rejection> {
    let images = &to_unit(images, model.device());
    let logits = forward(model, images)?;
    let infinite = rows_where(&logits.isfinite().all_dim(1, false).logical_not());
    if !infinite.is_empty() {
        let found = format!("logits are not finite on {} of {} real images", infinite.len(), logits.size()[0]);
        return Err(Rejection { code: "non_finite_logits", found });
    }
    let again = [forward(model, images)?, forward(model, images)?];
    let random = again.iter().any(|again| differ(&logits, again));
    let mut findings = Vec::from_iter(randomness(model, &logits, &again, random));
    let alone = forward_alone(model, images)?;
    if !random && !model.spec().stochastic {
        findings.extend(neighbours(model, images, &logits, &alone)?);
    }
    findings.extend(softmax(&logits));
    findings.extend(logit_scale(&logits));
    findings.extend(gradients(model, images)?);
    Ok(findings)
}

fn forward(model: &dyn Classifier, images: &Tensor) -> Result<Tensor, Rejection> {
    let _guard = tch::no_grad_guard();
    Ok(model.logits(images)?)
}

/// The first image in a batch of its own: also shows models that work at one batch size only.
fn forward_alone(model: &dyn Classifier, images: &Tensor) -> Result<Tensor, Rejection> {
    forward(model, &images.narrow(0, 0, 1)).map_err(|rejection| Rejection {
        found: format!("with a single image, unlike with {}, {}", images.size()[0], rejection.found),
        ..rejection
    })
}

fn randomness(model: &dyn Classifier, logits: &Tensor, again: &[Tensor; 2], random: bool) -> Option<Finding> {
    let largest = again.iter().map(|again| (again - logits).abs().max().double_value(&[])).fold(0.0, f64::max);
    if !model.spec().stochastic && random {
        return Some(Finding::new(
            "undeclared_randomness",
            Weight::Unreliable,
            "Two forward passes of the same images give different logits, but the model is not declared stochastic; \
             attacks without averaged gradients and single-pass verdicts understate and overstate its robustness.",
            json!({ "largest_difference": largest }),
        ));
    }
    (model.spec().stochastic && largest == 0.0).then(|| {
        Finding::new(
            "declared_stochastic_but_deterministic",
            Weight::Suspicious,
            "The model is declared stochastic, but three forward passes of the same images give identical logits: its \
             randomness may be switched off.",
            json!({ "forward_passes": 3 }),
        )
    })
}

/// Whether an image's logits depend on who shares its batch.
fn neighbours(
    model: &dyn Classifier,
    images: &Tensor,
    logits: &Tensor,
    alone: &Tensor,
) -> Result<Option<Finding>, Rejection> {
    let count = images.size()[0];
    // Keep the first half and put the negatives of the others beside it, then the other way round.
    let kept = (Tensor::arange(count, (Kind::Int64, images.device())) * 2).lt(count);
    let column = kept.view([-1, 1, 1, 1]);
    let negative: Tensor = 1.0 - images;
    let first = forward(model, &images.where_self(&column, &negative))?;
    let second = forward(model, &negative.where_self(&column, images))?;
    let crowded = first.where_self(&kept.unsqueeze(1), &second);
    let scale = magnitude(logits);
    let rows = rows_where(&(&crowded - logits).abs().amax(1, false).gt(ROUNDING * scale));
    let largest = (&crowded - logits).abs().max().double_value(&[]);
    let apart = (alone - logits.narrow(0, 0, 1)).abs().max().double_value(&[]);
    if rows.is_empty() && apart <= ROUNDING * scale {
        return Ok(None);
    }
    Ok(Some(Finding::new(
        "batch_dependent_output",
        Weight::Unreliable,
        "An image's logits depend on the other images of its batch (batch normalisation left in training mode, for \
         example), so its verdict describes the batch as much as the image.",
        json!({ "images": rows, "largest_difference": largest, "difference_alone": apart, "largest_logit": scale }),
    )))
}

fn softmax(logits: &Tensor) -> Option<Finding> {
    let sums = to_vec(&logits.sum_dim_intlist(1, false, Kind::Double));
    let (low, high) = (logits.min().double_value(&[]), logits.max().double_value(&[]));
    let probabilities = low > -PROBABILITY_TOLERANCE
        && high < 1.0 + PROBABILITY_TOLERANCE
        && sums.iter().all(|sum| (sum - 1.0).abs() < PROBABILITY_TOLERANCE);
    probabilities.then(|| {
        Finding::new(
            "softmax_output",
            Weight::Suspicious,
            "The outputs are probabilities, not logits; losses computed from them saturate and hide gradients. Submit \
             the model without its last softmax.",
            json!({ "smallest": low, "largest": high }),
        )
    })
}

fn logit_scale(logits: &Tensor) -> Option<Finding> {
    let (sorted, _) = logits.sort(1, true);
    let column = |index: i64| sorted.select(1, index);
    let gap = median(&(column(0) - column(1)));
    let range = median(&(column(0) - column(-1)));
    let problem = if gap > LARGEST_GAP {
        "so far apart that softmax is saturated: plain cross-entropy gradients vanish"
    } else if range < SMALLEST_RANGE {
        "so close together that rounding drowns their differences"
    } else {
        return None;
    };
    Some(Finding::new(
        "wild_logit_scale",
        Weight::Suspicious,
        format!("The logits are {problem}."),
        json!({ "median_gap_of_largest_two": gap, "median_range": range }),
    ))
}

/// Input gradients of the search's own loss, which does not vanish with confidence.
fn gradients(model: &dyn Classifier, images: &Tensor) -> Result<Vec<Finding>, Rejection> {
    let images = images.detach().set_requires_grad(true);
    let logits = model.logits(&images)?;
    let seen = logits.detach();
    let ascent = loss::ascend(Loss::CrossEntropy, &seen, &seen.argmax(1, false), None);
    let gradient = match pull_back(&logits, &ascent.cotangent, &images) {
        Ok(gradient) => gradient,
        Err(ModelError::BackwardFails(reason)) => {
            return Ok(vec![zero_gradients(&(0..images.size()[0]).collect::<Vec<_>>(), Some(reason))]);
        }
        Err(error) => return Err(error.into()),
    };
    let peaks = flat(&gradient).abs().amax(1, false);
    let (zero, nan) = (rows_where(&peaks.eq(0.0)), rows_where(&peaks.isfinite().logical_not()));
    let mut findings = Vec::new();
    if !zero.is_empty() {
        findings.push(zero_gradients(&zero, None));
    }
    if !nan.is_empty() {
        findings.push(Finding::new(
            "nan_gradients",
            Weight::Suspicious,
            "The gradient with respect to the image has values that are not finite (a square root or a norm at 0, for \
             example); they count as 0, and gradient attacks are weaker for it.",
            json!({ "images": nan }),
        ));
    }
    Ok(findings)
}

fn zero_gradients(rows: &[i64], reason: Option<String>) -> Finding {
    Finding::new(
        "zero_gradients",
        Weight::Suspicious,
        "The gradient with respect to the image is zero in every pixel, so gradient attacks cannot move; robustness \
         measured by them alone is not to be trusted.",
        match reason {
            Some(reason) => json!({ "images": rows, "backward_pass": reason }),
            None => json!({ "images": rows }),
        },
    )
}

fn differ(a: &Tensor, b: &Tensor) -> bool {
    (a - b).abs().max().double_value(&[]) > ROUNDING * magnitude(a)
}

fn magnitude(logits: &Tensor) -> f64 {
    logits.abs().max().double_value(&[]).max(f64::MIN_POSITIVE)
}

fn median(values: &Tensor) -> f64 {
    values.median().double_value(&[])
}

/// Positions of the true rows.
fn rows_where(rows: &Tensor) -> Vec<i64> {
    let positions = rows.nonzero().view([-1]).to_device(tch::Device::Cpu);
    Vec::<i64>::try_from(positions).expect("a row of positions")
}
