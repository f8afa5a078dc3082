//! Submitting, following and cancelling evaluations.

use std::time::Duration;

use gauntlet::http::Settings;
use reqwest::header::{ETAG, IF_NONE_MATCH, RETRY_AFTER};
use serde_json::{Value, json};

use crate::common::bench::{Bench, evaluation_request, id};
use crate::problems::problem;

#[tokio::test]
async fn a_submission_is_answered_with_everything_resolved() {
    let bench = Bench::start().await;
    bench.announce_worker().await;
    let model = bench.ready_model("m").await;
    let more = json!({"offset": 5, "images": 30, "seeds": [3, -4], "witnesses": {"sample": 10}, "priority": 7});
    let response = bench.post("/v1/evaluations", &evaluation_request(model, more)).await;
    assert_eq!(response.status(), 202);
    assert!(response.headers().contains_key(RETRY_AFTER) && response.headers().contains_key(ETAG));
    let location = response.headers()["location"].to_str().unwrap().to_owned();
    let body: Value = response.json().await.unwrap();
    assert_eq!(location, format!("/v1/evaluations/{}", id(&body)));
    for (key, value) in [
        ("state", json!("queued")),
        ("offset", json!(5)),
        ("images", json!(30)),
        ("seeds", json!([3, -4])),
        ("witnesses", json!({"sample": 10})),
        // 10 images × 2 attacks × 2 seeds × 4 pixels × 4 bytes
        ("witness_bytes_estimate", json!(640)),
        ("shards", json!({"done": 0, "total": 4})),
        ("outcome", json!(null)),
    ] {
        assert_eq!(body[key], value, "{key}");
    }
    assert_eq!(body["waiting"]["code"], "queue");
    let ids: Vec<&Value> = body["progress"]["conditions"].as_array().unwrap().iter().map(|c| &c["id"]).collect();
    assert_eq!(ids, ["clean", "pgd-linf-0.1", "pgd-linf-0.3"]);
    assert_eq!(body["progress"]["total"], 3 * 30 * 2);
}

#[tokio::test]
async fn settings_for_a_part_win_over_settings_for_all() {
    let bench = Bench::start().await;
    let model = bench.model("m").await;
    let set = json!({"steps": 9, "attack.linf.steps": 4, "attack.linf.epsilon": "1/8"});
    let evaluation = bench.evaluation(model, json!({"set": set})).await;
    let table = bench.json(&format!("/v1/evaluations/{evaluation}/table")).await;
    let attack = &table["provenance"]["protocol"]["document"]["attack"][0];
    assert_eq!((&attack["steps"], &attack["epsilon"]), (&json!(4), &json!(["1/8"])));
}

#[tokio::test]
async fn witnesses_beyond_the_limit_are_refused_with_what_would_fit() {
    let bench = Bench::with(Settings { max_witness_bytes: 1000, ..Settings::default() }).await;
    let model = bench.model("m").await;
    let submit = async |witnesses: Value| -> Value {
        let request = evaluation_request(model, json!({"witnesses": witnesses}));
        bench.post("/v1/evaluations", &request).await.json().await.unwrap()
    };
    // An image costs 2 attacks × 4 pixels × 4 bytes = 32.
    let refused = submit(json!("all")).await;
    assert_eq!(refused["code"], "too_many_witnesses");
    assert!(refused["detail"].as_str().unwrap().contains("{\"sample\": 31}"), "{refused}");
    assert_eq!(submit(json!({"sample": 31})).await["witness_bytes_estimate"], 992);
    assert_eq!(submit(json!("none")).await["witness_bytes_estimate"], 0);
}

#[tokio::test]
async fn needs_are_kept_and_those_that_nobody_can_meet_are_refused_by_field() {
    let bench = Bench::start().await;
    let model = bench.ready_model("m").await;
    let needs = json!({"device": "cuda", "gpu_memory_bytes": 42949672960u64, "labels": {"gpu": "h100"}});
    let request = evaluation_request(model, json!({"needs": needs}));
    let kept =
        bench.client.post(bench.at("/v1/evaluations")).header("x-request-id", "mine").json(&request).send().await;
    let kept: Value = kept.unwrap().json().await.unwrap();
    assert_eq!((&kept["needs"], &kept["request_id"]), (&needs, &json!("mine")));
    for (needs, field) in [
        (json!({"device": "cpu", "gpu_memory_bytes": 1}), "needs.gpu_memory_bytes"),
        (json!({"labels": {"gpu": "h 100"}}), "needs.labels.gpu"),
    ] {
        let refused = bench.post("/v1/evaluations", &evaluation_request(model, json!({"needs": needs}))).await;
        assert_eq!(refused.status(), 422);
        assert_eq!(refused.json::<Value>().await.unwrap()["field"], field);
    }
    for (needs, says) in [(json!({"gpus": 2}), "gpus"), (json!({"device": "tpu"}), "tpu")] {
        let refused = bench.post("/v1/evaluations", &evaluation_request(model, json!({"needs": needs}))).await;
        let problem: Value = refused.json().await.unwrap();
        assert!(problem["detail"].as_str().unwrap().contains(says), "{problem}");
    }
}

