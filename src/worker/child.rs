//! One evaluator child: start it, ask it, kill it.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::attempt_log::Output;
use super::memory_group::MemoryGroup;
use super::{ChildError, metrics, words};
use crate::protocol::{Device, Floor, MemoryBound, ModelSpec, NumericProfile, Pictures, Platform, Sandbox};
use crate::wire::{
    self, Answer, BatchWish, Call, Confinement, MODEL_FD, Progress, Reply, Request, SOCKET_FD, WireError,
};

/// Last bytes of the child's output that are kept for its obituary.
const LOG_TAIL: usize = 4096;
/// Variables the child needs to find its libraries and its GPU; it inherits no others.
const INHERITED: [&str; 4] = ["LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "RUST_BACKTRACE"];

#[derive(Debug, Clone)]
pub struct ChildOptions {
    /// A `gauntlet` binary built with the evaluator.
    pub binary: PathBuf,
    pub device: Device,
    pub threads: u32,
    /// Whether a calibration may choose fewer, because nobody asked for this number.
    pub choose_threads: bool,
    /// The sandbox's bounds; `None` switches it off.
    pub confinement: Option<Confinement>,
    /// A child silent for this long is hung.
    pub no_progress: Duration,
    /// Time between two checkpoints of a shard; zero: none are taken.
    pub checkpoint: Duration,
    /// Longest time for one question, however lively the child is.
    pub wall: Duration,
}

/// Time between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_millis(500);

/// A running child. Dropping it kills its whole process group.
pub struct Child {
    process: tokio::process::Child,
    group: Pid,
    stream: UnixStream,
    output: Output,
    /// Ends when both outputs have been read to their end.
    reading: JoinHandle<()>,
    threads: u32,
    choose_threads: bool,
    no_progress: Duration,
    wall: Duration,
    oom_kills: Option<u64>,
    /// Bounds its memory, where that can be had.
    memory: Option<MemoryGroup>,
    pub platform: Platform,
    pub sandbox: Sandbox,
    /// The frost pictures it has been given.
    pub(super) frost: Option<Pictures>,
}

impl Child {
    /// Starts a child and has it enter its sandbox and load libtorch. `model` is the only model it will be able to read.
    pub async fn start(options: &ChildOptions, model: Option<&Path>) -> Result<Self, ChildError> {
        let unreadable =
            |e| ChildError::Failed { code: "artifact_store".into(), detail: format!("the model's file: {e}") };
        let model = match model {
            // Not on this thread, which keeps leases alive.
            Some(path) => Some(tokio::fs::File::open(path).await.map_err(unreadable)?.into_std().await),
            None => None,
        };
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(ChildError::Spawn)?;
        let mut command = tokio::process::Command::new(&options.binary);
        command.arg("evaluate").env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.envs(INHERITED.iter().filter_map(|&name| Some((name, std::env::var_os(name)?))));
        // libgomp reads these when it is loaded. Threads that spin while they wait are fast on an idle machine and ruinous on
        // a shared one.
        command.env("OMP_WAIT_POLICY", "PASSIVE").env("GOMP_SPINCOUNT", "0");
        command.process_group(0).kill_on_drop(true);
        let (socket, file, parent) = (theirs.as_raw_fd(), model.as_ref().map(File::as_raw_fd), std::process::id());
        // SAFETY: only async-signal-safe calls between fork and exec.
        unsafe { command.pre_exec(move || hand_over(socket, file, parent)) };
        let mut process = command.spawn().map_err(ChildError::Spawn)?;
        drop((theirs, model));
        let output = Output::default();
        let (out, err) =
            (keep_tail(process.stdout.take(), output.clone()), keep_tail(process.stderr.take(), output.clone()));
        let reading = tokio::spawn(async {
            tokio::join!(out, err);
        });
        ours.set_nonblocking(true).map_err(ChildError::Spawn)?;
        let mut child = Self {
            group: Pid::from_raw(process.id().map_or(0, |id| id as i32)),
            process,
            stream: UnixStream::from_std(ours).map_err(ChildError::Spawn)?,
            output,
            reading,
            threads: options.threads,
            choose_threads: options.choose_threads,
            no_progress: options.no_progress,
            wall: options.wall,
            oom_kills: oom_kills(),
            memory: None,
            platform: Platform { device: options.device, hardware: String::new(), libtorch: String::new() },
            sandbox: Sandbox::Off,
            frost: None,
        };
        metrics::CHILD_STARTS.inc();
        metrics::CHILDREN.inc();
        let (device, threads, confinement) = (options.device, options.threads, options.confinement.clone());
        let wanted = confinement.is_some();
        let bound = confinement.as_ref().and_then(|confinement| confinement.memory_bytes);
        child.memory = bound.and_then(|bytes| MemoryGroup::confine(child.id(), bytes));
        match child.ask(Request::Start { device, threads, confinement }, &[], |_| {}).await? {
            (Reply::Started { platform, sandbox }, _) if wanted == (sandbox != Sandbox::Off) => {
                (child.platform, child.sandbox) = (platform, sandbox);
                if let (Sandbox::Enforced(layers), Some(_)) = (&mut child.sandbox, &child.memory) {
                    layers.memory = MemoryBound::Group;
                }
                Ok(child)
            }
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Has the child load the model it was started with; returns the numeric profile it will run under, and what it
    /// measured of it if it was calibrated.
    pub async fn load(
        &mut self,
        spec: &ModelSpec,
        profile: Option<&NumericProfile>,
        batch: BatchWish,
    ) -> Result<(NumericProfile, Option<Floor>), ChildError> {
        let choose_threads = self.choose_threads;
        let request = Request::Load { spec: spec.clone(), profile: profile.cloned(), batch, choose_threads };
        let (threads, wall) = (1..=self.threads.max(1), self.wall.as_secs_f64());
        let possible = |loaded: &NumericProfile| match profile {
            Some(wanted) => wanted == loaded,
            None => batch.admits(loaded.batch) && threads.contains(&loaded.threads),
        };
        let passed = |seconds: f64| seconds > 0.0 && seconds <= wall;
        let measured = |floor: &Floor| passed(floor.forward_seconds) && passed(floor.gradient_seconds);
        match self.ask(request, &[], |_| {}).await? {
            // By now the model's code has run: what it says must be what was asked, and what was so before.
            (Reply::Loaded { profile: loaded, floor }, _)
                if loaded.platform == self.platform && possible(&loaded) && floor.as_ref().is_none_or(measured) =>
            {
                Ok((loaded, floor))
            }
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Asks and waits for the answer; `progress` hears of every sign of life. The child is dead after an error other
    /// than [`ChildError::Failed`] and [`ChildError::Rejected`]. Not cancel-safe: drop the child with the future.
    pub async fn ask(
        &mut self,
        request: Request,
        payload: &[u8],
        progress: impl FnMut(Progress),
    ) -> Result<(Reply, Vec<u8>), ChildError> {
        self.ask_and_keep(request, payload, progress, |_| {}).await
    }

    /// The same; `keep` gets every checkpoint on the way.
    pub async fn ask_and_keep(
        &mut self,
        request: Request,
        payload: &[u8],
        progress: impl FnMut(Progress),
        keep: impl FnMut(Vec<u8>),
    ) -> Result<(Reply, Vec<u8>), ChildError> {
        let call = Call { nonce: Uuid::new_v4(), request };
        let exchange = tokio::time::timeout(self.wall, self.exchange(&call, payload, progress, keep)).await;
        match exchange.unwrap_or(Err(ChildError::WallTime(self.wall.as_secs()))) {
            Ok((Reply::Failed { code, detail }, _)) if code == "out_of_memory" => {
                self.kill().await;
                Err(ChildError::OutOfMemory(words::text(&detail)))
            }
            Ok((Reply::Failed { code, detail }, _)) => {
                Err(ChildError::Failed { code: words::code(&code), detail: words::text(&detail) })
            }
            Ok((Reply::Rejected { code, found }, _)) => {
                Err(ChildError::Rejected { code: words::code(&code), found: words::text(&found) })
            }
            Ok(answer) => Ok(answer),
            Err(ChildError::Crashed { how, log }) => {
                // Its connection closed: it is about to end, or it only closed its connection and lives on.
                let ended = tokio::time::timeout(Duration::from_secs(2), self.process.wait()).await;
                self.kill().await;
                match ended {
                    Ok(Ok(status)) => Err(self.obituary(status).await),
                    _ => Err(ChildError::Crashed { how, log }),
                }
            }
            Err(error) => {
                self.kill().await;
                Err(error)
            }
        }
    }

    async fn exchange(
        &mut self,
        call: &Call,
        payload: &[u8],
        mut progress: impl FnMut(Progress),
        mut keep: impl FnMut(Vec<u8>),
    ) -> Result<(Reply, Vec<u8>), ChildError> {
        let patience = self.no_progress;
        let silent = |_| ChildError::NoProgress(patience.as_secs());
        let sent = tokio::time::timeout(patience, wire::send_async(&mut self.stream, call, payload)).await;
        sent.map_err(silent)?.map_err(closed_is_crash)?;
        loop {
            let frame = tokio::time::timeout(patience, wire::receive_async::<Answer>(&mut self.stream)).await;
            let (answer, payload) = frame.map_err(silent)?.map_err(closed_is_crash)?;
            if answer.nonce != call.nonce {
                return Err(ChildError::Garbage("an answer to a question that was not asked".into()));
            }
            match answer.reply {
                Reply::Progress(heard) => progress(heard),
                Reply::Checkpoint => keep(payload),
                reply => return Ok((reply, payload)),
            }
        }
    }

    async fn obituary(&mut self, status: ExitStatus) -> ChildError {
        let killed = status.signal() == Some(Signal::SIGKILL as i32);
        let of_its_group = self.memory.as_ref().map(MemoryGroup::has_killed);
        if killed && of_its_group.unwrap_or_else(|| self.oom_kills < oom_kills()) {
            return ChildError::OutOfMemory("the kernel killed the evaluator for memory".into());
        }
        // A grandchild may hold the pipes open, so the wait is bounded.
        tokio::time::timeout(Duration::from_secs(1), &mut self.reading).await.ok();
        let log = words::text(String::from_utf8_lossy(&self.output.last(LOG_TAIL)).trim());
        let log = if log.is_empty() { log } else { format!("; its last words: {log}") };
        ChildError::Crashed { how: status.to_string(), log }
    }

    /// What it writes to its standard output and error; goes on to be filled after its end.
    pub(super) fn output(&self) -> Output {
        self.output.clone()
    }

    /// Its process id; 0 once it has ended.
    pub fn id(&self) -> u32 {
        self.process.id().unwrap_or(0)
    }

    /// Asks the process group to end, kills what has not after a moment, and waits for the child's end.
    pub async fn kill(&mut self) {
        self.signal_group(Signal::SIGTERM);
        tokio::time::timeout(GRACE, self.process.wait()).await.ok();
        self.signal_group(Signal::SIGKILL);
        // By its own id too, should it have left the group; and nothing here waits without end.
        self.process.start_kill().ok();
        tokio::time::timeout(GRACE * 10, self.process.wait()).await.ok();
    }

    fn signal_group(&self, signal: Signal) {
        // An id of 0 would be our own group. The group outlives its leader only while members live, so no stranger is hit
        // as long as the leader has not been reaped and its id reused; `process.id()` is `None` after reaping.
        if self.group.as_raw() > 0 && self.process.id().is_some() {
            killpg(self.group, signal).ok();
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.signal_group(Signal::SIGKILL);
        metrics::CHILDREN.dec();
    }
}

pub(super) fn unexpected(reply: &Reply) -> ChildError {
    let text = serde_json::to_string(reply).unwrap_or_default();
    ChildError::Garbage(format!("unexpected answer {}", words::text(&text.chars().take(80).collect::<String>())))
}

fn closed_is_crash(error: WireError) -> ChildError {
    match error {
        WireError::Closed => ChildError::Crashed { how: "it closed its connection".into(), log: String::new() },
        other => other.into(),
    }
}

/// Runs in the child between fork and exec: socket and model go to their places, and the child dies with its parent.
fn hand_over(socket: RawFd, model: Option<RawFd>, parent: u32) -> std::io::Result<()> {
    let check = |result: libc::c_int| if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) };
    // SAFETY: plain system calls on descriptors that are open here.
    unsafe {
        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
        // The parent may have died before the line above.
        if libc::getppid() as u32 != parent {
            return Err(std::io::Error::from_raw_os_error(libc::ESRCH));
        }
        let core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        check(libc::setrlimit(libc::RLIMIT_CORE, &core))?;
        // Copies above both places first, so that neither is overwritten before it has been moved.
        let above = MODEL_FD + 1;
        let socket = libc::fcntl(socket, libc::F_DUPFD_CLOEXEC, above);
        check(socket)?;
        let model = model.map(|model| libc::fcntl(model, libc::F_DUPFD_CLOEXEC, above));
        check(libc::dup2(socket, SOCKET_FD))?;
        if let Some(model) = model {
            check(model)?;
            check(libc::dup2(model, MODEL_FD))?;
        }
        // What this process may itself have inherited open stays behind. Kernels without the call have no sandbox either.
        let first = if model.is_some() { above } else { MODEL_FD };
        libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
        Ok(())
    }
}

async fn keep_tail(stream: Option<impl AsyncRead + Unpin>, output: Output) {
    let Some(mut stream) = stream else { return };
    let mut chunk = [0; 1024];
    while let Ok(n @ 1..) = stream.read(&mut chunk).await {
        output.push(&chunk[..n]);
    }
}

/// Processes this kernel has killed for memory since it started.
fn oom_kills() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/vmstat").ok()?;
    text.lines().find_map(|line| line.strip_prefix("oom_kill "))?.parse().ok()
}
