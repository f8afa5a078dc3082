//! Directions of steepest ascent.

use tch::{Kind, Tensor};

use crate::protocol::{ClipOrder, Norm, Projection};
use crate::robustness::host::is_here;
use crate::robustness::threat::{Ball, flat, host, per_row};

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

/// The direction of steepest ascent in L2 among those that the box lets go: unit, float64; zero where the gradient is.
pub fn steepest_l2(point: &Tensor, gradient: &Tensor) -> Tensor {
    if is_here(point) {
        return host::steepest_l2(point, gradient);
    }
    by_tensors(point, gradient)
}

/// The admissible image nearest to the one that lies `length` [n] from `point` in the direction of steepest ascent, in the L2 ball of
/// radius `epsilon` [n].
pub fn ascend_l2(clean: &Tensor, point: &Tensor, gradient: &Tensor, length: &Tensor, epsilon: &Tensor) -> Tensor {
    const BALL: Ball = Ball { norm: Norm::L2, projection: Projection::Euclidean, order: ClipOrder::ProjectThenClip };
    if is_here(point) {
        return host::l2_step(clean, point, gradient, length, epsilon);
    }
    let so_far = point.to_kind(Kind::Double) - clean.to_kind(Kind::Double);
    BALL.project(clean, &(so_far + steepest_l2(point, gradient) * per_row(length, point)), epsilon)
}

fn by_tensors(point: &Tensor, gradient: &Tensor) -> Tensor {
    let gradient = free(point, gradient, 0.0).to_kind(Kind::Double);
    let length = flat(&gradient).square().sum_dim_intlist(1, false, Kind::Double).sqrt();
    &gradient / per_row(&length.clamp_min(f64::MIN_POSITIVE), &gradient)
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    #[test]
    fn directions_on_the_host_are_those_of_tensors() {
        let numbers = |factor: f64| {
            let numbers = Tensor::arange(3 * 37, (Kind::Double, Device::Cpu)) * factor;
            numbers.frac().view([3, 1, 1, 37]).to_kind(Kind::Float)
        };
        let point = (numbers(0.618_033_988_75) * 1.4 - 0.2).clamp(0.0, 1.0);
        let scale = Tensor::from_slice(&[0.0f32, 1e-30, 1e30]).view([3, 1, 1, 1]);
        let gradient = (numbers(0.414_213_562_37) - 0.5) * scale;
        let apart = host::steepest_l2(&point, &gradient) - by_tensors(&point, &gradient);
        assert!(apart.abs().max().double_value(&[]) < 1e-15);

        let clean = (numbers(0.732_050_807_57) * 1.4 - 0.2).clamp(0.0, 1.0);
        let [length, epsilon] = [[0.1, 0.5, 0.5], [0.3, 1.0, 2.0]].map(|radii| Tensor::from_slice(&radii));
        let so_far = point.to_kind(Kind::Double) - clean.to_kind(Kind::Double);
        let there = so_far + by_tensors(&point, &gradient) * per_row(&length, &point);
        let apart = ascend_l2(&clean, &point, &gradient, &length, &epsilon) - host::l2_image(&clean, &there, &epsilon);
        assert!(apart.abs().max().double_value(&[]) < 2e-7);
    }
}
