//! How Square moves in L2 and L1: the budget is spent on pairs of opposite bumps, and a step moves what one window holds to
//! another (Andriushchenko et al. 2020, algorithm 3; Croce and Hein 2021 for L1).

use tch::{Kind, Tensor};

use super::square_window::{self, Window};
use super::{Setting, rows};
use crate::protocol::{ClipOrder, Norm, Projection};
use crate::robustness::rng::Stream;
use crate::robustness::threat::{Ball, clip, length, per_row, toward_clean};

/// Keeps quotients of norms defined.
const SMALLEST: f64 = 1e-12;

/// Clean images and radii of the slots.
#[derive(Debug)]
pub struct Bumps {
    setting: Setting,
    clean: Tensor,
    epsilon: Tensor,
}

impl Bumps {
    pub fn new(setting: &Setting) -> Self {
        Self { setting: *setting, clean: rows::images(setting), epsilon: rows::numbers(setting) }
    }

    /// Begins trajectories in `slots` and returns their first points: the image tiled with bumps, five tiles along its
    /// shorter side where there is room, every tile of every channel with its own sign.
    pub fn start(&mut self, slots: &Tensor, clean: &Tensor, epsilon: &Tensor, streams: &mut [Stream]) -> Tensor {
        let _ = self.clean.index_copy_(0, slots, clean);
        let _ = self.epsilon.index_copy_(0, slots, epsilon);
        let [channels, height, width] = self.setting.shape;
        let side = (height.min(width) / 5).max(1);
        let setting = Setting { slots: streams.len(), ..self.setting };
        let mut delta = clean.to_kind(Kind::Double).zeros_like();
        let offset = |extent: i64| (extent - extent / side * side) / 2;
        for down in 0..height / side {
            for right in 0..width / side {
                let window = Window { top: offset(height) + down * side, left: offset(width) + right * side, side };
                let windows = vec![window; streams.len()];
                let turned: Vec<bool> = streams.iter_mut().map(|stream| stream.sign() > 0.0).collect();
                let signs: Vec<f64> = streams
                    .iter_mut()
                    .flat_map(|stream| (0..channels).map(|_| stream.sign()).collect::<Vec<_>>())
                    .collect();
                let signs = Tensor::from_slice(&signs).to_device(setting.device).view([-1, channels, 1, 1]);
                delta += bump(&windows, &turned, &setting) * signs;
            }
        }
        spend(self.setting.norm, clean, &delta, epsilon)
    }

    /// `best`, [S, C, H, W], with the content of each slot's window mixed with a new bump, the second window emptied, and
    /// what that frees spent on the first; `signs` [S, C, 1, 1].
    pub fn moved(
        &self,
        best: &Tensor,
        windows: &[Window],
        turned: &[bool],
        second: &[Window],
        signs: &Tensor,
    ) -> Tensor {
        let norm = self.setting.norm;
        let delta = best.to_kind(Kind::Double) - self.clean.to_kind(Kind::Double);
        let inside = square_window::mask(windows, &self.setting);
        let emptied = square_window::mask(second, &self.setting);
        let held = |delta: &Tensor| per_channel(norm, delta);
        let within = |delta: &Tensor, mask: &Tensor| delta * mask.to_kind(Kind::Double);
        let available = held(&within(&delta, &inside.logical_or(&emptied)));
        let channels = self.setting.shape[0] as f64;
        let (unspent, size) = (per_row(&self.epsilon, &delta), per_row(&length(norm, &delta), &delta));
        let room = match norm {
            Norm::L2 => {
                let unspent = (unspent.square() - size.square()).clamp_min(0.0) / channels;
                (unspent + available.square()).sqrt()
            }
            _ => (unspent - size).clamp_min(0.0) / channels + available,
        };
        let old = within(&delta, &inside);
        let old = &old / (held(&old) + SMALLEST);
        let mixed = bump(windows, turned, &self.setting) * signs.to_kind(Kind::Double) + old;
        let new = &mixed / (held(&mixed) + SMALLEST) * room;
        let rest = delta.masked_fill(&inside.logical_or(&emptied), 0.0);
        spend(norm, &self.clean, &(rest + new), &self.epsilon)
    }
}

/// The admissible image for `delta` that uses the whole budget where the box lets it.
fn spend(norm: Norm, clean: &Tensor, delta: &Tensor, epsilon: &Tensor) -> Tensor {
    match norm {
        Norm::L2 => {
            let scale = epsilon / length(norm, delta).clamp_min(SMALLEST);
            toward_clean(clean, &clip(clean, &(delta * per_row(&scale, delta))))
        }
        _ => Ball { norm, projection: Projection::Euclidean, order: ClipOrder::ProjectThenClip }
            .project(clean, delta, epsilon),
    }
}

/// Norm over height and width, float64 [S, C, 1, 1].
fn per_channel(norm: Norm, delta: &Tensor) -> Tensor {
    let sum = |values: Tensor| values.sum_dim_intlist(&[2i64, 3][..], true, Kind::Double);
    match norm {
        Norm::L2 => sum(delta.square()).sqrt(),
        _ => sum(delta.abs()),
    }
}

