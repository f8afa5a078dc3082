//! Continuous batching: which image is in which slot, and what becomes of it.

use std::collections::HashMap;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use super::checkpoint::{Account, Beginning, Checkpoint, Near, Place, Standing, Trajectory};
use super::floor::{Floor, Job};
use super::judge::{self, examine};
use super::kernel::Kernel;
use super::objective::Objective;
use super::scene::{Kept, Scene, Seating};
use super::{EngineError, Outcome, Progress, Run, Watch, can_resume, name_pass};
use crate::protocol::{
    Attack, AttackCondition, Condition, ConditionKind, Loss, MinNormCondition, Norm, Stage, ThreatModel, Verdict,
};
use crate::robustness::attack::{Draws, Entry, Goal, Seen, Setting, Status, needs_ranking};
use crate::robustness::model::to_unit;
use crate::robustness::threat::to_vec;

/// A candidate that waits for its examination.
struct Candidate {
    job: Job,
    pixels: Tensor,
    /// The search saw it misclassified.
    claimed: bool,
    /// What to do with the image should it still stand, in the same rung.
    next: Option<Job>,
}

impl Candidate {
    fn freeze(&self) -> Kept {
        let Self { job, claimed, next, ref pixels } = *self;
        Kept { job, claimed, next, pixels: to_pixels(pixels).to_vec() }
    }

    /// `like` is an image of the shape, on the device.
    fn thaw(kept: Kept, like: &Tensor) -> Self {
        let Kept { job, claimed, next, pixels } = kept;
        Self { job, claimed, next, pixels: Tensor::from_slice(&pixels).to_device(like.device()).view_as(like) }
    }
}

/// A confirmed example.
struct Nearest {
    stage: usize,
    finding: judge::Finding,
    pixels: Tensor,
}

impl Nearest {
    fn freeze(&self) -> Near {
        let judge::Finding { predicted, size, .. } = self.finding;
        Near { stage: self.stage, predicted, size, pixels: to_pixels(&self.pixels).to_vec() }
    }

    /// `like` is an image of the shape, on the device.
    fn thaw(near: &Near, like: &Tensor) -> Self {
        let Near { stage, predicted, size, ref pixels } = *near;
        let finding = judge::Finding { predicted, broken: true, undefined: false, size };
        Self { stage, finding, pixels: Tensor::from_slice(pixels).to_device(like.device()).view_as(like) }
    }
}

/// Bytes of trajectories that a checkpoint holds at most; what is over begins its run anew.
const MOST_FROZEN: usize = 256 << 20;

/// Runs one ladder (or one single condition) over all images.
pub struct Driver<'a, 'r, 'w> {
    run: &'a Run<'r>,
    /// The ladder's positions in the run's conditions.
    group: Range<usize>,
    kernel: Kernel<'a>,
    progress: &'a mut Progress,
    watch: &'a mut Watch<'w>,
    /// [n, C, H, W] uint8, on the CPU.
    pixels: Tensor,
    /// Per image: its accounts, one per rung.
    accounts: Vec<Vec<Account>>,
    /// Per image: the run that it is in, and where that began.
    begun: Vec<Option<(Job, Beginning)>>,
    /// Model passes so far: names the random numbers that a stochastic model draws in each.
    passes: u32,
}

/// What the adversary is to do.
#[derive(Clone, Copy)]
struct Task<'a> {
    attack: &'a Attack,
    norm: Norm,
    /// Find the nearest adversarial example of each image; else any inside the budget.
    nearest: bool,
    /// Only 8-bit images count.
    eight_bit: bool,
}

/// The part of a driver that searches.
struct Search<'a> {
    task: Task<'a>,
    stages: Vec<&'a Attack>,
    /// Of the stages.
    names: Vec<String>,
    /// Stages that take gradients, and stages that do not.
    floors: [Floor<'a>; 2],
    waiting: Vec<Candidate>,
    /// A stochastic model's best candidate so far, with its margin, by image.
    held: HashMap<usize, (f64, Candidate)>,
    /// Where the nearest is wanted: the nearest example that an examination confirmed, and the stage it is from, by image.
    nearest: HashMap<usize, Nearest>,
    /// The wrong classes of each image by falling clean logit; empty where no stage needs them.
    rankings: Vec<Arc<[u32]>>,
}

