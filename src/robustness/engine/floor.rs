//! Where trajectories run: the slots of one batch, and the queue of images that wait for them.

use std::collections::{BTreeMap, HashMap, VecDeque};

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::checkpoint::Trajectory;
use super::curve::Curve;
use super::kernel::Kernel;
use super::objective::Objective;
use crate::protocol::Attack;
use crate::robustness::attack::rows::{images, slots};
use crate::robustness::attack::{Demand, Entry, Goal, Search, Setting, Status, search};
use crate::robustness::model::ModelError;
use crate::robustness::threat::to_eight_bits;

/// One run of one stage on an image on its way up a ladder: what a slot works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Position in [`super::Images`].
    pub image: usize,
    /// Position in the ladder.
    pub rung: usize,
    /// Position in the cascade.
    pub stage: usize,
    pub run: u32,
}

/// What a pass meant to one slot.
pub struct Passed {
    pub slot: usize,
    pub job: Job,
    /// Passes of the trajectory, this one included.
    pub passes: u32,
    pub with_gradient: bool,
    /// A float32 pass looked at it again.
    pub looked_again: bool,
    pub nan_gradient: bool,
    pub zero_gradient: bool,
    /// Of a finished ascent: whether its loss was still rising.
    pub still_rises: Option<bool>,
    pub status: Status,
}

/// Slots and queue of the stages that are batched together. Each stage has a search over all slots, of which every slot
/// belongs to at most one; only stages with images in slots take memory and time.
pub struct Floor<'a> {
    stages: Vec<&'a Attack>,
    setting: Setting,
    draws: i64,
    searches: BTreeMap<usize, Box<dyn Search>>,
    slots: Vec<Option<Job>>,
    labels: Vec<u32>,
    /// Passes of each slot's trajectory.
    passes: Vec<u32>,
    /// The loss of each slot's ascent.
    curves: Vec<Curve>,
    /// Slots whose trajectory was there at the last checkpoint too.
    aged: Vec<bool>,
    pub queue: VecDeque<Job>,
    /// Who goes to which slot, whatever the queue says.
    pub reserved: HashMap<usize, Job>,
    /// Where queued images go on instead of beginning their run.
    pub frozen: HashMap<usize, Trajectory>,
    /// The clean images in the slots, where only 8-bit images count.
    grid: Option<Tensor>,
    /// Goals, labels and the objective made of them, until a slot's changes.
    aim: Option<(Vec<Option<Goal>>, Vec<u32>, Objective)>,
}

impl<'a> Floor<'a> {
    /// `stages` are the whole cascade, of which the queue brings those that run here. Every point is evaluated `draws`
    /// times; as the 8-bit image next to it, if only such count.
    pub fn new(stages: Vec<&'a Attack>, setting: Setting, draws: u32, eight_bit: bool) -> Self {
        Self {
            stages,
            setting,
            draws: draws.into(),
            searches: BTreeMap::new(),
            slots: vec![None; setting.slots],
            labels: vec![0; setting.slots],
            passes: vec![0; setting.slots],
            curves: vec![Curve::default(); setting.slots],
            aged: vec![false; setting.slots],
            queue: VecDeque::new(),
            reserved: HashMap::new(),
            frozen: HashMap::new(),
            grid: eight_bit.then(|| images(&setting)),
            aim: None,
        }
    }

    pub fn len(&self) -> usize {
        self.slots.len()
    }

    pub fn idle(&self) -> usize {
        self.slots.iter().filter(|slot| slot.is_none()).count()
    }

