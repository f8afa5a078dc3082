//! What is kept for how long, and what deletion leaves: nothing.

use std::process::Command;
use std::time::{Duration, SystemTime};

use gauntlet::http::Settings;
use gauntlet::queue::Ending;
use gauntlet::store::Quotas;
use reqwest::StatusCode;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::common::bench::{Bench, evaluation_request, id, model_form};
use crate::problems::problem;

/// Every row of every table that says this.
async fn rows_that_name(bench: &Bench, what: Uuid) -> Vec<String> {
    let tables: Vec<String> = sqlx::query_scalar("select tablename::text from pg_tables where schemaname = 'public'")
        .fetch_all(&bench.pool)
        .await
        .unwrap();
    let mut found = Vec::new();
    for table in tables {
        // Stored answers are bytes.
        let text =
            if table == "idempotency_keys" { "t::text || coalesce(convert_from(body, 'UTF8'), '')" } else { "t::text" };
        let sql = format!("select '{table}: ' || t::text from {table} t where {text} like '%' || $1::text || '%'");
        found.extend(
            sqlx::query_scalar::<_, String>(sqlx::AssertSqlSafe(sql)).bind(what).fetch_all(&bench.pool).await.unwrap(),
        );
    }
    found
}

fn files(bench: &Bench) -> Vec<String> {
    let mut all = Vec::new();
    let mut folders = vec![bench.folder.path().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            match entry.path().is_dir() {
                true => folders.push(entry.path()),
                false => all.push(entry.path().strip_prefix(bench.folder.path()).unwrap().display().to_string()),
            }
        }
    }
    all.sort();
    all
}

async fn delete(bench: &Bench, path: &str) -> reqwest::Response {
    bench.client.delete(bench.at(path)).send().await.unwrap()
}

/// A finished evaluation with verdicts, witnesses, a log and an answer that is kept.
async fn finished(bench: &Bench, model: Uuid) -> Uuid {
    let request = bench.client.post(bench.at("/v1/evaluations")).header("idempotency-key", Uuid::new_v4().to_string());
    let evaluation =
        id(&request.json(&evaluation_request(model, json!({}))).send().await.unwrap().json().await.unwrap());
    let claimed = bench.claim().await.unwrap();
    let key = format!("logs/{evaluation}/{}-{}.txt", claimed.lease.shard, claimed.lease.token());
    bench.artifacts.put(&key, b"a log".to_vec()).await.unwrap();
    claimed.lease.keep_log(&bench.pool, Ending::Results, &key, 5, &["a log".into()]).await.unwrap();
    bench.finish(claimed, &|_, _| false).await;
    bench.work(|_, _| false).await;
    evaluation
}

#[tokio::test]
async fn a_deleted_evaluation_is_gone_from_every_table_and_folder_and_its_neighbour_is_not() {
    let bench = Bench::start().await;
    let model = bench.ready_model("m").await;
    let hook = bench.post("/v1/webhooks", &json!({"url": "https://example.com/"})).await;
    assert_eq!(hook.status(), 201);
    let (gone, stays) = (finished(&bench, model).await, finished(&bench, model).await);
    let key = bench.client.post(bench.at(&format!("/v1/evaluations/{gone}/cancel"))).header("idempotency-key", "c");
    assert_eq!(key.send().await.unwrap().status(), 409);
    let running = bench.evaluation(model, json!({})).await;
    let refused = delete(&bench, &format!("/v1/evaluations/{running}")).await;
    assert_eq!(problem(refused, 409).await.0, "evaluation_unfinished");
    assert!(rows_that_name(&bench, gone).await.len() > 10);
    let count = |of: Uuid| files(&bench).iter().filter(|file| file.contains(&of.to_string())).count();
    let neighbour = (rows_that_name(&bench, stays).await.len(), count(stays));
    assert!(count(gone) > 4 && count(gone) == neighbour.1);

    assert_eq!(delete(&bench, &format!("/v1/evaluations/{gone}")).await.status(), 204);
    assert_eq!(rows_that_name(&bench, gone).await, Vec::<String>::new());
    assert_eq!(count(gone), 0);
    assert_eq!((rows_that_name(&bench, stays).await.len(), count(stays)), neighbour);
    for path in ["", "/table", "/events", "/shards", "/verdicts.csv"] {
        problem(bench.get(&format!("/v1/evaluations/{gone}{path}")).await, 404).await;
    }
    problem(delete(&bench, &format!("/v1/evaluations/{gone}")).await, 404).await;
    assert_eq!(bench.get(&format!("/v1/evaluations/{stays}/verdicts.csv")).await.status(), 200);
}

