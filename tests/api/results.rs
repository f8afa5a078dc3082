//! Tables, evidence, rankings, comparisons.

use bytes::Bytes;
use gauntlet::store::evidence;
use reqwest::header::ACCEPT;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::common::bench::{Bench, import};
use crate::problems::problem;

/// Clean: all but images 0–3; ε 0.1: the even ones; ε 0.3: every fourth.
fn fragile(condition: &str, image: u32) -> bool {
    match condition {
        "clean" => image >= 4,
        "pgd-linf-0.1" => image.is_multiple_of(2),
        _ => image.is_multiple_of(4),
    }
}

fn sturdy(condition: &str, image: u32) -> bool {
    condition == "clean" || image % 8 != 7
}

async fn finished(bench: &Bench, name: &str, more: Value, robust: fn(&str, u32) -> bool) -> (Uuid, Uuid) {
    let model = bench.ready_model(name).await;
    let evaluation = bench.evaluation(model, more).await;
    bench.work(robust).await;
    (model, evaluation)
}

#[tokio::test]
async fn the_table_has_counts_intervals_columns_and_provenance() {
    let bench = Bench::start().await;
    let (model, evaluation) = finished(&bench, "m", json!({"seeds": [0, 9]}), fragile).await;
    let table = bench.json(&format!("/v1/evaluations/{evaluation}/table")).await;
    assert_eq!((&table["evaluation"], &table["complete"]), (&json!(evaluation), &json!(true)));
    let rows = table["conditions"].as_array().unwrap();
    let of = |key: &str| rows.iter().map(|row| row[key].clone()).collect::<Vec<_>>();
    assert_eq!(of("id"), ["clean", "pgd-linf-0.1", "pgd-linf-0.3"]);
    assert_eq!(of("n"), [80, 80, 80]);
    assert_eq!(of("correct"), [72, 40, 20]);
    assert_eq!(of("accuracy"), [0.9, 0.5, 0.25]);
    assert_eq!(
        (&rows[1]["attack"], &rows[1]["norm"], &rows[1]["epsilon"]),
        (&json!("pgd"), &json!("linf"), &json!(0.1))
    );
    assert_eq!(rows[1]["stages"], json!([{"attack": "pgd", "broken": 40}]));
    // Wilson for 20 of 40: (0.5 ± …) at 95 %, by hand.
    let [low, high] = [&rows[1]["ci95"][0], &rows[1]["ci95"][1]].map(|v| v.as_f64().unwrap());
    assert!((low - 0.3520).abs() < 1e-4 && (high - 0.6480).abs() < 1e-4, "{low} {high}");
    assert_eq!(table["columns"], json!({"white_box": 0.375, "corruption": null, "clean": 0.9}));
    let provenance = &table["provenance"];
    assert_eq!(provenance["model"]["id"], json!(model));
    assert_eq!(provenance["slice"], json!({"offset": 0, "images": 40}));
    assert_eq!(provenance["seeds"], json!([0, 9]));
    assert_eq!((&provenance["profile"]["batch"], &provenance["sandbox"]), (&json!(32), &json!("off")));
    assert_eq!(provenance["dataset"]["name"], "tiny");
    assert_eq!(provenance["protocol"]["hash"].as_str().unwrap().len(), 64);
}

#[tokio::test]
async fn a_table_of_running_work_is_partial_and_says_so() {
    let bench = Bench::start().await;
    let model = bench.ready_model("m").await;
    let evaluation = bench.evaluation(model, json!({})).await;
    let claimed = bench.claim().await.unwrap();
    bench.finish(claimed, &fragile).await;
    let table = bench.json(&format!("/v1/evaluations/{evaluation}/table.json")).await;
    assert_eq!(table["complete"], false);
    assert_eq!((&table["conditions"][0]["n"], &table["conditions"][1]["n"]), (&json!(20), &json!(0)));
    assert_eq!(table["conditions"][1]["accuracy"], json!(null));
    let text = bench.get(&format!("/v1/evaluations/{evaluation}/table.md")).await.text().await.unwrap();
    assert!(text.contains("Incomplete"));
}

#[tokio::test]
async fn the_table_comes_in_the_format_that_is_asked_for() {
    let bench = Bench::start().await;
    let (_, evaluation) = finished(&bench, "m", json!({}), fragile).await;
    let path = format!("/v1/evaluations/{evaluation}/table");
    for (accept, suffix, kind, part) in [
        ("application/json", ".json", "application/json", "\"accuracy\":0.9"),
        ("text/csv", ".csv", "text/csv; charset=utf-8", "clean,clean,,,,,,40,36,0.9,"),
        ("text/markdown", ".md", "text/markdown; charset=utf-8", "| clean | 40 | 90.0 |"),
        ("application/x-latex", ".tex", "application/x-latex; charset=utf-8", "clean & 40 & 90.0 &"),
    ] {
        let negotiated = bench.client.get(bench.at(&path)).header(ACCEPT, accept).send().await.unwrap();
        let suffixed = bench.get(&format!("{path}{suffix}")).await;
        for response in [negotiated, suffixed] {
            assert_eq!(
                (response.status().as_u16(), &response.headers()["content-type"]),
                (200, &kind.parse().unwrap())
            );
            let text = response.text().await.unwrap();
            assert!(text.contains(part), "{text}");
        }
    }
    let image = bench.client.get(bench.at(&path)).header(ACCEPT, "image/png").send().await.unwrap();
    assert_eq!(problem(image, 406).await.0, "not_acceptable");
}

