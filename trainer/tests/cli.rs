//! The built binary: its exit codes, its streams, and a real `kill -9` in the middle of training.
#![allow(clippy::disallowed_methods)] // Files are damaged on purpose.
#![allow(clippy::unwrap_used)] // Tests state what they expect by unwrapping.

use std::fs;
use std::io::{BufRead, BufReader, PipeReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::pipe::fcntl_setpipe_size;
use rustix::process::{Pid, Signal, kill_process};
use schemas::{TeacherId, layout};

#[path = "../src/testing.rs"]
#[allow(dead_code, reason = "the unit tests use the rest")]
mod testing;
use testing::World;

fn trainer(args: &[String]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trainer"));
    command.args(&args[1..]).env_clear();
    // Nothing that a user may have set reaches the program, and no test asks a network.
    for name in ["PATH", "LD_LIBRARY_PATH", "TMPDIR", "OMP_WAIT_POLICY"] {
        command.envs(std::env::var_os(name).map(|value| (name, value)));
    }
    command.env("RUST_LOG", "info").env("HF_HUB_OFFLINE", "1");
    command
}

fn run(args: &[String]) -> Output {
    trainer(args).output().unwrap()
}

/// Starts a run that cannot run away from who reads its log: the pipe holds a page, some 30 steps, and the run waits while it is full. So a
/// run of 80 steps is stopped before its end, however long this thread has to wait for a processor.
fn followed(args: &[String]) -> (Child, BufReader<PipeReader>) {
    let (reader, writer) = std::io::pipe().unwrap();
    fcntl_setpipe_size(&writer, 4096).unwrap();
    let child = trainer(args).stdout(Stdio::null()).stderr(writer).spawn().unwrap();
    (child, BufReader::with_capacity(256, reader))
}

/// Reads a run's log until it has come past `step`.
fn come_past(step: u64, log: &mut BufReader<PipeReader>) {
    let mut all = String::new();
    loop {
        let start = all.len();
        let read = log.read_line(&mut all).unwrap();
        assert!(read > 0, "the run ended before step {step}: {all}");
        let line = all[start..].split_once("step ");
        let done = line.and_then(|(_, rest)| rest.split(['/', ' ', ',']).next()?.parse::<u64>().ok());
        if done.is_some_and(|done| done >= step) {
            return;
        }
    }
}

fn strings(args: &[&str]) -> Vec<String> {
    args.iter().map(|s| s.to_string()).collect()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn last_checkpoint(run: &Path) -> Option<PathBuf> {
    let name = fs::read_to_string(run.join("LAST")).ok()?;
    Some(run.join("checkpoints").join(name.trim()))
}

/// Weights and moments of the newest checkpoint.
fn tensors(run: &Path) -> [Vec<u8>; 2] {
    let folder = last_checkpoint(run).expect("the run has a checkpoint");
    ["model.safetensors", "optimizer.safetensors"].map(|file| fs::read(folder.join(file)).unwrap())
}

/// The lines of metrics.jsonl without what depends on time and memory.
fn metrics(run: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let line = |line| {
        let mut value: serde_json::Value = serde_json::from_str(line).unwrap();
        for timed in ["images_per_s", "wait_share", "device_idle_share", "mfu", "peak_memory_bytes"] {
            value.as_object_mut().unwrap().remove(timed).unwrap_or_else(|| panic!("a line without {timed}"));
        }
        value
    };
    text.lines().map(line).collect()
}

#[test]
fn help_names_every_command() {
    let output = run(&strings(&["trainer", "--help"]));
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).unwrap();
    for command in ["pretrain", "finetune", "knn", "linprobe", "export", "config", "plan", "bench"] {
        assert!(text.contains(command), "{text}");
    }
    assert!(text.starts_with("Pretrains an MR-MAE student from images"), "{text}");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run(&strings(&["trainer", "completions", shell]));
        assert_eq!(output.status.code(), Some(0));
        let script = String::from_utf8(output.stdout).unwrap();
        assert!(script.contains("linprobe") && script.contains("online-teacher"), "{shell}");
    }
}

