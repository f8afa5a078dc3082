//! The operating-system account that PostgreSQL runs as.

use std::{
    env,
    io::ErrorKind,
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::Path,
    process::{Command, Stdio},
};

use nix::unistd::{Gid, Uid, User};

use super::PostgresError;

/// An account with a passwd entry, which PostgreSQL insists on, and never root, which it refuses.
#[derive(Debug, Clone)]
pub struct Account {
    name: String,
    uid: Uid,
    gid: Gid,
}

impl Account {
    /// This process's own account, or, for root, `preferred`, else `postgres`, else `nobody`.
    pub fn choose(preferred: Option<&str>) -> Result<Self, PostgresError> {
        let own = Uid::effective();
        if !own.is_root() {
            return Self::from_uid(own);
        }
        let candidates = preferred.map_or(vec!["postgres", "nobody"], |name| vec![name]);
        let found =
            candidates.iter().find_map(|name| User::from_name(name).ok().flatten()).filter(|u| !u.uid.is_root());
        found.map(Self::from).ok_or_else(|| PostgresError::NoAccount { wanted: candidates[0].into() })
    }

    /// The account that an existing cluster belongs to, if this process can act for it.
    pub fn owner_of(path: &Path) -> Result<Self, PostgresError> {
        let owner = Uid::from_raw(path.metadata().map_err(|e| PostgresError::io("read", path, e))?.uid());
        let own = Uid::effective();
        if owner.is_root() || !(own.is_root() || own == owner) {
            return Err(PostgresError::not_yours(path));
        }
        Self::from_uid(owner)
    }

    fn from_uid(uid: Uid) -> Result<Self, PostgresError> {
        let user = User::from_uid(uid).ok().flatten();
        user.map(Self::from).ok_or(PostgresError::UnknownUser { uid: uid.as_raw() })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn uid(&self) -> Uid {
        self.uid
    }

    /// A command that runs as this account, in its own process group (a Ctrl-C in the terminal is for the parent
    /// alone), with messages in English and none of the caller's environment, which may hold secrets or PG* settings.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("LC_ALL", "C").current_dir("/").stdin(Stdio::null()).process_group(0);
        for name in ["PATH", "LD_LIBRARY_PATH"] {
            command.envs(env::var_os(name).map(|value| (name, value)));
        }
        if self.needs_switching() {
            // Also drops the supplementary groups.
            command.uid(self.uid.as_raw()).gid(self.gid.as_raw());
        }
        command
    }

    /// Hands a file or folder over to this account.
    pub fn own(&self, path: &Path) -> Result<(), PostgresError> {
        if self.needs_switching() {
            nix::unistd::chown(path, Some(self.uid), Some(self.gid))
                .map_err(|e| PostgresError::io("hand over", path, e.into()))?;
        }
        Ok(())
    }

    /// Whether this account can work inside `folder`, found out by trying: `program` must be one it can run.
    pub fn can_enter(&self, folder: &Path, program: &Path) -> Result<bool, PostgresError> {
        match self.command(program).arg("--version").current_dir(folder).output() {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(false),
            Err(error) => Err(PostgresError::io("enter", folder, error)),
        }
    }

    fn needs_switching(&self) -> bool {
        Uid::effective() != self.uid
    }
}

impl From<User> for Account {
    fn from(user: User) -> Self {
        Self { name: user.name, uid: user.uid, gid: user.gid }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_user_is_told_the_remedy() {
        let refusal = Account::from_uid(Uid::from_raw(3_999_999_999)).unwrap_err().to_string();
        assert!(refusal.contains("useradd --uid 3999999999"), "{refusal}");
    }
}
