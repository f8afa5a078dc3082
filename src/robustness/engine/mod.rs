//! The engine: drives attacks over images and writes verdicts.
//!
//! A batch of fixed shape holds slots; an image that is broken, or done, leaves its slot to the next at once, so images at
//! different steps, restarts and budgets share every pass. A candidate that the search hands over is examined by a
//! separate, fresh forward pass, and nothing but that examination can write "not robust".

mod checkpoint;
mod corrupted;
mod curve;
mod driver;
mod floor;
mod judge;
mod kernel;
mod objective;
mod scene;

pub use checkpoint::Checkpoint;
pub use corrupted::{Corrupter, evaluate_corrupted};
pub(crate) use kernel::pull_back;
pub use kernel::{Evaluation, Kernel};
pub use objective::Objective;

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::model::{Classifier, ModelError, is_out_of_memory};
use crate::protocol::{Condition, ConditionKind, Verdict, VerdictRule};
use driver::Driver;

/// Images as a dataset stores them.
#[derive(Debug, Clone, Default)]
pub struct Images {
    /// Index of each image in its dataset.
    pub indices: Vec<u32>,
    /// uint8 pixels, n × C × H × W.
    pub pixels: Vec<u8>,
    pub labels: Vec<u32>,
}

/// What to evaluate.
pub struct Run<'a> {
    pub model: &'a dyn Classifier,
    pub images: &'a Images,
    /// Conditions in any number and mix, but corruptions apart ([`evaluate_corrupted`]); consecutive attacks that differ only in a rising ε, or searches in
    /// a rising number of queries, form a ladder, where they and the model allow it.
    pub conditions: &'a [&'a Condition],
    pub seed: u64,
    /// How verdicts on a stochastic model are drawn.
    pub rule: VerdictRule,
    /// Images in every kernel launch, at least 1.
    pub batch: u32,
    /// Whether to hand back the witness of an image, by its index in the dataset.
    pub wants_witness: &'a dyn Fn(u32) -> bool,
}

/// One image under one condition.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Position in [`Run::conditions`].
    pub condition: usize,
    pub verdict: Verdict,
    /// The image that proves "not robust", C × H × W, where it was asked for.
    pub witness: Option<Arc<[f32]>>,
    pub notes: Notes,
}

/// Odd things seen while attacking one image under one condition.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notes {
    /// Steps whose gradient had a NaN, which counted as 0.
    pub nan_gradients: u32,
    /// Steps whose gradient was zero in every pixel, so that the search could not move.
    pub zero_gradients: u32,
    /// Examples that the search took for a success and that the examination did not confirm.
    pub unconfirmed: u32,
    /// Examinations in which some logit was no finite number.
    pub undefined_logits: u32,
    /// Ascents that ended with the image standing, and those whose loss was still rising then.
    pub ascents: u32,
    pub unconverged: u32,
}

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Verdicts written.
    pub done: usize,
    /// Verdicts to write: images × conditions.
    pub total: usize,
    /// Passes of single images so far.
    pub forwards: u64,
    pub backwards: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The observer said stop.
    #[error("stopped on request")]
    Stopped,
    #[error("{0}")]
    Input(String),
    /// It is of another run.
    #[error("the checkpoint does not fit the run")]
    Checkpoint,
    #[error("out of memory; a smaller batch needs less: {0}")]
    OutOfMemory(String),
    #[error("libtorch: {0}")]
    Libtorch(String),
}

/// Evaluates every image under every condition. Outcomes come ordered by condition, then as the images.
///
/// For a deterministic model each outcome depends on its image, its condition, the seed and the batch shape alone: not
/// on the other images, their order, or how conditions are grouped into runs (but a ladder's rung may be won at a
/// smaller ε of the same run). `observer` is called after every pass.
pub fn evaluate(run: &Run, observer: &mut dyn FnMut(Progress) -> ControlFlow<()>) -> Result<Vec<Outcome>, EngineError> {
    evaluate_from(run, None, &mut Watch { observer, keep: None })
}

/// Says whether a checkpoint is due, and takes it.
pub type Keep<'a> = (&'a mut dyn FnMut() -> bool, &'a mut dyn FnMut(Checkpoint));

/// Who looks on while an evaluation runs; the clock is theirs.
pub struct Watch<'a> {
    /// Called after every pass.
    pub observer: &'a mut dyn FnMut(Progress) -> ControlFlow<()>,
    /// Whether a checkpoint is due, and where it goes; see [`can_resume`].
    pub keep: Option<Keep<'a>>,
}

