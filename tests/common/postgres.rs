//! A database of its own for every test, at the price of `CREATE DATABASE`.
//!
//! The first call in a process starts a private server that lasts as long as the process. Its files stay in the target
//! folder, so that initdb is paid for once. GAUNTLET_TEST_DATABASE_URL names another server to use instead, as a role
//! that may create databases.

use std::{
    env,
    fs::{self, File},
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Stdio},
};

use gauntlet::postgres::{Cluster, Durability, Options, PostgresError};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tokio::sync::OnceCell;
use uuid::Uuid;

/// Drops its database when it goes out of scope.
pub struct Guard {
    admin_url: String,
    name: String,
}

/// The URL of a new, empty database. Keep the guard for as long as the database is needed.
pub async fn fresh_database() -> (String, Guard) {
    let admin_url = admin_url().await.to_owned();
    let name = format!("test_{}", Uuid::new_v4().simple());
    execute(&admin_url, &format!("CREATE DATABASE {name}")).await.unwrap();
    let mut url = reqwest::Url::parse(&admin_url).unwrap();
    url.set_path(&name);
    (url.into(), Guard { admin_url, name })
}

impl Drop for Guard {
    fn drop(&mut self) {
        let drop_database = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        let admin_url = self.admin_url.clone();
        // The test's own runtime cannot be blocked on from here.
        let work = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(execute(&admin_url, &drop_database))
        };
        if let Err(error) = std::thread::spawn(work).join().unwrap() {
            eprintln!("database {} was not dropped: {error}", self.name);
        }
    }
}

async fn execute(url: &str, sql: &str) -> sqlx::Result<()> {
    let mut connection = PgConnection::connect(url).await?;
    connection.execute(AssertSqlSafe(sql)).await?;
    connection.close().await
}

async fn admin_url() -> &'static str {
    static URL: OnceCell<String> = OnceCell::const_new();
    URL.get_or_init(|| async {
        match env::var("GAUNTLET_TEST_DATABASE_URL") {
            Ok(url) => url,
            Err(_) => start_server().await,
        }
    })
    .await
}

/// Starts the first server that no other test process is using.
async fn start_server() -> String {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    for slot in 0.. {
        let lock = File::create(folder.join(format!("postgres-{slot}.lock"))).unwrap();
        if lock.try_lock().is_err() {
            continue;
        }
        let cluster = start_disposable(&folder.join(format!("postgres-{slot}"))).await;
        stop_when_this_process_ends(cluster.pid(), lock);
        let url = cluster.url().to_owned();
        drop_leftovers(&url).await;
        // Statics are not dropped at exit: the watcher stops the server instead.
        std::mem::forget(cluster);
        return url;
    }
    unreachable!("slots do not run out")
}

/// Starts the cluster of `data_dir`, and an empty one instead if PostgreSQL was upgraded since.
pub async fn start_disposable(data_dir: &Path) -> Cluster {
    let options = Options { durability: Durability::Disposable, ..Options::default() };
    match Cluster::start(data_dir, &options).await {
        Err(PostgresError::OtherVersion { .. }) => {
            fs::remove_dir_all(data_dir).unwrap();
            Cluster::start(data_dir, &options).await.unwrap()
        }
        started => started.unwrap(),
    }
}

/// A shell that waits for the end of a pipe whose other end dies with this process, even by kill -9. Its standard
/// output is the slot's lock, which it thereby keeps until the server is gone.
fn stop_when_this_process_ends(server: u32, lock: File) {
    let script = format!("read _; kill -INT {server}; while kill -0 {server}; do sleep 0.05; done");
    let mut shell = Command::new("sh");
    shell.args(["-c", &script]).stdin(Stdio::piped()).stdout(lock).stderr(Stdio::null()).process_group(0);
    // The pipe must not close before this process ends.
    std::mem::forget(shell.spawn().unwrap());
}

/// What tests left that were killed.
async fn drop_leftovers(url: &str) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    let sql = "SELECT datname::text FROM pg_database WHERE datname LIKE 'test\\_%'";
    let names: Vec<String> = sqlx::query_scalar(sql).fetch_all(&mut connection).await.unwrap();
    for name in names {
        connection.execute(AssertSqlSafe(format!("DROP DATABASE {name} WITH (FORCE)"))).await.unwrap();
    }
}
