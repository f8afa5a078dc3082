//! What workers count.

use std::collections::HashSet;
use std::sync::{LazyLock, Mutex};

use prometheus::{Counter, Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, register_int_gauge_vec};

use super::ChildError;
use crate::protocol::Grade;
use crate::protocol::plan::BACKWARD_FORWARDS;
use crate::queue::{Committed, Failure, ShardResult};
use crate::store::models::ProbeReport;
use crate::telemetry::exposition::{counter, gauge, histogram};
use crate::telemetry::gpu;
use crate::wire::Progress;

macro_rules! metrics {
    ($make:ident: $type:ty; $($name:ident $text:literal $help:literal)*) => {
        $(pub static $name: LazyLock<$type> = LazyLock::new(|| $make($text, $help));)*
    };
}

metrics! { counter: IntCounter;
    LEASES "gauntlet_worker_leases_total" "Shards leased by this process."
    RETRIES "gauntlet_worker_retries_total" "Shards leased by this process that had failed or been lost before."
    LOST "gauntlet_worker_leases_lost_total" "Leases of this process that ended before the work did."
    REAPED "gauntlet_worker_leases_reaped_total" "Expired leases of others that this process took back."
    COMMITS "gauntlet_worker_shards_committed_total" "Shards whose results this process wrote."
    REFUSED "gauntlet_worker_commits_refused_total" "Finished shards whose results were refused, because the lease had gone."
    CHILD_STARTS "gauntlet_child_starts_total" "Evaluator processes started."
    VERDICTS "gauntlet_engine_verdicts_total" "Verdicts reached, of attempts that came to nothing too."
    FORWARDS "gauntlet_engine_forwards_total" "Forward passes of single images that the search asked for."
    BACKWARDS "gauntlet_engine_backwards_total" "Backward passes of single images that the search asked for."
    HALVINGS "gauntlet_engine_batch_halvings_total" "Evaluations that this process had start over with half the batch, for memory."
    ROWS "gauntlet_engine_rows_total" "Rows of all batches sent through the model; forwards / rows is the occupancy."
}
metrics! { seconds: Counter;
    SECONDS "gauntlet_engine_seconds_total" "Time that evaluators spent on shards that they finished."
    FLOOR "gauntlet_engine_floor_seconds_total" "Time that the passes of those shards take at least, at the speed that the model was measured to have; floor / seconds is the efficiency."
    CORRUPTION "gauntlet_engine_corruption_cpu_seconds_total" "Processor time spent on corrupting images."
    WAIT "gauntlet_engine_corruption_wait_seconds_total" "Time that models waited for corrupted images."
}
metrics! { gauge: IntGauge;
    BUSY "gauntlet_worker_busy" "Workers of this process that have a shard or a check in hand."
    RECOVERING "gauntlet_worker_recovering" "Workers of this process that wait until their device and the artifact store work again."
    CHILDREN "gauntlet_children" "Evaluator processes alive."
    BATCH "gauntlet_engine_batch_images" "Rows of every batch of the last shard."
}
metrics! { minutes: Histogram;
    SHARD_SECONDS "gauntlet_worker_shard_seconds" "Wall time of committed shards."
    FIRST_RESULT "gauntlet_evaluation_first_result_seconds" "Time from submission to the first committed shard."
}
metrics! { by_kind: IntCounterVec;
    FAILURES "gauntlet_worker_shard_failures_total" "Attempts at a shard that failed."
    CHECKS "gauntlet_worker_checks_total" "Model checks by how they ended: ready, rejected, failed or put off by an outage."
    CHILD_FAILURES "gauntlet_child_failures_total" "Evaluator processes that failed their worker, by how."
    GRADES "gauntlet_worker_evaluations_graded_total" "Evaluations whose last shard this process committed, by grade."
    FINDINGS "gauntlet_worker_findings_total" "Findings on those evaluations, by code."
}

/// By level: `enforced`, `off`, or `unavailable` (such workers refuse models).
pub static SANDBOX: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    register_int_gauge_vec!("gauntlet_worker_sandbox", "Workers of this process by what models run in.", &["level"])
        .expect("each metric is registered once")
});

fn seconds(name: &str, help: &str) -> Counter {
    prometheus::register_counter!(name, help).expect("each metric is registered once")
}

/// What an evaluator's answer cost: the time it took, the passes it holds (forward, backward), and processor time of corrupting.
/// The floor is what the model's check calibrated, or the speed that it measured.
pub fn evaluated(seconds: f64, probe: Option<&ProbeReport>, (forwards, backwards): (u64, u64), corruption: f64) {
    let floor = probe.map_or(0.0, |probe| match &probe.calibration {
        Some(calibration) => calibration.floor.seconds(forwards, backwards),
        None => (forwards as f64 + BACKWARD_FORWARDS * backwards as f64) * probe.seconds_per_forward,
    });
    SECONDS.inc_by(seconds.max(0.0));
    FLOOR.inc_by(floor.max(0.0));
    CORRUPTION.inc_by(corruption.max(0.0));
}

/// Shards take seconds to hours.
fn minutes(name: &str, help: &str) -> Histogram {
    histogram(name, help, &[1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 14400.0, 86400.0])
}

