//! Every error is a problem document.

use reqwest::{Method, Response};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::common::bench::{Bench, evaluation_request};

/// Checks the form of an error and gives its code and field.
pub async fn problem(response: Response, status: u16) -> (String, Option<String>) {
    assert_eq!(response.status(), status);
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    assert!(response.headers().contains_key("x-request-id"));
    let body: Value = response.json().await.unwrap();
    let code = body["code"].as_str().unwrap().to_owned();
    assert_eq!((&body["status"], &body["type"]), (&json!(status), &json!(format!("/problems/{code}"))));
    assert!(body["title"].is_string() && body["detail"].as_str().unwrap().len() > 10, "{body}");
    (code, body["field"].as_str().map(str::to_owned))
}

#[tokio::test]
async fn whatever_is_wrong_with_a_request_the_answer_is_a_problem_document() {
    let bench = Bench::start().await;
    let nobody = Uuid::nil();
    for (method, path, status, code) in [
        (Method::GET, "/nowhere".to_owned(), 404, "no_such_route"),
        (Method::GET, "/v1/nowhere".to_owned(), 404, "no_such_route"),
        (Method::DELETE, "/v1/evaluations".to_owned(), 405, "method_not_allowed"),
        (Method::PUT, "/healthz".to_owned(), 405, "method_not_allowed"),
        (Method::GET, "/v1/models/not-a-uuid".to_owned(), 400, "bad_path"),
        (Method::GET, format!("/v1/models/{nobody}"), 404, "model_not_found"),
        (Method::DELETE, format!("/v1/models/{nobody}"), 404, "model_not_found"),
        (Method::GET, "/v1/models?limit=0".to_owned(), 400, "bad_query"),
        (Method::GET, "/v1/models?limits=1".to_owned(), 400, "bad_query"),
        (Method::GET, "/v1/models?cursor=abc".to_owned(), 400, "bad_cursor"),
        (Method::GET, "/v1/evaluations?state=paused".to_owned(), 400, "bad_query"),
        (Method::GET, "/v1/evaluations?protocol=%00".to_owned(), 400, "bad_query"),
        (Method::GET, format!("/v1/evaluations/{nobody}"), 404, "evaluation_not_found"),
        (Method::GET, format!("/v1/evaluations/{nobody}?wait=soon"), 400, "bad_query"),
        (Method::POST, format!("/v1/evaluations/{nobody}/cancel"), 404, "evaluation_not_found"),
        (Method::GET, format!("/v1/evaluations/{nobody}/table"), 404, "evaluation_not_found"),
        (Method::GET, format!("/v1/evaluations/{nobody}/verdicts.csv"), 404, "evaluation_not_found"),
        (Method::GET, format!("/v1/evaluations/{nobody}/witnesses"), 404, "evaluation_not_found"),
        (Method::GET, "/v1/datasets/nothing".to_owned(), 404, "dataset_not_found"),
        (Method::GET, "/v1/protocols/nothing".to_owned(), 404, "protocol_not_found"),
        (Method::GET, "/v1/protocols/pgd-linf?version=7".to_owned(), 404, "protocol_not_found"),
        (Method::GET, "/v1/leaderboard".to_owned(), 400, "bad_query"),
        (Method::GET, format!("/v1/compare?a={nobody}&b={nobody}"), 404, "evaluation_not_found"),
        (Method::GET, "/problems/nonsense".to_owned(), 404, "no_such_code"),
    ] {
        let response = bench.client.request(method.clone(), bench.at(&path)).send().await.unwrap();
        if status == 405 {
            assert!(response.headers().contains_key("allow"), "{method} {path}");
        }
        assert_eq!(problem(response, status).await.0, code, "{method} {path}");
    }
}

