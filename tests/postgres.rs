//! The private cluster against real processes: deaths, restarts, rivals.

mod common;

use std::{
    env, fs,
    io::{BufRead, BufReader},
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use gauntlet::postgres::{Cluster, Durability, Options, Origin, PostgresError};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, Uid},
};
use sqlx::{Connection, Executor, PgConnection};
use tempfile::TempDir;
use tokio::sync::OnceCell;

/// A folder that any account can enter (0o755), or only its owner (0o700).
fn folder(mode: u32) -> TempDir {
    tempfile::Builder::new().permissions(fs::Permissions::from_mode(mode)).tempdir().unwrap()
}

/// A data folder with a cluster that is not running, copied from one that stays in the target folder.
async fn stopped_cluster() -> TempDir {
    static TEMPLATE: OnceCell<PathBuf> = OnceCell::const_new();
    let create = || async {
        let data_dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("postgres-template");
        let lock = fs::File::create(data_dir.with_extension("lock")).unwrap();
        lock.lock().unwrap();
        common::postgres::start_disposable(&data_dir).await.stop().await.unwrap();
        data_dir.join("postgres").canonicalize().unwrap()
    };
    let template = TEMPLATE.get_or_init(create).await;
    let folder = folder(0o755);
    let copied = Command::new("cp").arg("-a").arg(template).arg(folder.path().join("postgres")).status().unwrap();
    assert!(copied.success());
    folder
}

async fn start(data_dir: &Path) -> Result<Cluster, PostgresError> {
    Cluster::start(data_dir, &Options { durability: Durability::Disposable, ..Options::default() }).await
}

async fn write_row(url: &str) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    connection.execute("CREATE TABLE kept (n int); INSERT INTO kept VALUES (7)").await.unwrap();
}

async fn read_row(url: &str) -> i32 {
    let mut connection = PgConnection::connect(url).await.unwrap();
    sqlx::query_scalar("SELECT n FROM kept").fetch_one(&mut connection).await.unwrap()
}

/// Processes that work inside `data_dir`: PostgreSQL's all do.
fn processes_in(data_dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    entries.filter(|process| fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd.starts_with(data_dir))).collect()
}

const OWNER_DATA_DIR: &str = "GAUNTLET_TEST_OWNER_DATA_DIR";

/// The part of the killed owner, played by this binary in a process of its own.
#[tokio::test]
#[ignore = "a part in other tests"]
async fn owner_process() {
    let data_dir = PathBuf::from(env::var_os(OWNER_DATA_DIR).expect("started by another test"));
    let cluster = Cluster::start(&data_dir, &Options::default()).await.unwrap();
    println!("\nurl={}", cluster.url());
    // Until killed, or until the test that started this one is gone.
    std::io::stdin().lines().for_each(drop);
}

fn spawn_owner(data_dir: &Path) -> Child {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["owner_process", "--exact", "--ignored", "--nocapture"]).env(OWNER_DATA_DIR, data_dir);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command.spawn().unwrap()
}

/// Waits for the owner's cluster.
fn url_of(owner: &mut Child) -> String {
    let mut lines = BufReader::new(owner.stdout.take().unwrap()).lines().map(Result::unwrap);
    lines.find_map(|line| line.strip_prefix("url=").map(str::to_owned)).expect("the owner has no cluster")
}

#[tokio::test]
async fn a_server_left_by_a_killed_owner_is_adopted() {
    let folder = stopped_cluster().await;
    let mut owner = spawn_owner(folder.path());
    let url = url_of(&mut owner);
    write_row(&url).await;
    assert_eq!(Cluster::url_if_running(folder.path()).unwrap(), Some(url.clone()));
    owner.kill().unwrap();
    owner.wait().unwrap();

    let cluster = start(folder.path()).await.unwrap();
    assert_eq!((cluster.origin(), cluster.url()), (Origin::Adopted, url.as_str()));
    assert_eq!(read_row(cluster.url()).await, 7);
    cluster.stop().await.unwrap();
    assert_eq!(processes_in(folder.path()), [] as [PathBuf; 0]);
}

