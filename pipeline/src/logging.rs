//! Messages on stderr: text or JSON lines that do not tear the progress bars.

use std::io::{self, IsTerminal, Write};
use std::sync::LazyLock;

use indicatif::{MultiProgress, ProgressDrawTarget};
use tracing_subscriber::EnvFilter;

use crate::cli::LogFormat;

/// The bars of this process. A terminal is one per process, and so are the bars on it; they hide themselves where stderr
/// is no terminal.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Sends `tracing`'s messages to stderr in the format asked for. `filter` is in `RUST_LOG`'s syntax; without one, messages
/// from `info` up are shown. Called once, by the program.
pub fn init(format: LogFormat, filter: Option<&str>) {
    let filter = EnvFilter::new(filter.unwrap_or("info"));
    let messages = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| AboveBars)
        // Whoever reads the messages may be gone, or the log's disk full; the work goes on without them.
        .log_internal_errors(false)
        .with_target(false);
    match format {
        LogFormat::Text => messages
            .without_time()
            .with_ansi(io::stderr().is_terminal())
            .init(),
        LogFormat::Json => {
            BARS.set_draw_target(ProgressDrawTarget::hidden());
            messages.json().flatten_event(true).init();
        }
    }
}

/// The last word of a program that could not do what was asked: on stderr whatever the filter, in the format asked for.
pub fn report_error(format: LogFormat, error: &anyhow::Error) {
    let message = format!("{error:#}");
    let line = match format {
        LogFormat::Text => format!("ERROR {message}"),
        LogFormat::Json => serde_json::json!({"level": "ERROR", "message": message}).to_string(),
    };
    // With nobody to read it, the exit status is all that is left.
    let _ = writeln!(AboveBars, "{line}");
}

/// Whether an error is only that whoever read stdout has gone, as `head` does when it has seen enough.
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<io::Error>();
    io.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// The bars, to add one.
pub(crate) fn bars() -> &'static MultiProgress {
    &BARS
}

/// stderr, written while the bars step aside.
struct AboveBars;

impl Write for AboveBars {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        BARS.suspend(|| io::stderr().lock().write_all(bytes))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
