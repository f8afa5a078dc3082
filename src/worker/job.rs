//! One shard from lease to evidence: fetch images, ask the child, check its answer, write artifacts.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use bytes::Bytes;
use sqlx::PgPool;
use tokio::sync::watch;
use tracing::{Instrument, info_span};

use super::attempt_log::AttemptLog;
use super::checkpoint::Checkpoints;
use super::child::{Child, ChildOptions, unexpected};
use super::failure::{self, ChildError};
use super::metrics::{self, Meter};
use super::patience::patiently;
use super::{validate, words};
use crate::dataset::{Batch, Catalogue, DatasetError, Part};
use crate::protocol::report::Tally;
use crate::protocol::{self, Condition, NumericProfile, Platform, Verdict};
use crate::queue::{Claimed, Failure, LeaseError, Outage, ShardResult};
use crate::store::artifacts::ArtifactError;
use crate::store::evidence::{self, VerdictRow, WitnessSet};
use crate::store::{Artifacts, pool};
use crate::wire::{BatchWish, Progress, Reply, Request, ShardRequest, WitnessAt};

/// Why an attempt ended without a result.
#[derive(Debug)]
pub enum JobError {
    /// The lease is gone: say nothing, touch nothing.
    Lost,
    /// The evaluation has just been fixed to another platform: the shard is for other workers.
    NotForThisPlatform,
    Failed(Failure),
}

impl From<LeaseError> for JobError {
    fn from(error: LeaseError) -> Self {
        match error {
            LeaseError::Lost => Self::Lost,
            LeaseError::Database(e) if pool::is_outage(&e) => {
                Outage { code: "database".into(), detail: e.to_string() }.into()
            }
            LeaseError::Database(e) => transient("database", e),
        }
    }
}

impl From<Outage> for JobError {
    fn from(outage: Outage) -> Self {
        Self::Failed(Failure::Outage(outage))
    }
}

/// Missing bytes may be on their way from another place, for a while; a store that fails says nothing about them.
impl From<ArtifactError> for JobError {
    fn from(error: ArtifactError) -> Self {
        if error.is_missing() { transient("artifact_store", error) } else { failure::of_the_store(&error).into() }
    }
}

fn transient(code: &str, error: impl std::fmt::Display) -> JobError {
    JobError::Failed(Failure::Transient { code: code.into(), detail: error.to_string() })
}

fn permanent(code: &str, error: impl std::fmt::Display) -> JobError {
    JobError::Failed(Failure::Permanent { code: code.into(), detail: error.to_string() })
}

/// Bytes that are missing or wrong stay so; a store that does not answer may do so later.
fn unreadable(error: DatasetError) -> JobError {
    match error {
        DatasetError::Store(e) => ArtifactError::from(e).into(),
        _ => permanent(error.code(), error),
    }
}

/// A child that has an evaluation's model loaded.
pub struct Loaded {
    pub child: Child,
    pub model: uuid::Uuid,
    pub evaluation: uuid::Uuid,
    pub generation: i32,
    pub profile: NumericProfile,
}

/// What jobs need of the worker.
pub struct Tools<'a> {
    pub pool: &'a PgPool,
    pub artifacts: &'a Artifacts,
    pub catalogue: &'a Catalogue,
    pub child: &'a ChildOptions,
    pub log: &'a AttemptLog,
    /// What children here run on.
    pub platform: &'a Platform,
}

