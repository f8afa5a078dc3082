//! What an evaluation's committed shards say of the time that others like them will take.

use std::collections::BTreeMap;

use crate::store::shards::TimedShard;

/// Times read off a run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct History {
    /// Seconds per image, by the conditions of a group; without the time that workers took to load the model, where that can be told.
    pub per_image: Vec<(Vec<usize>, f64)>,
    /// What a worker's first shard took longer than that; 0 if that cannot be told.
    pub load_seconds: f64,
    /// From a shard's evidence to the start of the worker's next one.
    pub between_seconds: f64,
    pub shards: usize,
}

impl History {
    /// `shards`: the committed shards of one evaluation.
    pub fn of(shards: &[TimedShard]) -> Self {
        let mut by_worker: BTreeMap<_, Vec<&TimedShard>> = BTreeMap::new();
        for shard in shards {
            by_worker.entry(shard.worker_id).or_default().push(shard);
        }
        let mut groups: BTreeMap<&[i32], Vec<(f64, bool)>> = BTreeMap::new();
        let mut between = Vec::new();
        for mine in by_worker.values_mut() {
            mine.sort_by_key(|shard| shard.finished_at);
            for (i, shard) in mine.iter().enumerate() {
                let each = shard.seconds / f64::from(shard.images.max(1));
                groups.entry(&shard.conditions).or_default().push((each, i == 0));
            }
            between.extend(mine.windows(2).map(|pair| {
                let apart = (pair[1].finished_at - pair[0].finished_at).as_seconds_f64();
                (apart - pair[1].seconds).max(0.0)
            }));
        }
        let per_image: BTreeMap<&[i32], f64> = groups
            .iter()
            .map(|(&group, times)| {
                let later: Vec<f64> = times.iter().filter(|(_, first)| !first).map(|(each, _)| *each).collect();
                let all = times.iter().map(|(each, _)| *each).collect();
                (group, mean(if later.is_empty() { all } else { later }))
            })
            .collect();
        let loads = by_worker.values().filter_map(|mine| {
            let first = mine.first()?;
            let expected = per_image.get(&first.conditions[..])? * f64::from(first.images);
            Some((first.seconds - expected).max(0.0))
        });
        Self {
            load_seconds: median(loads.collect()),
            between_seconds: median(between),
            shards: shards.len(),
            per_image: per_image
                .into_iter()
                .map(|(group, each)| (group.iter().map(|&condition| condition as usize).collect(), each))
                .collect(),
        }
    }
}

fn mean(values: Vec<f64>) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// 0 of nothing.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use chrono::{TimeDelta, Utc};
    use uuid::Uuid;

    use super::*;

    #[test]
    fn loading_and_pauses_are_told_from_work() {
        let (start, worker) = (Utc::now(), Some(Uuid::from_u128(1)));
        let mut at = 0.0;
        let mut shard = |conditions: Vec<i32>, images: i32, seconds: f64, pause: f64| {
            at += seconds + pause;
            let finished_at = start + TimeDelta::milliseconds((at * 1e3) as i64);
            TimedShard { conditions, images, seconds, worker_id: worker, finished_at }
        };
        // Half a second per image, an eighth in the other group; 7 s of loading before the first, 1 s between.
        let shards = [
            shard(vec![0], 32, 23.0, 0.0),
            shard(vec![0], 32, 16.0, 1.0),
            shard(vec![1, 2], 64, 8.0, 1.0),
            shard(vec![0], 16, 8.0, 1.0),
        ];
        let history = History::of(&shards);
        assert_eq!(history.per_image, [(vec![0], 0.5), (vec![1, 2], 0.125)]);
        assert!(
            (history.load_seconds - 7.0).abs() < 1e-9 && (history.between_seconds - 1.0).abs() < 1e-2,
            "{history:?}"
        );
        assert_eq!(History::of(&[]), History::default());
    }
}