#[tokio::test]
async fn a_deleted_model_is_gone_when_nothing_refers_to_it_any_more() {
    let bench = Bench::start().await;
    let lonely = bench.model("lonely").await;
    assert_eq!(delete(&bench, &format!("/v1/models/{lonely}")).await.status(), 204);
    assert_eq!(rows_that_name(&bench, lonely).await, Vec::<String>::new());
    let used = bench.ready_model("used").await;
    let evaluation = finished(&bench, used).await;
    assert_eq!(delete(&bench, &format!("/v1/models/{used}")).await.status(), 204);
    // Its results say what they are of.
    assert_eq!(
        bench.json(&format!("/v1/evaluations/{evaluation}/table")).await["provenance"]["model"]["id"],
        json!(used)
    );
    assert_eq!(delete(&bench, &format!("/v1/evaluations/{evaluation}")).await.status(), 204);
    assert_eq!(rows_that_name(&bench, used).await, Vec::<String>::new());
    assert!(files(&bench).iter().all(|file| file.starts_with("datasets/")), "{:?}", files(&bench));
}

#[tokio::test]
async fn deleting_evaluations_gives_no_place_of_the_days_quota_back() {
    let quotas = Quotas { evaluations_per_day: 1, ..Quotas::NONE };
    let bench = Bench::with(Settings { quotas, ..Settings::default() }).await;
    let new = gauntlet::store::keys::NewKey {
        owner: "alice",
        label: "",
        scopes: &[gauntlet::store::keys::Scope::Submit],
        expires_at: None,
    };
    let key = gauntlet::store::keys::create(&bench.pool, &new).await.unwrap().reveal();
    let send = async |request: reqwest::RequestBuilder| request.bearer_auth(&key).send().await.unwrap();
    let model =
        id(&send(bench.client.post(bench.at("/v1/models")).multipart(model_form("m"))).await.json().await.unwrap());
    let submit = async || {
        let request = bench.client.post(bench.at("/v1/evaluations"));
        send(request.json(&evaluation_request(model, json!({})))).await
    };
    let evaluation = format!("/v1/evaluations/{}", id(&submit().await.json().await.unwrap()));
    assert_eq!(send(bench.client.post(bench.at(&format!("{evaluation}/cancel")))).await.status(), 202);
    assert_eq!(send(bench.client.delete(bench.at(&evaluation))).await.status(), 204);
    assert_eq!(problem(submit().await, 429).await.0, "quota_exceeded");
}