#[test]
fn the_allocator_is_jemalloc_and_can_be_told_otherwise() {
    let settings = |conf: &str| {
        let output = trainer(&strings(&["trainer", "--help"])).env("MALLOC_CONF", conf).output().unwrap();
        assert!(output.status.success());
        stderr(&output)
    };
    let own = settings("stats_print:true");
    assert!(own.contains("opt.oversize_threshold: 0\n"), "{own}");
    let told = settings("stats_print:true,dirty_decay_ms:5000");
    assert!(told.contains("opt.dirty_decay_ms: 5000 "), "{told}");
}

#[test]
fn exit_codes_tell_data_from_everything_else() {
    let world = World::with_cache(8);
    // 2: could not do it.
    let mut no_cache = world.pretrain_args("run", &[]);
    let cache = no_cache.iter().position(|arg| arg == "--cache").unwrap();
    no_cache[cache + 1] = world.images_dir().to_str().unwrap().to_owned();
    for (args, words) in [
        (strings(&["trainer", "pretrain"]), "--cache"),
        (world.pretrain_args("run", &["--set", "optim.batchsize=3"]), "batchsize"),
        (world.pretrain_args("run", &["--device", "tpu"]), "tpu"),
        (no_cache, "cache.json"),
    ] {
        let output = run(&args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(words), "{args:?}: {}", stderr(&output));
        assert!(!stderr(&output).contains("panicked"), "{}", stderr(&output));
    }
    // 1: the data has a problem.
    let path = layout::teacher_file(&world.cache_dir(), &TeacherId::new("clip").unwrap(), 0);
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    let output = run(&world.pretrain_args("run", &[]));
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("part-00000.parquet"), "{}", stderr(&output));
    // 0: fine.
    assert_eq!(run(&world.pretrain_args("mae", &["--set", "mimic.teachers=[]"])).status.code(), Some(0));
}

#[test]
fn the_resolved_recipe_is_printed_and_can_be_read_again() {
    let world = World::new(2);
    let recipe = world.recipe();
    let args = strings(&["trainer", "config", "--recipe", recipe.to_str().unwrap(), "--set", "run.seed=5"]);
    let output = run(&args);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("seed = 5") && text.contains("weight_decay = 0.05"), "{text}");
    let again = world.path("resolved.toml");
    fs::write(&again, &text).unwrap();
    let output = run(&strings(&["trainer", "config", "--recipe", again.to_str().unwrap()]));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), text);
}

/// Killed at several moments, a run ends with the same bytes as one that was not, and logs each step once.
#[test]
fn kill_minus_nine_loses_work_and_nothing_else() {
    let world = World::with_cache(16);
    // 80 steps, a checkpoint every second one: some kills land in training, some in a checkpoint being written.
    let settings = ["--set", "schedule.epochs=20", "--set", "run.checkpoint_every=2", "--set", "optim.clip_grad=1.0"];
    let whole = run(&world.pretrain_args("whole", &settings));
    assert!(whole.status.success(), "{}", stderr(&whole));

    let killed = world.pretrain_args("killed", &settings);
    // Each time a few milliseconds after the run has come past a step.
    for (step, millis) in [(1, 0), (9, 3), (21, 7), (22, 11), (40, 2), (48, 5)] {
        let (mut child, mut log) = followed(&killed);
        come_past(step, &mut log);
        std::thread::sleep(Duration::from_millis(millis));
        child.kill().unwrap(); // SIGKILL
        assert!(!child.wait().unwrap().success(), "the run ended before it was killed");
    }
    let rest = run(&killed);
    assert!(rest.status.success(), "{}", stderr(&rest));
    assert!(tensors(&world.path("whole")) == tensors(&world.path("killed")), "weights or moments differ");
    assert_eq!(metrics(&world.path("whole")), metrics(&world.path("killed")));
    assert_eq!(metrics(&world.path("killed")).len(), 80);

    let again = run(&killed);
    assert!(again.status.success() && stderr(&again).contains("is finished"), "{}", stderr(&again));
}

