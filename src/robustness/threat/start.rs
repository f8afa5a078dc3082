//! Random starting points: uniform in the norm ball, then cut to the pixel box.

use tch::{Kind, Tensor};

use super::{clip, per_row, toward_clean};
use crate::protocol::Norm;
use crate::robustness::rng::Stream;

/// A point drawn uniformly from the unit ball of `norm` in `dimension` dimensions.
pub fn unit_ball(norm: Norm, dimension: usize, stream: &mut Stream) -> Vec<f64> {
    match norm {
        Norm::Linf => (0..dimension).map(|_| 2.0 * stream.uniform() - 1.0).collect(),
        Norm::L2 => {
            let mut point = Vec::with_capacity(dimension + 1);
            while point.len() < dimension {
                point.extend(stream.normals());
            }
            point.truncate(dimension);
            let length = point.iter().map(|v| v * v).sum::<f64>().sqrt();
            let radius = stream.uniform().powf(1.0 / dimension as f64);
            scaled(point, radius / length)
        }
        Norm::L1 => {
            // d + 1 exponentials over their sum are uniform on the simplex; dropping one fills the ball's orthant.
            let mut point: Vec<f64> = (0..dimension).map(|_| stream.exponential()).collect();
            let total = point.iter().sum::<f64>() + stream.exponential();
            point.iter_mut().for_each(|v| *v *= stream.sign());
            scaled(point, 1.0 / total)
        }
    }
}

/// A point of the unit sphere of `norm` in a random direction: uniform components in L∞, normal ones in L2 and L1, scaled to
/// length 1.
pub fn unit_sphere(norm: Norm, dimension: usize, stream: &mut Stream) -> Vec<f64> {
    let mut point = Vec::with_capacity(dimension + 1);
    while point.len() < dimension {
        match norm {
            Norm::Linf => point.push(2.0 * stream.uniform() - 1.0),
            Norm::L2 | Norm::L1 => point.extend(stream.normals()),
        }
    }
    point.truncate(dimension);
    onto_sphere(norm, point)
}

/// `point` scaled to length 1 in `norm`.
pub fn onto_sphere(norm: Norm, point: Vec<f64>) -> Vec<f64> {
    let length = match norm {
        Norm::Linf => point.iter().fold(0.0f64, |most, v| most.max(v.abs())),
        Norm::L2 => point.iter().map(|v| v * v).sum::<f64>().sqrt(),
        Norm::L1 => point.iter().map(|v| v.abs()).sum(),
    };
    scaled(point, 1.0 / length)
}

fn scaled(mut point: Vec<f64>, factor: f64) -> Vec<f64> {
    // Zero or infinite only if every draw was zero: the centre is then as good a point as any.
    let factor = if factor.is_finite() { factor } else { 0.0 };
    point.iter_mut().for_each(|v| *v *= factor);
    point
}

/// The images `clean + ε·unit`, cut to the box and rounded toward `clean`.
/// `clean` float32 [n, …]; `unit` float64 [n, …], points of the unit ball; `epsilon` float64 [n].
pub fn random_start(clean: &Tensor, unit: &Tensor, epsilon: &Tensor) -> Tensor {
    let delta = unit.to_kind(Kind::Double) * per_row(epsilon, clean);
    toward_clean(clean, &clip(clean, &delta))
}
