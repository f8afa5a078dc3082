//! Examinations: a fresh float32 forward pass on the exact pixels, and the measured size of the perturbation.

use tch::{Kind, Tensor};

use super::kernel::Kernel;
use crate::protocol::{ThreatModel, VerdictRule};
use crate::robustness::model::ModelError;
use crate::robustness::threat::{Size, flat, measure};

/// What an examination found of one image.
#[derive(Debug, Clone, Copy)]
pub struct Finding {
    /// The label unless broken: what happens outside the budget says nothing.
    pub predicted: u32,
    /// Misclassified by the rule, inside the budget, every pixel in [0,1].
    pub broken: bool,
    /// Some fresh forward gave a logit that is no finite number. The class is then libtorch's argmax, to which NaN is the
    /// largest of all numbers.
    pub undefined: bool,
    pub size: Size,
}

/// Fresh forwards that one examination takes.
pub fn draws(rule: VerdictRule, stochastic: bool) -> u32 {
    match rule {
        VerdictRule::Majority(n) if stochastic => n.max(1),
        _ => 1,
    }
}

/// Examines `images` against `clean`, both float32 [n, C, H, W], each with its label and threat model (none: whatever
/// is misclassified is broken, however far it was moved). Every image gets `draws` fresh forwards, laid along the batch.
pub fn examine(
    kernel: &Kernel,
    images: &Tensor,
    clean: &Tensor,
    labels: &[u32],
    threats: &[Option<ThreatModel>],
    draws: u32,
) -> Result<Vec<Finding>, ModelError> {
    let logits = kernel.logits(&images.repeat_interleave_self_int(i64::from(draws), 0, None))?;
    let votes = Vec::<i64>::try_from(logits.argmax(1, false).to_device(tch::Device::Cpu)).expect("a row of classes");
    let undefined = logits.isfinite().logical_not().any_dim(1, false);
    let undefined = Vec::<bool>::try_from(undefined.to_device(tch::Device::Cpu)).expect("a bool row");
    let sizes = measure(images, clean);
    let pixels = flat(images);
    // A NaN makes both comparisons false.
    let inside = pixels.ge(0.0).logical_and(&pixels.le(1.0)).all_dim(1, false).to_kind(Kind::Bool);
    let inside = Vec::<bool>::try_from(inside.to_device(tch::Device::Cpu)).expect("a bool row");
    Ok((0..labels.len())
        .map(|row| {
            let drawn = row * draws as usize..(row + 1) * draws as usize;
            let votes = &votes[drawn.clone()];
            let label = labels[row];
            let wrong: Vec<u32> = votes.iter().map(|vote| *vote as u32).filter(|vote| *vote != label).collect();
            let misclassified = 2 * wrong.len() > votes.len();
            let admitted = threats[row].is_none_or(|threat| threat.admits(sizes[row].in_norm(threat.norm)));
            let broken = misclassified && admitted && inside[row];
            Finding {
                predicted: if broken { most_frequent(&wrong) } else { label },
                broken,
                undefined: undefined[drawn].contains(&true),
                size: sizes[row],
            }
        })
        .collect())
}

/// The smallest of the most frequent classes.
fn most_frequent(votes: &[u32]) -> u32 {
    let count = |class: &u32| votes.iter().filter(|vote| *vote == class).count();
    *votes
        .iter()
        .max_by_key(|class| (count(class), std::cmp::Reverse(**class)))
        .expect("a misclassified image has votes")
}
