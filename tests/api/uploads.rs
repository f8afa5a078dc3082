//! Models' files in pieces.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU16, Ordering};
use std::time::Duration;

use gauntlet::http::{self, AppState, Settings};
use gauntlet::store::keys::{self, NewKey, Scope};
use gauntlet::store::{Artifacts, Quotas};
use reqwest::multipart::Form;
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::common::bench::{Bench, id, spec};
use crate::problems::problem;

const PIECE: &str = "application/offset+octet-stream";

/// Bytes that do not repeat at the size of a part.
fn bytes(length: usize) -> Vec<u8> {
    (0..length as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

async fn open(bench: &Bench, length: usize) -> Uuid {
    let opened = bench.post("/v1/uploads", &json!({"bytes": length})).await;
    assert_eq!(opened.status(), 201);
    assert_eq!(opened.headers()["upload-offset"], "0");
    id(&opened.json().await.unwrap())
}

async fn send(bench: &Bench, upload: Uuid, offset: usize, piece: &[u8]) -> Response {
    let request = bench.client.patch(bench.at(&format!("/v1/uploads/{upload}"))).header("upload-offset", offset);
    request.header("content-type", PIECE).body(piece.to_vec()).send().await.unwrap()
}

fn offset(answer: &Response) -> usize {
    answer.headers()["upload-offset"].to_str().unwrap().parse().unwrap()
}

async fn submit(bench: &Bench, upload: Uuid) -> Response {
    let form = Form::new().text("spec", spec().to_string()).text("upload", upload.to_string());
    let request = bench.client.post(bench.at("/v1/models")).header("idempotency-key", "submission");
    request.multipart(form).send().await.unwrap()
}

#[tokio::test]
async fn a_file_in_pieces_becomes_the_same_model_as_a_file_at_once() {
    let bench = Bench::start().await;
    let whole = bytes((17 << 20) + 5);
    let upload = open(&bench, whole.len()).await;
    let cut = (9 << 20) + 3;
    let early = submit(&bench, upload).await;
    assert_eq!(problem(early, 409).await.0, "upload_incomplete");
    let kept = send(&bench, upload, 0, &whole[..cut]).await;
    assert_eq!((kept.status(), offset(&kept)), (StatusCode::NO_CONTENT, cut));
    for wrong in [0, cut - 1, cut + 1] {
        let refused = send(&bench, upload, wrong, &whole[wrong..]).await;
        assert_eq!(offset(&refused), cut);
        assert_eq!(problem(refused, 409).await.0, "offset_mismatch");
    }
    let head = bench.client.head(bench.at(&format!("/v1/uploads/{upload}"))).send().await.unwrap();
    assert_eq!((head.status().as_u16(), offset(&head)), (200, cut));
    // Of several that race for a place, one is kept.
    let racers = (0..4).map(|_| send(&bench, upload, cut, &whole[cut..]));
    let statuses: Vec<u16> = futures::future::join_all(racers).await.iter().map(|r| r.status().as_u16()).collect();
    assert!(statuses.contains(&204) && statuses.iter().all(|s| [204, 409].contains(s)), "{statuses:?}");
    assert_eq!(bench.json(&format!("/v1/uploads/{upload}")).await["offset"], whole.len());

    let request = async || {
        let form = Form::new().text("spec", spec().to_string()).text("upload", upload.to_string());
        let request = bench.client.post(bench.at("/v1/models")).header("idempotency-key", "whole");
        request.multipart(form).send().await.unwrap()
    };
    let made = request().await;
    assert_eq!(made.status(), 201);
    let made: Value = made.json().await.unwrap();
    assert_eq!((&made["sha256"], &made["bytes"]), (&json!(hex::encode(Sha256::digest(&whole))), &json!(whole.len())));
    assert_eq!(bench.files("models"), [made["sha256"].as_str().unwrap()]);
    assert_eq!((bench.files("uploads").len(), bench.files("parts").len()), (0, 0));
    problem(bench.get(&format!("/v1/uploads/{upload}")).await, 404).await;
    // Whoever did not hear the answer asks again, though the upload is gone.
    assert_eq!(request().await.json::<Value>().await.unwrap(), made);
    let form = Form::new().text("spec", spec().to_string()).text("upload", upload.to_string());
    assert_eq!(problem(bench.upload(form).await, 422).await.0, "unknown_upload");
}

#[tokio::test]
async fn what_arrived_before_a_connection_broke_off_is_kept() {
    let bench = Bench::start().await;
    let whole = bytes(20 << 20);
    let upload = open(&bench, whole.len()).await;
    let arrived = (9 << 20) + 77;
    let mut socket = TcpStream::connect(bench.url.strip_prefix("http://").unwrap()).await.unwrap();
    let head = format!(
        "PATCH /v1/uploads/{upload} HTTP/1.1\r\nHost: localhost\r\nUpload-Offset: 0\r\nContent-Type: {PIECE}\r\n\
         Content-Length: {}\r\n\r\n",
        whole.len()
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    socket.write_all(&whole[..arrived]).await.unwrap();
    socket.shutdown().await.unwrap();
    socket.read_to_end(&mut Vec::new()).await.ok();
    let path = format!("/v1/uploads/{upload}");
    for _ in 0..600 {
        if bench.json(&path).await["offset"] == arrived {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let rest = send(&bench, upload, arrived, &whole[arrived..]).await;
    assert_eq!((rest.status().as_u16(), offset(&rest)), (204, whole.len()));
    let made: Value = submit(&bench, upload).await.json().await.unwrap();
    assert_eq!(made["sha256"], hex::encode(Sha256::digest(&whole)));
}

#[tokio::test]
async fn uploads_that_cannot_be_are_refused_and_say_why() {
    let bench = Bench::with(Settings { max_model_bytes: 1000, ..Settings::default() }).await;
    for (body, status, code, field) in [
        (json!({"bytes": 0}), 422, "invalid_field", "bytes"),
        (json!({"bytes": 1001}), 413, "too_large", "bytes"),
        (json!({"bytes": -1}), 422, "invalid_field", "bytes"),
        (json!({"bytes": 5, "sha256": "XYZ"}), 422, "invalid_field", "sha256"),
    ] {
        let found = problem(bench.post("/v1/uploads", &body).await, status).await;
        assert_eq!(found, (code.into(), Some(field.into())), "{body}");
    }
    let upload = open(&bench, 4).await;
    assert_eq!(problem(send(&bench, upload, 0, b"12345").await, 413).await.0, "too_large");
    let patch = bench.client.patch(bench.at(&format!("/v1/uploads/{upload}"))).header("content-type", PIECE);
    assert_eq!(problem(patch.body("1").send().await.unwrap(), 400).await.0, "bad_offset");
    let patch = bench.client.patch(bench.at(&format!("/v1/uploads/{upload}"))).header("upload-offset", 0);
    assert_eq!(problem(patch.body("1").send().await.unwrap(), 415).await.0, "unsupported_media_type");

    // The same hash and size is the same upload; other bytes than announced are found out.
    let announced = json!({"bytes": 4, "sha256": hex::encode(Sha256::digest("true"))});
    let first: Value = bench.post("/v1/uploads", &announced).await.json().await.unwrap();
    assert_eq!(send(&bench, id(&first), 0, b"fa").await.status(), 204);
    let again = bench.post("/v1/uploads", &announced).await;
    assert_eq!((again.status().as_u16(), offset(&again)), (200, 2));
    assert_eq!(id(&again.json().await.unwrap()), id(&first));
    assert_eq!(send(&bench, id(&first), 2, b"ke").await.status(), 204);
    assert_eq!(problem(submit(&bench, id(&first)).await, 422).await.0, "hash_mismatch");
    assert!(bench.files("uploads").is_empty() && bench.files("models").is_empty());
    let deleted = bench.client.delete(bench.at(&format!("/v1/uploads/{}", id(&first)))).send().await.unwrap();
    assert_eq!((deleted.status().as_u16(), bench.files("parts").len()), (204, 0));
}

#[tokio::test]
async fn an_open_upload_counts_against_its_owner_until_it_is_given_up_or_grows_no_more() {
    let quotas = Quotas { model_bytes: 10, ..Quotas::default() };
    let bench = Bench::with(Settings { quotas, ..Settings::default() }).await;
    let new = NewKey { owner: "alice", label: "", scopes: &[Scope::Submit, Scope::Read], expires_at: None };
    let key = keys::create(&bench.pool, &new).await.unwrap().reveal();
    let open = async |length: usize| {
        let request = bench.client.post(bench.at("/v1/uploads")).bearer_auth(&key);
        request.json(&json!({"bytes": length})).send().await.unwrap()
    };
    let first = id(&open(7).await.json().await.unwrap());
    assert_eq!(problem(open(4).await, 429).await.0, "quota_exceeded");
    let send = bench.client.patch(bench.at(&format!("/v1/uploads/{first}"))).bearer_auth(&key);
    let send = send.header("content-type", PIECE).header("upload-offset", 0).body("1234567");
    assert_eq!(send.send().await.unwrap().status(), 204);
    // Becoming a model it counts once.
    let form = Form::new().text("spec", spec().to_string()).text("upload", first.to_string());
    let made = bench.client.post(bench.at("/v1/models")).bearer_auth(&key).multipart(form).send().await.unwrap();
    assert_eq!(made.status(), 201);
    let second = id(&open(3).await.json().await.unwrap());
    assert_eq!(open(1).await.status(), 429);
    // Another server starts a day later, and sweeps.
    sqlx::query("update uploads set grown_at = now() - interval '25 hours'").execute(&bench.pool).await.unwrap();
    start_server(&bench).await;
    for _ in 0..600 {
        if open(3).await.status() == 201 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("upload {second} is still there");
}

/// One more server on the same database and artifacts; its port, and what stops it.
async fn start_server(bench: &Bench) -> (u16, CancellationToken) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let artifacts = Artifacts::local(bench.folder.path()).unwrap();
    let state = AppState::new(bench.pool.clone(), artifacts, Settings { open: true, ..Settings::default() });
    let shutdown = bench.shutdown.child_token();
    tokio::spawn(http::serve(listener, state, shutdown.clone()));
    (port, shutdown)
}

/// Passes connections on to `target`. When it has passed on so many bytes it cuts every connection and goes on with `next`.
async fn cutting_proxy(target: Arc<AtomicU16>, left: Arc<AtomicI64>, next: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let (target, left) = (target.clone(), left.clone());
            tokio::spawn(async move {
                let server = TcpStream::connect(("127.0.0.1", target.load(Ordering::SeqCst))).await.unwrap();
                let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
                    (client.into_split(), server.into_split());
                let forward = async move {
                    let mut chunk = vec![0; 1 << 16];
                    while let Ok(n @ 1..) = from_client.read(&mut chunk).await {
                        if left.fetch_sub(n as i64, Ordering::SeqCst) < n as i64 {
                            target.store(next, Ordering::SeqCst);
                            left.store(i64::MAX, Ordering::SeqCst);
                            return;
                        }
                        to_server.write_all(&chunk[..n]).await.ok();
                    }
                };
                tokio::select! {
                    () = forward => {}
                    _ = tokio::io::copy(&mut from_server, &mut to_client) => {}
                }
            });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gauntlet_submit_goes_on_where_a_dropped_connection_and_another_server_left_it() {
    let bench = Bench::start().await;
    let file = bench.folder.path().join("large.pt");
    let whole = bytes(40 << 20);
    std::fs::write(&file, &whole).unwrap();
    let first: u16 = bench.url.rsplit(':').next().unwrap().parse().unwrap();
    let (second, _) = start_server(&bench).await;
    let left = Arc::new(AtomicI64::new(21 << 20));
    let proxy = cutting_proxy(Arc::new(AtomicU16::new(first)), left.clone(), second).await;
    let run = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gauntlet"));
        command.arg("submit").arg(&file).args(["--dataset", "tiny", "--protocol", "clean"]);
        command.args(["--server", &format!("http://127.0.0.1:{proxy}")]).current_dir(bench.folder.path());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        tokio::task::spawn_blocking(move || command.output().unwrap())
    };
    let output = run().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let model = bench.json("/v1/models").await["items"][0].clone();
    assert_eq!((&model["sha256"], &model["bytes"]), (&json!(hex::encode(Sha256::digest(&whole))), &json!(whole.len())));
    // The connection was cut, and no more was sent again than a piece.
    let sent = i64::MAX - left.load(Ordering::SeqCst);
    assert!((0..(40 << 20)).contains(&sent), "{sent}");
    assert_eq!(
        (bench.files("parts").len(), bench.json("/v1/evaluations").await["items"].as_array().unwrap().len()),
        (0, 1)
    );
}
