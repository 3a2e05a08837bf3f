//! Several processes that build one cache: each part is built once, by any of them, and the bytes are those of one process.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::Duration;

use images::rng::{Purpose, Rng};
use rustix::process::{Pid, Signal, kill_process};

use super::support::{World, assert_same_tree, output, program, run, slow_program, stderr, tree};

/// Small parts, so that several workers have something to divide.
const PARTS: [&str; 4] = ["--threads", "1", "--set", "cache.part_samples=2"];

fn start(world: &World, out: &str, more: &[&str]) -> Child {
    let args = world.build_args(out, &[&PARTS[..], more].concat());
    program(&args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn signal(child: &Child, signal: Signal) {
    // It may have ended already.
    let _ = kill_process(Pid::from_raw(child.id().try_into().unwrap()).unwrap(), signal);
}

/// The saved batches in a folder, without those that are being written.
fn saved_in(folder: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
    paths.filter(|path| !path.file_name().unwrap().to_string_lossy().starts_with('.')).collect()
}

#[test]
fn three_workers_finish_a_cache_together() {
    let world = World::new();
    assert!(output(&world.build_args("whole", &PARTS)).status.success());
    let workers: Vec<Child> = (0..3).map(|_| start(&world, "shared", &[])).collect();
    for worker in workers {
        let ended = worker.wait_with_output().unwrap();
        assert!(ended.status.success(), "{}", stderr(&ended));
    }
    assert_same_tree(&world.path("shared"), &world.path("whole"));
}

/// When a worker is killed at any moment, the others take its part over, or the next command does.
#[test]
fn workers_that_are_killed_leave_no_part_undone() {
    let world = World::new();
    assert!(output(&world.build_args("whole", &PARTS)).status.success());
    for kill in 0..10u64 {
        let out = format!("shared-{kill}");
        let mut workers: Vec<Child> = (0..3).map(|_| start(&world, &out, &[])).collect();
        let mut rng = Rng::new(2, Purpose::Select, &[kill]);
        sleep(Duration::from_millis(rng.range(400)));
        // Two of three.
        for worker in &mut workers[1..] {
            worker.kill().unwrap();
        }
        for (i, worker) in workers.into_iter().enumerate() {
            let ended = worker.wait_with_output().unwrap();
            assert!(i > 0 || ended.status.success(), "kill {kill}: {}", stderr(&ended));
        }
        // A worker that was killed when the others had ended leaves its files to the next command.
        assert!(output(&world.build_args(&out, &PARTS)).status.success());
        assert_same_tree(&world.path(&out), &world.path("whole"));
    }
}

#[test]
fn shares_of_all_workers_are_the_whole() {
    let world = World::new();
    assert!(output(&world.build_args("whole", &PARTS)).status.success());
    for index in [2, 0, 1] {
        let worker = format!("{index}/3");
        let (status, _) = run(world.build_args("shared", &[&PARTS[..], &["--worker", &worker]].concat())).unwrap();
        assert_eq!(status, pipeline::ExitStatus::Fine);
        let complete = tree(&world.path("shared")).len() == tree(&world.path("whole")).len();
        assert_eq!(complete, index == 1);
    }
    assert_same_tree(&world.path("shared"), &world.path("whole"));
    let refused = output(&world.build_args("shared", &["--worker", "3/3"]));
    assert_eq!(refused.status.code(), Some(2));
    assert!(stderr(&refused).contains("numbered from 0"), "{}", stderr(&refused));
}

/// A scheduler's variables divide the parts without a flag, and a flag has the last word.
#[test]
fn the_environment_states_the_share() {
    let world = World::new();
    let args = world.build_args("cache", &PARTS);
    let env = [("SLURM_ARRAY_TASK_ID", "2"), ("SLURM_ARRAY_TASK_COUNT", "2"), ("SLURM_ARRAY_TASK_MIN", "1")];
    let half = program(&args).envs(env).output().unwrap();
    assert!(half.status.success(), "{}", stderr(&half));
    assert!(stderr(&half).contains("worker 1/2 by SLURM_ARRAY_TASK_ID"), "{}", stderr(&half));
    let parts = |names: &BTreeSet<String>| names.iter().filter(|name| name.ends_with("commit.json")).count();
    let names = |out: &str| tree(&world.path(out)).into_keys().collect::<BTreeSet<_>>();
    // 12 parts of three records.
    assert_eq!(parts(&names("cache")), 3 * 6);
    let all = program(&[&args[..], &["--worker".to_owned(), "leases".to_owned()]].concat()).envs(env).output().unwrap();
    assert!(all.status.success(), "{}", stderr(&all));
    assert_eq!(parts(&names("cache")), 3 * 12);
}

/// A worker that a scheduler stops gives its part back at once and says by its status what stopped it.
#[test]
fn sigterm_gives_the_part_back_and_ends_with_143() {
    let world = World::new();
    let args = world.build_args("cache", &["--threads", "1"]);
    let child = slow_program(&args, 200).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let lease = world.path("cache/work/leases/part-00000");
    while !lease.exists() {
        sleep(Duration::from_millis(1));
    }
    signal(&child, Signal::TERM);
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(143), "{}", stderr(&ended));
    assert!(!lease.exists() && fs::read_dir(world.path("cache/work/workers")).is_err(), "{}", stderr(&ended));
}

/// A worker that is always killed before it has finished a part: what it has computed is kept, and the build ends.
#[test]
fn killed_within_every_part_it_still_ends() {
    let world = World::new();
    let args = |out: &str| world.build_args(out, &["--threads", "1", "--set", "cache.part_samples=30"]);
    assert!(output(&args("whole")).status.success());
    // Ten batches of two images of two views: 0.8 s each.
    let start = || slow_program(&args("killed"), 100).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let batches = world.path("killed/work/batches/part-00000");
    let saved = || saved_in(&batches).len();
    let mut kills = 0;
    loop {
        let before = saved();
        let mut child = start();
        let ended = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break Some(status);
            }
            if saved() > before + 2 {
                break None;
            }
            sleep(Duration::from_millis(5));
        };
        match ended {
            Some(status) => {
                assert!(status.success());
                break;
            }
            None => {
                kills += 1;
                child.kill().unwrap();
                child.wait().unwrap();
            }
        }
    }
    assert!(kills >= 2, "it was through after {kills} kills");
    assert_same_tree(&world.path("killed"), &world.path("whole"));
}

