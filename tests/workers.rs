//! Real worker and evaluator processes on a real database: verdicts that do not depend on scheduling, kills, cancels.

mod common;

use std::process::Command;
use std::time::{Duration, Instant};

use common::world::{Verdicts, World, by_cell, digits_spec, preloadable, repository, sleeping_evaluator};
use gauntlet::protocol::{Capabilities, Device, Diagnostics, Grade, Labels, NumericProfile, Protocol};
use gauntlet::queue::{self, Claimant};
use gauntlet::store::evaluations::{self, State};
use gauntlet::store::{evidence, report, shards};
use gauntlet::worker::{Child, ChildError, ChildOptions};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

const FIRST: u32 = 1297;

fn protocol() -> Protocol {
    let text = r#"
        name = "grid"
        [clean]
        [[attack]]
        attack = "pgd"
        norm = "linf"
        epsilon = [0.02, 0.05, 0.1]
        steps = 8
        random_start = true
        [[attack]]
        attack = "pgd"
        norm = "l2"
        epsilon = [0.5, 1.0]
        steps = 8
    "#;
    Protocol::from_toml(text, &[]).unwrap()
}

/// A long run of small shards.
fn slow_protocol() -> Protocol {
    let settings =
        [("steps".into(), "2000".into()), ("keep".into(), "last".into()), ("independent".into(), "true".into())];
    Protocol::from_toml(include_str!("../src/protocol/builtin/pgd-linf.toml"), &settings).unwrap()
}

/// The same cells through `gauntlet run`, without server or database: the verdicts, and the table.
fn local_run(
    world: &World,
    protocol: &Protocol,
    images: u32,
    profile: &NumericProfile,
) -> (Verdicts, serde_json::Value) {
    let fixed = world.data.path().join("profile.json");
    std::fs::write(&fixed, serde_json::to_vec(profile).unwrap()).unwrap();
    let file = world.data.path().join("protocol.toml");
    std::fs::write(&file, toml::to_string(protocol).unwrap()).unwrap();
    let out = world.data.path().join("verdicts.parquet");
    let output = Command::new(env!("CARGO_BIN_EXE_gauntlet"))
        .args(["run", "--dataset", "digits", "--seed", "5", "--format", "json", "--profile"])
        .arg(fixed)
        .args(["--offset", &FIRST.to_string(), "--images", &images.to_string()])
        .arg("--protocol")
        .arg(&file)
        .arg("--verdicts")
        .arg(&out)
        .arg("--data-dir")
        .arg(world.data.path())
        .arg(repository("models/digits/standard.pt"))
        .env("GAUNTLET_DEVICE", "cpu")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let table: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let verdicts = by_cell(evidence::from_parquet(std::fs::read(out).unwrap().into()).unwrap());
    (verdicts, table)
}

#[tokio::test]
async fn verdicts_are_the_same_for_any_cut_any_crew_any_kills_and_a_local_run() {
    let world = World::new().await;
    world.import_digits().await;
    let model = world.add_model(&repository("models/digits/standard.pt"), &digits_spec()).await;
    let images = 160;

    // One worker, one shard per group of conditions.
    let mut crew = vec![world.worker()];
    assert_eq!(world.until_checked(model.id).await.state, "ready");
    world.pretend_speed(model.id, 1e-9).await;
    let whole = world.submit(model.id, &protocol(), FIRST, images, &[5]).await;
    assert_eq!(world.until_ended(whole).await.shards_total, 3);

    // Three workers, small shards, and something is killed all the time.
    world.pretend_speed(model.id, 1e3).await;
    let cut = world.submit(model.id, &protocol(), FIRST, images, &[5]).await;
    crew.extend([world.worker(), world.worker()]);
    let kills = kill_until_ended(&world, &mut crew, cut, 6, 1).await;
    let evaluation = world.until_ended(cut).await;
    assert_eq!((evaluation.state, evaluation.shards_total), (State::Succeeded, 15), "{:?}", evaluation.outcome);

    let expected = world.verdicts(whole).await;
    assert_eq!(expected.len(), 6 * images as usize);
    evidence_holds_until_it_is_forged(&world, whole).await;
    assert!(kills >= 1, "no kill hit anything");
    assert_eq!(world.verdicts(cut).await, expected, "after {kills} kills");
    let (verdicts, table) = local_run(&world, &protocol(), images, &evaluation.profile.as_ref().unwrap().0);
    assert_eq!(verdicts, expected);
    let diagnostics: Diagnostics = serde_json::from_value(table["diagnostics"].clone()).unwrap();

    // The judgement, too, is the same; PGD of eight steps does its work on this model.
    assert_eq!(diagnostics.grade, Grade::Trustworthy, "{diagnostics:?}");
    for id in [whole, cut] {
        let ended = evaluations::get(&world.pool, id).await.unwrap().unwrap();
        assert_eq!(ended.diagnostics.as_ref().map(|kept| &kept.0), Some(&diagnostics));
        assert_eq!(report::table(&world.pool, &ended).await.unwrap().diagnostics, diagnostics);
    }
}

