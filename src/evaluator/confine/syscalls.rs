//! Which system calls are refused. A deny list: libtorch and the CUDA driver need the rest, and files are Landlock's.

use std::collections::BTreeMap;

use libc::*;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter, sock_filter,
};

use crate::protocol::Device;

/// Refused with EPERM, whatever the arguments.
#[rustfmt::skip]
const DENIED: &[c_long] = &[
    // Sockets: Landlock knows TCP only. The one the child speaks over was made before.
    // A pair of datagram sockets could be used to send to any socket in the file system.
    SYS_socketpair, SYS_connect,
    // Leaving the group that is killed with the child, or pushing others aside.
    SYS_setpgid, SYS_setsid, SYS_setpriority,
    // Other processes.
    SYS_ptrace, SYS_process_vm_readv, SYS_process_vm_writev, SYS_process_madvise, SYS_kcmp, SYS_pidfd_open,
    SYS_pidfd_getfd, SYS_pidfd_send_signal, SYS_rt_sigqueueinfo, SYS_rt_tgsigqueueinfo, SYS_tkill,
    // Other programs.
    SYS_execve, SYS_execveat,
    // Shared memory, queues and semaphores by key: another program of the same account may use them.
    SYS_shmget, SYS_shmat, SYS_shmctl, SYS_msgget, SYS_msgsnd, SYS_msgrcv, SYS_msgctl, SYS_semget, SYS_semop,
    SYS_semctl, SYS_semtimedop, SYS_mq_open, SYS_mq_unlink,
    // What Landlock does not see: owners, modes, times, attributes, and truncation on old kernels.
    SYS_fchmod, SYS_fchmodat, SYS_fchown, SYS_fchownat, SYS_truncate, SYS_utimensat, SYS_setxattr, SYS_lsetxattr,
    SYS_fsetxattr, SYS_removexattr, SYS_lremovexattr, SYS_fremovexattr, SYS_name_to_handle_at, SYS_open_by_handle_at,
    // Namespaces, mounts, the kernel.
    SYS_unshare, SYS_setns, SYS_mount, SYS_umount2, SYS_pivot_root, SYS_chroot, SYS_move_mount, SYS_open_tree,
    SYS_fsopen, SYS_fsconfig, SYS_fsmount, SYS_fspick, SYS_mount_setattr, SYS_swapon, SYS_swapoff, SYS_reboot,
    SYS_kexec_load, SYS_init_module, SYS_finit_module, SYS_delete_module, SYS_acct, SYS_quotactl, SYS_syslog,
    SYS_settimeofday, SYS_clock_settime, SYS_clock_adjtime, SYS_adjtimex, SYS_sethostname, SYS_setdomainname,
    SYS_personality, SYS_vhangup, SYS_fanotify_init,
    // Large, much attacked, not needed.
    SYS_bpf, SYS_perf_event_open, SYS_userfaultfd, SYS_add_key, SYS_request_key, SYS_keyctl, SYS_io_uring_setup,
    SYS_io_uring_enter, SYS_io_uring_register,
];

/// Older spellings that only this architecture has.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const DENIED_HERE: &[c_long] = &[
    SYS_fork, SYS_vfork, SYS_chmod, SYS_chown, SYS_lchown, SYS_utime, SYS_utimes, SYS_futimesat, SYS_iopl, SYS_ioperm,
    SYS_modify_ldt, SYS_kexec_file_load, SYS_uselib, SYS_ustat, SYS_sysfs, SYS__sysctl,
];
#[cfg(not(target_arch = "x86_64"))]
const DENIED_HERE: &[c_long] = &[SYS_kexec_file_load];

/// Newer calls whose arguments a filter cannot read. Answered as an old kernel would, so that libraries take the older
/// call, whose arguments it can; 452 is `fchmodat2`.
const UNKNOWN: &[c_long] = &[SYS_clone3, SYS_openat2, 452];

/// Installs the filters. They bind this thread and those that it starts.
pub fn deny(device: Device) -> Result<(), String> {
    for filter in [foreign_numbers(), compile(refused(device)?, EPERM)?, compile(unknown(), ENOSYS)?] {
        apply_filter(&filter).map_err(|e| e.to_string())?;
    }
    Ok(())
}

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

