//! Builds the C++ shim over libtorch.

fn main() {
    #[cfg(feature = "evaluator")]
    native_shim();
}

/// Compiles `native/shim.cpp` against the headers of `$LIBTORCH`.
#[cfg(feature = "evaluator")]
fn native_shim() {
    use std::path::PathBuf;

    println!("cargo:rerun-if-changed=native/shim.cpp");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let libtorch = PathBuf::from(std::env::var_os("LIBTORCH").expect("LIBTORCH names the libtorch directory"));
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