/// What a scheduler sends before it ends a job: the run writes a checkpoint, says how to go on, and nothing is computed twice.
#[test]
fn a_signal_ends_a_run_with_a_checkpoint() {
    let world = World::with_cache(16);
    let settings = ["--set", "schedule.epochs=20", "--set", "run.checkpoint_every=1000", "--set", "run.log_every=1"];
    let whole = run(&world.pretrain_args("whole", &settings));
    assert!(whole.status.success(), "{}", stderr(&whole));
    let stopped = world.pretrain_args("stopped", &settings);
    let (mut child, mut log) = followed(&stopped);
    come_past(5, &mut log);
    let pid = Pid::from_raw(child.id().try_into().unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    let mut text = String::new();
    log.read_to_string(&mut text).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143), "{text}");
    assert!(text.contains("interrupted after step"), "{text}");
    assert!(last_checkpoint(&world.path("stopped")).is_some());
    let done = metrics(&world.path("stopped")).len();
    assert!((5..80).contains(&done), "{done} of 80 steps");
    let rest = run(&stopped);
    assert!(rest.status.success(), "{}", stderr(&rest));
    assert!(stderr(&rest).contains(&format!("after step {done}")), "{}", stderr(&rest));
    assert!(tensors(&world.path("whole")) == tensors(&world.path("stopped")));
    assert_eq!(metrics(&world.path("whole")), metrics(&world.path("stopped")));
}

/// A log that cannot be written does not end a run, and a reader that closes the pipe is not an error.
#[test]
fn nobody_has_to_listen() {
    let world = World::with_cache(8);
    let full = || fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = trainer(&world.pretrain_args("run", &[]));
    assert!(command.stderr(full()).status().unwrap().success());
    assert!(last_checkpoint(&world.path("run")).is_some());
    let wrong = strings(&["trainer", "config", "--recipe", "gone.toml"]);
    assert_eq!(trainer(&wrong).stderr(full()).status().unwrap().code(), Some(2));

    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let recipe = world.recipe();
    let config = strings(&["trainer", "config", "--recipe", recipe.to_str().unwrap()]);
    let output = trainer(&config).stdout(writer).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));

    // An error is said whatever RUST_LOG lets through.
    let output = trainer(&wrong).env("RUST_LOG", "off").output().unwrap();
    assert!(stderr(&output).contains("gone.toml"), "{}", stderr(&output));
}

#[test]
fn bench_measures_what_it_is_asked_for() {
    let world = World::with_cache(8);
    let pretrain = world.pretrain_args("unused", &[]);
    let value = |name: &str| {
        let at = pretrain.iter().position(|arg| arg == name).unwrap();
        pretrain[at + 1].clone()
    };
    let bench = |rest: &[&str]| {
        let mut args = strings(&["trainer", "bench", "--json", "--steps", "1", "--recipe"]);
        args.push(value("--recipe"));
        args.extend(strings(rest));
        run(&args)
    };
    let json = |output: Output| -> serde_json::Value {
        assert!(output.status.success(), "{}", stderr(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    };

    let step = json(bench(&["--only", "f32"]));
    let steps = step["steps"].as_object().unwrap();
    assert_eq!(steps.keys().collect::<Vec<_>>(), ["f32"]);
    assert!(steps["f32"]["images_per_s"].as_f64().unwrap() > 0.0);
    assert!(step["loader"].is_null());

    let (cache, images) = (value("--cache"), value("--images"));
    let loader = json(bench(&["--only", "loader", "--cache", &cache, "--images", &images]));
    assert!(loader["steps"].as_object().unwrap().is_empty());
    assert!(loader["loader"]["images_per_s"].as_f64().unwrap() > 0.0);

    let fresh = bench(&["--only", "f32", "--set", "data.fresh=0.5"]);
    assert_eq!(fresh.status.code(), Some(2));
    assert!(stderr(&fresh).contains("--set data.fresh=0"), "{}", stderr(&fresh));
    let without = bench(&["--only", "loader"]);
    assert_eq!(without.status.code(), Some(2));
    assert!(stderr(&without).contains("--cache"), "{}", stderr(&without));
}
