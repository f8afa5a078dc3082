//! What stood between a model and the machine it ran on.

use serde::{Deserialize, Serialize};

/// The sandbox of an evaluator child, as results report it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Sandbox {
    /// Switched off by the operator: the model could do what its worker can.
    Off,
    Enforced(Enforced),
}

/// Layers that are always there go without saying: Landlock on files, the system call filter, no new privileges, resource
/// limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Enforced {
    /// Which restrictions the kernel knows; TCP from 4 on, signals and abstract sockets from 6 on. The system call filter
    /// covers the same ground on older ones.
    pub landlock_abi: u32,
    /// Whether the model ran under an account of its own, or that of its (unprivileged) worker.
    pub own_account: bool,
    /// What bounds its memory.
    pub memory: MemoryBound,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MemoryBound {
    /// A control group, which bounds all memory; on a CPU private memory has a resource limit beside it.
    Group,
    /// A resource limit on private memory.
    Rlimit,
    /// That of its worker's container or service, if any; the kernel then kills the evaluator first.
    Inherited,
}

impl Sandbox {
    /// `off` or `enforced`.
    pub fn level(&self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Enforced(_) => "enforced",
        }
    }
}
