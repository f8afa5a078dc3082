//! Chaos: while three owners keep submitting, everything breaks that can. Afterwards nothing is lost, doubled or left over.

#[path = "../common/mod.rs"]
mod common;
mod owners;
mod stage;
mod volume;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use common::world::{Verdicts, World};
use gauntlet::protocol::report::Tally;
use gauntlet::store::evaluations::{self, State};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use owners::{Accepted, Owner};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use stage::{Stage, pass};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minute_of_chaos_loses_and_doubles_nothing() {
    chaos(Duration::from_secs(60), 3).await;
}

/// `cargo test --test chaos -- --ignored --nocapture`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes 25 minutes; the test above is its small version"]
async fn twenty_minutes_of_chaos_lose_and_double_nothing() {
    chaos(Duration::from_secs(20 * 60), 4).await;
}

/// What can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    WorkerKilled,
    WorkerAskedToEnd,
    WorkerFrozen,
    EvaluatorKilled,
    EvaluatorFrozen,
    ServerKilled,
    DatabaseRestarted,
    DatabaseCrashed,
    DatabaseAway,
    DatabaseFrozen,
    StoreFails,
    StoreSlow,
    DiskFull,
}

const FAULTS: [Fault; 13] = [
    Fault::WorkerKilled,
    Fault::WorkerAskedToEnd,
    Fault::WorkerFrozen,
    Fault::EvaluatorKilled,
    Fault::EvaluatorFrozen,
    Fault::ServerKilled,
    Fault::DatabaseRestarted,
    Fault::DatabaseCrashed,
    Fault::DatabaseAway,
    Fault::DatabaseFrozen,
    Fault::StoreFails,
    Fault::StoreSlow,
    Fault::DiskFull,
];

impl Fault {
    /// Whether a shard's attempt may end with it, and count.
    fn costs_attempts(self) -> bool {
        matches!(self, Self::WorkerKilled | Self::WorkerFrozen | Self::EvaluatorKilled | Self::EvaluatorFrozen)
    }
}

async fn chaos(length: Duration, seed: u64) {
    rustls::crypto::ring::default_provider().install_default().ok();
    let mut stage = Stage::set().await;
    stage.world.import_digits().await;
    let mut owners = Vec::new();
    for (name, recipe) in [("ada", 0), ("ben", 500), ("cleo", 1000)] {
        owners.push(Owner::new(&stage.world, &stage.address, name, recipe).await);
    }
    // Each recipe undisturbed, in shards as small as they will be.
    let mut calm = BTreeMap::new();
    for owner in &owners {
        stage.world.until_checked(owner.model).await;
        stage.world.pretend_speed(owner.model, 1e3).await;
        let id = owner.submit().await;
        assert_eq!(owner.until_ended(id).await["state"], "succeeded");
        calm.insert(owner.recipe, (stage.world.verdicts(id).await, totals(&stage.world, id).await));
    }

    let stop = Arc::new(AtomicBool::new(false));
    let work = owners.iter().enumerate().map(|(i, o)| tokio::spawn(o.clone().work(seed + i as u64, stop.clone())));
    let work: Vec<_> = work.collect();
    let faults = break_things(&mut stage, length, seed).await;
    stop.store(true, Ordering::Relaxed);
    let healed = tokio::time::timeout(Duration::from_secs(300), futures::future::join_all(work));
    let mut accepted: Vec<Accepted> = Vec::new();
    // Meanwhile somebody must bring back who ended.
    let mut healed = std::pin::pin!(healed);
    let ended = loop {
        tokio::select! {
            ended = &mut healed => break ended.expect("every evaluation ends within minutes of peace"),
            () = pass(0.5) => stage.replace_the_gone(),
        }
    };
    ended.into_iter().for_each(|of_one| accepted.extend(of_one.unwrap()));
    let checked = check(&mut stage, &accepted, &calm).await;
    let injected: usize = faults.values().sum();
    let answers: Vec<_> = owners.iter().map(|owner| owner.answers.lock().unwrap().clone()).collect();
    println!("faults injected: {injected} {faults:?}");
    println!("{} evaluations accepted, {checked}", accepted.len());
    println!("answers by status: {answers:?}");
    assert!(faults.len() == FAULTS.len() - usize::from(!stage.volume.mounted), "{faults:?}");
}

