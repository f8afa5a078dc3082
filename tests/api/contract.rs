//! The description of the API.

use std::collections::HashSet;

use gauntlet::http;
use serde_json::Value;

#[test]
fn the_committed_description_is_that_of_the_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.yaml");
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(committed == http::openapi_yaml(), "openapi.yaml is stale: run `gauntlet openapi > openapi.yaml`");
}

#[test]
fn operations_have_unique_ids_and_describe_their_answers() {
    let api = serde_json::to_value(http::openapi()).unwrap();
    assert_eq!(api["openapi"], "3.1.0");
    let mut ids = HashSet::new();
    for (path, item) in api["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let id = operation["operationId"].as_str().unwrap();
            assert!(ids.insert(id.to_owned()), "{id} twice");
            let responses = operation["responses"].as_object().unwrap();
            assert!(responses.values().all(|r| r["description"].as_str().is_some_and(|d| !d.is_empty())), "{id}");
            assert!(!path.starts_with("/v1/") || responses.contains_key("500"), "{id}");
            // A path parameter may be malformed, and what it names may be missing.
            let names = path.contains('{') && path.starts_with("/v1/");
            assert!(!names || (responses.contains_key("400") && responses.contains_key("404")), "{method} {path}");
        }
    }
}

#[test]
fn every_schema_that_is_referred_to_exists() {
    fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(map) => {
                found.extend(map.get("$ref").and_then(Value::as_str));
                map.values().for_each(|v| references(v, found));
            }
            Value::Array(items) => items.iter().for_each(|v| references(v, found)),
            _ => {}
        }
    }
    let api = serde_json::to_value(http::openapi()).unwrap();
    let mut found = Vec::new();
    references(&api, &mut found);
    assert!(found.len() > 50);
    for reference in found {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(api.pointer(pointer).is_some(), "{reference}");
    }
}

/// Two types of one name would silently become one schema.
#[test]
fn the_table_of_an_evaluation_is_described_as_what_it_is() {
    let described = serde_json::to_value(http::openapi()).unwrap();
    let answer = &described["paths"]["/v1/evaluations/{id}/table"]["get"]["responses"]["200"]["content"];
    let name = answer["application/json"]["schema"]["$ref"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
    let properties = described["components"]["schemas"][&name]["properties"].as_object().unwrap();
    assert!(["evaluation", "conditions", "columns", "diagnostics"].iter().all(|key| properties.contains_key(*key)));
}
