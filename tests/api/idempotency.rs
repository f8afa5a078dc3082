//! Requests that are sent twice.

use std::time::{Duration, SystemTime};

use gauntlet::store::idempotency::{self, Begin};
use reqwest::Response;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::common::bench::{Bench, evaluation_request, model_form};
use crate::problems::problem;

async fn post(bench: &Bench, path: &str, key: &str, body: &Value) -> Response {
    bench.client.post(bench.at(path)).header("idempotency-key", key).json(body).send().await.unwrap()
}

/// Status, whether it is a replay, and the body.
async fn shown(response: Response) -> (u16, bool, Value) {
    let replayed = response.headers().contains_key("idempotency-replayed");
    (response.status().as_u16(), replayed, response.json().await.unwrap())
}

async fn evaluations(bench: &Bench) -> usize {
    bench.json("/v1/evaluations").await["items"].as_array().unwrap().len()
}

#[tokio::test]
async fn a_request_sent_many_times_at_once_is_carried_out_once() {
    let bench = Bench::start().await;
    let request = evaluation_request(bench.ready_model("m").await, json!({}));
    let answers = (0..24).map(|_| post(&bench, "/v1/evaluations", "the key", &request));
    let mut bodies = Vec::new();
    let mut replays = 0;
    for answer in futures::future::join_all(answers).await {
        assert!(answer.headers().contains_key("location"));
        let (status, replayed, body) = shown(answer).await;
        assert_eq!(status, 202);
        replays += usize::from(replayed);
        bodies.push(body);
    }
    assert_eq!((replays, evaluations(&bench).await), (23, 1));
    // The answer is the one of the first time, whatever has happened since.
    bench.work(|_, _| true).await;
    let (_, replayed, later) = shown(post(&bench, "/v1/evaluations", "the key", &request).await).await;
    assert!(replayed && later == bodies[0] && bodies.iter().all(|body| *body == later));
    // A new key is a new request.
    assert!(!shown(post(&bench, "/v1/evaluations", "another", &request).await).await.1);
    assert_eq!(evaluations(&bench).await, 2);
}

#[tokio::test]
async fn one_key_for_two_requests_is_a_mistake_and_refusals_are_remembered_too() {
    let bench = Bench::start().await;
    let model = bench.ready_model("m").await;
    let request = evaluation_request(model, json!({}));
    assert_eq!(post(&bench, "/v1/evaluations", "k", &request).await.status(), 202);
    let other = evaluation_request(model, json!({"images": 3}));
    for (path, body) in [("/v1/evaluations", &other), ("/v1/protocols", &request)] {
        assert_eq!(problem(post(&bench, path, "k", body).await, 422).await.0, "idempotency_mismatch");
    }
    let bad = evaluation_request(model, json!({"images": 0}));
    let (first, second) =
        (post(&bench, "/v1/evaluations", "b", &bad).await, post(&bench, "/v1/evaluations", "b", &bad).await);
    let (first, second) = (shown(first).await, shown(second).await);
    assert_eq!((first.0, first.1, second.0, second.1), (422, false, 422, true));
    assert_eq!(first.2, second.2);
    assert_eq!(problem(post(&bench, "/v1/evaluations", "", &request).await, 400).await.0, "bad_idempotency_key");
    assert_eq!(evaluations(&bench).await, 1);
}

#[tokio::test]
async fn an_upload_sent_again_is_the_same_upload_though_its_form_differs() {
    let bench = Bench::start().await;
    let upload = |bytes: &'static str| {
        let request = bench.client.post(bench.at("/v1/models")).header("idempotency-key", "u");
        // Every form has its own random boundary.
        async move { request.multipart(model_form(bytes)).send().await.unwrap() }
    };
    let (first, second) = tokio::join!(upload("weights"), upload("weights"));
    let (first, second) = (shown(first).await, shown(second).await);
    assert_eq!((first.0, second.0, first.1 != second.1), (201, 201, true));
    assert_eq!(first.2, second.2);
    assert_eq!(problem(upload("others").await, 422).await.0, "idempotency_mismatch");
    assert_eq!((bench.files("models").len(), bench.files("uploads").len()), (1, 0));
}

#[tokio::test]
async fn a_request_whose_server_died_is_started_over_on_the_same_object() {
    let bench = Bench::start().await;
    let begin = || idempotency::begin(&bench.pool, "local", "k", b"print");
    let Begin::Run(dead) = begin().await.unwrap() else { panic!("a new key is free") };
    assert!(matches!(begin().await.unwrap(), Begin::Busy));
    let sql = "update idempotency_keys set claimed_at = now() - interval '61 seconds'";
    sqlx::query(sql).execute(&bench.pool).await.unwrap();
    let Begin::Run(heir) = begin().await.unwrap() else { panic!("its holder is presumed dead") };
    assert_eq!(heir.object, dead.object);
    // The dead one comes back late: its answer is not wanted.
    let answer = |body: &str| idempotency::StoredAnswer {
        status: 200,
        headers: sqlx::types::Json(Vec::new()),
        body: body.as_bytes().to_vec(),
    };
    idempotency::finish(&bench.pool, &dead, &answer("late")).await.unwrap();
    assert!(matches!(begin().await.unwrap(), Begin::Busy));
    idempotency::finish(&bench.pool, &heir, &answer("right")).await.unwrap();
    let Begin::Stored(stored) = begin().await.unwrap() else { panic!("it was answered") };
    assert_eq!(stored.body, b"right");
    assert!(matches!(idempotency::begin(&bench.pool, "bob", "k", b"print").await.unwrap(), Begin::Run(_)));
    sqlx::query("update idempotency_keys set created_at = now() - interval '25 hours'")
        .execute(&bench.pool)
        .await
        .unwrap();
    assert!(matches!(begin().await.unwrap(), Begin::Run(ticket) if ticket.object != heir.object));
}

#[tokio::test]
async fn what_interrupted_uploads_left_is_swept_and_what_grows_is_not() {
    let bench = Bench::start().await;
    let folder = bench.folder.path().join("uploads");
    std::fs::create_dir_all(&folder).unwrap();
    let day = Duration::from_secs(24 * 3600);
    for (name, age) in [("whole", 2 * day), ("half#1", 2 * day), ("growing#1", day / 2)] {
        let file = std::fs::File::create(folder.join(format!("{}-{name}", Uuid::nil()))).unwrap();
        file.set_modified(SystemTime::now() - age).unwrap();
    }
    // The server sweeps as well, when it starts: either may come first.
    bench.artifacts.sweep_uploads(day).await.unwrap();
    let left = bench.files("uploads");
    assert!(left.len() == 1 && left[0].ends_with("growing#1"), "{left:?}");
}