    /// Puts queued jobs into empty slots. `entry` makes a trajectory for a job, `clean` the clean images of jobs. `false` if a
    /// frozen trajectory is not one of its attack.
    #[must_use]
    pub fn fill(&mut self, entry: impl Fn(&Job, usize) -> Entry, clean: impl Fn(&[Job]) -> Tensor) -> bool {
        let setting = self.setting;
        let mut thawed = true;
        let mut arrivals: BTreeMap<usize, Vec<(Entry, Job)>> = BTreeMap::new();
        for slot in (0..self.slots.len()).filter(|slot| self.slots[*slot].is_none()) {
            let Some(job) = self.reserved.remove(&slot).or_else(|| self.queue.pop_front()) else { continue };
            arrivals.entry(job.stage).or_default().push((entry(&job, slot), job));
        }
        for (stage, arrivals) in arrivals {
            let (entries, jobs): (Vec<Entry>, Vec<Job>) = arrivals.into_iter().unzip();
            let search = self.searches.entry(stage).or_insert_with(|| search(self.stages[stage], &self.setting));
            let clean = clean(&jobs);
            search.load(&entries, &clean);
            if let Some(grid) = &mut self.grid {
                let _ = grid.index_copy_(0, &slots(&entries, &setting), &clean);
            }
            for (entry, job) in entries.iter().zip(jobs) {
                self.slots[entry.slot] = Some(job);
                self.labels[entry.slot] = entry.label;
                self.passes[entry.slot] = 0;
                self.curves[entry.slot].clear();
                self.aged[entry.slot] = false;
                if let Some(trajectory) = self.frozen.remove(&job.image) {
                    thawed &= search.thaw(entry.slot, &trajectory.frozen);
                    self.passes[entry.slot] = trajectory.passes;
                    self.curves[entry.slot] = Curve::resumed(trajectory.curve);
                    self.aged[entry.slot] = true;
                }
            }
        }
        let slots = &self.slots;
        self.searches.retain(|stage, _| slots.iter().flatten().any(|job| job.stage == *stage));
        thawed
    }

    /// For a checkpoint: slots and the jobs in them, with the trajectories of those that were there at the last one too (of a
    /// stochastic model, of all), as far as they fit into `room` bytes.
    pub fn freeze(&mut self, room: &mut usize) -> Vec<(usize, Job, Option<Trajectory>)> {
        let mut found = Vec::new();
        for slot in 0..self.slots.len() {
            let Some(job) = self.slots[slot] else { continue };
            let trajectory = if std::mem::replace(&mut self.aged[slot], true) || self.setting.stochastic {
                let frozen = self.searches[&job.stage].freeze(slot).filter(|frozen| frozen.rows.len() <= *room);
                frozen.map(|frozen| {
                    *room -= frozen.rows.len();
                    Trajectory { frozen, passes: self.passes[slot], curve: self.curves[slot].losses().to_vec() }
                })
            } else {
                None
            };
            found.push((slot, job, trajectory));
        }
        found
    }

    /// One model pass over all slots; every trajectory moves a step.
    pub fn pass(&mut self, kernel: &Kernel) -> Result<Vec<Passed>, ModelError> {
        let demands: Vec<Demand> = (0..self.slots.len())
            .map(|slot| self.slots[slot].map_or(Demand::Nothing, |job| self.searches[&job.stage].demands()[slot]))
            .collect();
        let goals: Vec<Option<Goal>> = demands
            .iter()
            .map(|demand| match demand {
                Demand::Nothing => None,
                Demand::Loss(goal) | Demand::Gradient(goal) => Some(*goal),
            })
            .collect();
        let with_gradient = |demand: &Demand| matches!(demand, Demand::Gradient(_));
        if self.aim.as_ref().is_none_or(|(aimed, labels, _)| *aimed != goals || *labels != self.labels) {
            let objective = Objective::new(&self.labels, &goals, self.setting.device);
            self.aim = Some((goals, self.labels.clone(), objective));
        }
        let (_, _, objective) = self.aim.as_ref().expect("set above");
        let points = self.points();
        let evaluation = kernel.evaluate(&points, objective, self.draws, demands.iter().any(with_gradient))?;
        let mut status: BTreeMap<usize, Vec<Status>> = BTreeMap::new();
        for (stage, search) in &mut self.searches {
            status.insert(*stage, search.advance(&evaluation.answer));
        }
        // A point without a gradient is left out, because only neighbours can bring its loss to the host.
        for ((curve, loss), demand) in self.curves.iter_mut().zip(&evaluation.losses).zip(&demands) {
            if with_gradient(demand) {
                curve.note(*loss);
            }
        }
        self.passes.iter_mut().for_each(|passes| *passes += 1);
        let mut restarted = Vec::new();
        let passed = |(slot, job): (usize, &Option<Job>)| {
            let job = (*job)?;
            let status = status[&job.stage][slot];
            if status == Status::Restarted {
                restarted.push(slot);
            }
            let ended = self.stages[job.stage].ascends() && matches!(status, Status::Finished { .. });
            let gradient = with_gradient(&demands[slot]);
            Some(Passed {
                slot,
                job,
                passes: self.passes[slot],
                with_gradient: gradient,
                looked_again: evaluation.looked_again[slot],
                nan_gradient: gradient && evaluation.nan_gradient[slot],
                zero_gradient: gradient && evaluation.zero_gradient[slot],
                still_rises: if ended { self.curves[slot].still_rises() } else { None },
                status,
            })
        };
        let passed = self.slots.iter().enumerate().filter_map(passed).collect();
        // An ascent is told from its own start on.
        restarted.into_iter().for_each(|slot| self.curves[slot].clear());
        Ok(passed)
    }

