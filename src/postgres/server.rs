//! Launching, adopting and stopping the server process.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Read, Seek, SeekFrom},
    os::unix::{fs::OpenOptionsExt, net::UnixStream},
    path::Path,
    process::Child,
    thread::sleep,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    Durability, PostgresError,
    account::Account,
    binaries::Binaries,
    layout::{Layout, PORT, socket_in},
    postmaster::{self, Address, State},
};

const POLL: Duration = Duration::from_millis(10);
/// Recovery after a crash may be long; the log is shown to say so.
const REMIND: Duration = Duration::from_secs(10);
const ORPHANS_MAY_TAKE: Duration = Duration::from_secs(20);
const STOPPING_MAY_TAKE: Duration = Duration::from_secs(50);
const ABORTING_MAY_TAKE: Duration = Duration::from_secs(10);
const LARGEST_LOG: u64 = 16 << 20;

/// A server that accepts connections.
#[derive(Debug)]
pub struct Server {
    address: Address,
    /// Absent when the server was adopted.
    child: Option<Child>,
}

impl Server {
    pub fn address(&self) -> &Address {
        &self.address
    }

    pub fn pid(&self) -> u32 {
        self.address.pid
    }

    /// The server that an earlier owner left running, once it is ready. `None`: there is none, and nothing stands in
    /// the way of starting one.
    pub fn adopt(layout: &Layout) -> Result<Option<Self>, PostgresError> {
        let data = layout.data();
        let mut reminder = Reminder::new("waiting for the PostgreSQL server that is already running");
        loop {
            match postmaster::state(&data)? {
                State::Ready(address) => {
                    check_socket(&address, layout)?;
                    return Ok(Some(Self { address, child: None }));
                }
                State::Busy => reminder.wait(),
                State::Absent => {
                    wait_for_orphans(&data)?;
                    return Ok(None);
                }
                State::Stale => {
                    // The file also guards against processes that outlived their postmaster: look for them first.
                    wait_for_orphans(&data)?;
                    let file = postmaster::pid_file(&data);
                    tracing::warn!(
                        "{} names a process that is not PostgreSQL: the server it stood for is gone",
                        file.display()
                    );
                    fs::remove_file(&file).map_err(|e| PostgresError::io("remove", &file, e))?;
                }
            }
        }
    }

    pub fn launch(
        layout: &Layout,
        account: &Account,
        binaries: &Binaries,
        durability: Durability,
    ) -> Result<Self, PostgresError> {
        let socket_dir = layout.socket_dir(account)?;
        remove_socket_lock(&socket_dir)?;
        let (log, log_start) = open_log(layout)?;
        let clone = log.try_clone().map_err(|e| PostgresError::io("open", layout.log(), e))?;
        let mut command = account.command(&binaries.postgres());
        command.arg("-D").arg(layout.data()).stdout(clone).stderr(log);
        let port = PORT.to_string();
        for setting in
            ["listen_addresses=", "unix_socket_permissions=0700", "logging_collector=off", &format!("port={port}")]
        {
            command.args(["-c", setting]);
        }
        command.arg("-c").arg(socket_setting(&socket_dir));
        if durability == Durability::Disposable {
            command.args(["-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off"]);
        }
        let child = command.spawn().map_err(|e| PostgresError::io("run", binaries.postgres(), e))?;
        Self::wait_until_ready(child, layout, log_start)
    }

    fn wait_until_ready(mut child: Child, layout: &Layout, log_start: u64) -> Result<Self, PostgresError> {
        let mut reminder = Reminder::new("waiting for PostgreSQL to start (after a crash it recovers first)");
        loop {
            let status = child.try_wait().map_err(|e| PostgresError::io("wait for", layout.data(), e))?;
            if let Some(status) = status {
                let said = log_since(layout, log_start);
                return Err(PostgresError::tool(format!("starting the server: {status}"), &said, layout.root()));
            }
            match postmaster::state(&layout.data())? {
                State::Ready(address) if address.pid == child.id() => {
                    check_socket(&address, layout)?;
                    return Ok(Self { address, child: Some(child) });
                }
                _ => reminder.wait(),
            }
        }
    }

