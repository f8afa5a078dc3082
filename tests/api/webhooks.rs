//! Being told by HTTP.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use base64::Engine as _;
use gauntlet::http::Settings;
use gauntlet::store::webhooks::{self, Attempt};
use gauntlet::webhook::{Deliverer, Manner, sign};
use serde_json::{Value, json};
use tokio::sync::Notify;
use uuid::Uuid;

use crate::common::bench::{Bench, id};
use crate::problems::problem;

/// What a receiver was sent.
#[derive(Debug, Clone)]
struct Heard {
    id: String,
    timestamp: i64,
    signature: String,
    body: String,
}

impl Heard {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

/// A receiver on loopback; it answers what it is told to, and 204 afterwards.
#[derive(Clone, Default)]
struct Receiver {
    heard: Arc<Mutex<Vec<Heard>>>,
    answers: Arc<Mutex<Vec<u16>>>,
    news: Arc<Notify>,
    port: u16,
}

impl Receiver {
    async fn start(answers: &[u16]) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let this = Self { answers: Arc::new(Mutex::new(answers.to_vec())), port, ..Self::default() };
        let app = Router::new().fallback(receive).with_state(this.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        this
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/hook", self.port)
    }

    /// Waits until so many deliveries have arrived.
    async fn heard(&self, n: usize) -> Vec<Heard> {
        let wait = async {
            loop {
                let more = self.news.notified();
                let heard = self.heard.lock().unwrap().clone();
                if heard.len() >= n {
                    return heard;
                }
                more.await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), wait).await.expect("deliveries are missing")
    }
}

async fn receive(State(receiver): State<Receiver>, headers: HeaderMap, body: String) -> impl IntoResponse {
    let text = |name| headers[name].to_str().unwrap().to_owned();
    assert_eq!(headers["content-type"], "application/json");
    let timestamp = text("webhook-timestamp").parse().unwrap();
    let heard = Heard { id: text("webhook-id"), timestamp, signature: text("webhook-signature"), body };
    receiver.heard.lock().unwrap().push(heard);
    receiver.news.notify_waiters();
    let mut answers = receiver.answers.lock().unwrap();
    let status = if answers.is_empty() { 204 } else { answers.remove(0) };
    (StatusCode::from_u16(status).unwrap(), [("location", "http://127.0.0.1:1/")])
}

const OPEN: Manner = Manner { private: true, timeout: Duration::from_secs(15) };

async fn bench() -> Bench {
    Bench::with(Settings { webhooks: OPEN, ..Settings::default() }).await
}

async fn hook(bench: &Bench, receiver: &Receiver, more: Value) -> (Uuid, Vec<u8>) {
    let mut request = json!({"url": receiver.url()});
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let made = bench.post("/v1/webhooks", &request).await;
    assert_eq!(made.status(), 201);
    let made: Value = made.json().await.unwrap();
    let secret = made["secret"].as_str().unwrap().strip_prefix("whsec_").unwrap();
    (id(&made), base64::engine::general_purpose::STANDARD.decode(secret).unwrap())
}

/// Waits until the newest delivery looks as wanted.
async fn delivery(bench: &Bench, hook: Uuid, wanted: impl Fn(&Value) -> bool) -> Value {
    for _ in 0..600 {
        let log = bench.json(&format!("/v1/webhooks/{hook}/deliveries")).await;
        let newest = log["items"][0].clone();
        if wanted(&newest) {
            return newest;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the delivery did not come to look as wanted");
}

async fn hurry(bench: &Bench) {
    sqlx::query("update webhook_deliveries set not_before = now()").execute(&bench.pool).await.unwrap();
}

#[tokio::test]
async fn what_is_committed_is_told_once_signed_by_however_many_servers() {
    let (bench, receiver) = (bench().await, Receiver::start(&[]).await);
    // Two more servers on the same database.
    for _ in 0..2 {
        let deliverer = Deliverer::new(bench.pool.clone(), OPEN).unwrap();
        tokio::spawn(deliverer.run(bench.shutdown.clone()));
    }
    let all = json!({"events": ["state", "progress", "results", "attempt_failed", "restart"]});
    let (hook, secret) = hook(&bench, &receiver, all).await;
    let model = bench.ready_model("m").await;
    let evaluation = bench.evaluation(model, json!({})).await;
    bench.work(|_, _| true).await;
    let told: Vec<i64> = sqlx::query_scalar("select id from events order by id").fetch_all(&bench.pool).await.unwrap();
    let heard = receiver.heard(told.len()).await;
    let sql = "select count(*) from webhook_deliveries where state = 'waiting'";
    while sqlx::query_scalar::<_, i64>(sql).fetch_one(&bench.pool).await.unwrap() > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(receiver.heard.lock().unwrap().len(), told.len());
    let ids: HashSet<&String> = heard.iter().map(|h| &h.id).collect();
    let events: HashSet<i64> = heard.iter().map(|h| h.json()["data"]["event"].as_i64().unwrap()).collect();
    assert_eq!((ids.len(), events), (told.len(), told.into_iter().collect()));
    for Heard { id, timestamp, signature, body } in &heard {
        assert_eq!(*signature, sign::signature(&secret, id, *timestamp, body.as_bytes()));
        assert!((chrono::Utc::now().timestamp() - timestamp).abs() < 120);
    }
    let end = heard.iter().map(Heard::json).find(|body| body["data"]["state"] == "succeeded").unwrap();
    assert_eq!(
        (&end["type"], &end["data"]["evaluation"], &end["data"]["model"]),
        (&json!("evaluation.state"), &json!(evaluation), &json!(model))
    );
    let log = bench.json(&format!("/v1/webhooks/{hook}/deliveries")).await;
    assert!(log["items"].as_array().unwrap().iter().all(|d| d["state"] == "delivered" && d["response_status"] == 204));
    // The secret was shown once.
    assert_eq!(bench.json(&format!("/v1/webhooks/{hook}")).await.get("secret"), None);
}

#[tokio::test]
async fn a_failing_receiver_is_tried_again_with_the_same_id_and_redirects_lead_nowhere() {
    let (bench, receiver) = (bench().await, Receiver::start(&[500, 302]).await);
    let (hook, _) = hook(&bench, &receiver, json!({})).await;
    let asked: Value = bench.post(&format!("/v1/webhooks/{hook}/test"), &json!({})).await.json().await.unwrap();
    let first = delivery(&bench, hook, |d| d["error"].is_string()).await;
    assert_eq!(
        (&first["state"], &first["response_status"], &first["attempts"]),
        (&json!("waiting"), &json!(500), &json!(1))
    );
    let pause = first["next_attempt_at"].as_str().unwrap().parse::<chrono::DateTime<chrono::Utc>>().unwrap()
        - first["attempted_at"].as_str().unwrap().parse::<chrono::DateTime<chrono::Utc>>().unwrap();
    assert!((7..20).contains(&pause.num_seconds()), "{pause}");
    hurry(&bench).await;
    let second = delivery(&bench, hook, |d| d["attempts"] == 2 && d["response_status"] == 302).await;
    assert!(second["error"].as_str().unwrap().contains("redirects are not followed"));
    assert!(bench.json(&format!("/v1/webhooks/{hook}")).await["failing_since"].is_string());
    hurry(&bench).await;
    delivery(&bench, hook, |d| d["state"] == "delivered").await;
    let heard = receiver.heard(3).await;
    assert!(heard.iter().all(|h| h.id == asked["id"] && h.body == heard[0].body));
    assert_eq!(bench.json(&format!("/v1/webhooks/{hook}")).await["failing_since"], Value::Null);

    let again = format!("/v1/webhooks/{hook}/deliveries/{}/redeliver", heard[0].id);
    assert_eq!(bench.post(&again, &json!({})).await.status(), 202);
    assert_eq!(receiver.heard(4).await[3].id, heard[0].id);
    let nowhere = format!("/v1/webhooks/{hook}/deliveries/{}/redeliver", Uuid::nil());
    assert_eq!(problem(bench.post(&nowhere, &json!({})).await, 404).await.0, "delivery_not_found");
}

#[tokio::test]
async fn nothing_is_sent_into_the_private_network() {
    let (bench, receiver) = (Bench::start().await, Receiver::start(&[]).await);
    for url in [receiver.url(), format!("https://127.0.0.1:{}/", receiver.port), "https://[::1]/".into()] {
        let refused = bench.post("/v1/webhooks", &json!({"url": url})).await;
        assert_eq!(problem(refused, 422).await.1, Some("url".into()));
    }
    // A name that turns out to be this machine's.
    let url = format!("https://localhost:{}/", receiver.port);
    let made: Value = bench.post("/v1/webhooks", &json!({"url": url})).await.json().await.unwrap();
    bench.post(&format!("/v1/webhooks/{}/test", id(&made)), &json!({})).await;
    let failed = delivery(&bench, id(&made), |d| d["error"].is_string()).await;
    assert!(failed["error"].as_str().unwrap().contains("not an address of the public internet"), "{failed}");
    // One from before the setting was changed.
    sqlx::query("update webhooks set url = $1").bind(receiver.url()).execute(&bench.pool).await.unwrap();
    hurry(&bench).await;
    delivery(&bench, id(&made), |d| d["attempts"] == 2 && d["error"].is_string()).await;
    assert_eq!(receiver.heard.lock().unwrap().len(), 0);
}

#[tokio::test]
async fn webhooks_hear_of_what_they_asked_for_and_of_nothing_else() {
    let (bench, receiver) = (bench().await, Receiver::start(&[]).await);
    let (one, other) = (bench.ready_model("one").await, bench.ready_model("other").await);
    let evaluation = bench.evaluation(one, json!({})).await;
    hook(&bench, &receiver, json!({"model": other})).await;
    hook(&bench, &receiver, json!({"evaluation": evaluation, "events": ["results"]})).await;
    let second = bench.evaluation(other, json!({})).await;
    bench.work(|_, _| true).await;
    // Three states of the second evaluation, four results of the first.
    let heard = receiver.heard(7).await;
    let of = |kind: &str, id: Uuid| {
        heard.iter().map(Heard::json).filter(|b| b["type"] == kind && b["data"]["evaluation"] == json!(id)).count()
    };
    assert_eq!((of("evaluation.state", second), of("evaluation.results", evaluation)), (3, 4));
    assert_eq!(
        sqlx::query_scalar::<_, i64>("select count(*) from webhook_deliveries").fetch_one(&bench.pool).await.unwrap(),
        7
    );
    for (field, value) in [("evaluation", json!(Uuid::nil())), ("model", json!(Uuid::nil())), ("events", json!([]))] {
        let refused = bench.post("/v1/webhooks", &json!({"url": receiver.url(), field: value})).await;
        assert_eq!(problem(refused, 422).await.1.as_deref(), Some(field));
    }
}

#[tokio::test]
async fn a_receiver_that_is_gone_is_left_alone_until_its_owner_says_otherwise() {
    let (bench, receiver) = (bench().await, Receiver::start(&[410, 500]).await);
    let (hook, _) = hook(&bench, &receiver, json!({})).await;
    let path = format!("/v1/webhooks/{hook}");
    let test = async || bench.post(&format!("{path}/test"), &json!({})).await;
    assert_eq!(test().await.status(), 202);
    delivery(&bench, hook, |d| d["response_status"] == 410).await;
    assert!(bench.json(&path).await["disabled_reason"].as_str().unwrap().contains("410"));
    assert_eq!(problem(test().await, 409).await.0, "webhook_disabled");
    bench.evaluation(bench.ready_model("m").await, json!({})).await;
    let enable = bench.client.put(bench.at(&format!("{path}/enabled")));
    assert_eq!(enable.send().await.unwrap().status(), 204);
    // Days of failures, as this server has no time to wait for.
    sqlx::query("update webhooks set failing_since = now() - interval '73 hours'").execute(&bench.pool).await.unwrap();
    // What waited when it was disabled was given up.
    assert_eq!(bench.json(&format!("{path}/deliveries")).await["items"][0]["state"], "failed");
    assert_eq!(test().await.status(), 202);
    for _ in 0..600 {
        if bench.json(&path).await["disabled_at"].is_string() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let disabled = bench.json(&path).await;
    let reason = disabled["disabled_reason"].as_str().unwrap();
    assert!(reason.contains("nothing could be delivered since") && reason.contains("500"), "{reason}");
    // The test alone: what happened while it was disabled was not put by.
    assert_eq!(receiver.heard(2).await.len(), 2);
    assert_eq!(bench.client.delete(bench.at(&path)).send().await.unwrap().status(), 204);
    assert_eq!(problem(bench.get(&path).await, 404).await.0, "webhook_not_found");
}

#[tokio::test]
async fn a_delivery_whose_server_died_is_taken_over_and_the_dead_one_changes_nothing() {
    let mut bench = bench().await;
    // The server's own deliverer must not help.
    bench.shutdown.cancel();
    bench.server.take().unwrap().await.unwrap().unwrap();
    let events = ["state".to_owned()];
    let (url, secret) = ("http://127.0.0.1:1/", b"secret");
    let id = Uuid::now_v7();
    let new = webhooks::NewWebhook { id, owner: "local", url, events: &events, evaluation: None, model: None, secret };
    let hook = webhooks::insert(&bench.pool, &new).await.unwrap().unwrap().id;
    webhooks::test(&bench.pool, hook, Uuid::now_v7()).await.unwrap();
    let dead = webhooks::claim(&bench.pool, 10).await.unwrap().remove(0);
    assert!(webhooks::claim(&bench.pool, 10).await.unwrap().is_empty());
    hurry(&bench).await;
    let heir = webhooks::claim(&bench.pool, 10).await.unwrap().remove(0);
    assert_eq!((heir.id, heir.attempts), (dead.id, 2));
    let ended = |error: Option<&str>| Attempt { status: None, error: error.map(str::to_owned), gone: false };
    webhooks::finish(&bench.pool, &heir, &ended(None)).await.unwrap();
    webhooks::finish(&bench.pool, &dead, &ended(Some("too late"))).await.unwrap();
    let log = webhooks::deliveries(&bench.pool, hook, None, 10).await.unwrap();
    assert_eq!((log[0].state.as_str(), log[0].error.as_deref()), ("delivered", None));
}

#[tokio::test]
async fn deleting_a_webhook_holds_up_no_result() {
    let (bench, receiver) = (bench().await, Receiver::start(&[]).await);
    let (hook, _) = hook(&bench, &receiver, json!({"events": ["progress", "state", "results"]})).await;
    let model = bench.ready_model("m").await;
    let evaluation = bench.evaluation(model, json!({"protocol": "clean", "set": {}, "images": 20})).await;
    let claimed = bench.claim().await.unwrap();
    let mut deletion = bench.pool.begin().await.unwrap();
    sqlx::query("delete from webhooks where id = $1").bind(hook).execute(&mut *deletion).await.unwrap();
    let committing = {
        let robust = |_: &str, _: u32| true;
        let commit = bench.finish(claimed, &robust);
        let deleting = async {
            // Once the commit waits for the deletion.
            let waits = "select count(*) > 0 from pg_stat_activity
                         where datname = current_database() and wait_event_type = 'Lock'";
            while !sqlx::query_scalar::<_, bool>(waits).fetch_one(&bench.pool).await.unwrap() {
                tokio::task::yield_now().await;
            }
            deletion.commit().await.unwrap();
        };
        tokio::join!(commit, deleting)
    };
    assert_eq!(committing, ((), ()));
    assert_eq!(bench.json(&format!("/v1/evaluations/{evaluation}")).await["state"], "succeeded");
}

#[tokio::test]
async fn one_owners_slow_receivers_hold_up_their_own_alone() {
    let bench = bench().await;
    let add = async |owner: &str, hooks: i32, age: i32| {
        let sql = "with h as (insert into webhooks (id, owner, url, events, secret)
                        select gen_random_uuid(), $1, 'http://127.0.0.1:1/', array['state'], '\\x00' from generate_series(1, $2) returning id)
                   insert into webhook_deliveries (webhook_id, body, not_before)
                   select h.id, '{}', now() - make_interval(secs => $3) from h, generate_series(1, 10)";
        sqlx::query(sql).bind(owner).bind(hooks).bind(age).execute(&bench.pool).await.unwrap();
    };
    // The server of this test delivers too; what it has taken does not matter to the shares.
    bench.shutdown.cancel();
    add("greedy", 20, 1000).await;
    add("modest", 1, 1).await;
    let claimed = webhooks::claim(&bench.pool, 32).await.unwrap();
    let sql = "select count(*) from webhook_deliveries d join webhooks w on w.id = d.webhook_id where w.owner = $1 and d.token is not null";
    let mut shares = Vec::new();
    for owner in ["greedy", "modest"] {
        shares.push(sqlx::query_scalar::<_, i64>(sql).bind(owner).fetch_one(&bench.pool).await.unwrap());
    }
    assert!(shares[0] <= 8 && shares[1] >= 1, "{shares:?} of {}", claimed.len());
}
