//! Losses of logits on the CPU, a row at a time: rows of different formulas cost no more than rows of one.

use super::{Ascent, DLR_GUARD};
use crate::protocol::Loss;
use crate::robustness::host::{Numbers, filled};
use tch::Tensor;

/// One row's loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// `None`: nobody asks; loss and gradient are 0.
    pub loss: Option<Loss>,
    pub label: usize,
    pub target: Option<usize>,
}

/// As [`ascend`](super::ascend), of `logits` float32 [n, K] on the CPU, each row by its own of `rows`.
pub fn ascend(logits: &Tensor, rows: &[Row]) -> Ascent {
    let shape = logits.size();
    let classes = shape[1] as usize;
    let logits = Numbers::<f32>::of(logits);
    let (mut loss, mut log_scale) = (vec![0.0; rows.len()], vec![0.0; rows.len()]);
    let mut wide = vec![0.0; classes];
    let cotangent = filled(&shape, |cotangent: &mut [f32]| {
        let places = logits.read().chunks_exact(classes).zip(cotangent.chunks_exact_mut(classes)).zip(rows);
        for (at, ((logits, cotangent), row)) in places.enumerate() {
            let Some(formula) = row.loss else { continue };
            wide.iter_mut().zip(logits).for_each(|(wide, logit)| *wide = f64::from(*logit));
            (loss[at], log_scale[at]) = ascend_row(formula, &wide, row, cotangent);
        }
    });
    Ascent { loss: Tensor::from_slice(&loss), cotangent, log_scale: Tensor::from_slice(&log_scale) }
}

/// Whether each row's largest logit is another class's than its label's.
pub fn misclassified(logits: &Tensor, rows: &[Row]) -> Vec<bool> {
    let classes = logits.size()[1] as usize;
    let logits = Numbers::<f32>::of(logits);
    let wrong = |(logits, row): (&[f32], &Row)| {
        let largest = (1..classes)
            .fold(0, |best, class| if exceeds(logits[class].into(), logits[best].into()) { class } else { best });
        largest != row.label
    };
    logits.read().chunks_exact(classes).zip(rows).map(wrong).collect()
}

/// Loss and the logarithm of the gradient's scale; the rest of the gradient goes to `cotangent`, which is 0.
fn ascend_row(loss: Loss, logits: &[f64], row: &Row, cotangent: &mut [f32]) -> (f64, f64) {
    if loss == Loss::CrossEntropy {
        let apart = row.target.unwrap_or(row.label);
        let advantage = log_sum_exp(logits, apart) - logits[apart];
        let sum = softmax(logits, apart, cotangent);
        // A row with no numbers in it has none at all.
        cotangent[apart] = if sum.is_nan() { f32::NAN } else { -1.0 };
        let sign = if row.target.is_some() { -1.0 } else { 1.0 };
        cotangent.iter_mut().for_each(|part| *part *= sign as f32);
        return (sign * softplus(advantage), -softplus(-advantage));
    }
    let rival = row.target.unwrap_or_else(|| largest(logits, row.label));
    let margin = logits[rival] - logits[row.label];
    cotangent[rival] += 1.0;
    cotangent[row.label] -= 1.0;
    if loss == Loss::Margin || logits.len() < 3 {
        return (margin, 0.0);
    }
    let order = first_four(logits);
    let weights: &[f64] = match (row.target.is_some(), logits.len()) {
        (true, 4..) => &[1.0, 0.0, -0.5, -0.5],
        _ => &[1.0, 0.0, -1.0],
    };
    let weighted = || order.iter().zip(weights);
    let spread = weighted().map(|(class, weight)| logits[*class] * weight).sum::<f64>() + DLR_GUARD;
    let ratio = margin / spread;
    if ratio.is_nan() {
        cotangent.fill(f32::NAN);
        return (ratio, -spread.ln());
    }
    let mut pull = [0.0; 4];
    pull.iter_mut().zip(weights).for_each(|(pull, weight)| *pull = ratio * weight);
    let part = |class: usize| f64::from(u8::from(class == rival)) - f64::from(u8::from(class == row.label));
    for (class, pull) in order.iter().zip(pull) {
        cotangent[*class] = (part(*class) - pull) as f32;
    }
    (ratio, -spread.ln())
}

