//! How throughput grows with workers, what the loss of one costs, and how well `gauntlet simulate` foretells it. Measurements of
//! minutes, so they are asked for: `cargo test --test scaling -- --ignored --nocapture --test-threads 1`.

mod common;

use std::path::PathBuf;

use common::world::{Worker, World, digits_spec, repository, sleeping_evaluator};
use gauntlet::protocol::builtin;
use gauntlet::simulate::{Fleet, Forecast, History, Job, Rates, shards, simulate};
use gauntlet::store::evaluations::{self, State};
use gauntlet::store::shards::timed;
use nix::sys::signal::Signal;
use uuid::Uuid;

const SHARD_SECONDS: f64 = 6.0;
const SHARDS_PER_WORKER: u32 = 10;
const LEASE_SECONDS: u64 = 20;
/// The smallest shard there is.
const IMAGES: u32 = 32;

/// An evaluator that sleeps, in a folder of its own.
fn sleeper(world: &World, uneven: bool) -> PathBuf {
    let program = sleeping_evaluator(world, SHARD_SECONDS);
    if uneven {
        std::fs::write(program.with_file_name("uneven"), "").unwrap();
    }
    program
}

async fn crew(world: &World, evaluator: &std::path::Path, count: u32) -> Vec<Worker> {
    let lease = LEASE_SECONDS.to_string();
    let settings = [
        ("GAUNTLET_EVALUATOR", evaluator.to_str().unwrap()),
        ("GAUNTLET_SANDBOX", "off"),
        ("GAUNTLET_LEASE_SECONDS", &lease),
        ("GAUNTLET_POLL_MILLISECONDS", "200"),
    ];
    let crew = (0..count).map(|_| world.worker_with(&settings)).collect();
    world.until_true(&format!("select count(*) = {count} from workers")).await;
    crew
}

/// Ends workers politely, so that none is left in the table.
async fn dismiss(world: &World, crew: Vec<Worker>) {
    crew.iter().for_each(|worker| worker.signal(Signal::SIGTERM));
    crew.into_iter().for_each(|mut worker| assert!(worker.wait().success()));
    world.until_true("select count(*) = 0 from workers").await;
}

/// From the first claim to the last commit.
async fn took(world: &World, id: Uuid) -> f64 {
    let sql = "select extract(epoch from max(s.finished_at) - e.started_at)::float8 from shards s
               join evaluations e on e.id = s.evaluation_id where e.id = $1 group by e.started_at";
    sqlx::query_scalar(sql).bind(id).fetch_one(&world.pool).await.unwrap()
}

/// As many sleeping shards as workers have turns.
async fn submit_sleep(world: &World, model: Uuid, shards: u32) -> Uuid {
    let seeds: Vec<i64> = (0..i64::from(shards / SHARDS_PER_WORKER)).collect();
    let id = world.submit(model, &builtin("clean").unwrap(), 0, IMAGES * SHARDS_PER_WORKER, &seeds).await;
    assert_eq!(world.until(id, |e| e.planned).await.shards_total as u32, shards);
    id
}