/// A saved batch of other teachers, or a damaged one, is computed again.
#[test]
fn a_saved_batch_that_does_not_fit_is_not_used() {
    let world = World::new();
    let args = |out: &str| world.build_args(out, &["--threads", "1"]);
    assert!(output(&args("whole")).status.success());
    let mut child = slow_program(&args("damaged"), 100).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let batches = world.path("damaged/work/batches/part-00000");
    while saved_in(&batches).len() < 2 {
        sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    for path in saved_in(&batches) {
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, bytes).unwrap();
    }
    assert!(output(&args("damaged")).status.success());
    assert_same_tree(&world.path("damaged"), &world.path("whole"));
}

/// More workers than parts: those without a share have nothing to do and say so; a share is not asked for where a flag has the last word.
#[test]
fn an_empty_share_is_done_and_a_flag_has_the_last_word() {
    let world = World::new();
    let args = |more: &[&str]| world.build_args("cache", more);
    let empty = output(&args(&["--worker", "0/30"]));
    assert!(empty.status.success(), "{}", stderr(&empty));
    let odd = [("RANK", "x"), ("WORLD_SIZE", "8")];
    let refused = program(&args(&[])).envs(odd).output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(stderr(&refused).contains("--worker leases"), "{}", stderr(&refused));
    let built = program(&args(&["--worker", "leases"])).envs(odd).output().unwrap();
    assert!(built.status.success(), "{}", stderr(&built));
    let cache = world.path("cache").display().to_string();
    assert!(program(&["pipeline", "verify", &cache]).envs(odd).output().unwrap().status.success());
}

/// Two builds that add a teacher of one name with other weights: one is refused, and the cache stays whole.
#[test]
fn a_teacher_of_the_same_name_is_not_added_twice_at_once() {
    let world = World::new();
    let small = ["--threads", "1", "--set", "cache.part_samples=2"];
    assert!(output(&world.build_args("cache", &small)).status.success());
    let cache = world.path("cache").display().to_string();
    let images = world.path("images").display().to_string();
    let add = |weights: &str| {
        let teacher = format!("third={}", world.path(weights).display());
        let args = [
            "pipeline",
            "add-teacher",
            &cache,
            "--images",
            &images,
            "--teacher",
            &teacher,
            "--threads",
            "1",
            "--device",
            "cpu",
        ];
        slow_program(&args, 20).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let ends: Vec<_> = [add("clip"), add("dino")].map(|child| child.wait_with_output().unwrap()).into();
    let done = ends.iter().filter(|end| end.status.success()).count();
    assert_eq!(done, 1, "{}\n{}", stderr(&ends[0]), stderr(&ends[1]));
    let refused = ends.iter().find(|end| !end.status.success()).unwrap();
    assert!(matches!(refused.status.code(), Some(2 | 75)), "{}", stderr(refused));
    let (status, said) = run(["pipeline", "verify", &cache].map(str::to_owned).into()).unwrap();
    assert_eq!(status, pipeline::ExitStatus::Fine, "{said}");
}

/// Another build in the folder is joined if it is the same, and refused if it is not.
#[test]
fn another_build_is_not_joined() {
    let world = World::new();
    let args = |more: &[&str]| world.build_args("cache", &[&["--threads", "1"], more].concat());
    let mut first = slow_program(&args(&[]), 500).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while !world.path("cache/work/leases/part-00000").exists() {
        sleep(Duration::from_millis(1));
    }
    let refused = output(&args(&["--seed", "7"]));
    assert_eq!(refused.status.code(), Some(75), "{}", stderr(&refused));
    assert!(stderr(&refused).contains("another build with other settings"), "{}", stderr(&refused));
    first.kill().unwrap();
    first.wait().unwrap();
    // It had not finished a part, so nothing binds.
    let second = output(&args(&["--seed", "7"]));
    assert!(second.status.success() && stderr(&second).contains("starting over"), "{}", stderr(&second));
    assert!(!world.path("cache/work").exists());
}

/// What does not fit is refused before anything is computed, unless told; a dry run says the same.
#[test]
fn a_build_says_what_it_takes_and_what_is_free() {
    let world = World::new();
    let built = output(&world.build_args("cache", &[]));
    let said = stderr(&built);
    assert!(built.status.success(), "{said}");
    let parts = ["to write at most", "samples", "teacher clip", "teacher dino", "in 46 rows", "free"];
    assert!(parts.iter().all(|part| said.contains(part)), "{said}");
}
