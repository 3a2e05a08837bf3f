//! Repository rules as tests: a rule that nothing checks rots.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use clap::Parser;
use hub::HubSettings;
use tests::root;

pub(crate) const MEMBERS: [&str; 10] =
    ["storage", "schemas", "images", "hub", "program", "torch-ext", "models", "pipeline", "trainer", "tests"];

pub(crate) fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Names in one `[section]` of a manifest, in the plain form that this workspace writes.
fn section(manifest: &str, name: &str) -> BTreeSet<String> {
    let header = format!("[{name}]");
    manifest
        .lines()
        .skip_while(|line| line.trim() != header)
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split(['.', '=']).next())
        .map(|key| key.trim().to_owned())
        .filter(|key| !key.is_empty() && !key.starts_with('#'))
        .collect()
}

pub(crate) fn files(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else {
            continue;
        };
        for path in entries.map(|e| e.expect("readable entry").path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Invariant 1: the rooms may use only what ARCHITECTURE.md lists.
#[test]
fn rooms_use_only_what_they_may() {
    let allowed: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("storage", &[][..]),
        ("schemas", &["storage"]),
        ("images", &["storage", "schemas"]),
        ("hub", &["schemas"]),
        ("program", &["storage", "schemas", "hub"]),
        ("torch-ext", &["tch", "torch-sys"]),
        ("models", &["hub", "tch", "torch-ext"]),
        ("pipeline", &["storage", "schemas", "images", "hub", "program", "models", "torch-ext", "tch"]),
        ("trainer", &["storage", "schemas", "images", "hub", "program", "models", "torch-ext", "tch"]),
    ]);
    let watched: BTreeSet<String> =
        MEMBERS.iter().map(|m| (*m).to_owned()).chain(["tch".into(), "torch-sys".into()]).collect();
    for (room, may_use) in allowed {
        let manifest = read(root().join(room).join("Cargo.toml"));
        let used: Vec<_> = section(&manifest, "dependencies").intersection(&watched).cloned().collect();
        for name in used {
            assert!(
                may_use.contains(&name.as_str()),
                "{room}/Cargo.toml depends on {name}, which ARCHITECTURE.md forbids"
            );
        }
    }
}

#[test]
fn every_member_opts_into_the_workspace_lints() {
    for member in MEMBERS {
        let manifest = read(root().join(member).join("Cargo.toml"));
        let opted_in = section(&manifest, "lints").contains("workspace");
        assert!(opted_in || member == "torch-ext", "{member}/Cargo.toml: [lints] workspace = true is missing");
    }
}

/// All unsafe code of the workspace lives in torch-ext; the lint can be switched off by an attribute, so the text is searched too.
#[test]
fn unsafe_code_lives_in_torch_ext_alone() {
    for member in MEMBERS.iter().filter(|m| **m != "torch-ext") {
        for path in files(&root().join(member), "rs") {
            let text = read(&path);
            for (number, line) in text.lines().enumerate() {
                let code = line.split("//").next().unwrap_or_default();
                let found = ["unsafe {", "unsafe fn", "unsafe impl", "allow(unsafe_code)"]
                    .iter()
                    .any(|word| code.contains(word) && !code.contains(&format!("\"{word}")));
                assert!(!found || path.ends_with("repo.rs"), "{}:{}: unsafe code", path.display(), number + 1);
            }
        }
    }
}

/// Invariant 5: only the binaries print, exit and read the environment. Build scripts are programs too.
#[test]
fn libraries_leave_the_process_to_the_binaries() {
    for member in ["storage", "schemas", "images", "hub", "program", "models", "pipeline", "trainer"] {
        for path in files(&root().join(member).join("src"), "rs") {
            let name = path.file_name().unwrap_or_default();
            if name == "main.rs" || path.components().any(|c| c.as_os_str() == "tests") || name == "tests.rs" {
                continue;
            }
            let text = read(&path);
            // A child's stdout is not the process's.
            let text = text.replace(".stdout(", "");
            for word in ["env::var(", "env::var_os(", "process::exit(", "stdout("] {
                assert!(!text.contains(word), "{}: {word}", path.display());
            }
        }
    }
}

/// What a process has once, as tests would set it or read it: libtorch's threads, generator and memory, the environment, the current folder,
/// the panic hook, signals, limits.
const OF_THE_PROCESS: [&str; 16] = [
    "set_num_threads(",
    "manual_seed(",
    "Tensor::rand",
    "peak_rss(",
    "memory(Device::Cpu)",
    "/proc/self",
    "set_var(",
    "remove_var(",
    "set_current_dir(",
    "set_hook(",
    "take_hook(",
    "keep_quiet_about_memory(",
    "catch_signals(",
    "setrlimit(",
    "umask(",
    "process::exit(",
];

/// What makes a test depend on how fast the machine is, and names that two tests may both take.
const OF_THE_MACHINE: [&str; 5] = ["sleep(", ".elapsed(", "recv_timeout(", "env::temp_dir(", "\"/tmp"];

