//! The Ray driver of scripts/cluster, over a Ray of this machine alone.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::support::{World, assert_same_tree, output, slow_teachers, stderr};

/// Process numbers of the Ray workers that run the driver's task.
fn ray_workers(driver: u32) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let name = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        let env = fs::read(entry.path().join("environ")).unwrap_or_default();
        // Ray of other tests, and of other people, has another mark.
        let ours = String::from_utf8_lossy(&env).contains(&format!("MR_MAE_TEST={driver}\0"));
        if ours && name.starts_with("ray::build") {
            found.push(pid);
        }
    }
    found
}

#[test]
fn a_ray_worker_that_is_killed_costs_nothing_but_time() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let python = Command::new(root.join("scripts/python-env")).arg("--if-present").output().unwrap();
    if !python.status.success() {
        println!("skipped: the Python environment is not installed (scripts/python-env installs it)");
        return;
    }
    let python = String::from_utf8(python.stdout).unwrap();
    let world = World::new();
    let small = ["--threads", "1", "--set", "cache.part_samples=2"];
    assert!(output(&world.build_args("whole", &small)).status.success());

    let mark = std::process::id();
    let args = world.build_args("shared", &["--set", "cache.part_samples=2"]);
    let mut driver = Command::new(python.trim());
    driver.arg(root.join("scripts/cluster/ray-driver"));
    driver.args(["--workers", "2", "--cpus", "0.5", "--address", "local", "--pipeline"]).arg(slow_teachers()).arg("--");
    let mut driver = driver
        .args(&args[2..])
        .env("PAUSE_MS", "60")
        .env("MR_MAE_TEST", mark.to_string())
        .env("RAY_USAGE_STATS_ENABLED", "0")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut killed = false;
    while driver.try_wait().unwrap().is_none() {
        let part = world.path("shared/samples/part-00000.commit.json").exists();
        if !killed
            && part
            && let Some(&worker) = ray_workers(mark).first()
        {
            kill_process(Pid::from_raw(worker).unwrap(), Signal::KILL).unwrap();
            killed = true;
        }
        sleep(Duration::from_millis(20));
    }
    let ended = driver.wait_with_output().unwrap();
    assert!(ended.status.success(), "{}", stderr(&ended));
    assert!(killed && stderr(&ended).contains("its Ray worker has died"), "{}", stderr(&ended));
    assert_same_tree(&world.path("shared"), &world.path("whole"));
}
