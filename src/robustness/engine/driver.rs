//! Continuous batching: which image is in which slot, and what becomes of it.

use std::collections::VecDeque;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use super::judge::{self, examine};
use super::kernel::{Kernel, Objective};
use super::{EngineError, Notes, Outcome, Progress, Run, name_pass};
use crate::protocol::{
    Attack, AttackCondition, ConditionKind, Keep, Norm, Pgd, Projection, Stage, Target, ThreatModel, Verdict,
};
use crate::robustness::attack::{Demand, PgdSearch, Search, Start, Status};
use crate::robustness::model::to_unit;
use crate::robustness::rng::Stream;
use crate::robustness::threat::{random_start, unit_ball};

/// Draw numbers of restart r: 2r for its starting point, 2r + 1 for its target.
const DRAWS_PER_RESTART: u32 = 2;

/// An image on its way up a ladder: what a slot works on.
#[derive(Debug, Clone, Copy)]
struct Job {
    /// Position in [`super::Images`].
    image: usize,
    /// Position in the ladder.
    rung: usize,
    restart: u32,
}

/// A candidate that waits for its examination.
struct Candidate {
    job: Job,
    pixels: Tensor,
    /// The search saw it misclassified.
    claimed: bool,
}

/// The books of one image under one condition.
#[derive(Clone, Default)]
struct Account {
    forwards: u32,
    backwards: u32,
    notes: Notes,
    settled: Option<(Verdict, Option<Arc<[f32]>>)>,
}

/// Runs one ladder (or one single condition) over all images.
pub struct Driver<'a, 'r> {
    run: &'a Run<'r>,
    /// The ladder's positions in the run's conditions.
    group: Range<usize>,
    kernel: Kernel<'a>,
    progress: &'a mut Progress,
    observer: &'a mut dyn FnMut(Progress) -> ControlFlow<()>,
    /// [n, C, H, W] uint8, on the CPU.
    pixels: Tensor,
    /// Per image: its accounts, one per rung.
    accounts: Vec<Vec<Account>>,
    /// Model passes so far: names the random numbers that a stochastic model draws in each.
    passes: u32,
}

/// The part of a driver that searches: slots, queue and what waits for examination.
struct Floor<'a> {
    pgd: &'a Pgd,
    norm: Norm,
    search: Box<dyn Search>,
    slots: Vec<Option<Job>>,
    /// int64 [S]
    labels: Tensor,
    /// int64 [S]; read only by a targeted loss.
    targets: Tensor,
    queue: VecDeque<Job>,
    waiting: Vec<Candidate>,
    /// Logits at the clean image rank these; empty where no target needs them.
    clean_targets: Vec<i64>,
}

impl<'a, 'r> Driver<'a, 'r> {
    pub fn new(
        run: &'a Run<'r>,
        group: Range<usize>,
        progress: &'a mut Progress,
        observer: &'a mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Self, EngineError> {
        let images = run.images.indices.len();
        let [channels, height, width] = run.model.spec().input.map(i64::from);
        let pixels = Tensor::from_data_size(&run.images.pixels, &[images as i64, channels, height, width], Kind::Uint8);
        Ok(Self {
            kernel: Kernel { model: run.model, batch: run.batch.into() },
            accounts: vec![vec![Account::default(); group.len()]; images],
            run,
            group,
            progress,
            observer,
            pixels,
            passes: 0,
        })
    }

    pub fn drive(mut self) -> Result<Vec<Outcome>, EngineError> {
        let run = self.run;
        match &run.conditions[self.group.start].kind {
            ConditionKind::Clean => self.examine_clean(false)?,
            ConditionKind::Corruption(_) => {
                return Err(EngineError::Input("corruptions are evaluated apart".into()));
            }
            ConditionKind::Attack(AttackCondition { threat, independent, attack: Attack::Pgd(pgd) }) => {
                let carries = !independent && !self.stochastic();
                let needs_logits = matches!(pgd.target, Target::LeastLikely | Target::MostLikely);
                if carries {
                    self.examine_clean(true)?;
                }
                let clean_targets = if needs_logits { self.clean_targets(pgd.target, !carries)? } else { Vec::new() };
                self.attack(pgd, threat.norm, clean_targets)?;
            }
        }
        Ok(self.outcomes())
    }

