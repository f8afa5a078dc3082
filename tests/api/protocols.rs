//! Protocols and datasets.

use serde_json::{Value, json};

use crate::common::bench::Bench;
use crate::problems::problem;

#[tokio::test]
async fn a_posted_protocol_keeps_its_meaning() {
    let bench = Bench::start().await;
    let document = |version: u32, steps: u32| {
        let attack = json!([{"attack": "pgd", "norm": "l2", "epsilon": [0.5, "1/4"], "steps": steps}]);
        json!({"name": "mine", "version": version, "attack": attack})
    };
    let first = bench.post("/v1/protocols", &document(1, 5)).await;
    assert_eq!(first.status(), 201);
    let location = first.headers()["location"].to_str().unwrap().to_owned();
    let first: Value = first.json().await.unwrap();
    assert_eq!(bench.json(&location).await, first);
    assert_eq!(first["document"]["attack"][0]["epsilon"], json!([0.5, "1/4"]));
    assert_eq!(bench.post("/v1/protocols", &document(1, 5)).await.status(), 200);
    let taken = bench.post("/v1/protocols", &document(1, 6)).await;
    assert_eq!(problem(taken, 409).await, ("protocol_taken".into(), Some("name".into())));
    assert_eq!(bench.post("/v1/protocols", &document(2, 6)).await.status(), 201);
    assert_eq!(bench.json("/v1/protocols/mine").await["version"], 2);
    assert_eq!(bench.json("/v1/protocols/mine?version=1").await, first);
    let builtin = bench.post("/v1/protocols", &json!({"name": "pgd-linf", "clean": {}})).await;
    assert_eq!(problem(builtin, 409).await.0, "protocol_taken");
    // The list stays bounded; what is there can still be posted again.
    let many = "insert into protocols (id, owner, name, version, document)
                select gen_random_uuid(), owner, 'another', n, document from protocols, generate_series(1, 998) n where version = 1";
    sqlx::query(many).execute(&bench.pool).await.unwrap();
    assert_eq!(problem(bench.post("/v1/protocols", &document(3, 6)).await, 429).await.0, "quota_exceeded");
    assert_eq!(bench.post("/v1/protocols", &document(1, 5)).await.status(), 200);
    sqlx::query("delete from protocols where name = 'another'").execute(&bench.pool).await.unwrap();
    let listed = bench.json("/v1/protocols").await;
    let names: Vec<(&str, bool)> = listed["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| (p["name"].as_str().unwrap(), p["builtin"].as_bool().unwrap()))
        .collect();
    assert!(names.contains(&("pgd-grid", true)) && names.ends_with(&[("mine", false), ("mine", false)]), "{names:?}");
}

#[tokio::test]
async fn datasets_are_found_by_name_and_by_hash() {
    let bench = Bench::start().await;
    let listed = bench.json("/v1/datasets").await;
    let tiny = &listed["items"][0];
    assert_eq!((&tiny["name"], &tiny["images"], &tiny["height"]), (&json!("tiny"), &json!(40), &json!(2)));
    for name in ["tiny", tiny["hash"].as_str().unwrap(), &tiny["hash"].as_str().unwrap()[..10]] {
        assert_eq!(&bench.json(&format!("/v1/datasets/{name}")).await, tiny);
    }
}