fn by_kind(name: &str, help: &str) -> IntCounterVec {
    prometheus::register_int_counter_vec!(Opts::new(name, help), &["kind"]).expect("each metric is registered once")
}

const FAILURE_KINDS: [&str; 4] = ["outage", "transient", "permanent", "out_of_memory"];
const CHECK_KINDS: [&str; 4] = ["ready", "rejected", "failed", "outage"];
const CHILD_KINDS: [&str; 6] = ["spawn", "crashed", "out_of_memory", "no_progress", "protocol", "wall_time"];

/// Makes every series exist, at zero, before anything happens: what is absent cannot alarm.
pub fn announce() {
    let counters = [&LEASES, &RETRIES, &LOST, &REAPED, &COMMITS, &REFUSED, &CHILD_STARTS, &HALVINGS];
    counters.into_iter().chain([&VERDICTS, &FORWARDS, &BACKWARDS, &ROWS]).for_each(|c| c.inc_by(0));
    [&SECONDS, &FLOOR, &CORRUPTION, &WAIT].into_iter().for_each(|c| c.inc_by(0.0));
    [&BUSY, &RECOVERING, &CHILDREN, &BATCH].into_iter().for_each(|g| g.add(0));
    for histogram in [&SHARD_SECONDS, &FIRST_RESULT] {
        LazyLock::force(histogram);
    }
    let families = [(&FAILURES, &FAILURE_KINDS[..]), (&CHECKS, &CHECK_KINDS), (&CHILD_FAILURES, &CHILD_KINDS)];
    for (family, kinds) in families {
        kinds.iter().for_each(|kind| family.with_label_values(&[kind]).inc_by(0));
    }
    Grade::ALL.iter().for_each(|grade| GRADES.with_label_values(&[grade.name()]).inc_by(0));
    FINDINGS.with_label_values(&["other"]).inc_by(0);
    gpu::register();
}

pub fn shard_failed(failure: &Failure) {
    let kind = match failure {
        Failure::Outage(_) => FAILURE_KINDS[0],
        Failure::Transient { .. } => FAILURE_KINDS[1],
        Failure::Permanent { .. } => FAILURE_KINDS[2],
        Failure::OutOfMemory { batch, .. } => {
            HALVINGS.inc_by(u64::from(*batch > 1));
            FAILURE_KINDS[3]
        }
    };
    FAILURES.with_label_values(&[kind]).inc();
}

/// Counts the ends of children that were not asked to end. A model's fault is not the child's.
pub fn child_failed(error: &ChildError) {
    let kind = match error {
        ChildError::Spawn(_) => CHILD_KINDS[0],
        ChildError::Crashed { .. } => CHILD_KINDS[1],
        ChildError::OutOfMemory(_) => CHILD_KINDS[2],
        ChildError::NoProgress(_) => CHILD_KINDS[3],
        ChildError::Garbage(_) => CHILD_KINDS[4],
        ChildError::WallTime(_) => CHILD_KINDS[5],
        ChildError::Failed { .. } | ChildError::Rejected { .. } => return,
    };
    CHILD_FAILURES.with_label_values(&[kind]).inc();
}

pub fn committed(result: &ShardResult, committed: &Committed) {
    COMMITS.inc();
    SHARD_SECONDS.observe(result.seconds);
    if let Some(diagnostics) = &committed.diagnostics {
        GRADES.with_label_values(&[diagnostics.grade.name()]).inc();
        diagnostics.findings.iter().for_each(|f| finding(&f.code));
    }
    if let Some(seconds) = committed.first_result_after {
        FIRST_RESULT.observe(seconds);
    }
}

/// Codes come from a child that is not trusted: after this many different ones, the rest share a label.
const MOST_CODES: usize = 64;

/// Counts a finding under its code, if that looks like one.
fn finding(code: &str) {
    static KNOWN: Mutex<Option<HashSet<String>>> = Mutex::new(None);
    let mut known = KNOWN.lock().expect("no holder panics");
    let known = known.get_or_insert_default();
    let proper = code.len() <= 64 && code.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    let counted = proper && (known.contains(code) || (known.len() < MOST_CODES && known.insert(code.to_owned())));
    FINDINGS.with_label_values(&[if counted { code } else { "other" }]).inc();
}

/// Turns the running totals of one question into counters of the process.
#[derive(Debug, Default)]
pub struct Meter(Progress);

impl Meter {
    /// Forward and backward passes so far.
    pub fn passes(&self) -> (u64, u64) {
        (self.0.forwards, self.0.backwards)
    }

    /// Totals that shrink add nothing.
    pub fn heard(&mut self, now: Progress) {
        let before = std::mem::replace(&mut self.0, now);
        VERDICTS.inc_by(now.verdicts.saturating_sub(before.verdicts).into());
        FORWARDS.inc_by(now.forwards.saturating_sub(before.forwards));
        BACKWARDS.inc_by(now.backwards.saturating_sub(before.backwards));
        ROWS.inc_by(now.rows.saturating_sub(before.rows));
        WAIT.inc_by(now.waited_microseconds.saturating_sub(before.waited_microseconds) as f64 * 1e-6);
    }
}

/// Counts a worker as busy for as long as it lives.
pub struct Busy(());

impl Busy {
    pub fn now() -> Self {
        BUSY.inc();
        Self(())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        BUSY.dec();
    }
}
