//! All that can break: a Postgres cluster, a volume, an API process, and three workers, two of whose clocks are wrong.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use gauntlet::postgres::{Cluster, Options};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::common::world::{Worker, World, preloadable};
use crate::volume::Volume;

/// What the clocks of the workers' hosts show, against the truth.
const SKEWS: [&str; 3] = ["0", "3600", "-3600"];
/// What every file takes to be opened or renamed in an artifact store that is slow: more than a lease lasts.
const SLOW_SECONDS: &str = "4";

pub struct Stage {
    pub world: World,
    pub volume: Volume,
    pub workers: Vec<Worker>,
    pub address: String,
    /// Every evaluator that was ever seen, by pid and start time.
    pub evaluators: BTreeSet<(i32, String)>,
    server: Child,
    cluster: Option<Cluster>,
    clock: PathBuf,
    store: PathBuf,
    database: TempDir,
}

impl Stage {
    pub async fn set() -> Self {
        let open_folder = || {
            let folder = tempfile::tempdir().unwrap();
            fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
            folder
        };
        let (database, data) = (open_folder(), open_folder());
        let cluster = Cluster::start(database.path(), &Options::default()).await.unwrap();
        let volume = Volume::new(&data.path().join("artifacts"));
        let world = World::on(cluster.url().to_owned(), data).await;
        let clock = preloadable(&world, "tests/chaos/skewed_clock.c");
        let store = preloadable(&world, "tests/common/slow_store.c");
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let server = serve(&world, &address, &store);
        let mut stage = Self {
            world,
            volume,
            workers: Vec::new(),
            address,
            evaluators: BTreeSet::new(),
            server,
            cluster: Some(cluster),
            clock,
            store,
            database,
        };
        stage.workers = (0..SKEWS.len()).map(|at| stage.hire(at)).collect();
        stage
    }

    fn hire(&self, at: usize) -> Worker {
        let preload = format!("{}:{}", self.clock.display(), self.store.display());
        let slow = slow_while(&self.world);
        self.world.worker_with(&[
            ("GAUNTLET_LOG_LEVEL", "off"),
            ("GAUNTLET_NO_PROGRESS_SECONDS", "10"),
            ("LD_PRELOAD", &preload),
            ("SLOW_STORE_SECONDS", SLOW_SECONDS),
            ("SLOW_STORE_WHILE", slow.to_str().unwrap()),
            ("CLOCK_SKEW_SECONDS", SKEWS[at]),
        ])
    }

    /// Puts a new worker in the place of one that is gone.
    pub fn replace(&mut self, at: usize) {
        self.workers[at] = self.hire(at);
    }

    /// Workers that ended by themselves, because the database was away when they started, come again, as any service
    /// manager would have it.
    pub fn replace_the_gone(&mut self) {
        for at in 0..self.workers.len() {
            if self.workers[at].has_ended() {
                self.replace(at);
            }
        }
        if self.server.try_wait().unwrap().is_some() {
            self.server = serve(&self.world, &self.address, &self.store);
        }
    }

    /// Evaluators of one worker.
    pub fn children(&mut self, at: usize) -> Vec<i32> {
        let children = self.workers[at].children();
        self.evaluators.extend(children.iter().filter_map(|pid| Some((*pid, started(*pid)?))));
        children
    }

    pub fn restart_server(&mut self) {
        self.server.kill().ok();
        self.server.wait().ok();
        self.server = serve(&self.world, &self.address, &self.store);
    }

    /// Makes the artifact store slow, or fast again.
    pub fn slow_down(&self, slow: bool) {
        let flag = slow_while(&self.world);
        if slow { fs::write(flag, "").unwrap() } else { fs::remove_file(flag).unwrap() }
    }

    pub async fn stop_database(&mut self) {
        self.cluster.take().unwrap().stop().await.unwrap();
    }

    /// SIGKILL; the other processes of Postgres follow.
    pub fn crash_database(&mut self) {
        let cluster = self.cluster.take().unwrap();
        kill(Pid::from_raw(cluster.pid() as i32), Signal::SIGKILL).unwrap();
    }

    /// Postgres' server and the processes that it has started.
    pub fn database_processes(&self) -> Vec<i32> {
        let server = self.cluster.as_ref().unwrap().pid() as i32;
        let children = fs::read_to_string(format!("/proc/{server}/task/{server}/children")).unwrap();
        children.split_whitespace().map(|pid| pid.parse().unwrap()).chain([server]).collect()
    }

    pub async fn start_database(&mut self) {
        let cluster = Cluster::start(self.database.path(), &Options::default()).await.unwrap();
        assert_eq!(cluster.url(), self.world.url);
        self.cluster = Some(cluster);
    }

    /// Asks every worker to end and waits for it; returns evaluators that outlived them.
    pub fn clear(&mut self) -> Vec<i32> {
        for at in 0..self.workers.len() {
            self.children(at);
            self.workers[at].signal(Signal::SIGTERM);
            assert!(self.workers[at].wait().success());
        }
        self.evaluators
            .iter()
            .filter(|(pid, start)| started(*pid).as_ref() == Some(start))
            .map(|(pid, _)| *pid)
            .collect()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.server.kill().ok();
        self.server.wait().ok();
    }
}

/// While it is there, the artifact store is slow.
fn slow_while(world: &World) -> PathBuf {
    world.data.path().join("slow")
}

fn serve(world: &World, address: &str, store: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_gauntlet"))
        .args(["serve", "--data-dir"])
        .arg(world.data.path())
        .env("DATABASE_URL", &world.url)
        .env("GAUNTLET_LISTEN", address)
        .env("GAUNTLET_METRICS_LISTEN", "127.0.0.1:0")
        .env("GAUNTLET_RATE_PER_MINUTE", "0")
        .env("GAUNTLET_QUOTAS__EVALUATIONS_PER_DAY", "0")
        .env("GAUNTLET_LOG_LEVEL", "off")
        .env("LD_PRELOAD", store)
        .env("SLOW_STORE_SECONDS", SLOW_SECONDS)
        .env("SLOW_STORE_WHILE", slow_while(world))
        .current_dir(world.data.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// When a living process began, in clock ticks since boot; a zombie lives no more.
fn started(pid: i32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    (fields[0] != "Z").then(|| fields[19].to_owned())
}

/// As long as a pause between two faults: chaos is a matter of time.
pub async fn pass(seconds: f64) {
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
}