/// Whether checkpoints are taken of a run: of corruptions, and of attacks that are one ladder, or one condition.
pub fn can_resume(run: &Run) -> bool {
    match run.conditions.first().map(|condition| &condition.kind) {
        None | Some(ConditionKind::Clean) => false,
        Some(ConditionKind::Corruption(_)) => true,
        Some(ConditionKind::Attack(_) | ConditionKind::MinNorm(_)) => ladders(run).len() == 1,
    }
}

/// [`evaluate`], from a checkpoint of the same run on: with the outcomes that the run would have had undisturbed.
/// [`Progress`] counts the verdicts of both parts and the passes of this one.
pub fn evaluate_from(
    run: &Run,
    checkpoint: Option<Checkpoint>,
    watch: &mut Watch,
) -> Result<Vec<Outcome>, EngineError> {
    check(run)?;
    if checkpoint.is_some() && !can_resume(run) {
        return Err(EngineError::Checkpoint);
    }
    let mut progress =
        Progress { done: 0, total: run.conditions.len() * run.images.indices.len(), forwards: 0, backwards: 0 };
    let mut outcomes = Vec::with_capacity(progress.total);
    let mut checkpoint = checkpoint;
    for group in ladders(run) {
        let first = outcomes.len();
        let from = checkpoint.take();
        let found = guarded(|| Driver::new(run, group.clone(), &mut progress, watch).drive(from))?;
        outcomes.extend(found);
        debug_assert_eq!(outcomes.len() - first, group.len() * run.images.indices.len());
    }
    Ok(outcomes)
}

fn check(run: &Run) -> Result<(), EngineError> {
    let Images { indices, pixels, labels } = run.images;
    let spec = run.model.spec();
    let pixels_each: usize = spec.input.iter().map(|side| *side as usize).product();
    let fail = |problem: String| Err(EngineError::Input(problem));
    if let Some(problem) = run.conditions.iter().find_map(|condition| condition.unsuited(spec)) {
        return fail(problem);
    }
    if run.batch == 0 {
        return fail("batch must be at least 1".into());
    }
    if labels.len() != indices.len() || pixels.len() != indices.len() * pixels_each {
        return fail(format!(
            "{} images need as many labels (have {}) and {pixels_each} pixels each (have {} in all)",
            indices.len(),
            labels.len(),
            pixels.len()
        ));
    }
    if let Some((index, label)) = indices.iter().zip(labels).find(|(_, label)| **label >= spec.classes) {
        return fail(format!("image {index} has label {label}, but the model has {} classes", spec.classes));
    }
    Ok(())
}

/// Names the random numbers that a stochastic model draws in the next pass, `pass` counting those of one condition.
pub(crate) fn name_pass(run: &Run, condition: &Condition, pass: u32) {
    let mut hash = Sha256::new();
    hash.update(b"gauntlet pass 1");
    hash.update(run.seed.to_le_bytes());
    hash.update(condition.random_key().to_le_bytes());
    hash.update(run.images.indices.first().copied().unwrap_or(0).to_le_bytes());
    hash.update(pass.to_le_bytes());
    let digest = hash.finalize();
    tch::manual_seed(i64::from_le_bytes(digest[..8].try_into().expect("a digest has 32 bytes")));
}

/// Splits the conditions into groups that one driver handles: rising ladders, else single conditions.
fn ladders(run: &Run) -> Vec<std::ops::Range<usize>> {
    let mut groups: Vec<std::ops::Range<usize>> = Vec::new();
    for position in 0..run.conditions.len() {
        match groups.last_mut() {
            Some(group) if continues(run, run.conditions[position - 1], run.conditions[position]) => {
                group.end = position + 1;
            }
            _ => groups.push(position..position + 1),
        }
    }
    groups
}

fn continues(run: &Run, below: &Condition, above: &Condition) -> bool {
    !run.model.spec().stochastic && below.same_ladder(above) && below.rung() < above.rung()
}

/// tch panics where libtorch throws, and the mathematics reads better for it; here such a panic becomes an error again.
pub(crate) fn guarded<T>(body: impl FnOnce() -> Result<T, EngineError>) -> Result<T, EngineError> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|payload| match payload.downcast_ref::<String>() {
        Some(text) if is_out_of_memory(text) => Err(EngineError::OutOfMemory(text.clone())),
        Some(text) if text.contains("Torch(") => Err(EngineError::Libtorch(text.clone())),
        _ => resume_unwind(payload),
    })
}
