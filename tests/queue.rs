//! The lease queue on a real database.

mod common;

use std::collections::HashSet;
use std::time::Duration;

use common::bench::{Bench, LEASE, capabilities, enforced, platform, profile};
use gauntlet::dataset::Catalogue;
use gauntlet::protocol::{Capabilities, Needs, Platform, builtin};
use gauntlet::queue::{self, Claimed, Failure, LeaseError, Order, Outage, Reaped};
use gauntlet::store::evaluations::{self, Evaluation, NewEvaluation, State, SubmitError, WitnessPolicy};
use gauntlet::store::models::{ProbeReport, Rejection};
use gauntlet::store::workers::SandboxState;
use gauntlet::store::{Quotas, events};
use serde_json::json;
use sqlx::types::Json;
use uuid::Uuid;

const ALL_ROBUST: fn(&str, u32) -> bool = |_, _| true;

async fn read(bench: &Bench, id: Uuid) -> Evaluation {
    evaluations::get(&bench.pool, id).await.unwrap().unwrap()
}

/// How many shards of an evaluation are in each state, e.g. `queued 3, running 1`.
async fn shards(bench: &Bench, id: Uuid) -> String {
    let sql = "select coalesce(string_agg(state || ' ' || n, ', ' order by state), '') from
               (select state, count(*) as n from shards where evaluation_id = $1 group by state) as counts";
    sqlx::query_scalar(sql).bind(id).fetch_one(&bench.pool).await.unwrap()
}

/// An evaluation of one shard.
async fn small(bench: &Bench, model: Uuid) -> Uuid {
    bench.evaluation(model, json!({"protocol": "clean", "set": {}, "images": 20})).await
}

