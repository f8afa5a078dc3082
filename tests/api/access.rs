//! Keys, scopes, owners, quotas, rates: who may do what, and what nobody learns.

use std::cmp::Reverse;
use std::process::{Command, Stdio};
use std::time::Duration;

use chrono::{TimeDelta, Utc};
use gauntlet::http::{self, Settings};
use gauntlet::store::evaluations;
use gauntlet::store::keys::{self, NewKey, Scope};
use gauntlet::store::{Quotas, pool};
use reqwest::{Method, Response};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::common::bench::{Bench, evaluation_request, id, model_form};
use crate::common::postgres::fresh_database;
use crate::problems::problem;

async fn key(bench: &Bench, owner: &str, scopes: &[Scope]) -> String {
    let new = NewKey { owner, label: "", scopes, expires_at: None };
    keys::create(&bench.pool, &new).await.unwrap().reveal()
}

async fn ask(bench: &Bench, key: &str, method: &Method, path: &str, body: Option<&Value>) -> Response {
    let request = bench.client.request(method.clone(), bench.at(path)).bearer_auth(key);
    match body {
        // A piece of an upload, which is no JSON.
        None if method == Method::PATCH => {
            request.header("upload-offset", 0).header("content-type", "application/offset+octet-stream").body("12345")
        }
        Some(body) => request.json(body),
        None => request,
    }
    .send()
    .await
    .unwrap()
}

async fn get(bench: &Bench, key: &str, path: &str) -> Response {
    ask(bench, key, &Method::GET, path, None).await
}

async fn submit(bench: &Bench, key: &str, model: Uuid) -> Response {
    ask(bench, key, &Method::POST, "/v1/evaluations", Some(&evaluation_request(model, json!({})))).await
}

async fn upload(bench: &Bench, key: &str, bytes: &str) -> Response {
    let request = bench.client.post(bench.at("/v1/models")).bearer_auth(key);
    request.multipart(model_form(bytes)).send().await.unwrap()
}

/// A model and an evaluation of Alice's, and the names that stand for them in paths.
struct Alices {
    model: Uuid,
    evaluation: Uuid,
    webhook: Uuid,
    upload: Uuid,
}

impl Alices {
    /// What is nobody's.
    fn nobodys() -> Self {
        Self { model: Uuid::new_v4(), evaluation: Uuid::new_v4(), webhook: Uuid::new_v4(), upload: Uuid::new_v4() }
    }

    fn ids(&self) -> [Uuid; 4] {
        [self.model, self.evaluation, self.webhook, self.upload]
    }
}

async fn alices(bench: &Bench, key: &str, bytes: &str) -> Alices {
    let model = id(&upload(bench, key, bytes).await.json().await.unwrap());
    let evaluation = id(&submit(bench, key, model).await.json().await.unwrap());
    let hook = json!({"url": "https://example.com/"});
    let webhook = id(&ask(bench, key, &Method::POST, "/v1/webhooks", Some(&hook)).await.json().await.unwrap());
    let file = json!({"bytes": 5});
    let upload = id(&ask(bench, key, &Method::POST, "/v1/uploads", Some(&file)).await.json().await.unwrap());
    Alices { model, evaluation, webhook, upload }
}

/// Every operation under /v1: method and path template.
fn operations() -> Vec<(Method, String)> {
    let api = serde_json::to_value(http::openapi()).unwrap();
    let mut all = Vec::new();
    for (path, item) in api["paths"].as_object().unwrap() {
        let methods = item.as_object().unwrap().keys().filter(|_| path.starts_with("/v1/"));
        all.extend(methods.map(|m| (m.to_uppercase().parse().unwrap(), path.clone())));
    }
    assert!(all.len() > 20);
    all
}

