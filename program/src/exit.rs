//! The exit status of a program.

use std::io;
use std::process::ExitCode;

use crate::cli::LogFormat;
use crate::terminal::report_error;

/// How a program ends, as `--help` lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// 0: done, and the data is fine.
    Fine,
    /// 1: the data has problems, which the messages name: a damaged cache, a source without a usable image.
    Problems,
    /// 2: an error; the command could not do its work.
    CouldNot,
    /// 130: stopped by a signal, as in shells. The same command resumes.
    Interrupted,
}

impl ExitStatus {
    /// The number for the shell.
    pub fn code(self) -> u8 {
        match self {
            ExitStatus::Fine => 0,
            ExitStatus::Problems => 1,
            ExitStatus::CouldNot => 2,
            ExitStatus::Interrupted => 130,
        }
    }

    /// Ends a program: reports an error on stderr in `format`. `status_of` gives the status of an error.
    ///
    /// A closed stdout is not an error: `head` closes it after enough lines, and results are printed when the work is done.
    pub fn report(
        outcome: anyhow::Result<ExitStatus>,
        format: LogFormat,
        status_of: impl FnOnce(&anyhow::Error) -> ExitStatus,
    ) -> ExitStatus {
        match outcome {
            Ok(status) => status,
            Err(error) if is_closed_pipe(&error) => ExitStatus::Fine,
            Err(error) => {
                report_error(format, &error);
                status_of(&error)
            }
        }
    }
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> ExitCode {
        ExitCode::from(status.code())
    }
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<io::Error>();
    io.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_closed_stdout_is_no_error() {
        let end = |outcome| ExitStatus::report(outcome, LogFormat::Text, |_| ExitStatus::Problems).code();
        assert_eq!(end(Ok(ExitStatus::Interrupted)), 130);
        assert_eq!(end(Err(io::Error::from(io::ErrorKind::BrokenPipe).into())), 0);
        assert_eq!(end(Err(io::Error::from(io::ErrorKind::NotFound).into())), 1);
    }
}
