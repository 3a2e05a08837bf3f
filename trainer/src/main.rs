//! The program `trainer`: parse, run, exit status.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use models::hub::HubSettings;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tikv_jemallocator::Jemalloc;
use tracing_subscriber::EnvFilter;
use trainer::cli::{Cli, LogFormat};

/// libtorch's allocator too: what a step or a forward pass frees serves the next one, where the C library's gives every large block back to the
/// system, which must clear its pages again each time. `malloc_conf` in torch-ext has the settings.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    let cli = Cli::from_args(std::env::args_os()).unwrap_or_else(|error| error.exit());
    init_logging(cli.log_format);
    allow_open_files();
    torch_ext::keep_quiet_about_memory();
    let hub = HubSettings::from_vars(|name| std::env::var(name).ok());
    let outcome = trainer::interrupt::catch_signals()
        .and_then(|()| trainer::run(&cli, &hub, &mut io::stdout().lock()));
    match outcome {
        Ok(status) => ExitCode::from(status.code()),
        // Whoever read stdout has gone, as `head` does when it has seen enough; results come when the work is done.
        Err(error)
            if error
                .downcast_ref::<io::Error>()
                .is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) =>
        {
            ExitCode::SUCCESS
        }
        Err(error) => {
            report_error(cli.log_format, &error);
            ExitCode::from(trainer::exit_code(&error))
        }
    }
}

/// The last word of a program that could not do what was asked: whatever `RUST_LOG` says, in the format asked for.
fn report_error(format: LogFormat, error: &anyhow::Error) {
    let message = format!("{error:#}");
    let line = match format {
        LogFormat::Text => format!("ERROR {message}"),
        LogFormat::Json => serde_json::json!({"level": "ERROR", "message": message}).to_string(),
    };
    // With nobody to read it, the exit status is all that is left.
    let _ = writeln!(io::stderr(), "{line}");
}

/// Raises the number of files this process may open to what the system lets it have. The loader keeps each part of a teacher open, and a cache of
/// ImageNet has more parts than the 1024 files that a process often starts with.
fn allow_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(
            "the limit of open files stays at {:?}: {error}",
            limit.current
        );
    }
}

/// Messages go to stderr, from `info` up unless `RUST_LOG` says otherwise.
fn init_logging(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let messages = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        // Whoever reads the messages may be gone, or the log's disk full; a run of days goes on without them.
        .log_internal_errors(false)
        .with_target(false);
    match format {
        LogFormat::Text => messages
            .without_time()
            .with_ansi(io::stderr().is_terminal())
            .init(),
        LogFormat::Json => messages.json().flatten_event(true).init(),
    }
}
