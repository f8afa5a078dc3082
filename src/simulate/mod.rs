//! What work costs on so many workers: the queue's own rules played through, with known or supposed times of shards.
//!
//! Plain arithmetic; nothing is run. Workers take the next shard as [`queue::claim`](crate::queue::claim) hands them out, pay for
//! loading when the model changes, and share devices when there are fewer of those.

mod history;
mod work;

use uuid::Uuid;

use crate::queue::Affinity;

pub use history::History;
pub use work::{Rates, shards, times};

/// One evaluation's open work. Evaluations are given oldest first.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    pub owner: String,
    pub model: Uuid,
    pub priority: i32,
    /// Seconds that each shard takes on a device of its own, in the order in which they are handed out.
    pub shards: Vec<f64>,
}

/// Who does the work.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fleet {
    pub workers: u32,
    /// Devices that the workers share evenly, at least 1: as many as workers, unless several use one.
    pub devices: u32,
    /// Seconds until a worker that changes models has the new one loaded.
    pub load_seconds: f64,
    /// Seconds of a worker between two shards: claim, commit.
    pub between_seconds: f64,
}

/// How it goes. Times are seconds from now.
#[derive(Debug, Clone, PartialEq)]
pub struct Forecast {
    /// When the last shard ends.
    pub seconds: f64,
    /// When the first shard ends.
    pub first_result: f64,
    /// When each job ends, as the jobs were given.
    pub ends: Vec<f64>,
    /// Seconds of devices in use, all devices together.
    pub device_seconds: f64,
    /// `device_seconds` of what the devices that workers can use had to offer until the end, 0 to 1.
    pub utilisation: f64,
    pub shards: usize,
}

struct Worker {
    affinity: Affinity,
    loaded: Option<Uuid>,
    /// The job in hand, and seconds of work left in it on a device of its own.
    busy: Option<(usize, f64)>,
}

/// Plays the queue through until nothing is left.
pub fn simulate(jobs: &[Job], fleet: &Fleet) -> Forecast {
    let mut next = vec![0; jobs.len()];
    let idle = || Worker { affinity: Affinity::default(), loaded: None, busy: None };
    let mut workers: Vec<Worker> = (0..fleet.workers.max(1)).map(|_| idle()).collect();
    let devices = f64::from(fleet.devices.clamp(1, fleet.workers.max(1)));
    let (mut now, mut device_seconds, mut first_result) = (0.0, 0.0, None);
    let mut ends = vec![0.0f64; jobs.len()];
    loop {
        for worker in 0..workers.len() {
            if workers[worker].busy.is_none() {
                hand_out(jobs, fleet, &mut next, &mut workers, worker);
            }
        }
        let left = workers.iter().filter_map(|w| w.busy.map(|(_, left)| left));
        let busy = left.clone().count() as f64;
        let Some(shortest) = left.reduce(f64::min) else { break };
        let speed = (devices / busy).min(1.0);
        now += shortest / speed;
        device_seconds += shortest * busy;
        for worker in &mut workers {
            let Some((job, left)) = &mut worker.busy else { continue };
            *left -= shortest;
            if *left <= 1e-9 {
                ends[*job] = now;
                first_result.get_or_insert(now);
                worker.busy = None;
            }
        }
    }
    Forecast {
        seconds: now,
        first_result: first_result.unwrap_or(0.0),
        ends,
        device_seconds,
        utilisation: if now > 0.0 { device_seconds / (devices * now) } else { 0.0 },
        shards: jobs.iter().map(|job| job.shards.len()).sum(),
    }
}

