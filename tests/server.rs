//! `gauntlet up` and `gauntlet demo` as a person runs them: embedded database, API, worker and evaluator processes.

mod common;

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::world::{World, repository};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use reqwest::Client;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(120);

/// A folder that the database's account can enter too.
fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().permissions(std::fs::Permissions::from_mode(0o755)).tempdir().unwrap()
}

fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

fn gauntlet(data: &Path, address: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gauntlet"));
    command.env_remove("DATABASE_URL").env("GAUNTLET_LISTEN", address).env("GAUNTLET_METRICS_LISTEN", free_address());
    command.env("GAUNTLET_DEVICE", "cpu").current_dir(data).arg("--data-dir").arg(data);
    command
}

async fn ready(client: &Client, address: &str, server: &mut Child) -> Value {
    let start = Instant::now();
    loop {
        if let Ok(answer) = client.get(format!("http://{address}/readyz")).send().await
            && answer.status().is_success()
        {
            return answer.json().await.unwrap();
        }
        assert!(server.try_wait().unwrap().is_none(), "the server ended by itself");
        assert!(start.elapsed() < PATIENCE, "the server does not become ready");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Processes whose command line mentions this folder.
fn processes_of(data: &Path) -> Vec<String> {
    let needle = data.to_str().unwrap();
    let ids = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = ids.filter_map(|entry| std::fs::read_to_string(entry.path().join("cmdline")).ok());
    lines.map(|line| line.replace('\0', " ")).filter(|line| line.contains(needle)).collect()
}

#[tokio::test]
async fn a_killed_server_comes_back_with_its_data_and_stops_cleanly_when_asked() {
    rustls::crypto::ring::default_provider().install_default().ok();
    let (data, address, client) = (folder(), free_address(), Client::new());
    let up = || gauntlet(data.path(), &address).arg("up").stderr(Stdio::null()).spawn().unwrap();
    let mut server = up();
    ready(&client, &address, &mut server).await;
    let protocol = serde_json::json!({"name": "mine", "clean": {}});
    let url = format!("http://{address}/v1/protocols");
    let created = loop {
        let answer = client.post(&url).json(&protocol).send().await.unwrap();
        // On a disk under load the database may take its time; the server then asks to be asked again.
        match answer.headers().get("retry-after").and_then(|seconds| seconds.to_str().ok()?.parse().ok()) {
            Some(seconds) if answer.status() == 503 => tokio::time::sleep(Duration::from_secs(seconds)).await,
            _ => break answer,
        }
    };
    assert_eq!(created.status(), 201, "{}", created.text().await.unwrap());
    server.kill().unwrap();
    server.wait().unwrap();

    let mut server = up();
    ready(&client, &address, &mut server).await;
    assert_eq!(client.get(format!("{url}/mine")).send().await.unwrap().status(), 200);
    kill(Pid::from_raw(server.id() as i32), Signal::SIGTERM).unwrap();
    assert!(server.wait().unwrap().success());
    assert_eq!(processes_of(data.path()), [""; 0]);
}

#[tokio::test]
async fn a_server_whose_database_dies_says_so_and_ends() {
    rustls::crypto::ring::default_provider().install_default().ok();
    let (data, address, client) = (folder(), free_address(), Client::new());
    let mut server = gauntlet(data.path(), &address).arg("up").stderr(Stdio::piped()).spawn().unwrap();
    ready(&client, &address, &mut server).await;
    let pid_file = std::fs::read_to_string(data.path().join("postgres/data/postmaster.pid")).unwrap();
    let postmaster: i32 = pid_file.lines().next().unwrap().parse().unwrap();
    kill(Pid::from_raw(postmaster), Signal::SIGKILL).unwrap();
    let output = server.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("Postgres ended by itself"), "{said}");
}

/// Passwords, keys and tokens stay out of logs (in detail), metrics and answers, whatever goes wrong.
#[tokio::test]
async fn secrets_appear_in_no_log_no_metric_and_no_answer() {
    rustls::crypto::ring::default_provider().install_default().ok();
    let world = World::new().await;
    let (address, metrics, log) = (free_address(), free_address(), world.data.path().join("log"));
    let command = |word: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gauntlet"));
        let heard = File::options().create(true).append(true).open(&log).unwrap();
        command.arg(word).arg("--data-dir").arg(world.data.path()).current_dir(world.data.path());
        command.env("DATABASE_URL", &world.url).env("GAUNTLET_LISTEN", &address).env("GAUNTLET_DEVICE", "cpu");
        command.env("GAUNTLET_METRICS_LISTEN", &metrics).env("GAUNTLET_LOG_LEVEL", "debug").env("GAUNTLET_LOG", "json");
        command.env("AWS_SECRET_ACCESS_KEY", "bucket-secret").stderr(heard);
        command
    };
    let mut make_key = command("key");
    make_key.args(["create", "--owner", "ada", "--scope", "submit", "--scope", "read"]);
    let said = String::from_utf8(make_key.output().unwrap().stdout).unwrap();
    let key = said.split_whitespace().find(|word| word.starts_with("gauntlet_")).unwrap();

    let mut server = command("serve").stdout(Stdio::null()).spawn().unwrap();
    let client = Client::new();
    ready(&client, &address, &mut server).await;
    let mut worker = command("worker").stdout(Stdio::null()).spawn().unwrap();
    let mut said = Vec::new();
    let hook = serde_json::json!({"url": "https://hooks.invalid/path?token=token-in-the-url"});
    let ask = |request: reqwest::RequestBuilder| async { request.bearer_auth(key).send().await.unwrap() };
    let at = |path: &str| format!("http://{address}{path}");
    let made = ask(client.post(at("/v1/webhooks")).json(&hook)).await;
    assert_eq!(made.status(), 201);
    let made: Value = made.json().await.unwrap();
    let whole = std::fs::read(repository("models/digits/standard.pt")).unwrap();
    for (bytes, name) in [(whole, "whole"), (b"broken".to_vec(), "broken")] {
        let file = reqwest::multipart::Part::bytes(bytes);
        let spec = serde_json::json!({"input": [1, 32, 32], "classes": 10}).to_string();
        let form = reqwest::multipart::Form::new().text("name", name).text("spec", spec).part("file", file);
        said.push(ask(client.post(at("/v1/models")).multipart(form)).await.text().await.unwrap());
    }
    world.until_true("select count(*) = 2 and bool_and(state in ('ready', 'rejected')) from models").await;
    for path in ["/v1/models", "/v1/models?cursor=x", "/v1/evaluations/x", "/v1/webhooks", "/readyz", "/nothing"] {
        said.push(ask(client.get(at(path))).await.text().await.unwrap());
    }
    let forged = format!("{}0", &key[..key.len() - 1]);
    said.push(client.get(at("/v1/models")).bearer_auth(&forged).send().await.unwrap().text().await.unwrap());
    said.push(client.get(format!("http://{metrics}/metrics")).send().await.unwrap().text().await.unwrap());
    // Processes that do not get as far as serving.
    for url in ["postgres://ada:lost-password@127.0.0.1:1/x", "postgres://ada:odd-password@[::1/x"] {
        said.push(String::from_utf8(command("worker").env("DATABASE_URL", url).output().unwrap().stdout).unwrap());
    }
    said.push(String::from_utf8(command("config").arg("show").output().unwrap().stdout).unwrap());
    for process in [&mut worker, &mut server] {
        kill(Pid::from_raw(process.id() as i32), Signal::SIGTERM).unwrap();
        assert!(process.wait().unwrap().success());
    }
    let log = std::fs::read_to_string(log).unwrap();
    assert!(log.contains("\"level\":\"DEBUG\"") && log.contains("model is rejected"), "{log}");
    said.push(log);
    let password = reqwest::Url::parse(&world.url).unwrap().password().unwrap().to_owned();
    let half_of_the_key = key.rsplit('_').next().unwrap();
    let signing = made["secret"].as_str().unwrap();
    for secret in [
        &password,
        half_of_the_key,
        &forged,
        signing,
        "bucket-secret",
        "lost-password",
        "odd-password",
        "token-in-the-url",
    ] {
        for text in &said {
            let place = text.find(secret);
            let around = place.map(|at| &text[at.saturating_sub(200)..at]);
            // The owner may read where the own webhook goes.
            assert!(
                around.is_none() || (secret == "token-in-the-url" && text.starts_with("{\"items\"")),
                "…{}",
                around.unwrap()
            );
        }
    }
}

#[test]
fn the_demo_shows_that_one_model_collapses_and_the_other_holds() {
    let data = folder();
    let output = gauntlet(data.path(), &free_address()).args(["demo", "--exit"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let accuracies = |condition: &str| -> Vec<f64> {
        let line = text.lines().find(|line| line.contains(condition)).unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        words.windows(2).filter(|pair| pair[1] == "%").map(|pair| pair[0].parse().unwrap()).collect()
    };
    let clean = accuracies(" clean ");
    assert!(clean.iter().all(|a| *a > 90.0), "{text}");
    let attacked = accuracies("pgd-linf-0.1 ");
    assert!(attacked[0] < 10.0 && attacked[1] > 65.0, "{text}");
    assert_eq!(processes_of(data.path()), [""; 0]);
}
