//! Stage one: runs frozen teachers over images once and stores their patch features.
//!
//! [`run`] is the table of contents. [`build_cache`] is the main job.

pub mod cli;

use std::process::ExitCode;

use cli::Cli;

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

/// Does what the command line says. Results go to stdout, progress and messages to stderr through `tracing`.
pub fn run(cli: Cli) -> anyhow::Result<ExitStatus> {
    match cli.command {
        cli::Command::BuildCache(_) => todo!(),
        cli::Command::Verify(_) => todo!(),
        cli::Command::Inspect(_) => todo!(),
    }
}