/// Injects faults for a time: each kind once, in random order, then again.
async fn break_things(stage: &mut Stage, length: Duration, seed: u64) -> BTreeMap<Fault, usize> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut counts = BTreeMap::new();
    let mut deck = Vec::new();
    let start = Instant::now();
    while start.elapsed() < length || !deck.is_empty() {
        if deck.is_empty() {
            deck = FAULTS.to_vec();
            (1..deck.len()).rev().for_each(|i| deck.swap(i, random.next_u32() as usize % (i + 1)));
            // A disk that cannot be filled here.
            deck.retain(|fault| stage.volume.mounted || *fault != Fault::DiskFull);
        }
        stage.replace_the_gone();
        let fault = deck.pop().expect("just filled");
        let victim = random.next_u32() as usize % stage.workers.len();
        if fault.costs_attempts() {
            // Five crashes look like a poisonous model, and rightly end an evaluation.
            spare_last_chances(&stage.world).await;
        }
        inject(stage, fault, victim).await;
        *counts.entry(fault).or_default() += 1;
        pass(0.3 + f64::from(random.next_u32() % 1500) / 1000.0).await;
    }
    counts
}

async fn spare_last_chances(world: &World) {
    world.until_true("select count(*) = 0 from shards where state in ('queued', 'running') and attempts >= 3").await;
}

async fn inject(stage: &mut Stage, fault: Fault, victim: usize) {
    match fault {
        Fault::WorkerKilled => {
            stage.children(victim);
            stage.workers[victim].kill();
            stage.replace(victim);
        }
        Fault::WorkerAskedToEnd => {
            stage.children(victim);
            stage.workers[victim].signal(Signal::SIGTERM);
        }
        Fault::WorkerFrozen => {
            // Longer than its lease of three seconds.
            stage.workers[victim].signal(Signal::SIGSTOP);
            pass(5.0).await;
            stage.workers[victim].signal(Signal::SIGCONT);
        }
        Fault::EvaluatorKilled => signal_all(&stage.children(victim), Signal::SIGKILL),
        // Never woken again: its worker must notice.
        Fault::EvaluatorFrozen => signal_all(&stage.children(victim), Signal::SIGSTOP),
        Fault::ServerKilled => stage.restart_server(),
        Fault::DatabaseRestarted => {
            stage.stop_database().await;
            stage.start_database().await;
        }
        Fault::DatabaseCrashed => {
            stage.crash_database();
            stage.start_database().await;
        }
        Fault::DatabaseAway => {
            stage.stop_database().await;
            pass(6.0).await;
            stage.start_database().await;
        }
        Fault::DatabaseFrozen => {
            // As when its host hangs, or the network is cut: it has not restarted when it is back.
            let processes = stage.database_processes();
            signal_all(&processes, Signal::SIGSTOP);
            pass(5.0).await;
            signal_all(&processes, Signal::SIGCONT);
        }
        Fault::StoreFails => {
            stage.volume.break_down();
            pass(3.0).await;
            stage.volume.mend();
        }
        Fault::StoreSlow => {
            stage.slow_down(true);
            pass(3.0).await;
            stage.slow_down(false);
        }
        Fault::DiskFull => {
            stage.volume.fill();
            pass(3.0).await;
            stage.volume.empty();
        }
    }
}

fn signal_all(pids: &[i32], signal: Signal) {
    pids.iter().for_each(|pid| kill(Pid::from_raw(*pid), signal).unwrap_or_default());
}

