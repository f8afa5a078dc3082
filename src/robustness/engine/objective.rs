//! What each row of a batch ascends: different losses and targets share one pass.

use tch::{Device, Tensor};

use crate::protocol::Loss;
use crate::robustness::attack::Goal;
use crate::robustness::host::is_here;
use crate::robustness::loss::host::{self, Row};
use crate::robustness::loss::{Ascent, ascend};

/// A loss as a batch of rows computes it; targets are per row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Formula {
    loss: Loss,
    targeted: bool,
    float32_gradient: bool,
}

/// Labels, targets and losses of a batch, row by row.
#[derive(Debug)]
pub struct Objective {
    /// int64 [S]
    pub labels: Tensor,
    /// int64 [S]; the row's label where it has no target.
    targets: Tensor,
    /// Every formula that occurs, with the rows it is for; bool [S].
    formulas: Vec<(Formula, Tensor)>,
    /// The same, row by row.
    rows: Vec<Row>,
}

impl Objective {
    /// `labels` and `goals` one per row; a row without a goal gets some loss.
    pub fn new(labels: &[u32], goals: &[Option<Goal>], device: Device) -> Self {
        let column = |values: Vec<i64>| Tensor::from_slice(&values).to_device(device);
        let targets = labels.iter().zip(goals).map(|(label, goal)| goal.and_then(|goal| goal.target).unwrap_or(*label));
        let formula = |goal: &Goal| Formula {
            loss: goal.loss,
            targeted: goal.target.is_some(),
            float32_gradient: goal.float32_gradient,
        };
        let mut formulas: Vec<Formula> = Vec::new();
        for found in goals.iter().flatten().map(formula) {
            if !formulas.contains(&found) {
                formulas.push(found);
            }
        }
        let mask = |wanted: &Formula| {
            let rows: Vec<bool> = goals.iter().map(|goal| goal.as_ref().map(formula) == Some(*wanted)).collect();
            Tensor::from_slice(&rows).to_device(device)
        };
        let row = |(label, goal): (&u32, &Option<Goal>)| Row {
            loss: goal.map(|goal| goal.loss),
            label: *label as usize,
            target: goal.and_then(|goal| goal.target).map(|target| target as usize),
        };
        Self {
            rows: labels.iter().zip(goals).map(row).collect(),
            labels: column(labels.iter().copied().map(i64::from).collect()),
            targets: column(targets.map(i64::from).collect()),
            formulas: formulas.iter().map(|formula| (*formula, mask(formula))).collect(),
        }
    }

    /// Every row `draws` times in a row.
    pub fn repeated(&self, draws: i64) -> Self {
        let rows = self.rows.iter().flat_map(|row| std::iter::repeat_n(*row, draws as usize)).collect();
        let repeat = |rows: &Tensor| match draws {
            1 => rows.shallow_clone(),
            _ => rows.repeat_interleave_self_int(draws, 0, None),
        };
        self.map(rows, repeat)
    }

    /// `count` rows from `first` on.
    pub fn narrow(&self, first: i64, count: i64) -> Self {
        let rows = self.rows[first as usize..(first + count) as usize].to_vec();
        self.map(rows, |rows| rows.narrow(0, first, count))
    }

    fn map(&self, rows: Vec<Row>, change: impl Fn(&Tensor) -> Tensor) -> Self {
        Self {
            rows,
            labels: change(&self.labels),
            targets: change(&self.targets),
            formulas: self.formulas.iter().map(|(formula, rows)| (*formula, change(rows))).collect(),
        }
    }

    /// Each row's loss and its gradient with respect to `logits` [S, K].
    pub fn ascend(&self, logits: &Tensor) -> Ascent {
        if is_here(logits) && self.formulas.iter().all(|(formula, _)| !formula.float32_gradient) {
            return host::ascend(logits, &self.rows);
        }
        let mut parts = self.formulas.iter().map(|(formula, rows)| (self.by(*formula, logits), rows));
        let Some((first, _)) = parts.next() else {
            return ascend(Loss::Margin, logits, &self.labels, None);
        };
        parts.fold(first, |sum, (part, rows)| Ascent {
            loss: part.loss.where_self(rows, &sum.loss),
            cotangent: part.cotangent.where_self(&rows.unsqueeze(1), &sum.cotangent),
            log_scale: part.log_scale.where_self(rows, &sum.log_scale),
        })
    }

    /// Which rows of `logits` [S, K], on the CPU, go to another class than the label.
    pub fn misclassified(&self, logits: &Tensor) -> Vec<bool> {
        host::misclassified(logits, &self.rows)
    }

    fn by(&self, formula: Formula, logits: &Tensor) -> Ascent {
        let targets = formula.targeted.then_some(&self.targets);
        let exact = ascend(formula.loss, logits, &self.labels, targets);
        if formula.float32_gradient {
            exact.with_float32_gradient(formula.loss, logits, &self.labels, targets)
        } else {
            exact
        }
    }
}
