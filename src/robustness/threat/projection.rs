//! Projections on balls and on their intersection with the pixel box.

use tch::{Kind, Tensor};

use super::{clip, flat, host, per_row, toward_clean};
use crate::protocol::{ClipOrder, Norm, Projection};
use crate::robustness::host::is_here;

/// ART's guard against division by zero.
const ART_TOLERANCE: f64 = 1e-7;

/// How a perturbation is brought back inside its budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ball {
    pub norm: Norm,
    pub projection: Projection,
    pub order: ClipOrder,
}

impl Ball {
    /// The admissible image for a step that ended at `clean + delta`, which may be outside ball and box.
    /// `clean` float32 [n, …] in [0,1]; `delta` float64 [n, …], finite; `epsilon` float64 [n].
    ///
    /// The Euclidean projection is the nearest point of ball ∩ box, for which order means nothing: projecting on the ball
    /// and then on the box would leave part of the budget unused wherever the box cuts.
    pub fn project(&self, clean: &Tensor, delta: &Tensor, epsilon: &Tensor) -> Tensor {
        if (self.norm, self.projection) == (Norm::L2, Projection::Euclidean) && is_here(clean) {
            return host::l2_image(clean, delta, epsilon);
        }
        let epsilon = per_row(epsilon, clean);
        let delta = match (self.norm, self.projection, self.order) {
            (Norm::Linf, _, _) => clip(clean, &delta.minimum(&epsilon).maximum(&-&epsilon)),
            (Norm::L2, Projection::Euclidean, _) => l2_ball_and_box(clean, delta, &epsilon),
            (Norm::L1, Projection::Euclidean, _) => l1_ball_and_box(clean, delta, &epsilon),
            (_, Projection::Radial, ClipOrder::ProjectThenClip) => clip(clean, &self.rescaled(delta, &epsilon)),
            // Rescaling only shrinks, so the box still holds afterwards.
            (_, Projection::Radial, ClipOrder::ClipThenProject) => self.rescaled(&clip(clean, delta), &epsilon),
        };
        toward_clean(clean, &delta)
    }

    /// δ·min(1, ε/(‖δ‖ + 1e-7)), L2 or L1.
    fn rescaled(&self, delta: &Tensor, epsilon: &Tensor) -> Tensor {
        let length = match self.norm {
            Norm::L1 => flat(delta).abs().sum_dim_intlist(1, false, Kind::Double),
            _ => flat(delta).square().sum_dim_intlist(1, false, Kind::Double).sqrt(),
        };
        delta * (epsilon / (per_row(&length, delta) + ART_TOLERANCE)).clamp_max(1.0)
    }
}

/// The lowest and highest admissible float32 image under L∞: within `epsilon` [n] of `clean`, in [0,1], each bound
/// rounded toward `clean`. (Plain `clean ± epsilon` in float32 overshoots by up to 1e-5 of a small ε.)
pub fn linf_bounds(clean: &Tensor, epsilon: &Tensor) -> (Tensor, Tensor) {
    let reach = per_row(epsilon, clean).expand_as(clean);
    let bound = |delta: &Tensor| toward_clean(clean, &clip(clean, delta));
    (bound(&-&reach), bound(&reach))
}

/// The Euclidean projection on {δ : ‖δ‖₁ ≤ ε, clean + δ ∈ [0,1]}.
///
/// δᵢ = sign(dᵢ)·min(max(|dᵢ| − λ, 0), bᵢ), where bᵢ is the room to the box in the direction of dᵢ and λ ≥ 0 is the
/// root of Σ|δᵢ(λ)| = ε, or 0 where that sum is already below ε (Croce and Hein 2021, "Mind the box"). The sum is
/// piecewise linear and decreasing in λ with breakpoints max(|dᵢ| − bᵢ, 0) and |dᵢ|; they are sorted, the sum follows at
/// each from the slopes before it, and the root lies on the piece that crosses ε.
fn l1_ball_and_box(clean: &Tensor, delta: &Tensor, epsilon: &Tensor) -> Tensor {
    let upper = flat(&delta.abs());
    let lower = (&upper - flat(&room(clean, delta))).clamp_min(0.0);
    let epsilon = epsilon.view([-1, 1]);
    let size = |lambda: &Tensor| (&upper - lambda).clamp_min(0.0).minimum(&(&upper - &lower));

    let (points, order) = Tensor::cat(&[&lower, &upper], 1).sort(1, false);
    let dimension = upper.size()[1];
    // Passing a `lower` makes one more coordinate shrink, passing an `upper` one fewer.
    let slope = (order.lt(dimension).to_kind(Kind::Double) * 2.0 - 1.0).cumsum(1, Kind::Double);
    let last = 2 * dimension - 1;
    let drops = slope.narrow(1, 0, last) * (points.narrow(1, 1, last) - points.narrow(1, 0, last));
    let total = (&upper - &lower).sum_dim_intlist(1, true, Kind::Double);
    let sums = &total - drops.cumsum(1, Kind::Double);
    // sums[k] belongs to points[k + 1]; the crossing piece ends at the first sum not above ε.
    let crossing = sums.gt_tensor(&epsilon).sum_dim_intlist(1, true, Kind::Int64).clamp_max(last - 1);
    let end = points.gather(1, &(&crossing + 1), false);
    let missing = (&epsilon - sums.gather(1, &crossing, false)).clamp_min(0.0);
    let root = end - missing / slope.gather(1, &crossing, false).clamp_min(1.0);
    let lambda = root.clamp_min(0.0) * total.gt_tensor(&epsilon).to_kind(Kind::Double);

    let found = size(&lambda);
    // λ carries rounding errors; the budget does not forgive them.
    let length = found.sum_dim_intlist(1, true, Kind::Double).clamp_min(f64::MIN_POSITIVE);
    (found * (epsilon / length).clamp_max(1.0)).view_as(delta) * delta.sign()
}