/// Gives a worker the next shard: highest priority, then the owner with least running, then the model it prefers, then the oldest.
fn hand_out(jobs: &[Job], fleet: &Fleet, next: &mut [usize], workers: &mut [Worker], worker: usize) {
    let running =
        |owner: &str| workers.iter().filter(|w| w.busy.is_some_and(|(job, _)| jobs[job].owner == owner)).count();
    let prefers = workers[worker].affinity.prefers();
    let rank = |&job: &usize| {
        let Job { owner, model, priority, .. } = &jobs[job];
        (std::cmp::Reverse(*priority), running(owner), Some(*model) != prefers, job)
    };
    let Some(job) = (0..jobs.len()).filter(|&job| next[job] < jobs[job].shards.len()).min_by_key(rank) else { return };
    let load = if workers[worker].loaded == Some(jobs[job].model) { 0.0 } else { fleet.load_seconds };
    let seconds = jobs[job].shards[next[job]] + load + fleet.between_seconds;
    next[job] += 1;
    let worker = &mut workers[worker];
    worker.affinity.took(jobs[job].model);
    worker.loaded = Some(jobs[job].model);
    worker.busy = Some((job, seconds.max(0.0)));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(owner: &str, model: u128, shards: Vec<f64>) -> Job {
        Job { owner: owner.into(), model: Uuid::from_u128(model), priority: 0, shards }
    }

    fn fleet(workers: u32) -> Fleet {
        Fleet { workers, devices: workers, load_seconds: 0.0, between_seconds: 0.0 }
    }

    #[test]
    fn equal_shards_divide_by_the_workers_and_a_rest_costs_a_round() {
        let jobs = [job("a", 1, vec![60.0; 64])];
        for (workers, rounds) in [(1, 64.0), (8, 8.0), (64, 1.0), (100, 1.0), (60, 2.0)] {
            let forecast = simulate(&jobs, &fleet(workers));
            assert!((forecast.seconds - 60.0 * rounds).abs() < 1e-6, "{workers}: {forecast:?}");
            assert!((forecast.device_seconds - 64.0 * 60.0).abs() < 1e-6);
        }
        assert!((simulate(&jobs, &fleet(60)).utilisation - 64.0 / 120.0).abs() < 1e-9);
    }

    #[test]
    fn the_end_lies_between_the_bounds_of_list_scheduling() {
        let shards: Vec<f64> = (0..97).map(|i| 1.0 + f64::from(i * 37 % 53)).collect();
        let (sum, longest) = (shards.iter().sum::<f64>(), 53.0);
        for workers in [1, 2, 5, 16, 64] {
            let end = simulate(&[job("a", 1, shards.clone())], &fleet(workers)).seconds;
            let least = (sum / f64::from(workers)).max(longest);
            // Graham's bound.
            let most = sum / f64::from(workers) + longest * (1.0 - 1.0 / f64::from(workers));
            assert!((least - 1e-6..=most + 1e-6).contains(&end), "{workers} workers: {end} not in {least}..{most}");
        }
    }

    #[test]
    fn workers_that_share_a_device_are_no_faster_than_the_device() {
        let jobs = [job("a", 1, vec![10.0; 12])];
        let shared = Fleet { devices: 2, ..fleet(4) };
        let forecast = simulate(&jobs, &shared);
        assert!((forecast.seconds - 60.0).abs() < 1e-6 && (forecast.utilisation - 1.0).abs() < 1e-9, "{forecast:?}");
        assert!((simulate(&jobs, &fleet(2)).seconds - 60.0).abs() < 1e-6);
    }

    #[test]
    fn owners_share_and_a_model_is_loaded_when_it_changes() {
        let jobs = [job("greedy", 1, vec![10.0; 20]), job("modest", 2, vec![10.0; 2])];
        let forecast = simulate(&jobs, &Fleet { load_seconds: 5.0, between_seconds: 1.0, ..fleet(2) });
        // Each owner gets a worker; the modest one's ends after one load and two shards.
        assert!((forecast.ends[1] - (5.0 + 2.0 * 11.0)).abs() < 1e-6, "{forecast:?}");
        let loads = forecast.device_seconds - 22.0 * 11.0;
        assert!((loads - 3.0 * 5.0).abs() < 1e-6, "two first loads and one change: {loads}");
        assert_eq!(simulate(&[], &fleet(3)).seconds, 0.0);
    }
}
