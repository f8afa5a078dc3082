//! Resource limits.

use std::{fs, io};

use nix::sys::resource::{Resource, setrlimit};

use crate::protocol::{Device, MemoryBound};

/// Open files; the CUDA driver wants a few hundred.
const FILES: u64 = 4096;
/// Threads, where the account is the child's own.
const THREADS: u64 = 4096;
/// No file on disk can be opened for writing at all. This bounds the anonymous files that the CUDA driver makes.
const FILE_BYTES: u64 = 64 << 20;

/// The kernel, when out of memory, kills the evaluator before anything else.
pub fn be_first_to_die() -> io::Result<()> {
    fs::write("/proc/self/oom_score_adj", "1000")
}

/// Sets every limit, soft and hard. `own_account`: nobody else's threads count.
pub fn set(memory: Option<u64>, device: Device, own_account: bool) -> io::Result<MemoryBound> {
    let set = |resource, limit| setrlimit(resource, limit, limit).map_err(io::Error::from);
    set(Resource::RLIMIT_CORE, 0)?;
    set(Resource::RLIMIT_FSIZE, FILE_BYTES)?;
    set(Resource::RLIMIT_NOFILE, FILES)?;
    set(Resource::RLIMIT_MSGQUEUE, 0)?;
    if own_account {
        set(Resource::RLIMIT_NPROC, THREADS)?;
    }
    match (memory, device) {
        // Private writable memory. The CUDA driver reserves address space far beyond what it uses.
        (Some(bytes), Device::Cpu) => set(Resource::RLIMIT_DATA, bytes).map(|()| MemoryBound::Rlimit),
        _ => Ok(MemoryBound::Inherited),
    }
}
