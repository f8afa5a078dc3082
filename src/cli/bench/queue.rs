//! The lease queue under load, against single-row commits by pgbench on the same server in the same run.
//!
//! Evaluations of two owners, of whom one submitted nearly all, lie in a private database with the usual durability.
//! Simulated workers lease shards and commit made-up results: everything that the queue does, and nothing else.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures::future::try_join_all;
use serde_json::{Map, json};
use sqlx::PgPool;
use uuid::Uuid;

use super::{Cell, Report, quantile};
use crate::dataset::{Catalogue, ImportOptions, Manifest, Preset, Shape, Source};
use crate::postgres::{Cluster, Options};
use crate::protocol::report::Tally;
use crate::protocol::{
    Capabilities, Device, Format, Labels, ModelSpec, Needs, Pictures, Platform, Sandbox, Signs, builtin,
};
use crate::queue::{self, CheckLease, Claimant, Claimed, ShardResult};
use crate::store::artifacts::ArtifactError;
use crate::store::evaluations::{self, NewEvaluation, WitnessPolicy};
use crate::store::models::{self, NewModel, ProbeReport};
use crate::store::{Artifacts, Quotas, pool};

/// What to measure.
#[derive(Debug, Clone)]
pub struct QueueOptions {
    pub evaluations: u32,
    /// Simulated workers, each with a connection of its own.
    pub workers: u32,
    /// Spent on each of the parts.
    pub duration: Duration,
    pub pgbench: PathBuf,
}

/// Shards of each evaluation.
const SHARDS: u32 = 100;
/// Every so many evaluations, one is the modest owner's.
const MODEST: u32 = 100;
/// Images of a shard that cannot be cut smaller.
const SHARD_IMAGES: u32 = 32;
/// Shards that each worker takes in one go when claims and commits are measured apart.
const HANDFUL: u32 = 8;
const LEASE: Duration = Duration::from_secs(600);

/// Fills a private queue, works on it, and reports rates (per second) and latencies (milliseconds).
pub async fn run(options: &QueueOptions) -> anyhow::Result<Report> {
    ensure!(options.evaluations >= 2 && options.workers >= 1, "there must be two evaluations and a worker at least");
    let folder = tempfile::Builder::new().permissions(readable()).tempdir()?;
    let cluster = Cluster::start(&folder.path().join("database"), &Options::default()).await?;
    let pool = pool::connect(cluster.url(), options.workers + 2).await?;
    pool::migrate(&pool).await?;
    let filling = Instant::now();
    fill(&pool, &Artifacts::local(&folder.path().join("artifacts"))?, options.evaluations).await?;
    let filled = filling.elapsed();
    let shards: i64 = sqlx::query_scalar("select count(*) from shards").fetch_one(&pool).await?;
    sqlx::query("vacuum analyze").execute(&pool).await?;

    // Before and after, because the machine may change its mind.
    let before = single_row_commits(cluster.url(), options, options.workers).await?;
    let alone = single_row_commits(cluster.url(), options, 1).await?;
    let served = fairness(&pool, options.workers).await?;
    let (claims, commits, most) = rates(&pool, options).await?;
    let calm = paced(&pool, options).await?;
    let after = single_row_commits(cluster.url(), options, options.workers).await?;
    let rival = (before + after) / 2.0;
    pool.close().await;
    cluster.stop().await?;

    let latency = |id: &str, of: &[f64], share: f64| Cell::new(id, quantile(of, share), "ms", LIMIT_MS);
    let cells = vec![
        Cell::new("claims", claims, "1/s", rival),
        Cell::new("commits", commits, "1/s", rival),
        latency("claim p50, workers that work", &calm, 0.5),
        latency("claim p99, workers that work", &calm, 0.99),
        latency("claim p99, nothing but claims", &most, 0.99),
    ];
    let summary = [
        ("evaluations", json!(options.evaluations)),
        ("shards", json!(shards)),
        ("workers", json!(options.workers)),
        ("pgbench_commits_per_second", json!([before, after])),
        ("pgbench_commits_per_second_of_one_client", json!(alone)),
        ("submissions_per_second", json!(f64::from(options.evaluations) / filled.as_secs_f64())),
        ("modest_share_of_evaluations", json!(1.0 / f64::from(MODEST))),
        ("modest_share_of_workers", json!(served)),
    ];
    let summary = Map::from_iter(summary.map(|(key, value)| (key.to_owned(), value)));
    Ok(Report { bench: "queue", cells, summary })
}

