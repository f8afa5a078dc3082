//! Model passes at one fixed batch shape.

use tch::{Kind, Tensor};

use crate::protocol::Loss;
use crate::robustness::attack::Answer;
use crate::robustness::loss;
use crate::robustness::model::{Classifier, ModelError};
use crate::robustness::threat::{flat, per_row};

/// Runs a model on exactly `batch` images at a time; ragged tails are padded with black images. Every launch has one
/// shape, so a row's numbers depend on that row alone.
pub struct Kernel<'a> {
    pub model: &'a dyn Classifier,
    pub batch: i64,
}

/// What the search ascends; `labels` and `targets` int64 [S].
pub struct Objective<'a> {
    pub loss: Loss,
    pub labels: &'a Tensor,
    pub targets: Option<&'a Tensor>,
    /// Take cross-entropy's gradient in plain float32, as published procedures do, instead of exactly.
    pub float32_gradient: bool,
}

impl Objective<'_> {
    fn ascend(&self, logits: &Tensor, labels: &Tensor, targets: Option<&Tensor>) -> loss::Ascent {
        let exact = loss::ascend(self.loss, logits, labels, targets);
        if self.float32_gradient { exact.with_float32_gradient(self.loss, logits, labels, targets) } else { exact }
    }
}

/// An [`Answer`] and, per slot, whether its gradient was bad.
pub struct Evaluation {
    pub answer: Answer,
    /// Some draw's gradient had a NaN, which counts as 0; bool [S].
    pub nan_gradient: Tensor,
    /// The gradient is zero in every pixel; bool [S].
    pub zero_gradient: Tensor,
}

impl Kernel<'_> {
    /// Logits float32 [n, K] of images [n, C, H, W], without gradients.
    pub fn logits(&self, images: &Tensor) -> Result<Tensor, ModelError> {
        let rows = images.size()[0];
        let _guard = tch::no_grad_guard();
        let logits = self.launches(images).map(|images| self.model.logits(&images)).collect::<Result<Vec<_>, _>>()?;
        Ok(Tensor::cat(&logits, 0).narrow(0, 0, rows))
    }

    /// Evaluates `points` [S, C, H, W], each `draws` times laid along the batch; a forward pass alone leaves the
    /// gradient zero.
    pub fn evaluate(
        &self,
        points: &Tensor,
        objective: &Objective,
        draws: i64,
        with_gradient: bool,
    ) -> Result<Evaluation, ModelError> {
        let slots = points.size()[0];
        let repeat = |rows: &Tensor| match draws {
            1 => rows.shallow_clone(),
            _ => rows.repeat_interleave_self_int(draws, 0, None),
        };
        let labels = repeat(objective.labels);
        let targets = objective.targets.map(repeat);
        let (logits, ascent, gradient) =
            self.passes(&repeat(points), &labels, targets.as_ref(), objective, with_gradient)?;

        let by_slot = |rows: &Tensor| rows.view([slots, draws]);
        let wrong = logits.argmax(1, false).ne_tensor(&labels).to_kind(Kind::Int64);
        let misclassified = (by_slot(&wrong).sum_dim_intlist(1, false, Kind::Int64) * 2).gt(draws);
        let (log_scale, _) = by_slot(&ascent.log_scale).max_dim(1, false);
        let peaks = flat(&gradient).abs().amax(1, false);
        let nan_gradient = by_slot(&peaks.isnan()).any_dim(1, false);
        let gradient = gradient.nan_to_num(0.0, f64::from(f32::MAX), f64::from(f32::MIN));
        let (gradient, zero_gradient) = if draws == 1 {
            (gradient, peaks.eq(0.0))
        } else {
            // The mean of true gradients, over the largest draw's scale.
            let weights = (by_slot(&ascent.log_scale) - log_scale.unsqueeze(1)).exp().view([-1]) / draws as f64;
            let weighted = gradient * per_row(&weights.to_kind(Kind::Float), points);
            let mut shape = points.size();
            shape.insert(1, draws);
            let mean = weighted.view(&shape[..]).sum_dim_intlist(1, false, Kind::Float);
            let zero = flat(&mean).abs().amax(1, false).eq(0.0);
            (mean, zero)
        };
        let loss = by_slot(&ascent.loss).mean_dim(1, false, Kind::Double);
        Ok(Evaluation { answer: Answer { loss, misclassified, gradient, log_scale }, nan_gradient, zero_gradient })
    }

    /// Logits, loss and input gradients of every row.
    fn passes(
        &self,
        points: &Tensor,
        labels: &Tensor,
        targets: Option<&Tensor>,
        objective: &Objective,
        with_gradient: bool,
    ) -> Result<(Tensor, loss::Ascent, Tensor), ModelError> {
        if !with_gradient {
            let logits = self.logits(points)?;
            let ascent = objective.ascend(&logits, labels, targets);
            return Ok((logits, ascent, points.zeros_like()));
        }
        let rows = points.size()[0];
        let mut first = 0;
        let mut parts = Vec::new();
        for launch in self.launches(points) {
            let images = launch.detach().set_requires_grad(true);
            let logits = self.model.logits(&images)?;
            let count = self.batch.min(rows - first);
            let part = |all: &Tensor| all.narrow(0, first, count);
            let seen = logits.detach().narrow(0, 0, count);
            let ascent = objective.ascend(&seen, &part(labels), targets.map(part).as_ref());
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
            return Ok(parts.remove(0));
        }
        let join = |column: &dyn Fn(&(Tensor, loss::Ascent, Tensor)) -> Tensor| {
            Tensor::cat(&parts.iter().map(column).collect::<Vec<_>>(), 0)
        };
        let ascent = loss::Ascent {
            loss: join(&|p| p.1.loss.shallow_clone()),
            cotangent: join(&|p| p.1.cotangent.shallow_clone()),
            log_scale: join(&|p| p.1.log_scale.shallow_clone()),
        };
        Ok((join(&|p| p.0.shallow_clone()), ascent, join(&|p| p.2.shallow_clone())))
    }

    fn launches<'t>(&self, images: &'t Tensor) -> impl Iterator<Item = Tensor> + use<'t> {
        let (rows, batch) = (images.size()[0], self.batch);
        (0..rows)
            .step_by(batch as usize)
            .map(move |first| pad(&images.narrow(0, first, batch.min(rows - first)), batch))
    }
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
