//! The program `pipeline`: parse, run, exit status.

use std::process::ExitCode;

use models::hub::HubSettings;
use pipeline::{ExitStatus, cli::Cli, interrupt, logging};
use tikv_jemallocator::Jemalloc;

/// libtorch's allocator too: what a step or a forward pass frees serves the next one, where the C library's gives every large block back to the
/// system, which must clear its pages again each time. `malloc_conf` in torch-ext has the settings.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    let cli = Cli::from_args(std::env::args_os()).unwrap_or_else(|error| error.exit());
    logging::init(cli.log_format, std::env::var("RUST_LOG").ok().as_deref());
    torch_ext::keep_quiet_about_memory();
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