fn fill(template: &str, ids: &Alices) -> String {
    let Alices { model, evaluation, webhook, upload } = ids;
    let id = match template.split('/').nth(2) {
        Some("models") => model,
        Some("webhooks") => webhook,
        Some("uploads") => upload,
        _ => evaluation,
    };
    let path = template.replace("{id}", &id.to_string()).replace("{name}", "tiny");
    let path = path.replace("{delivery}", &Uuid::nil().to_string()).replace("{shard}", "0");
    assert!(!path.contains('{'), "{template}: say here what stands in its place");
    match template {
        "/v1/leaderboard" => format!("{path}?protocol=pgd-linf"),
        "/v1/compare" => format!("{path}?a={evaluation}&b={evaluation}"),
        _ => path,
    }
}

/// A body that fits the operation, if it takes one.
fn body(method: &Method, template: &str, ids: &Alices) -> Option<Value> {
    match (method.as_str(), template) {
        ("POST", "/v1/evaluations") => Some(evaluation_request(ids.model, json!({}))),
        ("POST", "/v1/uploads") => Some(json!({"bytes": 5, "sha256": "0".repeat(64)})),
        ("POST", "/v1/webhooks") => Some(json!({"url": "https://example.com/", "evaluation": ids.evaluation})),
        ("POST", "/v1/protocols") => Some(json!({"name": "mine", "clean": {}})),
        _ => None,
    }
}

/// Status and body, without the ids that were asked for.
async fn shown(response: Response, ids: &[Uuid]) -> (u16, String) {
    let status = response.status().as_u16();
    let mut text = response.text().await.unwrap();
    for id in ids {
        text = text.replace(&id.to_string(), "ID");
    }
    (status, text)
}

#[tokio::test]
async fn every_route_asks_for_a_key_and_tells_a_stranger_nothing() {
    let bench = Bench::start().await;
    let alice = key(&bench, "alice", &[Scope::Read, Scope::Submit]).await;
    let reader = key(&bench, "alice", &[Scope::Read]).await;
    let submitter = key(&bench, "alice", &[Scope::Submit]).await;
    let bob = key(&bench, "bob", &[Scope::Read, Scope::Submit]).await;
    let (theirs, nothing) = (alices(&bench, &alice, "hers").await, Alices::nobodys());
    for (method, template) in operations() {
        let path = fill(&template, &theirs);
        let bare = bench.client.request(method.clone(), bench.at(&path)).send().await.unwrap();
        assert_eq!(bare.headers()["www-authenticate"], "Bearer");
        assert_eq!(problem(bare, 401).await.0, "unauthorized", "{method} {path}");

        let lacking = if method == Method::GET { &submitter } else { &reader };
        let refused = ask(&bench, lacking, &method, &path, None).await;
        assert_eq!(problem(refused, 403).await.0, "forbidden", "{method} {path}");

        // What is Alice's looks to Bob like what is nobody's.
        let hers = ask(&bench, &bob, &method, &path, body(&method, &template, &theirs).as_ref()).await;
        let nobodys = fill(&template, &nothing);
        let nobodys = ask(&bench, &bob, &method, &nobodys, body(&method, &template, &nothing).as_ref()).await;
        let (hers, nobodys) = (shown(hers, &theirs.ids()).await, shown(nobodys, &nothing.ids()).await);
        if method == Method::POST && ["/v1/protocols", "/v1/uploads"].contains(&template.as_str()) {
            // The same twice is answered 201 and 200: both are Bob's own.
            assert_eq!((hers.0, nobodys.0), (201, 200));
            continue;
        }
        assert_eq!(hers, nobodys, "{method} {path}");
        assert!(!template.contains("{id}") || hers.0 == 404, "{method} {path}: {hers:?}");
    }
    // Nothing of that touched what is Alice's.
    let Alices { model, evaluation, webhook, upload } = theirs;
    assert_eq!(get(&bench, &alice, &format!("/v1/uploads/{upload}")).await.status(), 200);
    assert_eq!(get(&bench, &alice, &format!("/v1/webhooks/{webhook}")).await.status(), 200);
    let after: Value = get(&bench, &alice, &format!("/v1/evaluations/{evaluation}")).await.json().await.unwrap();
    assert_eq!((&after["state"], &after["shared"]), (&json!("queued"), &json!(false)));
    assert_eq!(get(&bench, &alice, &format!("/v1/models/{model}")).await.status(), 200);
}

