//! The program `trainer`: parse, run, exit status.

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing_subscriber::EnvFilter;
use trainer::cli::{Cli, LogFormat};

fn main() -> ExitCode {
    let cli = Cli::parse();
    init_logging(cli.log_format);
    allow_open_files();
    match trainer::run(&cli, &mut io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::from(trainer::exit_code(&error))
        }
    }
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
        .with_target(false);
    match format {
        LogFormat::Text => messages
            .without_time()
            .with_ansi(io::stderr().is_terminal())
            .init(),
        LogFormat::Json => messages.json().flatten_event(true).init(),
    }
}