#[tokio::test]
async fn distances_and_their_curves_are_the_same_for_any_cut_and_a_local_run_and_hold_when_verified() {
    let text = r#"
        name = "distances"
        [[attack]]
        label = "min-norm"
        norm = "l2"
        epsilon = "minimal"
        cascade = [{ attack = "fmn", steps = 15 }, { attack = "fmn", steps = 30 }, { attack = "ddn", steps = 30 }]
        [[attack]]
        attack = "hop-skip-jump"
        norm = "linf"
        epsilon = "minimal"
        queries = [30, 400]
    "#;
    let protocol = Protocol::from_toml(text, &[]).unwrap();
    let world = World::new().await;
    world.import_digits().await;
    let model = world.add_model(&repository("models/digits/standard.pt"), &digits_spec()).await;
    let _worker = world.worker();
    let checked = world.until_checked(model.id).await;
    assert_eq!(checked.state, "ready");
    let profile = checked.probe.unwrap().0.calibration.unwrap().profile;
    let (local, table) = local_run(&world, &protocol, 64, &profile);
    for (seconds_per_forward, shards) in [(1e-9, 2), (1e3, 4)] {
        world.pretend_speed(model.id, seconds_per_forward).await;
        let id = world.submit(model.id, &protocol, FIRST, 64, &[5]).await;
        let ended = world.until_ended(id).await;
        assert_eq!((ended.state, ended.shards_total), (State::Succeeded, shards), "{:?}", ended.outcome);
        assert_eq!(world.verdicts(id).await, local);
        let rows = serde_json::to_value(report::table(&world.pool, &ended).await.unwrap().conditions).unwrap();
        assert_eq!(rows, table["conditions"]);
        let verified = verified(&world, id);
        assert!(verified.0, "{}", verified.1);
    }
    let rows = table["conditions"].as_array().unwrap();
    let ids: Vec<&str> = rows.iter().map(|row| row["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["min-norm-l2", "hop-skip-jump-linf-q30", "hop-skip-jump-linf-q400"]);
    let stages: Vec<&str> =
        rows[0]["stages"].as_array().unwrap().iter().map(|s| s["attack"].as_str().unwrap()).collect();
    assert!(stages.ends_with(&["fmn", "fmn-2", "ddn"]), "{stages:?}");
    let median = |row: usize| rows[row]["minimal"]["median"].as_f64().unwrap();
    assert!(median(2) < median(1) && (0.1..3.0).contains(&median(0)), "{} {} {}", median(0), median(1), median(2));
    let curve = rows[0]["minimal"]["curve"].as_array().unwrap();
    assert!(curve.len() > 30 && curve.windows(2).all(|w| w[0]["accuracy"].as_f64() > w[1]["accuracy"].as_f64()));
}

/// Whether `gauntlet verify` confirms the evidence, and its report.
fn verified(world: &World, id: uuid::Uuid) -> (bool, serde_json::Value) {
    let output = Command::new(env!("CARGO_BIN_EXE_gauntlet"))
        .args(["verify", &id.to_string(), "--format", "json", "--data-dir"])
        .arg(world.data.path())
        .env("DATABASE_URL", &world.url)
        .env("GAUNTLET_THREADS", "1")
        .output()
        .unwrap();
    (output.status.success(), serde_json::from_slice(&output.stdout).unwrap())
}

/// `gauntlet verify` confirms the stored witnesses and regenerates the rest, and names what was tampered with.
async fn evidence_holds_until_it_is_forged(world: &World, id: uuid::Uuid) {
    let verify = || verified(world, id);
    let (holds, report) = verify();
    assert!(holds, "{report}");
    assert!(
        report["witnesses"].as_u64() > Some(20) && report["witnesses"] == report["witnesses_confirmed"],
        "{report}"
    );
    assert!(
        report["regenerated"].as_u64() > Some(300) && report["regenerated"] == report["regenerated_equal"],
        "{report}"
    );

    let shard = shards::done(&world.pool, id).await.unwrap().into_iter().find(|s| s.witnesses_key.is_some()).unwrap();
    let key = shard.witnesses_key.unwrap();
    let genuine = world.artifacts.get(&key).await.unwrap();
    let mut sets = evidence::from_safetensors(&genuine).unwrap();
    let forged = sets[0].images[0];
    let pixels = sets[0].pixels.len() / sets[0].images.len();
    sets[0].pixels[..pixels].fill(0.5);
    world.artifacts.put(&key, evidence::to_safetensors(&sets).unwrap()).await.unwrap();
    let (holds, report) = verify();
    assert!(!holds);
    assert_eq!(report["disagreements"][0]["image"], forged, "{report}");
    world.artifacts.put(&key, genuine.to_vec()).await.unwrap();

    let retouch = async |by: &str| {
        let sql = format!("update tallies set correct = correct {by} where condition = 0");
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&world.pool).await.unwrap();
    };
    retouch("- 1").await;
    let (holds, report) = verify();
    assert!(!holds && report["cells"] == 6 && report["cells_equal"] == 5, "{report}");
    retouch("+ 1").await;
}

/// Kills random workers (which are replaced) and evaluator children, with SIGKILL, `wanted` times or until the evaluation
/// has ended; returns how many were killed.
async fn kill_until_ended(
    world: &World,
    crew: &mut [common::world::Worker],
    id: uuid::Uuid,
    wanted: usize,
    seed: u64,
) -> usize {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut kills = 0;
    let mut ended = false;
    while kills < wanted && !ended {
        let victim = random.next_u32() as usize % crew.len();
        if crew[victim].has_ended() {
            // Its first child was hit while it was still asking it what machine this is.
            crew[victim] = world.worker();
        }
        // A shard whose last attempt it is would rightly fail its evaluation: five crashes look like a poisonous model.
        let last_chances: i64 = sqlx::query_scalar(
            "select count(*) from shards where evaluation_id = $1 and state in ('queued', 'running') and attempts >= 4",
        )
        .bind(id)
        .fetch_one(&world.pool)
        .await
        .unwrap();
        if last_chances > 0 {
            // Spared in this round.
        } else if random.next_u32() % 2 == 0 {
            crew[victim].kill();
            crew[victim] = world.worker();
            kills += 1;
        } else if let Some(&child) = crew[victim].children().first() {
            kill(Pid::from_raw(child), Signal::SIGKILL).ok();
            kills += 1;
        }
        // Wait for progress between kills, so that an unlucky series does not use up a shard's attempts.
        let before = world.until(id, |_| true).await.shards_done;
        let pause = Instant::now();
        let settled = world
            .until(id, |e| e.shards_done > before || e.state.is_terminal() || pause.elapsed() > Duration::from_secs(4))
            .await;
        ended = settled.state.is_terminal();
    }
    kills
}

/// The full storm: `cargo test --test workers -- --ignored storm`.
#[tokio::test]
#[ignore = "takes many minutes; the test above is its small version"]
async fn storm_of_kills_loses_and_doubles_nothing() {
    let world = World::new().await;
    world.import_digits().await;
    let model = world.add_model(&repository("models/digits/standard.pt"), &digits_spec()).await;
    let mut crew = vec![world.worker()];
    world.until_checked(model.id).await;
    world.pretend_speed(model.id, 1e-9).await;
    let calm = world.submit(model.id, &protocol(), 0, 1280, &[5]).await;
    world.until_ended(calm).await;
    world.pretend_speed(model.id, 1e3).await;
    crew.extend((0..7).map(|_| world.worker()));
    let stormy = world.submit(model.id, &protocol(), 0, 1280, &[5]).await;
    let start = Instant::now();
    let kills = kill_until_ended(&world, &mut crew, stormy, 80, 7).await;
    let evaluation = world.until_ended(stormy).await;
    let attempts: i64 = sqlx::query_scalar("select sum(attempts) from shards where evaluation_id = $1")
        .bind(stormy)
        .fetch_one(&world.pool)
        .await
        .unwrap();
    eprintln!("{} shards, {kills} kills, {attempts} attempts, {:?}", evaluation.shards_total, start.elapsed());
    assert_eq!(evaluation.state, State::Succeeded, "{:?}", evaluation.outcome);
    assert!(kills >= 60 && evaluation.shards_total >= 100);
    assert_eq!(world.verdicts(stormy).await, world.verdicts(calm).await);
}

#[tokio::test]
async fn cancelling_kills_the_evaluator_within_five_seconds() {
    let world = World::new().await;
    world.import_digits().await;
    let model = world.add_model(&repository("models/digits/robust.pt"), &digits_spec()).await;
    let mut worker = world.worker();
    world.until_checked(model.id).await;
    let mut slow = slow_protocol();
    slow.attack[0].epsilon = serde_json::from_str("[0.001]").unwrap();
    let id = world.submit(model.id, &slow, 0, 1797, &[0]).await;
    let (mut child, start) = (None, Instant::now());
    while child.is_none() && start.elapsed() < Duration::from_secs(60) {
        world.until(id, |e| e.state == State::Running).await;
        child = worker.children().first().copied();
    }
    let child = child.expect("a child runs the shard");
    assert_eq!(queue::cancel(&world.pool, None, id).await.unwrap(), queue::Cancellation::Accepted);
    let asked = Instant::now();
    // A zombie runs no more; its parent may take a moment to bury it.
    let state = || {
        std::fs::read_to_string(format!("/proc/{child}/stat")).ok().and_then(|s| s.rsplit(") ").next()?.chars().next())
    };
    let alive = || state().is_some_and(|state| state != 'Z');
    while alive() && asked.elapsed() < Duration::from_secs(5) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!alive(), "the evaluator still runs 5 s after the cancel ({:?})", state());
    let ended = world.until_ended(id).await;
    assert_eq!((ended.state, ended.outcome.unwrap().code.as_str()), (State::Cancelled, "cancelled"));

    // The worker itself goes on, and ends in an orderly way.
    worker.signal(Signal::SIGTERM);
    assert!(worker.wait().success());
}

