//! What is kept: SQL queries, one file per table family, and artifacts (bytes in an object store).
//!
//! Queries are runtime-checked: every one of them runs against a real Postgres in the tests, and compiling needs neither
//! a database nor a cache that can go stale.

pub mod artifacts;
pub mod deletion;
pub mod diagnosis;
pub mod evaluations;
pub mod events;
pub mod evidence;
pub mod frost;
pub mod gc;
pub mod idempotency;
pub mod keys;
pub mod models;
pub mod pool;
pub mod protocols;
pub mod quota;
pub mod report;
pub mod retention;
pub mod shards;
pub mod uploads;
pub mod webhooks;
pub mod witnesses;
pub mod workers;

pub use artifacts::Artifacts;
pub use quota::{QuotaError, Quotas};

/// A failure of either half of the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(transparent)]
    Database(#[from] sqlx::Error),
    #[error(transparent)]
    Artifact(#[from] artifacts::ArtifactError),
    #[error(transparent)]
    Quota(#[from] QuotaError),
    #[error(
        "the database knows no model and no evaluation, but the artifact store has models: is it this installation's? Nothing was removed"
    )]
    Strangers,
}

/// The owner of what is made without an access key, by the operator.
pub const LOCAL_OWNER: &str = "local";

/// Why a terminal state was reached, and by whom.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct Outcome {
    /// Stable, snake_case: `completed`, `cancelled`, or a failure's code.
    pub code: String,
    pub detail: String,
    /// `user`, `worker` or `server`.
    pub actor: String,
}

impl Outcome {
    pub fn new(code: &str, detail: impl Into<String>, actor: &str) -> Self {
        Self { code: code.into(), detail: detail.into(), actor: actor.into() }
    }
}
