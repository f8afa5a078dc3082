//! Which files the child can open: system libraries, libtorch, its own binary, its model; on a GPU the driver's devices.
//! Nothing on disk can be written or made: the scratch space is empty by design, because neither libtorch nor the CUDA
//! driver needs any.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, LandlockStatus, PathBeneath, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, path_beneath_rules,
};

use crate::protocol::Device;
use crate::wire::MODEL_FD;

/// What every program reads: libraries, and the shape of the machine.
const EVERYWHERE: [&str; 12] = [
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/etc/ld.so.cache",
    "/proc/self",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/sys/devices/system",
    "/dev/zero",
    "/dev/urandom",
];
/// What the CUDA driver reads to find its GPUs.
const CUDA_READS: [&str; 9] = [
    "/proc/driver/nvidia",
    "/proc/driver/nvidia-caps",
    "/proc/devices",
    "/proc/modules",
    "/proc/sys/vm",
    "/sys/bus/pci",
    "/sys/devices/pci0000:00",
    "/sys/module",
    "/usr/share/nvidia",
];

/// Where the CUDA driver's own library may lie; links lead from the usual places to the others.
const CUDA_DRIVERS: [&str; 8] = [
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/local/nvidia/lib64",
    "/usr/local/cuda/compat",
];

/// Folders and files that may be read. Ask before the account changes: a folder may be closed to the new one.
pub fn readable(device: Device) -> Vec<PathBuf> {
    let mut paths: BTreeSet<PathBuf> = EVERYWHERE.iter().map(PathBuf::from).collect();
    paths.extend(std::env::current_exe());
    for library in mapped_libraries() {
        let Some(folder) = library.parent() else { continue };
        paths.insert(folder.to_owned());
        if device == Device::Cuda && library.file_name().is_some_and(|name| name == "libtorch_cpu.so") {
            // Where provisioning and PyTorch's packages put the CUDA half.
            let around = |up: usize, name: &str| folder.ancestors().nth(up).map(|base| base.join(name));
            paths.extend([around(2, "cuda/lib"), around(2, "nvidia")].into_iter().flatten());
        }
    }
    let named = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    paths.extend(std::env::split_paths(&named).filter(|path| path.is_absolute()));
    if device == Device::Cuda {
        paths.extend(CUDA_READS.iter().map(PathBuf::from));
        paths.extend(pci_roots());
        paths.extend(driver_folders());
    }
    paths.into_iter().collect()
}

/// Shared libraries in this process's memory.
fn mapped_libraries() -> BTreeSet<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let paths = maps.lines().filter_map(|line| line.find('/').map(|start| PathBuf::from(&line[start..])));
    paths.filter(|path| path.file_name().is_some_and(|n| n.to_string_lossy().contains(".so"))).collect()
}

/// Folders of `libcuda.so.1`, links followed: beside it lie the parts that it loads itself.
fn driver_folders() -> Vec<PathBuf> {
    let libraries = CUDA_DRIVERS.iter().filter_map(|folder| Path::new(folder).join("libcuda.so.1").canonicalize().ok());
    let linked = libraries.filter_map(|library| Some(library.parent()?.to_owned()));
    linked.chain(CUDA_DRIVERS.iter().map(PathBuf::from)).filter(|folder| folder.is_dir()).collect()
}

/// `/sys/devices/pci0000:00` and its like.
fn pci_roots() -> Vec<PathBuf> {
    entries("/sys/devices", |name| name.starts_with("pci"))
}

/// Devices that the CUDA driver opens for reading and writing.
fn gpu_devices() -> Vec<PathBuf> {
    entries("/dev", |name| {
        matches!(name, "nvidiactl" | "nvidia-uvm" | "nvidia-uvm-tools" | "nvidia-caps")
            || name.strip_prefix("nvidia").is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    })
}

fn entries(folder: &str, wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_str().is_some_and(&wanted)).map(|entry| entry.path()).collect()
}

/// Applies Landlock: files, TCP, and where the kernel can, device controls, signals and abstract sockets. Returns the ABI
/// in force.
pub fn restrict(readable: &[PathBuf], device: Device) -> Result<u32, String> {
    let status = ruleset(readable, device).and_then(RulesetCreated::restrict_self).map_err(|e| e.to_string())?;
    if status.ruleset == RulesetStatus::NotEnforced || !status.no_new_privs {
        return Err("the kernel does not enforce it".into());
    }
    match status.landlock {
        LandlockStatus::Available { effective_abi, kernel_abi } => {
            Ok(kernel_abi.unwrap_or(effective_abi as i32) as u32)
        }
        _ => Err("the kernel does not have it (Linux 5.19 or later, with Landlock enabled)".into()),
    }
}

fn ruleset(readable: &[PathBuf], device: Device) -> Result<RulesetCreated, RulesetError> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    // Without a model the place is free, and something else may have taken it.
    let has_model = fs::metadata(format!("/proc/self/fd/{MODEL_FD}")).is_ok_and(|found| found.is_file());
    let rules = Ruleset::default()
        // Without these there is no sandbox; what later kernels add is taken where it is there, and covered by the system
        // call filter where it is not.
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI::V2))?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V5))?
        .handle_access(AccessNet::from_all(ABI::V4))?
        .scope(Scope::from_all(ABI::V6))?
        .create()?
        .add_rules(path_beneath_rules(readable, read))?
        .add_rules(path_beneath_rules(["/dev/null"], AccessFs::ReadFile | AccessFs::WriteFile))?;
    let rules = match device {
        Device::Cpu => rules,
        Device::Cuda => {
            let device: BitFlags<AccessFs> = read | AccessFs::WriteFile | AccessFs::IoctlDev;
            rules
                .add_rules(path_beneath_rules(gpu_devices(), device))?
                // `cuInit` names its threads there, by files that it opens with `O_TRUNC`.
                .add_rules(path_beneath_rules(
                    [Path::new("/proc/self/task")],
                    read | AccessFs::WriteFile | AccessFs::Truncate,
                ))?
        }
    };
    if !has_model {
        return Ok(rules);
    }
    // SAFETY: the supervisor put the model's file there, and it stays open for the life of the process.
    let model = unsafe { BorrowedFd::borrow_raw(MODEL_FD) };
    rules.add_rule(PathBeneath::new(model, AccessFs::ReadFile))
}