async fn finished(world: &World, id: Uuid) -> f64 {
    // Longer than a test's usual patience.
    while world.until(id, |_| true).await.shards_done < world.until(id, |_| true).await.shards_total {
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    assert_eq!(world.until_ended(id).await.state, State::Succeeded);
    took(world, id).await
}

/// Once asked to end, a worker finishes its shard and takes no other; asked twice, it gives the shard back, uncounted.
#[tokio::test]
async fn a_preempted_worker_loses_nothing_that_it_is_given_the_time_for() {
    let world = World::new().await;
    world.import_digits().await;
    let evaluator = sleeper(&world, false);
    let model = world.add_model(&repository("models/digits/standard.pt"), &digits_spec()).await.id;
    let id = {
        let mut worker = crew(&world, &evaluator, 1).await.remove(0);
        world.until_checked(model).await;
        let id = submit_sleep(&world, model, SHARDS_PER_WORKER).await;
        world.until_true("select count(*) = 1 from shards where state = 'running'").await;
        worker.signal(Signal::SIGTERM);
        assert!(worker.wait().success());
        id
    };
    assert_eq!(world.until(id, |_| true).await.shards_done, 1);
    let untouched = "select count(*) = 9 from shards where state = 'queued' and attempts = 0";
    world.until_true(untouched).await;

    std::fs::write(evaluator.with_file_name("seconds"), "600").unwrap();
    let mut worker = crew(&world, &evaluator, 1).await.remove(0);
    world.until_true("select count(*) = 1 from shards where state = 'running'").await;
    worker.signal(Signal::SIGTERM);
    // Two signals that are sent as one arrive as one.
    world.until_true("select bool_and(draining) from workers").await;
    worker.signal(Signal::SIGTERM);
    assert!(worker.wait().success());
    assert_eq!(world.until(id, |_| true).await.shards_done, 1);
    world.until_true(untouched).await;
}

/// Real workers, a real queue, an evaluator that sleeps: what is measured is everything but computing.
#[tokio::test]
#[ignore = "takes seven minutes"]
async fn throughput_is_linear_to_sixteen_workers_and_a_lost_one_costs_less_than_its_lease() {
    let world = World::new().await;
    world.import_digits().await;
    let evaluator = sleeper(&world, false);
    let model = world.add_model(&repository("models/digits/standard.pt"), &digits_spec()).await.id;
    let first = crew(&world, &evaluator, 1).await;
    assert_eq!(world.until_checked(model).await.state, "ready");
    dismiss(&world, first).await;

    let (mut alone, mut undisturbed) = (0.0, 0.0);
    println!("| workers | shards | seconds | shards/s | of linear |\n|---|---|---|---|---|");
    for workers in [1, 2, 4, 8, 16] {
        let crew = crew(&world, &evaluator, workers).await;
        let shards = workers * SHARDS_PER_WORKER;
        let id = submit_sleep(&world, model, shards).await;
        let seconds = finished(&world, id).await;
        dismiss(&world, crew).await;
        let throughput = f64::from(shards) / seconds;
        alone = if workers == 1 { throughput } else { alone };
        undisturbed = seconds;
        let share = throughput / alone / f64::from(workers);
        println!("| {workers} | {shards} | {seconds:.1} | {throughput:.3} | {share:.3} |");
        assert!(share >= 0.95, "{workers} workers reach {share:.3} of linear");
    }

    let mut crew = crew(&world, &evaluator, 16).await;
    let id = submit_sleep(&world, model, 16 * SHARDS_PER_WORKER).await;
    let middle = 16 * SHARDS_PER_WORKER as i32 / 2;
    world.until(id, |e| e.shards_done >= middle).await;
    crew[3].kill();
    let seconds = finished(&world, id).await;
    let (attempts, lost): (i64, i64) = sqlx::query_as(
        "select sum(attempts), count(*) filter (where attempts > 1) from shards where evaluation_id = $1",
    )
    .bind(id)
    .fetch_one(&world.pool)
    .await
    .unwrap();
    // What fifteen workers could not do in the second half is not the loss's cost, but their number's.
    let fair = undisturbed / 2.0 + undisturbed / 2.0 * 16.0 / 15.0;
    println!(
        "16 workers, one killed in the middle and not replaced: {seconds:.1} s, {:.1} s more than 15 would have taken from then on; \
         lease {LEASE_SECONDS} s, {attempts} attempts, {lost} shard(s) done again",
        seconds - fair
    );
    assert_eq!((attempts, lost), (i64::from(16 * SHARDS_PER_WORKER) + 1, 1));
    assert!(seconds - fair < LEASE_SECONDS as f64, "the loss cost {:.1} s", seconds - fair);
}

/// What the simulator says of `evaluation` done by so many workers, from the shard times of one that was measured.
async fn foretold(world: &World, measured: Uuid, evaluation: Uuid, workers: u32, devices: u32) -> Forecast {
    let history = History::of(&timed(&world.pool, measured).await.unwrap());
    let wanted = evaluations::get(&world.pool, evaluation).await.unwrap().unwrap();
    let model = gauntlet::store::models::get(&world.pool, None, wanted.model_id).await.unwrap().unwrap();
    let images = wanted.first_image as u32..(wanted.first_image + wanted.images) as u32;
    let work = evaluations::workload(&model, &wanted.conditions, &wanted.seeds, images);
    let rates = Rates { corrupted_per_second: None, measured: history.per_image };
    let (shards, unmeasured) = shards(&work, &rates);
    assert_eq!(unmeasured, 0);
    let job = Job { owner: wanted.owner, model: model.id, priority: 0, shards };
    let (load_seconds, between_seconds) = (history.load_seconds, history.between_seconds);
    simulate(&[job], &Fleet { workers, devices, load_seconds, between_seconds })
}

/// Sleeping shards of two lengths: the queue alone.
#[tokio::test]
#[ignore = "takes five minutes"]
async fn the_simulator_foretells_sleeping_workers() {
    let world = World::new().await;
    world.import_digits().await;
    let evaluator = sleeper(&world, true);
    let model = world.add_model(&repository("models/digits/standard.pt"), &digits_spec()).await.id;
    let mut measured = None;
    println!("| workers | foretold | measured | ratio |\n|---|---|---|---|");
    for workers in [1, 2, 3, 4, 16] {
        let crew = crew(&world, &evaluator, workers).await;
        world.until_checked(model).await;
        // 32 images a shard, and one more, so that they begin at odd and even images.
        let id = world.submit(model, &builtin("clean").unwrap(), 0, 33 * 20, &[0]).await;
        let seconds = finished(&world, id).await;
        dismiss(&world, crew).await;
        let told = foretold(&world, *measured.get_or_insert(id), id, workers, workers).await.seconds;
        println!("| {workers} | {told:.1} s | {seconds:.1} s | {:.3} |", told / seconds);
        assert!((0.9..1.1).contains(&(told / seconds)), "{workers}: {told:.1} s foretold, {seconds:.1} s measured");
    }
}
