//! The lease loop: check models, run shards, keep leases alive, drain on request.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info, info_span, warn};
use uuid::Uuid;

use super::attempt_log::AttemptLog;
use super::check::{self, CheckError};
use super::checkpoint;
use super::child::{Child, ChildOptions};
use super::failure::{self, ChildError};
use super::job::{self, JobError, Loaded, Tools};
use super::metrics::{self, Busy};
use super::patience::patiently;
use crate::dataset::Catalogue;
use crate::protocol::{Capabilities, Platform, Sandbox};
use crate::queue::{
    self, Affinity, CheckLease, Claimant, Claimed, Ending, Failure, Lease, LeaseError, Order, ShardResult,
};
use crate::store::models::Rejection;
use crate::store::workers::{self, NewWorker, SandboxState};
use crate::store::{Artifacts, pool};
use crate::telemetry::trace;
use crate::wire::SANDBOX_UNAVAILABLE;

#[derive(Debug, Clone)]
pub struct WorkerOptions {
    pub child: ChildOptions,
    pub capabilities: Capabilities,
    pub lease: Duration,
    /// How often an idle worker looks for work.
    pub poll: Duration,
}

/// How a worker is asked to end.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    /// Finish the shard in hand, take no other.
    pub drain: CancellationToken,
    /// Drop everything now; leases are given back.
    pub now: CancellationToken,
}

/// One worker: it serves one device and runs one shard at a time.
pub struct Worker {
    id: Uuid,
    pool: PgPool,
    artifacts: Artifacts,
    catalogue: Catalogue,
    options: WorkerOptions,
    platform: Platform,
    /// Whether models may be run here.
    confines: bool,
    kept: Option<Loaded>,
    affinity: Affinity,
    /// Whether the last look for work began with the checks.
    checks_first: bool,
    /// Whether the last piece of work failed for reasons that lie here.
    unwell: bool,
}

/// Longest pause between two looks at whether the device and the artifact store work again.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What stood in the way of finishing a piece of work.
enum Interrupted {
    /// Cancelled, or the evaluation failed elsewhere.
    Stopped,
    Lost,
    ShuttingDown,
}

impl Worker {
    /// Starts a child to learn what the device is, and announces the worker. A worker that cannot have the sandbox it is
    /// to have is announced as well, and takes no work.
    pub async fn start(pool: PgPool, artifacts: Artifacts, options: WorkerOptions) -> anyhow::Result<Self> {
        metrics::announce();
        let (platform, sandbox) = explore(&options.child).await?;
        let id = Uuid::now_v7();
        let host = nix::unistd::gethostname().map(|h| h.to_string_lossy().into_owned()).unwrap_or_default();
        let capabilities = &options.capabilities;
        let new = NewWorker { id, host: &host, platform: &platform, capabilities, sandbox: &sandbox };
        workers::register(&pool, &new).await?;
        info!(worker = %id, device = %platform.device, hardware = platform.hardware, libtorch = platform.libtorch, "worker ready");
        let catalogue = Catalogue::new(artifacts.store());
        let confines = announce(&sandbox);
        Ok(Self {
            id,
            pool,
            artifacts,
            catalogue,
            options,
            platform,
            confines,
            kept: None,
            affinity: Affinity::default(),
            checks_first: false,
            unwell: false,
        })
    }

    /// Works until told to end, then closes its pool.
    pub async fn run(mut self, shutdown: Shutdown) {
        // Beside the work, so that hours of it do not keep others' leases from being taken back.
        let housekeeping =
            tokio::spawn(housekeep(self.pool.clone(), self.id, self.options.lease, shutdown.drain.clone()));
        while !shutdown.drain.is_cancelled() && !shutdown.now.is_cancelled() {
            if std::mem::take(&mut self.unwell) {
                self.recover(&shutdown).await;
                continue;
            }
            match self.step(&shutdown).await {
                Ok(true) => {}
                Ok(false) => {
                    // An idle worker holds no model: its memory may be wanted, and a cancelled evaluation's child must go.
                    self.kept = None;
                    self.idle(&shutdown).await;
                }
                Err(error) => {
                    warn!(%error, "the database does not answer; trying again");
                    self.idle(&shutdown).await;
                }
            }
        }
        housekeeping.abort();
        workers::unregister(&self.pool, self.id).await.ok();
        self.pool.close().await;
        info!(worker = %self.id, "worker ended");
    }

    async fn idle(&mut self, shutdown: &Shutdown) {
        self.pause(self.options.poll, shutdown).await;
    }

