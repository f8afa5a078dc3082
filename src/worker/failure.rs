//! How a child can fail. Each way has its own name, because each wants its own answer.

use crate::queue::{Failure, NOT_THE_MODELS_FAULT, Outage};
use crate::store::artifacts::ArtifactError;
use crate::wire::{DEVICE_FAILED, SANDBOX_UNAVAILABLE, WireError};

use super::metrics;

#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    #[error("the evaluator could not be started: {0}")]
    Spawn(std::io::Error),
    /// It ended by itself, or something other than its supervisor ended it.
    #[error("the evaluator crashed ({how}){log}")]
    Crashed { how: String, log: String },
    #[error("out of memory: {0}")]
    OutOfMemory(String),
    #[error("the evaluator gave no sign of life for {0} s and was killed")]
    NoProgress(u64),
    #[error("the evaluator worked on one question for more than {0} s and was killed")]
    WallTime(u64),
    /// Bytes that are no frame, an answer to another question, or results that cannot be.
    #[error("the evaluator broke the protocol: {0}")]
    Garbage(String),
    /// The child could not do what was asked and said why.
    #[error("{detail}")]
    Failed { code: String, detail: String },
    #[error("{found}")]
    Rejected { code: String, found: String },
}

/// Whether a code of [`ChildError::Failed`] speaks of this machine rather than of the model: another may do better.
pub fn is_of_the_machine(code: &str) -> bool {
    [
        "artifact_store",
        "bad_request",
        DEVICE_FAILED,
        "libtorch_error",
        "libtorch_setup",
        "no_device",
        "profile_mismatch",
        SANDBOX_UNAVAILABLE,
    ]
    .contains(&code)
}

/// A child that failed before it was given a model: whatever it says, the model has not spoken.
pub fn before_the_model(error: ChildError) -> Outage {
    metrics::child_failed(&error);
    Outage { code: error.code().to_owned(), detail: error.to_string() }
}

/// An outage where device and store turn out to work: it is this piece of work that cannot be read or begun, or under which
/// the device fails.
pub fn of_this_work(outage: Outage) -> Failure {
    let Outage { code, detail } = outage;
    let detail = if code == DEVICE_FAILED { detail } else { NOT_THE_MODELS_FAULT.into() };
    Failure::Transient { code, detail }
}

/// An artifact store that does not work.
pub fn of_the_store(error: &ArtifactError) -> Outage {
    Outage { code: "artifact_store".into(), detail: error.to_string() }
}

impl ChildError {
    /// The stable code users see.
    pub fn code(&self) -> &str {
        match self {
            Self::Spawn(_) => "evaluator_not_started",
            Self::Crashed { .. } => "evaluator_crashed",
            Self::OutOfMemory(_) => "out_of_memory",
            Self::NoProgress(_) => "no_progress",
            Self::WallTime(_) => "wall_time",
            Self::Garbage(_) => "protocol_violation",
            Self::Failed { code, .. } | Self::Rejected { code, .. } => code,
        }
    }

    /// What the queue should do about it, had the child been running `batch` images per kernel launch.
    pub fn failure(&self, batch: u32) -> Failure {
        let code = self.code().to_owned();
        let detail = match self {
            // The model's own words are for its owner alone, who finds them in the attempt's log.
            Self::Crashed { how, .. } => format!("the evaluator crashed ({how})"),
            other => other.to_string(),
        };
        match self {
            Self::Spawn(_) | Self::Crashed { .. } | Self::NoProgress(_) | Self::Garbage(_) => {
                Failure::Transient { code, detail }
            }
            Self::OutOfMemory(_) => Failure::OutOfMemory { batch, detail },
            // The device may be gone for good: whether a fresh evaluator finds it tells whose failure it is.
            Self::Failed { code: given, .. } if given == DEVICE_FAILED => Failure::Outage(Outage { code, detail }),
            Self::Failed { code: given, .. } if is_of_the_machine(given) => Failure::Transient { code, detail },
            // It ran for hours and showed that it was alive: another attempt would be as slow.
            Self::WallTime(_) | Self::Failed { .. } | Self::Rejected { .. } => Failure::Permanent { code, detail },
        }
    }
}

impl From<WireError> for ChildError {
    /// For errors other than a closed connection, which the exit status explains better.
    fn from(error: WireError) -> Self {
        Self::Garbage(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_machine_may_do_better_is_tried_again() {
        let failed = |code: &str| ChildError::Failed { code: code.into(), detail: "…".into() }.failure(32);
        for code in ["artifact_store", "libtorch_error", "no_device", "profile_mismatch"] {
            assert!(matches!(failed(code), Failure::Transient { .. }), "{code}");
        }
        for code in ["forward_fails", "wrong_class_count", "bad_input"] {
            assert!(matches!(failed(code), Failure::Permanent { .. }), "{code}");
        }
        assert!(matches!(failed(DEVICE_FAILED), Failure::Outage(_)));
        let full = ChildError::OutOfMemory("CUDA out of memory".into());
        assert!(matches!(full.failure(32), Failure::OutOfMemory { batch: 32, .. }));
    }
}
