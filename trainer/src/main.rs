//! The program `trainer`: parse, run, exit status.

use std::io;
use std::process::ExitCode;

use hub::HubSettings;
use program::{ExitStatus, signals, terminal};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tikv_jemallocator::Jemalloc;
use trainer::cli::Cli;
use trainer::{LAUNCHED, Place};

/// libtorch uses this allocator too. It reuses the memory that a step or a forward pass frees for the next one. The C library's allocator
/// returns every large block to the system, which has to clear its pages again each time. `malloc_conf` in torch-ext has the settings.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    let cli: Cli = program::cli::parse(std::env::args_os()).unwrap_or_else(|error| error.exit());
    let place = Place::from_vars(|name| std::env::var(name).ok());
    let name = place.as_ref().ok().and_then(|place| place.as_ref()).filter(|place| place.rank > 0);
    let name = name.map(|place| format!("rank {}", place.rank));
    terminal::init(cli.log_format, std::env::var("RUST_LOG").ok().as_deref(), name);
    allow_open_files();
    torch_ext::keep_quiet_about_memory();
    let hub = HubSettings::from_vars(|name| std::env::var(name).ok());
    let outcome = signals::catch().and_then(|()| {
        let place = place?;
        if std::env::var_os(LAUNCHED).is_some() {
            stop_without_launcher();
        }
        program::stores::open(std::env::vars_os(), std::env::temp_dir(), cli.cache_folder())?;
        trainer::run(&cli, &hub, place.as_ref(), &mut io::stdout().lock())
    });
    ExitStatus::report(outcome, cli.log_format, trainer::exit_status).into()
}

/// Stops the run, with a checkpoint, when `trainer launch` is gone: then the pipe ends that it holds.
fn stop_without_launcher() {
    let wait = || {
        if io::copy(&mut io::stdin().lock(), &mut io::sink()).is_ok() {
            signals::request();
        }
    };
    if let Err(error) = std::thread::Builder::new().name("launcher".into()).spawn(wait) {
        tracing::debug!("no thread to watch the launcher: {error}");
    }
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