#[tokio::test]
async fn every_route_serves_its_owner_within_the_keys_scope_and_an_admin_alike() {
    let bench = Bench::start().await;
    let alice = key(&bench, "alice", &[Scope::Read, Scope::Submit]).await;
    let reader = key(&bench, "alice", &[Scope::Read]).await;
    let submitter = key(&bench, "alice", &[Scope::Submit]).await;
    let admin = key(&bench, "operator", &[Scope::Admin]).await;
    // What one does to the first, the other does to the second; what ends things last.
    let (first, second) = (alices(&bench, &alice, "first").await, alices(&bench, &alice, "second").await);
    let mut operations = operations();
    operations.sort_by_key(|(method, path)| (method == Method::DELETE).then_some(Reverse(path.len())));
    for (method, template) in operations {
        let narrow = if method == Method::GET { &reader } else { &submitter };
        let mut answers = Vec::new();
        for (key, ids) in [(narrow, &first), (&admin, &second)] {
            let path = fill(&template, ids);
            let answer = ask(&bench, key, &method, &path, body(&method, &template, ids).as_ref()).await;
            let status = answer.status().as_u16();
            // A stream of events lasts as long as its evaluation.
            let code = if status < 400 { Value::Null } else { answer.json::<Value>().await.unwrap()["code"].take() };
            assert!(![401, 403, 405].contains(&status), "{method} {path}: {status} {code}");
            // The objects themselves are seen, though not all have what is asked for.
            let unseen = ["evaluation_not_found", "model_not_found", "upload_not_found", "webhook_not_found"];
            assert!(!unseen.iter().any(|unseen| code == *unseen), "{method} {path}: {code}");
            answers.push((status, code));
        }
        if method == Method::POST && template == "/v1/webhooks" {
            // It is told of its owner's evaluations, and an admin's key has another owner.
            assert_eq!(answers, [(201, Value::Null), (422, json!("unknown_evaluation"))]);
            continue;
        }
        // The same for either; but of two who ask for the same new thing only the first makes it.
        let made = answers.iter().all(|(status, _)| [200, 201].contains(status)) && method == Method::POST;
        assert!(made || answers[0] == answers[1], "{method} {template}: {answers:?}");
    }
}

#[tokio::test]
async fn listings_show_what_is_ones_own_and_an_admin_sees_everything() {
    let bench = Bench::start().await;
    let (alice, bob) =
        (key(&bench, "alice", &[Scope::Read, Scope::Submit]).await, key(&bench, "bob", &[Scope::Read]).await);
    let admin = key(&bench, "operator", &[Scope::Admin]).await;
    alices(&bench, &alice, "hers").await;
    for (path, expected) in [("/v1/models", [1, 0, 1]), ("/v1/evaluations", [1, 0, 1])] {
        for (key, count) in [&alice, &bob, &admin].into_iter().zip(expected) {
            let page: Value = get(&bench, key, path).await.json().await.unwrap();
            assert_eq!(page["items"].as_array().unwrap().len(), count, "{path}");
        }
    }
}

