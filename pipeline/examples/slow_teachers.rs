//! The program `pipeline`, with teachers that take as long as asked: to see what surrounds them when processors do not bind.
//!
//!     PAUSE_MS=100 cargo run --release -p pipeline --example slow_teachers -- build-cache ...
//!
//! After computing a row, each teacher waits for that time.

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use pipeline::Environment;
use pipeline::cli::Cli;
use program::{ExitStatus, signals, terminal};

fn main() -> ExitCode {
    let cli: Cli = program::cli::parse(std::env::args_os()).unwrap_or_else(|error| error.exit());
    terminal::init(cli.log_format, None, None);
    let outcome = signals::catch().and_then(|()| {
        let var = |name: &str| std::env::var(name).ok();
        let pause = var("PAUSE_MS").and_then(|millis| millis.parse().ok()).unwrap_or(100);
        let env = Environment { pause_per_row: Duration::from_millis(pause), ..Environment::from_vars(var) };
        pipeline::run(&cli, &env, &mut io::stdout().lock())
    });
    ExitStatus::report(outcome, cli.log_format, pipeline::exit_status).into()
}
