//! Following an evaluation by server-sent events.

use gauntlet::queue::Failure;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::common::bench::Bench;
use crate::problems::problem;

#[derive(Debug, Clone, PartialEq)]
struct Told {
    id: i64,
    kind: String,
    data: Value,
}

/// Reads the stream to its end.
async fn follow(bench: &Bench, evaluation: Uuid, last: Option<i64>) -> Vec<Told> {
    let mut request = bench.client.get(bench.at(&format!("/v1/evaluations/{evaluation}/events")));
    if let Some(last) = last {
        request = request.header("last-event-id", last);
    }
    let response = request.send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let text = response.text().await.unwrap();
    let field = |block: &str, name: &str| {
        block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).map(str::to_owned)
    };
    let told = |block: &str| {
        let data = serde_json::from_str(&field(block, "data")?).unwrap();
        Some(Told { id: field(block, "id")?.parse().unwrap(), kind: field(block, "event")?, data })
    };
    text.split("\n\n").filter_map(told).collect()
}

#[tokio::test]
async fn a_follower_hears_everything_once_in_order_and_a_late_one_hears_the_same() {
    let bench = Bench::start().await;
    let model = bench.ready_model("m").await;
    let evaluation = bench.evaluation(model, json!({})).await;
    let work = async {
        // One attempt fails before the rest succeeds.
        let claimed = bench.claim().await.unwrap();
        let failure = Failure::Transient { code: "evaluator_crashed".into(), detail: "it fell over".into() };
        claimed.lease.fail(&bench.pool, &failure).await.unwrap();
        sqlx::query("update shards set not_before = now()").execute(&bench.pool).await.unwrap();
        bench.work(|condition, _| condition == "clean").await;
    };
    let (live, ()) = tokio::join!(follow(&bench, evaluation, None), work);
    assert_eq!(follow(&bench, evaluation, None).await, live);
    assert!(live.windows(2).all(|pair| pair[0].id < pair[1].id));
    let of = |kind: &str| -> Vec<&Value> { live.iter().filter(|t| t.kind == kind).map(|t| &t.data).collect() };
    let states: Vec<&str> = of("state").iter().map(|data| data["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["queued", "running", "succeeded"]);
    assert_eq!(live.last().unwrap().data["outcome"]["code"], "completed");
    let failed = of("attempt_failed");
    assert_eq!(failed.len(), 1);
    assert_eq!(
        (&failed[0]["code"], &failed[0]["attempt"], &failed[0]["final"]),
        (&json!("evaluator_crashed"), &json!(1), &json!(false))
    );
    let progress = of("progress");
    assert_eq!(progress.last().unwrap()["shards"], json!({"done": 4, "total": 4}));
    let cells = of("results").into_iter().flat_map(|data| data["conditions"].as_array().unwrap());
    let (clean, attacked): (Vec<&Value>, Vec<&Value>) = cells.partition(|cell| cell["id"] == "clean");
    let sum = |cells: &[&Value], key: &str| -> i64 { cells.iter().map(|cell| cell[key].as_i64().unwrap()).sum() };
    assert_eq!((sum(&clean, "n"), sum(&clean, "correct")), (40, 40));
    assert_eq!((sum(&attacked, "n"), sum(&attacked, "correct")), (80, 0));

    // Whoever lost the connection after any event misses none and hears none twice.
    for (position, told) in live.iter().enumerate() {
        assert_eq!(follow(&bench, evaluation, Some(told.id)).await, live[position + 1..]);
    }
}

#[tokio::test]
async fn a_stream_that_cannot_be_followed_is_a_problem_document() {
    let bench = Bench::start().await;
    let nobodys = bench.get(&format!("/v1/evaluations/{}/events", Uuid::new_v4())).await;
    assert_eq!(problem(nobodys, 404).await.0, "evaluation_not_found");
    let evaluation = bench.evaluation(bench.ready_model("m").await, json!({})).await;
    let path = bench.at(&format!("/v1/evaluations/{evaluation}/events"));
    let lost = bench.client.get(path).header("last-event-id", "yesterday").send().await.unwrap();
    assert_eq!(problem(lost, 400).await.1, Some("Last-Event-ID".into()));
}
