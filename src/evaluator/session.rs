//! The child's state between requests: libtorch, then a model, then shards of it.

use std::cell::{Cell, RefCell};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tch::{Device as TchDevice, Kind, Tensor};

use super::calibrate::calibrate;
use super::corrupting::{Corrupting, clock};
use super::counted::Counted;
use super::{Line, confine, examine, resuming, settle};
use crate::protocol::{
    Condition, ConditionKind, CorruptionCondition, Device, Format, MemoryFormat, ModelSpec, NumericProfile, Pictures,
    Platform, Sandbox, Signs, Verdict,
};
use crate::robustness::corruption::FrostTextures;
use crate::robustness::diagnostic;
use crate::robustness::engine::{self, Corrupter, EngineError, Images, Kernel, Run, Watch};
use crate::robustness::model::{self, Classifier, ModelError, Rejection, TorchScript, is_device_failure};
use crate::robustness::runtime::{self, Runtime};
use crate::wire::{
    BatchWish, Confinement, CpuTime, DEVICE_FAILED, MODEL_FD, Progress, Reply, Request, SANDBOX_UNAVAILABLE,
    ShardRequest, WitnessAt,
};

/// Progress frames are at least this far apart.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

pub struct Session {
    started: Option<Started>,
    loaded: Option<Loaded>,
    /// Pictures that the supervisor handed over.
    frost: Option<FrostTextures>,
}

struct Started {
    runtime: &'static Runtime,
    platform: Platform,
    device: TchDevice,
}

struct Loaded {
    model: TorchScript,
    profile: NumericProfile,
}

/// An answer and its payload.
type Answered = (Reply, Vec<u8>);

fn failed(code: &str, detail: impl Into<String>) -> Reply {
    Reply::Failed { code: code.into(), detail: detail.into() }
}

impl Session {
    pub fn new() -> Self {
        Self { started: None, loaded: None, frost: None }
    }

    pub fn answer(&mut self, request: Request, payload: Vec<u8>, line: &mut Line) -> Answered {
        let answer = match request {
            Request::Start { device, threads, confinement } => self.start(device, threads, confinement).map(bare),
            Request::Load { spec, profile, batch, choose_threads } => {
                self.load(spec, profile, batch, choose_threads).map(bare)
            }
            Request::Probe => self.probe(&payload).map(bare),
            Request::Frost { lengths } => self.take_frost(lengths, &payload).map(bare),
            Request::Shard(shard) => self.shard(shard, payload, line),
            Request::Examine { labels, rule, seed } => self.examine(&payload, &labels, rule, seed).map(bare),
        };
        answer.unwrap_or_else(bare)
    }

    fn start(&mut self, device: Device, threads: u32, wanted: Option<Confinement>) -> Result<Reply, Reply> {
        if self.started.is_some() {
            return Err(failed("bad_request", "started already"));
        }
        let sandbox = match wanted {
            None => Sandbox::Off,
            Some(wanted) => {
                confine::enter(&wanted, device).map_err(|missing| failed(SANDBOX_UNAVAILABLE, missing.to_string()))?
            }
        };
        let runtime = runtime::initialise(threads).map_err(|e| failed("libtorch_setup", e.to_string()))?;
        let (platform, tch_device) = settle::platform(runtime, device).map_err(|e| failed("no_device", e))?;
        self.started = Some(Started { runtime, platform: platform.clone(), device: tch_device });
        Ok(Reply::Started { platform, sandbox })
    }

