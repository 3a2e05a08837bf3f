//! `--device cuda:all`: one worker for each GPU of the machine.
//!
//! Each is a process of its own, this command with `--device cuda:I --worker leases`: they divide the parts as any workers do, and one that fails leaves its parts to the others.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};
use program::{ExitStatus, signals, terminal, words::count};
use rustix::process::{Pid, Signal, kill_process};

use crate::Environment;

/// The value of `--device` that stands for all GPUs.
pub(crate) const ALL: &str = "cuda:all";

/// How often the workers and this process's signals are looked at.
const TICK: Duration = Duration::from_millis(100);

/// Runs this command once for each GPU.
pub(crate) fn run(env: &Environment, out: &mut dyn Write) -> anyhow::Result<ExitStatus> {
    let gpus = torch_ext::gpu_count().context("--device cuda:all")?;
    ensure!(gpus > 0, "--device {ALL}: libtorch finds no GPU that it can use");
    let (program, arguments) = env.command.split_first().context("the program does not know its own command line")?;
    tracing::info!("one worker for each of {}", count(gpus as u64, "GPU"));
    let cores = thread::available_parallelism().map_or(1, |cores| cores.get());
    let workers = (0..gpus).map(|gpu| {
        let mut command = Command::new(program);
        command.args(for_gpu(arguments, gpu, (cores / gpus).max(1)));
        (format!("cuda:{gpu}"), command)
    });
    run_all(workers.collect(), out)
}

/// The arguments of the worker of one GPU.
fn for_gpu(arguments: &[OsString], gpu: usize, threads: usize) -> Vec<OsString> {
    let device = OsString::from(format!("cuda:{gpu}"));
    let joined = OsString::from(format!("--device={ALL}"));
    let mut of_gpu: Vec<OsString> = arguments
        .iter()
        .map(|argument| match argument {
            argument if argument == OsStr::new(ALL) => device.clone(),
            argument if *argument == joined => format!("--device=cuda:{gpu}").into(),
            argument => argument.clone(),
        })
        .collect();
    let is_given = |option: &str| {
        let begins =
            |argument: &OsString| argument.to_str().is_some_and(|text| text.starts_with(&format!("{option}=")));
        arguments.iter().any(|argument| argument == OsStr::new(option) || begins(argument))
    };
    if !is_given("--worker") {
        of_gpu.extend(["--worker", "leases"].map(OsString::from));
    }
    if !is_given("--threads") {
        of_gpu.extend(["--threads".to_owned(), threads.to_string()].map(OsString::from));
    }
    of_gpu
}

/// Runs the workers to their end, passes signals on, and prints what the first of them prints that finishes the cache. Their messages come with the name of the worker.
///
/// A worker ends without an error when the whole cache is finished, so one of these is enough.
fn run_all(workers: Vec<(String, Command)>, out: &mut dyn Write) -> anyhow::Result<ExitStatus> {
    let mut running = Vec::new();
    for (name, mut command) in workers {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        running.push(Worker::start(name, &mut command)?);
    }
    let (mut told, mut finished) = (false, Vec::new());
    while !running.is_empty() {
        if signals::requested() && !told {
            told = true;
            running.iter().for_each(Worker::stop);
        }
        let mut still = Vec::new();
        for mut worker in running {
            match worker.child.try_wait().with_context(|| format!("worker {}", worker.name))? {
                None => still.push(worker),
                Some(status) => {
                    let code = status.code();
                    if code != Some(0) && !told {
                        tracing::warn!("worker {} ended: {status}; the others go on with its parts", worker.name);
                    }
                    finished.push((code, worker.output()));
                }
            }
        }
        running = still;
        thread::sleep(TICK);
    }
    if let Some((_, printed)) = finished.iter().find(|(code, _)| *code == Some(0)) {
        out.write_all(printed)?;
        return Ok(ExitStatus::Fine);
    }
    if told {
        return Ok(ExitStatus::Interrupted);
    }
    let has = |wanted: ExitStatus| finished.iter().any(|(code, _)| *code == Some(wanted.code().into()));
    // Errors that a retry cannot fix come first.
    let status = [ExitStatus::CouldNot, ExitStatus::Problems].into_iter().find(|status| has(*status));
    Ok(status.unwrap_or(ExitStatus::TryAgain))
}

