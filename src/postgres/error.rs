//! What can go wrong with the cluster, and what to do about it.

use std::{
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use nix::unistd::{Uid, User};

/// A failure of the private cluster. The text names the cause and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    #[error(
        "no usable PostgreSQL found:\n{}\nInstall PostgreSQL {} or newer (`apt install postgresql`), run `make provision`, \
         or set DATABASE_URL to a server of your own",
        indent(tried),
        super::binaries::OLDEST
    )]
    NoBinaries { tried: String },

    #[error(
        "{} was written by PostgreSQL {wanted}, and only other versions are usable here:\n{}\n\
         Install PostgreSQL {wanted}, or move the data with its pg_dump and a new data folder",
        data.display(),
        indent(tried)
    )]
    OtherVersion { data: PathBuf, wanted: u32, tried: String },

    #[error("{} is in use by {}. Stop that one first, or choose another data folder", data_dir.display(), owner_text(*owner))]
    InUse { data_dir: PathBuf, owner: Option<u32> },

    #[error(
        "user id {uid} has no entry in /etc/passwd, and PostgreSQL needs one. Add it (`useradd --uid {uid} gauntlet`), run as a known user, or set DATABASE_URL"
    )]
    UnknownUser { uid: u32 },

    #[error(
        "PostgreSQL refuses to run as root, and there is no account `{wanted}` to run it as. Create one (`useradd --system {wanted}`), start as another user, or set DATABASE_URL"
    )]
    NoAccount { wanted: String },

    #[error("{} belongs to {owner}. Run as that user or as root, or choose another data folder", path.display())]
    NotYours { path: PathBuf, owner: String },

    #[error("{}: {found}", path.display())]
    Damaged { path: PathBuf, found: String },

    #[error("processes {pids:?} of an earlier server still use {}. They should have ended by themselves: end them with `kill`, then start again", data.display())]
    Orphans { data: PathBuf, pids: Vec<i32> },

    #[error("{what} failed. PostgreSQL said:\n{}\n{hint}", indent(said))]
    Tool { what: String, said: String, hint: String },

    #[error("cannot {action} {}: {source}{}", path.display(), io_hint(source))]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

impl PostgresError {
    pub(super) fn io(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Io { action, path: path.into(), source }
    }

    /// `place` is the folder that PostgreSQL was working in.
    pub(super) fn tool(what: impl Into<String>, said: &str, place: &Path) -> Self {
        Self::Tool { what: what.into(), said: last_lines(said, 20), hint: hint(said, place) }
    }

    /// `path` cannot be used because it belongs to another user.
    pub(super) fn not_yours(path: &Path) -> Self {
        let owner = path.metadata().map(|found| Uid::from_raw(found.uid()));
        let name = |uid: Uid| User::from_uid(uid).ok().flatten().map_or(format!("user id {uid}"), |user| user.name);
        Self::NotYours { path: path.into(), owner: owner.map_or("another user".into(), name) }
    }
}

/// The remedy for what PostgreSQL complained about.
fn hint(said: &str, place: &Path) -> String {
    let place = place.display();
    let says = |text: &str| said.contains(text);
    if says("could not resize shared memory segment") {
        "Shared memory is too small: give the container more (`--shm-size=256m`)".into()
    } else if says("No space left on device") || says("Disk quota exceeded") {
        format!("The disk is full: free some space for {place}, then start again; nothing that was committed is lost")
    } else if says("Cannot allocate memory") || says("could not map anonymous shared memory") {
        "Not enough memory: lower shared_buffers at the end of postgresql.conf, or free some".into()
    } else if says("Read-only file system") {
        format!("{place} is on a read-only file system: choose another data folder")
    } else if says("Permission denied") || says("Operation not permitted") {
        format!(
            "Make {place} and the folders above it accessible to the account that runs PostgreSQL, or choose another data folder"
        )
    } else if says("invalid value for parameter")
        || says("unrecognized configuration parameter")
        || says("contains errors")
    {
        format!("Correct {place}/data/postgresql.conf")
    } else {
        format!("PostgreSQL was working in {place}; if that does not help, set DATABASE_URL to a server of your own")
    }
}

fn io_hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::PermissionDenied => ". Run as the user it belongs to, or choose another data folder",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ". Free some space, or choose another data folder",
        io::ErrorKind::ReadOnlyFilesystem => ". Choose another data folder",
        _ => "",
    }
}

fn owner_text(owner: Option<u32>) -> String {
    owner.map_or("another Gauntlet server".into(), |pid| format!("another Gauntlet server (process {pid})"))
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<_> = text.trim().lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

fn indent(text: &str) -> String {
    let text = if text.is_empty() { "(nothing)" } else { text };
    text.lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}