    /// The point of each slot, from the search that it belongs to.
    fn points(&self) -> Tensor {
        let mut searches = self.searches.iter();
        let (_, first) = searches.next().expect("a pass has work");
        let points = searches.fold(first.points().shallow_clone(), |points, (stage, search)| {
            let mine: Vec<bool> = self.slots.iter().map(|job| job.is_some_and(|job| job.stage == *stage)).collect();
            let mine = Tensor::from_slice(&mine).to_device(points.device()).view([-1, 1, 1, 1]);
            search.points().where_self(&mine, &points)
        });
        let points = match &self.grid {
            Some(clean) => to_eight_bits(&points, clean),
            None => points,
        };
        if !self.setting.stochastic {
            return points;
        }
        // What a model draws may depend on every row, so empty slots must not show who was there.
        let occupied: Vec<bool> = self.slots.iter().map(Option::is_some).collect();
        let occupied = Tensor::from_slice(&occupied).to_device(points.device()).view([-1, 1, 1, 1]);
        points.where_scalarother(&occupied, 0.0)
    }

    /// The slot's trajectory goes on for the next rung.
    pub fn climb(&mut self, slot: usize) {
        if let Some(job) = &mut self.slots[slot] {
            job.rung += 1;
        }
    }

    /// Takes trajectories out of their slots.
    pub fn release(&mut self, slots: &[usize]) {
        for slot in slots {
            if let Some(search) = self.slots[*slot].take().and_then(|job| self.searches.get_mut(&job.stage)) {
                search.release(*slot);
            }
        }
    }

    /// The candidates of these slots, on the device, in the order of the slots.
    pub fn candidates(&self, slots: &[usize]) -> Vec<Tensor> {
        let mut found: Vec<(usize, Tensor)> = Vec::with_capacity(slots.len());
        for (stage, search) in &self.searches {
            let mine = |slot: &usize| self.slots[*slot].is_some_and(|job| job.stage == *stage);
            let rows: Vec<usize> = (0..slots.len()).filter(|row| mine(&slots[*row])).collect();
            if !rows.is_empty() {
                let candidates = search.candidates(&rows.iter().map(|row| slots[*row]).collect::<Vec<_>>());
                found.extend(rows.iter().enumerate().map(|(i, row)| (*row, candidates.get(i as i64))));
            }
        }
        found.sort_by_key(|(row, _)| *row);
        let candidates = found.into_iter().map(|(_, candidate)| candidate);
        match &self.grid {
            Some(clean) => {
                let snapped = |(candidate, slot): (Tensor, &usize)| to_eight_bits(&candidate, &clean.get(*slot as i64));
                candidates.zip(slots).map(snapped).collect()
            }
            None => candidates.collect(),
        }
    }
}
