//! Model passes at one fixed batch shape.

use tch::{Device, Kind, Tensor};

use super::objective::Objective;
use crate::protocol::Precision;
use crate::robustness::attack::Answer;
use crate::robustness::host::{Numbers, is_here};
use crate::robustness::model::{Classifier, ModelError};
use crate::robustness::threat::{flat, per_row, to_vec};
use crate::robustness::{loss, runtime};

/// Runs a model on exactly `batch` images at a time; ragged tails are padded with black images. Every launch has one
/// shape, so a row's numbers depend on that row alone.
pub struct Kernel<'a> {
    model: &'a dyn Classifier,
    batch: i64,
    /// Of passes that search; all others are true float32.
    search: Precision,
}

/// An [`Answer`] and, per slot, whether its gradient was bad.
pub struct Evaluation {
    pub answer: Answer,
    /// Some draw's gradient had a NaN, which counts as 0.
    pub nan_gradient: Vec<bool>,
    /// The gradient is zero in every pixel.
    pub zero_gradient: Vec<bool>,
    /// [`Answer::loss`] on the host; empty where no gradient was wanted.
    pub losses: Vec<f64>,
    /// Whether a rough pass saw the point misclassified, so that a float32 pass looked again.
    pub looked_again: Vec<bool>,
}

impl<'a> Kernel<'a> {
    pub fn new(model: &'a dyn Classifier, batch: i64) -> Self {
        Self { model, batch, search: Precision::Float32 }
    }

    /// The same, whose [`evaluate`](Self::evaluate) takes this precision.
    pub fn searching_in(self, search: Precision) -> Self {
        Self { search, ..self }
    }

    /// Logits float32 [n, K] of images [n, C, H, W], without gradients.
    pub fn logits(&self, images: &Tensor) -> Result<Tensor, ModelError> {
        let rows = images.size()[0];
        let _guard = tch::no_grad_guard();
        let logits = self.launches(images).map(|images| self.model.logits(&images)).collect::<Result<Vec<_>, _>>()?;
        Ok(Tensor::cat(&logits, 0).narrow(0, 0, rows))
    }

    /// Evaluates `points` [S, C, H, W] by `objective`, each `draws` times laid along the batch; a forward pass alone leaves
    /// the gradient zero. In reduced precision a point counts as misclassified only where float32 agrees: a search that believed
    /// its own rounding would stop at nothing.
    pub fn evaluate(
        &self,
        points: &Tensor,
        objective: &Objective,
        draws: i64,
        with_gradient: bool,
    ) -> Result<Evaluation, ModelError> {
        let mut evaluation = self.evaluate_roughly(points, objective, draws, with_gradient)?;
        let Answer { seen, misclassified, .. } = &mut evaluation.answer;
        // Of several draws none is believed anyway.
        if !self.search.is_float32() && draws == 1 && seen.contains(&true) {
            evaluation.looked_again = seen.clone();
            let rows: Vec<i64> = (0..).zip(&*seen).filter(|(_, seen)| **seen).map(|(row, _)| row).collect();
            let there = Tensor::from_slice(&rows).to_device(points.device());
            let classes = self.logits(&points.index_select(0, &there))?.argmax(1, false);
            let wrong = to_bools(&classes.ne_tensor(&objective.labels.index_select(0, &there)));
            rows.iter().zip(wrong).for_each(|(row, wrong)| seen[*row as usize] = wrong);
            *misclassified = Tensor::from_slice(seen).to_device(points.device());
        }
        Ok(evaluation)
    }