#[tokio::test]
async fn a_shared_evaluation_is_readable_by_others_until_it_is_taken_back() {
    let bench = Bench::start().await;
    let both = [Scope::Read, Scope::Submit];
    let (alice, bob) = (key(&bench, "alice", &both).await, key(&bench, "bob", &both).await);
    let Alices { model, evaluation, .. } = alices(&bench, &alice, "hers").await;
    let base = format!("/v1/evaluations/{evaluation}");
    let share = format!("{base}/share");
    let leaderboard = "/v1/leaderboard?protocol=pgd-linf";
    // Finished, so that it can stand on a leaderboard.
    let check =
        gauntlet::queue::claim_check(&bench.pool, &crate::common::bench::capabilities(), crate::common::bench::LEASE)
            .await
            .unwrap()
            .unwrap();
    let probe = gauntlet::store::models::ProbeReport { seconds_per_forward: 3.0, calibration: None };
    check.accept(&bench.pool, &[], &probe).await.unwrap();
    bench.work(|_, _| true).await;
    assert_eq!(ask(&bench, &alice, &Method::PUT, &share, None).await.status(), 204);
    for path in [&base, &format!("{base}/table"), &format!("{base}/verdicts.csv"), &format!("{base}/witnesses")] {
        assert_eq!(get(&bench, &bob, path).await.status(), 200, "{path}");
    }
    let board: Value = get(&bench, &bob, leaderboard).await.json().await.unwrap();
    assert_eq!(board["tables"][0]["rows"][0]["evaluation"], json!(evaluation));
    // Reading is all: neither the model nor any change.
    assert_eq!(get(&bench, &bob, &format!("/v1/models/{model}")).await.status(), 404);
    assert_eq!(ask(&bench, &bob, &Method::POST, &format!("{base}/cancel"), None).await.status(), 404);
    assert_eq!(ask(&bench, &bob, &Method::DELETE, &share, None).await.status(), 404);
    assert_eq!(ask(&bench, &alice, &Method::DELETE, &share, None).await.status(), 204);
    assert_eq!(get(&bench, &bob, &base).await.status(), 404);
    let board: Value = get(&bench, &bob, leaderboard).await.json().await.unwrap();
    assert_eq!(board["tables"], json!([]));
}