#[tokio::test]
async fn files_that_are_no_models_are_rejected_and_say_why() {
    let world = World::new().await;
    world.import_digits().await;
    let whole = std::fs::read(repository("models/digits/standard.pt")).unwrap();
    let path = world.data.path().join("absurd.pt");
    // A directory entry that promises two gigabytes.
    let mut bomb = whole.clone();
    let entry = bomb.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    bomb[entry + 24..entry + 28].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
    let files = [
        b"not a model".to_vec(),
        b"PK\x05\x06".iter().copied().chain([0; 18]).collect(),
        whole[..whole.len() / 2].to_vec(),
        whole[..whole.len() - 10].to_vec(),
        bomb,
    ];
    let mut models = Vec::new();
    for bytes in &files {
        std::fs::write(&path, bytes).unwrap();
        models.push(world.add_model(&path, &digits_spec()).await.id);
    }
    let genuine = world.add_model(&repository("models/digits/standard.pt"), &digits_spec()).await;
    let worker = world.worker();
    for (number, id) in models.into_iter().enumerate() {
        let checked = world.until_checked(id).await;
        assert_eq!(checked.state, "rejected", "file {number}");
        assert!(checked.rejection.unwrap().found.len() > 5, "file {number}");
    }
    assert_eq!(world.until_checked(genuine.id).await.state, "ready");
    drop(worker);
}

