//! Health, metrics, documentation.

use axum::Router;
use gauntlet::http::{self, AppState, Code, Settings};
use gauntlet::protocol::{Needs, Sandbox};
use gauntlet::store::Artifacts;
use gauntlet::store::workers::{self, SandboxState};
use serde_json::json;
use tower::ServiceExt;

use crate::common::bench::Bench;

#[tokio::test]
async fn readiness_names_the_part_that_fails_and_liveness_needs_none() {
    let bench = Bench::start().await;
    let ready = bench.json("/readyz").await;
    assert_eq!((&ready["ready"], ready["warnings"].as_array().unwrap().len()), (&json!(true), 1));
    bench.announce_worker().await;
    assert_eq!(bench.json("/readyz").await["warnings"], json!([]));
    bench.announce(&SandboxState::Unavailable("landlock: not there".into())).await;
    bench.announce(&SandboxState::Known(Sandbox::Off)).await;
    let warnings = bench.json("/readyz").await["warnings"].to_string();
    assert!(warnings.contains("refuses models") && warnings.contains("landlock: not there"), "{warnings}");
    assert!(warnings.contains("without a sandbox"), "{warnings}");
    // The one that refuses models does not count as a worker.
    assert_eq!(workers::crew(&bench.pool, None, &Needs::default()).await.unwrap().fitting, 2);
    sqlx::query("delete from _sqlx_migrations").execute(&bench.pool).await.unwrap();
    std::fs::remove_dir_all(bench.folder.path()).unwrap();
    let response = bench.get("/readyz").await;
    assert_eq!(response.status(), 503);
    let parts = response.json::<serde_json::Value>().await.unwrap()["parts"].clone();
    let ok: Vec<bool> = parts.as_array().unwrap().iter().map(|part| part["ok"].as_bool().unwrap()).collect();
    assert_eq!(ok[..2], [true, false], "{parts}");
    assert!(parts[1]["reason"].as_str().unwrap().contains("gauntlet migrate"));
    bench.json("/healthz").await;
}

#[tokio::test]
async fn an_unreachable_database_is_a_503_that_says_so() {
    let pool = sqlx::postgres::PgPoolOptions::new()
        .acquire_timeout(std::time::Duration::from_millis(200))
        .connect_lazy("postgres://nobody@127.0.0.1:1/nothing")
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let state =
        AppState::new(pool, Artifacts::local(folder.path()).unwrap(), Settings { open: true, ..Settings::default() });
    let app: Router = http::router(state);
    let ask = |path: &str| {
        let request = axum::http::Request::get(path).body(axum::body::Body::empty()).unwrap();
        app.clone().oneshot(request)
    };
    let response = ask("/v1/models").await.unwrap();
    assert_eq!((response.status().as_u16(), response.headers().contains_key("retry-after")), (503, true));
    assert_eq!(ask("/readyz").await.unwrap().status(), 503);
    assert_eq!(ask("/healthz").await.unwrap().status(), 200);
}

#[tokio::test]
async fn metrics_count_requests_by_route_and_read_the_queue_from_the_database() {
    let bench = Bench::start().await;
    let model = bench.ready_model("m").await;
    bench.evaluation(model, json!({})).await;
    bench.json(&format!("/v1/models/{model}")).await;
    let request = axum::http::Request::get("/metrics").body(axum::body::Body::empty()).unwrap();
    let response = http::metrics_router(bench.pool.clone(), bench.artifacts.clone()).oneshot(request).await.unwrap();
    let text = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    let text = std::str::from_utf8(&text).unwrap();
    assert!(
        text.contains("gauntlet_http_requests_total{method=\"GET\",route=\"/v1/models/{id}\",status=\"200\"}"),
        "{text}"
    );
    for line in [
        "gauntlet_shards{state=\"queued\"} 4",
        "gauntlet_evaluations{state=\"queued\"} 1",
        "gauntlet_models{state=\"ready\"} 1",
        "gauntlet_queue_runnable_shards 4",
        "gauntlet_queue_waiting_evaluations{reason=\"no_worker\"} 1",
        "gauntlet_queue_waiting_evaluations{reason=\"queue\"} 0",
        "gauntlet_workers{device=\"cuda\",state=\"accepting\"} 0",
        "gauntlet_database_up 1",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

#[tokio::test]
async fn documentation_works_offline_and_every_error_code_has_its_page() {
    let bench = Bench::start().await;
    let page = bench.get("/docs/").await.text().await.unwrap();
    assert!(page.contains("swagger-ui") && !page.contains("https://"));
    let description = bench.get("/openapi.yaml").await.text().await.unwrap();
    assert_eq!(description, http::openapi_yaml());
    for code in Code::ALL {
        let page = bench.json(&format!("/problems/{}", code.name())).await;
        assert_eq!(page["status"], code.status().as_u16());
    }
}

#[tokio::test]
async fn a_request_keeps_the_id_it_came_with_and_answers_are_compressed_on_request() {
    let bench = Bench::start().await;
    let request = bench.client.get(bench.at("/v1/protocols"));
    let response = request.header("x-request-id", "abc").header("accept-encoding", "gzip").send().await.unwrap();
    assert_eq!(
        (&response.headers()["x-request-id"], &response.headers()["content-encoding"]),
        (&"abc".parse().unwrap(), &"gzip".parse().unwrap())
    );
}
