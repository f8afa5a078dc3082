//! Artifacts in a bucket, against a real S3-compatible server: moto's (`pip install moto[server]`), where `moto_server` is
//! on the PATH. `scripts/try-s3` fetches it and runs these.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use gauntlet::dataset::{Catalogue, DatasetError, ImportOptions, Shape, Source};
use gauntlet::store::Artifacts;
use gauntlet::store::artifacts::ArtifactError;
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// moto, killed when it goes out of scope.
struct Server {
    process: Child,
    address: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

impl Server {
    /// `None`, and a word about it, where there is no moto. The bucket `gauntlet` exists; after `free` requests (of which
    /// its making is one) every request needs a key that moto knows, and it knows none.
    async fn start(free: Option<u32>) -> Option<Self> {
        rustls::crypto::ring::default_provider().install_default().ok();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new("moto_server");
        command.args(["-H", "127.0.0.1", "-p", &port.to_string()]).stdout(Stdio::null()).stderr(Stdio::null());
        if let Some(free) = free {
            command.env("INITIAL_NO_AUTH_ACTION_COUNT", free.to_string());
        }
        let Ok(process) = command.spawn() else {
            eprintln!("moto_server is not on the PATH: S3 was not tried");
            return None;
        };
        let server = Self { process, address: format!("127.0.0.1:{port}") };
        let (client, start) = (reqwest::Client::new(), Instant::now());
        let bucket = format!("http://{}/gauntlet", server.address);
        while !client.put(&bucket).send().await.is_ok_and(|answer| answer.status().is_success()) {
            assert!(start.elapsed() < Duration::from_secs(60), "moto does not start");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Some(server)
    }
}

fn variables(address: &str) -> Vec<(String, String)> {
    let pairs = [
        ("AWS_ENDPOINT_URL", format!("http://{address}")),
        ("AWS_ALLOW_HTTP", "true".into()),
        ("AWS_REGION", "us-east-1".into()),
        ("AWS_ACCESS_KEY_ID", "somebody".into()),
        ("AWS_SECRET_ACCESS_KEY", "secret".into()),
    ];
    pairs.map(|(name, value)| (name.to_owned(), value)).into()
}

fn bucket(address: &str, cache: &TempDir) -> Artifacts {
    Artifacts::s3("gauntlet", "a/prefix", variables(address), cache.path()).unwrap()
}

/// Bytes that no compression and no repetition could fake.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    (0..length).map(|_| next()).collect()
}

fn stream(bytes: &[u8]) -> impl futures::Stream<Item = Result<bytes::Bytes, ArtifactError>> + Unpin {
    let chunks: Vec<_> = bytes.chunks(300_000).map(|chunk| Ok(bytes::Bytes::copy_from_slice(chunk))).collect();
    futures::stream::iter(chunks)
}

async fn objects(artifacts: &Artifacts) -> Vec<String> {
    let all: Vec<_> = futures::TryStreamExt::try_collect(artifacts.store().list(None)).await.unwrap();
    all.into_iter().map(|meta: object_store::ObjectMeta| meta.location.to_string()).collect()
}

#[tokio::test]
async fn models_go_up_in_parts_and_come_back_as_files_of_the_same_hash() {
    let Some(server) = Server::start(None).await else { return };
    let cache = tempfile::tempdir().unwrap();
    let artifacts = bucket(&server.address, &cache);
    artifacts.check().await.unwrap();
    // Three parts of 8 MiB, the last one short.
    let model = noise((20 << 20) + 7);
    let upload = artifacts.upload(stream(&model), u64::MAX).await.unwrap();
    assert_eq!((upload.bytes, &upload.sha256), (model.len() as u64, &hex::encode(Sha256::digest(&model))));
    artifacts.keep_model(&upload).await.unwrap();
    artifacts.discard(&upload).await.unwrap();
    assert_eq!(objects(&artifacts).await, [format!("models/{}", upload.sha256)]);
    let file = artifacts.model_file(&upload.sha256).await.unwrap();
    assert!(std::fs::read(&file).unwrap() == model);
    // A second worker of this machine, and the same one later, need the bucket no more.
    drop(server);
    assert_eq!(artifacts.model_file(&upload.sha256).await.unwrap(), file);
    assert_eq!(std::fs::read_dir(cache.path().join("uploads")).unwrap().count(), 0);
}

#[tokio::test]
async fn evidence_is_read_in_ranges_and_uploads_that_are_refused_leave_nothing() {
    let Some(server) = Server::start(None).await else { return };
    let cache = tempfile::tempdir().unwrap();
    let artifacts = bucket(&server.address, &cache);
    let bytes = noise(100_000);
    artifacts.put("verdicts/x.parquet", bytes.clone()).await.unwrap();
    assert_eq!(artifacts.get("verdicts/x.parquet").await.unwrap(), bytes);
    assert_eq!(artifacts.get_range("verdicts/x.parquet", 70_000..70_321).await.unwrap(), bytes[70_000..70_321]);
    let error = artifacts.upload(stream(&noise(10 << 20)), 9 << 20).await.unwrap_err();
    assert!(matches!(error, ArtifactError::TooLarge { .. }), "{error}");
    assert_eq!(objects(&artifacts).await, ["verdicts/x.parquet"]);
    assert!(artifacts.get("verdicts/y.parquet").await.unwrap_err().to_string().contains("verdicts/y.parquet"));
    assert_eq!(artifacts.space(), None);
}

#[tokio::test]
async fn a_model_in_pieces_is_joined_and_folders_are_deleted_whole() {
    let Some(server) = Server::start(None).await else { return };
    let cache = tempfile::tempdir().unwrap();
    let artifacts = bucket(&server.address, &cache);
    let model = noise((12 << 20) + 3);
    let (first, second) = model.split_at((8 << 20) + 1);
    artifacts.put("parts/a-0", first.to_vec()).await.unwrap();
    artifacts.put("parts/a-1", second.to_vec()).await.unwrap();
    let pieces = artifacts.stream("parts/a-0").await.unwrap().chain(artifacts.stream("parts/a-1").await.unwrap());
    let joined = artifacts.upload(Box::pin(pieces), u64::MAX).await.unwrap();
    assert_eq!((joined.bytes, &joined.sha256), (model.len() as u64, &hex::encode(Sha256::digest(&model))));
    artifacts.discard(&joined).await.unwrap();
    for key in ["logs/x/1.txt", "logs/x/2.txt", "logs/xy/1.txt"] {
        artifacts.put(key, b"12345".to_vec()).await.unwrap();
    }
    artifacts.delete_folder("logs/x").await.unwrap();
    artifacts.delete("parts/a-0").await.unwrap();
    artifacts.delete("parts/a-0").await.unwrap();
    let mut left = objects(&artifacts).await;
    left.sort();
    assert_eq!(left, ["logs/xy/1.txt", "parts/a-1"]);
    let sizes = [artifacts.size("logs/xy/1.txt").await.unwrap(), artifacts.size("logs/x/1.txt").await.unwrap()];
    assert_eq!(sizes, [5, 0]);
}

#[tokio::test]
async fn datasets_live_in_a_bucket_and_two_imports_of_one_name_do_not_overwrite() {
    let Some(server) = Server::start(None).await else { return };
    let cache = tempfile::tempdir().unwrap();
    let catalogue = Catalogue::new(bucket(&server.address, &cache).store());
    let import = async |shift: u8| {
        let shape = Shape { channels: 1, height: 2, width: 2 };
        let source =
            Source::in_memory(shape, 2, (0..40).map(|i| i + shift).collect(), vec![0, 1, 0, 1, 0, 1, 0, 1, 0, 1]);
        let options = ImportOptions { preset: None, replace: false, progress: Arc::new(|_| ()) };
        catalogue.import("tiny", Arc::new(source.unwrap()), &options).await
    };
    let manifest = import(0).await.unwrap();
    assert_eq!(catalogue.read(&manifest, 3..5).await.unwrap().pixels, (12..20).collect::<Vec<u8>>());
    assert!(matches!(import(1).await.unwrap_err(), DatasetError::Exists { .. }));
    assert_eq!(catalogue.get("tiny").await.unwrap().hash, manifest.hash);
}

#[tokio::test]
async fn wrong_keys_are_named_at_once() {
    let Some(server) = Server::start(Some(1)).await else { return };
    let cache = tempfile::tempdir().unwrap();
    let artifacts = bucket(&server.address, &cache);
    let error = artifacts.check().await.unwrap_err().to_string();
    assert!(error.contains("InvalidAccessKeyId") || error.contains("403"), "{error}");
    assert!(artifacts.upload(stream(b"x"), u64::MAX).await.is_err());
    assert!(artifacts.model_file(&"0".repeat(64)).await.is_err());
}

/// Passes connections on, until the answers have brought so many bytes; then it cuts every one.
async fn cut_after(target: String, limit: Arc<AtomicU64>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let (target, limit) = (target.clone(), limit.clone());
            tokio::spawn(async move {
                let mut server = TcpStream::connect(target).await.unwrap();
                let (mut from_client, mut to_client) = client.split();
                let (mut from_server, mut to_server) = server.split();
                let answers = async {
                    let mut chunk = vec![0; 1 << 16];
                    while let Ok(n @ 1..) = from_server.read(&mut chunk).await {
                        let spent =
                            limit.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(n as u64));
                        if spent.is_err() || to_client.write_all(&chunk[..n]).await.is_err() {
                            return;
                        }
                    }
                };
                tokio::select! {
                    _ = tokio::io::copy(&mut from_client, &mut to_server) => {}
                    () = answers => {}
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn a_server_that_goes_mid_read_is_an_error_and_leaves_no_half_model() {
    let Some(server) = Server::start(None).await else { return };
    let (near, far) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let model = noise(12 << 20);
    let direct = bucket(&server.address, &near);
    let upload = direct.upload(stream(&model), u64::MAX).await.unwrap();
    direct.keep_model(&upload).await.unwrap();
    direct.discard(&upload).await.unwrap();
    let limit = Arc::new(AtomicU64::new(5 << 20));
    let distant = bucket(&cut_after(server.address.clone(), limit.clone()).await, &far);
    let error = distant.model_file(&upload.sha256).await.unwrap_err();
    assert!(matches!(error, ArtifactError::Store(_)), "{error}");
    let files = |folder: &str| std::fs::read_dir(far.path().join(folder)).unwrap().count();
    assert_eq!((files("models"), files("uploads")), (0, 0));
    // It is back: the next attempt finds the whole.
    limit.store(u64::MAX, Ordering::Relaxed);
    assert!(std::fs::read(distant.model_file(&upload.sha256).await.unwrap()).unwrap() == model);
}

/// The demo, with artifacts in a directory or a bucket; its table.
fn demo(more: &[(String, String)]) -> String {
    use std::os::unix::fs::PermissionsExt;
    let data = tempfile::Builder::new().permissions(std::fs::Permissions::from_mode(0o755)).tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_gauntlet"));
    command
        .env_remove("DATABASE_URL")
        .env("GAUNTLET_LISTEN", "127.0.0.1:0")
        .env("GAUNTLET_METRICS_LISTEN", "127.0.0.1:0");
    command.env("GAUNTLET_DEVICE", "cpu").envs(more.iter().cloned()).current_dir(data.path());
    let output = command.arg("--data-dir").arg(data.path()).args(["demo", "--exit"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let rows: Vec<&str> = text.lines().filter(|line| line.contains('│')).collect();
    assert!(rows.len() > 4, "{text}");
    rows.join("\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_demo_gives_the_same_table_from_a_bucket_as_from_a_directory() {
    let Some(server) = Server::start(None).await else { return };
    let mut settings = variables(&server.address);
    settings.push(("GAUNTLET_ARTIFACTS".into(), "s3://gauntlet/demo".into()));
    assert_eq!(demo(&settings), demo(&[]));
    let cache = tempfile::tempdir().unwrap();
    let kept = Artifacts::s3("gauntlet", "demo", variables(&server.address), cache.path()).unwrap();
    let folders: std::collections::BTreeSet<String> =
        objects(&kept).await.into_iter().filter_map(|key| Some(key.split_once('/')?.0.to_owned())).collect();
    for folder in ["models", "verdicts", "witnesses"] {
        assert!(folders.contains(folder), "{folders:?}");
    }
}
