//! Projections on a hyperplane inside the pixel box.

use tch::{Kind, Tensor};

use super::{flat, per_row};
use crate::protocol::Norm;

/// The shortest δ in `norm` with w·δ = −offset and point + δ ∈ [0,1], row by row; where the box keeps the hyperplane out of
/// reach, the δ that goes as far as it can.
/// `points` float64 [n, …] in [0,1]; `w` float64 [n, …]; `offset` float64 [n], w·point − b.
///
/// With rᵢ the room to the box in the direction that pays, |δᵢ| = min(λ, rᵢ) in L∞ and min(λ|wᵢ|, rᵢ) in L2, for the λ
/// with Σ|wᵢδᵢ| = |offset|; in L1 the pixels with the largest |wᵢ| go to the box until that sum is reached
/// (Croce and Hein 2020, "Minimally distorted adversarial examples", section 2.1).
pub fn to_hyperplane(norm: Norm, points: &Tensor, w: &Tensor, offset: &Tensor) -> Tensor {
    let direction = -(w.sign() * per_row(&offset.sign(), points));
    let up = direction.gt(0.0);
    let room = flat(&(1.0f64 - points).where_self(&up, points));
    let gain = flat(&w.abs());
    let wanted = offset.abs().unsqueeze(1);
    let distance = match norm {
        Norm::Linf => level(&gain, &gain.ones_like(), &room, &wanted),
        Norm::L2 => level(&gain, &gain, &room, &wanted),
        Norm::L1 => greedy(&gain, &room, &wanted),
    };
    distance.view_as(points) * direction
}

/// min(λ·speed, room) with the λ at which Σ gain·min(λ·speed, room) = wanted; all [n, d] but `wanted`, [n, 1].
///
/// The sum is concave in λ, so Newton's method climbs to the root from below, and arrives when no further coordinate
/// meets the box; a row that has arrived stays, so rounds spent on its neighbours do not move it.
fn level(gain: &Tensor, speed: &Tensor, room: &Tensor, wanted: &Tensor) -> Tensor {
    const MOST_ROUNDS: usize = 64;
    let sum = |values: Tensor| values.sum_dim_intlist(1, true, Kind::Double);
    let (at_room, at_speed) = (gain * room, gain * speed);
    let mut lambda = wanted.zeros_like();
    for _ in 0..MOST_ROUNDS {
        let full = (speed * &lambda).ge_tensor(room);
        let spent = sum(at_room.where_scalarother(&full, 0.0));
        let slope = sum(at_speed.masked_fill(&full, 0.0));
        let next =
            ((wanted - spent).clamp_min(0.0) / slope.clamp_min(f64::MIN_POSITIVE)).clamp_max(1e100).maximum(&lambda);
        if next == lambda {
            break;
        }
        lambda = next;
    }
    (speed * lambda).minimum(room)
}

/// The pixels of the largest gain, each to the box, until Σ gain·distance = wanted.
fn greedy(gain: &Tensor, room: &Tensor, wanted: &Tensor) -> Tensor {
    let (gain, order) = gain.sort(1, true);
    let room = room.gather(1, &order, false);
    let paid = &gain * &room;
    let before = paid.cumsum(1, Kind::Double) - &paid;
    let distance = ((wanted - before) / gain.clamp_min(f64::MIN_POSITIVE)).clamp_min(0.0).minimum(&room);
    let distance = distance.masked_fill(&gain.eq(0.0), 0.0);
    distance.zeros_like().scatter(1, &order, &distance)
}