/// A pair of opposite bumps in each window, of norm 1 (L2, or L1), zero outside; float64 [S, 1, H, W]. Each fills half of the
/// window, one above the other, or side by side where `turned`; a pixel at Chebyshev distance d from a bump's centre weighs
/// Σ_{m ≥ d} 1/(m+1)² in L2, and fourth powers in L1, up to the bump's half width.
fn bump(windows: &[Window], turned: &[bool], setting: &Setting) -> Tensor {
    let norm = setting.norm;
    let power = if norm == Norm::L2 { 2 } else { 4 };
    let (down, right) = square_window::coordinates(windows, setting);
    let side = square_window::sides(windows, setting);
    let turned = Tensor::from_slice(turned).to_device(setting.device).view([-1, 1, 1, 1]);
    let (along, across) = (right.where_self(&turned, &down), down.where_self(&turned, &right));
    let half = side.divide_scalar_mode(2, "floor");
    let first = along.lt_tensor(&half);
    let height = half.where_self(&first, &(&side - &half));
    let from_top = along.where_self(&first, &(&along - &half));
    let centre = |extent: &Tensor| extent.divide_scalar_mode(2, "floor");
    let distance = (from_top - centre(&height)).abs().maximum(&(&across - centre(&side)).abs());
    // Rings of the pyramid: one more than the larger half extent.
    let rings = centre(&height).maximum(&centre(&side)) + 1;
    let most = setting.shape[1].max(setting.shape[2]) + 2;
    let terms = Tensor::arange_start(1, most + 1, (Kind::Double, setting.device)).pow_tensor_scalar(power).reciprocal();
    let sums = Tensor::cat(&[Tensor::zeros([1], (Kind::Double, setting.device)), terms.cumsum(0, Kind::Double)], 0);
    let take = |index: &Tensor| sums.index_select(0, &index.clamp(0, most).view([-1])).view_as(index);
    let inside = square_window::mask(windows, setting);
    let weight = (take(&rings) - take(&distance)).clamp_min(0.0) * inside.to_kind(Kind::Double);
    let first = first.to_kind(Kind::Double);
    let upper = &weight * &first;
    let lower = &weight * (1.0 - &first);
    let unit = |bump: Tensor| &bump / (per_channel(norm, &bump) + SMALLEST);
    unit(unit(upper) - unit(lower))
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    /// The published procedure, ring by ring.
    fn pyramid(x: usize, y: usize, power: i32) -> Vec<f64> {
        let mut found = vec![0.0; x * y];
        let (half_x, half_y) = ((x / 2 + 1) as i64, (y / 2 + 1) as i64);
        for ring in 0..half_x.max(half_y) {
            let span = |half: i64, extent: usize| {
                let from = half - 1 - ring;
                (from.max(0) as usize)..((from + 2 * ring + 1).min(extent as i64) as usize)
            };
            for i in span(half_x, x) {
                for j in span(half_y, y) {
                    found[i * y + j] += 1.0 / ((ring + 1) as f64).powi(power);
                }
            }
        }
        found
    }

    #[test]
    fn bumps_are_the_published_pyramids() {
        for (norm, power) in [(Norm::L2, 2), (Norm::L1, 4)] {
            for side in [1usize, 3, 5, 8, 11] {
                let setting = Setting {
                    norm,
                    classes: 2,
                    stochastic: false,
                    nearest: false,
                    slots: 1,
                    shape: [1, 12, 13],
                    device: Device::Cpu,
                };
                let window = Window { top: 1, left: 2, side: side as i64 };
                let size = |v: &[f64]| match norm {
                    Norm::L2 => v.iter().map(|v| v * v).sum::<f64>().sqrt(),
                    _ => v.iter().map(|v| v.abs()).sum::<f64>(),
                };
                let mut expected = Vec::new();
                for (extent, sign) in [(side / 2, 1.0), (side - side / 2, -1.0)] {
                    let part = pyramid(extent, side, power);
                    let norm = size(&part).max(f64::MIN_POSITIVE);
                    expected.extend(part.iter().map(|v| sign * v / norm));
                }
                let norm = size(&expected);
                for turned in [false, true] {
                    let found = bump(&[window], &[turned], &setting);
                    assert!((size(&crate::robustness::threat::to_vec(&found.view([-1]))) - 1.0).abs() < 1e-9);
                    for i in 0..side {
                        for j in 0..side {
                            let (row, column) = if turned { (j, i) } else { (i, j) };
                            let value = found.double_value(&[0, 0, 1 + row as i64, 2 + column as i64]);
                            let wanted = expected[i * side + j] / norm;
                            assert!((value - wanted).abs() < 1e-9, "{side} {turned} {i} {j}: {value} {wanted}");
                        }
                    }
                }
            }
        }
    }
}
