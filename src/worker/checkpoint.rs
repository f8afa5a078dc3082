//! Where an interrupted shard goes on: the evaluator's latest checkpoint, kept beside the evidence until the shard ends.
//!
//! What is in it is the child's affair: it goes to the next attempt's child, which runs the same model, and what that one
//! comes to is held to the request like any result. Here it is bytes of bounded size, bound to the request and profile
//! they are of.

use std::time::Duration;

use sha2::{Digest, Sha256};
use sqlx::PgPool;
use tokio::sync::watch;
use tracing::warn;

use crate::protocol::NumericProfile;
use crate::queue::{Claimed, Lease};
use crate::store::Artifacts;
use crate::wire::ShardRequest;

/// Larger checkpoints are not kept.
const MOST_BYTES: usize = 512 << 20;

/// Where the checkpoint of a shard lies.
pub fn key(claimed: &Claimed) -> String {
    let evaluation = &claimed.evaluation;
    format!("checkpoints/{}/{}-{}", evaluation.id, claimed.lease.shard, evaluation.generation)
}

/// The checkpoint of one leased shard.
pub struct Checkpoints<'a> {
    pool: &'a PgPool,
    artifacts: &'a Artifacts,
    lease: &'a Lease,
    key: String,
    /// Of the request and the profile: what else the shard's course depends on.
    seal: [u8; 32],
    /// Least time between two writes.
    spacing: Duration,
}

impl<'a> Checkpoints<'a> {
    pub fn of(
        pool: &'a PgPool,
        artifacts: &'a Artifacts,
        claimed: &'a Claimed,
        request: &ShardRequest,
        profile: &NumericProfile,
    ) -> Self {
        let mut seal = Sha256::new_with_prefix(b"gauntlet checkpoint 1");
        seal.update(serde_json::to_vec(&(request, profile)).expect("plain data"));
        Self {
            pool,
            artifacts,
            lease: &claimed.lease,
            key: key(claimed),
            seal: seal.finalize().into(),
            spacing: Duration::from_millis(request.checkpoint_milliseconds / 2),
        }
    }

    /// The one that an earlier attempt left, if it is of this very work.
    pub async fn left(&self) -> Option<Vec<u8>> {
        let bytes = self.artifacts.get(&self.key).await.ok()?;
        let (seal, rest) = bytes.split_first_chunk::<32>()?;
        (*seal == self.seal).then(|| rest.to_vec())
    }

    /// Writes what comes, the latest where several come at once; never ends by itself. A failure costs progress only.
    pub async fn keep(&self, mut latest: watch::Receiver<Vec<u8>>) -> std::convert::Infallible {
        while latest.changed().await.is_ok() {
            let bytes = [&self.seal[..], &latest.borrow_and_update()].concat();
            if bytes.len() <= MOST_BYTES && self.lease.is_held(self.pool).await.unwrap_or(false) {
                if let Err(error) = self.artifacts.put(&self.key, bytes).await {
                    warn!(%error, "the checkpoint was not written");
                }
                tokio::time::sleep(self.spacing).await;
            }
        }
        std::future::pending().await
    }
}
