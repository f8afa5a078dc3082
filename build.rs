//! Builds the C++ shim over libtorch and ties binaries to it; without the feature `evaluator` there is nothing to do.

use std::{
    env,
    path::{Path, PathBuf},
    process::exit,
};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_EVALUATOR").is_none() {
        return;
    }
    let libtorch = libtorch();
    #[cfg(feature = "evaluator")]
    native_shim(&libtorch);
    find_libraries_at_run_time(&libtorch.join("lib"));
}

/// Compiles `native/shim.cpp` against libtorch's headers.
#[cfg(feature = "evaluator")]
fn native_shim(libtorch: &Path) {
    println!("cargo:rerun-if-changed=native/shim.cpp");
    let include = libtorch.join("include");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .warnings(false)
        .include(include.join("torch/csrc/api/include"))
        .include(include)
        .file("native/shim.cpp")
        .compile("gauntlet_native");
    println!("cargo:rustc-link-search=native={}", libtorch.join("lib").display());
    println!("cargo:rustc-link-lib=torch_cpu");
    println!("cargo:rustc-link-lib=c10");
}

/// The folder that `LIBTORCH` names (`.cargo/config.toml` supplies the default), or a message and the end.
fn libtorch() -> PathBuf {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let Some(libtorch) = env::var_os("LIBTORCH").map(PathBuf::from) else {
        fail("LIBTORCH is not set: run cargo inside the checkout, where .cargo/config.toml sets it");
    };
    if !libtorch.join("lib/libtorch_cpu.so").exists() {
        fail(&format!(
            "no libtorch in {}: run `make provision` (or set LIBTORCH to a libtorch 2.11.0), \
             or build without it: `cargo build --no-default-features`",
            libtorch.display()
        ));
    }
    libtorch
}

/// Writes a RUNPATH, which LD_LIBRARY_PATH overrides (an RPATH would override it instead).
fn find_libraries_at_run_time(lib: &Path) {
    for argument in ["--enable-new-dtags", "-rpath", &lib.display().to_string()] {
        println!("cargo:rustc-link-arg=-Xlinker");
        println!("cargo:rustc-link-arg={argument}");
    }
}

fn fail(message: &str) -> ! {
    println!("cargo::error={message}");
    exit(1)
}
