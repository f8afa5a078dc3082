//! Waiting for evaluations to change: one query per tick serves every waiter.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sqlx::PgPool;
use tokio::sync::watch;
use uuid::Uuid;

use crate::store::evaluations::{self, Stamp};

const TICK: Duration = Duration::from_millis(250);

/// Gives out receivers of stamps; polls the database only while somebody holds one.
#[derive(Clone)]
pub struct Watcher {
    pool: PgPool,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    watched: HashMap<Uuid, watch::Sender<Option<Stamp>>>,
    polling: bool,
}

impl Watcher {
    pub fn new(pool: PgPool) -> Self {
        Self { pool, shared: Arc::default() }
    }

    /// Changes when the evaluation does, from now on (and once at first). Must be called inside a runtime.
    pub fn watch(&self, id: Uuid) -> watch::Receiver<Option<Stamp>> {
        let mut shared = self.shared.lock().expect("no holder panics");
        let receiver = shared.watched.entry(id).or_insert_with(|| watch::channel(None).0).subscribe();
        if !shared.polling {
            shared.polling = true;
            tokio::spawn(self.clone().poll());
        }
        receiver
    }

    async fn poll(self) {
        while let Some(ids) = self.wanted() {
            match evaluations::stamps(&self.pool, &ids).await {
                Ok(stamps) => self.publish(stamps),
                Err(error) => tracing::warn!(%error, "cannot read the state of watched evaluations"),
            }
            tokio::time::sleep(TICK).await;
        }
    }

    /// Forgets what nobody watches any more; `None` ends the polling.
    fn wanted(&self) -> Option<Vec<Uuid>> {
        let mut shared = self.shared.lock().expect("no holder panics");
        shared.watched.retain(|_, sender| sender.receiver_count() > 0);
        shared.polling = !shared.watched.is_empty();
        shared.polling.then(|| shared.watched.keys().copied().collect())
    }

    fn publish(&self, stamps: Vec<(Uuid, Stamp)>) {
        let shared = self.shared.lock().expect("no holder panics");
        for (id, stamp) in stamps {
            if let Some(sender) = shared.watched.get(&id) {
                sender.send_if_modified(|known| known.replace(stamp) != Some(stamp));
            }
        }
    }
}
