//! Many processes of the built binary: started by `trainer launch` and by hand, killed, stopped, and hung.
#![allow(clippy::unwrap_used)] // Tests state what they expect by unwrapping.

use std::fs;
use std::io::{BufRead, BufReader, PipeReader, Read};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

#[path = "../src/testing.rs"]
#[allow(dead_code, reason = "the unit tests use the rest")]
mod testing;
use testing::{World, overridden};

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trainer"));
    command.env_clear();
    // Nothing that a user may have set reaches the program, and no test asks a network.
    for name in ["PATH", "LD_LIBRARY_PATH", "TMPDIR", "OMP_WAIT_POLICY"] {
        command.envs(std::env::var_os(name).map(|value| (name, value)));
    }
    command.env("HF_HUB_OFFLINE", "1").env("OMP_NUM_THREADS", "1");
    command
}

/// `trainer launch` with `options`, of a command line that begins with the program's name.
fn launch(options: &[&str], args: &[String]) -> Command {
    let mut command = program();
    command.arg("launch").args(options).arg("--").args(&args[1..]);
    command
}

fn pretrain(world: &World, out: &str, more: &[&str]) -> Vec<String> {
    let settings = ["--set", "schedule.epochs=20", "--set", "run.checkpoint_every=3", "--set", "dist.timeout=300"];
    overridden(world.pretrain_args(out, &[&settings, more].concat()))
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Weights and moments of the newest checkpoint.
fn tensors(run: &Path) -> [Vec<u8>; 2] {
    let name = fs::read_to_string(run.join("LAST")).unwrap();
    let folder = run.join("checkpoints").join(name.trim());
    ["model.safetensors", "optimizer.safetensors"].map(|file| fs::read(folder.join(file)).unwrap())
}

/// Step and losses of every line of metrics.jsonl.
fn losses(run: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let line = |line| {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        serde_json::json!([value["step"], value["loss"], value["rec"], value["mimic.clip"], value["grad_norm"]])
    };
    text.lines().map(line).collect()
}

/// A command whose messages are read while it runs.
fn started(mut command: Command) -> (Child, BufReader<PipeReader>) {
    let (reader, writer) = std::io::pipe().unwrap();
    let child = command.stdout(Stdio::null()).stderr(writer).spawn().unwrap();
    (child, BufReader::new(reader))
}

/// Reads messages until one is of `step`.
fn come_past(step: u64, log: &mut BufReader<PipeReader>) {
    let mut all = String::new();
    loop {
        let start = all.len();
        assert!(log.read_line(&mut all).unwrap() > 0, "the run ended before step {step}: {all}");
        let done = all[start..].split_once("step ").and_then(|(_, rest)| rest.split('/').next()?.parse::<u64>().ok());
        if done.is_some_and(|done| done >= step) {
            return;
        }
    }
}

/// The process of `rank` whose command line names the run folder `out`, once it is there.
fn rank_of(out: &Path, rank: usize) -> Pid {
    let began = Instant::now();
    let is_it = |process: &PathBuf| {
        let read = |file: &str| fs::read(process.join(file)).unwrap_or_default();
        let has = |bytes: &[u8], word: &str| bytes.split(|&b| b == 0).any(|part| part == word.as_bytes());
        has(&read("cmdline"), &out.display().to_string()) && has(&read("environ"), &format!("RANK={rank}"))
    };
    while began.elapsed() < Duration::from_secs(60) {
        let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| Some(entry.ok()?.path()));
        if let Some(found) = processes.filter(|path| path.join("cmdline").exists()).find(is_it) {
            return Pid::from_raw(found.file_name().unwrap().to_str().unwrap().parse().unwrap()).unwrap();
        }
        thread::sleep(Duration::from_millis(5));
    }
    panic!("no process of rank {rank}");
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id().try_into().unwrap()).unwrap()
}