impl<'a> Search<'a> {
    fn floor(&mut self, job: Job) -> &mut Floor<'a> {
        &mut self.floors[floor_of(self.stages[job.stage])]
    }

    fn enqueue(&mut self, job: Job) {
        self.floor(job).queue.push_back(job);
    }

    /// Keeps an example that the examination confirmed, if it is the image's nearest.
    fn compare(&mut self, job: Job, finding: judge::Finding, pixels: Tensor) {
        let size = |finding: &judge::Finding| finding.size.in_norm(self.task.norm);
        let best = self.nearest.get(&job.image).map_or(f64::INFINITY, |best| size(&best.finding));
        if finding.broken && size(&finding) < best {
            self.nearest.insert(job.image, Nearest { stage: job.stage, finding, pixels });
        }
    }

    /// What comes after a run in the same rung: the stage's next run, or the next stage.
    fn after(&self, job: Job, next_run: Option<u32>) -> Option<Job> {
        match next_run {
            Some(run) => Some(Job { run, ..job }),
            None if job.stage + 1 < self.stages.len() => Some(Job { stage: job.stage + 1, run: 0, ..job }),
            None => None,
        }
    }

    /// The floor that the next pass goes to: a full one if there is one, gradients first, since they feed the other.
    fn next_floor(&self) -> Option<usize> {
        let full = |floor: &usize| self.floors[*floor].idle() == 0;
        let busy = |floor: &usize| self.floors[*floor].idle() < self.floors[*floor].len();
        [0, 1].into_iter().find(full).or_else(|| [0, 1].into_iter().find(busy))
    }
}

fn floor_of(attack: &Attack) -> usize {
    usize::from(attack.is_forward_only())
}

impl<'a, 'r, 'w> Driver<'a, 'r, 'w> {
    pub fn new(run: &'a Run<'r>, group: Range<usize>, progress: &'a mut Progress, watch: &'a mut Watch<'w>) -> Self {
        let images = run.images.indices.len();
        let [channels, height, width] = run.model.spec().input.map(i64::from);
        let pixels = Tensor::from_data_size(&run.images.pixels, &[images as i64, channels, height, width], Kind::Uint8);
        Self {
            kernel: Kernel::new(run.model, run.batch.into()).searching_in(run.conditions[group.start].search()),
            accounts: vec![vec![Account::default(); group.len()]; images],
            begun: vec![None; images],
            run,
            group,
            progress,
            watch,
            pixels,
            passes: 0,
        }
    }

