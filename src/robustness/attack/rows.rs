//! Per-slot numbers and images, and masks over slots.

use tch::{Kind, Tensor};

use super::{Entry, Setting, index};
use crate::robustness::threat::per_row;

/// An image per slot, float32 [S, C, H, W], black.
pub fn images(setting: &Setting) -> Tensor {
    let [channels, height, width] = setting.shape;
    Tensor::zeros([setting.slots as i64, channels, height, width], (Kind::Float, setting.device))
}

/// A number per slot, float64 [S], zero.
pub fn numbers(setting: &Setting) -> Tensor {
    Tensor::zeros([setting.slots as i64], (Kind::Double, setting.device))
}

/// A flag per slot, bool [S], as `test(slot)` says.
pub fn mask(setting: &Setting, test: impl Fn(usize) -> bool) -> Tensor {
    let rows: Vec<bool> = (0..setting.slots).map(test).collect();
    Tensor::from_slice(&rows).to_device(setting.device)
}

/// float64 [S], as `number(slot)` says.
pub fn column(setting: &Setting, number: impl Fn(usize) -> f64) -> Tensor {
    let rows: Vec<f64> = (0..setting.slots).map(number).collect();
    Tensor::from_slice(&rows).to_device(setting.device)
}

/// The entries' slots as an index.
pub fn slots(entries: &[Entry], setting: &Setting) -> Tensor {
    index(entries.iter().map(|entry| entry.slot), &Tensor::empty([0], (Kind::Int64, setting.device)))
}

/// The entries' radii, float64 [n].
pub fn radii(entries: &[Entry], setting: &Setting) -> Tensor {
    let radii: Vec<f64> = entries.iter().map(|entry| entry.epsilon).collect();
    Tensor::from_slice(&radii).to_device(setting.device)
}

/// `new` where `rows` [S] says so, else `old`; both [S, …].
pub fn choose(rows: &Tensor, new: &Tensor, old: &Tensor) -> Tensor {
    new.where_self(&per_row(rows, new), old)
}
