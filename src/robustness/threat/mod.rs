//! Threat models as geometry: balls in three norms, cut by the pixel box [0,1].
//!
//! Images are float32 tensors [n, …]; radii are float64 tensors [n], one per row, so that rows under different budgets
//! share a batch. Perturbations are float64 until they become pixels, and become pixels by rounding toward the clean
//! image: whatever norm a perturbation has, the float32 image it turns into has no more of it.

pub(crate) mod host;
mod hyperplane;
mod projection;
mod start;

pub use hyperplane::to_hyperplane;
pub use projection::{Ball, linf_bounds};
pub use start::{onto_sphere, random_start, unit_ball, unit_sphere};

use tch::{Kind, Tensor};

/// The size of one perturbation, measured in float64 from float32 pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Size {
    pub l1: f64,
    pub l2: f64,
    pub linf: f64,
}

impl Size {
    pub fn in_norm(&self, norm: crate::protocol::Norm) -> f64 {
        norm.of(self.l1, self.l2, self.linf)
    }
}

/// The sizes of `witness − clean`, row by row; both [n, …] float32.
pub fn measure(witness: &Tensor, clean: &Tensor) -> Vec<Size> {
    let delta = flat(&(witness.to_kind(Kind::Double) - clean.to_kind(Kind::Double))).abs();
    let columns = [
        delta.sum_dim_intlist(1, false, Kind::Double),
        delta.square().sum_dim_intlist(1, false, Kind::Double).sqrt(),
        delta.amax(1, false),
    ]
    .map(|column| to_vec(&column));
    (0..columns[0].len()).map(|row| Size { l1: columns[0][row], l2: columns[1][row], linf: columns[2][row] }).collect()
}

/// The length of each perturbation [n, …] in `norm`; float64 [n].
pub(crate) fn length(norm: crate::protocol::Norm, delta: &Tensor) -> Tensor {
    use crate::protocol::Norm;
    let delta = flat(&delta.to_kind(Kind::Double));
    match norm {
        Norm::L1 => delta.abs().sum_dim_intlist(1, false, Kind::Double),
        Norm::L2 => delta.square().sum_dim_intlist(1, false, Kind::Double).sqrt(),
        Norm::Linf => delta.abs().amax(1, false),
    }
}

/// [n, …] as [n, d].
pub(crate) fn flat(images: &Tensor) -> Tensor {
    images.flatten(1, -1)
}

/// One value per row, [n], shaped to broadcast over `images` [n, …].
pub(crate) fn per_row(values: &Tensor, images: &Tensor) -> Tensor {
    let mut shape = vec![1; images.dim()];
    shape[0] = -1;
    values.view(&shape[..])
}

pub(crate) fn to_vec(values: &Tensor) -> Vec<f64> {
    let values = values.to_kind(Kind::Double).to_device(tch::Device::Cpu).contiguous();
    Vec::<f64>::try_from(&values).expect("a row of float64")
}

/// The float32 image nearest `clean + delta` among those no farther from `clean` than `delta` in any pixel.
/// `delta` is float64 and keeps `clean + delta` in [0,1].
pub(crate) fn toward_clean(clean: &Tensor, delta: &Tensor) -> Tensor {
    let wide = clean.to_kind(Kind::Double);
    let nearest = (&wide + delta).to_kind(Kind::Float);
    let overshoots = (nearest.to_kind(Kind::Double) - wide).abs().gt_tensor(&delta.abs());
    nearest.nextafter(clean).where_self(&overshoots, &nearest)
}

/// The 8-bit image, every pixel a multiple of 1/255, next to `image` on the way to `clean`, which is one: no pixel is farther
/// from it than before, but for float32's own rounding. Both float32 [n, …].
pub(crate) fn to_eight_bits(image: &Tensor, clean: &Tensor) -> Tensor {
    /// Of 1/255: a pixel that rounding put this little beside a multiple is meant to be that multiple.
    const ROUNDING: f64 = 2e-5;
    let level = image.to_kind(Kind::Double) * 255.0;
    let below = (&level + ROUNDING).floor();
    let above = (&level - ROUNDING).ceil();
    let level = below.where_self(&image.gt_tensor(clean), &above);
    level.to_kind(Kind::Float) / 255.0
}

/// `delta` cut so that `clean + delta` stays in [0,1].
pub(crate) fn clip(clean: &Tensor, delta: &Tensor) -> Tensor {
    let wide = clean.to_kind(Kind::Double);
    delta.clamp_tensor(Some(-&wide), Some(1.0 - &wide))
}
