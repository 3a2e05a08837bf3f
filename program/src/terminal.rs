//! Messages on stderr as text or JSON lines, printed above the progress bars.

use std::io::{self, IsTerminal, Write};
use std::sync::{LazyLock, OnceLock};

use indicatif::{MultiProgress, ProgressDrawTarget};
use tracing_subscriber::EnvFilter;

use crate::cli::LogFormat;

/// The progress bars of this process. There is one set because there is one terminal; they are hidden if stderr is not a terminal.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// What messages call this process, if it is one of many.
static NAME: OnceLock<String> = OnceLock::new();

/// Sends `tracing`'s messages to stderr in `format`. `filter` is in `RUST_LOG`'s syntax; without one, messages from `info` up are shown. A process
/// with a `name` is one of many, and not the one that speaks for all: its messages carry the name, only warnings are shown, and no bars.
/// A program calls this once.
pub fn init(format: LogFormat, filter: Option<&str>, name: Option<String>) {
    let mut filter = EnvFilter::new(filter.unwrap_or(if name.is_some() { "warn" } else { "info" }));
    if let Some(name) = name {
        BARS.set_draw_target(ProgressDrawTarget::hidden());
        NAME.get_or_init(|| name);
    }
    // Its messages show the URLs of requests, which may be signed; what it cannot do is reported as an error.
    if let Ok(silent) = "object_store=off".parse() {
        filter = filter.add_directive(silent);
    }
    let messages = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| AboveBars)
        // The work goes on if stderr is closed or the log's disk is full.
        .log_internal_errors(false)
        .with_target(false);
    match format {
        LogFormat::Text => messages.without_time().with_ansi(io::stderr().is_terminal()).init(),
        LogFormat::Json => {
            BARS.set_draw_target(ProgressDrawTarget::hidden());
            messages.json().flatten_event(true).init();
        }
    }
}

/// Writes the error that ends a program to stderr, regardless of the filter.
pub(crate) fn report_error(format: LogFormat, error: &anyhow::Error) {
    let message = format!("{error:#}");
    let line = match format {
        LogFormat::Text => format!("ERROR {message}"),
        LogFormat::Json => serde_json::json!({"level": "ERROR", "message": message}).to_string(),
    };
    // If stderr is closed, the exit status still shows the failure.
    let _ = AboveBars.write_all(format!("{line}\n").as_bytes());
}

/// Writes a message of another process to stderr, with its name: `worker` in front of text, a field of JSON.
pub fn pass_on(worker: &str, line: &str) {
    let _ = AboveBars.write_all(format!("{}\n", named(worker, line)).as_bytes());
}

fn named(worker: &str, line: &str) -> String {
    match line.strip_prefix('{') {
        Some(fields) => format!("{{\"worker\":{},{fields}", serde_json::Value::from(worker)),
        None => format!("[{worker}] {line}"),
    }
}

/// The progress bars of this process, to add one.
pub fn bars() -> &'static MultiProgress {
    &BARS
}

/// Writes to stderr while the bars are hidden.
struct AboveBars;

impl Write for AboveBars {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A message comes as a whole.
        let text = NAME.get().map(|name| named(name, &String::from_utf8_lossy(bytes)));
        BARS.suspend(|| io::stderr().lock().write_all(text.as_ref().map_or(bytes, String::as_bytes)))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
