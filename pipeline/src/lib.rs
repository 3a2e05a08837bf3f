//! Stage one: runs frozen teachers over images once and stores their patch features.
//!
//! [`run`] is the table of contents; [`build_cache`] is the main job. Everything that decides a byte of the result is settled by
//! [`recipe`] before the first one is written. The programs of this workspace meet on disk only, in the format that the crate
//! `schemas` lays down.

pub mod add_teacher;
pub mod build_cache;
pub mod channels;
pub mod cli;
mod codec_error;
pub mod inspect;
pub mod list;
pub mod recipe;
pub mod stats;
pub mod verify;

use std::io::Write;

use cli::{Cli, Command};
use hub::HubSettings;
pub use program::ExitStatus;
use torch_ext::catch_out_of_memory;

/// Does what the command line says. Results go to `out`, messages and progress to stderr through `tracing`. Teachers given by their hub
/// id are looked for as `hub` says.
///
/// # Errors
/// The command's, with context. An interrupted download is not one: its status is [`ExitStatus::Interrupted`].
pub fn run(cli: &Cli, hub: &HubSettings, out: &mut dyn Write) -> anyhow::Result<ExitStatus> {
    let done = catch_out_of_memory(|| run_command(cli, hub, out));
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

fn run_command(cli: &Cli, hub: &HubSettings, out: &mut dyn Write) -> anyhow::Result<ExitStatus> {
    match &cli.command {
        Command::BuildCache(args) => build_cache::build_cache(args, hub, cli.log_format, out),
        Command::AddTeacher(args) => add_teacher::add_teacher(args, hub, cli.log_format, out),
        Command::Verify(args) => verify::verify(args, cli.log_format, out),
        Command::Inspect(args) => inspect::inspect(args, out),
        Command::Stats(args) => stats::stats(args, out),
        Command::List(args) => list::list(args, out),
        Command::Completions { shell } => {
            program::cli::completions::<Cli>(*shell, out)?;
            Ok(ExitStatus::Fine)
        }
    }
}