fn compile(rules: Rules, errno: c_int) -> Result<BpfProgram, String> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|e| e.to_string())?;
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(errno as u32), arch);
    filter.and_then(BpfProgram::try_from).map_err(|e| e.to_string())
}

fn unknown() -> Rules {
    UNKNOWN.iter().map(|&call| (call, Vec::new())).collect()
}

fn refused(device: Device) -> Result<Rules, String> {
    let when = |argument: u8, operator: SeccompCmpOp, value: u64| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
    };
    let rule = |conditions: Vec<Result<SeccompCondition, _>>| {
        SeccompRule::new(conditions.into_iter().collect::<Result<_, _>>()?).map(Some)
    };
    let me = u64::from(std::process::id());
    let (thread, truncate) = (CLONE_THREAD as u64, O_TRUNC as u64);
    let conditional = || {
        Ok(vec![
            // Threads, not processes.
            (SYS_clone, rule(vec![when(0, SeccompCmpOp::MaskedEq(thread), 0)])?),
            // Signals and limits of this process only. 0 means this process group in the one and this process in the other.
            (SYS_kill, rule(vec![when(0, SeccompCmpOp::Ne, me)])?),
            (SYS_tgkill, rule(vec![when(0, SeccompCmpOp::Ne, me)])?),
            (SYS_prlimit64, rule(vec![when(0, SeccompCmpOp::Ne, me), when(0, SeccompCmpOp::Ne, 0)])?),
            // To die with its parent is not the model's to undo.
            (SYS_prctl, rule(vec![when(0, SeccompCmpOp::Eq, PR_SET_PDEATHSIG as u64)])?),
        ])
    };
    // Before its third version Landlock does not see it.
    let on_cpu = || {
        let mut rules = vec![
            (SYS_openat, rule(vec![when(2, SeccompCmpOp::MaskedEq(truncate), truncate)])?),
            #[cfg(target_arch = "x86_64")]
            (SYS_open, rule(vec![when(1, SeccompCmpOp::MaskedEq(truncate), truncate)])?),
        ];
        rules.extend([SYS_socket, SYS_bind, SYS_listen, SYS_accept, SYS_accept4].map(|call| (call, None)));
        Ok(rules)
    };
    // `cuInit` makes a local socket of packets, under a name that is no file, and listens on it. Nobody can be called with it.
    let on_gpu = || {
        const KIND: u64 = 0xf;
        let other = |kind: u64| Ok((SYS_socket, rule(vec![when(1, SeccompCmpOp::MaskedEq(KIND), kind)])?));
        let packets = SOCK_SEQPACKET as u64;
        let mut rules = (0..=KIND).filter(|kind| *kind != packets).map(other).collect::<Result<Vec<_>, _>>()?;
        rules.push((SYS_socket, rule(vec![when(0, SeccompCmpOp::Ne, AF_UNIX as u64)])?));
        Ok(rules)
    };
    let words = |e: seccompiler::BackendError| e.to_string();
    let mut conditional = conditional().map_err(words)?;
    conditional.extend(match device {
        Device::Cpu => on_cpu().map_err(words)?,
        Device::Cuda => on_gpu().map_err(words)?,
    });
    let mut rules: Rules = DENIED.iter().chain(DENIED_HERE).map(|&call| (call, Vec::new())).collect();
    for (call, rule) in conditional {
        rules.entry(call).or_default().extend(rule);
    }
    Ok(rules)
}

/// Refuses system call numbers with bit 30 set: on x86-64 they are the x32 spellings of calls that the other filters name
/// by their usual number.
fn foreign_numbers() -> BpfProgram {
    const X32: u32 = 0x4000_0000;
    let step = |code: u32, jt, jf, k| sock_filter { code: code as u16, jt, jf, k };
    vec![
        // The call's number is the first field of what a filter sees.
        step(BPF_LD | BPF_W | BPF_ABS, 0, 0, 0),
        step(BPF_JMP | BPF_JGE | BPF_K, 0, 1, X32),
        step(BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ERRNO | EPERM as u32),
        step(BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW),
    ]
}
