//! Where the parts of a cluster lie, and how to tell a whole one from a damaged one.

use std::{
    fs::{self, DirBuilder},
    io::ErrorKind,
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use nix::unistd::Uid;
use sha2::{Digest, Sha256};

use super::{PostgresError, account::Account};

/// Longest path that a Unix socket can be bound to, in bytes.
const LONGEST_SOCKET_PATH: usize = 107;

/// The port only names the socket: nothing listens on a network.
pub const PORT: u16 = 5432;

/// One whole cluster: `data` (the database files), `password`, `server.log` and, normally, the socket.
#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// Where the cluster of `data_dir` is, or where a link to it is.
    pub fn entrance(data_dir: &Path) -> PathBuf {
        data_dir.join("postgres")
    }

    /// The cluster of `data_dir`, if it was ever created.
    pub fn find(data_dir: &Path) -> Result<Option<Self>, PostgresError> {
        let entrance = Self::entrance(data_dir);
        let damaged = |found: &str| PostgresError::Damaged { path: entrance.clone(), found: found.into() };
        match entrance.symlink_metadata() {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(PostgresError::io("read", &entrance, error)),
            Ok(_) => {}
        }
        let root = match entrance.canonicalize() {
            Ok(root) => root,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(damaged(
                    "links to a folder that is gone. Put it back, or remove the link to begin with an empty database",
                ));
            }
            Err(error) => return Err(PostgresError::io("open", &entrance, error)),
        };
        let layout = Self { root };
        match layout.data().join("PG_VERSION").metadata() {
            Ok(_) => Ok(Some(layout)),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                Err(damaged("holds no database (data/PG_VERSION is missing). Move it aside to begin with an empty one"))
            }
            Err(error) if error.kind() == ErrorKind::PermissionDenied => Err(PostgresError::not_yours(&layout.root)),
            Err(error) => Err(PostgresError::io("read", layout.data(), error)),
        }
    }

    pub(super) fn unchecked(root: PathBuf) -> Self {
        Self { root }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn data(&self) -> PathBuf {
        self.root.join("data")
    }

    pub fn log(&self) -> PathBuf {
        self.root.join("server.log")
    }

    pub fn password_file(&self) -> PathBuf {
        self.root.join("password")
    }

    pub fn password(&self) -> Result<String, PostgresError> {
        let file = self.password_file();
        let text = fs::read_to_string(&file).map_err(|e| PostgresError::io("read", &file, e))?;
        Ok(text.trim().to_owned())
    }

    /// Major version of PostgreSQL that wrote the data.
    pub fn major(&self) -> Result<u32, PostgresError> {
        let file = self.data().join("PG_VERSION");
        let text = fs::read_to_string(&file).map_err(|e| PostgresError::io("read", &file, e))?;
        text.trim()
            .parse()
            .map_err(|_| PostgresError::Damaged { path: file, found: format!("{text:?} is not a PostgreSQL version") })
    }

    /// A folder for the socket, private to `account`: beside the data, or a short one below /tmp if that path is too
    /// long for a socket.
    pub fn socket_dir(&self, account: &Account) -> Result<PathBuf, PostgresError> {
        if socket_in(&self.root).as_os_str().len() <= LONGEST_SOCKET_PATH {
            return Ok(self.root.clone());
        }
        let name = hex::encode(&Sha256::digest(self.root.as_os_str().as_bytes())[..8]);
        let folder = PathBuf::from(format!("/tmp/gauntlet-{name}"));
        match DirBuilder::new().mode(0o700).create(&folder) {
            Ok(()) => account.own(&folder)?,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(PostgresError::io("create", &folder, error)),
        }
        // Anybody can create folders in /tmp: trust only our own.
        let found = folder.symlink_metadata().map_err(|e| PostgresError::io("read", &folder, e))?;
        if !found.is_dir() || Uid::from_raw(found.uid()) != account.uid() || found.mode() & 0o077 != 0 {
            return Err(PostgresError::Damaged {
                path: folder,
                found: format!(
                    "should be a folder that only {} can enter. Remove it, or choose a data folder with a shorter path",
                    account.name()
                ),
            });
        }
        Ok(folder)
    }
}

/// The socket that a server with its sockets in `folder` listens on.
pub fn socket_in(folder: &Path) -> PathBuf {
    folder.join(format!(".s.PGSQL.{PORT}"))
}
