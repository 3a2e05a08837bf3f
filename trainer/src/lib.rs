//! Stage two: trains the student from images and cached teacher features, and shows what it learned.
//!
//! [`run`] is the table of contents. [`pretrain`] is the main job, one visible loop in one file; [`mod@finetune`] is another, for
//! classification; [`eval`] judges students and teachers; [`export`] writes students for other packages; [`mod@plan`] says what a
//! run costs and [`mod@bench`] measures the parts of a step.
//!
//! ```text
//! cache rows ─┐
//!             ├─► data::loader ──► step ──► metrics.jsonl
//! images ─────┘   (threads)         │
//!                                   └──► checkpoint ──► RUN/checkpoints/step-…, LAST
//! ```

pub mod augment;
pub mod bench;
pub mod checkpoint;
pub mod classes;
pub mod cli;
pub mod config;
pub mod data;
mod depth;
pub mod eval;
pub mod export;
pub mod finetune;
pub mod idle;
mod init;
pub mod metrics;
pub mod micro_batch;
pub mod optim;
pub mod plan;
pub mod pretrain;
pub mod progress;
pub mod reconstruct;
pub mod report;
pub mod run_folder;
pub mod schedule;
pub mod step;
pub mod target_stats;
pub mod teachers;
pub mod tensorboard;
mod trained;

#[cfg(test)]
mod testing;

use std::io::Write;

use cli::{Cli, Command};
use config::any::AnyRecipe;
use data::Problem;
use hub::HubSettings;
pub use program::ExitStatus;
use program::signals;
use torch_ext::catch_out_of_memory;

/// Does what the command line asks for. Results go to `out`, progress to `tracing`. Teachers that are given by id
/// are looked for as `hub` says.
pub fn run(cli: &Cli, hub: &HubSettings, out: &mut dyn Write) -> anyhow::Result<ExitStatus> {
    let done = catch_out_of_memory(|| run_command(cli, hub, out));
    let done = done.unwrap_or_else(|lack| {
        // Forward and backward passes of pretraining are taken in smaller parts; everything else ends here, and so does an update for which
        // weights, gradients, moments and averages do not fit beside each other.
        Err(anyhow::Error::from(lack).context(
            "take smaller batches (optim.batch_size with a larger optim.accum_iter, or --batch-size), a smaller model, or a device with \
             more memory",
        ))
    });
    done.or_else(|error| {
        // Asked for, and so no failure.
        let stopped =
            matches!(error.downcast_ref(), Some(hub::Error::Interrupted { .. })) || error.is::<signals::Interrupted>();
        if !stopped {
            return Err(error);
        }
        tracing::warn!("{error:#}");
        Ok(ExitStatus::Interrupted)
    })
}

fn run_command(cli: &Cli, hub: &HubSettings, out: &mut dyn Write) -> anyhow::Result<ExitStatus> {
    match &cli.command {
        Command::Pretrain(args) => return pretrain::pretrain(args, hub),
        Command::Finetune(args) => return finetune::finetune(args, hub, out),
        Command::Knn(args) => eval::run_knn(args, hub, out),
        Command::Export(args) => export::run_export(args, cli.log_format, out),
        Command::Linprobe(args) => eval::linprobe::run(args, hub, out),
        Command::Config(args) => {
            let recipe = AnyRecipe::load(&args.recipe, &args.set)?;
            Ok(out.write_all(recipe.to_toml().as_bytes())?)
        }
        Command::Reconstruct(args) => reconstruct::reconstruct(args, out),
        Command::Report(args) => report::report(args, out),
        Command::Plan(args) => plan::plan(args, hub, out),
        Command::Bench(args) => bench::bench(args, out),
        Command::Completions { shell } => Ok(program::cli::completions::<Cli>(*shell, out)?),
    }?;
    Ok(ExitStatus::Fine)
}

/// The exit status for an error: [`ExitStatus::Problems`] if the data a run was given has problems, else [`ExitStatus::CouldNot`].
pub fn exit_status(error: &anyhow::Error) -> ExitStatus {
    let problem = error.chain().find_map(|cause| cause.downcast_ref());
    match problem {
        // A wrong path, a failing disk or a setting that does not fit says nothing about the data.
        None
        | Some(
            Problem::Cache(
                schemas::Error::NotACache { .. } | schemas::Error::Io { .. } | schemas::Error::NoSuchTeacher { .. },
            )
            | Problem::Grid { .. }
            | Problem::TooManyViews { .. }
            | Problem::NoPixels { .. }
            | Problem::PackedPixels { .. },
        ) => ExitStatus::CouldNot,
        Some(_) => ExitStatus::Problems,
    }
}