#[tokio::test]
async fn an_evaluation_says_why_it_waits() {
    let bench = Bench::with(Settings { queue_age: Duration::ZERO, ..Settings::default() }).await;
    let model = bench.model("m").await;
    let evaluation = bench.evaluation(model, json!({})).await;
    let path = format!("/v1/evaluations/{evaluation}");
    let waiting = async |position: i64, code: &str| {
        let waiting = bench.json(&path).await["waiting"].clone();
        assert_eq!((&waiting["code"], &waiting["position"]), (&json!(code), &json!(position)));
        assert!(waiting["sentence"].as_str().unwrap().len() > 10);
    };
    waiting(0, "no_worker").await;
    bench.announce_worker().await;
    waiting(0, "model_check").await;
    bench.evaluation(model, json!({"priority": 5})).await;
    waiting(1, "model_check").await;
}

#[tokio::test]
async fn progress_and_timestamps_follow_the_work() {
    let bench = Bench::start().await;
    bench.announce_worker().await;
    let model = bench.ready_model("m").await;
    let evaluation = bench.evaluation(model, json!({})).await;
    let path = format!("/v1/evaluations/{evaluation}");
    let all_robust = |_: &str, _: u32| true;
    let first = bench.claim().await.unwrap();
    assert_eq!(first.images, 20);
    first.lease.heartbeat(&bench.pool, 7).await.unwrap();
    let running = bench.json(&path).await;
    assert_eq!((&running["state"], &running["waiting"]), (&json!("running"), &json!(null)));
    assert_eq!((&running["progress"]["done"], &running["progress"]["running"]), (&json!(7), &json!(7)));
    assert!(running["eta_seconds"].as_f64().unwrap() > 0.0 && running["started_at"].is_string());
    bench.finish(first, &all_robust).await;
    let half = bench.json(&path).await;
    assert_eq!((&half["progress"]["done"], &half["shards"]), (&json!(20), &json!({"done": 1, "total": 4})));
    bench.work(all_robust).await;
    let response = bench.get(&path).await;
    assert!(!response.headers().contains_key(RETRY_AFTER));
    let done: Value = response.json().await.unwrap();
    assert_eq!((&done["state"], &done["outcome"]["code"]), (&json!("succeeded"), &json!("completed")));
    assert_eq!((&done["progress"]["done"], &done["eta_seconds"]), (&json!(120), &json!(null)));
    assert_eq!(done["profile"]["batch"], 32);
    assert!(done["created_at"].as_str() <= done["started_at"].as_str());
    assert!(done["started_at"].as_str() <= done["finished_at"].as_str());
}

#[tokio::test]
async fn an_unchanged_evaluation_is_not_sent_again() {
    let bench = Bench::start().await;
    let model = bench.model("m").await;
    let evaluation = bench.evaluation(model, json!({})).await;
    let url = bench.at(&format!("/v1/evaluations/{evaluation}"));
    let tag = bench.client.get(&url).send().await.unwrap().headers()[ETAG].clone();
    let again = async || bench.client.get(&url).header(IF_NONE_MATCH, &tag).send().await.unwrap();
    let unchanged = again().await;
    assert_eq!((unchanged.status().as_u16(), &unchanged.headers()[ETAG]), (304, &tag));
    bench.client.post(format!("{url}/cancel")).send().await.unwrap();
    let changed = again().await;
    assert_eq!(changed.status(), 200);
    assert_ne!(changed.headers()[ETAG], tag);
}

#[tokio::test]
async fn a_long_poll_returns_when_something_changes_and_not_before() {
    let bench = Bench::start().await;
    bench.announce_worker().await;
    let model = bench.ready_model("m").await;
    let evaluation = bench.evaluation(model, json!({"images": 20})).await;
    let url = bench.at(&format!("/v1/evaluations/{evaluation}?wait=60s"));
    let tag = bench.get(&format!("/v1/evaluations/{evaluation}")).await.headers()[ETAG].clone();
    let change = tokio::spawn(bench.client.get(&url).header(IF_NONE_MATCH, &tag).send());
    let end = tokio::spawn(bench.client.get(&url).send());
    let first = bench.claim().await.unwrap();
    let changed = change.await.unwrap().unwrap();
    assert_ne!(changed.headers()[ETAG], tag);
    assert_eq!(changed.json::<Value>().await.unwrap()["waiting"], json!(null));
    // Without a tag only the end counts.
    assert!(!end.is_finished());
    bench.finish(first, &|_, _| true).await;
    bench.work(|_, _| true).await;
    assert_eq!(end.await.unwrap().unwrap().json::<Value>().await.unwrap()["state"], "succeeded");
    // When the time is over, what is known is answered.
    let other = bench.evaluation(model, json!({})).await;
    let url = bench.at(&format!("/v1/evaluations/{other}?wait=1"));
    let plain = bench.client.get(&url).send().await.unwrap();
    let tag = plain.headers()[ETAG].clone();
    assert_eq!(plain.status(), 200);
    assert_eq!(bench.client.get(&url).header(IF_NONE_MATCH, tag).send().await.unwrap().status(), 304);
}

