//! Directions of steepest ascent.

use tch::{Kind, Tensor};

use crate::robustness::threat::{flat, per_row};

/// `gradient` without the pixels that the box keeps from following it, being within `slack` of it: a step is not spent on
/// them. Both [n, …].
pub fn free(point: &Tensor, gradient: &Tensor, slack: f64) -> Tensor {
    let below = point.le(slack).logical_and(&gradient.lt(0.0));
    let above = point.ge(1.0 - slack).logical_and(&gradient.gt(0.0));
    gradient.masked_fill(&below.logical_or(&above), 0.0)
}

/// From `first` to `last` along half a cosine, at this share of the way.
pub fn cosine(first: f64, last: f64, share: f64) -> f64 {
    last + (first - last) * (1.0 + (std::f64::consts::PI * share).cos()) / 2.0
}

/// g / ‖g‖₂, float64; zero where the gradient is.
pub fn unit_l2(gradient: &Tensor) -> Tensor {
    let gradient = gradient.to_kind(Kind::Double);
    let length = flat(&gradient).square().sum_dim_intlist(1, false, Kind::Double).sqrt();
    &gradient / per_row(&length.clamp_min(f64::MIN_POSITIVE), &gradient)
}
