//! Square windows, one per slot.

use tch::{Kind, Tensor};

use super::Setting;
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