    fn stochastic(&self) -> bool {
        self.run.model.spec().stochastic
    }

    /// The clean images at these positions, float32 [n, C, H, W] on the model's device.
    fn clean(&self, images: &[usize]) -> Tensor {
        let rows: Vec<i64> = images.iter().map(|image| *image as i64).collect();
        to_unit(&self.pixels.index_select(0, &Tensor::from_slice(&rows)), self.run.model.device())
    }

    fn labels(&self, images: &[usize]) -> Vec<u32> {
        images.iter().map(|image| self.run.images.labels[*image]).collect()
    }

    fn threat(&self, rung: usize) -> Option<ThreatModel> {
        match &self.run.conditions[self.group.start + rung].kind {
            ConditionKind::Clean | ConditionKind::Corruption(_) => None,
            ConditionKind::Attack(attack) => Some(attack.threat),
        }
    }

    /// Names the random numbers that a stochastic model draws in the next pass.
    fn seed_pass(&mut self) {
        name_pass(self.run, self.run.conditions[self.group.start], self.passes);
        self.passes += 1;
    }

    fn report(&mut self) -> Result<(), EngineError> {
        match (self.observer)(*self.progress) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(EngineError::Stopped),
        }
    }

    fn charge(&mut self, job: Job, forwards: u32, backwards: u32) {
        let account = &mut self.accounts[job.image][job.rung];
        account.forwards += forwards;
        account.backwards += backwards;
        self.progress.forwards += u64::from(forwards);
        self.progress.backwards += u64::from(backwards);
    }

    /// Examines every clean image on the first rung's account. For the clean condition that is the verdict; before a
    /// ladder (`only_broken`) it settles the misclassified images, whose δ = 0 is a witness at every rung.
    fn examine_clean(&mut self, only_broken: bool) -> Result<(), EngineError> {
        let draws = judge::draws(self.run.rule, self.stochastic());
        let images: Vec<usize> = (0..self.accounts.len()).collect();
        for chunk in images.chunks((self.run.batch as usize / draws as usize).max(1)) {
            self.seed_pass();
            let clean = self.clean(chunk);
            let threats = vec![None; chunk.len()];
            let findings = examine(&self.kernel, &clean, &clean, &self.labels(chunk), &threats, draws)?;
            for (row, (image, finding)) in chunk.iter().zip(findings).enumerate() {
                let job = Job { image: *image, rung: 0, restart: 0 };
                self.charge(job, draws, 0);
                if finding.broken || !only_broken {
                    self.settle(job, &finding, &clean.get(row as i64));
                }
            }
            self.report()?;
        }
        Ok(())
    }

    /// The class that each clean image is steered to, from its logits; `charged` where no earlier pass pays for them.
    fn clean_targets(&mut self, target: Target, charged: bool) -> Result<Vec<i64>, EngineError> {
        let mut targets = Vec::with_capacity(self.accounts.len());
        let images: Vec<usize> = (0..self.accounts.len()).collect();
        for chunk in images.chunks(self.run.batch as usize) {
            self.seed_pass();
            let logits = self.kernel.logits(&self.clean(chunk))?;
            let labels: Vec<i64> = self.labels(chunk).into_iter().map(i64::from).collect();
            let labels = Tensor::from_slice(&labels).to_device(logits.device()).unsqueeze(1);
            let chosen = match target {
                Target::LeastLikely => logits.scatter_value(1, &labels, f64::INFINITY).argmin(1, false),
                _ => logits.scatter_value(1, &labels, f64::NEG_INFINITY).argmax(1, false),
            };
            targets.extend(Vec::<i64>::try_from(chosen.to_device(Device::Cpu)).expect("a row of classes"));
            if charged {
                chunk.iter().for_each(|image| self.charge(Job { image: *image, rung: 0, restart: 0 }, 1, 0));
            }
            self.report()?;
        }
        Ok(targets)
    }

    fn attack(&mut self, pgd: &Pgd, norm: Norm, clean_targets: Vec<i64>) -> Result<(), EngineError> {
        let slots = (self.run.batch / pgd.eot.max(1)).max(1) as usize;
        let device = self.run.model.device();
        let shape = self.run.model.spec().input.map(i64::from);
        let classes = || Tensor::zeros([slots as i64], (Kind::Int64, device));
        let mut floor = Floor {
            pgd,
            norm,
            search: Box::new(PgdSearch::new(pgd, norm, self.stochastic(), slots, shape, device)),
            slots: vec![None; slots],
            labels: classes(),
            targets: classes(),
            queue: (0..self.accounts.len())
                .filter(|image| self.accounts[*image][0].settled.is_none())
                .map(|image| Job { image, rung: 0, restart: 0 })
                .collect(),
            waiting: Vec::new(),
            clean_targets,
        };
        loop {
            self.fill(&mut floor);
            let busy = floor.slots.iter().any(Option::is_some);
            if !busy && floor.waiting.is_empty() {
                return Ok(());
            }
            if !busy || self.should_judge(&floor) {
                self.judge(&mut floor)?;
            } else {
                self.step(&mut floor)?;
            }
            self.report()?;
        }
    }

    /// A full launch of candidates is examined at once. Fewer are, when slots stand empty that images among them may
    /// need for their next rung or restart.
    fn should_judge(&self, floor: &Floor) -> bool {
        let launch = (self.run.batch / judge::draws(self.run.rule, self.stochastic())).max(1) as usize;
        let unfinished = |candidate: &&Candidate| {
            !candidate.claimed
                && (candidate.job.rung + 1 < self.group.len() || self.restarts_after_verdict(floor.pgd, candidate.job))
        };
        let returning = floor.waiting.iter().filter(unfinished).count();
        let idle = floor.slots.iter().filter(|slot| slot.is_none()).count();
        floor.waiting.len() >= launch || returning.min(idle) > floor.slots.len() / 8
    }

    /// Whether `job`'s verdict "robust" leads to another restart. A deterministic model's last iterate is known only
    /// once it is examined; in all other cases the search goes through its restarts by itself.
    fn restarts_after_verdict(&self, pgd: &Pgd, job: Job) -> bool {
        pgd.keep == Keep::Last && !self.stochastic() && job.restart + 1 < pgd.restarts
    }

    /// Puts queued jobs into empty slots.
    fn fill(&mut self, floor: &mut Floor) {
        let empty = (0..floor.slots.len()).filter(|slot| floor.slots[*slot].is_none());
        let entries: Vec<(usize, Job)> = empty.map_while(|slot| Some((slot, floor.queue.pop_front()?))).collect();
        if entries.is_empty() {
            return;
        }
        let (slots, jobs): (Vec<_>, Vec<_>) = entries.iter().copied().unzip();
        let images: Vec<usize> = jobs.iter().map(|job| job.image).collect();
        let clean = self.clean(&images);
        let epsilon: Vec<f64> = jobs.iter().map(|job| self.epsilon(job.rung)).collect();
        let points = self.starting_points(floor, &jobs, &clean);
        floor.search.load(&slots, &Start { clean, points, epsilon });
        let labels: Vec<i64> = self.labels(&images).into_iter().map(i64::from).collect();
        let device = floor.labels.device();
        let column = |values: &[i64]| Tensor::from_slice(values).to_device(device);
        let rows: Vec<i64> = slots.iter().map(|slot| *slot as i64).collect();
        let _ = floor.labels.index_copy_(0, &column(&rows), &column(&labels));
        self.aim(floor, &entries);
        for (slot, job) in entries {
            floor.slots[slot] = Some(job);
        }
    }

    fn epsilon(&self, rung: usize) -> f64 {
        self.threat(rung).map_or(0.0, |threat| threat.epsilon.get())
    }

    fn stream(&self, job: Job, draw: u32) -> Stream {
        let condition = self.run.conditions[self.group.start + job.rung];
        let image = self.run.images.indices[job.image];
        Stream::new(self.run.seed, condition.random_key(), image, DRAWS_PER_RESTART * job.restart + draw)
    }

    /// Where the trajectories of `jobs` begin, given their clean images.
    fn starting_points(&self, floor: &Floor, jobs: &[Job], clean: &Tensor) -> Tensor {
        if !floor.pgd.random_start {
            return clean.copy();
        }
        let dimension = clean.numel() / jobs.len();
        let unit: Vec<f64> =
            jobs.iter().flat_map(|job| unit_ball(floor.norm, dimension, &mut self.stream(*job, 0))).collect();
        let epsilon: Vec<f64> = jobs.iter().map(|job| self.epsilon(job.rung)).collect();
        let there = |values: &[f64]| Tensor::from_slice(values).to_device(clean.device());
        random_start(clean, &there(&unit).view_as(clean), &there(&epsilon))
    }

    /// Sets the target classes of these slots.
    fn aim(&self, floor: &mut Floor, entries: &[(usize, Job)]) {
        let classes = self.run.model.spec().classes;
        let target = |job: &Job| -> i64 {
            let label = self.run.images.labels[job.image];
            match floor.pgd.target {
                Target::Untargeted => -1,
                Target::NextClass => i64::from((label + 1) % classes),
                Target::LeastLikely | Target::MostLikely => floor.clean_targets[job.image],
                Target::Random => {
                    let other = self.stream(*job, 1).below(u64::from(classes) - 1) as u32;
                    i64::from(if other < label { other } else { other + 1 })
                }
            }
        };
        let targets: Vec<i64> = entries.iter().map(|(_, job)| target(job)).collect();
        let rows: Vec<i64> = entries.iter().map(|(slot, _)| *slot as i64).collect();
        let device = floor.targets.device();
        let column = |values: &[i64]| Tensor::from_slice(values).to_device(device);
        let _ = floor.targets.index_copy_(0, &column(&rows), &column(&targets));
    }

    /// One pass over all slots, and what follows from it.
    fn step(&mut self, floor: &mut Floor) -> Result<(), EngineError> {
        let draws = floor.pgd.eot.max(1);
        self.seed_pass();
        let demands = floor.search.demands().to_vec();
        let objective = Objective {
            loss: floor.pgd.loss,
            labels: &floor.labels,
            targets: (floor.pgd.target != Target::Untargeted).then_some(&floor.targets),
            float32_gradient: floor.pgd.projection == Projection::Radial,
        };
        let with_gradient = demands.contains(&Demand::Gradient);
        let evaluation = self.kernel.evaluate(floor.search.points(), &objective, draws.into(), with_gradient)?;
        let bad = Tensor::stack(&[&evaluation.nan_gradient, &evaluation.zero_gradient], 0).to_device(Device::Cpu);
        let bad = Vec::<bool>::try_from(bad.view([-1])).expect("two bool rows");
        let status = floor.search.advance(&evaluation.answer);

        let mut again = Vec::new();
        let mut finished = Vec::new();
        for slot in 0..floor.slots.len() {
            let Some(job) = floor.slots[slot] else { continue };
            let backwards = if demands[slot] == Demand::Gradient { draws } else { 0 };
            self.charge(job, draws, backwards);
            if demands[slot] == Demand::Gradient {
                let notes = &mut self.accounts[job.image][job.rung].notes;
                notes.nan_gradients += u32::from(bad[slot]);
                notes.zero_gradients += u32::from(bad[floor.slots.len() + slot]);
            }
            match status[slot] {
                Status::Searching => {}
                Status::Finished { success: false }
                    if job.restart + 1 < floor.pgd.restarts && !self.restarts_after_verdict(floor.pgd, job) =>
                {
                    again.push((slot, Job { restart: job.restart + 1, ..job }));
                }
                Status::Finished { success } => finished.push((slot, job, success)),
            }
        }
        self.restart(floor, &again);
        if !finished.is_empty() {
            let slots: Vec<usize> = finished.iter().map(|(slot, ..)| *slot).collect();
            let candidates = floor.search.candidates(&slots);
            for (row, (slot, job, claimed)) in finished.into_iter().enumerate() {
                floor.waiting.push(Candidate { job, pixels: candidates.get(row as i64), claimed });
                floor.search.release(slot);
                floor.slots[slot] = None;
            }
        }
        Ok(())
    }

    fn restart(&mut self, floor: &mut Floor, entries: &[(usize, Job)]) {
        if entries.is_empty() {
            return;
        }
        let (slots, jobs): (Vec<usize>, Vec<Job>) = entries.iter().copied().unzip();
        let clean = self.clean(&jobs.iter().map(|job| job.image).collect::<Vec<_>>());
        let points = self.starting_points(floor, &jobs, &clean);
        floor.search.restart(&slots, &points);
        self.aim(floor, entries);
        for (slot, job) in entries {
            floor.slots[*slot] = Some(*job);
        }
    }

    /// Examines the waiting candidates; images with rungs or restarts left go back to the queue.
    fn judge(&mut self, floor: &mut Floor) -> Result<(), EngineError> {
        let draws = judge::draws(self.run.rule, self.stochastic());
        let launch = (self.run.batch / draws).max(1) as usize;
        let take = floor.waiting.len().min(launch);
        let candidates: Vec<Candidate> = floor.waiting.drain(..take).collect();
        let images: Vec<usize> = candidates.iter().map(|candidate| candidate.job.image).collect();
        let threats: Vec<_> = candidates.iter().map(|candidate| self.threat(candidate.job.rung)).collect();
        let pixels = Tensor::stack(&candidates.iter().map(|candidate| &candidate.pixels).collect::<Vec<_>>(), 0);
        self.seed_pass();
        let findings = examine(&self.kernel, &pixels, &self.clean(&images), &self.labels(&images), &threats, draws)?;
        for (candidate, finding) in candidates.iter().zip(findings) {
            let job = candidate.job;
            self.charge(job, draws, 0);
            if candidate.claimed && !finding.broken && !self.stochastic() {
                self.accounts[job.image][job.rung].notes.unconfirmed += 1;
            }
            let retries_search = candidate.claimed && !self.stochastic() && job.restart + 1 < floor.pgd.restarts;
            if !finding.broken && (retries_search || self.restarts_after_verdict(floor.pgd, job)) {
                floor.queue.push_back(Job { restart: job.restart + 1, ..job });
                continue;
            }
            self.settle(job, &finding, &candidate.pixels);
            if !finding.broken && job.rung + 1 < self.group.len() {
                floor.queue.push_back(Job { rung: job.rung + 1, restart: 0, ..job });
            }
        }
        Ok(())
    }

    /// Writes the verdict of `job`; a witness stands at all higher rungs too.
    fn settle(&mut self, job: Job, finding: &judge::Finding, pixels: &Tensor) {
        let image = self.run.images.indices[job.image];
        let name = match &self.run.conditions[self.group.start].kind {
            ConditionKind::Clean | ConditionKind::Corruption(_) => None,
            ConditionKind::Attack(attack) => Some(attack.attack.name()),
        };
        let stage = match name {
            _ if !finding.broken => None,
            Some(name) if finding.size.linf > 0.0 => Some(Stage::Attack(name.to_owned())),
            _ => Some(Stage::Clean),
        };
        let witness = (finding.broken && (self.run.wants_witness)(image)).then(|| to_pixels(pixels));
        let above = if finding.broken { self.group.len() } else { job.rung + 1 };
        for rung in job.rung..above {
            let stage = match &stage {
                Some(Stage::Attack(_)) if rung > job.rung => Some(Stage::Ladder),
                stage => stage.clone(),
            };
            let account = &mut self.accounts[job.image][rung];
            let verdict = Verdict {
                image,
                label: self.run.images.labels[job.image],
                predicted: finding.predicted,
                robust: !finding.broken,
                stage,
                l1: finding.size.l1,
                l2: finding.size.l2,
                linf: finding.size.linf,
                forwards: account.forwards,
                backwards: account.backwards,
            };
            account.settled = Some((verdict, witness.clone()));
            self.progress.done += 1;
        }
    }

    fn outcomes(self) -> Vec<Outcome> {
        let mut rungs: Vec<Vec<Outcome>> = vec![Vec::with_capacity(self.accounts.len()); self.group.len()];
        for accounts in self.accounts {
            for (rung, account) in accounts.into_iter().enumerate() {
                let (verdict, witness) = account.settled.expect("every image under every condition ends settled");
                rungs[rung].push(Outcome {
                    condition: self.group.start + rung,
                    verdict,
                    witness,
                    notes: account.notes,
                });
            }
        }
        rungs.into_iter().flatten().collect()
    }
}

fn to_pixels(image: &Tensor) -> Arc<[f32]> {
    let flat = image.to_device(Device::Cpu).contiguous().view([-1]);
    Vec::<f32>::try_from(flat).expect("a float32 image").into()
}
