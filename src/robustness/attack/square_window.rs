//! Square windows, one per slot.

use tch::{Kind, Tensor};

use super::Setting;
use crate::robustness::host::{Numbers, filled, is_here};
use crate::robustness::rng::Stream;

/// A square of pixels; the default covers none.
#[derive(Debug, Clone, Copy, Default)]
pub struct Window {
    pub top: i64,
    pub left: i64,
    pub side: i64,
}

impl Window {
    /// A window of `side` anywhere in the image, borders included.
    pub fn draw(stream: &mut Stream, side: i64, height: i64, width: i64) -> Self {
        let mut place = |extent: i64| stream.below((extent - side + 1) as u64) as i64;
        Self { top: place(height), left: place(width), side }
    }
}

/// The odd side nearest above `side` that is at least 3, as far as `most` allows: bumps have a centre.
pub fn odd_side(side: i64, most: i64) -> i64 {
    let side = side.max(3);
    let odd = if side % 2 == 0 { side + 1 } else { side };
    odd.min(most)
}

/// Rows and columns relative to each window's corner; int64 [S, 1, H, 1] and [S, 1, 1, W].
pub fn coordinates(windows: &[Window], setting: &Setting) -> (Tensor, Tensor) {
    let [_, height, width] = setting.shape;
    let place = |number: fn(&Window) -> i64| column(windows, setting, number);
    let extent = |length: i64| Tensor::arange(length, (Kind::Int64, setting.device));
    (
        extent(height).view([1, 1, -1, 1]) - place(|window| window.top),
        extent(width).view([1, 1, 1, -1]) - place(|window| window.left),
    )
}

/// The sides, int64 [S, 1, 1, 1].
pub fn sides(windows: &[Window], setting: &Setting) -> Tensor {
    column(windows, setting, |window| window.side)
}

fn column(windows: &[Window], setting: &Setting, number: fn(&Window) -> i64) -> Tensor {
    let numbers: Vec<i64> = windows.iter().map(number).collect();
    Tensor::from_slice(&numbers).to_device(setting.device).view([-1, 1, 1, 1])
}

/// The pixels inside each window, bool [S, 1, H, W].
pub fn mask(windows: &[Window], setting: &Setting) -> Tensor {
    let (down, right) = coordinates(windows, setting);
    let sides = sides(windows, setting);
    let within = |along: &Tensor| along.ge(0).logical_and(&along.lt_tensor(&sides));
    within(&down).logical_and(&within(&right))
}

/// A number for each channel of each slot as float32 [S, C, 1, 1].
pub fn per_channel(numbers: &[f32], setting: &Setting) -> Tensor {
    Tensor::from_slice(numbers).to_device(setting.device).view([-1, setting.shape[0], 1, 1])
}

/// `images` with each window's pixels at the low or high end of their interval, by the sign of their channel.
pub fn repaint(images: &Tensor, windows: &[Window], signs: &[f32], ends: [&Tensor; 2], setting: &Setting) -> Tensor {
    if is_here(images) {
        return repaint_here(images, windows, signs, ends, setting);
    }
    let [low, high] = ends;
    high.where_self(&per_channel(signs, setting).gt(0.0), low).where_self(&mask(windows, setting), images)
}

fn repaint_here(images: &Tensor, windows: &[Window], signs: &[f32], ends: [&Tensor; 2], setting: &Setting) -> Tensor {
    let [channels, height, width] = setting.shape.map(|side| side as usize);
    let ends = ends.map(Numbers::<f32>::of);
    filled(&images.size(), |painted: &mut [f32]| {
        painted.copy_from_slice(Numbers::<f32>::of(images).read());
        let planes = painted.chunks_exact_mut(height * width).zip(signs).enumerate();
        for (plane, (painted, sign)) in planes {
            let Window { top, left, side } = windows[plane / channels];
            let end = &ends[usize::from(*sign > 0.0)].read()[plane * height * width..][..height * width];
            for row in top..top + side {
                let line = (row as usize * width + left as usize)..(row as usize * width + (left + side) as usize);
                painted[line.clone()].copy_from_slice(&end[line]);
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::protocol::Norm;

    #[test]
    fn windows_on_the_host_are_painted_as_tensors_are() {
        let shape = [3, 5, 4];
        let setting = Setting {
            norm: Norm::Linf,
            classes: 2,
            stochastic: false,
            nearest: false,
            slots: 3,
            shape,
            device: Device::Cpu,
        };
        let images = |from: f64| (Tensor::arange(180, (Kind::Float, Device::Cpu)) + from).view([3, 3, 5, 4]);
        let (best, low, high) = (images(0.0), images(1000.0), images(2000.0));
        let windows = [Window::default(), Window { top: 1, left: 0, side: 4 }, Window { top: 4, left: 3, side: 1 }];
        let signs = [1.0, -1.0, 1.0, -1.0, 1.0, 1.0, -1.0, -1.0, 1.0];
        let tensor = high.where_self(&per_channel(&signs, &setting).gt(0.0), &low);
        let tensor = tensor.where_self(&mask(&windows, &setting), &best);
        assert_eq!(repaint_here(&best, &windows, &signs, [&low, &high], &setting), tensor);
    }
}
