//! What workers count.

use std::sync::LazyLock;

use prometheus::{
    Histogram, IntCounter, IntGaugeVec, register_histogram, register_int_counter, register_int_gauge_vec,
};

fn counter(name: &str, help: &str) -> IntCounter {
    register_int_counter!(name, help).expect("each metric is registered once")
}

pub static LEASES: LazyLock<IntCounter> =
    LazyLock::new(|| counter("gauntlet_worker_leases_total", "Shards leased by this process."));
pub static LOST: LazyLock<IntCounter> =
    LazyLock::new(|| counter("gauntlet_worker_leases_lost_total", "Leases that ended before the work did."));
pub static FAILURES: LazyLock<IntCounter> =
    LazyLock::new(|| counter("gauntlet_worker_shard_failures_total", "Attempts at a shard that failed."));
pub static REAPED: LazyLock<IntCounter> = LazyLock::new(|| {
    counter("gauntlet_worker_leases_reaped_total", "Expired leases of others that this process took back.")
});
/// By level: `enforced`, `off`, or `unavailable` (such workers refuse models).
pub static SANDBOX: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    register_int_gauge_vec!("gauntlet_worker_sandbox", "Workers of this process by what models run in.", &["level"])
        .expect("each metric is registered once")
});
pub static SHARD_SECONDS: LazyLock<Histogram> = LazyLock::new(|| {
    let buckets = vec![1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 14400.0];
    register_histogram!("gauntlet_worker_shard_seconds", "Wall time of committed shards.", buckets)
        .expect("each metric is registered once")
});
