//! The program `trainer`: parse, run, exit status.

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;
use trainer::cli::{Cli, LogFormat};

fn main() -> ExitCode {
    let cli = Cli::parse();
    init_logging(cli.log_format);
    match trainer::run(&cli, &mut io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::from(trainer::exit_code(&error))
        }
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