/// Runs a leased shard. `kept` holds the child between shards of one model; it is taken out while in use, so that
/// dropping this future kills the child. `progress` counts verdicts.
pub async fn run(
    tools: &Tools<'_>,
    claimed: &Claimed,
    kept: &mut Option<Loaded>,
    progress: &AtomicU32,
) -> Result<ShardResult, JobError> {
    let started = Instant::now();
    let evaluation = &claimed.evaluation;
    let first = claimed.first_image as usize;
    let range = first..first + claimed.images as usize;
    let conditions: Vec<Condition> = claimed
        .conditions
        .iter()
        .map(|&i| evaluation.conditions.get(i as usize).cloned())
        .collect::<Option<_>>()
        .ok_or_else(|| permanent("bad_plan", "the shard names a condition that the evaluation does not have"))?;
    let named: Vec<&str> = conditions.iter().map(|condition| condition.id.as_str()).collect();
    tools.log.say(format_args!(
        "images {} to {}, seed {}: {}",
        range.start,
        range.end - 1,
        claimed.seed,
        named.join(", ")
    ));
    let part = Part::of_group(&conditions);
    let reading = tools.catalogue.read_part(&evaluation.dataset, part, range).instrument(info_span!("read_images"));
    let batch = reading.await.map_err(unreadable)?;
    let mut loaded = ready(tools, claimed, kept.take()).instrument(info_span!("evaluator_ready")).await?;
    let wanted = evaluation.first_image as u32 + evaluation.witnesses.images(evaluation.images as u32);
    let witness_images = wanted.saturating_sub(claimed.first_image).min(claimed.images);
    let slice = evaluation.first_image as u32..(evaluation.first_image + evaluation.images) as u32;
    let here = claimed.first_image..claimed.first_image + claimed.images;
    let mut second_opinion = protocol::sample(claimed.seed, slice, evaluation.protocol.second_opinion);
    second_opinion.retain(|image| here.contains(image));
    let mut request = ShardRequest {
        conditions: conditions.clone(),
        seed: claimed.seed,
        rule: evaluation.protocol.verdict,
        first_image: claimed.first_image,
        labels: batch.labels.clone(),
        witness_images,
        second_opinion,
        checkpoint_milliseconds: tools.child.checkpoint.as_millis() as u64,
        checkpoint_bytes: 0,
    };
    let checkpoints = Checkpoints::of(tools.pool, tools.artifacts, claimed, &request, &loaded.profile);
    let left = checkpoints.left().await.unwrap_or_default();
    request.checkpoint_bytes = left.len() as u64;
    let size = loaded.profile.batch;
    let provided = loaded.child.provide_frost(&conditions, tools.artifacts).await;
    provided.map_err(|e| failed(e, size))?;
    metrics::BATCH.set(size.into());
    let cells = claimed.images * conditions.len() as u32;
    let mut meter = Meter::default();
    let heard = |now: Progress| {
        progress.store(now.verdicts.min(cells), Ordering::Relaxed);
        meter.heard(now);
    };
    let evaluating = info_span!("evaluate", pid = loaded.child.id(), images = claimed.images, batch = size);
    let of_request = evaluation.request_id.as_deref().map_or(String::new(), |id| format!(" for request {id}"));
    tools.log.say(format_args!("asking evaluator process {}, batch {size}{of_request}", loaded.child.id()));
    let asked = Instant::now();
    let payload = [&batch.pixels[..], &left].concat();
    let (latest, news) = watch::channel(Vec::new());
    let remember = |checkpoint| drop(latest.send_replace(checkpoint));
    let answer = tokio::select! {
        answer = loaded.child.ask_and_keep(Request::Shard(request), &payload, heard, remember).instrument(evaluating) => answer,
        never = checkpoints.keep(news) => match never {},
    };
    let evaluated = asked.elapsed().as_secs_f64();
    let (verdicts, witnesses, signs, time, payload) = match answer.map_err(|e| failed(e, size))? {
        (Reply::Done { verdicts, witnesses, signs, time }, payload) => (verdicts, witnesses, signs, time, payload),
        (other, _) => return Err(failed(unexpected(&other), size)),
    };
    let claims =
        validate::Claims { verdicts: &verdicts, witnesses: &witnesses, payload: &payload, signs: &signs, time };
    validate::results(&conditions, &batch, &claimed.model.spec, witness_images, &claims)
        .map_err(|problem| garbage(problem, size))?;
    tools.log.say("the verdicts are in, and hold; writing the evidence");
    metrics::evaluated(evaluated, claimed.model.probe.as_deref(), meter.passes(), time.corruption);
    let sandbox = loaded.child.sandbox.clone();
    *kept = Some(loaded);
    let name = format!("{}/{}-{}", evaluation.id, claimed.lease.shard, claimed.lease.token());
    let verdicts_key = format!("verdicts/{name}.parquet");
    let rows = verdict_rows(&conditions, claimed.seed, &verdicts);
    let parquet = evidence::to_parquet(&rows).map_err(|e| permanent("evidence", e))?;
    keep(tools.artifacts, &verdicts_key, parquet).instrument(info_span!("write_verdicts")).await?;
    let witnesses_key = if witnesses.is_empty() {
        None
    } else {
        let key = format!("witnesses/{name}.safetensors");
        let sets = witness_sets(&conditions, claimed.seed, &batch, &witnesses, &payload);
        let file = evidence::to_safetensors(&sets).map_err(|e| permanent("evidence", e))?;
        keep(tools.artifacts, &key, file).instrument(info_span!("write_witnesses")).await?;
        Some(key)
    };
    let cells = claimed.conditions.iter().zip(&conditions).zip(&verdicts);
    let tallies = cells.map(|((&i, condition), verdicts)| (i, Tally::of(condition, verdicts))).collect();
    let seconds = started.elapsed().as_secs_f64();
    Ok(ShardResult {
        tallies,
        verdicts_key,
        witnesses_key,
        signs,
        sandbox,
        seconds,
        cpu_seconds: time.total,
        corruption_seconds: time.corruption,
    })
}

/// Writes evidence, for which a store that is full or away is waited for.
async fn keep(artifacts: &Artifacts, key: &str, bytes: Vec<u8>) -> Result<(), ArtifactError> {
    let bytes = Bytes::from(bytes);
    patiently("writing evidence", |_| true, || artifacts.put(key, bytes.clone())).await
}

