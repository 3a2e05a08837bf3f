//! Compiles the C++ files of `cpp` against the libtorch that tch is built with.

#![allow(clippy::print_stderr, reason = "a build script reports to the user")]

use std::path::{Path, PathBuf};
use std::{env, process};

fn main() {
    println!("cargo:rerun-if-changed=cpp");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-env-changed=LIBTORCH_CXX11_ABI");
    if env::var_os("CARGO_FEATURE_DOC_ONLY").is_some() {
        return;
    }
    let libtorch = match libtorch() {
        Ok(dir) => dir,
        Err(looked) => {
            eprintln!(
                "torch-ext: no libtorch headers in {}.\nRun scripts/setup once; it links libtorch 2.11.0 as .libtorch. To check \
                 the code without libtorch: cargo ck, cargo lint.",
                looked.display()
            );
            process::exit(1);
        }
    };
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .warnings(false)
        .pic(true)
        .define("_GLIBCXX_USE_CXX11_ABI", env::var("LIBTORCH_CXX11_ABI").unwrap_or_else(|_| "1".into()).as_str())
        .include(libtorch.join("include"))
        .include(libtorch.join("include/torch/csrc/api/include"))
        // libtorch ships c10d's headers and not those of Gloo that they include.
        .include("cpp/stubs")
        .define("USE_DISTRIBUTED", None)
        .define("USE_C10D_GLOO", None)
        .files(["cpp/torch_ext.cpp", "cpp/process_group.cpp", "cpp/grad_buckets.cpp"])
        .compile("torch_ext_cpp");
    // tch links these as well. They are repeated here because the order of -l flags matters for static archives such as ours.
    println!("cargo:rustc-link-search=native={}", libtorch.join("lib").display());
    println!("cargo:rustc-link-lib=dylib=torch_cpu");
    println!("cargo:rustc-link-lib=dylib=c10");
}

/// `$LIBTORCH` (which `.cargo/config.toml` sets), else the link that `scripts/setup` makes. The error is the folder that lacks the headers.
fn libtorch() -> Result<PathBuf, PathBuf> {
    let dir = match env::var_os("LIBTORCH") {
        Some(dir) => PathBuf::from(dir),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../.libtorch"),
    };
    if dir.join("include/ATen/ATen.h").is_file() { Ok(dir) } else { Err(dir) }
}
