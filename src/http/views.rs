//! Evaluations as clients see them, remembered: many clients poll, few evaluations change.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sqlx::PgPool;
use uuid::Uuid;

use super::evaluation::{EvaluationView, view};
use crate::store::evaluations::{self, Stamp};

/// Most evaluations remembered.
const CAPACITY: usize = 1024;

/// Reads an evaluation's stamp on every call, and everything else only when the stamp has changed.
#[derive(Clone)]
pub struct Views {
    pool: PgPool,
    /// What is said about the queue depends on other evaluations and on workers, which stamps do not show.
    queue_age: Duration,
    remembered: Arc<Mutex<HashMap<Uuid, Remembered>>>,
}

struct Remembered {
    stamp: Stamp,
    view: Arc<EvaluationView>,
    read: Instant,
}

impl Views {
    pub fn new(pool: PgPool, queue_age: Duration) -> Self {
        Self { pool, queue_age, remembered: Arc::default() }
    }

    /// `None` if there is no evaluation of this id.
    pub async fn get(&self, id: Uuid) -> Result<Option<Arc<EvaluationView>>, sqlx::Error> {
        // The stamp first: a change between the two reads then shows as a stale stamp, never as a stale view.
        let Some((_, stamp)) = evaluations::stamps(&self.pool, &[id]).await?.pop() else { return Ok(None) };
        if let Some(view) = self.recall(id, stamp) {
            return Ok(Some(view));
        }
        let Some(evaluation) = evaluations::get(&self.pool, id).await? else { return Ok(None) };
        let view = Arc::new(view(&self.pool, evaluation).await?);
        let mut remembered = self.remembered.lock().expect("no holder panics");
        if remembered.len() >= CAPACITY {
            remembered.clear();
        }
        remembered.insert(id, Remembered { stamp, view: view.clone(), read: Instant::now() });
        Ok(Some(view))
    }

    fn recall(&self, id: Uuid, stamp: Stamp) -> Option<Arc<EvaluationView>> {
        let remembered = self.remembered.lock().expect("no holder panics");
        let found = remembered.get(&id).filter(|found| found.stamp == stamp)?;
        let fresh = found.view.waiting.is_none() || found.read.elapsed() < self.queue_age;
        fresh.then(|| found.view.clone())
    }
}