#[tokio::test]
async fn useless_keys_are_refused_alike_and_a_rotated_one_works_until_it_is_retired() {
    let bench = Bench::start().await;
    let path = "/v1/models";
    let good = key(&bench, "alice", &[Scope::Read]).await;
    let expires_at = Some(Utc::now() - TimeDelta::seconds(1));
    let new = NewKey { owner: "alice", label: "", scopes: &[Scope::Read], expires_at };
    let expired = keys::create(&bench.pool, &new).await.unwrap().reveal();
    let revoked = key(&bench, "alice", &[Scope::Read]).await;
    assert!(keys::revoke(&bench.pool, revoked.split('_').nth(1).unwrap()).await.unwrap());
    let (front, _) = good.rsplit_once('_').unwrap();
    let wrong = format!("{front}_{}", "0".repeat(64));
    let unknown = format!("gauntlet_{}_{}", "0".repeat(12), "0".repeat(64));
    let mut answers = Vec::new();
    for useless in [&expired, &revoked, &wrong, &unknown, &"not a key".to_owned(), &String::new()] {
        answers.push(shown(get(&bench, useless, path).await, &[]).await);
    }
    assert!(answers[0].0 == 401 && answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    let id = good.split('_').nth(1).unwrap();
    assert!(keys::retire(&bench.pool, id, 3600.0).await.unwrap());
    assert_eq!(get(&bench, &good, path).await.status(), 200);
    assert!(keys::retire(&bench.pool, id, 0.0).await.unwrap());
    assert_eq!(get(&bench, &good, path).await.status(), 401);
    // With every key useless the server stays closed.
    assert_eq!(bench.get(path).await.status(), 401);
    // The database could not give a secret away.
    let row: String =
        sqlx::query_scalar("select string_agg(k::text, '') from api_keys k").fetch_one(&bench.pool).await.unwrap();
    assert!(!row.contains(good.rsplit('_').next().unwrap()));
}

#[tokio::test]
async fn only_accepted_work_uses_up_a_quota_and_one_owner_does_not_use_up_anothers() {
    let quotas = Quotas { open_evaluations: 2, evaluations_per_day: 3, model_bytes: 10 };
    let bench = Bench::with(Settings { quotas, ..Settings::default() }).await;
    let both = [Scope::Read, Scope::Submit];
    let (alice, bob) = (key(&bench, "alice", &both).await, key(&bench, "bob", &both).await);
    let model = id(&upload(&bench, &alice, "12345678").await.json().await.unwrap());
    // Refused work costs nothing.
    for _ in 0..5 {
        let bad = evaluation_request(model, json!({"images": 0}));
        assert_eq!(ask(&bench, &alice, &Method::POST, "/v1/evaluations", Some(&bad)).await.status(), 422);
    }
    let at_once = futures::future::join_all((0..6).map(|_| submit(&bench, &alice, model))).await;
    let accepted: Vec<&Response> = at_once.iter().filter(|r| r.status() == 202).collect();
    assert_eq!(accepted.len(), 2);
    let refused = at_once.iter().find(|r| r.status() == 429).unwrap();
    assert!(refused.headers().contains_key("retry-after"));
    let page: Value = get(&bench, &alice, "/v1/evaluations").await.json().await.unwrap();
    for evaluation in page["items"].as_array().unwrap() {
        let path = format!("/v1/evaluations/{}/cancel", evaluation["id"].as_str().unwrap());
        assert_eq!(ask(&bench, &alice, &Method::POST, &path, None).await.status(), 202);
    }
    assert_eq!(submit(&bench, &alice, model).await.status(), 202);
    // The day's third was the last, though only one is open.
    let refused = submit(&bench, &alice, model).await;
    let seconds: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((86_000..=86_400).contains(&seconds), "{seconds}");
    assert_eq!(problem(refused, 429).await.0, "quota_exceeded");
    // Storage: what does not fit leaves nothing; what was deleted makes room.
    assert_eq!(problem(upload(&bench, &alice, "123").await, 429).await.1, Some("file".into()));
    assert_eq!((bench.files("models").len(), bench.files("uploads").len()), (1, 0));
    assert_eq!(upload(&bench, &alice, "12").await.status(), 201);
    let hers = upload(&bench, &bob, "1234567890").await;
    assert_eq!(hers.status(), 201);
    assert_eq!(submit(&bench, &bob, id(&hers.json().await.unwrap())).await.status(), 202);
}

#[tokio::test]
async fn requests_beyond_the_rate_are_told_when_to_come_back() {
    let bench = Bench::with(Settings { rate_per_minute: 3, ..Settings::default() }).await;
    let (alice, bob) = (key(&bench, "alice", &[Scope::Read]).await, key(&bench, "bob", &[Scope::Read]).await);
    for _ in 0..3 {
        assert_eq!(get(&bench, &alice, "/v1/models").await.status(), 200);
    }
    let refused = get(&bench, &alice, "/v1/models").await;
    let seconds: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=20).contains(&seconds), "{seconds}");
    assert_eq!(problem(refused, 429).await.0, "rate_limited");
    assert_eq!(get(&bench, &bob, "/v1/models").await.status(), 200);
}