/// Where a test waits: to spread kills over a program's run, and to give up a program that hangs.
const MAY_WAIT: [&str; 6] = [
    "pipeline/tests/cli/buckets.rs",
    "pipeline/tests/cli/kill.rs",
    "pipeline/tests/cli/ray.rs",
    "pipeline/tests/cli/workers.rs",
    "trainer/tests/cli.rs",
    "trainer/tests/many.rs",
];

/// Test code by file, relative to the root: integration tests, unit tests in files of their own and those at the end of a module's file.
fn test_code() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for path in MEMBERS.iter().flat_map(|member| files(&root().join(member), "rs")) {
        let relative = path.strip_prefix(root()).expect("below the root");
        let inside = |name: &str| relative.components().any(|c| c.as_os_str() == name);
        let name = relative.file_name().unwrap_or_default();
        // This file has the words that it looks for.
        if inside("examples") || name == "repo.rs" {
            continue;
        }
        let text = read(&path);
        let start = match inside("tests") || name == "tests.rs" || name == "testing.rs" {
            true => Some(0),
            false => text.find("#[cfg(test)]\nmod tests {"),
        };
        if let Some(start) = start {
            let name = relative.display().to_string();
            found.insert(name, text[start..].to_owned());
        }
    }
    assert!(found.len() > 100, "{} files with tests", found.len());
    found
}

/// Tests of one program run beside each other. What belongs to the whole process is used by a test that is alone in a program of its own:
/// the only one of its `CRATE/tests/NAME.rs`, in this crate `alone/NAME.rs`. And no test depends on time.
#[test]
fn tests_do_not_meet_in_what_their_process_has_once() {
    let is_program = |name: &str| match name.split('/').collect::<Vec<_>>()[..] {
        ["tests", folder, _] => folder == "alone",
        [_, folder, _] => folder == "tests",
        _ => false,
    };
    for (name, text) in test_code() {
        let tests = text.matches("#[test]\n").count();
        let alone = is_program(&name) && tests == 1 && !text.contains("\nmod ");
        assert!(alone || !name.starts_with("tests/alone/"), "{name} has {tests} tests");
        let code: Vec<&str> = text.lines().filter_map(|line| line.split("//").next()).collect();
        let uses = |word: &&&str| code.iter().any(|line| line.contains(**word));
        let found = OF_THE_PROCESS.iter().find(uses).filter(|_| !alone);
        assert!(
            found.is_none(),
            "{name}: {found:?} belongs to the whole process; CONTRIBUTING.md says where such a test goes"
        );
        let waits = MAY_WAIT.contains(&&name[..]);
        let found = OF_THE_MACHINE.iter().find(uses).filter(|_| !waits);
        assert!(found.is_none(), "{name}: {found:?}: tests do not depend on time, nor share names");
    }
}

#[test]
fn recipes_carry_a_header_and_parse() {
    for room in ["pipeline", "trainer"] {
        let recipes = files(&root().join(room).join("recipes"), "toml");
        assert!(room != "trainer" || !recipes.is_empty(), "{room}/recipes holds no recipe");
        for path in recipes {
            let text = read(&path);
            assert!(
                text.starts_with('#'),
                "{}: a recipe starts with its command, cost and expected result",
                path.display()
            );
            if room == "trainer" {
                let command = ["trainer", "config", "--recipe", path.to_str().expect("a path in UTF-8")];
                let cli = trainer::cli::Cli::try_parse_from(command).expect("a command line");
                let parsed = trainer::run(&cli, &HubSettings::default(), None, &mut Vec::new());
                parsed.map(drop).unwrap_or_else(|e| panic!("{}: {e:#}", path.display()));
            }
        }
    }
}

/// Every folder of golden files says which script made it, with which versions, and why its tolerance is what it is.
#[test]
fn golden_files_say_where_they_come_from() {
    let golden = root().join("tests/golden");
    for entry in std::fs::read_dir(&golden).expect("tests/golden") {
        let dir = entry.expect("readable entry").path();
        let readme = read(dir.join("README.md"));
        let name = dir.file_name().expect("named").to_string_lossy().into_owned();
        let makers = [format!("scripts/golden/{name}.py"), format!("tests/alone/{name}.rs")];
        let named = makers.iter().any(|maker| root().join(maker).exists() && readme.contains(maker.as_str()));
        assert!(named, "{}: its README names no script that makes it", dir.display());
        assert!(
            readme.to_lowercase().contains("tolerance") || readme.contains("bit for bit"),
            "{name}: no tolerance stated"
        );
    }
}

#[test]
fn architecture_fits_in_one_sitting() {
    let lines = read(root().join("ARCHITECTURE.md")).lines().count();
    assert!(lines <= 200, "ARCHITECTURE.md has {lines} lines; it is meant to be read whole");
}