fn gauntlet(bench: &Bench, arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_gauntlet"))
        .args(arguments)
        .env("DATABASE_URL", &bench.database_url)
        .env("GAUNTLET_ARTIFACTS", bench.folder.path())
        .env("GAUNTLET_RETENTION__MODEL_DAYS", "7")
        .env("GAUNTLET_RETENTION__LOG_DAYS", "7")
        .current_dir(bench.folder.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn gc(bench: &Bench, more: &[&str]) -> Value {
    serde_json::from_str(&gauntlet(bench, &[&["gc", "--format", "json"], more].concat())).unwrap()
}

/// Makes files look as old as this.
fn age(bench: &Bench, files: impl Iterator<Item = String>, days: u64) {
    for file in files {
        let file = std::fs::File::options().append(true).open(bench.folder.path().join(file)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(days * 24 * 3600)).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gc_removes_what_nothing_names_and_nothing_else() {
    let bench = Bench::start().await;
    let model = bench.ready_model("m").await;
    let evaluation = finished(&bench, model).await;
    let open = bench.evaluation(model, json!({})).await;
    let nobody = Uuid::new_v4();
    let upload = id(&bench.post("/v1/uploads", &json!({"bytes": 4})).await.json().await.unwrap());
    let piece = bench.client.patch(bench.at(&format!("/v1/uploads/{upload}"))).header("upload-offset", 0);
    let piece = piece.header("content-type", "application/offset+octet-stream").body("12").send().await.unwrap();
    assert_eq!(piece.status(), StatusCode::NO_CONTENT);
    let kept = files(&bench);
    let orphans = [
        format!("verdicts/{nobody}/1-a.parquet"),
        format!("verdicts/{evaluation}/lost-attempt.parquet"),
        format!("witnesses/{evaluation}/lost-attempt.safetensors"),
        format!("logs/{nobody}/1-a.txt"),
        format!("checkpoints/{evaluation}/1-0"),
        format!("parts/{nobody}-0"),
        format!("models/{}", "0".repeat(64)),
        "uploads/left".to_owned(),
    ];
    let needed = [format!("checkpoints/{open}/1-0"), "verdicts/no-evaluation.txt".into(), "frost/picture".into()];
    for file in orphans.iter().chain(&needed) {
        bench.artifacts.put(file, b"12345".to_vec()).await.unwrap();
    }
    // Fresh, they may be about to be named.
    assert_eq!(gc(&bench, &[]), json!({}));
    let all = files(&bench);
    age(&bench, all.iter().cloned(), 2);
    let expected = json!({"files that nothing names": {"count": orphans.len(), "bytes": 5 * orphans.len()}});
    assert_eq!((gc(&bench, &["--dry-run"]), files(&bench)), (expected.clone(), all));
    assert_eq!(gc(&bench, &[]), expected);
    let mut left: Vec<String> = kept.into_iter().chain(needed).collect();
    left.sort();
    assert_eq!(files(&bench), left);
    assert_eq!(bench.get(&format!("/v1/evaluations/{evaluation}/witnesses")).await.status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_past_its_time_goes_by_its_owners_rule_and_verdicts_stay() {
    let bench = Bench::start().await;
    let model = bench.ready_model("old").await;
    let (old, recent) = (finished(&bench, model).await, finished(&bench, model).await);
    let fresh = bench.model("fresh").await;
    let later = async |sql: &'static str| sqlx::query(sql).execute(&bench.pool).await.unwrap();
    sqlx::query("update models set used_at = used_at - interval '30 days' where id = $1")
        .bind(model)
        .execute(&bench.pool)
        .await
        .unwrap();
    sqlx::query("update evaluations set finished_at = finished_at - interval '10 days' where id = $1")
        .bind(old)
        .execute(&bench.pool)
        .await
        .unwrap();
    later("update idempotency_keys set created_at = created_at - interval '2 days'").await;
    gauntlet(&bench, &["retention", "set", "--owner", "local", "--witness-days", "5"]);
    assert!(gauntlet(&bench, &["retention", "list"]).contains("local"));
    let would = gc(&bench, &["--dry-run"]);
    assert_eq!(would["witnesses past their time"]["count"], 2, "{would}");
    assert!(would["witnesses past their time"]["bytes"].as_u64() > Some(100));
    assert_eq!(
        (&would["logs past their time"], &would["stored answers"]["count"]),
        (&json!({"count": 1, "bytes": 5}), &json!(2))
    );
    assert_eq!(gc(&bench, &[]), would);
    assert_eq!(gc(&bench, &[]), json!({}));

    let refused = bench.get(&format!("/v1/evaluations/{old}/witnesses")).await;
    assert_eq!(problem(refused, 410).await.0, "witnesses_expired");
    assert_eq!(problem(bench.get(&format!("/v1/evaluations/{old}/shards/0/log")).await, 404).await.0, "log_not_found");
    assert_eq!(bench.get(&format!("/v1/evaluations/{old}/verdicts.csv")).await.status(), 200);
    let told: Vec<String> = sqlx::query_scalar("select distinct kind from events where evaluation_id = $1")
        .bind(old)
        .fetch_all(&bench.pool)
        .await
        .unwrap();
    assert_eq!(told, ["state"]);
    for path in ["witnesses", "shards/0/log"] {
        assert_eq!(bench.get(&format!("/v1/evaluations/{recent}/{path}")).await.status(), 200);
    }
    // Used ten days ago by the one, today by the other: kept until both are long over.
    assert_eq!(bench.get(&format!("/v1/models/{model}")).await.status(), 200);
    later("update evaluations set finished_at = finished_at - interval '30 days'").await;
    assert_eq!(gc(&bench, &[])["models past their time"], json!({"count": 1, "bytes": 3}));
    problem(bench.get(&format!("/v1/models/{model}")).await, 404).await;
    assert_eq!(bench.get(&format!("/v1/models/{fresh}")).await.status(), 200);
    gauntlet(&bench, &["retention", "clear", "--owner", "local"]);
}
