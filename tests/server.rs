//! `gauntlet up` and `gauntlet demo` as a person runs them: embedded database, API, worker and evaluator processes.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

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
