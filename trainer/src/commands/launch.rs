//! Starts a command as many processes of this machine that train together, as torchrun does, and again when one was lost.
//!
//! Every process is a child with a process group of its own, so that Ctrl-C reaches this one alone, which passes it on. Each holds a pipe of this
//! process as its stdin, and stops when that ends.

use std::ffi::OsString;
use std::net::TcpListener;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use program::{ExitStatus, signals};
use rustix::process::{Pid, Signal, kill_process};
use tracing::{info, warn};

use crate::cli::{Cli, LaunchArgs};

#[cfg(test)]
mod tests;

/// The environment variable that tells a process that its launcher holds its stdin.
pub const LAUNCHED: &str = "MR_MAE_LAUNCHED";

/// How long the others have after one has ended, to notice it and say so.
const NOTICE: Duration = Duration::from_secs(10);
/// How long a process has to end after it was asked to.
const GRACE: Duration = Duration::from_secs(5);

/// One process.
struct Rank {
    number: usize,
    child: Child,
    status: Option<std::process::ExitStatus>,
}

/// Runs `args.command` as `args.nproc_per_node` processes until all have ended.
pub(crate) fn launch(args: &LaunchArgs) -> anyhow::Result<ExitStatus> {
    refuse_other_commands(&args.command)?;
    for attempt in 0.. {
        let ended = run(args, attempt)?;
        if signals::requested() {
            return Ok(ExitStatus::Interrupted);
        }
        if ended.is_empty() {
            return Ok(ExitStatus::Fine);
        }
        let how = ended.iter().map(|(rank, how, _)| format!("rank {rank} {how}")).collect::<Vec<_>>().join(", ");
        // A signal that another program has sent to them, or one of them.
        if ended.len() == args.nproc_per_node && ended.iter().all(|&(.., code)| is_stopped(code)) {
            signals::request();
            return Ok(ExitStatus::Interrupted);
        }
        // An error that the next attempt would meet again. Those that this process has asked to stop when one was lost do not count.
        let is_final = |code: &Option<i32>| code.is_some_and(|code| code != 75) && !is_stopped(*code);
        if let Some((_, _, code)) = ended.iter().find(|(.., code)| is_final(code)) {
            warn!("{how}");
            return Ok(if *code == Some(1) { ExitStatus::Problems } else { ExitStatus::CouldNot });
        }
        if attempt >= args.max_restarts {
            warn!("{how}. The same command goes on, from the last checkpoint if there is one");
            return Ok(ExitStatus::TryAgain);
        }
        info!("{how}; starting all again ({} of {} times)", attempt + 1, args.max_restarts);
    }
    Ok(ExitStatus::TryAgain)
}

/// Refuses what does not run as many processes, before any is started.
fn refuse_other_commands(command: &[OsString]) -> anyhow::Result<()> {
    let words = [OsString::from("trainer")].into_iter().chain(command.iter().cloned());
    let cli: Cli = program::cli::parse(words).map_err(|error| anyhow::anyhow!("after `--`: {error}"))?;
    ensure!(
        crate::runs_in_many(&cli.command),
        "after `--`: only pretrain, finetune, knn and linprobe run as many processes"
    );
    Ok(())
}

/// A process that has not ended well: its rank, how it has ended, and its exit code, which one that a signal has ended lacks.
type Ended = (usize, String, Option<i32>);

/// Whether a process with this exit code was stopped by a signal and has ended in order.
fn is_stopped(code: Option<i32>) -> bool {
    code.is_some_and(|code| [130, 143].contains(&code))
}

/// Runs all processes once: those that have not ended well, the first to end first.
fn run(args: &LaunchArgs, attempt: u32) -> anyhow::Result<Vec<Ended>> {
    let mut ranks = start(args, attempt)?;
    let mut ended = Vec::new();
    let mut asked: Option<Instant> = None;
    let mut first_loss: Option<Instant> = None;
    while ranks.iter().any(|rank| rank.status.is_none()) {
        for rank in ranks.iter_mut().filter(|rank| rank.status.is_none()) {
            rank.status = rank.child.try_wait().context("cannot wait for a process")?;
            if let Some(status) = rank.status.filter(|status| !status.success()) {
                let how = match (status.code(), status.signal()) {
                    (Some(code), _) => format!("ended with {code}"),
                    (None, signal) => format!("was killed by signal {}", signal.unwrap_or_default()),
                };
                ended.push((rank.number, how, status.code()));
                // One that a signal has stopped is not lost, and the others may still be at their checkpoint.
                if !is_stopped(status.code()) {
                    first_loss.get_or_insert_with(Instant::now);
                }
            }
        }
        let is_over = signals::requested() || first_loss.is_some_and(|at| at.elapsed() > NOTICE);
        match asked {
            None if is_over => {
                send(&ranks, Signal::TERM);
                asked = Some(Instant::now());
            }
            // A run that was asked to stop takes its time for a checkpoint. Those that have lost another one do not.
            Some(at) if first_loss.is_some() && at.elapsed() > GRACE => send(&ranks, Signal::KILL),
            _ => {}
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(ended)
}

fn start(args: &LaunchArgs, attempt: u32) -> anyhow::Result<Vec<Rank>> {
    let program = std::env::current_exe().context("cannot tell which program this is")?;
    let count = args.nproc_per_node;
    let port = match args.master_port {
        Some(port) => port,
        None => TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).context("no port is free")?.port(),
    };
    let cores = thread::available_parallelism().map_or(1, |n| n.get());
    let mut ranks = Vec::new();
    for number in 0..count {
        let mut command = Command::new(&program);
        command
            .args(&args.command)
            .env("RANK", number.to_string())
            .env("LOCAL_RANK", number.to_string())
            .env("WORLD_SIZE", count.to_string())
            .env("LOCAL_WORLD_SIZE", count.to_string())
            .env("MASTER_ADDR", "127.0.0.1")
            .env("MASTER_PORT", port.to_string())
            .env("TORCHELASTIC_RESTART_COUNT", attempt.to_string())
            .env_remove("TORCHELASTIC_USE_AGENT_STORE")
            .env(LAUNCHED, "1")
            .stdin(Stdio::piped())
            .process_group(0);
        if !args.keep_threads {
            command.env("OMP_NUM_THREADS", (cores / count).max(1).to_string());
        }
        match command.spawn() {
            Ok(child) => ranks.push(Rank { number, child, status: None }),
            Err(error) => {
                send(&ranks, Signal::KILL);
                return Err(error).with_context(|| format!("rank {number} cannot be started"));
            }
        }
    }
    Ok(ranks)
}

/// Sends a signal to all that have not ended.
fn send(ranks: &[Rank], signal: Signal) {
    for rank in ranks.iter().filter(|rank| rank.status.is_none()) {
        let pid = i32::try_from(rank.child.id()).ok().and_then(Pid::from_raw);
        // It may have ended meanwhile.
        let _ = pid.map(|pid| kill_process(pid, signal));
    }
}
