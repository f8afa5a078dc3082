//! What handlers share.

use std::time::Duration;

use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use super::access::Caller;
use super::rate::Rates;
use super::streams::{self, Streams};
use super::views::Views;
use super::watch::Watcher;
use crate::dataset::Catalogue;
use crate::protocol::Pictures;
use crate::store::retention::Retention;
use crate::store::{Artifacts, Quotas};
use crate::webhook::Manner;

/// Limits of the API.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Largest model file, in bytes.
    pub max_model_bytes: u64,
    /// Hours after which an upload that does not grow is deleted.
    pub upload_hours: u32,
    /// Most bytes of witnesses that one evaluation may store.
    pub max_witness_bytes: u64,
    /// Whoever comes without a key is the operator, as long as no key was ever made. For loopback only.
    pub open: bool,
    /// Requests a minute of one owner; 0: no limit.
    pub rate_per_minute: u32,
    pub quotas: Quotas,
    pub webhooks: Manner,
    pub retention: Retention,
    /// The frost pictures that new evaluations draw from; the artifact store has them.
    pub pictures: Pictures,
    /// How long a request may take that neither uploads, downloads nor waits.
    pub request_timeout: Duration,
    /// How long a client may send nothing in the middle of a request.
    pub read_patience: Duration,
    /// How old an answer about the queue (reason for waiting, position) may be.
    pub queue_age: Duration,
    /// How long uploads and downloads in flight may go on after shutdown began.
    pub drain_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_model_bytes: 20 << 30,
            upload_hours: 24,
            max_witness_bytes: 2 << 30,
            open: false,
            rate_per_minute: 600,
            quotas: Quotas::default(),
            webhooks: Manner::default(),
            retention: Retention::default(),
            pictures: Pictures::Procedural,
            request_timeout: Duration::from_secs(30),
            read_patience: Duration::from_secs(30),
            queue_age: Duration::from_secs(1),
            drain_timeout: Duration::from_secs(20),
        }
    }
}

/// What handlers share.
#[derive(Clone)]
pub struct AppState {
    pub pool: PgPool,
    pub artifacts: Artifacts,
    pub catalogue: Catalogue,
    pub settings: Settings,
    pub(super) watcher: Watcher,
    pub(super) views: Views,
    pub(super) rates: Rates,
    pub(super) streams: Streams,
    pub(super) pieces: Streams,
    pub(super) joins: Streams,
    /// Ends long polls.
    pub(super) shutdown: CancellationToken,
}

impl AppState {
    /// The limits of this caller.
    pub(super) fn quotas(&self, caller: &Caller) -> &Quotas {
        if caller.limited { &self.settings.quotas } else { &Quotas::NONE }
    }

    pub fn new(pool: PgPool, artifacts: Artifacts, settings: Settings) -> Self {
        let catalogue = Catalogue::new(artifacts.store());
        let watcher = Watcher::new(pool.clone());
        let views = Views::new(pool.clone(), settings.queue_age);
        let rates = Rates::new(settings.rate_per_minute);
        let [streams, pieces, joins] = [streams::MOST, streams::MOST_PIECES, streams::MOST_JOINS].map(Streams::new);
        let shutdown = CancellationToken::new();
        Self { pool, artifacts, catalogue, settings, watcher, views, rates, streams, pieces, joins, shutdown }
    }
}
