//! Delivers what webhooks are to be told: signed, to public addresses only, again and again for about a day.
//!
//! Deliveries stand in the database, written by triggers in the transactions of the events. Every server may run a
//! [`Deliverer`]; a delivery is claimed by one of them at a time, and taken over if its server dies.

pub mod address;
pub mod sign;

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use chrono::Utc;
use prometheus::{IntCounterVec, register_int_counter_vec};
use reqwest::StatusCode;
use reqwest::header::CONTENT_TYPE;
use reqwest::redirect::Policy;
use sqlx::PgPool;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::store::webhooks::{self, Attempt, Due};

/// Deliveries that one server makes at once.
const AT_ONCE: usize = 32;
/// How often a server looks for what is due.
const LOOK: Duration = Duration::from_secs(1);
/// Longest error that is kept, in characters.
const MOST_OF_ERROR: usize = 300;

static DELIVERIES: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!("gauntlet_webhook_attempts_total", "Attempts at webhook deliveries.", &["outcome"])
        .expect("each metric is registered once")
});

/// How deliveries are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Manner {
    /// Whether they may go to private addresses, and without encryption.
    pub private: bool,
    /// How long a receiver may take to answer.
    pub timeout: Duration,
}

impl Default for Manner {
    fn default() -> Self {
        Self { private: false, timeout: Duration::from_secs(15) }
    }
}

/// Makes deliveries.
pub struct Deliverer {
    pool: PgPool,
    client: reqwest::Client,
    manner: Manner,
}

impl Deliverer {
    pub fn new(pool: PgPool, manner: Manner) -> reqwest::Result<Self> {
        let client = reqwest::Client::builder()
            .user_agent(concat!("gauntlet/", env!("CARGO_PKG_VERSION")))
            .dns_resolver(Arc::new(address::Guard { private: manner.private }))
            // A proxy would look names up anew; a redirect could lead anywhere.
            .no_proxy()
            .redirect(Policy::none())
            .connect_timeout(manner.timeout)
            .timeout(manner.timeout)
            .pool_max_idle_per_host(0)
            .build()?;
        Ok(Self { pool, client, manner })
    }

    /// Delivers until `shutdown`; what is under way then is brought to its end.
    pub async fn run(self, shutdown: CancellationToken) {
        let this = Arc::new(self);
        let mut under_way = JoinSet::new();
        while !shutdown.is_cancelled() {
            let free = AT_ONCE - under_way.len();
            match webhooks::claim(&this.pool, free as i64).await {
                Ok(due) => due.into_iter().for_each(|due| drop(under_way.spawn(this.clone().deliver(due)))),
                Err(error) => tracing::warn!(%error, "cannot look for webhook deliveries"),
            }
            // A place that becomes free may be wanted at once.
            tokio::select! {
                Some(_) = under_way.join_next() => while under_way.try_join_next().is_some() {},
                () = tokio::time::sleep(LOOK) => {}
                () = shutdown.cancelled() => {}
            }
        }
        while under_way.join_next().await.is_some() {}
    }

    async fn deliver(self: Arc<Self>, due: Due) {
        let attempt = self.attempt(&due).await;
        DELIVERIES.with_label_values(&[if attempt.error.is_none() { "delivered" } else { "failed" }]).inc();
        if let Err(error) = webhooks::finish(&self.pool, &due, &attempt).await {
            tracing::warn!(delivery = %due.id, %error, "the outcome of a webhook delivery was not kept; it will be repeated");
        }
    }

    /// Sends once. Of the answer only the status is read.
    async fn attempt(&self, due: &Due) -> Attempt {
        let failed = |status: Option<StatusCode>, error: String| Attempt {
            status: status.map(|s| s.as_u16()),
            gone: status == Some(StatusCode::GONE),
            error: Some(error.chars().take(MOST_OF_ERROR).collect()),
        };
        // Checked again, because the setting may have changed since.
        let url = match address::check(&due.url, self.manner.private) {
            Ok(url) => url,
            Err(error) => return failed(None, error),
        };
        let (id, timestamp, body) = (due.id.to_string(), Utc::now().timestamp(), due.body.to_string());
        let request = self
            .client
            .post(url)
            .header(CONTENT_TYPE, "application/json")
            .header("webhook-id", &id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", sign::signature(&due.secret, &id, timestamp, body.as_bytes()))
            .body(body);
        match request.send().await {
            Ok(answer) if answer.status().is_success() => {
                Attempt { status: Some(answer.status().as_u16()), error: None, gone: false }
            }
            Ok(answer) => {
                let status = answer.status();
                let hint =
                    if status.is_redirection() { ": redirects are not followed, give the final URL" } else { "" };
                failed(Some(status), format!("the receiver answered {status}{hint}"))
            }
            Err(error) if error.is_timeout() => {
                failed(None, format!("no answer within {} s", self.manner.timeout.as_secs_f64()))
            }
            Err(error) => failed(None, innermost(&error)),
        }
    }
}

/// The reason, without the URL, which owners may have put a token into.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}