#[tokio::test]
async fn an_address_that_others_can_reach_needs_keys() {
    let (url, _guard) = fresh_database().await;
    let data = tempfile::tempdir().unwrap();
    let gauntlet = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gauntlet"));
        command.args(arguments).arg("--data-dir").arg(data.path()).current_dir(data.path()).env("DATABASE_URL", &url);
        command.env("GAUNTLET_LISTEN", "0.0.0.0:0").env("GAUNTLET_METRICS_LISTEN", "127.0.0.1:0");
        command
    };
    let refused = gauntlet(&["serve"]).output().unwrap();
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("gauntlet key create"), "{refused:?}");

    let made = gauntlet(&["key", "create", "--owner", "alice", "--scope", "admin"]).output().unwrap();
    let key = String::from_utf8(made.stdout).unwrap().trim().to_owned();
    let listed = gauntlet(&["key", "list"]).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(listed.contains("alice") && !listed.contains(key.rsplit('_').next().unwrap()), "{listed}");

    let mut server = gauntlet(&["serve"]).stderr(Stdio::piped()).spawn().unwrap();
    let log = std::io::BufReader::new(server.stderr.take().unwrap());
    let line = std::io::BufRead::lines(log).map(Result::unwrap).find(|line| line.contains("API on")).unwrap();
    let port = line.split("0.0.0.0:").nth(1).unwrap().split(' ').next().unwrap();
    let address = format!("http://127.0.0.1:{port}/v1/models");
    let client = reqwest::Client::builder().timeout(Duration::from_secs(20)).build().unwrap();
    assert_eq!(client.get(&address).send().await.unwrap().status(), 401);
    assert_eq!(client.get(&address).bearer_auth(&key).send().await.unwrap().status(), 200);
    server.kill().unwrap();
    server.wait().unwrap();
    let database = pool::connect(&url, 1).await.unwrap();
    assert!(keys::any(&database).await.unwrap());
}

#[tokio::test]
async fn pages_from_elsewhere_cannot_use_a_server_that_asks_for_no_key() {
    let bench = Bench::start().await;
    let status = async |name: &str, value: &str| {
        let request = bench.client.get(bench.at("/v1/models")).header(name, value);
        problem_or_ok(request.send().await.unwrap()).await
    };
    assert_eq!(status("origin", &bench.url).await, None);
    for (name, value) in
        [("origin", "https://pages.example"), ("host", "rebound.example"), ("x-forwarded-for", "1.2.3.4")]
    {
        assert_eq!(status(name, value).await.as_deref(), Some("forbidden"), "{name}");
    }
}

/// The code of a refusal.
async fn problem_or_ok(response: Response) -> Option<String> {
    if response.status().is_success() {
        return None;
    }
    Some(response.json::<Value>().await.unwrap()["code"].as_str().unwrap().to_owned())
}

/// Opens the stream of an evaluation and waits for its first event.
async fn follow(bench: &Bench, key: &str, evaluation: Uuid) -> Response {
    let mut stream = get(bench, key, &format!("/v1/evaluations/{evaluation}/events")).await;
    let mut heard = String::new();
    while !heard.contains("event: state") {
        heard += std::str::from_utf8(&stream.chunk().await.unwrap().unwrap()).unwrap();
    }
    stream
}

#[tokio::test]
async fn a_stream_ends_when_its_reader_may_not_read_any_more() {
    let bench = Bench::start().await;
    let (alice, bob) =
        (key(&bench, "alice", &[Scope::Submit, Scope::Read]).await, key(&bench, "bob", &[Scope::Read]).await);
    let evaluation = alices(&bench, &alice, "hers").await.evaluation;
    let share = async |shared: bool| assert!(evaluations::share(&bench.pool, None, evaluation, shared).await.unwrap());
    share(true).await;
    let (mut hers, mut his) = (follow(&bench, &alice, evaluation).await, follow(&bench, &bob, evaluation).await);
    share(false).await;
    while his.chunk().await.unwrap().is_some() {}
    assert!(keys::revoke(&bench.pool, alice.split('_').nth(1).unwrap()).await.unwrap());
    // Any change of the evaluation has the stream look again at once.
    share(true).await;
    while hers.chunk().await.unwrap().is_some() {}
}

#[tokio::test]
async fn streams_of_one_owner_are_counted() {
    let bench = Bench::start().await;
    let alice = key(&bench, "alice", &[Scope::Submit, Scope::Read]).await;
    let evaluation = alices(&bench, &alice, "hers").await.evaluation;
    let mut open = Vec::new();
    for _ in 0..100 {
        open.push(follow(&bench, &alice, evaluation).await);
    }
    let refused = get(&bench, &alice, &format!("/v1/evaluations/{evaluation}/events")).await;
    assert_eq!(problem(refused, 429).await.0, "rate_limited");
}
