//! The program `pipeline`: parse, run, exit status.

use std::process::ExitCode;

use clap::Parser;
use models::hub::HubSettings;
use pipeline::{ExitStatus, cli::Cli, interrupt, logging};

fn main() -> ExitCode {
    let cli = Cli::parse();
    logging::init(cli.log_format, std::env::var("RUST_LOG").ok().as_deref());
    let format = cli.log_format;
    let hub = HubSettings::from_vars(|name| std::env::var(name).ok());
    let outcome = interrupt::catch_signals().and_then(|()| pipeline::run(cli, &hub));
    match outcome {
        Ok(status) => status.into(),
        // Results go to stdout when the work is done.
        Err(error) if logging::is_closed_pipe(&error) => ExitStatus::Fine.into(),
        Err(error) => {
            logging::report_error(format, &error);
            ExitCode::from(ExitStatus::COULD_NOT)
        }
    }
}
