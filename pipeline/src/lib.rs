//! Stage one: runs frozen teachers over images once and stores their patch features.
//!
//! [`run`] is the table of contents; [`build_cache`] is the main job. Everything that decides a byte of the result is settled by
//! [`config`] before the first one is written. The programs of this workspace meet on disk only, in the format that the crate
//! `schemas` lays down.

pub mod add_teacher;
pub mod build_cache;
pub mod cli;
mod codec_error;
pub mod config;
mod dry_run;
mod features;
pub mod inspect;
pub mod interrupt;
pub mod list;
pub mod logging;
pub mod stats;
mod table;
pub mod verify;

use std::io::Write;
use std::process::ExitCode;

use cli::{Cli, Command};
use models::hub::{self, HubSettings};
use torch_ext::catch_out_of_memory;

/// What a command found out, as its exit status. Errors are [`ExitStatus::COULD_NOT`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// 0: done, and the data is fine.
    Fine,
    /// 1: done, and the data has problems: a damaged cache, or a source without a single usable image.
    Problems,
    /// 130: stopped by Ctrl-C, as shells number it; the same command resumes.
    Interrupted,
}

impl ExitStatus {
    /// The status of a command that returned an error.
    pub const COULD_NOT: u8 = 2;

    /// The number for the shell.
    pub fn code(self) -> u8 {
        match self {
            ExitStatus::Fine => 0,
            ExitStatus::Problems => 1,
            ExitStatus::Interrupted => 130,
        }
    }
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> ExitCode {
        ExitCode::from(status.code())
    }
}

fn run_command(cli: &Cli, hub: &HubSettings, out: &mut dyn Write) -> anyhow::Result<ExitStatus> {
    match &cli.command {
        Command::BuildCache(args) => build_cache::build_cache(args, hub, cli.log_format, out),
        Command::AddTeacher(args) => add_teacher::add_teacher(args, hub, cli.log_format, out),
        Command::Verify(args) => verify::verify(args, cli.log_format, out),
        Command::Inspect(args) => inspect::inspect(args, out),
        Command::Stats(args) => stats::stats(args, out),
        Command::List(args) => list::list(args, out),
        Command::Completions { shell } => {
            Cli::completions(*shell, out)?;
            Ok(ExitStatus::Fine)
        }
    }
}

/// Does what the command line says. Results go to stdout, progress and messages to stderr through `tracing`. Teachers that are
/// given by id are looked for as `hub` says.
pub fn run(cli: Cli, hub: &HubSettings) -> anyhow::Result<ExitStatus> {
    let out = &mut std::io::stdout().lock();
    let done = catch_out_of_memory(|| run_command(&cli, hub, out));
    let done = done.unwrap_or_else(|lack| {
        // A build takes its batches in smaller parts; what ends here is not a batch.
        Err(anyhow::Error::from(lack).context(
            "take a device with more memory, one teacher at a time (add-teacher), or --device cpu",
        ))
    });
    done.or_else(|error| {
        match error.downcast_ref() {
            // Asked for, and so no failure.
            Some(stopped @ hub::Error::Interrupted { .. }) => tracing::warn!("{stopped}"),
            _ => return Err(error),
        }
        Ok(ExitStatus::Interrupted)
    })
}
