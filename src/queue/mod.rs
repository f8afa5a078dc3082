//! The lease queue: claim, heartbeat, commit, reap.
//!
//! A worker leases one shard at a time. The lease carries a fencing token; every later statement names it, so a worker
//! that was presumed dead can change nothing. Results and completion are one transaction. The clock is the database's.
//! Transactions that touch an evaluation and its shards lock the evaluation first.

mod affinity;
mod cancel;
mod check;
mod claim;
mod commit;
mod depth;
mod fail;
mod heartbeat;
mod log;
mod reap;
mod waiting;

use std::time::Duration;

use uuid::Uuid;

pub use affinity::{Affinity, MOST_IN_A_ROW};
pub use cancel::{Cancellation, cancel};
pub use check::{CheckLease, claim_check};
pub use claim::{Claimant, Claimed, claim};
pub use commit::{Committed, ShardResult};
pub use depth::{Depth, REASONS, depth};
pub use fail::{Failure, NOT_THE_MODELS_FAULT, Outage};
pub use heartbeat::Order;
pub use log::Ending;
pub use reap::{Reaped, reap};
pub use waiting::{Waiting, waiting};

/// How long a shard belongs to a worker that stays silent. Longer than any pause a healthy worker makes.
pub const LEASE: Duration = Duration::from_secs(30);
/// A shard that failed this often fails its evaluation.
pub const MAX_ATTEMPTS: i32 = 5;

/// The right to finish one shard. It ends by being committed, failed, released, or by running out.
#[must_use = "a lease must be committed, failed or released"]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub evaluation: Uuid,
    pub shard: i64,
    /// Which attempt of the shard this is, from 1.
    pub attempt: i32,
    token: Uuid,
    duration: Duration,
}

impl Lease {
    /// A name that no other attempt of any shard has; for the artifacts it writes.
    pub fn token(&self) -> Uuid {
        self.token
    }

    /// How often to call [`Lease::heartbeat`]: at least every third of the lease, and often enough that a cancellation
    /// reaches the work within five seconds.
    pub fn heartbeat_every(&self) -> Duration {
        (self.duration / 3).min(Duration::from_secs(3))
    }

    /// How long the holder may go without a successful heartbeat before it must assume the lease is gone.
    pub fn duration(&self) -> Duration {
        self.duration
    }
}

/// Somebody else has the shard, or nobody needs it any more: drop the work.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    #[error("the lease was lost")]
    Lost,
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}