/// What a claim may take: beside shards of a minute nobody would notice.
const LIMIT_MS: f64 = 50.0;

fn readable() -> std::fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(0o755)
}

/// Submits everything.
async fn fill(pool: &PgPool, artifacts: &Artifacts, evaluations: u32) -> anyhow::Result<()> {
    let dataset = dataset(artifacts).await?;
    let protocol = builtin("clean").context("the protocol `clean` is built in")?;
    let conditions = protocol.conditions_for(&dataset.scene(Pictures::Procedural))?;
    let mut of_owner = Vec::new();
    for owner in ["greedy", "modest"] {
        of_owner.push((owner, ready_model(pool, artifacts, owner).await?));
    }
    for i in 0..evaluations {
        let (owner, model) = of_owner[usize::from(i % MODEST == MODEST / 2)];
        let new = NewEvaluation {
            id: Uuid::now_v7(),
            owner,
            model,
            dataset: &dataset,
            first_image: 0,
            images: SHARDS * SHARD_IMAGES,
            protocol: &protocol,
            conditions: &conditions,
            seeds: &[0],
            witnesses: WitnessPolicy::None,
            priority: 0,
            needs: &Needs::default(),
            request_id: None,
            quotas: &Quotas::NONE,
        };
        evaluations::insert(pool, &new).await.map_err(|e| anyhow::anyhow!("{e:?}"))?;
    }
    Ok(())
}

async fn dataset(artifacts: &Artifacts) -> anyhow::Result<Manifest> {
    let shape = Shape { channels: 1, height: 2, width: 2 };
    let images = SHARDS * SHARD_IMAGES;
    let labels = (0..images).map(|i| i % 10).collect();
    let source = Source::in_memory(shape, 10, vec![0; images as usize * shape.bytes()], labels)?;
    let options = ImportOptions { preset: Some(Preset::Mnist), replace: false, progress: Arc::new(|_| ()) };
    Ok(Catalogue::new(artifacts.store()).import("grey", Arc::new(source), &options).await?)
}

/// A model that counts as checked, and as so slow that every shard is as small as can be.
async fn ready_model(pool: &PgPool, artifacts: &Artifacts, owner: &'static str) -> anyhow::Result<Uuid> {
    let stream = futures::stream::iter([Ok::<_, ArtifactError>(owner.into())]);
    let upload = artifacts.upload(stream, u64::MAX).await?;
    let spec = ModelSpec {
        format: Format::Torchscript,
        input: [1, 2, 2],
        classes: 10,
        preprocessing: None,
        stochastic: false,
    };
    let new = NewModel { owner, name: owner, identity: owner, spec: &spec, quotas: &Quotas::NONE };
    let model = models::insert(pool, artifacts, &upload, &new).await.map_err(|e| anyhow::anyhow!("{e:?}"))?.0.id;
    let check: CheckLease =
        queue::claim_check(pool, &capabilities(), LEASE).await?.context("the model waits for its check")?;
    check.accept(pool, &[], &ProbeReport { seconds_per_forward: 1e3, calibration: None }).await?;
    Ok(model)
}

fn capabilities() -> Capabilities {
    Capabilities { device: Device::Cpu, gpu_memory_bytes: None, labels: Labels::default() }
}

/// A worker's lease on the next shard.
async fn claim(pool: &PgPool) -> anyhow::Result<Claimed> {
    let platform = Platform { device: Device::Cpu, hardware: "none".into(), libtorch: "none".into() };
    let claimant =
        Claimant { worker: Uuid::new_v4(), platform: &platform, capabilities: &capabilities(), prefers: None };
    let claimed = queue::claim(pool, &claimant, LEASE).await?;
    claimed.context("the queue ran empty: give more evaluations or less time")
}

async fn commit(pool: &PgPool, claimed: &Claimed) -> anyhow::Result<()> {
    let result = ShardResult {
        tallies: claimed.conditions.iter().map(|&i| (i, Tally::default())).collect(),
        verdicts_key: format!("verdicts/{}", claimed.lease.token()),
        witnesses_key: None,
        signs: vec![Signs::default(); claimed.conditions.len()],
        sandbox: Sandbox::Off,
        seconds: 60.0,
        cpu_seconds: 60.0,
        corruption_seconds: 0.0,
    };
    claimed.lease.commit(pool, &result).await?;
    Ok(())
}

