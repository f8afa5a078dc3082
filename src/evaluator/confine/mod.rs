//! The sandbox. The child enters it before libtorch starts, so that every thread and every model is inside.
//!
//! Each layer stands alone: file access (Landlock), system calls (seccomp), an account of its own when started as root, no
//! new privileges, resource limits. There is no half sandbox: a layer that cannot be had is an error.

mod account;
mod files;
mod limits;
mod syscalls;

use std::fs;
use std::io;

use crate::protocol::{Device, Enforced, Sandbox};
use crate::wire::Confinement;

/// A layer that cannot be had here, and why.
#[derive(Debug, thiserror::Error)]
#[error("{layer}: {why}")]
pub struct Missing {
    pub layer: &'static str,
    pub why: String,
}

impl Missing {
    fn new(layer: &'static str, why: impl std::fmt::Display) -> Self {
        Self { layer, why: why.to_string() }
    }
}

/// Confines this process for good. It must have one thread, because layers bind threads; call it before libtorch is used.
/// After an error the process is partly confined and must end.
pub fn enter(wanted: &Confinement, device: Device) -> Result<Sandbox, Missing> {
    let threads = fs::read_dir("/proc/self/task").map_err(|e| Missing::new("threads", e))?.count();
    if threads != 1 {
        return Err(Missing::new("threads", format!("the process has {threads} threads already")));
    }
    limits::be_first_to_die().map_err(|e| Missing::new("limits", e))?;
    let readable = files::readable(device);
    let own_account = account::leave_root().map_err(|e| Missing::new("account", e))?;
    let memory = limits::set(wanted.memory_bytes, device, own_account).map_err(|e| Missing::new("limits", e))?;
    let landlock_abi = files::restrict(&readable, device).map_err(|e| Missing::new("landlock", e))?;
    if device == Device::Cuda && landlock_abi < SEES_TRUNCATION {
        return Err(Missing::new("landlock", "for a GPU it takes Linux 6.2 or later, which sees files being cut"));
    }
    syscalls::deny(device).map_err(|e| Missing::new("seccomp", e))?;
    prove()?;
    Ok(Sandbox::Enforced(Enforced { landlock_abi, own_account, memory }))
}

/// The version of Landlock from which on it can tell which files may be cut. The CUDA driver cuts some.
const SEES_TRUNCATION: u32 = 3;

/// Layers have been seen to accept their rules and enforce nothing: try what must fail.
fn prove() -> Result<(), Missing> {
    match fs::read_dir("/") {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {}
        _ => return Err(Missing::new("landlock", "the kernel accepted the rules and does not enforce them")),
    }
    match std::os::unix::net::UnixDatagram::unbound() {
        Err(e) if e.raw_os_error() == Some(libc::EPERM) => {}
        _ => return Err(Missing::new("seccomp", "the kernel accepted the filter and does not enforce it")),
    }
    let status = fs::read_to_string("/proc/self/status").map_err(|e| Missing::new("account", e))?;
    let field = |name| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    if field("CapEff:").and_then(|caps| u64::from_str_radix(caps, 16).ok()) != Some(0) {
        return Err(Missing::new("account", "the process holds capabilities: run the worker as root or without any"));
    }
    if field("NoNewPrivs:") != Some("1") {
        return Err(Missing::new("no_new_privs", "the kernel did not set it"));
    }
    Ok(())
}