/// Whichever rank is killed, and wherever: the launcher starts all again, and the run ends with the bytes of an undisturbed one.
#[test]
fn a_rank_that_is_killed_costs_work_and_nothing_else() {
    let world = World::with_cache(16);
    let whole = launch(&["-n", "2"], &pretrain(&world, "whole", &[])).output().unwrap();
    assert!(whole.status.success(), "{}", text(&whole));
    assert_eq!(losses(&world.path("whole")).len(), 80);

    let args = pretrain(&world, "killed", &[]);
    let (mut child, mut log) = started(launch(&["-n", "2", "--max-restarts", "9"], &args));
    for (step, rank, millis) in [(2, 1, 0), (20, 0, 3), (45, 1, 8)] {
        come_past(step, &mut log);
        thread::sleep(Duration::from_millis(millis));
        kill_process(rank_of(&world.path("killed"), rank), Signal::KILL).unwrap();
    }
    let mut rest = String::new();
    log.read_to_string(&mut rest).unwrap();
    assert!(child.wait().unwrap().success(), "{rest}");
    assert!(rest.contains("rank 1 was killed by signal 9") && rest.contains("starting all again"), "{rest}");
    assert!(tensors(&world.path("whole")) == tensors(&world.path("killed")), "weights or moments differ");
    assert_eq!(losses(&world.path("whole")), losses(&world.path("killed")));
}

#[test]
fn a_lost_rank_is_named_and_the_status_says_to_try_again() {
    let world = World::with_cache(16);
    let args = pretrain(&world, "lost", &[]);
    let (mut child, mut log) = started(launch(&["-n", "2"], &args));
    come_past(4, &mut log);
    kill_process(rank_of(&world.path("lost"), 1), Signal::KILL).unwrap();
    let mut rest = String::new();
    log.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(75), "{rest}");
    assert!(rest.contains("ERROR rank 0, after step ") && rest.contains("rank 1 does not answer"), "{rest}");
    assert!(rest.contains("rank 1 was killed by signal 9") && rest.contains("ended with 75"), "{rest}");
}

#[test]
fn a_rank_that_hangs_ends_all_within_the_timeout() {
    let world = World::with_cache(16);
    let args = pretrain(&world, "hung", &["--set", "dist.timeout=12"]);
    let (mut child, mut log) = started(launch(&["-n", "2"], &args));
    come_past(4, &mut log);
    let hung = rank_of(&world.path("hung"), 1);
    kill_process(hung, Signal::STOP).unwrap();
    let mut rest = String::new();
    log.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(75), "{rest}");
    // Gloo has several words for it.
    let is_late = rest.contains("Timed out") || rest.contains("timeout");
    assert!(rest.contains("rank 1 does not answer") && is_late, "{rest}");
    assert!(rest.contains("rank 1 was killed by signal 9"), "the launcher ends it: {rest}");
}

#[test]
fn a_signal_to_the_launcher_stops_all_with_a_checkpoint() {
    let world = World::with_cache(16);
    let settings = ["--set", "run.checkpoint_every=1000"];
    let whole = launch(&["-n", "2"], &pretrain(&world, "whole", &settings)).output().unwrap();
    assert!(whole.status.success(), "{}", text(&whole));
    let args = pretrain(&world, "stopped", &settings);
    let (mut child, mut log) = started(launch(&["-n", "2"], &args));
    come_past(5, &mut log);
    kill_process(pid(&child), Signal::TERM).unwrap();
    let mut rest = String::new();
    log.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143), "{rest}");
    assert_eq!(rest.matches("interrupted after step").count(), 1, "{rest}");
    // A launcher that is killed takes its processes with it.
    let (mut child, mut log) = started(launch(&["-n", "2"], &args));
    let mut head = String::new();
    while !head.contains("resuming") {
        assert!(log.read_line(&mut head).unwrap() > 0, "{head}");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    log.read_to_string(&mut head).unwrap();
    assert!(head.contains("interrupted after step") || head.contains("finished: 80 steps"), "{head}");
    let rest = launch(&["-n", "2"], &args).output().unwrap();
    assert!(rest.status.success(), "{}", text(&rest));
    assert!(tensors(&world.path("whole")) == tensors(&world.path("stopped")));
    assert_eq!(losses(&world.path("whole")), losses(&world.path("stopped")));
}