async fn totals(world: &World, id: uuid::Uuid) -> Totals {
    let mut totals = BTreeMap::new();
    for (condition, _, Tally { n, correct, .. }) in evaluations::tallies(&world.pool, id).await.unwrap() {
        let total: &mut (u64, u64) = totals.entry(condition).or_default();
        *total = (total.0 + n, total.1 + correct);
    }
    totals
}

/// By condition: images, and those that held.
type Totals = BTreeMap<usize, (u64, u64)>;

/// By recipe: what an undisturbed run gives.
type Calm = BTreeMap<u32, (Verdicts, Totals)>;

async fn check(stage: &mut Stage, accepted: &[Accepted], calm: &Calm) -> String {
    let world = &stage.world;
    let (mut succeeded, mut cancelled, mut verdicts) = (0, 0, 0);
    for evaluation in accepted {
        let now = evaluations::get(&world.pool, evaluation.id).await.unwrap().unwrap();
        // `verdicts` refuses to count a cell twice.
        let found = world.verdicts(evaluation.id).await;
        let (expected, expected_totals) = &calm[&evaluation.recipe];
        match now.state {
            State::Succeeded => {
                assert_eq!(&found, expected, "{evaluation:?}");
                assert_eq!(&totals(world, evaluation.id).await, expected_totals, "{evaluation:?}");
                succeeded += 1;
            }
            State::Cancelled if evaluation.cancelled => {
                assert!(found.iter().all(|(cell, verdict)| expected.get(cell) == Some(verdict)), "{evaluation:?}");
                cancelled += 1;
            }
            state => panic!("{evaluation:?} is {state:?}: {:?}", now.outcome),
        }
        verdicts += found.len();
    }
    let count = async |sql: &'static str| sqlx::query_scalar::<_, i64>(sql).fetch_one(&world.pool).await.unwrap();
    // Those of before the chaos, and those that an owner was told of: none twice, none that nobody knows of.
    assert_eq!(count("select count(*) from evaluations").await, (accepted.len() + calm.len()) as i64);
    let (shards, attempts) =
        (count("select count(*) from shards").await, count("select sum(attempts) from shards").await);
    assert_eq!(count("select count(*) from shards where lease_token is not null or state = 'running'").await, 0);
    assert_eq!(stage.clear(), Vec::<i32>::new(), "evaluators outlived their workers");
    let world = &stage.world;
    // A day later, as far as files are concerned.
    let (folder, yesterday) = (stage.volume.folder.clone(), SystemTime::now() - Duration::from_secs(2 * 24 * 3600));
    let evidence = ["verdicts", "witnesses", "logs", "checkpoints", "uploads", "parts"].map(|name| folder.join(name));
    for file in evidence.iter().flat_map(|folder| files(folder)) {
        File::options().write(true).open(file).unwrap().set_modified(yesterday).unwrap();
    }
    let mut gc = Command::new(env!("CARGO_BIN_EXE_gauntlet"));
    gc.args(["gc", "--data-dir"]).arg(world.data.path()).env("DATABASE_URL", &world.url).stdout(Stdio::null());
    assert!(gc.status().unwrap().success());
    let sql = "select key from shards, unnest(array[verdicts_key, witnesses_key]) as key where key is not null
               union all select log_key from shard_attempts where log_key is not null";
    let named: Vec<String> = sqlx::query_scalar(sql).fetch_all(&world.pool).await.unwrap();
    let named: BTreeSet<PathBuf> = named.iter().map(|key| folder.join(key)).collect();
    let left: BTreeSet<PathBuf> = evidence.iter().flat_map(|folder| files(folder)).collect();
    assert_eq!(left, named, "files and the rows that name them");
    format!(
        "{succeeded} succeeded as undisturbed, {cancelled} cancelled, {verdicts} verdicts, {shards} shards in {attempts} attempts"
    )
}

/// All files below a folder, half written ones too.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.flat_map(|entry| if entry.path().is_dir() { files(&entry.path()) } else { vec![entry.path()] }).collect()
}
