//! Creates a cluster: in a scratch folder first, so that one that was interrupted is never mistaken for a whole one.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use uuid::Uuid;

use super::{Durability, NAME, PostgresError, account::Account, binaries::Binaries, layout::Layout};

/// Where clusters go when the server's account cannot enter the data folder.
const ELSEWHERE: &str = "/var/lib/gauntlet";

const SCRATCH: &str = ".postgres.new-";

/// Appended to `postgresql.conf`. Eight workers and more, each with a small pool, on a machine that has better uses
/// for its memory; parallel queries would need more shared memory than containers grant.
const SETTINGS: &str = "
# Gauntlet's settings: edit them freely. (Where the server listens is set by its command line.)
max_connections = 200
shared_buffers = 128MB
max_parallel_workers_per_gather = 0
jit = off
timezone = 'UTC'
log_timezone = 'UTC'
";

/// Creates the cluster of `data_dir`. The caller holds its lock.
pub fn initialise(
    data_dir: &Path,
    account: &Account,
    binaries: &Binaries,
    durability: Durability,
) -> Result<Layout, PostgresError> {
    let entrance = Layout::entrance(data_dir);
    if account.can_enter(data_dir, &binaries.postgres())? {
        remove_leftovers(data_dir);
        return build(data_dir, &entrance, account, binaries, durability);
    }
    let home = Path::new(ELSEWHERE).join(format!("postgres-{}", Uuid::new_v4().simple()));
    tracing::warn!(
        account = account.name(),
        "the account that runs PostgreSQL cannot enter {}: the database is kept in {} and linked from there",
        data_dir.display(),
        home.display()
    );
    fs::create_dir_all(ELSEWHERE).map_err(|e| PostgresError::io("create", ELSEWHERE, e))?;
    let layout = build(Path::new(ELSEWHERE), &home, account, binaries, durability)?;
    symlink(&home, &entrance).map_err(|e| PostgresError::io("create", &entrance, e))?;
    Ok(layout)
}

/// What an initialisation left behind that was killed. Best effort: leftovers cost space, nothing else.
fn remove_leftovers(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(SCRATCH) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Makes a whole cluster appear at `target`, a path in `parent`.
fn build(
    parent: &Path,
    target: &Path,
    account: &Account,
    binaries: &Binaries,
    durability: Durability,
) -> Result<Layout, PostgresError> {
    let scratch = tempfile::Builder::new()
        .prefix(SCRATCH)
        .permissions(fs::Permissions::from_mode(0o700))
        .tempdir_in(parent)
        .map_err(|e| PostgresError::io("create a folder in", parent, e))?;
    account.own(scratch.path())?;
    let draft = Layout::unchecked(scratch.path().to_owned());
    fs::DirBuilder::new().mode(0o700).create(draft.data()).map_err(|e| PostgresError::io("create", draft.data(), e))?;
    account.own(&draft.data())?;
    write_password(&draft, account)?;
    run_initdb(&draft, account, binaries, durability)?;
    append_settings(&draft)?;
    create_database(&draft, account, binaries)?;
    fs::rename(scratch.path(), target).map_err(|e| PostgresError::io("create", target, e))?;
    // The folder is no longer where the guard would look for it.
    let _ = scratch.keep();
    File::open(parent).and_then(|folder| folder.sync_all()).map_err(|e| PostgresError::io("write", parent, e))?;
    Ok(Layout::unchecked(target.to_owned()))
}

/// 122 random bits, in a file that only the server's account (and root) can read.
fn write_password(draft: &Layout, account: &Account) -> Result<(), PostgresError> {
    let path = draft.password_file();
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        writeln!(file, "{}", Uuid::new_v4().simple())?;
        file.sync_all()
    };
    write().map_err(|e| PostgresError::io("write", &path, e))?;
    account.own(&path)
}

fn run_initdb(
    draft: &Layout,
    account: &Account,
    binaries: &Binaries,
    durability: Durability,
) -> Result<(), PostgresError> {
    let mut initdb = account.command(&binaries.initdb());
    initdb.arg("--pgdata").arg(draft.data()).arg("--pwfile").arg(draft.password_file());
    initdb.args(["--username", NAME, "--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C"]);
    if durability == Durability::Disposable {
        initdb.arg("--no-sync");
    }
    run(initdb, "creating the database (initdb)", "", draft)
}

fn append_settings(draft: &Layout) -> Result<(), PostgresError> {
    let path = draft.data().join("postgresql.conf");
    let mut file = OpenOptions::new().append(true).open(&path).map_err(|e| PostgresError::io("open", &path, e))?;
    file.write_all(SETTINGS.as_bytes()).and_then(|()| file.sync_all()).map_err(|e| PostgresError::io("write", &path, e))
}

/// In single-user mode, which needs neither a socket nor the password.
fn create_database(draft: &Layout, account: &Account, binaries: &Binaries) -> Result<(), PostgresError> {
    let mut postgres = account.command(&binaries.postgres());
    postgres.args(["--single", "-D"]).arg(draft.data()).args(["-c", "exit_on_error=true", "postgres"]);
    run(postgres, "creating the database (postgres --single)", &format!("CREATE DATABASE {NAME}\n"), draft)
}

fn run(mut command: Command, what: &str, input: &str, draft: &Layout) -> Result<(), PostgresError> {
    let program = PathBuf::from(command.get_program());
    let io = |e| PostgresError::io("run", &program, e);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(io)?;
    // A program that ends early does not read its input; its status tells more than the broken pipe.
    let _ = child.stdin.take().expect("stdin is piped").write_all(input.as_bytes());
    let output = child.wait_with_output().map_err(io)?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    let place = draft.root().parent().unwrap_or(draft.root());
    Err(PostgresError::tool(format!("{what}: {}", output.status), &String::from_utf8_lossy(&said), place))
}