#[tokio::test]
async fn committed_rows_survive_when_owner_and_server_are_killed() {
    let folder = stopped_cluster().await;
    let mut owner = spawn_owner(folder.path());
    write_row(&url_of(&mut owner)).await;
    owner.kill().unwrap();
    owner.wait().unwrap();
    let pid_file = fs::read_to_string(folder.path().join("postgres/data/postmaster.pid")).unwrap();
    let server: i32 = pid_file.lines().next().unwrap().parse().unwrap();
    kill(Pid::from_raw(server), Signal::SIGKILL).unwrap();
    // SIGKILL is delivered at once, but the process takes a moment to be gone; until then it could still be adopted.
    let state =
        || fs::read_to_string(format!("/proc/{server}/stat")).ok().and_then(|s| s.rsplit(") ").next()?.chars().next());
    while state().is_some_and(|state| state != 'Z') {
        std::thread::yield_now();
    }

    let cluster = start(folder.path()).await.unwrap();
    assert_eq!(cluster.origin(), Origin::Started);
    assert_eq!(read_row(cluster.url()).await, 7);
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn a_pid_file_that_names_another_program_is_taken_over_and_the_program_left_alone() {
    let folder = stopped_cluster().await;
    let data = folder.path().join("postgres/data");
    // PostgreSQL itself would refuse: the process is alive and belongs to its own account.
    let mut bystander = Command::new("sleep").arg("600").uid(data.metadata().unwrap().uid()).spawn().unwrap();
    let stale =
        format!("{}\n{}\n1700000000\n5432\n{}\n\n 1 2\nready   \n", bystander.id(), data.display(), data.display());
    fs::write(data.join("postmaster.pid"), stale).unwrap();
    fs::write(folder.path().join("postgres/.s.PGSQL.5432.lock"), format!("{}\n", bystander.id())).unwrap();
    assert_eq!(Cluster::url_if_running(folder.path()).unwrap(), None);

    let cluster = start(folder.path()).await.unwrap();
    assert_eq!(cluster.origin(), Origin::Started);
    assert_ne!(cluster.pid(), bystander.id());
    cluster.stop().await.unwrap();
    assert!(bystander.try_wait().unwrap().is_none());
    bystander.kill().unwrap();
    bystander.wait().unwrap();
}

#[tokio::test]
async fn a_second_owner_is_refused_but_may_join() {
    let folder = stopped_cluster().await;
    assert_eq!(Cluster::url_if_running(folder.path()).unwrap(), None);
    let cluster = start(folder.path()).await.unwrap();
    let refusal = start(folder.path()).await.unwrap_err();
    assert!(
        matches!(&refusal, PostgresError::InUse { owner: Some(pid), .. } if *pid == std::process::id()),
        "{refusal}"
    );
    let url = Cluster::url_if_running(folder.path()).unwrap().unwrap();
    write_row(&url).await;
    cluster.stop().await.unwrap();
    assert_eq!(Cluster::url_if_running(folder.path()).unwrap(), None);
    assert_eq!(processes_in(folder.path()), [] as [PathBuf; 0]);
}

#[tokio::test]
async fn a_killed_initialisation_is_forgotten() {
    let folder = folder(0o755);
    let mut owner = spawn_owner(folder.path());
    let started = |entry: fs::DirEntry| entry.path().join("data/base").exists();
    while !fs::read_dir(folder.path()).unwrap().flatten().any(started) {
        assert!(owner.try_wait().unwrap().is_none(), "the owner ended by itself");
        std::thread::yield_now();
    }
    owner.kill().unwrap();
    owner.wait().unwrap();
    assert!(!folder.path().join("postgres").exists());

    let cluster = start(folder.path()).await.unwrap();
    assert_eq!(cluster.origin(), Origin::Created);
    write_row(cluster.url()).await;
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn long_and_odd_paths_work() {
    let folder = stopped_cluster().await;
    let odd = folder.path().join(format!("it's, \"odd\" $HOME & {}", "long".repeat(30)));
    fs::create_dir(&odd).unwrap();
    fs::rename(folder.path().join("postgres"), odd.join("postgres")).unwrap();
    let cluster = start(&odd).await.unwrap();
    write_row(cluster.url()).await;
    let socket_dir = reqwest::Url::parse(cluster.url()).unwrap().query_pairs().next().unwrap().1.into_owned();
    cluster.stop().await.unwrap();
    assert!(socket_dir.starts_with("/tmp/gauntlet-"), "{socket_dir}");
    assert_eq!(fs::metadata(&socket_dir).unwrap().mode() & 0o777, 0o700);
    fs::remove_dir_all(socket_dir).unwrap();
}

#[tokio::test]
async fn data_of_another_version_is_refused_by_name() {
    let folder = stopped_cluster().await;
    fs::write(folder.path().join("postgres/data/PG_VERSION"), "10\n").unwrap();
    let refusal = start(folder.path()).await.unwrap_err();
    assert!(matches!(refusal, PostgresError::OtherVersion { wanted: 10, .. }), "{refusal}");
}

#[tokio::test]
async fn a_folder_without_a_database_is_not_overwritten() {
    let folder = folder(0o755);
    fs::create_dir(folder.path().join("postgres")).unwrap();
    fs::write(folder.path().join("postgres/thesis.tex"), "years of work").unwrap();
    let refusal = start(folder.path()).await.unwrap_err();
    assert!(matches!(refusal, PostgresError::Damaged { .. }), "{refusal}");
    assert!(folder.path().join("postgres/thesis.tex").exists());
}

#[tokio::test]
async fn a_failed_start_repeats_what_postgres_said() {
    let folder = stopped_cluster().await;
    fs::write(folder.path().join("postgres/data/postgresql.auto.conf"), "shared_buffers = 'plenty'\n").unwrap();
    let refusal = start(folder.path()).await.unwrap_err().to_string();
    assert!(refusal.contains("invalid value for parameter \"shared_buffers\""), "{refusal}");
}

#[tokio::test]
async fn below_a_private_home_the_cluster_is_kept_elsewhere_and_linked() {
    if !Uid::effective().is_root() {
        return eprintln!("skipped: only root switches accounts");
    }
    let home = folder(0o700);
    let cluster = start(home.path()).await.unwrap();
    write_row(cluster.url()).await;
    cluster.stop().await.unwrap();
    let elsewhere = fs::read_link(home.path().join("postgres")).unwrap();
    let again = start(home.path()).await.unwrap();
    assert_eq!((again.origin(), read_row(again.url()).await), (Origin::Started, 7));
    again.stop().await.unwrap();
    fs::remove_dir_all(elsewhere).unwrap();
}

#[tokio::test]
async fn every_test_gets_a_database_of_its_own() {
    let (first, _first) = common::postgres::fresh_database().await;
    let (second, _second) = common::postgres::fresh_database().await;
    write_row(&first).await;
    write_row(&second).await;
    assert_eq!(read_row(&first).await, 7);
}