    fn evaluate_roughly(
        &self,
        points: &Tensor,
        objective: &Objective,
        draws: i64,
        with_gradient: bool,
    ) -> Result<Evaluation, ModelError> {
        let slots = points.size()[0];
        let repeated = match draws {
            1 => points.shallow_clone(),
            _ => points.repeat_interleave_self_int(draws, 0, None),
        };
        let objective = objective.repeated(draws);
        let passes = || self.passes(&repeated, &objective, with_gradient);
        let (logits, ascent, gradient) = runtime::in_precision(self.search, passes)?;

        if draws == 1 && is_here(&logits) {
            return Ok(at_host(points, &logits, ascent, gradient, &objective));
        }
        let by_slot = |rows: &Tensor| rows.view([slots, draws]);
        let wrong = logits.argmax(1, false).ne_tensor(&objective.labels).to_kind(Kind::Int64);
        let misclassified = (by_slot(&wrong).sum_dim_intlist(1, false, Kind::Int64) * 2).gt(draws);
        // A draw whose logits are no numbers has a zero gradient, and must not take the others' with it.
        let scales = by_slot(&ascent.log_scale).nan_to_num(f64::MIN, None, f64::MIN);
        let (log_scale, _) = scales.max_dim(1, false);
        let loss = by_slot(&ascent.loss).mean_dim(1, false, Kind::Double);
        let Some(gradient) = gradient else {
            let none = vec![false; slots as usize];
            let gradient = Tensor::zeros([1], (Kind::Float, points.device())).expand_as(points);
            let seen = to_bools(&misclassified);
            let answer = Answer { loss, misclassified, seen, gradient, log_scale };
            let [nan_gradient, zero_gradient, looked_again] = [none.clone(), none.clone(), none];
            return Ok(Evaluation { answer, nan_gradient, zero_gradient, losses: Vec::new(), looked_again });
        };
        let peaks = flat(&gradient).abs().amax(1, false);
        let nan_gradient = by_slot(&peaks.isnan()).any_dim(1, false);
        let gradient = gradient.nan_to_num(0.0, f64::from(f32::MAX), f64::from(f32::MIN));
        let (gradient, zero_gradient) = if draws == 1 {
            (gradient, peaks.eq(0.0))
        } else {
            // The mean of true gradients, over the largest draw's scale.
            let weights = (scales - log_scale.unsqueeze(1)).exp().view([-1]) / draws as f64;
            let weighted = gradient * per_row(&weights.to_kind(Kind::Float), points);
            let mut shape = points.size();
            shape.insert(1, draws);
            let mean = weighted.view(&shape[..]).sum_dim_intlist(1, false, Kind::Float);
            let zero = flat(&mean).abs().amax(1, false).eq(0.0);
            (mean, zero)
        };
        // The one transfer of a step.
        let flags = [&misclassified, &nan_gradient, &zero_gradient].map(|flags| flags.to_kind(Kind::Double));
        let [seen, nan, zero] = &flags;
        let host = to_vec(&Tensor::stack(&[seen, nan, zero, &loss], 0).view([-1]));
        let row = |row: usize| host[row * slots as usize..(row + 1) * slots as usize].iter();
        let [seen, nan_gradient, zero_gradient] = [0, 1, 2].map(|flags| row(flags).map(|flag| *flag != 0.0).collect());
        let losses = row(3).copied().collect();
        let answer = Answer { loss, misclassified, seen, gradient, log_scale };
        Ok(Evaluation { answer, nan_gradient, zero_gradient, losses, looked_again: vec![false; slots as usize] })
    }

    /// Logits, loss and, where wanted, input gradients of every row.
    fn passes(
        &self,
        points: &Tensor,
        objective: &Objective,
        with_gradient: bool,
    ) -> Result<(Tensor, loss::Ascent, Option<Tensor>), ModelError> {
        if !with_gradient {
            let logits = self.logits(points)?;
            let ascent = objective.ascend(&logits);
            return Ok((logits, ascent, None));
        }
        let rows = points.size()[0];
        let mut first = 0;
        let mut parts = Vec::new();
        for launch in self.launches(points) {
            let images = launch.detach().set_requires_grad(true);
            let logits = self.model.logits(&images)?;
            let count = self.batch.min(rows - first);
            let seen = logits.detach().narrow(0, 0, count);
            let ascent = objective.narrow(first, count).ascend(&seen);
            let cotangent = pad(&ascent.cotangent, self.batch);
            let gradient = match pull_back(&logits, &cotangent, &images) {
                // A model without a working backward pass is evaluated all the same; the probe and every verdict's
                // notes expose it.
                Err(ModelError::BackwardFails(_)) => images.zeros_like(),
                gradient => gradient?,
            };
            let gradient = gradient.narrow(0, 0, count);
            parts.push((seen, ascent, gradient));
            first += count;
        }
        if parts.len() == 1 {
            let (logits, ascent, gradient) = parts.remove(0);
            return Ok((logits, ascent, Some(gradient)));
        }
        let join = |column: &dyn Fn(&(Tensor, loss::Ascent, Tensor)) -> Tensor| {
            Tensor::cat(&parts.iter().map(column).collect::<Vec<_>>(), 0)
        };
        let ascent = loss::Ascent {
            loss: join(&|p| p.1.loss.shallow_clone()),
            cotangent: join(&|p| p.1.cotangent.shallow_clone()),
            log_scale: join(&|p| p.1.log_scale.shallow_clone()),
        };
        Ok((join(&|p| p.0.shallow_clone()), ascent, Some(join(&|p| p.2.shallow_clone()))))
    }

