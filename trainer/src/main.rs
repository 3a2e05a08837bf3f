//! The program `trainer`: parse, run, exit status.

use std::io;
use std::process::ExitCode;

use hub::HubSettings;
use program::{ExitStatus, signals, terminal};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tikv_jemallocator::Jemalloc;
use trainer::cli::Cli;

/// libtorch uses this allocator too. It reuses the memory that a step or a forward pass frees for the next one. The C library's allocator
/// returns every large block to the system, which has to clear its pages again each time. `malloc_conf` in torch-ext has the settings.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    let cli: Cli = program::cli::parse(std::env::args_os()).unwrap_or_else(|error| error.exit());
    terminal::init(cli.log_format, std::env::var("RUST_LOG").ok().as_deref());
    allow_open_files();
    torch_ext::keep_quiet_about_memory();
    let hub = HubSettings::from_vars(|name| std::env::var(name).ok());
    let outcome = signals::catch().and_then(|()| {
        program::stores::open(std::env::vars_os(), std::env::temp_dir(), cli.cache_folder())?;
        trainer::run(&cli, &hub, &mut io::stdout().lock())
    });
    ExitStatus::report(outcome, cli.log_format, trainer::exit_status).into()
}

/// Raises this process's limit of open files to the hard limit. The loader keeps each part of a teacher open, and a cache of ImageNet has
/// more parts than the usual limit of 1024 files.
fn allow_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!("the limit of open files stays at {:?}: {error}", limit.current);
    }
}
