//! A build that is killed anywhere and run again writes the bytes of one that was not.

use std::path::Path;
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use images::rng::{Purpose, Rng};
use rustix::process::{Pid, Signal, kill_process};

use super::support::{World, assert_same_tree, output, program, stderr, tree};

/// A build that makes no file for so long hangs. Only then does this matter.
const PATIENCE: Duration = Duration::from_secs(600);

const KILLS: u64 = 20;

/// A build may be over before a test that waits for its turn sees it, or sends it a signal; such a try shows nothing, and there is another.
/// A program that always got through so fast would need none of these tests.
const TRIES: u64 = 10;

/// A moment is a number of files in the folder, temporary ones too, and a few milliseconds more: so the kills are spread over the
/// whole build however fast the machine is.
#[test]
fn killed_at_twenty_moments_and_resumed_it_is_the_same_cache() {
    let world = World::new();
    let args = |out: &str| world.build_args(out, &["--threads", "2"]);
    let whole = output(&args("whole"));
    assert!(whole.status.success(), "{}", stderr(&whole));
    let files = tree(&world.path("whole")).len() as u64;

    let (mut killed, mut latest) = (0, files);
    for kill in 0.. {
        assert!(kill < KILLS * TRIES, "only {killed} of {kill} kills came before the end");
        let out = format!("killed-{kill}");
        let folder = world.path(&out);
        let mut rng = Rng::new(1, Purpose::Select, &[kill]);
        let (at_files, millis) = (1 + rng.range(latest), rng.range(8));
        let mut child = program(&args(&out)).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let running = wait_for_files(&mut child, &folder, at_files);
        sleep(Duration::from_millis(millis));
        child.kill().unwrap();
        child.wait().unwrap();
        if running && count_files(&folder) != files {
            killed += 1;
        } else {
            // This machine is too busy for so late a moment.
            latest = (at_files * 3 / 4).max(1);
        }

        let resumed = output(&args(&out));
        assert!(resumed.status.success(), "kill {kill} at {at_files} files: {}", stderr(&resumed));
        assert_same_tree(&folder, &world.path("whole"));
        if killed == KILLS {
            break;
        }
    }
}

/// One build, killed again and again until it gets through.
#[test]
fn killed_over_and_over_it_still_ends() {
    let world = World::new();
    let args = |out: &str| world.build_args(out, &["--threads", "2", "--set", "cache.part_samples=2"]);
    assert!(output(&args("whole")).status.success());
    let kills_of = |out: &str| {
        let folder = world.path(out);
        let mut kills = 0;
        loop {
            let before = count_files(&folder);
            let mut child = program(&args(out)).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            // Each run gets a few files further.
            let running = wait_for_files(&mut child, &folder, before + 6);
            child.kill().unwrap();
            let ended = child.wait().unwrap();
            if !running && ended.success() {
                break;
            }
            kills += 1;
        }
        assert_same_tree(&folder, &world.path("whole"));
        kills
    };
    let enough = (0..TRIES).any(|i| kills_of(&format!("killed-{i}")) >= 3);
    assert!(enough, "{TRIES} builds got through after two kills at most");
}

#[test]
fn ctrl_c_ends_it_with_130_leaves_nothing_half_written_and_says_how_to_go_on() {
    let world = World::new();
    let args = |out: &str| world.build_args(out, &["--threads", "1", "--set", "cache.part_samples=1"]);
    assert!(output(&args("whole")).status.success());
    for i in 0.. {
        assert!(i < TRIES, "{i} builds were over too soon for this test");
        let out = format!("stopped-{i}");
        let folder = world.path(&out);
        let mut child = program(&args(&out)).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        if wait_for_files(&mut child, &folder, 12) {
            let pid = Pid::from_raw(child.id().try_into().unwrap()).unwrap();
            kill_process(pid, Signal::INT).unwrap();
        }
        let stopped = child.wait_with_output().unwrap();
        if stopped.status.success() {
            continue;
        }
        assert_eq!(stopped.status.code(), Some(130), "{}", stderr(&stopped));
        assert!(stderr(&stopped).contains("run the same command"), "{}", stderr(&stopped));
        let hidden: Vec<_> =
            tree(&folder).into_keys().filter(|name| name.contains("/.") || name.starts_with('.')).collect();
        assert_eq!(hidden, [""; 0]);
        assert!(output(&args(&out)).status.success());
        assert_same_tree(&folder, &world.path("whole"));
        break;
    }
}

/// Waits until the folder has that many files; false when the program ended before.
fn wait_for_files(child: &mut Child, folder: &Path, files: u64) -> bool {
    let began = Instant::now();
    while count_files(folder) < files {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        assert!(began.elapsed() < PATIENCE, "the build makes no progress");
        sleep(Duration::from_micros(200));
    }
    true
}

/// Files below a folder that is being written: what disappears meanwhile does not count.
fn count_files(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return 0;
    };
    let paths = entries.filter_map(Result::ok).map(|entry| entry.path());
    paths.map(|path| if path.is_dir() { count_files(&path) } else { 1 }).sum()
}
