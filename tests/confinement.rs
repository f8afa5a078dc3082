//! Native code inside the sandbox: what a model that has taken over its process could try.
//!
//! This binary runs itself as the probe. The parent makes everything reachable by ordinary permissions (files open to all,
//! a listener on loopback), and looks afterwards whether anything happened.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs, io};

use gauntlet::evaluator::confine;
use gauntlet::protocol::{Device, Enforced, MemoryBound, Sandbox};
use gauntlet::wire::Confinement;
use libc::{c_int, c_long, c_void};

const MEMORY: u64 = 1 << 30;
const NOBODY: u32 = 65534;

fn main() {
    let arguments: Vec<String> = env::args().collect();
    if let [_, word, folder, address, device] = &arguments[..]
        && word == "probe"
    {
        let device = if device == "cuda" { Device::Cuda } else { Device::Cpu };
        return probe(Path::new(folder), address, device);
    }
    native_code_in_the_sandbox_reaches_nothing(None, Device::Cpu);
    native_code_in_the_sandbox_reaches_nothing(None, Device::Cuda);
    if nix::unistd::geteuid().is_root() {
        native_code_in_the_sandbox_reaches_nothing(Some(NOBODY), Device::Cpu);
    }
    println!("native_code_in_the_sandbox_reaches_nothing ... ok");
}

