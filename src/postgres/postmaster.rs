//! What is known of a server from outside: its pid file, and whether the process named there is what it claims to be.

use std::{
    fs,
    io::ErrorKind,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use super::{NAME, PostgresError};

/// Where a server can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    pub pid: u32,
    pub socket_dir: PathBuf,
    pub port: u16,
}

impl Address {
    pub fn url(&self, password: &str) -> String {
        let folder = percent_encode(self.socket_dir.as_os_str().as_bytes());
        format!("postgres://{NAME}:{password}@localhost:{}/{NAME}?host={folder}", self.port)
    }
}

/// The state of the server of one data folder.
#[derive(Debug, PartialEq, Eq)]
pub enum State {
    /// No server runs. If one was cut off, PostgreSQL itself clears up after it.
    Absent,
    /// The pid file names a process that is something else: the pid was given to another program after the server
    /// died. PostgreSQL would refuse to start.
    Stale,
    /// The server runs and is starting, recovering or stopping.
    Busy,
    Ready(Address),
}

pub fn pid_file(data: &Path) -> PathBuf {
    data.join("postmaster.pid")
}

pub fn state(data: &Path) -> Result<State, PostgresError> {
    let path = pid_file(data);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(State::Absent),
        Err(error) => return Err(PostgresError::io("read", &path, error)),
    };
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    let Some(pid) = lines.first().and_then(|line| line.parse().ok()) else { return Ok(State::Absent) };
    if !serves(pid, data) {
        return Ok(if Path::new(&format!("/proc/{pid}")).exists() { State::Stale } else { State::Absent });
    }
    // Lines: pid, data folder, start time, port, socket folder, address, shared memory, status.
    Ok(match (lines.get(3).and_then(|port| port.parse().ok()), lines.get(4), lines.get(7)) {
        (Some(port), Some(folder), Some(&"ready")) => State::Ready(Address { pid, socket_dir: folder.into(), port }),
        _ => State::Busy,
    })
}

/// Whether `pid` is a PostgreSQL process of this data folder: its processes all work inside it.
pub fn serves(pid: u32, data: &Path) -> bool {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let is_postgres =
        fs::read_to_string(process.join("comm")).is_ok_and(|name| matches!(name.trim(), "postgres" | "postmaster"));
    let same = |a: fs::Metadata, b: fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
    let works_in_data = || Some(same(process.join("cwd").metadata().ok()?, data.metadata().ok()?));
    is_postgres && works_in_data() == Some(true)
}

/// All PostgreSQL processes of this data folder.
pub fn processes(data: &Path) -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|&pid| serves(pid, data)).map(u32::cast_signed).collect()
}

fn percent_encode(bytes: &[u8]) -> String {
    let encode = |&byte: &u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    bytes.iter().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_leads_back_to_the_same_folder() {
        let address = Address { pid: 1, socket_dir: "/data dir/a&b=c%d?e#ü".into(), port: 5432 };
        let url = reqwest::Url::parse(&address.url("secret")).unwrap();
        assert_eq!(url.query_pairs().collect::<Vec<_>>(), [("host".into(), "/data dir/a&b=c%d?e#ü".into())]);
    }

    #[test]
    fn a_pid_file_without_its_server_is_not_believed() {
        let data = tempfile::tempdir().unwrap();
        let write = |pid: u32| {
            let lines = format!("{pid}\n{}\n1\n5432\n/tmp\n\n 1 2\nready   \n", data.path().display());
            fs::write(pid_file(data.path()), lines).unwrap();
            state(data.path()).unwrap()
        };
        assert_eq!(state(data.path()).unwrap(), State::Absent);
        assert_eq!(write(std::process::id()), State::Stale);
        // Above the largest pid that Linux hands out.
        assert_eq!(write(1 << 22), State::Absent);
    }
}
