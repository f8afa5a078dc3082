//! Conditions, built-in protocols, the planner and the arithmetic of reports. Plain data; no libtorch, no IO.

mod condition;
mod finding;
mod profile;
mod spec;
mod threat;
mod verdict;

pub use condition::{
    Attack, AttackCondition, ClipOrder, Condition, ConditionKind, Keep, Loss, Pgd, Projection, StepSize, Target,
};
pub use finding::Finding;
pub use profile::{Device, NumericProfile};
pub use spec::{Format, ModelSpec, Preprocessing, SpecError};
pub use threat::{Epsilon, Norm, ThreatModel};
pub use verdict::{Stage, Verdict, VerdictRule};