/// `account`: the one that the probe starts with. The rules for a GPU are the same whether there is one or not.
fn native_code_in_the_sandbox_reaches_nothing(account: Option<u32>, device: Device) {
    let folder = tempfile::tempdir().unwrap();
    let open_to_all = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    open_to_all(folder.path(), 0o777);
    for name in ["secret", "precious"] {
        fs::write(folder.path().join(name), "as it was").unwrap();
        open_to_all(&folder.path().join(name), 0o666);
    }
    symlink("/etc/passwd", folder.path().join("link")).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let unix = UnixListener::bind(folder.path().join("socket")).unwrap();
    unix.set_nonblocking(true).unwrap();
    open_to_all(&folder.path().join("socket"), 0o777);
    let before = names(folder.path());
    let room = tempfile::tempdir().unwrap();
    open_to_all(room.path(), 0o755);
    let binary = move_in(room.path());

    let mut command = Command::new(&binary);
    command.arg("probe").arg(folder.path()).arg(listener.local_addr().unwrap().to_string());
    command.arg(if device == Device::Cuda { "cuda" } else { "cpu" });
    command.env_clear().env("LD_LIBRARY_PATH", room.path()).stderr(Stdio::piped());
    if let Some(account) = account {
        command.uid(account).gid(account);
    }
    let output = command.output().unwrap();
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}\n{errors}");
    let (report, sandbox) = text.trim().split_once('\n').unwrap();
    let report: BTreeMap<String, Option<i32>> = serde_json::from_str(report).unwrap();
    let sandbox: Sandbox = serde_json::from_str(sandbox).unwrap();
    let Sandbox::Enforced(Enforced { own_account, memory, .. }) = sandbox else { panic!("{sandbox:?}") };
    assert_eq!(own_account, account.is_none() && nix::unistd::geteuid().is_root());
    assert_eq!(memory, if device == Device::Cuda { MemoryBound::Inherited } else { MemoryBound::Rlimit });

    for (attempt, outcome) in &report {
        if let Some(needed) = attempt.strip_prefix("needs ") {
            assert_eq!(*outcome, None, "libtorch needs {needed}");
        } else {
            let refused = [libc::EPERM, libc::EACCES, libc::ENOSYS, libc::ENOMEM];
            assert!(outcome.is_some_and(|errno| refused.contains(&errno)), "{attempt}: {outcome:?}");
        }
    }
    assert!(report.len() > 50, "{} attempts", report.len());
    assert_eq!(names(folder.path()), before);
    for name in ["secret", "precious"] {
        assert_eq!(fs::read_to_string(folder.path().join(name)).unwrap(), "as it was");
        assert_eq!(fs::metadata(folder.path().join(name)).unwrap().permissions().mode() & 0o777, 0o666);
    }
    assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    assert_eq!(unix.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

/// Puts this binary and libtorch where every account can start them; returns the binary.
fn move_in(room: &Path) -> PathBuf {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let torch = maps.lines().find(|line| line.ends_with("/libtorch_cpu.so")).unwrap();
    let torch = Path::new(&torch[torch.find('/').unwrap()..]).parent().unwrap();
    let libraries = fs::read_dir(torch).unwrap().map(|entry| entry.unwrap().path());
    for file in libraries.filter(|path| path.is_file()).chain([env::current_exe().unwrap()]) {
        let here = room.join(file.file_name().unwrap());
        if fs::hard_link(&file, &here).is_err() {
            fs::copy(&file, &here).unwrap();
        }
    }
    room.join(env::current_exe().unwrap().file_name().unwrap())
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Enters the sandbox, tries everything, and prints by attempt the error number it met, `null` if it succeeded.
fn probe(folder: &Path, address: &str, device: Device) {
    let confinement = Confinement { memory_bytes: Some(MEMORY) };
    let (uid, parent) = (nix::unistd::geteuid(), std::os::unix::process::parent_id() as c_int);
    let own_file = folder.join(format!("own-{uid}"));
    let sandbox = confine::enter(&confinement, device).unwrap();
    let mut report = BTreeMap::new();
    let mut attempt = |name: &str, outcome: io::Result<()>| {
        let errno = outcome.err().map(|e| e.raw_os_error().unwrap_or(-1));
        assert!(report.insert(name.to_owned(), errno).is_none(), "{name} twice");
    };
    let path = |name: &str| folder.join(name);
    let read = |path: &Path| fs::read(path).map(drop);

    attempt("read /etc/passwd", read(Path::new("/etc/passwd")));
    attempt("read a file open to all", read(&path("secret")));
    attempt("follow a link out", read(&path("link")));
    attempt("go round by /proc/self/root", read(Path::new("/proc/self/root/etc/passwd")));
    attempt("go round by /proc/self/cwd", read(Path::new("/proc/self/cwd/../../../etc/passwd")));
    attempt("read the parent's environment", read(Path::new(&format!("/proc/{parent}/environ"))));
    attempt("read the parent's memory", read(Path::new(&format!("/proc/{parent}/mem"))));
    attempt("read the parent's command line", read(Path::new(&format!("/proc/{parent}/cmdline"))));
    attempt("list processes", fs::read_dir("/proc").map(drop));
    attempt("list a folder", fs::read_dir(folder).map(drop));
    attempt("make a file", fs::write(&own_file, "x"));
    attempt("make a file in /tmp", fs::write("/tmp/gauntlet-probe", "x"));
    attempt("make a file in /dev/shm", fs::write("/dev/shm/gauntlet-probe", "x"));
    attempt("overwrite a file", fs::write(path("precious"), "x"));
    attempt("append to a file", fs::OpenOptions::new().append(true).open(path("precious")).map(drop));
    attempt("overwrite its own binary", fs::OpenOptions::new().write(true).open("/proc/self/exe").map(drop));
    attempt("delete a file", fs::remove_file(path("precious")));
    attempt("rename a file", fs::rename(path("precious"), path("renamed")));
    attempt("link a file", fs::hard_link(path("precious"), path("hard")));
    attempt("make a link", symlink("/etc/passwd", path("soft")));
    attempt("make a folder", fs::create_dir(path("folder")));
    attempt("change a mode", fs::set_permissions(path("precious"), fs::Permissions::from_mode(0o600)));
    let precious = CString::new(path("precious").to_str().unwrap()).unwrap();
    let precious = precious.as_ptr();
    let at = libc::AT_FDCWD as c_long;
    attempt("truncate a file", call(libc::SYS_truncate, [precious as c_long, 0, 0, 0]));
    let truncating = (libc::O_RDONLY | libc::O_TRUNC) as c_long;
    attempt("truncate by opening", call(libc::SYS_openat, [at, precious as c_long, truncating, 0]));
    attempt("change times", call(libc::SYS_utimensat, [at, precious as c_long, 0, 0]));
    attempt("change the owner", call(libc::SYS_fchownat, [at, precious as c_long, 0, 0]));
    attempt("open through openat2", call(libc::SYS_openat2, [at, precious as c_long, 0, 0]));

    attempt("connect by TCP", TcpStream::connect(address).map(drop));
    attempt("listen by TCP", TcpListener::bind("127.0.0.1:0").map(drop));
    attempt("open a UDP socket", UdpSocket::bind("127.0.0.1:0").map(drop));
    attempt("connect to a Unix socket", UnixStream::connect(path("socket")).map(drop));
    let netlink = [libc::AF_NETLINK as c_long, libc::SOCK_RAW as c_long, 0, 0];
    attempt("open a netlink socket", call(libc::SYS_socket, netlink));

    #[cfg(target_arch = "x86_64")]
    {
        attempt("fork", call(libc::SYS_fork, [0; 4]));
        attempt("vfork", call(libc::SYS_vfork, [0; 4]));
        attempt("use the x32 spelling of a call", call(0x4000_0000 | libc::SYS_socket, [1, 1, 0, 0]));
        attempt("change the descriptor table", call(libc::SYS_modify_ldt, [0; 4]));
    }
    attempt("fork by clone", call(libc::SYS_clone, [libc::SIGCHLD as c_long, 0, 0, 0]));
    attempt("fork by clone3", call(libc::SYS_clone3, [0; 4]));
    let program = c"/bin/true".as_ptr() as c_long;
    attempt("run a program", call(libc::SYS_execve, [program, 0, 0, 0]));
    attempt("run a program by descriptor", call(libc::SYS_execveat, [at, program, 0, 0]));
    attempt("start a command", Command::new("/bin/true").status().map(drop));
    attempt("signal the parent", call(libc::SYS_kill, [parent.into(), 0, 0, 0]));
    attempt("signal everybody", call(libc::SYS_kill, [-1, 0, 0, 0]));
    attempt("signal a thread of the parent", call(libc::SYS_tgkill, [parent.into(), parent.into(), 0, 0]));
    attempt("queue a signal", call(libc::SYS_rt_sigqueueinfo, [parent.into(), 0, 0, 0]));
    attempt("join another group", call(libc::SYS_setpgid, [0, parent.into(), 0, 0]));
    attempt("outlive the parent", call(libc::SYS_prctl, [libc::PR_SET_PDEATHSIG.into(), 0, 0, 0]));
    attempt("pair datagram sockets", call(libc::SYS_socketpair, [libc::AF_UNIX.into(), libc::SOCK_DGRAM.into(), 0, 0]));
    attempt("trace the parent", call(libc::SYS_ptrace, [libc::PTRACE_ATTACH.into(), parent.into(), 0, 0]));
    attempt("read another memory", call(libc::SYS_process_vm_readv, [parent.into(), 0, 0, 0]));
    attempt("take hold of the parent", call(libc::SYS_pidfd_open, [parent.into(), 0, 0, 0]));
    attempt("limit the parent", call(libc::SYS_prlimit64, [parent.into(), libc::RLIMIT_CPU as c_long, 0, 0]));

    attempt("become root", call(libc::SYS_setuid, [0; 4]));
    match device {
        Device::Cpu => {
            attempt("lift a limit", lift_limit());
            attempt("take all memory", map(2 * MEMORY as usize, libc::PROT_READ | libc::PROT_WRITE));
            attempt("make a packet socket", packet_socket().map(drop));
            attempt("name its thread by a file", fs::write(own_name(), "x"));
        }
        // What `cuInit` does.
        Device::Cuda => {
            let socket = packet_socket();
            let descriptor = socket.as_ref().map_or(-1, |socket| c_long::from(socket.as_raw_fd()));
            attempt("needs a packet socket", socket.as_ref().map(drop).map_err(|e| io::Error::from(e.kind())));
            // Two bytes of family and a name that begins with 0 and is no file.
            let name = [libc::AF_UNIX as u8, 0, 0, b'g', b'0' + (parent % 10) as u8];
            let bound = [descriptor, name.as_ptr() as c_long, name.len() as c_long, 0];
            attempt("needs a name that is no file", call(libc::SYS_bind, bound));
            attempt("needs to listen on it", call(libc::SYS_listen, [descriptor, 1, 0, 0]));
            attempt("call somebody with it", call(libc::SYS_connect, bound));
            attempt("needs to name its thread by a file", fs::write(own_name(), "x"));
        }
    }
    attempt("leave a namespace", call(libc::SYS_unshare, [libc::CLONE_NEWUSER.into(), 0, 0, 0]));
    attempt("mount", call(libc::SYS_mount, [0; 4]));
    attempt("change the root", call(libc::SYS_chroot, [precious as c_long, 0, 0, 0]));
    attempt("load a BPF program", call(libc::SYS_bpf, [0; 4]));
    attempt("use keys", call(libc::SYS_keyctl, [0; 4]));
    attempt("use io_uring", call(libc::SYS_io_uring_setup, [8, 0, 0, 0]));
    attempt("count performance", call(libc::SYS_perf_event_open, [0; 4]));
    attempt("handle page faults", call(libc::SYS_userfaultfd, [0; 4]));
    attempt("share memory by key", call(libc::SYS_shmget, [0, 4096, 0o1600, 0]));

    attempt("needs its status", read(Path::new("/proc/self/status")));
    attempt("needs the processors", read(Path::new("/proc/cpuinfo")));
    attempt("needs randomness", fs::File::open("/dev/urandom").map(drop));
    attempt("needs its libraries", read(Path::new(&libc_path())));
    attempt("needs a thread", thread());
    attempt("needs memory that can run", map(1 << 20, libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC));
    attempt("needs memory", map(256 << 20, libc::PROT_READ | libc::PROT_WRITE));
    println!("{}\n{}", serde_json::to_string(&report).unwrap(), serde_json::to_string(&sandbox).unwrap());
}

fn call(number: c_long, [a, b, c, d]: [c_long; 4]) -> io::Result<()> {
    // SAFETY: every call here is expected to be refused before it looks at its arguments.
    let result = unsafe { libc::syscall(number, a, b, c, d) };
    if result == 0 && [libc::SYS_clone, libc::SYS_clone3].contains(&number) {
        // A child that should not exist must not write a report of its own.
        std::process::exit(0);
    }
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn map(bytes: usize, protection: c_int) -> io::Result<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a fresh anonymous mapping.
    let memory = unsafe { libc::mmap(std::ptr::null_mut::<c_void>(), bytes, protection, flags, -1, 0) };
    if memory == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn packet_socket() -> io::Result<OwnedFd> {
    // SAFETY: a plain call; a descriptor that it returns is new.
    unsafe {
        let descriptor = libc::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0);
        if descriptor < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(descriptor)) }
    }
}

fn own_name() -> String {
    format!("/proc/self/task/{}/comm", nix::unistd::gettid())
}

fn lift_limit() -> io::Result<()> {
    let resource = nix::sys::resource::Resource::RLIMIT_DATA;
    nix::sys::resource::setrlimit(resource, u64::MAX, u64::MAX).map_err(io::Error::from)
}

fn thread() -> io::Result<()> {
    let handle = std::thread::Builder::new().spawn(|| 7)?;
    handle.join().map(drop).map_err(|_| io::Error::other("it panicked"))
}

fn libc_path() -> String {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let line = maps.lines().find(|line| line.contains("/libc.so")).unwrap();
    line[line.find('/').unwrap()..].to_owned()
}
