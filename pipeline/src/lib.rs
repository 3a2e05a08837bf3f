//! Stage one: runs frozen teachers over images once and stores their patch features.
//!
//! [`run`] is the table of contents; [`build_cache`] is the main job. Everything that decides a byte of the result is settled by
//! [`recipe`] before the first one is written. The programs of this workspace meet on disk only, in the format that the crate
//! `schemas` lays down.

pub mod add_images;
pub mod add_teacher;
mod all_gpus;
pub mod build_cache;
pub mod channels;
pub mod cli;
mod codec_error;
pub mod division;
pub mod drop_teacher;
pub mod inspect;
pub mod list;
pub mod recipe;
pub mod recode;
pub mod stats;
pub mod verify;

use std::ffi::OsString;
use std::io::Write;
use std::time::Duration;

use build_cache::refuse::LostFiles;
use build_cache::{Busy, NoRoom, TooManyRejects};
use cli::{Cli, Command};
use division::Share;
use hub::HubSettings;
pub use program::ExitStatus;
use torch_ext::{OutOfMemory, catch_out_of_memory};

/// What the environment says to the program.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// Where teachers given by their hub id are looked for.
    pub hub: HubSettings,
    /// The share of this process, if a scheduler has started it as one of several, and the variables that state it; or how they contradict each
    /// other.
    pub share: Option<Result<(Share, String), String>>,
    /// This program and its arguments, for commands that start it again.
    pub command: Vec<OsString>,
    /// For tests of what surrounds the teachers: how much longer each of them takes for a row on a CPU. The program leaves it at zero.
    #[doc(hidden)]
    pub pause_per_row: Duration,
}

impl Environment {
    /// What the variables say that `var` gives.
    pub fn from_vars(var: impl Fn(&str) -> Option<String> + Copy) -> Environment {
        Environment {
            hub: HubSettings::from_vars(var),
            share: Share::from_vars(var).transpose(),
            command: Vec::new(),
            pause_per_row: Duration::ZERO,
        }
    }
}

/// Does what the command line says. Results go to `out`, messages and progress to stderr through `tracing`.
///
/// # Errors
/// The command's, with context. An interrupted download is not one: its status is [`ExitStatus::Interrupted`].
pub fn run(cli: &Cli, env: &Environment, out: &mut dyn Write) -> anyhow::Result<ExitStatus> {
    let done = catch_out_of_memory(|| run_command(cli, env, out));
    let done = done.unwrap_or_else(|lack| {
        // A build takes its batches in smaller parts; what ends here is not a batch.
        Err(anyhow::Error::from(lack)
            .context("take a device with more memory, one teacher at a time (add-teacher), or --device cpu"))
    });
    done.or_else(|error| {
        let download = matches!(error.downcast_ref(), Some(hub::Error::Interrupted { .. }));
        if download || error.is::<build_cache::Interrupted>() {
            tracing::warn!("{error}");
            return Ok(ExitStatus::Interrupted);
        }
        Err(error)
    })
}

/// The exit status for an error.
pub fn exit_status(error: &anyhow::Error) -> ExitStatus {
    let is_damage = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<schemas::Error>().is_some_and(schemas::Error::is_damage)
    };
    if error.is::<OutOfMemory>() || error.is::<NoRoom>() || error.is::<Busy>() {
        ExitStatus::TryAgain
    } else if error.is::<TooManyRejects>() || error.is::<LostFiles>() || error.chain().any(is_damage) {
        ExitStatus::Problems
    } else {
        ExitStatus::of_error(error)
    }
}

fn run_command(cli: &Cli, env: &Environment, out: &mut dyn Write) -> anyhow::Result<ExitStatus> {
    if cli.command.device() == Some(all_gpus::ALL) {
        return all_gpus::run(env, out);
    }
    match &cli.command {
        Command::BuildCache(args) => build_cache::build_cache(args, env, cli.log_format, out),
        Command::AddTeacher(args) => add_teacher::add_teacher(args, env, cli.log_format, out),
        Command::AddImages(args) => add_images::add_images(args, env, cli.log_format, out),
        Command::Recode(args) => recode::recode(args, out),
        Command::DropTeacher(args) => drop_teacher::drop_teacher(args, out),
        Command::Verify(args) => verify::verify(args, env, cli.log_format, out),
        Command::Inspect(args) => inspect::inspect(args, out),
        Command::Stats(args) => stats::stats(args, out),
        Command::List(args) => list::list(args, out),
        Command::Completions { shell } => {
            program::cli::completions::<Cli>(*shell, out)?;
            Ok(ExitStatus::Fine)
        }
    }
}