    fn launches<'t>(&self, images: &'t Tensor) -> impl Iterator<Item = Tensor> + use<'t> {
        let (rows, batch) = (images.size()[0], self.batch);
        (0..rows)
            .step_by(batch as usize)
            .map(move |first| pad(&images.narrow(0, first, batch.min(rows - first)), batch))
    }
}

/// What one draw per slot means, told on the CPU.
fn at_host(
    points: &Tensor,
    logits: &Tensor,
    ascent: loss::Ascent,
    gradient: Option<Tensor>,
    objective: &Objective,
) -> Evaluation {
    let seen = objective.misclassified(logits);
    let slots = seen.len();
    let wants_gradient = gradient.is_some();
    let gradient = gradient.unwrap_or_else(|| Tensor::zeros([1], (Kind::Float, Device::Cpu)).expand_as(points));
    let (mut nan_gradient, mut zero_gradient) = (vec![false; slots], vec![false; slots]);
    let (mut losses, mut finite) = (Vec::new(), true);
    if wants_gradient {
        losses = to_vec(&ascent.loss);
        let numbers = Numbers::<f32>::of(&gradient);
        let width = (numbers.read().len() / slots.max(1)).max(1);
        for (slot, row) in numbers.read().chunks_exact(width).enumerate() {
            nan_gradient[slot] = row.iter().any(|part| part.is_nan());
            zero_gradient[slot] = row.iter().all(|part| *part == 0.0);
            finite &= row.iter().all(|part| part.is_finite());
        }
    }
    let gradient = if finite { gradient } else { gradient.nan_to_num(0.0, f64::from(f32::MAX), f64::from(f32::MIN)) };
    let answer = Answer {
        loss: ascent.loss,
        misclassified: Tensor::from_slice(&seen),
        seen,
        gradient,
        log_scale: ascent.log_scale.nan_to_num(f64::MIN, None, f64::MIN),
    };
    Evaluation { answer, nan_gradient, zero_gradient, losses, looked_again: vec![false; slots] }
}

/// `rows` [n, …] followed by zeros up to [batch, …].
fn pad(rows: &Tensor, batch: i64) -> Tensor {
    let mut shape = rows.size();
    if shape[0] == batch {
        return rows.shallow_clone();
    }
    shape[0] = batch - shape[0];
    Tensor::cat(&[rows, &Tensor::zeros(&shape[..], (rows.kind(), rows.device()))], 0)
}

/// The product of `cotangent` with the Jacobian of `logits` at `images`; zero where logits do not depend on images.
pub(crate) fn pull_back(logits: &Tensor, cotangent: &Tensor, images: &Tensor) -> Result<Tensor, ModelError> {
    if !logits.requires_grad() {
        return Ok(images.zeros_like());
    }
    let total = (logits * cotangent).sum(Kind::Float);
    let gradient = Tensor::f_run_backward(&[total], &[images], false, false)
        .map_err(|error| ModelError::sort(&error, ModelError::BackwardFails))?
        .remove(0);
    Ok(if gradient.defined() { gradient.detach() } else { images.zeros_like() })
}

/// A row of booleans on the host.
fn to_bools(row: &Tensor) -> Vec<bool> {
    Vec::<bool>::try_from(row.to_device(Device::Cpu)).expect("a bool row")
}