/// Fills all workers and lets them go on for a while; the modest owner's share of what was leased.
async fn fairness(pool: &PgPool, workers: u32) -> anyhow::Result<f64> {
    let owner = |claimed: &Claimed| claimed.evaluation.owner.clone();
    let mut running = Vec::new();
    let mut owners = Vec::new();
    for turn in 0..workers * 8 {
        // The one that has run longest ends.
        if running.len() == workers as usize {
            commit(pool, &running.remove(0)).await?;
        }
        let claimed = claim(pool).await?;
        if turn >= workers {
            owners.push(owner(&claimed));
        }
        running.push(claimed);
    }
    for claimed in &running {
        commit(pool, claimed).await?;
    }
    Ok(owners.iter().filter(|owner| *owner == "modest").count() as f64 / owners.len() as f64)
}

/// Claims and commits per second, apart, by all workers at once; and how long claims took then, in ms, ascending.
async fn rates(pool: &PgPool, options: &QueueOptions) -> anyhow::Result<(f64, f64, Vec<f64>)> {
    let (mut claiming, mut committing, mut shards) = (Duration::ZERO, Duration::ZERO, 0u32);
    let mut latencies = Vec::new();
    while claiming + committing < options.duration {
        let start = Instant::now();
        let take = |_| async {
            let mut taken = Vec::new();
            for _ in 0..HANDFUL {
                let asked = Instant::now();
                taken.push((claim(pool).await?, asked.elapsed()));
            }
            anyhow::Ok(taken)
        };
        let taken: Vec<_> = try_join_all((0..options.workers).map(take)).await?.into_iter().flatten().collect();
        claiming += start.elapsed();
        shards += taken.len() as u32;
        latencies.extend(taken.iter().map(|(_, latency)| latency.as_secs_f64() * 1e3));

        let start = Instant::now();
        let hands = taken.chunks(HANDFUL as usize).map(|hand| async move {
            for (claimed, _) in hand {
                commit(pool, claimed).await?;
            }
            anyhow::Ok(())
        });
        try_join_all(hands).await?;
        committing += start.elapsed();
    }
    latencies.sort_by(f64::total_cmp);
    let per_second = |time: Duration| f64::from(shards) / time.as_secs_f64();
    Ok((per_second(claiming), per_second(committing), latencies))
}

/// How long claims take, in ms, ascending, when every worker works a second on each shard: a sixtieth of what real ones do.
async fn paced(pool: &PgPool, options: &QueueOptions) -> anyhow::Result<Vec<f64>> {
    let end = Instant::now() + options.duration;
    let work = |i: u32| async move {
        let mut latencies = Vec::new();
        tokio::time::sleep(Duration::from_secs(1).mul_f64(f64::from(i) / f64::from(options.workers))).await;
        while Instant::now() < end {
            let asked = Instant::now();
            let claimed = claim(pool).await?;
            latencies.push(asked.elapsed().as_secs_f64() * 1e3);
            tokio::time::sleep(Duration::from_secs(1)).await;
            commit(pool, &claimed).await?;
        }
        anyhow::Ok(latencies)
    };
    let mut latencies: Vec<f64> = try_join_all((0..options.workers).map(work)).await?.into_iter().flatten().collect();
    latencies.sort_by(f64::total_cmp);
    Ok(latencies)
}

/// Transactions per second of pgbench with so many clients, each inserting one row.
async fn single_row_commits(url: &str, options: &QueueOptions, clients: u32) -> anyhow::Result<f64> {
    let script = tempfile::Builder::new().permissions(readable()).tempfile()?;
    std::fs::write(script.path(), "insert into bench_rows values (:client_id);\n")?;
    let connection = pool::connect(url, 1).await?;
    sqlx::query("create table if not exists bench_rows (id int)").execute(&connection).await?;
    connection.close().await;
    let output = tokio::process::Command::new(&options.pgbench)
        .args(["--no-vacuum", "--protocol=prepared"])
        .arg(format!("--jobs={}", clients.min(2)))
        .arg(format!("--client={clients}"))
        .arg(format!("--time={}", options.duration.as_secs().max(1)))
        .arg("--file")
        .arg(script.path())
        .arg(url)
        .stdin(Stdio::null())
        .output()
        .await
        .with_context(|| {
            format!("{} cannot be started: name Postgres' pgbench with --pgbench", options.pgbench.display())
        })?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let tps = said.lines().find_map(|line| line.strip_prefix("tps = ")?.split_whitespace().next()?.parse().ok());
    tps.with_context(|| format!("pgbench failed: {said}{}", String::from_utf8_lossy(&output.stderr)))
}