/// Whether `a` comes before `b` by falling size; NaN is the largest, as libtorch has it.
fn exceeds(a: f64, b: f64) -> bool {
    a > b || (a.is_nan() && !b.is_nan())
}

/// The first of the largest, one class left out.
fn largest(logits: &[f64], without: usize) -> usize {
    let others = (0..logits.len()).filter(|class| *class != without);
    others.reduce(|best, class| if exceeds(logits[class], logits[best]) { class } else { best }).unwrap_or(without)
}

/// The four largest, or all, by falling logit.
fn first_four(logits: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = Vec::with_capacity(5);
    for class in 0..logits.len() {
        let place = order.iter().position(|other| exceeds(logits[class], logits[*other])).unwrap_or(order.len());
        order.insert(place, class);
        order.truncate(4);
    }
    order
}

fn others(logits: &[f64], apart: usize) -> impl Iterator<Item = f64> {
    logits.iter().enumerate().filter(move |(class, _)| *class != apart).map(|(_, logit)| *logit)
}

fn peak(logits: &[f64], apart: usize) -> f64 {
    others(logits, apart).fold(f64::NEG_INFINITY, |most, logit| if exceeds(logit, most) { logit } else { most })
}

/// Of all logits but one.
fn log_sum_exp(logits: &[f64], apart: usize) -> f64 {
    let peak = peak(logits, apart);
    let base = if peak.is_infinite() { 0.0 } else { peak };
    others(logits, apart).map(|logit| (logit - base).exp()).sum::<f64>().ln() + base
}

/// Of all logits but one, whose place is left as it is; returns what the exponentials were divided by.
fn softmax(logits: &[f64], apart: usize, into: &mut [f32]) -> f64 {
    let peak = peak(logits, apart);
    let sum: f64 = others(logits, apart).map(|logit| (logit - peak).exp()).sum();
    for (class, (part, logit)) in into.iter_mut().zip(logits).enumerate() {
        if class != apart {
            *part = ((logit - peak).exp() / sum) as f32;
        }
    }
    sum
}

fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_on_the_host_ascend_as_tensors_do() {
        for classes in [2i64, 3, 4, 10] {
            let logits = (Tensor::arange(6 * classes, (tch::Kind::Double, tch::Device::Cpu)) * 0.618_033_988_75).frac();
            let scale = Tensor::from_slice(&[1.0, 10.0, 1e4, 1e-6, 1.0, 1.0]).view([6, 1]);
            let logits = ((logits.view([6, classes]) - 0.5) * scale).to_kind(tch::Kind::Float);
            // Two rows that are no numbers, or not finite.
            let _ = logits.get(4).narrow(0, 1, 1).fill_(f64::NAN);
            let _ = logits.get(5).narrow(0, 1, 1).fill_(f64::INFINITY);
            let labels = [0usize, 1, 0, 1, 0, 0];
            for loss in [Loss::CrossEntropy, Loss::Margin, Loss::Dlr] {
                for targets in [None, Some([1usize, 0, 1, 0, 1, 1])] {
                    let row = |at: usize| Row { loss: Some(loss), label: labels[at], target: targets.map(|t| t[at]) };
                    let host = ascend(&logits, &(0..6).map(row).collect::<Vec<_>>());
                    let classes_of = |of: [usize; 6]| Tensor::from_slice(&of.map(|class| class as i64));
                    let targets = targets.map(classes_of);
                    let tensor = super::super::ascend(loss, &logits, &classes_of(labels), targets.as_ref());
                    let close = |a: &Tensor, b: &Tensor| a.allclose(&b.to_kind(a.kind()), 1e-6, 1e-12, true);
                    let all = close(&host.loss, &tensor.loss)
                        && close(&host.cotangent, &tensor.cotangent)
                        && close(&host.log_scale, &tensor.log_scale);
                    let shown = |ascent: &Ascent| (ascent.cotangent.to_string(10).unwrap(), format!("{ascent:?}"));
                    assert!(all, "{loss:?} of {classes}: {:?} {:?}", shown(&host), shown(&tensor));
                }
            }
        }
    }
}