    pub fn drive(mut self, from: Option<Checkpoint>) -> Result<Vec<Outcome>, EngineError> {
        let run = self.run;
        // Of searches that differ in length, the longest shows all.
        match &run.conditions[self.group.end - 1].kind {
            ConditionKind::Clean => self.examine_clean(false)?,
            ConditionKind::Corruption(_) => {
                return Err(EngineError::Input("corruptions are evaluated apart".into()));
            }
            ConditionKind::Attack(AttackCondition { threat, independent, eight_bit, attack, .. }) => {
                let task = Task { attack, norm: threat.norm, nearest: false, eight_bit: *eight_bit };
                self.attack(task, *independent, from)?;
            }
            ConditionKind::MinNorm(MinNormCondition { norm, attack }) => {
                self.attack(Task { attack, norm: *norm, nearest: true, eight_bit: false }, false, from)?;
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

    fn eot(&self, attack: &Attack) -> u32 {
        attack.draws(self.stochastic())
    }

    fn condition(&self, rung: usize) -> &'r Condition {
        self.run.conditions[self.group.start + rung]
    }

    /// The budget, where there is one.
    fn threat(&self, rung: usize) -> Option<ThreatModel> {
        match &self.condition(rung).kind {
            ConditionKind::Attack(attack) => Some(attack.threat),
            ConditionKind::Clean | ConditionKind::MinNorm(_) | ConditionKind::Corruption(_) => None,
        }
    }

    /// Names the random numbers that a stochastic model draws in the next pass.
    fn seed_pass(&mut self) {
        name_pass(self.run, self.run.conditions[self.group.start], self.passes);
        self.passes += 1;
    }

    fn report(&mut self) -> Result<(), EngineError> {
        match (self.watch.observer)(*self.progress) {
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
                let job = Job { image: *image, rung: 0, stage: 0, run: 0 };
                self.charge(job, draws, 0);
                self.accounts[*image][0].notes.undefined_logits += u32::from(finding.undefined);
                if finding.broken || !only_broken {
                    self.settle(job, None, &finding, &clean.get(row as i64));
                }
            }
            self.report()?;
        }
        Ok(())
    }

    /// The wrong classes of each image that still stands, by falling logit at the clean image. Whoever `resumes` has paid
    /// for it before.
    fn rankings(&mut self, resumes: bool) -> Result<Vec<Arc<[u32]>>, EngineError> {
        let mut rankings = vec![Arc::default(); self.accounts.len()];
        // A stochastic model is to draw what it drew, whatever has been settled since.
        let open = |image: usize| self.accounts[image].iter().any(|account| account.settled.is_none());
        let standing = |image: &usize| self.stochastic() || open(*image);
        let images: Vec<usize> = (0..self.accounts.len()).filter(standing).collect();
        for chunk in images.chunks(self.run.batch as usize) {
            self.seed_pass();
            let order = self.kernel.logits(&self.clean(chunk))?.argsort_stable(true, 1, true).to_device(Device::Cpu);
            let order = Vec::<i64>::try_from(order.contiguous().view([-1])).expect("rows of classes");
            let rows = order.chunks(self.run.model.spec().classes as usize);
            for ((classes, label), image) in rows.zip(self.labels(chunk)).zip(chunk) {
                rankings[*image] = classes.iter().map(|class| *class as u32).filter(|class| *class != label).collect();
                if !resumes {
                    self.charge(Job { image: *image, rung: 0, stage: 0, run: 0 }, 1, 0);
                }
            }
            self.report()?;
        }
        Ok(rankings)
    }

    fn attack(&mut self, task: Task<'a>, independent: bool, from: Option<Checkpoint>) -> Result<(), EngineError> {
        let stages = task.attack.stages();
        let resumes = from.is_some();
        let taken_up = from.map(|checkpoint| self.take_up(checkpoint, &stages)).transpose()?;
        if !independent && !self.stochastic() && !resumes {
            self.examine_clean(true)?;
        }
        let ranks = stages.iter().any(|stage| needs_ranking(stage));
        let rankings = if ranks { self.rankings(resumes)? } else { Vec::new() };
        let eot = self.eot(task.attack);
        let spec = self.run.model.spec();
        let setting = Setting {
            norm: task.norm,
            classes: spec.classes,
            stochastic: spec.stochastic,
            nearest: task.nearest,
            slots: (self.run.batch / eot).max(1) as usize,
            shape: spec.input.map(i64::from),
            device: self.run.model.device(),
        };
        let floors = [0, 1].map(|_| Floor::new(stages.clone(), setting, eot, task.eight_bit));
        let (held, nearest) = (HashMap::new(), HashMap::new());
        let names = task.attack.stage_names();
        let mut search = Search { task, stages, names, floors, waiting: Vec::new(), held, nearest, rankings };
        match taken_up {
            Some((places, scene)) => self.go_on(&mut search, places, scene)?,
            None => {
                let images = 0..self.accounts.len();
                let standing: Vec<usize> = images.filter(|i| self.accounts[*i][0].settled.is_none()).collect();
                standing
                    .into_iter()
                    .for_each(|image| self.enqueue(&mut search, Job { image, rung: 0, stage: 0, run: 0 }));
            }
        }
        loop {
            self.keep(&mut search)?;
            self.fill(&mut search)?;
            let floor = search.next_floor();
            match floor {
                None if search.waiting.is_empty() => return Ok(()),
                Some(floor) if !self.should_judge(&search) => self.step(&mut search, floor)?,
                _ => self.judge(&mut search)?,
            }
            self.report()?;
        }
    }

    /// A full launch of candidates is examined at once. Fewer are, when slots stand empty that images among them may
    /// need for their next run, stage or rung.
    fn should_judge(&self, search: &Search) -> bool {
        let launch = (self.run.batch / judge::draws(self.run.rule, self.stochastic())).max(1) as usize;
        let returns = |candidate: &Candidate| match candidate.next {
            _ if candidate.claimed && !search.task.nearest => None,
            Some(next) => Some(floor_of(search.stages[next.stage])),
            None if candidate.job.rung + 1 < self.group.len() && !search.task.nearest => {
                Some(floor_of(search.stages[0]))
            }
            None => None,
        };
        let starving = |floor: usize| {
            let returning = search.waiting.iter().filter(|candidate| returns(candidate) == Some(floor)).count();
            returning.min(search.floors[floor].idle()) > search.floors[floor].len() / 8
        };
        search.waiting.len() >= launch || starving(0) || starving(1)
    }

    /// Puts queued jobs into empty slots.
    fn fill(&self, search: &mut Search) -> Result<(), EngineError> {
        let Search { task, stages, floors, rankings, nearest, .. } = search;
        let beaten =
            |image: &usize| nearest.get(image).map_or(f64::INFINITY, |best| best.finding.size.in_norm(task.norm));
        let entry = |job: &Job, slot: usize| Entry {
            slot,
            run: job.run,
            label: self.run.images.labels[job.image],
            epsilon: self.threat(job.rung).map_or_else(|| beaten(&job.image), |threat| threat.epsilon.get()),
            ranking: if needs_ranking(stages[job.stage]) { rankings[job.image].clone() } else { Arc::default() },
            draws: Draws {
                seed: self.run.seed,
                condition: self.condition(job.rung).stage_key(stages[job.stage]),
                image: self.run.images.indices[job.image],
            },
        };
        for floor in floors {
            let clean = |jobs: &[Job]| self.clean(&jobs.iter().map(|job| job.image).collect::<Vec<_>>());
            if !floor.fill(entry, clean) {
                return Err(EngineError::Checkpoint);
            }
        }
        Ok(())
    }

    /// Queues a run and notes what had been spent before it.
    fn enqueue(&mut self, search: &mut Search, job: Job) {
        let account = self.accounts[job.image][job.rung].clone();
        self.begun[job.image] = Some((job, Beginning { rung: job.rung, account }));
        search.enqueue(job);
    }

    /// Queues the runs of a checkpoint, or puts everybody back where the scene has them.
    fn go_on(&mut self, search: &mut Search, places: Vec<Place>, scene: Option<Scene>) -> Result<(), EngineError> {
        let mut jobs = HashMap::new();
        for Place { job, began, trajectory, nearest } in places {
            let found = nearest.map(|near| (job.image, Nearest::thaw(&near, &self.clean(&[job.image]).get(0))));
            search.nearest.extend(found);
            search.floor(job).frozen.extend(trajectory.map(|trajectory| (job.image, trajectory)));
            self.begun[job.image] = Some((job, began));
            match scene {
                Some(_) => drop(jobs.insert(job.image, job)),
                None => search.enqueue(job),
            }
        }
        let Some(scene) = scene else { return Ok(()) };
        self.set(search, jobs, scene).ok_or(EngineError::Checkpoint)?;
        self.fill(search)
    }

    /// `None` if the scene is not one of these jobs.
    fn set(&mut self, search: &mut Search, mut jobs: HashMap<usize, Job>, scene: Scene) -> Option<()> {
        let Scene { passes, floors, waiting, held } = scene;
        self.passes = passes;
        let known = |kept: &Kept| {
            let each = [Some(kept.job), kept.next];
            let fits = |job: Job| job.image < self.accounts.len() && job.rung == 0 && job.stage < search.stages.len();
            each.into_iter().flatten().all(fits) && kept.pixels.len() == self.dimension()
        };
        if !waiting.iter().chain(held.iter().map(|(_, kept)| kept)).all(known) {
            return None;
        }
        for kept in waiting {
            jobs.remove(&kept.job.image)?;
            let like = self.clean(&[kept.job.image]).get(0);
            search.waiting.push(Candidate::thaw(kept, &like));
        }
        for (margin, kept) in held {
            let (image, like) = (kept.job.image, self.clean(&[kept.job.image]).get(0));
            search.held.insert(image, (margin, Candidate::thaw(kept, &like)));
        }
        for (which, Seating { seats, queue }) in floors.into_iter().enumerate() {
            let mut take = |image: usize| jobs.remove(&image).filter(|job| floor_of(search.stages[job.stage]) == which);
            let floor = &mut search.floors[which];
            for (slot, image) in seats {
                (slot < floor.len() && floor.reserved.insert(slot, take(image)?).is_none()).then_some(())?;
            }
            floor.queue = queue.into_iter().map(take).collect::<Option<_>>()?;
        }
        jobs.is_empty().then_some(())
    }

    /// Pixels of an image, times channels.
    fn dimension(&self) -> usize {
        self.run.model.spec().input.iter().product::<u32>() as usize
    }

    /// Hands out a checkpoint if one is due. Candidates are examined first, so that none of their runs is lost; on a stochastic model
    /// that would change what is drawn after.
    fn keep(&mut self, search: &mut Search) -> Result<(), EngineError> {
        let due = self.watch.keep.as_mut().is_some_and(|(due, _)| due()) && can_resume(self.run);
        if !due {
            return Ok(());
        }
        while !self.stochastic() && !search.waiting.is_empty() {
            self.judge(search)?;
        }
        let checkpoint = self.checkpoint(search);
        if let (Some((_, keep)), Some(checkpoint)) = (&mut self.watch.keep, checkpoint) {
            keep(checkpoint);
        }
        Ok(())
    }

    /// `None` if a stochastic model's scene is too large to keep.
    fn checkpoint(&self, search: &mut Search) -> Option<Checkpoint> {
        let mut room = MOST_FROZEN;
        let [first, second] = &mut search.floors;
        let seated = [first, second].map(|floor| floor.freeze(&mut room));
        let scene = if self.stochastic() { Some(self.scene(search, &seated)?) } else { None };
        let running = seated.into_iter().flatten();
        let running = running.filter_map(|(_, job, trajectory)| Some((job.image, (job, trajectory?))));
        let mut running: HashMap<usize, (Job, Trajectory)> = running.collect();
        // A trajectory that has not come to a slot yet is still what it was.
        for floor in &search.floors {
            let frozen = |job: &Job| Some((job.image, (*job, floor.frozen.get(&job.image)?.clone())));
            running.extend(floor.queue.iter().filter_map(frozen));
        }
        let standing = |(image, accounts): (usize, &Vec<Account>)| {
            let mut accounts = accounts.clone();
            let open = accounts.iter().any(|account| account.settled.is_none());
            let place = self.begun[image].clone().filter(|_| open).map(|(job, began)| {
                let mut nearest = search.nearest.get(&image);
                let (job, trajectory) = match running.remove(&image) {
                    Some((job, trajectory)) => (job, Some(trajectory)),
                    None if scene.is_some() => (job, None),
                    None => {
                        // A search that begins anew goes up its ladder again, and has found nothing of what it found there.
                        nearest = nearest.filter(|_| accounts[began.rung].settled.is_none());
                        accounts[began.rung..].fill(Account::default());
                        accounts[began.rung] = began.account.clone();
                        (Job { rung: began.rung, ..job }, None)
                    }
                };
                Place { job, began, trajectory, nearest: nearest.map(Nearest::freeze) }
            });
            Standing { accounts, place }
        };
        Some(Checkpoint { images: self.accounts.iter().enumerate().map(standing).collect(), scene })
    }

    /// Where everybody is; `None` if some trajectory of those in slots is missing.
    fn scene(&self, search: &Search, seated: &[Vec<(usize, Job, Option<Trajectory>)>; 2]) -> Option<Scene> {
        let seating = |floor: usize| {
            let seats =
                seated[floor].iter().map(|(slot, job, trajectory)| trajectory.as_ref().map(|_| (*slot, job.image)));
            let queue = search.floors[floor].queue.iter().map(|job| job.image).collect();
            Some(Seating { seats: seats.collect::<Option<_>>()?, queue })
        };
        Some(Scene {
            passes: self.passes,
            floors: [seating(0)?, seating(1)?],
            waiting: search.waiting.iter().map(Candidate::freeze).collect(),
            held: search.held.values().map(|(margin, candidate)| (*margin, candidate.freeze())).collect(),
        })
    }

    /// Takes the books of a checkpoint over; returns where the images go on, those in the middle of a run first.
    fn take_up(
        &mut self,
        checkpoint: Checkpoint,
        stages: &[&Attack],
    ) -> Result<(Vec<Place>, Option<Scene>), EngineError> {
        if checkpoint.images.len() != self.accounts.len() || checkpoint.scene.is_some() != self.stochastic() {
            return Err(EngineError::Checkpoint);
        }
        let mut places = Vec::new();
        for (image, standing) in checkpoint.images.into_iter().enumerate() {
            let Standing { accounts, place } = standing;
            let index = self.run.images.indices[image];
            let named = |account: &Account| account.settled.as_ref().is_none_or(|(verdict, _)| verdict.image == index);
            // Settled from the first rung on, up to where the image is now.
            let settled = accounts.iter().take_while(|account| account.settled.is_some()).count();
            let fits = accounts.len() == self.group.len()
                && accounts.iter().all(named)
                && accounts[settled..].iter().all(|account| account.settled.is_none())
                && match &place {
                    Some(Place { job, began, nearest, .. }) => {
                        let known = |near: &Near| near.stage < stages.len() && near.pixels.len() == self.dimension();
                        (job.rung == settled && settled < accounts.len() && job.stage < stages.len())
                            && began.rung <= job.rung
                            && nearest.as_ref().is_none_or(known)
                    }
                    None => settled == accounts.len(),
                };
            if !fits {
                return Err(EngineError::Checkpoint);
            }
            self.progress.done += settled;
            self.accounts[image] = accounts;
            places.extend(place.map(|place| Place { job: Job { image, ..place.job }, ..place }));
        }
        places.sort_by_key(|place| place.trajectory.is_none());
        Ok((places, checkpoint.scene))
    }

    /// One pass over all slots of a floor, and what follows from it.
    fn step(&mut self, search: &mut Search, floor: usize) -> Result<(), EngineError> {
        let draws = self.eot(search.task.attack);
        self.seed_pass();
        let (mut done, mut finished, mut stops) = (Vec::new(), Vec::new(), Vec::new());
        for passed in search.floors[floor].pass(&self.kernel)? {
            let job = passed.job;
            self.charge(job, draws + u32::from(passed.looked_again), if passed.with_gradient { draws } else { 0 });
            let notes = &mut self.accounts[job.image][job.rung].notes;
            notes.nan_gradients += u32::from(passed.nan_gradient);
            notes.zero_gradients += u32::from(passed.zero_gradient);
            let Status::Finished { seen, next_run } = passed.status else {
                if self.is_stop(&search.task, job, passed.passes) {
                    stops.push((passed.slot, job));
                }
                continue;
            };
            if let (Some(rises), Seen::Failure | Seen::Unknown) = (passed.still_rises, seen) {
                notes.ascents += 1;
                notes.unconverged += u32::from(rises);
            }
            done.push(passed.slot);
            match search.after(job, next_run) {
                // Seen standing, and not at its end: nothing to examine.
                Some(next) if seen == Seen::Failure && !self.stochastic() => self.enqueue(search, next),
                next => finished.push((passed.slot, job, seen == Seen::Success, next)),
            }
        }
        for (slot, job) in stops {
            let pixels = search.floors[floor].candidates(&[slot]).remove(0);
            search.floors[floor].climb(slot);
            search.waiting.push(Candidate { job, pixels, claimed: false, next: None });
        }
        let slots: Vec<usize> = finished.iter().map(|(slot, ..)| *slot).collect();
        let pixels = search.floors[floor].candidates(&slots);
        search.floors[floor].release(&done);
        let candidates: Vec<Candidate> = finished
            .into_iter()
            .zip(pixels)
            .map(|((_, job, claimed, next), pixels)| Candidate { job, pixels, claimed, next })
            .collect();
        if self.stochastic() {
            return self.contest(search, candidates);
        }
        search.waiting.extend(candidates);
        Ok(())
    }

    /// Whether a search has made as many passes as its rung allows, and goes on to the next.
    fn is_stop(&self, task: &Task, job: Job, passes: u32) -> bool {
        task.nearest && job.rung + 1 < self.group.len() && f64::from(passes) == self.condition(job.rung).rung()
    }

    /// A stochastic model's verdict looks at one candidate only, whatever the number of stages and runs: the one with the
    /// largest margin, the mean over as many fresh draws as the search took at every point.
    fn contest(&mut self, search: &mut Search, candidates: Vec<Candidate>) -> Result<(), EngineError> {
        let alone = |candidate: &Candidate| candidate.next.is_none() && !search.held.contains_key(&candidate.job.image);
        let (alone, rivals): (Vec<Candidate>, Vec<Candidate>) = candidates.into_iter().partition(alone);
        search.waiting.extend(alone);
        if rivals.is_empty() {
            return Ok(());
        }
        let draws = self.eot(search.task.attack);
        let labels = self.labels(&rivals.iter().map(|rival| rival.job.image).collect::<Vec<_>>());
        let goals = vec![Some(Goal { loss: Loss::Margin, target: None, float32_gradient: false }); rivals.len()];
        let objective = Objective::new(&labels, &goals, self.run.model.device());
        let points = Tensor::stack(&rivals.iter().map(|rival| &rival.pixels).collect::<Vec<_>>(), 0);
        self.seed_pass();
        let margins = to_vec(&self.kernel.evaluate(&points, &objective, draws.into(), false)?.answer.loss);
        for (rival, margin) in rivals.into_iter().zip(margins) {
            // No number is the worst of margins: it must not shut out those that come after.
            let margin = if margin.is_nan() { f64::NEG_INFINITY } else { margin };
            self.charge(rival.job, draws, 0);
            let (image, next) = (rival.job.image, rival.next);
            if search.held.get(&image).is_none_or(|(best, _)| margin > *best) {
                search.held.insert(image, (margin, rival));
            }
            match next {
                Some(next) => self.enqueue(search, next),
                None => {
                    search.waiting.extend(search.held.remove(&image).map(|(_, best)| Candidate { next: None, ..best }))
                }
            }
        }
        Ok(())
    }

    /// Examines the waiting candidates; images with runs, stages or rungs left go back to the queue.
    fn judge(&mut self, search: &mut Search) -> Result<(), EngineError> {
        let draws = judge::draws(self.run.rule, self.stochastic());
        let launch = (self.run.batch / draws).max(1) as usize;
        let take = search.waiting.len().min(launch);
        let candidates: Vec<Candidate> = search.waiting.drain(..take).collect();
        let images: Vec<usize> = candidates.iter().map(|candidate| candidate.job.image).collect();
        let threats: Vec<_> = candidates.iter().map(|candidate| self.threat(candidate.job.rung)).collect();
        let pixels = Tensor::stack(&candidates.iter().map(|candidate| &candidate.pixels).collect::<Vec<_>>(), 0);
        self.seed_pass();
        let findings = examine(&self.kernel, &pixels, &self.clean(&images), &self.labels(&images), &threats, draws)?;
        for (candidate, finding) in candidates.into_iter().zip(findings) {
            let job = candidate.job;
            self.charge(job, draws, 0);
            self.accounts[job.image][job.rung].notes.undefined_logits += u32::from(finding.undefined);
            if candidate.claimed && !finding.broken && !self.stochastic() {
                self.accounts[job.image][job.rung].notes.unconfirmed += 1;
            }
            let Candidate { next, pixels, .. } = candidate;
            match next {
                Some(next) if search.task.nearest => {
                    search.compare(job, finding, pixels);
                    self.enqueue(search, next);
                }
                None if search.task.nearest => {
                    search.compare(job, finding, pixels.shallow_clone());
                    let last = Nearest { stage: job.stage, finding, pixels };
                    let best = search.nearest.get(&job.image).unwrap_or(&last);
                    self.settle(job, Some(&search.names[best.stage]), &best.finding, &best.pixels);
                    if job.rung + 1 == self.group.len() {
                        search.nearest.remove(&job.image);
                    }
                }
                Some(next) if !finding.broken => self.enqueue(search, next),
                _ => {
                    self.settle(job, Some(&search.names[job.stage]), &finding, &pixels);
                    if !finding.broken && job.rung + 1 < self.group.len() {
                        self.enqueue(search, Job { rung: job.rung + 1, stage: 0, run: 0, ..job });
                    }
                }
            }
        }
        Ok(())
    }

    /// Writes the verdict of `job`, which the named stage came to (none: the clean image itself); a witness stands at all higher
    /// rungs too.
    fn settle(&mut self, job: Job, attack: Option<&str>, finding: &judge::Finding, pixels: &Tensor) {
        let image = self.run.images.indices[job.image];
        let stage = match attack {
            _ if !finding.broken => None,
            Some(name) if finding.size.linf > 0.0 => Some(Stage::Attack(name.to_owned())),
            _ => Some(Stage::Clean),
        };
        let witness = (finding.broken && (self.run.wants_witness)(image)).then(|| to_pixels(pixels));
        // The clean image stands for itself; without a budget, how far a witness is says nothing of how far the next will be.
        let stands = finding.broken && (attack.is_none() || self.threat(job.rung).is_some());
        let above = if stands { self.group.len() } else { job.rung + 1 };
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
