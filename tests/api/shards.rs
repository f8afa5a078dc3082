//! An evaluation's shards and the logs of the attempts at them.

use gauntlet::queue::{Claimed, Ending, Failure, LeaseError};
use gauntlet::store::evaluations;
use gauntlet::store::keys::{self, NewKey, Scope};
use serde_json::{Value, json};

use crate::common::bench::{Bench, evaluation_request, id, model_form};
use crate::problems::problem;

/// Keeps a log as a worker does.
async fn keep(bench: &Bench, claimed: &Claimed, ending: Ending, text: &str) -> Result<(), LeaseError> {
    let lease = &claimed.lease;
    let key = format!("logs/{}/{}-{}.txt", lease.evaluation, lease.shard, lease.token());
    bench.artifacts.put(&key, text.as_bytes().to_vec()).await.unwrap();
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lease.keep_log(&bench.pool, ending, &key, text.len(), &lines).await.map(drop)
}

#[tokio::test]
async fn every_attempt_that_ended_can_be_read_also_the_failed_ones() {
    let bench = Bench::start().await;
    let model = bench.ready_model("m").await;
    let evaluation = bench.evaluation(model, json!({})).await;
    let base = format!("/v1/evaluations/{evaluation}/shards");
    assert_eq!(problem(bench.get(&format!("{base}/0/log")).await, 404).await.0, "log_not_found");

    let first = bench.claim().await.unwrap();
    keep(&bench, &first, Ending::Failed, "the first attempt\nfell over").await.unwrap();
    let failure = Failure::Transient { code: "evaluator_crashed".into(), detail: "it fell over".into() };
    first.lease.fail(&bench.pool, &failure).await.unwrap();
    // Whoever lost the lease writes no log that anybody reads.
    let late = first.lease.keep_log(&bench.pool, Ending::Results, "logs/late.txt", 4, &[]).await;
    assert!(matches!(late, Err(LeaseError::Lost)));
    sqlx::query("update shards set not_before = now()").execute(&bench.pool).await.unwrap();
    let second = bench.claim().await.unwrap();
    assert_eq!((second.lease.shard, second.lease.attempt), (first.lease.shard, 2));
    keep(&bench, &second, Ending::Results, "the second <script>").await.unwrap();
    bench.finish(second, &|_, _| true).await;

    let newest = bench.get(&format!("{base}/0/log")).await;
    assert_eq!(newest.headers()["content-type"], "text/plain; charset=utf-8");
    assert_eq!(newest.headers()["x-content-type-options"], "nosniff");
    assert_eq!(newest.text().await.unwrap(), "the second <script>");
    let failed = bench.get(&format!("{base}/0/log?attempt=1")).await.text().await.unwrap();
    assert_eq!(failed, "the first attempt\nfell over");
    for missing in ["0/log?attempt=3", "1/log", "4000000000/log"] {
        assert_eq!(problem(bench.get(&format!("{base}/{missing}")).await, 404).await.0, "log_not_found", "{missing}");
    }

    let page = bench.json(&format!("{base}?limit=1")).await;
    let shard = &page["items"][0];
    assert_eq!((&shard["shard"], &shard["state"], &shard["attempts"]), (&json!(0), &json!("done"), &json!(2)));
    let endings: Vec<&Value> = shard["log"].as_array().unwrap().iter().map(|a| &a["ending"]).collect();
    assert_eq!(endings, ["failed", "results"]);
    assert!(shard["worker"].is_string() && shard["seconds"].is_number() && shard["conditions"][0].is_string());
    assert_eq!(page["next"], 1);
    let rest = bench.json(&format!("{base}?from=1")).await;
    let states: Vec<&Value> = rest["items"].as_array().unwrap().iter().map(|s| &s["state"]).collect();
    assert_eq!((states, &rest["next"]), (vec![&json!("queued"); 3], &Value::Null));
    assert_eq!(problem(bench.get(&format!("{base}?from=-1")).await, 400).await.0, "bad_query");
}

#[tokio::test]
async fn what_a_model_wrote_is_for_its_owner_alone_also_where_results_are_shared() {
    let bench = Bench::start().await;
    let key = async |owner: &str| {
        let new = NewKey { owner, label: "", scopes: &[Scope::Read, Scope::Submit], expires_at: None };
        keys::create(&bench.pool, &new).await.unwrap().reveal()
    };
    let (alice, bob) = (key("alice").await, key("bob").await);
    let form = bench.client.post(bench.at("/v1/models")).bearer_auth(&alice).multipart(model_form("m"));
    let model = id(&form.send().await.unwrap().json().await.unwrap());
    let check =
        gauntlet::queue::claim_check(&bench.pool, &crate::common::bench::capabilities(), crate::common::bench::LEASE)
            .await
            .unwrap()
            .unwrap();
    let probe = gauntlet::store::models::ProbeReport { seconds_per_forward: 3.0, calibration: None };
    check.accept(&bench.pool, &[], &probe).await.unwrap();
    let request = bench.client.post(bench.at("/v1/evaluations")).bearer_auth(&alice);
    let request = request.json(&evaluation_request(model, json!({})));
    let evaluation = id(&request.send().await.unwrap().json().await.unwrap());
    let claimed = bench.claim().await.unwrap();
    keep(&bench, &claimed, Ending::Results, "her secret").await.unwrap();
    bench.finish(claimed, &|_, _| true).await;
    bench.work(|_, _| true).await;
    assert!(evaluations::share(&bench.pool, None, evaluation, true).await.unwrap());
    let get = async |key: &str, path: &str| {
        bench
            .client
            .get(bench.at(&format!("/v1/evaluations/{evaluation}{path}")))
            .bearer_auth(key)
            .send()
            .await
            .unwrap()
    };
    for path in ["/shards", "/shards/0/log"] {
        assert_eq!((get(&alice, path).await.status().as_u16(), get(&bob, path).await.status().as_u16()), (200, 404));
    }
    let (hers, his) =
        (get(&alice, "/events").await.text().await.unwrap(), get(&bob, "/events").await.text().await.unwrap());
    assert!(hers.contains("event: log") && hers.contains("her secret"));
    assert!(!his.contains("event: log") && !his.contains("her secret") && his.contains("succeeded"));
}