    fn load(
        &mut self,
        spec: ModelSpec,
        profile: Option<NumericProfile>,
        wish: BatchWish,
        choose_threads: bool,
    ) -> Result<Reply, Reply> {
        let started = self.started()?;
        let calibrates = profile.is_none() && !matches!(wish, BatchWish::Exactly(_));
        let mut profile = match profile {
            None => settle::new_profile(&started.platform, &spec, started.runtime.threads, wish),
            Some(fixed) if fixed.platform == started.platform => fixed,
            Some(fixed) => {
                let detail =
                    format!("the evaluation runs on {:?}, this process has {:?}", fixed.platform, started.platform);
                return Err(failed("profile_mismatch", detail));
            }
        };
        tch::set_num_threads(profile.threads.max(1) as i32);
        let format = match profile.memory_format {
            MemoryFormat::ChannelsFirst => model::MemoryFormat::ChannelsFirst,
            MemoryFormat::ChannelsLast => model::MemoryFormat::ChannelsLast,
        };
        let device = started.device;
        let file = PathBuf::from(format!("/proc/self/fd/{MODEL_FD}"));
        if let Err(error) = std::fs::File::open(&file) {
            // In a sandbox the child may have another account than whoever stored the file.
            let detail =
                format!("the model's file cannot be read by the evaluator ({error}): is it open to every account?");
            return Err(failed("artifact_store", detail));
        }
        let model = match spec.format {
            Format::Torchscript => TorchScript::load(&file, spec, device, format),
        };
        let mut model = model.map_err(model_problem)?;
        let mut floor = None;
        if calibrates {
            let found = calibrate(&mut model, &profile, wish, choose_threads).map_err(model_problem)?;
            floor = found.map(|(calibrated, floor)| {
                profile = calibrated;
                floor
            });
        }
        self.loaded = Some(Loaded { model, profile: profile.clone() });
        Ok(Reply::Loaded { profile, floor })
    }

    fn probe(&self, payload: &[u8]) -> Result<Reply, Reply> {
        let Loaded { model, profile } = self.loaded()?;
        let images = self.pixels(payload)?;
        let found = model::probe(model, &images)
            .map_err(|Rejection { code, found }| Reply::Rejected { code: code.into(), found })?;
        let kernel = Kernel::new(model, profile.batch.into());
        let input = model::to_unit(&images.narrow(0, 0, 1), model.device());
        // The first pass warms up; the fastest of the others is the least disturbed.
        let seconds = (0..4).map(|_| timed(|| kernel.logits(&input))).skip(1).collect::<Result<Vec<f64>, _>>();
        let fastest = seconds.map_err(model_problem)?.into_iter().fold(f64::INFINITY, f64::min);
        Ok(Reply::Probed { findings: found, seconds_per_forward: fastest / f64::from(profile.batch) })
    }