#[tokio::test]
async fn unusable_bodies_say_what_is_wrong_with_them() {
    let bench = Bench::start().await;
    let post = |kind: &'static str, body: String| {
        let request = bench.client.post(bench.at("/v1/protocols")).header("content-type", kind).body(body);
        async { request.send().await.unwrap() }
    };
    let json = "application/json";
    for (kind, body, status, code, field) in [
        ("text/plain", "{}".to_owned(), 415, "unsupported_media_type", None),
        (json, "{\"name\":".to_owned(), 400, "bad_json", None),
        (json, format!("\"{}\"", "x".repeat(1 << 20)), 413, "too_large", None),
        (json, "{\"name\": \"x\"} trailing".to_owned(), 400, "bad_json", None),
        (json, "{\"name\": \"x\", \"cleen\": {}}".to_owned(), 422, "invalid_protocol", Some("cleen")),
        (json, "{\"name\": \"x\", \"clean\": {}, \"description\": \"\\u0000\"}".to_owned(), 422, "invalid_field", None),
    ] {
        let shown = body.chars().take(60).collect::<String>();
        let found = problem(post(kind, body).await, status).await;
        assert_eq!(found, (code.to_owned(), field.map(str::to_owned)), "{shown}");
    }
}

#[tokio::test]
async fn an_evaluation_that_cannot_be_run_is_refused_with_the_field_at_fault() {
    let bench = Bench::start().await;
    let model = bench.ready_model("a").await;
    let catalogue = gauntlet::dataset::Catalogue::new(bench.artifacts.store());
    crate::common::bench::import(&catalogue, "more-classes", 8, 4).await;
    let inline = json!({"name": "x", "attack": [{"attack": "pgd", "norm": "l2", "epsilon": 1, "steps": 0}]});
    for (more, code, field) in [
        (json!({"model": Uuid::nil()}), "unknown_model", "model"),
        (json!({"dataset": "nothing"}), "unknown_dataset", "dataset"),
        (json!({"dataset": "more-classes"}), "class_mismatch", "dataset"),
        (json!({"protocol": "nothing"}), "unknown_protocol", "protocol"),
        (json!({"protocol": inline, "set": {}}), "invalid_protocol", "protocol.attack[0].steps"),
        (json!({"set": {"attack.l7.steps": 3}}), "invalid_protocol", "set.attack.l7.steps"),
        (json!({"set": {"steps": "3"}}), "invalid_protocol", "protocol.attack[0].steps"),
        (json!({"offset": 40}), "invalid_field", "offset"),
        (json!({"offset": 39, "images": 2}), "invalid_field", "images"),
        (json!({"images": 0}), "invalid_field", "images"),
        (json!({"seeds": []}), "invalid_field", "seeds"),
        (json!({"seeds": [1, 2, 1]}), "invalid_field", "seeds[2]"),
        (json!({"witnesses": {"sample": -1}}), "invalid_field", "witnesses.sample"),
        (json!({"priority": 101}), "invalid_field", "priority"),
        (json!({"offsett": 1}), "invalid_field", "offsett"),
    ] {
        let response = bench.post("/v1/evaluations", &evaluation_request(model, more.clone())).await;
        assert_eq!(problem(response, 422).await, (code.into(), Some(field.into())), "{more}");
    }
    assert_eq!(bench.json("/v1/evaluations").await["items"], json!([]));
}

#[tokio::test]
async fn a_shape_that_does_not_fit_is_named_on_both_sides() {
    let bench = Bench::start().await;
    let form = crate::common::bench::model_form("x").text("name", "wide");
    let wide = reqwest::multipart::Form::new()
        .text("spec", json!({"input": [3, 2, 2], "classes": 3}).to_string())
        .part("file", reqwest::multipart::Part::bytes(&b"x"[..]));
    let narrow = crate::common::bench::id(&bench.upload(form).await.json().await.unwrap());
    let wide = crate::common::bench::id(&bench.upload(wide).await.json().await.unwrap());
    assert_ne!(narrow, wide);
    let response = bench.post("/v1/evaluations", &evaluation_request(wide, json!({}))).await;
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["code"], "shape_mismatch");
    let detail = body["detail"].as_str().unwrap();
    assert!(detail.contains("1×2×2") && detail.contains("3×2×2"), "{detail}");
}
