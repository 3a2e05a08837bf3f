//! The exit status of a program.

use std::io;
use std::process::ExitCode;

use crate::cli::LogFormat;
use crate::signals;
use crate::terminal::report_error;

/// How a program ends, as `--help` lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// 0: done, and the data is fine.
    Fine,
    /// 1: the data has problems, which the messages name: a damaged cache, a source without a usable image.
    Problems,
    /// 2: an error; the command could not do its work, and cannot the next time either.
    CouldNot,
    /// 75, EX_TEMPFAIL of sysexits.h: an error that may have passed the next time: a full or unreachable disk, a network, memory.
    TryAgain,
    /// 130 or 143: stopped by Ctrl-C or SIGTERM, as in shells. The same command resumes.
    Interrupted,
}

/// Context of an error that another process of the same work reports.
#[derive(Debug, thiserror::Error)]
#[error("another process reports this")]
pub struct SaidElsewhere;

impl ExitStatus {
    /// The number for the shell.
    pub fn code(self) -> u8 {
        match self {
            ExitStatus::Fine => 0,
            ExitStatus::Problems => 1,
            ExitStatus::CouldNot => 2,
            ExitStatus::TryAgain => 75,
            ExitStatus::Interrupted => signals::exit_code(),
        }
    }

    /// [`ExitStatus::TryAgain`] for an error whose cause may pass, else [`ExitStatus::CouldNot`].
    pub fn of_error(error: &anyhow::Error) -> ExitStatus {
        let passes = error.chain().any(|cause| {
            let disk_full = matches!(cause.downcast_ref(), Some(schemas::Error::DiskFull { .. }));
            let network =
                matches!(cause.downcast_ref(), Some(hub::Error::Unreachable { .. } | hub::Error::BadAnswer { .. }));
            disk_full || network || cause.downcast_ref::<io::Error>().is_some_and(may_pass)
        });
        if passes { ExitStatus::TryAgain } else { ExitStatus::CouldNot }
    }

    /// Ends a program: reports an error on stderr in `format`. `status_of` gives the status of an error.
    ///
    /// A closed stdout is not an error: `head` closes it after enough lines, and results are printed when the work is done. An error with
    /// [`SaidElsewhere`] is not reported again.
    pub fn report(
        outcome: anyhow::Result<ExitStatus>,
        format: LogFormat,
        status_of: impl FnOnce(&anyhow::Error) -> ExitStatus,
    ) -> ExitStatus {
        match outcome {
            Ok(status) => status,
            Err(error) if is_closed_pipe(&error) => ExitStatus::Fine,
            Err(error) if error.is::<SaidElsewhere>() => status_of(&error),
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

/// Whether what the operating system refuses now it may grant later.
fn may_pass(error: &io::Error) -> bool {
    use io::ErrorKind::*;
    /// A disk or its network failed; too many files are open, in the system or in this process.
    const EIO: i32 = 5;
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    matches!(
        error.kind(),
        ConnectionAborted
            | ConnectionRefused
            | ConnectionReset
            | HostUnreachable
            | NetworkDown
            | NetworkUnreachable
            | NotConnected
            | OutOfMemory
            | QuotaExceeded
            | ResourceBusy
            | StaleNetworkFileHandle
            | StorageFull
            | TimedOut
    ) || matches!(error.raw_os_error(), Some(EIO | ENFILE | EMFILE))
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<io::Error>();
    io.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_pass_is_told_from_what_stays() {
        let status =
            |error: io::Error| ExitStatus::of_error(&anyhow::Error::from(error).context("while building")).code();
        assert_eq!(status(io::ErrorKind::StorageFull.into()), 75);
        assert_eq!(status(io::Error::from_raw_os_error(5)), 75);
        assert_eq!(status(io::ErrorKind::NotFound.into()), 2);
        assert_eq!(status(io::ErrorKind::PermissionDenied.into()), 2);
        let full = schemas::Error::DiskFull { path: "part".into() };
        assert_eq!(ExitStatus::of_error(&full.into()).code(), 75);
        assert_eq!(ExitStatus::of_error(&anyhow::anyhow!("a wrong setting")).code(), 2);
    }

    #[test]
    fn only_a_closed_stdout_is_no_error() {
        let end = |outcome| ExitStatus::report(outcome, LogFormat::Text, |_| ExitStatus::Problems).code();
        assert_eq!(end(Ok(ExitStatus::Interrupted)), 130);
        assert_eq!(end(Err(io::Error::from(io::ErrorKind::BrokenPipe).into())), 0);
        let not_found = || anyhow::Error::from(io::Error::from(io::ErrorKind::NotFound));
        assert_eq!(end(Err(not_found())), 1);
        assert_eq!(end(Err(not_found().context(SaidElsewhere))), 1, "the status is its own");
    }
}