    fn shard(&self, shard: ShardRequest, mut pixels: Vec<u8>, line: &mut Line) -> Result<Answered, Reply> {
        let checkpoint =
            pixels.len().checked_sub(shard.checkpoint_bytes as usize).map(|length| pixels.split_off(length));
        let checkpoint = checkpoint.ok_or_else(|| failed("bad_request", "the checkpoint is cut short"))?;
        let Loaded { model, profile } = self.loaded()?;
        let count = shard.labels.len() as u32;
        let images =
            Images { indices: (shard.first_image..shard.first_image + count).collect(), pixels, labels: shard.labels };
        let conditions: Vec<&Condition> = shard.conditions.iter().collect();
        let model = Counted::new(model);
        let run = Run {
            model: &model,
            images: &images,
            conditions: &conditions,
            seed: shard.seed as u64,
            rule: shard.rule,
            batch: profile.batch,
            wants_witness: &|image| image < shard.first_image + shard.witness_images,
        };
        // How long the model waited for corrupted images.
        let waited = Cell::new(Duration::ZERO);
        let start = Instant::now();
        let mut last = start;
        let progress = Cell::new(Progress::default());
        let line = RefCell::new(line);
        let mut tell = |now: Progress| {
            progress.set(now);
            if last.elapsed() >= PROGRESS_EVERY {
                last = Instant::now();
                let heard = line.borrow_mut().say(Reply::Progress(now), &[]);
                // Nobody listens any more: the supervisor has gone, and its kill is on the way.
                if heard.is_err() {
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        };
        let mut report = |now: engine::Progress| {
            let (verdicts, rows) = (now.done as u32, model.rows());
            let waited_microseconds = waited.get().as_micros() as u64;
            tell(Progress { verdicts, forwards: now.forwards, backwards: now.backwards, rows, waited_microseconds })
        };
        let before = clock::process();
        let mut corruption = 0.0;
        let every = Duration::from_millis(shard.checkpoint_milliseconds);
        let outcomes = match &conditions[..] {
            [first, ..] if matches!(first.kind, ConditionKind::Corruption(_)) => {
                self.has_pictures(&conditions)?;
                let corrupting = Corrupting::new(self.frost.as_ref());
                let apply = |condition: &_, image: &_, random: &mut _| corrupting.apply(condition, image, random);
                let waiting = |wait: &mut dyn FnMut()| {
                    let start = Instant::now();
                    wait();
                    waited.set(waited.get() + start.elapsed());
                };
                let threads = self.started()?.runtime.threads as usize;
                let corrupter = Corrupter { threads, apply: &apply, waiting: &waiting };
                let corrupted = |run: &Run, from: Option<_>, watch: &mut Watch| {
                    engine::evaluate_corrupted(run, &corrupter, from, watch)
                };
                let outcomes = resuming::resumed(&corrupted, &run, &checkpoint, every, &line, &mut report);
                corruption = corrupting.seconds();
                outcomes
            }
            _ => resuming::resumed(&engine::evaluate_from, &run, &checkpoint, every, &line, &mut report),
        }
        .map_err(engine_problem)?;
        let mut signs = diagnostic::signs(&conditions, &outcomes, model.spec().stochastic);
        let (verdicts, so_far) = (outcomes.len() as u32, progress.get());
        let mut report = |now: engine::Progress| {
            let (forwards, backwards) = (so_far.forwards + now.forwards, so_far.backwards + now.backwards);
            let waited_microseconds = waited.get().as_micros() as u64;
            tell(Progress { verdicts, forwards, backwards, rows: model.rows(), waited_microseconds })
        };
        let opinion = diagnostic::second_opinion(&run, &shard.second_opinion, &outcomes, &mut report);
        let opinion = match opinion.map_err(engine_problem) {
            // The verdicts are there, and another batch would change them: better no opinion than no result.
            Err(Reply::Failed { code, .. }) if code == "out_of_memory" => Signs::default(),
            opinion => opinion?,
        };
        if let Some(signs) = signs.last_mut() {
            signs.add(&opinion);
        }
        let time = CpuTime { total: clock::process() - before, corruption, wall: start.elapsed().as_secs_f64() };
        // The totals; whether anybody listens shows when the answer is sent.
        line.borrow_mut().say(Reply::Progress(progress.get()), &[]).ok();
        let mut verdicts: Vec<Vec<Verdict>> = vec![Vec::new(); conditions.len()];
        let (mut witnesses, mut payload) = (Vec::new(), Vec::new());
        for outcome in &outcomes {
            if let Some(pixels) = &outcome.witness {
                witnesses.push(WitnessAt { condition: outcome.condition as u32, image: outcome.verdict.image });
                payload.extend(pixels.iter().flat_map(|v| v.to_le_bytes()));
            }
            verdicts[outcome.condition].push(outcome.verdict.clone());
        }
        Ok((Reply::Done { verdicts, witnesses, signs, time }, payload))
    }

    fn take_frost(&mut self, lengths: [u64; 5], payload: &[u8]) -> Result<Reply, Reply> {
        let mut rest = payload;
        let mut files: [&[u8]; 5] = [&[]; 5];
        for (file, length) in files.iter_mut().zip(lengths) {
            let split = usize::try_from(length).ok().and_then(|length| rest.split_at_checked(length));
            (*file, rest) = split.ok_or_else(|| failed("bad_request", "the frost pictures are cut short"))?;
        }
        let textures =
            FrostTextures::decode(&files).map_err(|problem| failed("frost_pictures", problem.to_string()))?;
        let pictures = textures.pictures().clone();
        self.frost = Some(textures);
        Ok(Reply::Taken { pictures })
    }

    /// Whether the pictures at hand are those that the conditions name.
    fn has_pictures(&self, conditions: &[&Condition]) -> Result<(), Reply> {
        let missing = conditions.iter().find(|condition| match &condition.kind {
            ConditionKind::Corruption(CorruptionCondition { pictures: Some(pictures), .. }) => {
                *pictures != Pictures::Procedural && Some(pictures) != self.frost.as_ref().map(FrostTextures::pictures)
            }
            _ => false,
        });
        match missing {
            Some(condition) => {
                Err(failed("bad_request", format!("{}: its frost pictures are not at hand", condition.id)))
            }
            None => Ok(()),
        }
    }

    fn examine(
        &self,
        payload: &[u8],
        labels: &[u32],
        rule: crate::protocol::VerdictRule,
        seed: i64,
    ) -> Result<Reply, Reply> {
        let Loaded { model, profile } = self.loaded()?;
        let [c, h, w] = model.spec().input.map(i64::from);
        let (n, each) = (labels.len(), (c * h * w) as usize);
        if payload.len() != n * each * 5 {
            return Err(failed(
                "bad_request",
                format!("{n} clean images and witnesses do not make {} bytes", payload.len()),
            ));
        }
        let (clean, witnesses) = payload.split_at(n * each);
        let floats: Vec<f32> = witnesses.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let witnesses = Tensor::from_slice(&floats).view([n as i64, c, h, w]);
        tch::manual_seed(seed);
        let witnesses = examine::examine(model, profile.batch, &self.pixels(clean)?, &witnesses, labels, rule);
        Ok(Reply::Examined { witnesses: witnesses.map_err(model_problem)? })
    }

    /// uint8 [n, c, h, w] of the model's shape.
    fn pixels(&self, bytes: &[u8]) -> Result<Tensor, Reply> {
        let [c, h, w] = self.loaded()?.model.spec().input.map(i64::from);
        if bytes.is_empty() || !bytes.len().is_multiple_of((c * h * w) as usize) {
            return Err(failed("bad_request", format!("{} bytes are no images of {c}×{h}×{w}", bytes.len())));
        }
        Ok(Tensor::from_slice(bytes).to_kind(Kind::Uint8).view([-1, c, h, w]))
    }

    fn started(&self) -> Result<&Started, Reply> {
        self.started.as_ref().ok_or_else(|| failed("bad_request", "not started"))
    }

    fn loaded(&self) -> Result<&Loaded, Reply> {
        self.loaded.as_ref().ok_or_else(|| failed("bad_request", "no model is loaded"))
    }
}

fn bare(reply: Reply) -> Answered {
    (reply, Vec::new())
}

fn timed<T, E>(work: impl FnOnce() -> Result<T, E>) -> Result<f64, E> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64())
}

/// Memory that runs out and devices that fail are the machine's; everything else says what the model is.
fn model_problem(error: ModelError) -> Reply {
    match error {
        ModelError::OutOfMemory(detail) => failed("out_of_memory", detail),
        ModelError::DeviceFailed(detail) => failed(DEVICE_FAILED, detail),
        other => {
            let Rejection { code, found } = other.into();
            Reply::Rejected { code: code.into(), found }
        }
    }
}

/// A model that passed its check and fails in a shard fails the shard.
fn engine_problem(error: EngineError) -> Reply {
    let detail = error.to_string();
    match error {
        EngineError::Model(error) => match model_problem(error) {
            Reply::Rejected { code, found } => failed(&code, found),
            other => other,
        },
        EngineError::OutOfMemory(_) => failed("out_of_memory", detail),
        EngineError::Stopped => failed("stopped", detail),
        EngineError::Input(_) | EngineError::Checkpoint => failed("bad_input", detail),
        EngineError::Libtorch(text) if is_device_failure(&text) => failed(DEVICE_FAILED, detail),
        EngineError::Libtorch(_) => failed("libtorch_error", detail),
    }
}
