//! How long shards take: by the planner's count of passes, or as others like them took.

use crate::protocol::ConditionKind;
use crate::protocol::plan::{self, Workload};

/// Speeds that times are made of.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rates {
    /// Corrupted images per second that the processor beside the device makes; unset: the device never waits for them.
    pub corrupted_per_second: Option<f64>,
    /// Measured seconds per image, by the conditions of a group (indices, in ascending ε).
    pub measured: Vec<(Vec<usize>, f64)>,
}

/// Seconds of every shard that the planner would cut, in order, and how many of them rest on no measurement.
///
/// Without a measurement a shard takes what its passes take at most (an image that is broken early costs less), or as long as
/// corrupting its images does, if that is longer.
pub fn shards(work: &Workload, rates: &Rates) -> (Vec<f64>, usize) {
    let cut = plan::shards(work);
    times(work, rates, cut.iter().map(|shard| (&shard.conditions[..], shard.images)))
}

/// The same of shards that are cut already: conditions (of `work`) and images.
pub fn times<'a>(work: &Workload, rates: &Rates, cut: impl Iterator<Item = (&'a [usize], u32)>) -> (Vec<f64>, usize) {
    let mut unmeasured = 0;
    let mut seconds = |(group, images): (&[usize], u32)| {
        let measured = rates.measured.iter().find(|(conditions, _)| conditions == group);
        let each = measured.map(|(_, each)| *each).unwrap_or_else(|| {
            unmeasured += 1;
            at_most(work, rates, group)
        });
        each * f64::from(images)
    };
    (cut.map(&mut seconds).collect(), unmeasured)
}

/// Seconds per image of a group.
fn at_most(work: &Workload, rates: &Rates, group: &[usize]) -> f64 {
    let one = |&condition: &usize| {
        let condition = &work.conditions[condition];
        let passes = plan::forward_equivalents(condition, &work.model) * work.seconds_per_forward;
        match (&condition.kind, rates.corrupted_per_second) {
            (ConditionKind::Corruption(_), Some(rate)) => passes.max(1.0 / rate),
            _ => passes,
        }
    };
    plan::of_group(&work.conditions[group[0]], group.iter().map(one))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Subject, builtin};

    #[test]
    fn times_are_passes_unless_they_were_measured_or_the_processor_is_slower() {
        let conditions = builtin("vonenet-2020").unwrap().conditions(Some("imagenet")).unwrap();
        let work = Workload {
            conditions: &conditions,
            model: Subject { classes: 1000, stochastic: false },
            seeds: &[0],
            first: 0,
            images: 1000,
            image_bytes: 3 * 224 * 224,
            seconds_per_forward: 1e-3,
        };
        let total = |rates: &Rates| shards(&work, rates).0.iter().sum::<f64>();
        // Clean, 75 corruptions, and six attacks of 64 steps: 1 + 64 × (1 + 2) passes and one or two looks at the result.
        let passes = total(&Rates::default()) / 1000.0 / 1e-3;
        assert!((76.0 + 6.0 * 193.0..76.0 + 6.0 * 196.0).contains(&passes), "{passes}");
        let slow = Rates { corrupted_per_second: Some(100.0), ..Rates::default() };
        assert!((total(&slow) - total(&Rates::default()) - 75.0 * 1000.0 * (0.01 - 0.001)).abs() < 1e-6);
        let measured = Rates { measured: vec![(vec![0], 5.0)], ..Rates::default() };
        let (times, unmeasured) = shards(&work, &measured);
        assert!((times.iter().sum::<f64>() - total(&Rates::default()) - 1000.0 * (5.0 - 1e-3)).abs() < 1e-6);
        let clean = plan::shards(&work).iter().filter(|shard| shard.conditions == [0]).count();
        assert_eq!(unmeasured, times.len() - clean);
    }
}
