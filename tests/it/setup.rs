//! `scripts/setup` links the libtorch that fits: one without CUDA does not stay on a machine with a GPU, and a choice is remembered.

#![allow(clippy::disallowed_methods, reason = "tests write throw-away folders")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

/// What tells a torch of the wanted version, on a disk.
fn torch(folder: &Path, with_cuda: bool) {
    for file in ["lib/libtorch_cpu.so", "include/torch/csrc/api/include/torch/torch.h"] {
        let file = folder.join(file);
        fs::create_dir_all(file.parent().expect("a file in the folder")).expect("a new folder");
        fs::write(file, "").expect("a new file");
    }
    fs::write(folder.join("version.py"), "__version__ = '2.11.0+any'\n").expect("a new file");
    if with_cuda {
        fs::write(folder.join("lib/libtorch_cuda.so"), "").expect("a new file");
    }
}

#[test]
fn setup_takes_the_flavor_that_is_asked_for() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    fs::create_dir_all(at("scripts")).unwrap();
    fs::create_dir_all(at("bin")).unwrap();
    fs::copy(tests::root().join("scripts/setup"), at("scripts/setup")).unwrap();
    // Installs nothing and has no torch of its own, whatever Python this machine has.
    fs::write(at("bin/python3"), "#!/bin/sh\nexit 1\n").unwrap();
    fs::set_permissions(at("bin/python3"), fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", at("bin").display(), std::env::var("PATH").unwrap_or_default());
    let setup = |words: &[&str]| {
        let output = Command::new("bash")
            .arg(at("scripts/setup"))
            .args(words)
            .env("PATH", &path)
            .env("XDG_CACHE_HOME", at("cache"))
            .env_remove("VIRTUAL_ENV")
            .env_remove("CARGO_TARGET_DIR")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), said)
    };
    let link = |with_cuda: bool| {
        let folder = at(if with_cuda { "with" } else { "without" });
        torch(&folder, with_cuda);
        let _ = fs::remove_file(at(".libtorch"));
        symlink(folder, at(".libtorch")).unwrap();
    };

    link(false);
    assert_eq!(setup(&["--cpu"]), (Some(0), String::new()));
    let (code, said) = setup(&["--cuda"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("is not the one for cuda"), "{said}");
    assert!(said.contains("installing torch 2.11.0 (cuda)"), "{said}");
    // The choice holds for whatever calls it later without a word.
    assert_eq!(setup(&[]).0, Some(2));
    link(true);
    assert_eq!(setup(&[]), (Some(0), String::new()));
    let (code, said) = setup(&["--cpu"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("installing torch 2.11.0 (cpu)"), "{said}");
    assert!(said.contains("scripts/setup --auto forgets"), "{said}");
    // Forgotten, what is there will do.
    assert_eq!(setup(&["--auto"]), (Some(0), String::new()));
    assert_eq!(setup(&[]), (Some(0), String::new()));
    let (code, said) = setup(&["--cpu", "--cuda"]);
    assert!(code == Some(2) && said.contains("one option at most"), "{said}");
    let (code, said) = setup(&["--gpu"]);
    assert!(code == Some(2) && said.contains("no option --gpu"), "{said}");
}
