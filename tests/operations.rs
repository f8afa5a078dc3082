//! What operators are given: views and their role, dashboards, alert rules, metrics — tried on the real things.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::bench::Bench;
use common::world::{World, digits_spec, repository};
use gauntlet::protocol::Protocol;
use gauntlet::store::evaluations::State;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use reqwest::Client;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, Row};
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(120);

fn read(path: &str) -> String {
    std::fs::read_to_string(repository(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn dashboards() -> Vec<Value> {
    ["operations", "robustness", "capacity"]
        .map(|name| serde_json::from_str(&read(&format!("docker/grafana/dashboards/{name}.json"))).unwrap())
        .into()
}

/// Every query of every panel: (panel, query), of the one kind or the other.
fn queries(key: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for dashboard in dashboards() {
        for panel in dashboard["panels"].as_array().unwrap() {
            for target in panel["targets"].as_array().into_iter().flatten() {
                if let Some(query) = target[key].as_str() {
                    let name =
                        format!("{} / {}", dashboard["title"].as_str().unwrap(), panel["title"].as_str().unwrap());
                    found.push((name, query.to_owned()));
                }
            }
        }
    }
    found
}

/// The expressions of the alert rules and what they link to.
fn alerts() -> Vec<(String, String, String)> {
    let text = read("docker/prometheus/alerts.yml");
    let after = |block: &str, key: &str| -> String {
        let line =
            block.lines().find_map(|line| line.trim().strip_prefix(key)).unwrap_or_else(|| panic!("{key} {block}"));
        line.trim().to_owned()
    };
    let alert = |block: &str| {
        (block.lines().next().unwrap().trim().to_owned(), after(block, "expr:"), after(block, "runbook_url:"))
    };
    text.split("- alert:").skip(1).map(alert).collect()
}

/// Two models with attack, corruption and findings; one evaluation done twice, one open.
async fn history() -> (Bench, [Uuid; 2]) {
    let bench = Bench::start().await;
    let mut done = Vec::new();
    for (name, strength) in [("weak", 2), ("strong", 5), ("weak", 3)] {
        let model = match sqlx::query_scalar("select id from models where name = $1")
            .bind(name)
            .fetch_optional(&bench.pool)
            .await
            .unwrap()
        {
            Some(model) => model,
            None => bench.ready_model(name).await,
        };
        sqlx::query("update models set name = $2 where id = $1")
            .bind(model)
            .bind(name)
            .execute(&bench.pool)
            .await
            .unwrap();
        done.push(bench.evaluation(model, json!({"seeds": [0, 1]})).await);
        bench.work(|condition, image| condition == "clean" || image % 7 < strength).await;
    }
    bench.announce_worker().await;
    let open: Uuid = sqlx::query_scalar("select id from models limit 1").fetch_one(&bench.pool).await.unwrap();
    bench.evaluation(open, json!({"seeds": [9]})).await;
    (bench, [done[1], done[2]])
}

#[tokio::test]
async fn views_say_what_the_api_says() {
    let (bench, evaluations) = history().await;
    for id in evaluations {
        let table = bench.json(&format!("/v1/evaluations/{id}/table.json")).await;
        let rows: Vec<(String, i64, i64, f64, f64, f64, bool)> = sqlx::query_as(
            "select condition, n, correct, accuracy, accuracy_low, accuracy_high, latest from report.accuracy
             where evaluation_id = $1 order by position",
        )
        .bind(id)
        .fetch_all(&bench.pool)
        .await
        .unwrap();
        let told = table["conditions"].as_array().unwrap();
        assert_eq!((rows.len(), told.len()), (3, 3));
        for ((condition, n, correct, accuracy, low, high, latest), told) in rows.into_iter().zip(told) {
            assert_eq!(
                (json!(condition), json!(n), json!(correct)),
                (told["id"].clone(), told["n"].clone(), told["correct"].clone())
            );
            for (ours, theirs) in [(accuracy, &told["accuracy"]), (low, &told["ci95"][0]), (high, &told["ci95"][1])] {
                assert!((ours - theirs.as_f64().unwrap()).abs() < 1e-12, "{condition}: {ours} and {theirs}");
            }
            assert!(latest);
        }
    }
    let board = bench.json("/v1/leaderboard?protocol=pgd-linf").await;
    let rows = board["tables"][0]["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 2);
    for row in rows {
        let (clean, white_box): (f64, f64) =
            sqlx::query_as("select clean, white_box from report.standings where latest and evaluation_id = $1")
                .bind(row["evaluation"].as_str().unwrap().parse::<Uuid>().unwrap())
                .fetch_one(&bench.pool)
                .await
                .unwrap();
        assert!((clean - row["columns"]["clean"].as_f64().unwrap()).abs() < 1e-12);
        assert!((white_box - row["columns"]["white_box"].as_f64().unwrap()).abs() < 1e-12);
    }
    let superseded: i64 = sqlx::query_scalar("select count(*) from report.standings where not latest")
        .fetch_one(&bench.pool)
        .await
        .unwrap();
    assert_eq!(superseded, 1);
}

async fn reader(bench: &Bench) -> PgConnection {
    let url = bench.pool.connect_options();
    let mut connection = PgConnection::connect_with(&url).await.unwrap();
    connection.execute("set role gauntlet_reader").await.unwrap();
    connection
}

#[tokio::test]
async fn the_reader_can_read_views_and_nothing_else() {
    let (bench, _) = history().await;
    let mut connection = reader(&bench).await;
    let views: Vec<String> =
        sqlx::query_scalar("select table_name::text from information_schema.tables where table_schema = 'report'")
            .fetch_all(&mut connection)
            .await
            .unwrap();
    assert_eq!(views.len(), 12, "{views:?}");
    for view in views {
        connection.execute(AssertSqlSafe(format!("select * from report.{view}"))).await.unwrap();
    }
    for forbidden in [
        "select * from models",
        "select spec from public.models",
        "delete from report.workers",
        "update report.evaluations set owner = 'me'",
        "create table public.mine (x int)",
        "create view report.mine as select 1",
        "select * from _sqlx_migrations",
    ] {
        let error = connection.execute(forbidden).await.unwrap_err();
        let code = error.as_database_error().and_then(|e| e.code().map(|c| c.into_owned()));
        assert!(matches!(code.as_deref(), Some("42501" | "55000")), "{forbidden}: {error}");
    }
}

/// Fills in a query as Grafana would.
fn filled(query: &str, variables: &BTreeMap<String, String>) -> String {
    let mut text = query.to_owned();
    for (name, value) in variables {
        text = text.replace(&format!("${{{name}:sqlstring}}"), value).replace(&format!("${{{name}}}"), value);
    }
    while let Some(start) = text.find("$__timeFilter(") {
        let end = start + text[start..].find(')').unwrap();
        let column = text[start + "$__timeFilter(".len()..end].to_owned();
        text.replace_range(start..=end, &format!("{column} between now() - interval '90 days' and now()"));
    }
    assert!(!text.contains('$'), "{text}");
    text
}

#[tokio::test]
async fn every_sql_query_of_every_dashboard_returns_rows_to_the_reader() {
    let (bench, evaluations) = history().await;
    let finding = r#"[{"code": "weak_projection", "sentence": "It is weak.", "evidence": {}}]"#;
    sqlx::query("update models set findings = $1::jsonb").bind(finding).execute(&bench.pool).await.unwrap();
    let diagnostics = format!(r#"{{"grade": "suspicious", "findings": {finding}}}"#).replace("weak_projection", "odd");
    sqlx::query("update evaluations set diagnostics = $1::jsonb where state = 'succeeded'")
        .bind(diagnostics)
        .execute(&bench.pool)
        .await
        .unwrap();
    let condition = r#"{"id": "fog-3", "kind": "corruption", "type": "fog", "severity": 3}"#;
    for id in evaluations {
        sqlx::query("update evaluations set conditions = conditions || $2::jsonb where id = $1")
            .bind(id)
            .bind(condition)
            .execute(&bench.pool)
            .await
            .unwrap();
        sqlx::query(
            "insert into tallies (shard_id, condition, evaluation_id, seed, n, correct, broken, forwards, backwards)
             select shard_id, 3, evaluation_id, seed, n, correct, '{}', n, 0 from tallies where evaluation_id = $1 and condition = 0",
        )
        .bind(id)
        .execute(&bench.pool)
        .await
        .unwrap();
    }
    let mut connection = reader(&bench).await;
    let mut variables = BTreeMap::new();
    for dashboard in dashboards() {
        for variable in dashboard["templating"]["list"].as_array().unwrap() {
            let (name, query) = (variable["name"].as_str().unwrap(), variable["query"].as_str().unwrap());
            let value = if variable["type"] == "textbox" {
                query.to_owned()
            } else {
                let sql = filled(query, &variables);
                let values: Vec<String> =
                    sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(&mut connection).await.unwrap();
                assert!(!values.is_empty(), "the variable {name} has no values");
                let quoted: Vec<String> = values.iter().map(|value| format!("'{value}'")).collect();
                if variable["multi"] == true { quoted.join(",") } else { quoted[0].clone() }
            };
            variables.insert(name.to_owned(), value);
        }
    }
    let all = queries("rawSql");
    assert!(all.len() >= 16, "{}", all.len());
    let mut empty = Vec::new();
    for (panel, query) in all {
        // As rows of JSON, so that columns of any type show whether they hold anything.
        let sql = format!("select to_jsonb(q) from ({}) q", filled(&query, &variables));
        let rows =
            sqlx::query(AssertSqlSafe(sql)).fetch_all(&mut connection).await.unwrap_or_else(|e| panic!("{panel}: {e}"));
        let says_something = |row: &sqlx::postgres::PgRow| {
            let row: Value = row.get(0);
            row.as_object().unwrap().values().any(|value| !value.is_null())
        };
        // No test model was attacked in these norms; clean accuracy stands alone then.
        if !rows.iter().any(says_something) {
            empty.push(panel);
        }
    }
    assert_eq!(empty, [""; 0], "these panels are empty");
    let scalers = ["worker-gpu", "worker-gpu-large"].map(|class| read(&format!("deploy/kubernetes/keda/{class}.yaml")));
    let queries = scalers.map(|scaler| {
        let query = scaler.lines().find_map(|line| line.trim().strip_prefix("query: ").map(str::to_owned)).unwrap();
        serde_json::from_str::<String>(&query).unwrap()
    });
    let mut wanted = Vec::new();
    for query in queries {
        wanted.push(sqlx::query_scalar::<_, f64>(AssertSqlSafe(query)).fetch_one(&mut connection).await.unwrap());
    }
    assert_eq!(wanted, [4.0, 0.0], "the four shards of the open evaluation are for the standard class");
}

#[test]
fn every_alert_has_its_runbook_and_every_panel_a_provisioned_source() {
    let document = read("docs/OPERATIONS.md");
    let headings: BTreeSet<String> = document
        .lines()
        .filter_map(|line| line.strip_prefix("### "))
        .map(|heading| heading.trim().to_lowercase().replace(' ', "-"))
        .collect();
    let alerts = alerts();
    assert!(alerts.len() >= 10);
    for (name, _, runbook) in alerts {
        let anchor = runbook.strip_prefix("docs/OPERATIONS.md#").unwrap();
        assert_eq!(anchor, name.to_lowercase());
        assert!(headings.contains(anchor), "{name} has no runbook");
    }
    let sources = read("docker/grafana/provisioning/datasources/gauntlet.yaml");
    for dashboard in dashboards() {
        for panel in dashboard["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row") {
            for source in
                panel["targets"].as_array().unwrap().iter().map(|t| &t["datasource"]).chain([&panel["datasource"]])
            {
                for key in ["uid", "type"] {
                    let line = format!("{key}: {}", source[key].as_str().unwrap());
                    assert!(sources.lines().any(|l| l.trim() == line), "{line} is not provisioned");
                }
            }
        }
    }
}

/// A process that is killed when it goes out of scope.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Process {
    /// Asks it to end, and returns what it logged.
    fn end(mut self) -> String {
        let id = nix::unistd::Pid::from_raw(self.0.id() as i32);
        nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGTERM).unwrap();
        let mut log = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        assert!(self.0.wait().unwrap().success(), "{log}");
        log
    }
}

fn free_address() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

fn gauntlet(world: &World, command: &str, more: &[(&str, &str)]) -> Process {
    gauntlet_with(world, &[command], more)
}

fn gauntlet_with(world: &World, command: &[&str], more: &[(&str, &str)]) -> Process {
    let mut process = Command::new(env!("CARGO_BIN_EXE_gauntlet"));
    process.args(command).arg("--data-dir").arg(world.data.path()).current_dir(world.data.path());
    process.env("DATABASE_URL", &world.url).env("GAUNTLET_DEVICE", "cpu").env("GAUNTLET_THREADS", "1");
    process.env("GAUNTLET_POLL_MILLISECONDS", "50").env("GAUNTLET_LOG_LEVEL", "error").envs(more.iter().copied());
    Process(process.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap())
}

/// Asks until the answer suits.
async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(start.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn text(client: &Client, url: &str) -> Option<String> {
    client.get(url).send().await.ok()?.error_for_status().ok()?.text().await.ok()
}

/// What Prometheus answers to a query: the number of series.
async fn series(client: &Client, prometheus: &str, query: &str) -> usize {
    let answer =
        client.get(format!("http://{prometheus}/api/v1/query")).query(&[("query", query)]).send().await.unwrap();
    let answer: Value = answer.json().await.unwrap();
    assert_eq!(answer["status"], "success", "{query}: {answer}");
    answer["data"]["result"].as_array().unwrap().len()
}

fn is_there(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

fn promtool(arguments: &[&str], input: &str) {
    let mut command = Command::new("promtool");
    command
        .args(arguments)
        .current_dir(repository("."))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut process = command.spawn().unwrap();
    process.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = process.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "promtool {arguments:?}: {}", String::from_utf8_lossy(&said));
}

/// The names of Gauntlet's metrics in a text of PromQL.
fn names(query: &str) -> impl Iterator<Item = &str> {
    query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| word.starts_with("gauntlet_"))
}

/// An alert's expression without its thresholds: what it looks at.
fn operands(expression: &str) -> Vec<String> {
    let side = |part: &str| {
        let end = [" == ", " > ", " < "].iter().filter_map(|sign| part.find(sign)).min();
        part[..end.unwrap_or_else(|| panic!("{part} compares nothing"))].to_owned()
    };
    expression.split(" and ").map(side).collect()
}

/// Passes of single images in all: of tallies and of second opinions.
const PASSES: &str =
    "select (select sum(forwards) from tallies)::bigint + sum((of_one ->> 'forwards')::bigint)::bigint,
    (select sum(backwards) from tallies)::bigint + sum((of_one ->> 'backwards')::bigint)::bigint
from shards cross join lateral jsonb_array_elements(signs) of_one";

/// Server and worker as they are deployed, an evaluation that raises a finding, and Prometheus watching both.
#[tokio::test]
async fn every_expression_of_dashboards_and_alerts_finds_data_in_a_real_run() {
    rustls::crypto::ring::default_provider().install_default().ok();
    let (world, client) = (World::new().await, Client::new());
    world.import_digits().await;
    let [api, of_api, of_worker] = std::array::from_fn(|_| free_address());
    let _server = gauntlet(&world, "serve", &[("GAUNTLET_LISTEN", &api), ("GAUNTLET_METRICS_LISTEN", &of_api)]);
    let _worker = gauntlet(&world, "worker", &[("GAUNTLET_WORKER_METRICS_LISTEN", &of_worker)]);
    let scrape = async |address: &str| text(&client, &format!("http://{address}/metrics")).await;
    until("both serve metrics", async || Some((scrape(&of_api).await?, scrape(&of_worker).await?))).await;
    for part in ["api", "worker"] {
        let status = gauntlet_with(
            &world,
            &["health", part],
            &[("GAUNTLET_LISTEN", &api), ("GAUNTLET_WORKER_METRICS_LISTEN", &of_worker)],
        )
        .0
        .wait()
        .unwrap();
        assert!(status.success(), "{part} is not well");
        let status = gauntlet_with(
            &world,
            &["health", part],
            &[("GAUNTLET_LISTEN", "127.0.0.1:1"), ("GAUNTLET_WORKER_METRICS_LISTEN", "127.0.0.1:1")],
        )
        .0
        .wait()
        .unwrap();
        assert!(!status.success(), "a {part} that is not there is well");
    }
    let watcher = if is_there("prometheus") { Some(prometheus(&world, &of_api, &of_worker)) } else { None };
    let watched = async |query: &str| match &watcher {
        Some((_, address)) => series(&client, address, query).await,
        None => 1,
    };
    if let Some((_, address)) = &watcher {
        until("Prometheus starts", async || text(&client, &format!("http://{address}/-/ready")).await).await;
        until("Prometheus sees both", async || (watched("up == 1").await == 2).then_some(())).await;
    }

    let model = world.add_model(&repository("models/digits/standard.pt"), &digits_spec()).await;
    let radial = "name = 'radial'\n[clean]\n[[attack]]\nattack = 'pgd'\nnorm = 'l1'\nepsilon = [1.0]\nsteps = 2\nprojection = 'radial'";
    let protocol = Protocol::from_toml(radial, &[]).unwrap();
    let id = world.submit(model.id, &protocol, 1297, 48, &[0]).await;
    assert_eq!(world.until_ended(id).await.state, State::Succeeded);
    assert_eq!(client.get(format!("http://{api}/v1/evaluations/{id}")).send().await.unwrap().status(), 200);

    let there = format!("{}{}", scrape(&of_api).await.unwrap(), scrape(&of_worker).await.unwrap());
    let known: BTreeSet<&str> = there.lines().filter_map(|line| line.split(['{', ' ']).next()).collect();
    let expressions: Vec<(String, String)> =
        queries("expr").into_iter().chain(alerts().into_iter().map(|(n, e, _)| (n, e))).collect();
    assert!(expressions.len() > 50, "{}", expressions.len());
    for (place, expression) in &expressions {
        for name in names(expression).filter(|name| !name.starts_with("gauntlet_gpu_")) {
            assert!(known.contains(name), "{place}: no process tells {name}");
        }
    }
    let value = |name: &str| -> f64 {
        let line = there.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap_or_else(|| panic!("{name}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    // 48 images, clean and attacked; what the engine says it spent is what tallies and second opinions say.
    let (forwards, backwards): (i64, i64) = sqlx::query_as(PASSES).fetch_one(&world.pool).await.unwrap();
    assert_eq!(value("gauntlet_engine_verdicts_total"), 96.0);
    assert_eq!(value("gauntlet_engine_forwards_total"), forwards as f64);
    assert_eq!(value("gauntlet_engine_backwards_total"), backwards as f64);
    assert!(value("gauntlet_engine_rows_total") >= forwards as f64);
    assert_eq!(value("gauntlet_worker_shards_committed_total"), value("gauntlet_worker_leases_total"));
    assert_eq!(value("gauntlet_evaluation_first_result_seconds_count"), 1.0);
    assert_eq!(value("gauntlet_worker_findings_total{kind=\"weak_projection\"}"), 1.0);
    let graded = ["trustworthy", "suspicious", "unreliable", "not_assessed"]
        .map(|grade| value(&format!("gauntlet_worker_evaluations_graded_total{{kind=\"{grade}\"}}")));
    assert_eq!(graded.iter().sum::<f64>(), 1.0);
    let grade: String = sqlx::query_scalar("select grade from report.grades").fetch_one(&world.pool).await.unwrap();
    assert_eq!(value(&format!("gauntlet_worker_evaluations_graded_total{{kind=\"{grade}\"}}")), 1.0);

    if watcher.is_none() {
        eprintln!("prometheus is not installed: what it would find was not tried");
        return;
    }
    for (place, expression) in queries("expr") {
        let query = expression.replace("$__rate_interval", "5m");
        if names(&query).all(|name| name.starts_with("gauntlet_gpu_")) {
            assert_eq!(watched(&query).await > 0, Path::new("/dev/nvidia0").exists(), "{place}");
            continue;
        }
        until(&format!("{place}: no data for {query}"), async || (watched(&query).await > 0).then_some(())).await;
    }
    for (name, expression, _) in alerts() {
        for operand in operands(&expression) {
            until(&format!("{name}: no data for {operand}"), async || (watched(&operand).await > 0).then_some(()))
                .await;
        }
    }
    for address in [&of_api, &of_worker] {
        promtool(&["check", "metrics"], &scrape(address).await.unwrap());
    }
    if let Some((_, address)) = watcher.as_ref().filter(|_| is_there("psql")) {
        dashboards_are_reported(&world, address);
    }
}

/// `scripts/dashboards-report` shows every panel, and finds no other panels empty than those of results that this run has not.
fn dashboards_are_reported(world: &World, prometheus: &str) {
    let output = Command::new("python3")
        .arg(repository("scripts/dashboards-report"))
        .args(["--prometheus", &format!("http://{prometheus}"), "--postgres", &world.url, "--hours", "0.1"])
        .output()
        .unwrap();
    let (page, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    for dashboard in dashboards() {
        for panel in dashboard["panels"].as_array().unwrap() {
            let title = panel["title"].as_str().unwrap().split('$').next().unwrap();
            assert!(page.contains(title), "{title} is not reported: {said}");
        }
    }
    let empty: Vec<&str> = said.lines().filter_map(|line| line.trim().strip_prefix("empty: ")).collect();
    let of_others = [
        "L∞",
        "L2",
        "Corruption × severity",
        "$model_a against $model_b",
        "Work left",
        "Queue empty in",
        "Open evaluations",
        "Asked of workers",
    ];
    for panel in &empty {
        assert!(of_others.iter().any(|title| panel.ends_with(title)), "{panel}: {said}");
    }
    assert_eq!(output.status.success(), empty.is_empty(), "{said}");
}

/// Eight shards of one second each, on a machine where nothing else costs time.
#[tokio::test]
async fn simulations_go_by_what_was_measured() {
    let (bench, [id, _]) = history().await;
    let simulate = |arguments: &[&str]| -> Value {
        let output = Command::new(env!("CARGO_BIN_EXE_gauntlet"))
            .arg("simulate")
            .args(arguments)
            .args(["--format", "json", "--workers", "1,4", "--price", "3600"])
            .env("DATABASE_URL", bench.pool.connect_options().to_url_lossy().as_str())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let same = simulate(&["like", &id.to_string(), "--load-seconds", "0", "--between-seconds", "0"]);
    assert_eq!((&same["shards"], &same["unmeasured_shards"]), (&json!(8), &json!(0)));
    let [alone, four] = [0, 1].map(|i| same["answers"][i].clone());
    for (answer, seconds, cost) in [(&alone, 8.0, 8.0), (&four, 2.0, 8.0)] {
        assert!((answer["seconds"].as_f64().unwrap() - seconds).abs() < 1e-6, "{same}");
        assert!((answer["device_hours"].as_f64().unwrap() - 8.0 / 3600.0).abs() < 1e-9, "{same}");
        assert!((answer["cost"].as_f64().unwrap() - cost).abs() < 1e-6, "{same}");
    }
    let half = simulate(&["like", &id.to_string(), "--images", "20", "--load-seconds", "0", "--between-seconds", "0"]);
    assert!((half["answers"][0]["seconds"].as_f64().unwrap() - 4.0).abs() < 1e-6, "{half}");
    // One evaluation is open, and nothing of it was measured.
    let queue = simulate(&["queue"]);
    assert_eq!((&queue["shards"], &queue["unmeasured_shards"]), (&json!(4), &json!(4)));
    assert_eq!(queue["answers"][0]["evaluations"].as_array().unwrap().len(), 1);
}

/// Prometheus with the shipped rules, watching these addresses.
fn prometheus(world: &World, api: &str, worker: &str) -> (Process, String) {
    let config = json!({
        "global": {"scrape_interval": "500ms", "evaluation_interval": "500ms"},
        "rule_files": [repository("docker/prometheus/alerts.yml")],
        "scrape_configs": [
            {"job_name": "gauntlet", "static_configs": [{"targets": [api]}]},
            {"job_name": "gauntlet-worker", "static_configs": [{"targets": [worker]}]},
        ],
    });
    // JSON is YAML.
    let file = world.data.path().join("prometheus.yml");
    std::fs::write(&file, config.to_string()).unwrap();
    let (address, data) = (free_address(), world.data.path().join("tsdb"));
    let mut command = Command::new("prometheus");
    command.arg(format!("--config.file={}", file.display())).arg(format!("--storage.tsdb.path={}", data.display()));
    command.arg(format!("--web.listen-address={address}")).arg("--log.level=error");
    (Process(command.spawn().unwrap()), address)
}

/// Takes traces as an OpenTelemetry collector does.
async fn collector() -> (String, Arc<Mutex<Vec<(String, Span)>>>) {
    let spans: Arc<Mutex<Vec<(String, Span)>>> = Arc::default();
    let kept = spans.clone();
    let take = async move |body: axum::body::Bytes| {
        for of_process in ExportTraceServiceRequest::decode(body).unwrap().resource_spans {
            let attributes = of_process.resource.unwrap().attributes;
            let service = attributes.iter().find(|a| a.key == "service.name").unwrap();
            let service = format!("{:?}", service.value);
            let all = of_process.scope_spans.into_iter().flat_map(|scope| scope.spans);
            kept.lock().unwrap().extend(all.map(|span| (service.clone(), span)));
        }
    };
    let router = axum::Router::new().route("/v1/traces", axum::routing::post(take));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async { axum::serve(listener, router).await });
    (url, spans)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_evaluation_is_followed_through_logs_and_traces_by_its_id() {
    rustls::crypto::ring::default_provider().install_default().ok();
    let (world, client, (url, spans)) = (World::new().await, Client::new(), collector().await);
    world.import_digits().await;
    let (api, metrics) = (free_address(), free_address());
    let settings = [("GAUNTLET_OTLP_ENDPOINT", url.as_str()), ("GAUNTLET_LOG", "json"), ("GAUNTLET_LOG_LEVEL", "info")];
    let of_api = [("GAUNTLET_LISTEN", api.as_str()), ("GAUNTLET_METRICS_LISTEN", &metrics)];
    let server = gauntlet(&world, "serve", &[&settings[..], &of_api].concat());
    let worker = gauntlet(&world, "worker", &settings);
    until("the API answers", async || text(&client, &format!("http://{api}/readyz")).await).await;
    let model = world.add_model(&repository("models/digits/standard.pt"), &digits_spec()).await;
    let body = json!({"model": model.id, "dataset": "digits", "protocol": "clean", "images": 32});
    let request = client.post(format!("http://{api}/v1/evaluations")).header("x-request-id", "my-request").json(&body);
    let answer: Value = request.send().await.unwrap().json().await.unwrap();
    let id: Uuid = answer["id"].as_str().unwrap().parse().unwrap();
    assert_eq!(world.until_ended(id).await.state, State::Succeeded);

    // Ended politely, both send what they have left.
    let logs = [server, worker].map(Process::end);
    let events: Vec<Vec<Value>> =
        logs.iter().map(|log| log.lines().map(|line| serde_json::from_str(line).unwrap()).collect()).collect();
    let about = |events: &[Value], message: &str| -> Value {
        let mut found =
            events.iter().filter(|e| e["fields"]["message"] == message && e["fields"]["evaluation"] == id.to_string());
        found.next().unwrap_or_else(|| panic!("{message} is not in {events:?}")).clone()
    };
    let queued = about(&events[0], "evaluation queued");
    assert_eq!(queued["spans"][0]["id"], "my-request", "{queued}");
    let started = about(&events[1], "shard started");
    assert_eq!(started["spans"][0]["request"], "my-request", "{started}");
    about(&events[1], "shard committed");

    let spans = spans.lock().unwrap();
    let of_trace = |id: Uuid| -> BTreeSet<(&str, &str)> {
        let service = |text: &str| if text.contains("gauntlet-api") { "api" } else { "worker" };
        let mine = spans.iter().filter(|(_, span)| span.trace_id == id.as_bytes());
        mine.map(|(s, span)| (service(s), span.name.as_str())).collect()
    };
    let steps = ["shard", "read_images", "evaluator_ready", "evaluate", "write_verdicts", "commit"];
    let expected: BTreeSet<_> = steps.map(|name| ("worker", name)).into_iter().chain([("api", "submit")]).collect();
    assert_eq!(of_trace(id), expected);
    assert_eq!(of_trace(model.id), BTreeSet::from([("worker", "check")]));
    let shard = spans.iter().find(|(_, span)| span.name == "shard").unwrap();
    let evaluate = spans.iter().find(|(_, span)| span.name == "evaluate").unwrap();
    assert_eq!(evaluate.1.parent_span_id, shard.1.span_id);
    // From the request to the evaluator's process.
    let says = |span: &Span, key: &str| span.attributes.iter().find(|a| a.key == key).map(|a| format!("{:?}", a.value));
    assert!(says(&shard.1, "request").is_some_and(|id| id.contains("my-request")), "{shard:?}");
    assert!(says(&evaluate.1, "pid").is_some(), "{evaluate:?}");
}

#[test]
fn the_alert_rules_fire_when_they_should_and_only_then() {
    if !is_there("promtool") {
        eprintln!("promtool is not installed: the rules were not tried");
        return;
    }
    promtool(&["check", "rules", "docker/prometheus/alerts.yml"], "");
    promtool(&["check", "config", "docker/prometheus/prometheus.yml"], "");
    promtool(&["test", "rules", "docker/prometheus/alerts_test.yml"], "");
}
