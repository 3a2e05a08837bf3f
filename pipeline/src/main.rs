//! The program `pipeline`: parse, run, exit status.

use std::io;
use std::process::ExitCode;

use pipeline::Environment;
use pipeline::cli::Cli;
use program::{ExitStatus, signals, terminal};
use tikv_jemallocator::Jemalloc;

/// libtorch's allocator too: what a step or a forward pass frees serves the next one, where the C library's gives every large block back to the
/// system, which must clear its pages again each time. `malloc_conf` in torch-ext has the settings.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    let cli: Cli = program::cli::parse(std::env::args_os()).unwrap_or_else(|error| error.exit());
    terminal::init(cli.log_format, std::env::var("RUST_LOG").ok().as_deref(), None);
    torch_ext::keep_quiet_about_memory();
    let outcome = signals::catch().and_then(|()| {
        program::stores::open(std::env::vars_os(), std::env::temp_dir(), None)?;
        let mut env = Environment::from_vars(|name| std::env::var(name).ok());
        let program = std::env::current_exe()?.into_os_string();
        env.command = std::iter::once(program).chain(std::env::args_os().skip(1)).collect();
        pipeline::run(&cli, &env, &mut io::stdout().lock())
    });
    ExitStatus::report(outcome, cli.log_format, pipeline::exit_status).into()
}
