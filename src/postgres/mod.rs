//! The private PostgreSQL cluster of `gauntlet up`, for when no `DATABASE_URL` is given.
//!
//! **Where.** Everything lies in `<data_dir>/postgres`: the database files (`data`), the generated password, the
//! server's log and its Unix socket. The server listens on no network address.
//!
//! **Who may connect.** Whoever can read the password file, that is the account the server runs as, and root
//! (mode 0600 in a 0700 folder; SCRAM). Peer authentication would need no password, but it would also let in a
//! sandboxed child of the same account, which may be able to connect to a socket but cannot read that file.
//!
//! **Who runs it.** PostgreSQL refuses root. Started by root, the server runs as `postgres` or else `nobody`, and
//! where that account cannot enter `data_dir` (say, below a 0700 home) the cluster is kept in `/var/lib/gauntlet`
//! and `<data_dir>/postgres` is a link to it.
//!
//! **How it ends.** [`Cluster::stop`] shuts the server down and waits. If the owner dies first (kill -9, power), the
//! server may live on: the next owner adopts it. A lock file makes sure that there is one owner at a time.

mod account;
mod binaries;
mod error;
mod initialise;
mod layout;
mod postmaster;
mod server;

use std::{
    fmt,
    fs::{File, OpenOptions, TryLockError},
    io::{Read, Seek, Write},
    path::{Path, PathBuf},
};

use account::Account;
use binaries::Binaries;
pub use error::PostgresError;
use layout::Layout;
use postmaster::State;
use server::Server;

/// Role and database that [`Cluster::url`] connects to.
const NAME: &str = "gauntlet";

/// How to run the cluster; the default suits `gauntlet up`.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Folder with `initdb` and `postgres`; by default the system's are searched.
    pub bin_dir: Option<PathBuf>,
    /// Account the server runs as when started by root; by default `postgres`, else `nobody`.
    pub account: Option<String>,
    pub durability: Durability,
}

/// What a power cut may cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Durability {
    /// Nothing that was committed.
    #[default]
    Safe,
    /// Everything; for tests, which start faster this way.
    Disposable,
}

/// How a cluster came to be running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// There was none: it was created.
    Created,
    /// It existed and was started.
    Started,
    /// It was still running, left by an owner that died.
    Adopted,
}

/// A running cluster and the exclusive right to it. Dropping it stops the server too, but cannot report failure.
pub struct Cluster {
    url: String,
    origin: Origin,
    layout: Layout,
    server: Option<Server>,
    /// Held for as long as this value lives.
    _lock: File,
}

impl Cluster {
    /// Starts the cluster of `data_dir`: creates it at first, adopts it if it is running already.
    ///
    /// # Errors
    /// Every [`PostgresError`] says what PostgreSQL said and what to do about it.
    pub async fn start(data_dir: &Path, options: &Options) -> Result<Self, PostgresError> {
        let (data_dir, options) = (data_dir.to_owned(), options.clone());
        blocking(move || Self::start_blocking(&data_dir, &options)).await
    }

    /// A URL for sqlx and libpq. It contains the password: do not log it.
    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// Process id of the server.
    pub fn pid(&self) -> u32 {
        self.server.as_ref().expect("only stopping takes the server").pid()
    }

    /// Whether the server still runs; one that has ended is not, even before its parent has noticed.
    pub fn is_running(&self) -> bool {
        postmaster::serves(self.pid(), &self.layout.data())
    }

    /// Where the server writes its log.
    pub fn log(&self) -> PathBuf {
        self.layout.log()
    }

    /// Disconnects all clients, shuts the server down and waits until it is gone.
    ///
    /// # Errors
    /// If the server does not end within a minute, not even when told to abort.
    pub async fn stop(mut self) -> Result<(), PostgresError> {
        let server = self.server.take();
        blocking(move || server.map_or(Ok(()), |server| server.stop(&self.layout))).await
    }

    /// The URL of the cluster of `data_dir` if some process has it running; for commands that join rather than own it.
    ///
    /// # Errors
    /// If the cluster runs but this user may not read its password.
    pub fn url_if_running(data_dir: &Path) -> Result<Option<String>, PostgresError> {
        let Some(layout) = Layout::find(data_dir)? else { return Ok(None) };
        match postmaster::state(&layout.data())? {
            State::Ready(address) => Ok(Some(address.url(&layout.password()?))),
            _ => Ok(None),
        }
    }

    fn start_blocking(data_dir: &Path, options: &Options) -> Result<Self, PostgresError> {
        std::fs::create_dir_all(data_dir).map_err(|e| PostgresError::io("create", data_dir, e))?;
        let data_dir = data_dir.canonicalize().map_err(|e| PostgresError::io("open", data_dir, e))?;
        let lock = lock(&data_dir)?;
        let (layout, account, created) = match Layout::find(&data_dir)? {
            Some(layout) => {
                let account = Account::owner_of(&layout.data())?;
                (layout, account, false)
            }
            None => {
                let account = Account::choose(options.account.as_deref())?;
                let binaries = Binaries::find(options.bin_dir.as_deref(), &account, None)?;
                (initialise::initialise(&data_dir, &account, &binaries, options.durability)?, account, true)
            }
        };
        let (server, adopted) = match Server::adopt(&layout)? {
            Some(server) => (server, true),
            None => {
                let binaries = Binaries::find(options.bin_dir.as_deref(), &account, Some(&layout))?;
                (Server::launch(&layout, &account, &binaries, options.durability)?, false)
            }
        };
        let origin = match (created, adopted) {
            (true, _) => Origin::Created,
            (false, true) => Origin::Adopted,
            (false, false) => Origin::Started,
        };
        let url = server.address().url(&layout.password()?);
        tracing::info!(pid = server.pid(), account = account.name(), data = %layout.data().display(), ?origin, "postgres is ready");
        Ok(Self { url, origin, layout, server: Some(server), _lock: lock })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(server) = self.server.take()
            && let Err(error) = server.stop(&self.layout)
        {
            tracing::warn!(%error, "postgres was not stopped");
        }
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("layout", &self.layout).field("origin", &self.origin).finish_non_exhaustive()
    }
}

/// Takes the right to start and stop the cluster; the kernel gives it back when the owner ends, however it ends.
fn lock(data_dir: &Path) -> Result<File, PostgresError> {
    let path = data_dir.join("postgres.lock");
    let io = |e| PostgresError::io("lock", &path, e);
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(io)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut owner = String::new();
            file.read_to_string(&mut owner).map_err(io)?;
            return Err(PostgresError::InUse { data_dir: data_dir.into(), owner: owner.trim().parse().ok() });
        }
        Err(TryLockError::Error(error)) => return Err(io(error)),
    }
    // The number only serves the message above.
    file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(io)?;
    Ok(file)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PostgresError> + Send + 'static,
) -> Result<T, PostgresError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()))
}