/// A worker and the threads that read what it writes.
struct Worker {
    name: String,
    child: Child,
    stdout: Option<thread::JoinHandle<Vec<u8>>>,
    stderr: Option<thread::JoinHandle<()>>,
}

impl Worker {
    fn start(name: String, command: &mut Command) -> anyhow::Result<Worker> {
        let mut child = command.spawn().with_context(|| format!("cannot start worker {name}"))?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let read = move || {
            let mut printed = Vec::new();
            // What was read before a failure is passed on.
            let _ = stdout.map(|mut stdout| stdout.read_to_end(&mut printed));
            printed
        };
        let prefix = name.clone();
        let pass_on = move || {
            let lines = stderr.into_iter().flat_map(|stderr| BufReader::new(stderr).split(b'\n'));
            for line in lines.map_while(Result::ok) {
                let text = String::from_utf8_lossy(&line);
                terminal::pass_on(&prefix, &text);
            }
        };
        Ok(Worker { name, child, stdout: Some(thread::spawn(read)), stderr: Some(thread::spawn(pass_on)) })
    }

    /// Asks it to stop, as this process was asked.
    fn stop(&self) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // It may have ended by itself.
            let _ = kill_process(pid, Signal::TERM);
        }
    }

    fn output(&mut self) -> Vec<u8> {
        let _ = self.stderr.take().map(thread::JoinHandle::join);
        self.stdout.take().and_then(|stdout| stdout.join().ok()).unwrap_or_default()
    }
}

impl Drop for Worker {
    /// After an error here none goes on by itself.
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.stop();
            let _ = self.child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn os(words: &str) -> Vec<OsString> {
        words.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn each_worker_gets_its_gpu_and_its_share_of_the_threads() {
        for (given, expected) in [
            (
                "build-cache --device cuda:all --out c",
                "build-cache --device cuda:1 --out c --worker leases --threads 4",
            ),
            ("build-cache --device=cuda:all", "build-cache --device=cuda:1 --worker leases --threads 4"),
            ("a --device cuda:all --threads 3 --worker leases", "a --device cuda:1 --threads 3 --worker leases"),
            ("a --device cuda:all --threads=3", "a --device cuda:1 --threads=3 --worker leases"),
        ] {
            assert_eq!(for_gpu(&os(given), 1, 4), os(expected));
        }
    }

    fn shell(scripts: &[&str]) -> (ExitStatus, String) {
        let worker = |(i, script): (usize, &&str)| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            (format!("cuda:{i}"), command)
        };
        let mut out = Vec::new();
        let status = run_all(scripts.iter().enumerate().map(worker).collect(), &mut out).unwrap();
        (status, String::from_utf8(out).unwrap())
    }

    #[test]
    fn one_worker_that_finishes_the_cache_is_enough() {
        assert_eq!(shell(&["echo first", "exit 0"]).0, ExitStatus::Fine);
        assert_eq!(
            shell(&["exit 75", "echo whole >&2; echo printed", "kill -9 $$"]),
            (ExitStatus::Fine, "printed\n".into())
        );
    }

    #[test]
    fn what_has_to_be_mended_first_is_the_status() {
        for (scripts, expected) in [
            (&["exit 75", "exit 75"][..], ExitStatus::TryAgain),
            (&["exit 75", "exit 2", "exit 1"], ExitStatus::CouldNot),
            (&["exit 75", "exit 1"], ExitStatus::Problems),
            (&["kill -9 $$"], ExitStatus::TryAgain),
        ] {
            assert_eq!(shell(scripts).0, expected, "{scripts:?}");
        }
    }
}
