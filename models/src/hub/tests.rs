#![allow(clippy::disallowed_methods, reason = "tests write throw-away caches")]

use std::fs;

use super::*;

mod local;
#[cfg(feature = "hub")]
mod remote;
#[cfg(feature = "hub")]
mod server;

/// Never asks to stop.
fn go_on(_: Progress<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Puts a snapshot into a cache, files and all, and lets `main` be it.
fn fill(cache: &Path, commit: &str, files: &[(&str, &str)]) {
    let root = cache.join("models--org--name");
    fs::create_dir_all(root.join("refs")).unwrap();
    fs::write(root.join("refs/main"), commit).unwrap();
    let snapshot = root.join("snapshots").join(commit);
    fs::create_dir_all(&snapshot).unwrap();
    for (name, content) in files {
        fs::write(snapshot.join(name), content).unwrap();
    }
}
