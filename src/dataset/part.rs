//! Which of a dataset's images are meant.

use std::fmt;

use crate::protocol::{Condition, ConditionKind, Corruption, Mode, Severity};

/// The images that a condition is evaluated on, before it does anything to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Clean,
    Published(Corruption, Severity),
}

impl Part {
    /// The part that this condition reads.
    pub fn of(condition: &Condition) -> Self {
        match &condition.kind {
            ConditionKind::Corruption(cell) if cell.mode == Mode::Published => {
                Self::Published(cell.corruption, cell.severity)
            }
            _ => Self::Clean,
        }
    }

    /// The part that a group of conditions reads: the planner puts none together that read different ones.
    pub fn of_group(conditions: &[Condition]) -> Self {
        conditions.first().map_or(Self::Clean, Self::of)
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clean => f.write_str("clean images"),
            Self::Published(corruption, severity) => {
                write!(f, "published images of {} at severity {}", corruption.name(), severity.get())
            }
        }
    }
}
