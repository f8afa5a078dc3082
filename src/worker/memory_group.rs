//! A control group that bounds all memory of an evaluator, shared mappings too, where this process may make one.
//!
//! Version 2 wants the memory controller switched on for children of this process' group, or for its siblings (systemd:
//! `Delegate=memory` with `DelegateSubgroup=`); version 1 wants a writable memory hierarchy. Elsewhere the evaluator's resource
//! limit stands alone.

use std::fs;
use std::path::{Path, PathBuf};

/// What groups made here are called, followed by the process they are for.
const NAME: &str = "gauntlet-evaluator-";

/// The files of one version of control groups.
struct Version {
    limit: &'static str,
    /// Set too where they exist: no swap beyond the limit, and one death for all.
    more: [(&'static str, Option<&'static str>); 2],
    /// Has a line `oom_kill N`.
    events: &'static str,
}

static V1: Version = Version {
    limit: "memory.limit_in_bytes",
    more: [("memory.memsw.limit_in_bytes", None), ("memory.swappiness", Some("0"))],
    events: "memory.oom_control",
};
static V2: Version = Version {
    limit: "memory.max",
    more: [("memory.swap.max", Some("0")), ("memory.oom.group", Some("1"))],
    events: "memory.events",
};

/// The group of one process. It goes away with this value, once the process has ended.
pub struct MemoryGroup {
    folder: PathBuf,
    version: &'static Version,
}

impl MemoryGroup {
    /// Puts process `pid` into a new group that may use `bytes`. `None` where no such group can be had.
    pub fn confine(pid: u32, bytes: u64) -> Option<Self> {
        let (parent, version) = parent()?;
        sweep(&parent);
        let folder = parent.join(format!("{NAME}{pid}"));
        fs::create_dir(&folder).ok()?;
        let group = Self { folder, version };
        fs::write(group.folder.join(version.limit), bytes.to_string()).ok()?;
        for (file, value) in version.more {
            // Kernels without swap accounting lack them.
            fs::write(group.folder.join(file), value.map_or(bytes.to_string(), str::to_owned)).ok();
        }
        fs::write(group.folder.join("cgroup.procs"), pid.to_string()).ok()?;
        Some(group)
    }

    /// Whether the kernel has killed for exceeding this group's bound.
    pub fn has_killed(&self) -> bool {
        let events = fs::read_to_string(self.folder.join(self.version.events)).unwrap_or_default();
        events.lines().any(|line| line.strip_prefix("oom_kill ").is_some_and(|kills| kills.trim() != "0"))
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // A process that was just killed may take a moment to leave: the next evaluator's group sweeps what stays.
        fs::remove_dir(&self.folder).ok();
    }
}

/// Removes empty groups of processes that are gone; groups in use cannot be removed.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.strip_prefix(NAME)) else { continue };
        if !Path::new("/proc").join(pid).exists() {
            fs::remove_dir(entry.path()).ok();
        }
    }
}

/// Where groups can be made.
fn parent() -> Option<(PathBuf, &'static Version)> {
    let (groups, mounts) =
        (fs::read_to_string("/proc/self/cgroup").ok()?, fs::read_to_string("/proc/self/mountinfo").ok()?);
    let own = |version: &'static Version| Some((own_folder(&groups, &mounts, version)?, version));
    let has_memory = |folder: &Path| {
        let switched_on = fs::read_to_string(folder.join("cgroup.subtree_control")).unwrap_or_default();
        switched_on.split_whitespace().any(|controller| controller == "memory")
    };
    let second = own(&V2).and_then(|(folder, version)| {
        let around = folder.parent().map(Path::to_owned);
        [Some(folder), around].into_iter().flatten().find(|folder| has_memory(folder)).map(|folder| (folder, version))
    });
    second.or_else(|| own(&V1))
}

/// The folder of this process' own group.
fn own_folder(groups: &str, mounts: &str, version: &'static Version) -> Option<PathBuf> {
    let second = std::ptr::eq(version, &V2);
    let path = groups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let wanted = if second { controllers.is_empty() } else { controllers.split(',').any(|c| c == "memory") };
        wanted.then_some(path)
    })?;
    let (root, mount) = mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let (mut before, mut after) = (before.split(' ').skip(3), after.split(' '));
        let (root, mount, kind) = (before.next()?, before.next()?, after.next()?);
        let wanted = match kind {
            "cgroup2" => second,
            "cgroup" => !second && after.nth(1)?.split(',').any(|option| option == "memory"),
            _ => false,
        };
        wanted.then_some((root, mount))
    })?;
    let below = Path::new(path).strip_prefix(root).unwrap_or(Path::new(path).strip_prefix("/").ok()?);
    Some(Path::new(mount).join(below))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_own_group_is_found_in_either_version() {
        let groups = "5:cpu,memory:/a/b\n0::/service/supervisor\n";
        let mounts = "30 25 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                      31 25 0:27 /a /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory\n";
        let folder = |version| own_folder(groups, mounts, version).unwrap();
        assert_eq!(folder(&V2), Path::new("/sys/fs/cgroup/unified/service/supervisor"));
        assert_eq!(folder(&V1), Path::new("/sys/fs/cgroup/memory/b"));
        assert_eq!(own_folder("0::/x", "", &V2), None);
    }

    #[test]
    fn a_process_beyond_its_groups_bound_is_killed_and_the_group_goes() {
        // It holds what it reads until the end, and reads only once it is in the group.
        let mut hoarder = Command::new("sh");
        hoarder
            .args(["-c", "read _; head -c 500000000 /dev/zero | exec tail -c 400000000 > /dev/null"])
            .stdin(Stdio::piped());
        let mut hoarder = hoarder.spawn().unwrap();
        let Some(group) = MemoryGroup::confine(hoarder.id(), 64 << 20) else {
            hoarder.kill().unwrap();
            hoarder.wait().unwrap();
            eprintln!("no control groups for memory can be made here: nothing was tried");
            return;
        };
        let folder = group.folder.clone();
        let members = || fs::read_to_string(folder.join("cgroup.procs")).unwrap();
        drop(hoarder.stdin.take());
        let status = hoarder.wait().unwrap();
        assert!(group.has_killed(), "{status}");
        assert!(status.signal() == Some(9) || status.code() == Some(137), "{status}");
        while !members().is_empty() {
            std::thread::yield_now();
        }
        drop(group);
        assert!(!folder.exists());
    }
}