    /// Fast shutdown: clients are disconnected, everything is written, the processes end. If that takes too long, an
    /// abort, after which the next start recovers from the log.
    pub fn stop(mut self, layout: &Layout) -> Result<(), PostgresError> {
        for (signal, patience) in [(Signal::SIGINT, STOPPING_MAY_TAKE), (Signal::SIGQUIT, ABORTING_MAY_TAKE)] {
            if self.is_gone(layout) {
                return Ok(());
            }
            // It may end in between: the wait below finds out.
            let _ = kill(Pid::from_raw(self.pid().cast_signed()), signal);
            let deadline = Instant::now() + patience;
            while Instant::now() < deadline {
                if self.is_gone(layout) {
                    return Ok(());
                }
                sleep(POLL);
            }
        }
        Err(PostgresError::Orphans { data: layout.data(), pids: postmaster::processes(&layout.data()) })
    }

    fn is_gone(&mut self, layout: &Layout) -> bool {
        match &mut self.child {
            Some(child) => matches!(child.try_wait(), Ok(Some(_))),
            None => !postmaster::serves(self.pid(), &layout.data()),
        }
    }
}

/// A process that outlived its postmaster notices and ends; until then it may still write.
fn wait_for_orphans(data: &Path) -> Result<(), PostgresError> {
    let deadline = Instant::now() + ORPHANS_MAY_TAKE;
    loop {
        let pids = postmaster::processes(data);
        if pids.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(PostgresError::Orphans { data: data.into(), pids });
        }
        sleep(POLL);
    }
}

/// A killed server leaves the lock of its socket, and PostgreSQL honours it while any process, even a zombie, has that
/// pid. The folder is this cluster's alone, and no server of this cluster runs: the lock means nothing.
fn remove_socket_lock(socket_dir: &Path) -> Result<(), PostgresError> {
    let mut lock = socket_in(socket_dir).into_os_string();
    lock.push(".lock");
    match fs::remove_file(&lock) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(PostgresError::io("remove", lock, error)),
        _ => Ok(()),
    }
}

fn check_socket(address: &Address, layout: &Layout) -> Result<(), PostgresError> {
    let socket = socket_in(&address.socket_dir);
    match UnixStream::connect(&socket) {
        Ok(_) => Ok(()),
        Err(error) => Err(PostgresError::Damaged {
            path: socket,
            found: format!(
                "the server (process {}) runs but cannot be reached here: {error}. End it with `kill -INT {}`, then start again; its log is {}",
                address.pid,
                address.pid,
                layout.log().display()
            ),
        }),
    }
}

/// `unix_socket_directories` is a list with commas: quoting makes any path one element.
fn socket_setting(folder: &Path) -> OsString {
    let quoted = folder.to_string_lossy().replace('"', "\"\"");
    format!("unix_socket_directories=\"{quoted}\"").into()
}

/// The log, opened for appending, and its length so far. One older log is kept.
fn open_log(layout: &Layout) -> Result<(File, u64), PostgresError> {
    let path = layout.log();
    let length = path.metadata().map_or(0, |found| found.len());
    if length > LARGEST_LOG {
        fs::rename(&path, path.with_extension("log.1")).map_err(|e| PostgresError::io("rename", &path, e))?;
    }
    let open = || {
        let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path)?;
        let end = file.seek(SeekFrom::End(0))?;
        Ok((file, end))
    };
    open().map_err(|e| PostgresError::io("open", &path, e))
}

fn log_since(layout: &Layout, start: u64) -> String {
    let read = || {
        let mut file = File::open(layout.log())?;
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_else(|error| format!("(the log cannot be read: {error})"))
}

/// Sleeps between polls, and now and then says what is being waited for.
struct Reminder {
    what: &'static str,
    next: Instant,
}

impl Reminder {
    fn new(what: &'static str) -> Self {
        Self { what, next: Instant::now() + REMIND }
    }

    fn wait(&mut self) {
        sleep(POLL);
        if Instant::now() >= self.next {
            tracing::info!("{}", self.what);
            self.next = Instant::now() + REMIND;
        }
    }
}
