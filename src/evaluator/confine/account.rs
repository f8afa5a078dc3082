//! An account of its own for a child that was started as root.

use std::io;

use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, geteuid, getppid, setgroups, setresgid, setresuid};

/// Ids that nobody else has: derived from the process id, far above those that people and services get.
const FIRST: u32 = 2_000_000_000;
/// Inside a container only the ids up to 65535 may exist; systemd leaves these unused.
const FIRST_SMALL: u32 = 60_578;
const SMALL: u32 = 606;

/// Gives up root for an account that owns nothing and runs nothing else. Returns `false` where there was no root to give
/// up: the child then keeps its worker's account.
pub fn leave_root() -> io::Result<bool> {
    if !geteuid().is_root() {
        return Ok(false);
    }
    let parent = getppid();
    setgroups(&[])?;
    let process = std::process::id();
    if become_(FIRST + process).is_err() {
        become_(FIRST_SMALL + process % SMALL)?;
    }
    // A change of account clears both. Without the second the process may not even look at its own files in /proc, which
    // libtorch and the CUDA driver do.
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    prctl::set_dumpable(true)?;
    // The parent may have died in between.
    if getppid() != parent {
        return Err(io::Error::other("the supervisor is gone"));
    }
    Ok(true)
}

fn become_(id: u32) -> nix::Result<()> {
    let (group, user) = (Gid::from_raw(id), Uid::from_raw(id));
    setresgid(group, group, group)?;
    setresuid(user, user, user)
}