    /// Waits until device and artifact store work, so that this worker does not take one shard after another only to fail
    /// them.
    async fn recover(&mut self, shutdown: &Shutdown) {
        metrics::RECOVERING.inc();
        self.kept = None;
        let mut pause = self.options.poll;
        while !shutdown.drain.is_cancelled() && !shutdown.now.is_cancelled() {
            self.pause(pause, shutdown).await;
            if self.is_well().await {
                info!("device and artifact store work: taking work again");
                break;
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        metrics::RECOVERING.dec();
    }

    async fn pause(&self, pause: Duration, shutdown: &Shutdown) {
        // Jitter, so that many idle workers do not ask in step.
        let jitter = f64::from(self.id.as_fields().0 % 1000) / 4000.0;
        tokio::select! {
            () = tokio::time::sleep(pause.mul_f64(1.0 + jitter)) => {}
            () = shutdown.drain.cancelled() => {}
            () = shutdown.now.cancelled() => {}
        }
    }

    /// Does one piece of work; `false` when there is none.
    async fn step(&mut self, shutdown: &Shutdown) -> Result<bool, sqlx::Error> {
        if !self.confines {
            return Ok(false);
        }
        // Checks are short and their owners wait for them; by turns, so that many of them do not keep shards waiting.
        self.checks_first = !self.checks_first;
        if self.checks_first && self.next_check(shutdown).await? {
            return Ok(true);
        }
        if self.next_shard(shutdown).await? {
            return Ok(true);
        }
        Ok(!self.checks_first && self.next_check(shutdown).await?)
    }

    async fn next_check(&mut self, shutdown: &Shutdown) -> Result<bool, sqlx::Error> {
        let Some(lease) = queue::claim_check(&self.pool, &self.options.capabilities, self.options.lease).await? else {
            return Ok(false);
        };
        let span = trace::of(lease.model.id, info_span!("check", model = %lease.model.id));
        self.check(lease, shutdown).instrument(span).await;
        Ok(true)
    }

    async fn next_shard(&mut self, shutdown: &Shutdown) -> Result<bool, sqlx::Error> {
        if self.kept.is_none() {
            self.affinity.forget();
        }
        let claimant = Claimant {
            worker: self.id,
            platform: &self.platform,
            capabilities: &self.options.capabilities,
            prefers: self.affinity.prefers(),
        };
        let Some(claimed) = queue::claim(&self.pool, &claimant, self.options.lease).await? else { return Ok(false) };
        self.affinity.took(claimed.model.id);
        let (evaluation, lease) = (claimed.evaluation.id, &claimed.lease);
        let request = claimed.evaluation.request_id.as_deref();
        let span = info_span!("shard", %evaluation, request, shard = lease.shard, attempt = lease.attempt);
        self.shard(claimed, shutdown).instrument(trace::of(evaluation, span)).await;
        Ok(true)
    }

    async fn check(&mut self, lease: CheckLease, shutdown: &Shutdown) {
        let model = lease.model.id;
        let _busy = Busy::now();
        if let Some(mut kept) = self.kept.take() {
            // A model may need all the memory there is.
            kept.child.kill().await;
        }
        let work =
            check::run(&self.options.child, &self.artifacts, &self.catalogue, &lease.model, lease.dataset.as_deref());
        let beat = async {
            loop {
                tokio::time::sleep(self.options.lease / 3).await;
                if let Err(LeaseError::Lost) = lease.heartbeat(&self.pool, self.options.lease).await {
                    return;
                }
            }
        };
        let outcome = tokio::select! {
            outcome = work => outcome,
            () = beat => return,
            () = shutdown.now.cancelled() => {
                let reason = Rejection { code: "check_lost".into(), found: "the worker was shut down while checking".into() };
                lease.give_back(&self.pool, &reason, Duration::ZERO, queue::MAX_ATTEMPTS).await.ok();
                return;
            }
        };
        let count = |kind: &str| metrics::CHECKS.with_label_values(&[kind]).inc();
        let ended = match outcome {
            Ok((findings, probe)) => {
                count("ready");
                info!(%model, findings = findings.len(), "model is ready");
                record(shutdown, || lease.accept(&self.pool, &findings, &probe)).await
            }
            Err(CheckError::Outage(outage)) if self.is_well().await => {
                count("failed");
                warn!(%model, %outage, "the model cannot be read or loaded; device and artifact store work otherwise");
                let reason = Rejection { code: outage.code, found: queue::NOT_THE_MODELS_FAULT.into() };
                let delay = Duration::from_secs(1);
                record(shutdown, || lease.give_back(&self.pool, &reason, delay, queue::MAX_ATTEMPTS)).await
            }
            Err(CheckError::Outage(outage)) => {
                count("outage");
                warn!(%model, %outage, "the model cannot be checked here and now");
                self.unwell = true;
                record(shutdown, || lease.postpone(&self.pool, self.options.poll)).await
            }
            Err(CheckError::Child(ChildError::Rejected { code, found })) => {
                count("rejected");
                info!(%model, code, "model is rejected");
                let reason = Rejection { code, found };
                record(shutdown, || lease.reject(&self.pool, &reason)).await
            }
            // A model that fails while it is probed is what it is; a crash or a hang might be the machine's doing.
            Err(CheckError::Child(ChildError::Failed { code, detail })) if !failure::is_of_the_machine(&code) => {
                count("rejected");
                let reason = Rejection { code, found: detail };
                record(shutdown, || lease.reject(&self.pool, &reason)).await
            }
            Err(CheckError::Child(error)) => {
                count("failed");
                metrics::child_failed(&error);
                warn!(%model, %error, "model check failed");
                let reason = Rejection { code: error.code().into(), found: error.to_string() };
                let (delay, most) = (Duration::from_secs(1), attempts(&error));
                record(shutdown, || lease.give_back(&self.pool, &reason, delay, most)).await
            }
        };
        if let Err(error) = ended {
            warn!(%model, %error, "the check's outcome was not recorded");
        }
    }

    async fn shard(&mut self, claimed: Claimed, shutdown: &Shutdown) {
        let (evaluation, shard, attempt) = (claimed.evaluation.id, claimed.lease.shard, claimed.lease.attempt);
        info!(%evaluation, shard, attempt, images = claimed.images, "shard started");
        let _busy = Busy::now();
        metrics::LEASES.inc();
        metrics::RETRIES.inc_by(u64::from(attempt > 1));
        let (progress, log) = (AtomicU32::new(0), AttemptLog::default());
        let Platform { device, hardware, libtorch } = &self.platform;
        log.say(format_args!("attempt {attempt} on worker {}: {device}, {hardware}, libtorch {libtorch}", self.id));
        let mut kept = self.kept.take();
        let tools = Tools {
            pool: &self.pool,
            artifacts: &self.artifacts,
            catalogue: &self.catalogue,
            child: &self.options.child,
            log: &log,
            platform: &self.platform,
        };
        let outcome = tokio::select! {
            outcome = self.attempt(&tools, &claimed, &mut kept, &progress) => Ok(outcome),
            interrupted = keep_alive(&self.pool, &claimed.lease, &progress) => Err(interrupted),
            () = shutdown.now.cancelled() => Err(Interrupted::ShuttingDown),
        };
        self.keep_log(&claimed, &outcome, &log).await;
        // What a later attempt could go on from.
        let resumable = match &outcome {
            Ok(Ok(_)) | Err(Interrupted::Stopped) => false,
            Ok(Err(JobError::Failed(failure))) => matches!(failure, Failure::Transient { .. } | Failure::Outage(_)),
            Ok(Err(JobError::Lost | JobError::NotForThisPlatform)) => true,
            Err(Interrupted::Lost | Interrupted::ShuttingDown) => true,
        };
        let ended = match outcome {
            Ok(Ok(result)) => {
                self.kept = kept;
                let seconds = result.seconds;
                let commit = || claimed.lease.commit(&self.pool, &result);
                match record(shutdown, commit).instrument(info_span!("commit")).await {
                    Ok(committed) => {
                        metrics::committed(&result, &committed);
                        info!(%evaluation, shard, seconds, "shard committed");
                        Ok(())
                    }
                    Err(error) => {
                        metrics::REFUSED.inc_by(u64::from(matches!(error, LeaseError::Lost)));
                        Err(error)
                    }
                }
            }
            Ok(Err(JobError::Failed(failure))) => {
                warn!(%evaluation, shard, attempt, ?failure, "shard failed");
                metrics::shard_failed(&failure);
                self.unwell = matches!(failure, Failure::Outage(_));
                record(shutdown, || claimed.lease.fail(&self.pool, &failure)).await
            }
            Ok(Err(JobError::Lost)) | Err(Interrupted::Lost) => Err(LeaseError::Lost),
            Ok(Err(JobError::NotForThisPlatform)) | Err(Interrupted::Stopped | Interrupted::ShuttingDown) => {
                info!(%evaluation, shard, "shard stopped");
                record(shutdown, || claimed.lease.release(&self.pool)).await
            }
        };
        if ended.is_ok() && !resumable {
            self.artifacts.delete(&checkpoint::key(&claimed)).await.ok();
        }
        match ended {
            Ok(()) => {}
            Err(LeaseError::Lost) => {
                metrics::LOST.inc();
                warn!(%evaluation, shard, "the lease was lost; nothing was written");
            }
            Err(error) => {
                warn!(%evaluation, shard, %error, "the shard's end was not recorded; the reaper will see to it")
            }
        }
    }

    /// Runs the shard. An outage that shows in nothing else is the shard's own, and counts.
    async fn attempt(
        &self,
        tools: &Tools<'_>,
        claimed: &Claimed,
        kept: &mut Option<Loaded>,
        progress: &AtomicU32,
    ) -> Result<ShardResult, JobError> {
        match job::run(tools, claimed, kept, progress).await {
            Err(JobError::Failed(Failure::Outage(outage))) if self.is_well().await => {
                warn!(%outage, "device and artifact store work otherwise");
                Err(JobError::Failed(failure::of_this_work(outage)))
            }
            ended => ended,
        }
    }

    /// Whether a device and an artifact store are there to work with.
    async fn is_well(&self) -> bool {
        if let Err(error) = explore(&self.options.child).await {
            warn!(%error, "the device does not work");
            return false;
        }
        if let Err(error) = self.artifacts.check_writable(self.id).await {
            warn!(%error, "the artifact store does not work");
            return false;
        }
        true
    }

    /// Keeps the attempt's log where its owner can read it. An attempt is worth more than its log: what goes wrong here is a
    /// warning.
    async fn keep_log(
        &self,
        claimed: &Claimed,
        outcome: &Result<Result<ShardResult, JobError>, Interrupted>,
        log: &AttemptLog,
    ) {
        let ending = match outcome {
            Ok(Ok(result)) => {
                log.say(format_args!("done after {:.1} s", result.seconds));
                Ending::Results
            }
            Ok(Err(JobError::Failed(failure))) => {
                log.say(format_args!("failed: {failure}"));
                Ending::Failed
            }
            Ok(Err(JobError::NotForThisPlatform)) => {
                log.say("given back: the evaluation has been begun on another platform");
                Ending::Stopped
            }
            Err(Interrupted::Stopped) => {
                log.say("stopped: the evaluation was cancelled, or has failed elsewhere");
                Ending::Stopped
            }
            Err(Interrupted::ShuttingDown) => {
                log.say("given back: the worker is shut down");
                Ending::Stopped
            }
            // Whoever has the lease now writes the log.
            Ok(Err(JobError::Lost)) | Err(Interrupted::Lost) => return,
        };
        let lease = &claimed.lease;
        let key = format!("logs/{}/{}-{}.txt", lease.evaluation, lease.shard, lease.token());
        let text = log.text();
        let (bytes, told) = (text.len(), log.told());
        let keep = async {
            self.artifacts.put(&key, text.into_bytes()).await.map_err(|e| e.to_string())?;
            let dropped = lease.keep_log(&self.pool, ending, &key, bytes, &told).await.map_err(|e| e.to_string())?;
            for key in dropped {
                self.artifacts.delete(&key).await.map_err(|e| e.to_string())?;
            }
            Ok::<_, String>(())
        };
        // Nobody says meanwhile that the lease is still held.
        match tokio::time::timeout(LOG_PATIENCE.min(self.options.lease / 3), keep).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(shard = lease.shard, error, "the attempt's log was not kept"),
            Err(_) => warn!(shard = lease.shard, "the attempt's log was not kept in time"),
        }
    }
}

/// Longest time that keeping a log may take: results do not wait for it for long.
const LOG_PATIENCE: Duration = Duration::from_secs(5);

/// Checks that a model gets before this failure counts as its own. Those that hold a worker up for long are fewer.
fn attempts(error: &ChildError) -> i32 {
    match error {
        ChildError::WallTime(_) => 1,
        ChildError::NoProgress(_) => 2,
        _ => queue::MAX_ATTEMPTS,
    }
}

/// What the device is, and whether the sandbox can be had. Without one, the child that says what the device is gets no
/// model to run.
async fn explore(options: &ChildOptions) -> Result<(Platform, SandboxState), ChildError> {
    match Child::start(options, None).await {
        Ok(child) => Ok((child.platform.clone(), SandboxState::Known(child.sandbox.clone()))),
        Err(ChildError::Failed { code, detail }) if code == SANDBOX_UNAVAILABLE => {
            let open = ChildOptions { confinement: None, ..options.clone() };
            Ok((Child::start(&open, None).await?.platform.clone(), SandboxState::Unavailable(detail)))
        }
        Err(error) => Err(error),
    }
}

/// Says in log and metrics what models will run in; returns whether any will.
fn announce(sandbox: &SandboxState) -> bool {
    let level = match sandbox {
        SandboxState::Known(sandbox) => sandbox.level(),
        SandboxState::Unavailable(_) => "unavailable",
    };
    metrics::SANDBOX.with_label_values(&[level]).inc();
    match sandbox {
        SandboxState::Known(Sandbox::Enforced(layers)) => info!(?layers, "models run in a sandbox"),
        SandboxState::Known(Sandbox::Off) => warn!("models run without a sandbox: run none that you do not trust"),
        SandboxState::Unavailable(why) => {
            tracing::error!(
                why,
                "models are refused: the sandbox cannot be had here; `sandbox = \"off\"` would run them without"
            );
        }
    }
    level != "unavailable"
}

/// For how long the database has answered without a pause in which leases could have run out unheard.
#[derive(Debug)]
struct Hearing {
    since: Instant,
    last: Instant,
}

impl Hearing {
    fn begun(now: Instant) -> Self {
        Self { since: now, last: now }
    }

