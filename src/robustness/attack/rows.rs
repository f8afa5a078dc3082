//! Per-slot numbers and images, and masks over slots.

use tch::{Device, Kind, Tensor};

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

/// The bytes of row `slot` of each tensor, float32, float64 or bool, one after another.
pub fn freeze(tensors: &[&Tensor], slot: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for tensor in tensors {
        let row = tensor.get(slot as i64).to_device(Device::Cpu).contiguous().view([-1]);
        let same = "the kind was looked at";
        match tensor.kind() {
            Kind::Float => {
                bytes.extend(Vec::<f32>::try_from(row).expect(same).into_iter().flat_map(f32::to_le_bytes));
            }
            Kind::Double => {
                bytes.extend(Vec::<f64>::try_from(row).expect(same).into_iter().flat_map(f64::to_le_bytes));
            }
            _ => bytes.extend(Vec::<bool>::try_from(row).expect(same).into_iter().map(u8::from)),
        }
    }
    bytes
}

/// Puts back what [`freeze`] took of the same tensors; `false`, and perhaps half done, if the bytes are not as many.
#[must_use]
pub fn thaw(tensors: &[&Tensor], slot: usize, mut bytes: &[u8]) -> bool {
    for tensor in tensors {
        let mut row = tensor.get(slot as i64);
        let width = match tensor.kind() {
            Kind::Float => 4,
            Kind::Double => 8,
            _ => 1,
        };
        let Some((taken, rest)) = bytes.split_at_checked(row.numel() * width) else { return false };
        bytes = rest;
        let values = match tensor.kind() {
            Kind::Float => {
                let values: Vec<f32> = taken.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
                Tensor::from_slice(&values)
            }
            Kind::Double => {
                let values: Vec<f64> = taken.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect();
                Tensor::from_slice(&values)
            }
            _ => Tensor::from_slice(&taken.iter().map(|b| *b != 0).collect::<Vec<bool>>()),
        };
        row.copy_(&values.view_as(&row));
    }
    bytes.is_empty()
}
