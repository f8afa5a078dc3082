//! Where PostgreSQL's programs are.

use std::{
    cmp::Reverse,
    env, fs,
    path::{Path, PathBuf},
};

use super::{PostgresError, account::Account, layout::Layout};

/// Oldest major version that is accepted.
pub const OLDEST: u32 = 14;

/// A folder with `initdb` and `postgres` that the server's account can run.
#[derive(Debug, Clone)]
pub struct Binaries {
    folder: PathBuf,
    major: u32,
}

impl Binaries {
    /// The first usable folder: `configured` alone if given, else `PATH`, then the places where systems install
    /// PostgreSQL (newest first), then what `make provision` fetched. For an existing cluster only the major version
    /// that wrote it will do.
    pub fn find(configured: Option<&Path>, account: &Account, cluster: Option<&Layout>) -> Result<Self, PostgresError> {
        let wanted = cluster.map(Layout::major).transpose()?;
        let folders = configured.map_or_else(places, |folder| vec![folder.to_owned()]);
        let mut tried = Vec::new();
        let mut other_version = false;
        for folder in folders {
            match Self::probe(&folder, account) {
                Ok(found) if wanted.is_none_or(|wanted| wanted == found.major) => return Ok(found),
                Ok(found) => {
                    other_version = true;
                    tried.push(format!("{}: version {}", folder.display(), found.major));
                }
                Err(reason) => tried.push(format!("{}: {reason}", folder.display())),
            }
        }
        let tried = tried.join("\n");
        Err(match cluster.zip(wanted) {
            Some((cluster, wanted)) if other_version => {
                PostgresError::OtherVersion { data: cluster.data(), wanted, tried }
            }
            _ => PostgresError::NoBinaries { tried },
        })
    }

    pub fn initdb(&self) -> PathBuf {
        self.folder.join("initdb")
    }

    pub fn postgres(&self) -> PathBuf {
        self.folder.join("postgres")
    }

    fn probe(folder: &Path, account: &Account) -> Result<Self, String> {
        if !folder.join("initdb").exists() {
            return Err("no initdb".into());
        }
        let output = account
            .command(&folder.join("postgres"))
            .arg("--version")
            .output()
            .map_err(|e| format!("{} cannot run postgres: {e}", account.name()))?;
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).trim().to_owned();
        let major = major_version(&said).ok_or_else(|| format!("`postgres --version` said {said:?}"))?;
        if major < OLDEST {
            return Err(format!("version {major} is older than {OLDEST}"));
        }
        Ok(Self { folder: folder.into(), major })
    }
}

/// The 15 of `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`; also of `15beta1` and `15devel`.
fn major_version(text: &str) -> Option<u32> {
    let version = text.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Folders worth probing, best first. `scripts/provision.py` looks in the same places of the system.
fn places() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    // `PATH` may hold a link to `postgres` alone; its companions lie beside the file itself.
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path = env::split_paths(&path).find_map(|folder| folder.join("postgres").canonicalize().ok());
    folders.extend(on_path.and_then(|program| program.parent().map(Path::to_owned)));
    folders.extend(versioned("/usr/lib/postgresql", "").into_iter().map(|folder| folder.join("bin")));
    folders.extend(versioned("/usr", "pgsql-").into_iter().map(|folder| folder.join("bin")));
    for brew in ["/opt/homebrew/opt", "/usr/local/opt", "/home/linuxbrew/.linuxbrew/opt"] {
        folders.extend(versioned(brew, "postgresql").into_iter().map(|folder| folder.join("bin")));
    }
    for cache in caches() {
        folders.extend(versioned(&cache, "postgres-").into_iter().map(|folder| folder.join("bin")));
    }
    let mut distinct = Vec::new();
    for folder in folders {
        if folder.join("postgres").exists() && !distinct.contains(&folder) {
            distinct.push(folder);
        }
    }
    distinct
}

/// Where `scripts/provision.py` keeps what it fetched: the user's cache, or, for root, a place others can enter.
fn caches() -> Vec<PathBuf> {
    let user = env::var_os("XDG_CACHE_HOME")
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".cache")));
    user.map(|cache| cache.join("gauntlet")).into_iter().chain([PathBuf::from("/var/cache/gauntlet")]).collect()
}

/// The folders in `parent` named `prefix` + something, newest version first.
fn versioned(parent: impl AsRef<Path>, prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(parent) else { return Vec::new() };
    let mut found: Vec<(Vec<u32>, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let version = name.strip_prefix(prefix)?;
            let numbers = version.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect();
            Some((numbers, entry.path()))
        })
        .collect();
    found.sort_by_key(|(version, _)| Reverse(version.clone()));
    found.into_iter().map(|(_, path)| path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn major_version_is_read_from_all_spellings() {
        let cases = [
            ("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n", Some(15)),
            ("postgres (PostgreSQL) 18.4", Some(18)),
            ("postgres (PostgreSQL) 19beta2", Some(19)),
            ("postgres (PostgreSQL) 20devel", Some(20)),
            ("command not found", None),
        ];
        for (text, major) in cases {
            assert_eq!(major_version(text), major, "{text}");
        }
    }

    #[test]
    fn versions_sort_by_number_and_not_by_letter() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["pgsql-9", "pgsql-15", "pgsql-16", "other-17"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let names: Vec<_> =
            versioned(folder.path(), "pgsql-").iter().map(|p| p.file_name().unwrap().to_owned()).collect();
        assert_eq!(names, ["pgsql-16", "pgsql-15", "pgsql-9"]);
    }
}
