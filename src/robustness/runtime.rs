//! libtorch, set up once per process before any tensor exists.

use std::ffi::{CStr, CString, c_char, c_int};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tch::{Cuda, Device};

use crate::protocol::Precision;

unsafe extern "C" {
    fn gauntlet_require_true_float32() -> *const c_char;
    fn gauntlet_require_determinism() -> *const c_char;
    fn gauntlet_fix_torchscript_executor() -> *const c_char;
    fn gauntlet_set_precision(precision: c_int) -> *const c_char;
    fn gauntlet_release_cache() -> *const c_char;
    fn gauntlet_libtorch_version() -> *const c_char;
    fn gauntlet_cpu_capability() -> *const c_char;
    fn gauntlet_libtorch_file() -> *const c_char;
}

/// What this process computes with.
#[derive(Debug, Clone)]
pub struct Runtime {
    /// Usable devices, best first; the CPU is always the last.
    pub devices: Vec<Device>,
    /// e.g. `2.11.0`
    pub libtorch: String,
    /// Widest vector instructions of libtorch's CPU kernels, e.g. `AVX512`.
    pub cpu_capability: String,
    /// Intra-op CPU threads.
    pub threads: u32,
    /// The CUDA half of libtorch, where one was found and loaded.
    pub cuda_library: Option<PathBuf>,
    /// Why a CUDA library that is present could not be loaded.
    pub cuda_problem: Option<String>,
}

/// libtorch refused a setting that verdicts depend on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("libtorch cannot be set up for repeatable float32: {0}")]
pub struct RuntimeError(String);

/// Loads the CUDA half of libtorch if there is one, turns reduced precision and nondeterminism off, and fixes how
/// TorchScript executes. Must run before any other use of libtorch, while the process has one thread; later calls
/// return the first one's result, whatever `threads` they ask for.
pub fn initialise(threads: u32) -> Result<&'static Runtime, RuntimeError> {
    static RUNTIME: OnceLock<Result<Runtime, RuntimeError>> = OnceLock::new();
    RUNTIME.get_or_init(|| first_initialise(threads)).as_ref().map_err(Clone::clone)
}

fn first_initialise(threads: u32) -> Result<Runtime, RuntimeError> {
    // cuBLAS is deterministic only with a fixed workspace, which it reads from here when it starts.
    // SAFETY: both strings are constants; the caller promises that no other thread reads the environment yet.
    unsafe { libc::setenv(c"CUBLAS_WORKSPACE_CONFIG".as_ptr(), c":4096:8".as_ptr(), 0) };
    let (cuda_library, cuda_problem) = load_cuda_library();
    tch::set_num_threads(threads.max(1) as i32);
    // SAFETY: plain calls that return null or a string.
    unsafe {
        check(gauntlet_require_true_float32())?;
        check(gauntlet_require_determinism())?;
        check(gauntlet_fix_torchscript_executor())?;
    }
    let cuda = if Cuda::is_available() { Cuda::device_count() as usize } else { 0 };
    let cuda_problem =
        cuda_problem.or_else(|| if cuda == 0 && cuda_library.is_some() { driver_problem() } else { None });
    // SAFETY: both return strings.
    let (libtorch, cpu_capability) =
        unsafe { (string(gauntlet_libtorch_version()), string(gauntlet_cpu_capability())) };
    Ok(Runtime {
        devices: (0..cuda).map(Device::Cuda).chain([Device::Cpu]).collect(),
        libtorch,
        cpu_capability,
        threads: tch::get_num_threads() as u32,
        cuda_library,
        cuda_problem,
    })
}

/// Runs `body`, forward and backward passes of this thread, in `precision`, and goes back to true float32 however it ends.
///
/// # Panics
/// Where libtorch refuses.
pub fn in_precision<T>(precision: Precision, body: impl FnOnce() -> T) -> T {
    struct Back;
    impl Drop for Back {
        fn drop(&mut self) {
            set_precision(Precision::Float32);
        }
    }
    if precision.is_float32() {
        return body();
    }
    let _back = Back;
    set_precision(precision);
    body()
}

fn set_precision(precision: Precision) {
    let number = match precision {
        Precision::Float32 => 0,
        Precision::Tf32 => 1,
        Precision::Bfloat16 => 2,
    };
    // SAFETY: a plain call that returns null or a string.
    check(unsafe { gauntlet_set_precision(number) }).expect("libtorch changes its precision");
}

/// Gives cached GPU memory back to the driver; nothing to do on a CPU.
pub fn release_cache() -> Result<(), RuntimeError> {
    // SAFETY: a plain call that returns null or a string.
    check(unsafe { gauntlet_release_cache() })
}

/// Opens `libtorch_cuda.so` so that its kernels register themselves before libtorch first asks for them.
fn load_cuda_library() -> (Option<PathBuf>, Option<String>) {
    for path in cuda_library_places() {
        match open_globally(&path) {
            Ok(()) => return (Some(path), None),
            Err(reason) if path.exists() => return (None, Some(reason)),
            Err(_) => {}
        }
    }
    (None, None)
}

/// Beside `libtorch_cpu.so`, in the folder `cuda/lib` that provisioning puts beside libtorch's own, and wherever the dynamic linker looks.
fn cuda_library_places() -> Vec<PathBuf> {
    const NAME: &str = "libtorch_cuda.so";
    // SAFETY: returns null or a string.
    let file = unsafe { gauntlet_libtorch_file() };
    let lib = (!file.is_null()).then(|| PathBuf::from(string(file))).and_then(|file| Some(file.parent()?.to_owned()));
    let beside = lib.iter().map(|lib| lib.join(NAME));
    let sibling = lib.iter().filter_map(|lib| Some(lib.parent()?.parent()?.join("cuda/lib").join(NAME)));
    beside.chain(sibling).chain([PathBuf::from(NAME)]).collect()
}

fn open_globally(path: &Path) -> Result<(), String> {
    let name = CString::new(path.as_os_str().as_encoded_bytes()).map_err(|error| error.to_string())?;
    // SAFETY: `name` is a string; the library's initialisers only register kernels. It is never closed.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    if !handle.is_null() {
        return Ok(());
    }
    Err(linker_error())
}

fn linker_error() -> String {
    // SAFETY: returns null or a string.
    let reason = unsafe { libc::dlerror() };
    if reason.is_null() { "unknown reason".to_owned() } else { string(reason) }
}

/// Why the CUDA driver finds no GPU although libtorch's CUDA half is there.
fn driver_problem() -> Option<String> {
    // SAFETY: a constant name; the driver's library is never closed.
    let driver = unsafe { libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW) };
    if driver.is_null() {
        return Some(linker_error());
    }
    // SAFETY: the driver's documented entry, which takes flags, 0, and returns an error code.
    let code = unsafe {
        let entry = libc::dlsym(driver, c"cuInit".as_ptr());
        if entry.is_null() {
            return Some(linker_error());
        }
        std::mem::transmute::<*mut libc::c_void, extern "C" fn(u32) -> c_int>(entry)(0)
    };
    (code != 0).then(|| format!("the CUDA driver does not start: cuInit returns {code}"))
}

fn check(problem: *const c_char) -> Result<(), RuntimeError> {
    if problem.is_null() { Ok(()) } else { Err(RuntimeError(string(problem))) }
}

/// `text` must be a string.
fn string(text: *const c_char) -> String {
    // SAFETY: all callers pass null-terminated strings that outlive this copy.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