#[tokio::test]
async fn verdicts_of_all_shards_come_as_one_file() {
    let bench = Bench::start().await;
    let (_, evaluation) = finished(&bench, "m", json!({"seeds": [0, 1]}), fragile).await;
    let path = format!("/v1/evaluations/{evaluation}/verdicts");
    let parquet = bench.get(&path).await;
    assert_eq!(parquet.headers()["content-type"], "application/vnd.apache.parquet");
    let rows = evidence::from_parquet(parquet.bytes().await.unwrap()).unwrap();
    assert_eq!(rows.len(), 2 * 3 * 40);
    assert!(rows.iter().all(|row| row.verdict.robust == fragile(&row.condition, row.verdict.image)));
    let cells: std::collections::HashSet<_> =
        rows.iter().map(|row| (row.condition.clone(), row.seed, row.verdict.image)).collect();
    assert_eq!(cells.len(), rows.len());
    let csv = bench.client.get(bench.at(&path)).header(ACCEPT, "text/csv").send().await.unwrap().text().await.unwrap();
    assert_eq!(csv.as_bytes(), evidence::to_csv(&rows).unwrap());
    assert_eq!(bench.get(&format!("{path}.csv")).await.text().await.unwrap(), csv);
}

#[tokio::test]
async fn witnesses_of_all_shards_are_merged_in_image_order() {
    let bench = Bench::start().await;
    let (_, evaluation) = finished(&bench, "m", json!({}), fragile).await;
    let file: Bytes = bench.get(&format!("/v1/evaluations/{evaluation}/witnesses")).await.bytes().await.unwrap();
    let sets = evidence::from_safetensors(&file).unwrap();
    assert_eq!(sets.len(), 2);
    for set in sets {
        let broken: Vec<u32> = (0..40).filter(|&image| !fragile(&set.condition, image)).collect();
        assert_eq!((set.shape, set.seed), ([1, 2, 2], 0));
        assert_eq!(set.pixels, broken.iter().flat_map(|&image| [image as f32; 4]).collect::<Vec<_>>());
        assert_eq!(set.images, broken);
    }
    // Where nothing was stored, the file is empty but valid.
    let (_, none) = finished(&bench, "unbroken", json!({}), |_, _| true).await;
    let file = bench.get(&format!("/v1/evaluations/{none}/witnesses")).await.bytes().await.unwrap();
    assert_eq!(evidence::from_safetensors(&file).unwrap(), []);
}

#[tokio::test]
async fn the_leaderboard_ranks_only_what_is_comparable() {
    let bench = Bench::start().await;
    let (weak, _) = finished(&bench, "weak", json!({}), fragile).await;
    let (strong, newest) = finished(&bench, "strong", json!({}), sturdy).await;
    finished(&bench, "elsewhere", json!({"images": 20}), sturdy).await;
    finished(&bench, "otherwise", json!({"set": {"steps": 3, "attack.linf.epsilon": [0.1, 0.3]}}), sturdy).await;
    let board = bench.json("/v1/leaderboard?protocol=pgd-linf").await;
    let tables = board["tables"].as_array().unwrap();
    assert_eq!(tables.len(), 3);
    let shared = tables.iter().find(|t| t["rows"].as_array().unwrap().len() == 2).unwrap();
    let models: Vec<&Value> = shared["rows"].as_array().unwrap().iter().map(|row| &row["model"]).collect();
    assert_eq!(models, [&json!(strong), &json!(weak)]);
    let best = &shared["rows"][0];
    assert_eq!((&best["evaluation"], &best["columns"]["white_box"]), (&json!(newest), &json!(0.875)));
    assert_eq!(best["conditions"][2]["accuracy"], 0.875);
    assert_eq!(bench.json("/v1/leaderboard?protocol=clean").await["tables"], json!([]));
}

#[tokio::test]
async fn a_comparison_pairs_the_images_that_both_have() {
    let bench = Bench::start().await;
    let (_, a) = finished(&bench, "a", json!({"seeds": [0, 1]}), sturdy).await;
    let (_, b) = finished(&bench, "b", json!({"seeds": [1, 2], "offset": 8, "images": 32}), fragile).await;
    let comparison = bench.json(&format!("/v1/compare?a={a}&b={b}")).await;
    assert_eq!(comparison["seeds"], json!([1]));
    let row = &comparison["conditions"][1];
    // Of images 8–39, a loses the 4 with index 7 mod 8, b the 16 odd ones, the 4 among them.
    assert_eq!((&row["id"], &row["n"]), (&json!("pgd-linf-0.1"), &json!(32)));
    assert_eq!(
        (&row["accuracy_a"], &row["accuracy_b"], &row["difference"]),
        (&json!(0.875), &json!(0.5), &json!(0.375))
    );
    assert_eq!((&row["only_a"], &row["only_b"], &row["same_parameters"]), (&json!(12), &json!(0), &json!(true)));
    // 2 · 2⁻¹²
    assert!((row["p"].as_f64().unwrap() - 2f64.powi(-11)).abs() < 1e-12);
    let catalogue = gauntlet::dataset::Catalogue::new(bench.artifacts.store());
    import(&catalogue, "other", 41, 3).await;
    for more in [json!({"dataset": "other"}), json!({"images": 8}), json!({"seeds": [5], "offset": 8})] {
        let model = bench.model("b").await;
        let c = bench.evaluation(model, more).await;
        assert_eq!(problem(bench.get(&format!("/v1/compare?a={b}&b={c}")).await, 422).await.0, "not_comparable");
    }
}
