//! Conditions, built-in protocols, the planner and the arithmetic of reports. Plain data; no libtorch, no IO.

mod attack;
mod attack_block;
mod budget;
mod builtin;
mod condition;
pub mod corruption;
mod diagnosis;
mod file;
mod finding;
mod minimal;
mod needs;
mod paired;
pub mod plan;
mod profile;
pub mod render;
pub mod report;
mod sandbox;
mod signs;
mod spec;
pub mod stats;
mod threat;
mod verdict;

pub use attack::{
    Attack, CarliniWagner, Cascade, ClipOrder, Distribution, Fgsm, Keep, Loss, Noise, Passes, Pgd, Projection,
    Schedule, Square, StepSize, Subject, Target, Targeted, Untargeted, Walk,
};
pub use attack_block::{AttackBlock, AttackName, Queries, StageBlock, StageTable};
pub use budget::{Budget, Budgets};
pub use builtin::{builtin, builtins};
pub use condition::{AttackCondition, Condition, ConditionKind, MinNormCondition};
pub use corruption::{
    Corruption, CorruptionBlock, CorruptionCondition, Group, Label, Mode, NoSuchSeverity, Pictures, Published, Scene,
    Severity, Table,
};
pub use diagnosis::{Diagnostics, Grade, Observed, SecondOpinion, diagnose};
pub use file::{Aggregate, Clean, MAX_CONDITIONS, Protocol, ProtocolError};
pub use finding::{Finding, Weight};
pub use minimal::{Minimal, Point};
pub use needs::{Capabilities, LabelList, Labels, Needs, NeedsError, gib};
pub use paired::{Held, Paired, paired};
pub use profile::{Calibration, Device, Floor, MemoryFormat, NumericProfile, Platform, Precision};
pub use sandbox::{Enforced, MemoryBound, Sandbox};
pub use signs::{Seen, Sign, Signs, sample};
pub use spec::{Format, ModelSpec, Preprocessing, SpecError};
pub use threat::{Epsilon, Norm, ThreatModel};
pub use verdict::{Stage, Verdict, VerdictRule};