/// The Euclidean projection on {δ : ‖δ‖₂ ≤ ε, clean + δ ∈ [0,1]}.
///
/// δᵢ = sign(dᵢ)·min(s·|dᵢ|, bᵢ), where bᵢ is the room to the box in the direction of dᵢ and s ≤ 1 the largest factor
/// with ‖δ‖₂ ≤ ε. Solving for s as if the coordinates now at the box were all that will ever be, and again with those
/// that this brings there, climbs to the root from below and reaches it in finitely many rounds, a handful in practice;
/// a row that has arrived stays, so rounds spent on its neighbours do not move it.
fn l2_ball_and_box(clean: &Tensor, delta: &Tensor, epsilon: &Tensor) -> Tensor {
    const MOST_ROUNDS: usize = 64;
    let distance = flat(&delta.abs());
    let room = flat(&room(clean, delta));
    let squares = distance.square();
    let room_squares = room.square();
    let budget = epsilon.view([-1, 1]).square();
    let sum = |values: Tensor| values.sum_dim_intlist(1, true, Kind::Double);
    let mut scale = budget.zeros_like();
    for _ in 0..MOST_ROUNDS {
        let at_box = (&distance * &scale).ge_tensor(&room);
        let spent = sum(room_squares.where_scalarother(&at_box, 0.0));
        let free = sum(squares.masked_fill(&at_box, 0.0)).clamp_min(f64::MIN_POSITIVE);
        let next = ((&budget - spent).clamp_min(0.0) / free).sqrt().clamp_max(1.0).maximum(&scale);
        if next == scale {
            break;
        }
        scale = next;
    }
    (distance * scale).minimum(&room).view_as(delta) * delta.sign()
}

/// How far each pixel may move in the direction of `delta`, float64.
fn room(clean: &Tensor, delta: &Tensor) -> Tensor {
    let down = clean.to_kind(Kind::Double);
    let up: Tensor = 1.0 - &down;
    up.where_self(&delta.gt(0.0), &down)
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    /// Black, white and grey pixels, and perturbations of every size; odd in number.
    fn case() -> (Tensor, Tensor, Tensor) {
        let numbers =
            |factor: f64| (Tensor::arange(5 * 37, (Kind::Double, Device::Cpu)) * factor).frac().view([5, 1, 1, 37]);
        let clean = (numbers(0.618_033_988_75) * 1.4 - 0.2).clamp(0.0, 1.0).to_kind(Kind::Float);
        let delta =
            (numbers(0.414_213_562_37) - 0.5) * Tensor::from_slice(&[0.0, 0.01, 1.0, 3.0, 100.0]).view([5, 1, 1, 1]);
        (clean, delta, Tensor::from_slice(&[0.5, 1.0, 0.7, 2.5, 1e-3]))
    }

    #[test]
    fn rows_on_the_host_are_projected_as_tensors_are() {
        let (clean, delta, epsilon) = case();
        let image = host::l2_image(&clean, &delta, &epsilon);
        let other = toward_clean(&clean, &l2_ball_and_box(&clean, &delta, &per_row(&epsilon, &clean)));
        assert!((&image - other).abs().max().double_value(&[]) < 2e-7);
        for row in 0..5 {
            let one = |tensor: &Tensor| tensor.narrow(0, row, 1);
            assert_eq!(host::l2_image(&one(&clean), &one(&delta), &one(&epsilon)), one(&image));
        }
    }
}
