//! Projections on a hyperplane inside the pixel box.

use tch::{Kind, Tensor};

use super::{flat, host, per_row};
use crate::protocol::Norm;
use crate::robustness::host::is_here;

/// The shortest δ in `norm` with w·δ = −offset and point + δ ∈ [0,1], row by row; where the box keeps the hyperplane out of
/// reach, the δ that goes as far as it can.
/// `points` float64 [n, …] in [0,1]; `w` float64 [n, …]; `offset` float64 [n], w·point − b.
///
/// With rᵢ the room to the box in the direction that pays, |δᵢ| = min(λ, rᵢ) in L∞ and min(λ|wᵢ|, rᵢ) in L2, for the λ
/// with Σ|wᵢδᵢ| = |offset|; in L1 the pixels with the largest |wᵢ| go to the box until that sum is reached
/// (Croce and Hein 2020, "Minimally distorted adversarial examples", section 2.1).
pub fn to_hyperplane(norm: Norm, points: &Tensor, w: &Tensor, offset: &Tensor) -> Tensor {
    match norm {
        Norm::Linf | Norm::L2 if is_here(points) => host::to_hyperplane(norm == Norm::Linf, points, w, offset),
        _ => by_tensors(norm, points, w, offset),
    }
}

fn by_tensors(norm: Norm, points: &Tensor, w: &Tensor, offset: &Tensor) -> Tensor {
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

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    #[test]
    fn rows_on_the_host_go_the_way_of_tensors() {
        let numbers =
            |factor: f64| (Tensor::arange(4 * 37, (Kind::Double, Device::Cpu)) * factor).frac().view([4, 1, 1, 37]);
        let points = (numbers(0.618_033_988_75) * 1.4 - 0.2).clamp(0.0, 1.0);
        let w = (numbers(0.414_213_562_37) - 0.5).where_self(&numbers(0.732_050_807_57).gt(0.2), &points.zeros_like());
        let offset = Tensor::from_slice(&[0.0, -0.3, 4.0, 1e6]);
        for norm in [Norm::Linf, Norm::L2] {
            let host = host::to_hyperplane(norm == Norm::Linf, &points, &w, &offset);
            let apart = (&host - by_tensors(norm, &points, &w, &offset)).abs().max().double_value(&[]);
            assert!(apart < 1e-12, "{norm}: {apart}");
            // A loss that is no number leads nowhere, and shows it.
            let lost = host::to_hyperplane(norm == Norm::Linf, &points, &w, &Tensor::from_slice(&[f64::NAN; 4]));
            assert!(bool::try_from(lost.isnan().all()).unwrap());
        }
    }
}