/// What a process has used so far; 0 once it is gone.
fn processor_seconds(pid: i32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or("").split(' ').collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

#[tokio::test]
async fn the_owner_can_read_what_the_model_wrote_and_why_an_attempt_failed() {
    let world = World::new().await;
    world.import_digits().await;
    let log = async |outcome: &str| {
        let sql = "select log_key, log_bytes from shard_attempts where outcome = $1 and log_key is not null limit 1";
        let kept: Option<(String, i32)> = sqlx::query_as(sql).bind(outcome).fetch_optional(&world.pool).await.unwrap();
        let (key, bytes) = kept?;
        let text = String::from_utf8(world.artifacts.get(&key).await.unwrap().to_vec()).unwrap();
        assert_eq!(text.len(), bytes as usize);
        Some(text)
    };
    let file = world.data.path().join("talker.pt");
    common::torchscript::write_model(&file, "print(\"hello from the model\")");
    let talker = world.add_model(&file, &digits_spec()).await;
    let worker = world.worker();
    world.until_checked(talker.id).await;
    let clean = world.submit(talker.id, &gauntlet::protocol::builtin("clean").unwrap(), FIRST, 40, &[0]).await;
    assert_eq!(world.until_ended(clean).await.state, State::Succeeded);
    let text = log("results").await.unwrap();
    for part in ["attempt 1 on worker", "loading the model", "done after", "hello from the model"] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }

    let busy = world.add_model(&repository("models/digits/robust.pt"), &digits_spec()).await;
    world.until_checked(busy.id).await;
    let mut slow = slow_protocol();
    slow.clean = None;
    slow.attack[0].epsilon = serde_json::from_str("[0.001]").unwrap();
    let id = world.submit(busy.id, &slow, FIRST, 200, &[0]).await;
    world.until_true("select exists (select 1 from shards where state = 'running')").await;
    let start = Instant::now();
    // Once it has computed for longer than it takes to start.
    while !worker.children().iter().any(|child| processor_seconds(*child) > 3.0) {
        assert!(start.elapsed() < Duration::from_secs(60), "no evaluator computes");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    worker.children().into_iter().for_each(|child| kill(Pid::from_raw(child), Signal::SIGKILL).unwrap_or_default());
    world.until_true("select exists (select 1 from shard_attempts where outcome = 'failed')").await;
    let text = log("failed").await.unwrap();
    assert!(text.contains("failed: evaluator_") && text.contains("SIGKILL"), "{text}");
    world.until_true("select exists (select 1 from shards where state = 'running')").await;
    queue::cancel(&world.pool, None, id).await.unwrap();
    world.until_ended(id).await;
    world.until_true("select exists (select 1 from shard_attempts where outcome = 'stopped')").await;
}

#[tokio::test]
async fn work_that_another_platform_has_begun_meanwhile_is_given_back_uncounted() {
    let world = World::new().await;
    world.import_digits().await;
    let model = world.add_model(&repository("models/digits/standard.pt"), &digits_spec()).await;
    // A worker of another platform is a moment faster in fixing the profile.
    for statement in [
        "create function be_faster() returns trigger language plpgsql as $$
         begin new.profile = jsonb_set(new.profile, '{hardware}', '\"another machine\"'); return new; end $$",
        "create trigger faster before update of profile on evaluations for each row
         when (old.profile is null and new.profile is not null) execute function be_faster()",
    ] {
        sqlx::query(statement).execute(&world.pool).await.unwrap();
    }
    let _worker = world.worker();
    world.until_checked(model.id).await;
    let id = world.submit(model.id, &protocol(), FIRST, 40, &[0]).await;
    world.until(id, |e| e.profile.is_some()).await;
    let given_back = "select count(*) filter (where state = 'queued' and attempts = 0) = count(*) from shards";
    world.until_true(given_back).await;
    let evaluation = world.until(id, |_| true).await;
    assert_eq!(evaluation.shards_done, 0);
    let waiting = queue::waiting(&world.pool, &evaluation).await.unwrap().unwrap();
    assert!(waiting.sentence.contains("another machine"), "{waiting:?}");
}

#[tokio::test]
async fn a_model_is_not_rejected_for_its_machines_faults() {
    let world = World::new().await;
    let path = repository("models/digits/standard.pt");
    let model = world.add_model(&path, &digits_spec()).await;
    let stored = world.artifacts.model_file(&model.sha256).await.unwrap();
    let aside = world.data.path().join("aside");
    std::fs::rename(&stored, &aside).unwrap();
    let _worker = world.worker();
    world.until_true("select check_attempts >= 2 from models").await;
    std::fs::rename(&aside, &stored).unwrap();
    let checked = world.until_checked(model.id).await;
    assert_eq!(checked.state, "ready", "{:?}", checked.rejection);
}

#[tokio::test]
async fn leases_of_the_dead_are_taken_back_while_the_living_work() {
    let world = World::new().await;
    world.import_digits().await;
    let model = world.add_model(&repository("models/digits/robust.pt"), &digits_spec()).await;
    let _worker = world.worker();
    world.until_checked(model.id).await;
    world.pretend_speed(model.id, 1e3).await;
    let mut slow = slow_protocol();
    slow.clean = None;
    slow.attack[0].epsilon = serde_json::from_str("[0.001]").unwrap();
    let id = world.submit(model.id, &slow, 0, 200, &[0]).await;
    // Beside the worker's lease, one of a worker that is never heard of again.
    world.until(id, |e| e.profile.is_some()).await;
    let platform = world.until(id, |_| true).await.profile.unwrap().0.platform;
    let capabilities = Capabilities { device: Device::Cpu, gpu_memory_bytes: None, labels: Labels::new() };
    let (worker, prefers) = (uuid::Uuid::new_v4(), None);
    let claimant = Claimant { worker, platform: &platform, capabilities: &capabilities, prefers };
    let dead = queue::claim(&world.pool, &claimant, Duration::from_millis(1)).await;
    let shard = dead.unwrap().unwrap().lease.shard;
    world.until_true(&format!("select state = 'queued' and attempts = 1 from shards where id = {shard}")).await;
    // All the while the worker was busy with its first shard.
    world.until_true("select count(*) = 1 and min(attempts) = 1 from shards where state = 'running'").await;
    assert_eq!(world.until(id, |_| true).await.shards_done, 0);
}

/// Whether every shard was done at its first attempt.
const UNDISTURBED: &str =
    "select min(attempts) = 1 and max(attempts) = 1 and count(*) filter (where state = 'done') = count(*) from shards";

#[tokio::test]
async fn a_store_whose_answers_take_longer_than_a_lease_costs_no_attempt() {
    let world = World::new().await;
    world.import_digits().await;
    let model = world.add_model(&repository("models/digits/standard.pt"), &digits_spec()).await;
    let (library, slow) = (preloadable(&world, "tests/common/slow_store.c"), world.data.path().join("slow"));
    let _worker = world.worker_with(&[
        ("LD_PRELOAD", library.to_str().unwrap()),
        ("SLOW_STORE_SECONDS", "2.1"),
        ("SLOW_STORE_WHILE", slow.to_str().unwrap()),
        ("GAUNTLET_LEASE_SECONDS", "2"),
    ]);
    world.until_checked(model.id).await;
    std::fs::write(&slow, "").unwrap();
    let id = world.submit(model.id, &gauntlet::protocol::builtin("clean").unwrap(), FIRST, 40, &[0]).await;
    assert_eq!(world.until_ended(id).await.state, State::Succeeded);
    world.until_true(UNDISTURBED).await;
    // Images, model and verdicts were waited for.
    world.until_true("select min(seconds) > 3 from shards").await;
    assert_eq!(world.verdicts(id).await.len(), 40);
}

#[tokio::test]
async fn a_lost_device_costs_no_attempt_and_one_that_fails_under_a_shard_alone_does() {
    let world = World::new().await;
    world.import_digits().await;
    let model = world.add_model(&repository("models/digits/standard.pt"), &digits_spec()).await;
    let evaluator = sleeping_evaluator(&world, 3.0);
    let (lost, faulty) = (evaluator.with_file_name("lost"), evaluator.with_file_name("faulty"));
    let settings = [("GAUNTLET_EVALUATOR", evaluator.to_str().unwrap()), ("GAUNTLET_SANDBOX", "off")];
    let _worker = world.worker_with(&settings);
    world.until_checked(model.id).await;
    let clean = gauntlet::protocol::builtin("clean").unwrap();
    let id = world.submit(model.id, &clean, 0, 64, &[0]).await;
    world.until_true("select exists (select 1 from shards where state = 'running' and progress > 0)").await;
    std::fs::write(&lost, "").unwrap();
    let given_back =
        "select count(*) = 1 from events where kind = 'attempt_failed' and data ->> 'code' = 'device_failed'";
    world.until_true(given_back).await;
    // The worker takes nothing while it waits for its device.
    world.until_true("select count(*) = 2 from shards where state = 'queued' and attempts = 0").await;
    std::fs::remove_file(&lost).unwrap();
    assert_eq!(world.until_ended(id).await.state, State::Succeeded);
    world.until_true(UNDISTURBED).await;

    std::fs::write(&faulty, "").unwrap();
    let hopeless = world.submit(model.id, &clean, 0, 32, &[0]).await;
    for attempt in 1..queue::MAX_ATTEMPTS {
        let failed = "select state = 'queued' and attempts =";
        world.until_true(&format!("{failed} {attempt} from shards where evaluation_id = '{hopeless}'")).await;
        sqlx::query("update shards set not_before = now()").execute(&world.pool).await.unwrap();
    }
    let ended = world.until_ended(hopeless).await;
    let outcome = ended.outcome.unwrap().0;
    assert_eq!((ended.state, outcome.code.as_str()), (State::Failed, "device_failed"));
    assert!(outcome.detail.contains("device-side assert"), "{outcome:?}");
}

/// Takes from a process all memory of its group that it does not use at this moment; `false` if it has no group of its own.
fn squeeze(pid: i32) -> bool {
    let name = format!("gauntlet-evaluator-{pid}");
    let found = Command::new("find").args(["/sys/fs/cgroup", "-type", "d", "-name", &name]).output().unwrap().stdout;
    let Some(group) = String::from_utf8(found).unwrap().lines().next().map(std::path::PathBuf::from) else {
        return false;
    };
    for (used, limit) in [("memory.current", "memory.max"), ("memory.usage_in_bytes", "memory.limit_in_bytes")] {
        if let Ok(bytes) = std::fs::read_to_string(group.join(used)) {
            // Refused where it has just begun to use more.
            std::fs::write(group.join(limit), bytes.trim()).ok();
        }
    }
    true
}

#[tokio::test]
async fn after_the_kernel_has_killed_an_evaluator_for_memory_the_evaluation_starts_over_with_half_the_batch() {
    let world = World::new().await;
    world.import_digits().await;
    let model = world.add_model(&repository("models/digits/standard.pt"), &digits_spec()).await;
    let worker = world.worker();
    world.until_checked(model.id).await;
    world.pretend_speed(model.id, 1e-9).await;
    let mut long = slow_protocol();
    long.clean = None;
    long.attack[0].epsilon = serde_json::from_str("[0.05]").unwrap();
    long.attack[0].steps = Some(200);
    let id = world.submit(model.id, &long, FIRST, 128, &[0]).await;
    let batch = world.until(id, |e| e.profile.is_some()).await.profile.unwrap().0.batch;
    let start = Instant::now();
    let restarted = loop {
        let evaluation = world.until(id, |_| true).await;
        assert!(
            !evaluation.state.is_terminal() && start.elapsed() < Duration::from_secs(60),
            "{:?}",
            evaluation.outcome
        );
        if evaluation.generation > 0 {
            break evaluation;
        }
        let evaluator = worker.children().first().copied();
        let alive = |pid: &i32| std::path::Path::new("/proc").join(pid.to_string()).exists();
        if let Some(pid) = evaluator.filter(alive).filter(|pid| !squeeze(*pid) && alive(pid)) {
            eprintln!("evaluator {pid} has no control group for memory here: nothing was tried");
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert_eq!((restarted.generation, restarted.batch_limit), (1, Some(batch as i32 / 2)));
    let ended = world.until_ended(id).await;
    assert_eq!((ended.state, ended.profile.unwrap().0.batch), (State::Succeeded, batch / 2), "{:?}", ended.outcome);
    assert_eq!(world.verdicts(id).await.len(), 128);
    world.until_true(UNDISTURBED).await;
}

/// Starts a script in the evaluator's place. Descriptor 3 is its socket.
async fn impostor(world: &World, script: &str, no_progress: Duration) -> ChildError {
    let path = world.data.path().join("impostor");
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let options = ChildOptions {
        binary: path,
        device: Device::Cpu,
        threads: 1,
        choose_threads: false,
        confinement: None,
        checkpoint: Duration::ZERO,
        no_progress,
        wall: Duration::MAX,
    };
    Child::start(&options, None).await.err().expect("an impostor does not start")
}

#[tokio::test]
async fn crash_hang_garbage_and_absence_have_different_names() {
    let world = World::new().await;
    let patient = Duration::from_secs(60);
    let crash = impostor(&world, "echo 'something broke' >&2; kill -SEGV $$", patient).await;
    assert_eq!(crash.code(), "evaluator_crashed");
    assert!(crash.to_string().contains("signal: 11") && crash.to_string().contains("something broke"), "{crash}");
    let exit = impostor(&world, "exit 7", patient).await;
    assert!(exit.code() == "evaluator_crashed" && exit.to_string().contains("7"), "{exit}");
    let hang = impostor(&world, "exec sleep 600", Duration::from_millis(300)).await;
    assert_eq!(hang.code(), "no_progress");
    let path = world.data.path().join("impostor");
    let wall = Duration::from_millis(300);
    let lively = ChildOptions {
        binary: path,
        device: Device::Cpu,
        threads: 1,
        choose_threads: false,
        confinement: None,
        checkpoint: Duration::ZERO,
        no_progress: patient,
        wall,
    };
    assert_eq!(Child::start(&lively, None).await.err().unwrap().code(), "wall_time");
    let garbage = impostor(&world, "head -c 4096 /dev/zero | tr '\\0' 'x' >&3; exec sleep 600", patient).await;
    assert_eq!(garbage.code(), "protocol_violation");
    let absent = ChildOptions {
        binary: "/does/not/exist".into(),
        device: Device::Cpu,
        threads: 1,
        choose_threads: false,
        confinement: None,
        checkpoint: Duration::ZERO,
        no_progress: patient,
        wall: Duration::MAX,
    };
    assert_eq!(Child::start(&absent, None).await.err().unwrap().code(), "evaluator_not_started");
}

/// Forward passes that a worker's evaluators have reported.
async fn forwards(metrics: &str) -> u64 {
    let text = reqwest::get(format!("http://{metrics}/metrics")).await.unwrap().text().await.unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("gauntlet_engine_forwards_total "));
    line.expect("workers count forwards").trim().parse().unwrap()
}

#[tokio::test]
async fn a_shard_interrupted_in_the_middle_of_an_attack_goes_on_there() {
    rustls::crypto::ring::default_provider().install_default().ok();
    let world = World::new().await;
    world.import_digits().await;
    let model = world.add_model(&repository("models/digits/robust.pt"), &digits_spec()).await;
    let often = ("GAUNTLET_CHECKPOINT_MILLISECONDS", "150");
    let mut first = world.worker_with(&[often]);
    world.until_checked(model.id).await;
    world.pretend_speed(model.id, 1e-9).await;
    let protocol = Protocol::from_toml(
        r#"
            name = "long"
            second_opinion = 0
            [[attack]]
            norm = "linf"
            epsilon = [0.1]
            cascade = [{ attack = "apgd-ce", steps = 30 }, { attack = "square", queries = 3000 }]
        "#,
        &[],
    )
    .unwrap();
    let id = world.submit(model.id, &protocol, FIRST, 40, &[5]).await;

    // Several checkpoints on, so that trajectories are frozen in it; then everything dies at once.
    let folder = world.data.path().join("artifacts/checkpoints").join(id.to_string());
    let written = || {
        // A file that is being written has a # in its name.
        let whole = |file: &std::fs::DirEntry| !file.file_name().to_string_lossy().contains('#');
        let file = std::fs::read_dir(&folder).ok()?.flatten().find(whole)?;
        file.metadata().ok()?.modified().ok()
    };
    let versions = std::cell::RefCell::new(std::collections::BTreeSet::new());
    world
        .until(id, |evaluation| {
            assert!(!evaluation.state.is_terminal(), "it ended before it could be interrupted");
            versions.borrow_mut().extend(written());
            versions.borrow().len() >= 4
        })
        .await;
    first.kill();
    let metrics = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let _second = world.worker_with(&[often, ("GAUNTLET_WORKER_METRICS_LISTEN", &metrics)]);
    let ended = world.until_ended(id).await;
    assert_eq!((ended.state, ended.shards_total), (State::Succeeded, 1), "{:?}", ended.outcome);
    // It goes after the commit.
    let since = Instant::now();
    while written().is_some() {
        assert!(since.elapsed() < Duration::from_secs(30), "the checkpoint is still there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    // The second worker did not do the first one's work again, and it comes to what an undisturbed run comes to.
    let interrupted = world.verdicts(id).await;
    let all: u64 = interrupted.values().map(|row| u64::from(row.verdict.forwards)).sum();
    let redone = forwards(&metrics).await;
    assert!(redone < all, "{redone} forwards after the interruption, {all} in all");
    let again = world.submit(model.id, &protocol, FIRST, 40, &[5]).await;
    assert_eq!(world.until_ended(again).await.state, State::Succeeded);
    assert_eq!(world.verdicts(again).await, interrupted);
}
