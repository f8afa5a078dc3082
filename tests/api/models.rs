//! Submitting, listing and deleting models.

use std::collections::HashSet;

use gauntlet::http::Settings;
use gauntlet::queue;
use gauntlet::store::models::Rejection;
use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::common::bench::{Bench, LEASE, evaluation_request, id, model_form, spec};
use crate::problems::problem;

#[tokio::test]
async fn a_submitted_model_is_stored_under_its_hash_and_checked_later() {
    let bench = Bench::start().await;
    let response = bench.upload(model_form("weights").text("name", "my net")).await;
    assert_eq!(response.status(), 201);
    let location = response.headers()["location"].to_str().unwrap().to_owned();
    let model: Value = response.json().await.unwrap();
    let sha256 = hex::encode(Sha256::digest("weights"));
    assert_eq!(model["sha256"], sha256);
    assert_eq!((&model["name"], &model["state"], &model["bytes"]), (&json!("my net"), &json!("checking"), &json!(7)));
    assert_eq!(model["spec"]["format"], "torchscript");
    assert_eq!(bench.json(&location).await, model);
    assert_eq!(bench.files("models"), [sha256]);
    assert!(bench.files("uploads").is_empty());
}

#[tokio::test]
async fn the_same_submission_again_is_the_same_model_even_at_the_same_time() {
    let bench = Bench::start().await;
    let answers = futures::future::join_all((0..8).map(|_| bench.upload(model_form("same")))).await;
    let created = answers.iter().filter(|r| r.status() == 201).count();
    assert!(created == 1 && answers.iter().all(|r| r.status().is_success()));
    let mut ids = HashSet::new();
    for answer in answers {
        ids.insert(id(&answer.json().await.unwrap()));
    }
    assert_eq!(ids.len(), 1);
    assert_eq!((bench.files("models").len(), bench.files("uploads").len()), (1, 0));
    // Another spec makes another model of the same bytes.
    let other = Form::new().text("spec", json!({"input": [1, 2, 2], "classes": 4}).to_string());
    let other = bench.upload(other.part("file", Part::bytes(&b"same"[..]))).await;
    assert_eq!(other.status(), 201);
    assert_eq!(bench.files("models").len(), 1);
}

#[tokio::test]
async fn a_model_may_be_far_larger_than_any_other_body() {
    let bench = Bench::start().await;
    // Parts of 8 MiB are written as they come; three of them and a rest.
    let bytes: Vec<u8> = (0..25_000_000u32).map(|i| (i / 251) as u8).collect();
    let sha256 = hex::encode(Sha256::digest(&bytes));
    let form = Form::new().text("spec", spec().to_string()).part("file", Part::bytes(bytes));
    let response = bench.upload(form).await;
    assert_eq!(response.status(), 201);
    assert_eq!(response.json::<Value>().await.unwrap()["bytes"], 25_000_000);
    assert_eq!(bench.files("models"), [sha256]);
    // Everything else stays bounded.
    let long = json!({"name": "x".repeat(2 << 20)});
    assert_eq!(bench.post("/v1/protocols", &long).await.status(), 413);
}

#[tokio::test]
async fn deleting_a_model_spares_bytes_that_another_one_uses() {
    let bench = Bench::start().await;
    let first = bench.model("shared").await;
    let other = Form::new().text("spec", json!({"input": [1, 2, 2], "classes": 4}).to_string());
    let second = id(&bench.upload(other.part("file", Part::bytes(&b"shared"[..]))).await.json().await.unwrap());
    for (model, left) in [(first, 1), (second, 0)] {
        let response = bench.client.delete(bench.at(&format!("/v1/models/{model}"))).send().await.unwrap();
        assert_eq!((response.status().as_u16(), bench.files("models").len()), (204, left));
    }
    problem(bench.get(&format!("/v1/models/{first}")).await, 404).await;
    assert_eq!(bench.upload(model_form("shared")).await.status(), 201);
}

#[tokio::test]
async fn a_model_that_an_evaluation_needs_is_not_deleted() {
    let bench = Bench::start().await;
    let model = bench.model("needed").await;
    let evaluation = bench.evaluation(model, json!({})).await;
    let delete = || async { bench.client.delete(bench.at(&format!("/v1/models/{model}"))).send().await.unwrap() };
    let refused = delete().await;
    assert_eq!(refused.status(), 409);
    let refused: Value = refused.json().await.unwrap();
    assert_eq!((&refused["code"], &refused["evaluations"]), (&json!("model_in_use"), &json!([evaluation])));
    bench.post(&format!("/v1/evaluations/{evaluation}/cancel"), &json!(null)).await;
    assert_eq!(delete().await.status(), 204);
    // Its results stay readable.
    let table = bench.json(&format!("/v1/evaluations/{evaluation}/table")).await;
    assert_eq!(table["provenance"]["model"]["id"], json!(model));
}

