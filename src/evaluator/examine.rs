//! A fresh look at stored witnesses.

use tch::{Device, Kind, Tensor};

use crate::protocol::VerdictRule;
use crate::robustness::engine::Kernel;
use crate::robustness::model::{Classifier, ModelError, to_unit};
use crate::robustness::threat::measure;
use crate::wire::Examination;

/// Classifies witnesses afresh at the profile's batch shape and measures what was changed.
///
/// `clean` uint8 and `witnesses` float32, both [n, c, h, w] on the CPU.
pub fn examine(
    model: &dyn Classifier,
    batch: u32,
    clean: &Tensor,
    witnesses: &Tensor,
    labels: &[u32],
    rule: VerdictRule,
) -> Result<Vec<Examination>, ModelError> {
    let witnesses = witnesses.to_device(model.device());
    let draws = match rule {
        VerdictRule::Majority(n) if model.spec().stochastic => n,
        _ => 1,
    };
    let kernel = Kernel::new(model, batch.into());
    let votes: Vec<Vec<i64>> = (0..draws)
        .map(|_| {
            let classes = kernel.logits(&witnesses)?.argmax(1, false).to_device(Device::Cpu);
            Ok(Vec::try_from(classes).expect("one class per row"))
        })
        .collect::<Result<_, ModelError>>()?;
    let sizes = measure(&witnesses, &to_unit(clean, model.device()));
    let rows = witnesses.flatten(1, -1);
    let column = |t: Tensor| Vec::<f32>::try_from(t.to_kind(Kind::Float).to_device(Device::Cpu)).expect("one per row");
    let (low, high) = (column(rows.amin([1], false)), column(rows.amax([1], false)));
    let on_grid = rows.eq_tensor(&((&rows * 255.0).round() / 255.0)).all_dim(1, false).to_device(Device::Cpu);
    let eight_bit = Vec::<bool>::try_from(on_grid).expect("one per row");
    Ok((0..labels.len())
        .map(|row| {
            let wrong: Vec<i64> =
                votes.iter().map(|v| v[row]).filter(|&class| class != i64::from(labels[row])).collect();
            Examination {
                predicted: votes[0][row] as u32,
                misclassified: 2 * wrong.len() > votes.len(),
                l1: sizes[row].l1,
                l2: sizes[row].l2,
                linf: sizes[row].linf,
                low: low[row],
                high: high[row],
                eight_bit: eight_bit[row],
            }
        })
        .collect())
}