fn crash() -> Failure {
    Failure::Transient { code: "child_crashed".into(), detail: "signal 11".into() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_shard_is_leased_once_however_many_workers_ask() {
    let bench = std::sync::Arc::new(Bench::start().await);
    let model = bench.ready_model("m").await;
    bench.evaluation(model, json!({"seeds": [0, 1, 2, 3, 4, 5, 6, 7]})).await;
    let workers = (0..12).map(|_| {
        let bench = bench.clone();
        tokio::spawn(async move {
            let mut leased = Vec::new();
            while let Some(claimed) = bench.claim().await {
                leased.push(claimed.lease.shard);
            }
            leased
        })
    });
    let leased: Vec<i64> = futures::future::join_all(workers).await.into_iter().flat_map(Result::unwrap).collect();
    assert_eq!((leased.len(), leased.iter().collect::<HashSet<_>>().len()), (32, 32));
}

#[tokio::test]
async fn whoever_lost_the_lease_changes_nothing() {
    let bench = Bench::start().await;
    let model = bench.ready_model("m").await;
    let evaluation = small(&bench, model).await;
    let stale = bench.claim().await.unwrap();
    let result = bench.result(&stale, &|_, _| false).await;
    bench.expire_leases().await;
    assert_eq!(queue::reap(&bench.pool).await.unwrap(), [Reaped::Requeued]);
    let fresh = bench.claim().await.unwrap();
    assert_eq!((fresh.lease.shard, fresh.lease.attempt), (stale.lease.shard, 2));
    let lost = |outcome: Result<(), LeaseError>| assert!(matches!(outcome, Err(LeaseError::Lost)));
    lost(stale.lease.heartbeat(&bench.pool, 1).await.map(drop));
    lost(stale.lease.fix_profile(&bench.pool, &profile(8)).await.map(drop));
    lost(stale.lease.clone().fail(&bench.pool, &crash()).await);
    lost(stale.lease.clone().release(&bench.pool).await);
    lost(stale.lease.commit(&bench.pool, &result).await.map(drop));
    assert_eq!(shards(&bench, evaluation).await, "running 1");
    let again = fresh.lease.clone();
    bench.finish(fresh, &ALL_ROBUST).await;
    lost(again.commit(&bench.pool, &result).await.map(drop));
    let tallies = evaluations::tallies(&bench.pool, evaluation).await.unwrap();
    assert_eq!((tallies.len(), tallies[0].2.n, tallies[0].2.correct), (1, 20, 20));
    assert_eq!(read(&bench, evaluation).await.state, State::Succeeded);
}

#[tokio::test]
async fn owners_take_turns_and_priority_goes_before_turns() {
    let bench = Bench::start().await;
    let model = bench.ready_model("m").await;
    let mut evaluations = Vec::new();
    for (owner, priority) in [("greedy", 0), ("greedy", 0), ("modest", 0), ("urgent", 1)] {
        let id = bench.evaluation(model, json!({"images": 20, "priority": priority})).await;
        sqlx::query("update evaluations set owner = $2 where id = $1")
            .bind(id)
            .bind(owner)
            .execute(&bench.pool)
            .await
            .unwrap();
        evaluations.push(id);
    }
    let mut served = Vec::new();
    while let Some(Claimed { lease, .. }) = bench.claim().await {
        served.push(evaluations.iter().position(|id| *id == lease.evaluation).unwrap());
    }
    // Two shards each. Urgent first; then the owner with less running, and in a tie the older evaluation.
    assert_eq!(served, [3, 3, 0, 2, 0, 2, 1, 1]);
}

fn offer(json: serde_json::Value) -> Capabilities {
    serde_json::from_value(json).unwrap()
}

const GIB: u64 = 1 << 30;

#[tokio::test]
async fn a_model_is_checked_where_what_waits_for_it_can_run_and_the_right_class_is_started() {
    let bench = Bench::start().await;
    let (small, large) = (
        json!({"device": "cuda", "gpu_memory_bytes": 20 * GIB}),
        json!({"device": "cuda", "gpu_memory_bytes": 70 * GIB}),
    );
    let wanted = async |class: &serde_json::Value, rather: Option<&serde_json::Value>| -> i64 {
        let sql = "select report.wanted($1, $2)";
        let query = sqlx::query_scalar(sql).bind(Json(class)).bind(rather.map(Json));
        query.fetch_one(&bench.pool).await.unwrap()
    };
    let big = bench.model("big").await;
    let request = json!({"images": 20, "protocol": "clean", "set": {}, "needs": {"gpu_memory_bytes": 40 * GIB}});
    bench.evaluation(big, request).await;
    assert_eq!((wanted(&small, None).await, wanted(&large, Some(&small)).await), (0, 1));
    assert!(queue::claim_check(&bench.pool, &offer(small.clone()), LEASE).await.unwrap().is_none());
    let check = queue::claim_check(&bench.pool, &offer(large.clone()), LEASE).await.unwrap().unwrap();
    let probe = ProbeReport { seconds_per_forward: 3.0, calibration: None };
    check.accept(&bench.pool, &[], &probe).await.unwrap();
    let modest = bench.ready_model("modest").await;
    // A model that nothing waits for is the smaller class' business.
    bench.model("other").await;
    assert_eq!((wanted(&small, None).await, wanted(&large, Some(&small)).await), (1, 1));
    // What needs nothing is the smaller class' too, until it has begun on other hardware.
    let evaluation = bench.evaluation(modest, json!({"images": 20, "protocol": "clean", "set": {}})).await;
    let [small, large] = [(small, "A10"), (large, "H100")].map(|(mut class, hardware)| {
        class["hardware"] = json!(hardware);
        class
    });
    let before = (wanted(&small, None).await, wanted(&large, Some(&small)).await);
    let sql = "update evaluations set profile = jsonb_build_object('device', 'cuda', 'hardware', 'H100') where id = $1";
    sqlx::query(sql).bind(evaluation).execute(&bench.pool).await.unwrap();
    let after = (wanted(&small, None).await, wanted(&large, Some(&small)).await);
    assert_eq!((after.0, after.1), (before.0 - 1, before.1 + 1));
}

#[tokio::test]
async fn an_evaluation_goes_only_to_workers_that_meet_its_needs_and_says_what_is_missing() {
    let bench = Bench::start().await;
    let model = bench.ready_model("m").await;
    let needs = json!({"device": "cuda", "gpu_memory_bytes": 40 * GIB, "labels": {"gpu": "h100"}});
    let needy = bench.evaluation(model, json!({"images": 20, "needs": needs})).await;
    let offers = [
        json!({"device": "cpu", "labels": {"gpu": "h100"}}),
        json!({"device": "cuda", "gpu_memory_bytes": 24 * GIB, "labels": {"gpu": "h100"}}),
        json!({"device": "cuda", "gpu_memory_bytes": 80 * GIB, "labels": {"gpu": "a100"}}),
        json!({"device": "cuda", "labels": {"gpu": "h100"}}),
        json!({"device": "cuda", "gpu_memory_bytes": 80 * GIB, "labels": {"gpu": "h100", "zone": "b"}}),
    ];
    let parsed: Needs = serde_json::from_value(needs.clone()).unwrap();
    let told = async || queue::waiting(&bench.pool, &read(&bench, needy).await).await.unwrap().unwrap();
    let mut capable = 0;
    for offered in offers.clone() {
        let offered = offer(offered);
        bench.announce_one(&SandboxState::Known(enforced()), &offered).await;
        let waiting = told().await;
        let claimed = bench.claim_as(&platform(), &offered, None).await;
        // The database and the code judge alike.
        assert_eq!(claimed.is_some(), parsed.met_by(&offered), "{offered:?}");
        match claimed {
            Some(claimed) => {
                capable += 1;
                assert_eq!(waiting.code, "queue", "{waiting:?}");
                claimed.lease.release(&bench.pool).await.unwrap();
            }
            None => {
                let missing = "has the device cuda, 40 GiB of GPU memory, the label gpu=h100";
                assert!(waiting.code == "needs" && waiting.sentence.contains(missing), "{waiting:?}");
            }
        }
    }
    assert_eq!(capable, 1);
    let biggest = bench.evaluation(model, json!({"images": 20, "needs": {"gpu_memory_bytes": 96 * GIB}})).await;
    let waiting = queue::waiting(&bench.pool, &read(&bench, biggest).await).await.unwrap().unwrap();
    assert!(waiting.sentence.contains("96 GiB of GPU memory (the largest GPU has 80 GiB)"), "{waiting:?}");

    // Autoscalers of each class see what their workers could take, and nothing else.
    bench.evaluation(model, json!({"images": 20})).await;
    for (class, wanted) in offers.into_iter().zip([2, 2, 2, 2, 4]) {
        let found: i64 =
            sqlx::query_scalar("select report.wanted($1)").bind(Json(&class)).fetch_one(&bench.pool).await.unwrap();
        assert_eq!(found, wanted, "{class}");
    }
    let class = json!({"device": "cuda", "gpu_memory_bytes": 96 * GIB});
    let found: i64 =
        sqlx::query_scalar("select report.wanted($1)").bind(Json(class)).fetch_one(&bench.pool).await.unwrap();
    assert_eq!(found, 4, "96 GiB without a label: the biggest and the undemanding");
    let found: i64 = sqlx::query_scalar("select report.wanted($1, $2)")
        .bind(Json(json!({"device": "cuda", "gpu_memory_bytes": 96 * GIB})))
        .bind(Json(json!({"device": "cuda", "gpu_memory_bytes": 24 * GIB})))
        .fetch_one(&bench.pool)
        .await
        .unwrap();
    assert_eq!(found, 2, "what smaller GPUs can take is left to them");
}

#[tokio::test]
async fn workers_that_are_all_busy_are_a_reason_to_wait() {
    let bench = Bench::start().await;
    let model = bench.ready_model("m").await;
    bench.announce_worker().await;
    let worker: Uuid = sqlx::query_scalar("select id from workers").fetch_one(&bench.pool).await.unwrap();
    small(&bench, model).await;
    let running = bench.claim().await.unwrap();
    sqlx::query("update shards set worker_id = $1").bind(worker).execute(&bench.pool).await.unwrap();
    let urgent = bench.evaluation(model, json!({"images": 20, "priority": 1})).await;
    let told = async || queue::waiting(&bench.pool, &read(&bench, urgent).await).await.unwrap().unwrap();
    assert_eq!(told().await.sentence, "every worker is busy (1 of 1)");
    bench.finish(running, &ALL_ROBUST).await;
    assert_eq!(told().await.sentence, "a worker will take it within seconds");
}

/// An evaluation of this many shards.
async fn long(bench: &Bench, model: Uuid, shards: usize) -> Uuid {
    let seeds: Vec<usize> = (0..shards).collect();
    bench.evaluation(model, json!({"protocol": "clean", "set": {}, "images": 20, "seeds": seeds})).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn commits_at_once_are_counted_and_told_one_after_the_other_and_one_of_them_is_the_last() {
    let bench = std::sync::Arc::new(Bench::start().await);
    let model = bench.ready_model("m").await;
    let evaluation = long(&bench, model, 16).await;
    let mut commits = Vec::new();
    while let Some(claimed) = bench.claim().await {
        let (bench, result) = (bench.clone(), bench.result(&claimed, &ALL_ROBUST).await);
        commits.push(async move { claimed.lease.commit(&bench.pool, &result).await.unwrap() });
    }
    let commits = futures::future::join_all(commits.into_iter().map(tokio::spawn)).await;
    let commits: Vec<_> = commits.into_iter().map(Result::unwrap).collect();
    assert_eq!(commits.iter().filter(|commit| commit.diagnostics.is_some()).count(), 1);
    assert_eq!(commits.iter().filter(|commit| commit.first_result_after.is_some()).count(), 1);
    let ended = read(&bench, evaluation).await;
    assert_eq!((ended.state, ended.shards_done), (State::Succeeded, 16));
    let told = events::after(&bench.pool, evaluation, 0, true).await.unwrap();
    let progress =
        told.iter().filter(|event| event.kind == "progress").map(|event| event.data["shards"]["done"].clone());
    assert_eq!(progress.collect::<Vec<_>>(), (0..=16).map(|done| json!(done)).collect::<Vec<_>>());
    assert_eq!(told.iter().filter(|event| event.kind == "results").count(), 16);
}

#[tokio::test]
async fn a_worker_prefers_the_model_it_has_loaded_among_equals_and_starves_nobody() {
    let bench = Bench::start().await;
    let (old, loaded) = (bench.ready_model("old").await, bench.ready_model("loaded").await);
    let waiting = long(&bench, old, 2).await;
    long(&bench, loaded, 24).await;
    // Without a preference the older evaluation goes first.
    let first = bench.claim().await.unwrap();
    assert_eq!(first.evaluation.id, waiting);
    first.lease.release(&bench.pool).await.unwrap();

    let mut affinity = queue::Affinity::default();
    affinity.took(loaded);
    let mut served = Vec::new();
    for _ in 0..queue::MOST_IN_A_ROW + 2 {
        let claimed = bench.claim_as(&platform(), &capabilities(), affinity.prefers()).await.unwrap();
        affinity.took(claimed.model.id);
        served.push(claimed.model.id);
        bench.finish(claimed, &ALL_ROBUST).await;
    }
    // Its own model up to the bound, then whoever has waited; and that one's model is loaded then.
    let turns = queue::MOST_IN_A_ROW as usize - 1;
    assert!(served[..turns].iter().all(|model| *model == loaded), "{served:?}");
    assert_eq!(served[turns..turns + 2], [old, old], "{served:?}");
    assert_eq!(served[turns + 2], loaded);
}

#[tokio::test]
async fn preference_goes_neither_before_priority_nor_before_fairness() {
    let bench = Bench::start().await;
    let (loaded, other) = (bench.ready_model("loaded").await, bench.ready_model("other").await);
    let claim = async || bench.claim_as(&platform(), &capabilities(), Some(loaded)).await.unwrap();
    long(&bench, loaded, 8).await;
    let first = claim().await;
    assert_eq!(first.model.id, loaded);
    // An owner of whom nothing runs goes before one of whom something does.
    let modest = long(&bench, other, 1).await;
    sqlx::query("update evaluations set owner = 'modest' where id = $1")
        .bind(modest)
        .execute(&bench.pool)
        .await
        .unwrap();
    assert_eq!(claim().await.evaluation.id, modest);
    let urgent = bench.evaluation(other, json!({"protocol": "clean", "set": {}, "images": 20, "priority": 1})).await;
    assert_eq!(claim().await.evaluation.id, urgent);
    assert_eq!(claim().await.model.id, loaded);
}

#[tokio::test]
async fn a_shard_that_kills_every_worker_fails_its_evaluation() {
    let bench = Bench::start().await;
    let model = bench.ready_model("m").await;
    let evaluation = bench.evaluation(model, json!({"protocol": "clean", "set": {}})).await;
    for attempt in 1..=queue::MAX_ATTEMPTS {
        assert_eq!(bench.claim().await.unwrap().lease.attempt, attempt);
        bench.expire_leases().await;
        let expected = if attempt < queue::MAX_ATTEMPTS { Reaped::Requeued } else { Reaped::Failed };
        assert_eq!(queue::reap(&bench.pool).await.unwrap(), [expected]);
    }
    let failed = read(&bench, evaluation).await;
    assert_eq!((failed.state, failed.outcome.unwrap().code.as_str()), (State::Failed, "worker_lost"));
    assert_eq!(shards(&bench, evaluation).await, "cancelled 1, failed 1");
    assert!(bench.claim().await.is_none());
}

#[tokio::test]
async fn cancelling_reaches_running_work_by_heartbeat_and_dead_work_by_the_reaper() {
    let bench = Bench::start().await;
    let model = bench.ready_model("m").await;
    let evaluation = bench.evaluation(model, json!({})).await;
    let (alive, dead) = (bench.claim().await.unwrap(), bench.claim().await.unwrap());
    assert_eq!(alive.lease.heartbeat(&bench.pool, 3).await.unwrap(), Order::Continue);
    queue::cancel(&bench.pool, None, evaluation).await.unwrap();
    assert_eq!(alive.lease.heartbeat(&bench.pool, 4).await.unwrap(), Order::Stop);
    assert!(bench.claim().await.is_none());
    alive.lease.release(&bench.pool).await.unwrap();
    assert_eq!(read(&bench, evaluation).await.state, State::Cancelling);
    bench.expire_leases().await;
    assert_eq!(queue::reap(&bench.pool).await.unwrap(), [Reaped::Closed]);
    assert!(matches!(dead.lease.heartbeat(&bench.pool, 1).await, Err(LeaseError::Lost)));
    let ended = read(&bench, evaluation).await;
    assert_eq!((ended.state, ended.outcome.unwrap().code.as_str()), (State::Cancelled, "cancelled"));
    assert_eq!(shards(&bench, evaluation).await, "cancelled 4");
}

#[tokio::test]
async fn out_of_memory_starts_the_evaluation_over_with_half_the_batch() {
    let bench = Bench::start().await;
    let model = bench.ready_model("m").await;
    let evaluation = bench.evaluation(model, json!({})).await;
    let first = bench.claim().await.unwrap();
    bench.finish(first, &|_, _| false).await;
    let (other, full) = (bench.claim().await.unwrap(), bench.claim().await.unwrap());
    let failure = Failure::OutOfMemory { batch: 32, detail: "CUDA out of memory".into() };
    full.lease.fail(&bench.pool, &failure).await.unwrap();
    let restarted = read(&bench, evaluation).await;
    assert_eq!((restarted.generation, restarted.batch_limit, restarted.shards_done), (1, Some(16), 0));
    assert!(restarted.profile.is_none());
    assert_eq!(shards(&bench, evaluation).await, "queued 4");
    assert!(evaluations::tallies(&bench.pool, evaluation).await.unwrap().is_empty());
    // Work of the old generation cannot get in.
    let result = bench.result(&other, &|_, _| false).await;
    assert!(matches!(other.lease.commit(&bench.pool, &result).await, Err(LeaseError::Lost)));
    assert_eq!(bench.work(ALL_ROBUST).await, 4);
    let tallies = evaluations::tallies(&bench.pool, evaluation).await.unwrap();
    assert!(tallies.iter().all(|(_, _, t)| (t.n, t.correct) == (40, 40)) && tallies.len() == 3);
    // A batch of one cannot be halved.
    let hopeless = small(&bench, model).await;
    let failure = Failure::OutOfMemory { batch: 1, detail: "still".into() };
    bench.claim().await.unwrap().lease.fail(&bench.pool, &failure).await.unwrap();
    assert_eq!(read(&bench, hopeless).await.outcome.unwrap().code, "out_of_memory");
}

#[tokio::test]
async fn out_of_memory_in_a_stopped_evaluation_spares_its_results() {
    let bench = Bench::start().await;
    let model = bench.ready_model("m").await;
    let evaluation = bench.evaluation(model, json!({})).await;
    let first = bench.claim().await.unwrap();
    bench.finish(first, &ALL_ROBUST).await;
    let full = bench.claim().await.unwrap();
    queue::cancel(&bench.pool, None, evaluation).await.unwrap();
    let before = evaluations::tallies(&bench.pool, evaluation).await.unwrap();
    assert!(!before.is_empty());
    let failure = Failure::OutOfMemory { batch: 32, detail: "CUDA out of memory".into() };
    full.lease.fail(&bench.pool, &failure).await.unwrap();
    let ended = read(&bench, evaluation).await;
    assert_eq!((ended.state, ended.generation, ended.shards_done), (State::Cancelled, 0, 1));
    assert_eq!(shards(&bench, evaluation).await, "cancelled 3, done 1");
    assert_eq!(evaluations::tallies(&bench.pool, evaluation).await.unwrap(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_profiles_offered_at_once_one_is_fixed_for_all() {
    let bench = std::sync::Arc::new(Bench::start().await);
    let model = bench.ready_model("m").await;
    let evaluation = bench.evaluation(model, json!({"seeds": [0, 1]})).await;
    let offers = (1..=8).map(|batch| {
        let bench = bench.clone();
        tokio::spawn(async move {
            let claimed = bench.claim().await.unwrap();
            claimed.lease.fix_profile(&bench.pool, &profile(batch)).await.unwrap()
        })
    });
    let answers: Vec<_> = futures::future::join_all(offers).await.into_iter().map(Result::unwrap).collect();
    let fixed = read(&bench, evaluation).await.profile.unwrap().0;
    assert!(answers.iter().all(|answer| *answer == fixed), "{answers:?}");
}

/// The seconds that the only shard has been told to wait, which it then need not.
async fn stated_delay(bench: &Bench) -> i64 {
    let sql = "select ceil(extract(epoch from not_before - now()))::int8 from shards";
    let seconds = sqlx::query_scalar(sql).fetch_one(&bench.pool).await.unwrap();
    sqlx::query("update shards set not_before = now()").execute(&bench.pool).await.unwrap();
    seconds
}

#[tokio::test]
async fn failed_attempts_are_repeated_after_growing_delays_until_the_limit() {
    let bench = Bench::start().await;
    bench.announce_worker().await;
    let model = bench.ready_model("m").await;
    let evaluation = small(&bench, model).await;
    for attempt in 1..=queue::MAX_ATTEMPTS {
        let claimed = bench.claim().await.unwrap();
        assert_eq!(claimed.lease.attempt, attempt);
        claimed.lease.fail(&bench.pool, &crash()).await.unwrap();
        assert!(bench.claim().await.is_none());
        if attempt == queue::MAX_ATTEMPTS {
            break;
        }
        let waiting = queue::waiting(&bench.pool, &read(&bench, evaluation).await).await.unwrap().unwrap();
        assert!(waiting.code == "retry" && waiting.sentence.contains("child_crashed"), "{waiting:?}");
        assert_eq!(stated_delay(&bench).await, 1 << (attempt - 1), "after attempt {attempt}");
    }
    let failed = read(&bench, evaluation).await;
    assert_eq!((failed.state, failed.outcome.unwrap().code.as_str()), (State::Failed, "child_crashed"));
}

#[tokio::test]
async fn outages_are_not_counted_however_many_and_wait_ever_longer() {
    let bench = Bench::start().await;
    let model = bench.ready_model("m").await;
    let evaluation = small(&bench, model).await;
    let outage = Outage { code: "artifact_store".into(), detail: "no space left".into() };
    let mut delays = Vec::new();
    for _ in 0..9 {
        let claimed = bench.claim().await.unwrap();
        assert_eq!(claimed.lease.attempt, 1);
        claimed.lease.fail(&bench.pool, &Failure::Outage(outage.clone())).await.unwrap();
        delays.push(stated_delay(&bench).await);
    }
    assert_eq!(delays, [1, 2, 4, 8, 16, 32, 64, 64, 64]);
    bench.finish(bench.claim().await.unwrap(), &ALL_ROBUST).await;
    assert_eq!(read(&bench, evaluation).await.state, State::Succeeded);
}

#[tokio::test]
async fn a_commit_whose_answer_was_lost_may_be_said_again() {
    let bench = Bench::start().await;
    let model = bench.ready_model("m").await;
    let evaluation = small(&bench, model).await;
    let claimed = bench.claim().await.unwrap();
    let result = bench.result(&claimed, &ALL_ROBUST).await;
    claimed.lease.commit(&bench.pool, &result).await.unwrap();
    claimed.lease.commit(&bench.pool, &result).await.unwrap();
    assert_eq!(evaluations::tallies(&bench.pool, evaluation).await.unwrap().len(), 1);
    assert_eq!(read(&bench, evaluation).await.shards_done, 1);
}

#[tokio::test]
async fn what_would_fail_again_is_not_repeated_and_what_is_given_back_is_not_counted() {
    let bench = Bench::start().await;
    let model = bench.ready_model("m").await;
    let evaluation = small(&bench, model).await;
    for _ in 0..queue::MAX_ATTEMPTS + 2 {
        let claimed = bench.claim().await.unwrap();
        assert_eq!(claimed.lease.attempt, 1);
        claimed.lease.release(&bench.pool).await.unwrap();
    }
    let failure = Failure::Permanent { code: "dataset_damaged".into(), detail: "a label is out of range".into() };
    bench.claim().await.unwrap().lease.fail(&bench.pool, &failure).await.unwrap();
    assert_eq!(read(&bench, evaluation).await.outcome.unwrap().code, "dataset_damaged");
}

#[tokio::test]
async fn an_evaluation_stays_on_the_platform_it_began_on() {
    let bench = Bench::start().await;
    let model = bench.ready_model("m").await;
    let evaluation = bench.evaluation(model, json!({})).await;
    let first = bench.claim().await.unwrap();
    bench.finish(first, &ALL_ROBUST).await;
    let other = Platform { hardware: "AVX512".into(), ..platform() };
    let claim = async |platform: &Platform| bench.claim_as(platform, &capabilities(), None).await;
    assert!(claim(&other).await.is_none());
    let second = claim(&platform()).await.unwrap();
    // A profile, once fixed, stays.
    assert_eq!(second.lease.fix_profile(&bench.pool, &profile(8)).await.unwrap(), profile(32));
    let stored: Json<gauntlet::protocol::NumericProfile> = read(&bench, evaluation).await.profile.unwrap();
    assert_eq!(stored.0, profile(32));
}

#[tokio::test]
async fn a_model_whose_checks_kill_their_workers_is_rejected() {
    let bench = Bench::start().await;
    let model = bench.model("m").await;
    let waiting = small(&bench, model).await;
    let claim = async || queue::claim_check(&bench.pool, &capabilities(), Duration::from_secs(30)).await.unwrap();
    for _ in 0..queue::MAX_ATTEMPTS {
        let check = claim().await.unwrap();
        assert_eq!((check.model.id, check.dataset.is_some()), (model, true));
        assert!(claim().await.is_none());
        sqlx::query("update models set check_expires_at = now() - interval '1 second'")
            .execute(&bench.pool)
            .await
            .unwrap();
        drop(check);
    }
    assert!(claim().await.is_none());
    queue::reap(&bench.pool).await.unwrap();
    assert_eq!(bench.json(&format!("/v1/models/{model}")).await["rejection"]["code"], "check_lost");
    assert_eq!(read(&bench, waiting).await.outcome.unwrap().code, "model_rejected");
}

#[tokio::test]
async fn checks_go_round_among_owners_and_what_failed_goes_last_of_its_owners() {
    let bench = Bench::start().await;
    let mut models = Vec::new();
    for (name, owner) in [("a", "greedy"), ("b", "greedy"), ("c", "greedy"), ("d", "modest")] {
        let id = bench.model(name).await;
        let sql = "update models set owner = $2 where id = $1";
        sqlx::query(sql).bind(id).bind(owner).execute(&bench.pool).await.unwrap();
        models.push(id);
    }
    let mut order = Vec::new();
    let hung = Rejection { code: "no_progress".into(), found: "it hung".into() };
    while let Some(check) = queue::claim_check(&bench.pool, &capabilities(), LEASE).await.unwrap() {
        order.push(models.iter().position(|id| *id == check.model.id).unwrap());
        check.give_back(&bench.pool, &hung, Duration::ZERO, 2).await.unwrap();
    }
    assert_eq!(order[..5], [0, 3, 1, 3, 2]);
    assert_eq!(order.len(), 8);
    let model = bench.json(&format!("/v1/models/{}", models[3])).await;
    assert_eq!((&model["state"], &model["rejection"]["code"]), (&json!("rejected"), &json!("no_progress")));
}

/// Four million images take few shards if the model is fast, and too many if it is slow.
#[tokio::test]
async fn more_shards_than_the_queue_can_bear_are_refused() {
    let bench = Bench::start().await;
    let model = bench.model("m").await;
    let dataset = Catalogue::new(bench.artifacts.store()).get("tiny").await.unwrap();
    let protocol = builtin("clean").unwrap();
    let conditions = protocol.conditions(None).unwrap();
    let submit = async |images| {
        let new = NewEvaluation {
            id: Uuid::now_v7(),
            owner: "local",
            model,
            dataset: &dataset,
            first_image: 0,
            images,
            protocol: &protocol,
            conditions: &conditions,
            seeds: &[0],
            witnesses: WitnessPolicy::None,
            priority: 0,
            needs: &Needs::default(),
            request_id: None,
            quotas: &Quotas::NONE,
        };
        evaluations::insert(&bench.pool, &new).await
    };
    let waiting = submit(4_000_000).await.unwrap();
    let check = queue::claim_check(&bench.pool, &capabilities(), LEASE).await.unwrap().unwrap();
    check.accept(&bench.pool, &[], &ProbeReport { seconds_per_forward: 3.0, calibration: None }).await.unwrap();
    let failed = read(&bench, waiting.id).await;
    assert_eq!((failed.state, failed.outcome.unwrap().code.as_str()), (State::Failed, "too_many_shards"));
    assert!(matches!(submit(4_000_000).await, Err(SubmitError::TooManyShards(125_000))));
    assert_eq!(submit(40).await.unwrap().shards_total, 2);
}

/// Operators see the sum of what owners are told.
#[tokio::test]
async fn the_depth_of_the_queue_counts_the_reasons_that_owners_are_given() {
    let bench = Bench::start().await;
    let told = async || {
        let mut codes: Vec<(String, i64)> = queue::REASONS.map(|code| (code.to_owned(), 0)).into();
        let open: Vec<Uuid> = sqlx::query_scalar("select id from evaluations where state in ('queued', 'running')")
            .fetch_all(&bench.pool)
            .await
            .unwrap();
        for id in open {
            if let Some(waiting) = queue::waiting(&bench.pool, &read(&bench, id).await).await.unwrap() {
                codes.iter_mut().find(|(code, _)| *code == waiting.code).unwrap().1 += 1;
            }
        }
        codes.retain(|(_, count)| *count > 0);
        codes
    };
    let mut seen = HashSet::new();
    let mut agree = async || {
        let (depth, told) = (queue::depth(&bench.pool).await.unwrap(), told().await);
        assert_eq!(depth.waiting, told);
        seen.extend(told.into_iter().map(|(code, _)| code));
        depth
    };
    let checking = bench.model("unchecked").await;
    let early = bench.evaluation(checking, json!({})).await;
    let depth = agree().await;
    assert_eq!((depth.queued, depth.runnable, depth.running), (0, 0, 0));
    bench.announce_worker().await;
    agree().await;
    queue::cancel(&bench.pool, None, early).await.unwrap();
    let model = checked(&bench, "m").await;
    for _ in 0..3 {
        small(&bench, model).await;
    }
    let depth = agree().await;
    assert_eq!((depth.queued, depth.runnable, depth.running), (3, 3, 0));
    assert!(depth.oldest_seconds > 0.0);
    let needy = bench.evaluation(model, json!({"needs": {"device": "cuda"}})).await;
    agree().await;
    queue::cancel(&bench.pool, None, needy).await.unwrap();
    let claimed = bench.claim().await.unwrap();
    assert_eq!(agree().await.running, 1);
    claimed.lease.fail(&bench.pool, &crash()).await.unwrap();
    let depth = agree().await;
    assert_eq!((depth.queued, depth.runnable), (3, 2));
    assert_eq!(seen.len(), queue::REASONS.len(), "{seen:?}");
}

/// A usable model, whatever else waits to be checked.
async fn checked(bench: &Bench, bytes: &str) -> Uuid {
    let model = bench.model(bytes).await;
    while let Some(check) = queue::claim_check(&bench.pool, &capabilities(), LEASE).await.unwrap() {
        let probe = gauntlet::store::models::ProbeReport { seconds_per_forward: 3.0, calibration: None };
        check.accept(&bench.pool, &[], &probe).await.unwrap();
    }
    model
}