#[tokio::test]
async fn cancelling_is_idempotent_and_refused_only_after_another_end() {
    let bench = Bench::start().await;
    let model = bench.ready_model("m").await;
    let evaluation = bench.evaluation(model, json!({})).await;
    let path = format!("/v1/evaluations/{evaluation}/cancel");
    let claimed = bench.claim().await.unwrap();
    let cancel = async || {
        let response = bench.client.post(bench.at(&path)).send().await.unwrap();
        assert_eq!(response.status(), 202);
        response.json::<Value>().await.unwrap()["state"].clone()
    };
    assert_eq!([cancel().await, cancel().await], ["cancelling", "cancelling"]);
    claimed.lease.release(&bench.pool).await.unwrap();
    assert_eq!(cancel().await, "cancelled");
    let ended = bench.json(&format!("/v1/evaluations/{evaluation}")).await;
    assert_eq!(ended["outcome"]["actor"], "user");
    assert!(ended["cancel_requested_at"].is_string());
    let finished = bench.evaluation(model, json!({})).await;
    bench.work(|_, _| true).await;
    let refused = bench.client.post(bench.at(&format!("/v1/evaluations/{finished}/cancel"))).send().await.unwrap();
    assert_eq!(problem(refused, 409).await.0, "already_ended");
}

#[tokio::test]
async fn listings_filter_by_model_state_and_protocol() {
    let bench = Bench::start().await;
    let (a, b) = (bench.ready_model("a").await, bench.ready_model("b").await);
    let of_a = bench.evaluation(a, json!({"protocol": "clean", "set": {}})).await;
    bench.work(|_, _| true).await;
    let of_b = bench.evaluation(b, json!({})).await;
    let ids = async |query: &str| -> Vec<uuid::Uuid> {
        let page = bench.json(&format!("/v1/evaluations?{query}")).await;
        page["items"].as_array().unwrap().iter().map(id).collect()
    };
    assert_eq!(ids("").await, [of_b, of_a]);
    assert_eq!(ids(&format!("model={a}")).await, [of_a]);
    assert_eq!(ids("state=queued").await, [of_b]);
    assert_eq!(ids("protocol=clean&state=succeeded").await, [of_a]);
    assert!(ids("protocol=clean&state=failed").await.is_empty());
}

#[tokio::test]
async fn shutdown_answers_long_polls_at_once() {
    let mut bench = Bench::start().await;
    let model = bench.model("m").await;
    let evaluation = bench.evaluation(model, json!({})).await;
    let url = bench.at(&format!("/v1/evaluations/{evaluation}?wait=60s"));
    let poll = tokio::spawn(bench.client.get(&url).send());
    // The request has arrived once the server counts a connection with no answer: asking it something else is enough,
    // because both requests pass the same accept loop in order.
    bench.json("/healthz").await;
    bench.shutdown.cancel();
    let answered = tokio::time::timeout(Duration::from_secs(20), poll).await.expect("answered before its time");
    assert!(answered.unwrap().is_ok_and(|r| r.status() == 200));
    bench.server.take().unwrap().await.unwrap().unwrap();
}

#[tokio::test]
async fn the_time_left_is_priced_by_committed_shards_and_shared_by_running_ones() {
    let bench = Bench::start().await;
    let model = bench.ready_model("m").await;
    let evaluation = bench.evaluation(model, json!({})).await;
    let path = format!("/v1/evaluations/{evaluation}");
    assert!(bench.json(&path).await["eta_seconds"].is_null(), "nothing runs yet");
    // Two shards of a second each for clean, two for the ladder.
    for _ in 0..3 {
        let claimed = bench.claim().await.unwrap();
        bench.finish(claimed, &|_, _| true).await;
    }
    assert!(bench.json(&path).await["eta_seconds"].is_null(), "nothing runs now");
    let last = bench.claim().await.unwrap();
    let eta = bench.json(&path).await["eta_seconds"].as_f64().unwrap();
    // Clean costs 1 forward per image, the ladder 2 × (3 + 2 × 3): 3 s bought 2 × 1 + 18 of them.
    assert!((eta - 18.0 * 3.0 / 20.0).abs() < 1e-9, "{eta}");
    bench.finish(last, &|_, _| true).await;
    assert!(bench.json(&path).await["eta_seconds"].is_null());
}