#[tokio::test]
async fn a_form_that_cannot_be_used_leaves_nothing_behind() {
    let bench = Bench::with(Settings { max_model_bytes: 100, ..Settings::default() }).await;
    let file = || Part::bytes(&b"weights"[..]);
    let good = || spec().to_string();
    let bad_spec = |spec: Value| Form::new().part("file", file()).text("spec", spec.to_string());
    let cases = [
        (Form::new().text("spec", good()), 422, "invalid_field", "file"),
        (Form::new().part("file", file()), 422, "invalid_field", "spec"),
        (Form::new().part("file", file()).text("spec", "{"), 400, "bad_json", "spec"),
        (bad_spec(json!({"input": [1, 2, 2]})), 422, "invalid_spec", "spec"),
        (bad_spec(json!({"input": [2, 2, 2], "classes": 3})), 422, "invalid_spec", "spec.input"),
        (bad_spec(json!({"input": [1, 2, 2], "classes": 3, "clases": 1})), 422, "invalid_spec", "spec.clases"),
        (
            bad_spec(json!({"input": [1, 2, 2], "classes": 3, "preprocessing": {"mean": [0.0], "std": [0.0]}})),
            422,
            "invalid_spec",
            "spec.preprocessing.std",
        ),
        (model_form("w").text("colour", "red"), 422, "invalid_field", "colour"),
        (model_form("w").part("file", file()), 422, "invalid_field", "file"),
        (model_form("w").text("name", "two\nlines"), 422, "invalid_field", "name"),
        (model_form(""), 422, "invalid_field", "file"),
        (model_form(&"w".repeat(101)), 413, "too_large", "file"),
    ];
    for (form, status, code, field) in cases {
        let found = problem(bench.upload(form).await, status).await;
        assert_eq!(found, (code.to_owned(), Some(field.to_owned())));
    }
    let not_a_form = bench.post("/v1/models", &json!({})).await;
    assert_eq!(problem(not_a_form, 415).await.0, "unsupported_media_type");
    assert!(bench.files("models").is_empty() && bench.files("uploads").is_empty());
    assert_eq!(bench.json("/v1/models").await["items"], json!([]));
}

#[tokio::test]
async fn an_upload_that_breaks_off_leaves_nothing_behind() {
    let bench = Bench::start().await;
    let mut socket = tokio::net::TcpStream::connect(bench.url.strip_prefix("http://").unwrap()).await.unwrap();
    let part = "--x\r\nContent-Disposition: form-data; name=\"file\"; filename=\"m.pt\"\r\n\r\nsome of the bytes";
    let head =
        "POST /v1/models HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: 9999";
    socket.write_all(format!("{head}\r\n\r\n{part}").as_bytes()).await.unwrap();
    // Half-closing ends the body early; the server's end of the connection then tells that it is done with it.
    socket.shutdown().await.unwrap();
    socket.read_to_end(&mut Vec::new()).await.ok();
    for _ in 0..200 {
        if bench.files("uploads").is_empty() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("left behind: {:?}", bench.files("uploads"));
}

#[tokio::test]
async fn a_cursor_walks_over_every_model_once() {
    let bench = Bench::start().await;
    let mut submitted = HashSet::new();
    for i in 0..7 {
        submitted.insert(bench.model(&format!("model {i}")).await);
    }
    let (mut seen, mut path, mut pages) = (Vec::new(), "/v1/models?limit=3".to_owned(), 0);
    loop {
        let page = bench.json(&path).await;
        seen.extend(page["items"].as_array().unwrap().iter().map(id));
        pages += 1;
        match page["next"].as_str() {
            Some(cursor) => path = format!("/v1/models?limit=3&cursor={cursor}"),
            None => break,
        }
        // What is added during the walk does not disturb it.
        bench.model(&format!("late {pages}")).await;
    }
    assert_eq!((pages, seen.len()), (3, 7));
    assert_eq!(seen.into_iter().collect::<HashSet<_>>(), submitted);
}

#[tokio::test]
async fn a_rejected_model_says_why_and_fails_what_waits_for_it() {
    let bench = Bench::start().await;
    let model = bench.model("broken").await;
    let waiting = bench.evaluation(model, json!({})).await;
    let check = queue::claim_check(&bench.pool, &crate::common::bench::capabilities(), LEASE).await.unwrap().unwrap();
    let rejection = Rejection { code: "wrong_classes".into(), found: "it answers with 7 logits, not 3".into() };
    check.reject(&bench.pool, &rejection).await.unwrap();
    let shown = bench.json(&format!("/v1/models/{model}")).await;
    assert_eq!((&shown["state"], &shown["rejection"]["code"]), (&json!("rejected"), &json!("wrong_classes")));
    let failed = bench.json(&format!("/v1/evaluations/{waiting}")).await;
    assert_eq!((&failed["state"], &failed["outcome"]["code"]), (&json!("failed"), &json!("model_rejected")));
    let refused = bench.post("/v1/evaluations", &evaluation_request(model, json!({}))).await;
    assert_eq!(refused.status(), 409);
    let refused: Value = refused.json().await.unwrap();
    assert_eq!(refused["rejection"], json!(rejection));
}