fn failed(error: ChildError, batch: u32) -> JobError {
    metrics::child_failed(&error);
    JobError::Failed(error.failure(batch))
}

fn garbage(problem: String, batch: u32) -> JobError {
    failed(ChildError::Garbage(words::text(&problem)), batch)
}

/// A child with the evaluation's model and fixed profile: the kept one if it fits, else a fresh one.
async fn ready(tools: &Tools<'_>, claimed: &Claimed, kept: Option<Loaded>) -> Result<Loaded, JobError> {
    let evaluation = &claimed.evaluation;
    if let Some(mut loaded) = kept {
        if (loaded.evaluation, loaded.generation) == (evaluation.id, evaluation.generation)
            || takes_over(tools, claimed, &loaded).await?
        {
            (loaded.evaluation, loaded.generation) = (evaluation.id, evaluation.generation);
            tools.log.listen(loaded.child.output());
            return Ok(loaded);
        }
        // Its memory must be free before the next model is loaded.
        loaded.child.kill().await;
    }
    let wish = evaluation.batch_limit.map_or(BatchWish::Free, |limit| BatchWish::AtMost(limit as u32));
    let mut wanted = wanted(tools, claimed);
    let file = tools.artifacts.model_file(&claimed.model.sha256).await?;
    loop {
        let batch = wanted.as_ref().map_or(1, |p| p.batch);
        let failed = |e: ChildError| failed(e, batch);
        let mut child = Child::start(tools.child, Some(&file)).await.map_err(failure::before_the_model)?;
        tools.log.listen(child.output());
        tools.log.say(format_args!("evaluator process {} has started; loading the model", child.id()));
        let (profile, _) = child.load(&claimed.model.spec, wanted.as_ref(), wish).await.map_err(failed)?;
        let fixed = claimed.lease.fix_profile(tools.pool, &profile).await?;
        if fixed == profile {
            let (model, evaluation, generation) = (claimed.model.id, evaluation.id, evaluation.generation);
            return Ok(Loaded { child, model, evaluation, generation, profile });
        }
        // Another worker fixed a different profile a moment earlier.
        if fixed.platform != profile.platform {
            return Err(JobError::NotForThisPlatform);
        }
        wanted = Some(fixed);
    }
}

/// Whether a child that ran another evaluation of the same model can go on with this one: the numeric profile that it has is this
/// one's as well, or can become it.
async fn takes_over(tools: &Tools<'_>, claimed: &Claimed, loaded: &Loaded) -> Result<bool, JobError> {
    let limit = claimed.evaluation.batch_limit.map_or(u32::MAX, |limit| limit as u32);
    let fits = match wanted(tools, claimed) {
        Some(wanted) => wanted == loaded.profile,
        None => loaded.profile.batch <= limit,
    };
    if loaded.model != claimed.model.id || !fits {
        return Ok(false);
    }
    Ok(claimed.lease.fix_profile(tools.pool, &loaded.profile).await? == loaded.profile)
}

/// The numeric profile that the evaluation has, or should have; `None` if that is still to be found.
fn wanted(tools: &Tools<'_>, claimed: &Claimed) -> Option<NumericProfile> {
    let evaluation = &claimed.evaluation;
    let calibrated = claimed.model.probe.as_ref().and_then(|probe| probe.0.calibration.as_ref());
    match (&evaluation.profile, calibrated) {
        (Some(fixed), _) => Some(fixed.0.clone()),
        // Found when the model was checked, so that all its evaluations run alike.
        (None, Some(found)) if found.profile.platform == *tools.platform => {
            let limit = evaluation.batch_limit.map_or(u32::MAX, |limit| limit as u32);
            Some(NumericProfile { batch: found.profile.batch.min(limit), ..found.profile.clone() })
        }
        (None, _) => None,
    }
}

fn verdict_rows(conditions: &[Condition], seed: i64, verdicts: &[Vec<Verdict>]) -> Vec<VerdictRow> {
    let cell = |(condition, verdicts): (&Condition, &Vec<Verdict>)| {
        let id = condition.id.clone();
        verdicts
            .iter()
            .map(move |verdict| VerdictRow { condition: id.clone(), seed, verdict: verdict.clone() })
            .collect::<Vec<_>>()
    };
    conditions.iter().zip(verdicts).flat_map(cell).collect()
}

fn witness_sets(
    conditions: &[Condition],
    seed: i64,
    batch: &Batch,
    witnesses: &[WitnessAt],
    payload: &[u8],
) -> Vec<WitnessSet> {
    let shape = [batch.shape.channels, batch.shape.height, batch.shape.width].map(|side| side as usize);
    let each = payload.len() / witnesses.len().max(1);
    let single = witnesses.iter().zip(payload.chunks(each.max(1))).map(|(at, bytes)| WitnessSet {
        condition: conditions[at.condition as usize].id.clone(),
        seed,
        images: vec![at.image],
        shape,
        pixels: bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
    });
    evidence::merge(single.collect())
}