/// torchrun's agent keeps the store and starts the ranks; the run is that of `trainer launch`, and of one process.
#[test]
fn torchrun_starts_the_same_run() {
    let Some(python) = testing::python() else {
        return;
    };
    let world = World::with_cache(16);
    let one = program().args(&pretrain(&world, "one", &[])[1..]).output().unwrap();
    assert!(one.status.success(), "{}", text(&one));
    let args = pretrain(&world, "many", &[]);
    let mut torchrun = Command::new(python.with_file_name("torchrun"));
    torchrun.env_clear().envs(program().get_envs().filter_map(|(name, value)| Some((name, value?))));
    torchrun
        .args(["--standalone", "--no-python", "--nproc-per-node", "2", env!("CARGO_BIN_EXE_trainer")])
        .args(&args[1..]);
    let many = torchrun.output().unwrap();
    assert!(many.status.success(), "{}", text(&many));
    let [found, expected] = ["many", "one"].map(|out| losses(&world.path(out)));
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found[0], expected[0]);
        for i in 1..5 {
            let (found, expected) = (found[i].as_f64().unwrap(), expected[i].as_f64().unwrap());
            assert!((found - expected).abs() < 1e-4 * expected, "{found} for {expected}");
        }
    }
    let launched = launch(&["-n", "2"], &pretrain(&world, "launched", &[])).output().unwrap();
    assert!(launched.status.success(), "{}", text(&launched));
    assert!(
        tensors(&world.path("launched")) == tensors(&world.path("many")),
        "the same bits, no matter what starts them"
    );
}

#[test]
fn what_is_wrong_is_said_once_and_nothing_is_started_again() {
    let world = World::with_cache(16);
    let wrong = pretrain(&world, "wrong", &["--set", "optim.batch_size=0"]);
    let refused = launch(&["-n", "3", "--max-restarts", "5"], &wrong).output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    let said = text(&refused);
    assert_eq!(said.matches("optim.batch_size").count(), 1, "{said}");
    assert!(!said.contains("starting all again"), "{said}");

    let embed = ["trainer", "embed", "--model", "m", "--images", "a", "--out", "b.npy"].map(str::to_owned);
    let refused = launch(&["-n", "2"], &embed).output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused).contains("only pretrain, finetune, knn and linprobe"), "{}", text(&refused));

    let taken = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let args = pretrain(&world, "port", &[]);
    let refused = launch(&["-n", "2", "--master-port", &port], &args).output().unwrap();
    assert_eq!(refused.status.code(), Some(75), "{}", text(&refused));
    assert!(text(&refused).contains(&format!("port {port} is in use")), "{}", text(&refused));

    let half = program().args(&args[1..]).env("RANK", "1").output().unwrap();
    assert_eq!(half.status.code(), Some(2));
    assert!(text(&half).contains("[rank") || text(&half).contains("WORLD_SIZE"), "{}", text(&half));
}

/// What `trainer launch` starts for an evaluation prints what one process prints, once.
#[test]
fn an_evaluation_by_many_prints_what_one_prints() {
    let world = World::with_cache(12);
    let images = world.images_dir().display().to_string();
    let line = ["trainer", "knn", "--model", "pixels:16", "--train", &images, "--test", &images, "--k", "3", "--json"];
    let args = overridden(line.map(str::to_owned).into());
    let alone = program().args(&args[1..]).output().unwrap();
    assert!(alone.status.success(), "{}", text(&alone));
    let many = launch(&["-n", "2"], &args).output().unwrap();
    assert!(many.status.success(), "{}", text(&many));
    assert_eq!(String::from_utf8_lossy(&many.stdout), String::from_utf8_lossy(&alone.stdout));
}
