//! `scripts/gpu/check` by itself, on the CPU and tiny: every stage runs, and a difference that is planted is found.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tests::{python, root, skipped};

/// The folder above `release/`, where cargo has put the programs beside this test.
fn target() -> PathBuf {
    let test = std::env::current_exe().expect("this test is a file");
    let release = test.ancestors().nth(2).expect("release/deps/it");
    release.parent().expect("a target folder").to_owned()
}

fn check(python: &str, out: &Path, more: &[&str]) -> (Output, Vec<Value>) {
    let done = Command::new(python)
        .arg(root().join("scripts/gpu/check"))
        .args(["--self-test", "--out"])
        .arg(out)
        .args(more)
        .env("CARGO_TARGET_DIR", target())
        .output()
        .expect("python runs");
    let found = std::fs::read(out.join("check.json")).expect("results are written");
    let found: Value = serde_json::from_slice(&found).expect("results are JSON");
    (done, found["rows"].as_array().expect("rows").clone())
}

/// Stage, statement and verdict of the rows of one verdict.
fn with_verdict<'a>(rows: &'a [Value], verdict: &str) -> Vec<(&'a str, &'a str)> {
    let text = |row: &'a Value, key: &str| row[key].as_str().unwrap_or_default();
    rows.iter().filter(|row| row["verdict"] == verdict).map(|row| (text(row, "stage"), text(row, "what"))).collect()
}

#[test]
fn every_stage_runs_and_a_planted_error_is_found() {
    let Some(python) = python() else {
        skipped("scripts/gpu/check", "there is no Python; run scripts/python-env");
        return;
    };
    if !target().join("release/trainer").is_file() || !target().join("release/pipeline").is_file() {
        skipped("scripts/gpu/check", "the programs are not built; run the tests of the whole workspace");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (done, rows) = check(&python, &folder.path().join("right"), &[]);
    let said = String::from_utf8_lossy(&done.stdout);
    assert_eq!(done.status.code(), Some(0), "{said}\n{}", String::from_utf8_lossy(&done.stderr));
    let stages = |rows: &[Value]| -> Vec<String> {
        let mut stages: Vec<_> = rows.iter().map(|row| row["stage"].as_str().unwrap().to_owned()).collect();
        stages.dedup();
        stages
    };
    assert_eq!(
        stages(&rows),
        [
            "facts",
            "unit-tests",
            "features",
            "gradients",
            "resuming",
            "group",
            "memory",
            "steps",
            "end-to-end",
            "building",
            "peer",
            "floor",
        ],
        "{said}"
    );
    assert!(with_verdict(&rows, "ok").len() > 20, "{said}");
    // What needs CUDA says so and does not pass.
    for stage in ["unit-tests", "memory", "floor"] {
        assert!(with_verdict(&rows, "skipped").iter().any(|(of, _)| *of == stage), "{said}");
    }

    // A matrix of each teacher a hundredth larger, and gradients clipped, on one side.
    let only = ["--plant-error", "--only", "features", "--only", "gradients"];
    let (done, rows) = check(&python, &folder.path().join("wrong"), &only);
    let said = String::from_utf8_lossy(&done.stdout);
    assert_eq!(done.status.code(), Some(1), "{said}");
    let failed = with_verdict(&rows, "FAILED");
    for stage_and_statement in [
        ("features", "clip tokens, f32, cpu against CPU"),
        ("features", "dino tokens, f32, cpu against CPU"),
        ("gradients", "ViT, two teachers, f32: gradients"),
        ("gradients", "MCMAE, f32: gradients"),
    ] {
        assert!(failed.contains(&stage_and_statement), "{said}");
    }
    // The same wrong teacher twice gives the same bytes.
    let right = with_verdict(&rows, "ok");
    assert!(right.contains(&("features", "a second build gives the same bytes")), "{said}");
}
