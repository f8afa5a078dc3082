//! Shards that go on where an earlier attempt was interrupted, and tell the supervisor where they could.

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use super::Line;
use crate::robustness::engine::{self, Checkpoint, EngineError, Outcome, Progress, Run, Watch};
use crate::wire::Reply;

/// How a run is evaluated, from a checkpoint on if there is one.
type Evaluate<'a> = &'a dyn Fn(&Run, Option<Checkpoint>, &mut Watch) -> Result<Vec<Outcome>, EngineError>;

/// Evaluates `run` from the encoded checkpoint on; from the start if it is empty or of something else. A checkpoint is sent at
/// most every so often, never if that is zero.
pub fn resumed(
    evaluate: Evaluate,
    run: &Run,
    checkpoint: &[u8],
    every: Duration,
    line: &RefCell<&mut Line>,
    observer: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Vec<Outcome>, EngineError> {
    match Checkpoint::decode(checkpoint) {
        None => attempt(evaluate, run, None, every, line, observer),
        Some(checkpoint) => match attempt(evaluate, run, Some(checkpoint), every, line, observer) {
            Err(EngineError::Checkpoint) => attempt(evaluate, run, None, every, line, observer),
            outcome => outcome,
        },
    }
}

fn attempt(
    evaluate: Evaluate,
    run: &Run,
    checkpoint: Option<Checkpoint>,
    every: Duration,
    line: &RefCell<&mut Line>,
    observer: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Vec<Outcome>, EngineError> {
    let mut last = Instant::now();
    let mut due = || {
        let due = last.elapsed() >= every;
        if due {
            last = Instant::now();
        }
        due
    };
    // Should nobody listen any more, the next progress frame shows it.
    let mut keep = |found: Checkpoint| drop(line.borrow_mut().say(Reply::Checkpoint, &found.encode()));
    let wanted = !every.is_zero() && engine::can_resume(run);
    let keep: Option<engine::Keep> = if wanted { Some((&mut due, &mut keep)) } else { None };
    evaluate(run, checkpoint, &mut Watch { observer, keep })
}
