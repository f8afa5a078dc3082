//! Every error is a problem document.

use std::time::Duration;

use gauntlet::http::Settings;
use reqwest::{Method, Response};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
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

/// Sends bytes and reads until the server closes.
async fn raw(bench: &Bench, bytes: &[u8]) -> String {
    let mut socket = TcpStream::connect(bench.url.strip_prefix("http://").unwrap()).await.unwrap();
    socket.write_all(bytes).await.ok();
    let mut answer = Vec::new();
    let closed = tokio::time::timeout(Duration::from_secs(60), socket.read_to_end(&mut answer)).await;
    assert!(
        closed.is_ok(),
        "the server waits for more of {:?}",
        String::from_utf8_lossy(&bytes[..bytes.len().min(80)])
    );
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn clients_that_send_slowly_or_without_end_are_let_go_and_others_are_served() {
    let bench = Bench::with(Settings { read_patience: Duration::from_millis(300), ..Settings::default() }).await;
    // Nothing; half a head; a body that stops.
    let (none, half, body) = tokio::join!(
        raw(&bench, b""),
        raw(&bench, b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX-Slow: "),
        raw(&bench, b"POST /v1/protocols HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{\"na"),
    );
    assert!(!none.contains("200 OK") && !half.contains("200 OK"), "{none:?} {half:?}");
    assert!(body.starts_with("HTTP/1.1 400 ") && body.contains("bad_json"), "{body:?}");
    let form = "--x\r\ncontent-disposition: form-data; name=\"file\"; filename=\"m\"\r\n\r\n0123";
    let head = "POST /v1/models HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: 9999";
    let upload = raw(&bench, format!("{head}\r\n\r\n{form}").as_bytes()).await;
    assert!(upload.starts_with("HTTP/1.1 400 ") && upload.contains("bad_multipart"), "{upload:?}");
    assert!(bench.files("uploads").is_empty());
    let long =
        raw(&bench, format!("GET /v1/models HTTP/1.1\r\nX-Long: {}\r\n\r\n", "x".repeat(1 << 20)).as_bytes()).await;
    assert!(long.is_empty() || long.starts_with("HTTP/1.1 431 "), "{long:?}");
    let many: String = (0..500).map(|i| format!("X-{i}: 1\r\n")).collect();
    let many = raw(&bench, format!("GET /v1/models HTTP/1.1\r\n{many}\r\n").as_bytes()).await;
    assert!(many.is_empty() || many.starts_with("HTTP/1.1 431 "), "{many:?}");
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01\x00"[..],
        b"GET / HTTP/9.9\r\n\r\n",
        b"\r\n\r\n\r\n",
        b"\xff\xfe\xfd / HTTP/1.1\r\n\r\n",
    ] {
        assert!(!raw(&bench, garbage).await.contains("200 OK"));
    }
    let lengths =
        b"POST /v1/protocols HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!";
    assert!(raw(&bench, lengths).await.starts_with("HTTP/1.1 400 "));
    bench.json("/v1/models").await;
}

#[tokio::test]
async fn names_that_mean_something_to_files_and_databases_are_only_names() {
    let bench = Bench::start().await;
    let form = |name: &str, file: &str| {
        let part = reqwest::multipart::Part::bytes(name.as_bytes().to_vec()).file_name(file.to_owned());
        let spec = json!({"input": [1, 2, 2], "classes": 3}).to_string();
        reqwest::multipart::Form::new().text("spec", spec).text("name", name.to_owned()).part("file", part)
    };
    let names = [
        "../../etc/passwd",
        "'; drop table models; --",
        "%2e%2e%2f",
        "$(reboot)",
        "a\u{202e}b",
        "<script>",
        "💥",
        "con",
    ];
    for name in names {
        let made = bench.upload(form(name, "../../../../tmp/evil")).await;
        assert_eq!(made.status(), 201, "{name}");
        let made: Value = made.json().await.unwrap();
        assert_eq!(bench.json(&format!("/v1/models/{}", made["id"].as_str().unwrap())).await["name"], name);
    }
    assert_eq!(bench.files("models").len(), names.len());
    for name in ["a\0b", "", "line\nbreak"] {
        assert_eq!(problem(bench.upload(form(name, "m")).await, 422).await.1.as_deref(), Some("name"), "{name:?}");
    }
    let quoted = "'%20or%20'1'='1";
    for (path, code) in [
        (format!("/v1/datasets/{quoted}"), "dataset_not_found"),
        ("/v1/datasets/..%2f..%2fetc%2fpasswd".into(), "dataset_not_found"),
        (format!("/v1/protocols/{quoted}"), "protocol_not_found"),
        (format!("/v1/models/{quoted}"), "bad_path"),
    ] {
        let answer = bench.get(&path).await;
        let status = answer.status().as_u16();
        assert_eq!(problem(answer, status).await.0, code, "{path}");
    }
    assert_eq!(bench.json(&format!("/v1/evaluations?protocol={quoted}")).await["items"], json!([]));
}