    /// The database has answered. Whether that went on for a whole lease, so that those who were not heard are silent.
    fn is_trusted(&mut self, now: Instant, lease: Duration) -> bool {
        if now - self.last > lease / 2 {
            self.since = now;
        }
        self.last = now;
        now - self.since >= lease
    }
}

/// Shows that the worker lives, and takes back leases of workers that do not.
async fn housekeep(pool: PgPool, worker: Uuid, lease: Duration, drain: CancellationToken) {
    let mut hearing = Hearing::begun(Instant::now());
    loop {
        let outcome = async {
            workers::seen(&pool, worker, drain.is_cancelled()).await?;
            if hearing.is_trusted(Instant::now(), lease) { queue::reap(&pool).await } else { Ok(Vec::new()) }
        };
        match outcome.await {
            Ok(reaped) if !reaped.is_empty() => {
                metrics::REAPED.inc_by(reaped.len() as u64);
                warn!(?reaped, "took back leases of silent workers");
            }
            Ok(_) => {}
            Err(error) => warn!(%error, "housekeeping failed"),
        }
        tokio::time::sleep(lease / 6).await;
    }
}

/// Heartbeats until the work is no longer wanted or the lease is gone. While the database does not answer the work goes on:
/// what was leased to somebody else meanwhile cannot be committed, and most often nothing was.
async fn keep_alive(pool: &PgPool, lease: &Lease, progress: &AtomicU32) -> Interrupted {
    loop {
        tokio::time::sleep(lease.heartbeat_every()).await;
        match lease.heartbeat(pool, progress.load(Ordering::Relaxed)).await {
            Ok(Order::Continue) => {}
            Ok(Order::Stop) => return Interrupted::Stopped,
            Err(LeaseError::Lost) => return Interrupted::Lost,
            Err(error) => warn!(%error, "heartbeat failed"),
        }
    }
}

/// Tells the queue how a piece of work ended, if need be again and again until the database is back.
async fn record<T, F>(shutdown: &Shutdown, tell: impl Fn() -> F) -> Result<T, LeaseError>
where
    F: Future<Output = Result<T, LeaseError>>,
{
    let mends = |error: &LeaseError| match error {
        LeaseError::Lost => false,
        LeaseError::Database(error) => pool::is_outage(error) && !shutdown.now.is_cancelled(),
    };
    patiently("recording how the work ended", mends, tell).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_pause_of_the_database_nobody_counts_as_silent_for_a_lease() {
        let (start, lease) = (Instant::now(), Duration::from_secs(30));
        let mut hearing = Hearing::begun(start);
        let mut trusted = |second: u64| hearing.is_trusted(start + Duration::from_secs(second), lease);
        assert_eq!([5, 15, 25, 30, 35].map(&mut trusted), [false, false, false, true, true]);
        // Away for a minute.
        assert_eq!([95, 105, 115, 124, 125].map(&mut trusted), [false, false, false, false, true]);
    }
}
