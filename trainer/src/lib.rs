//! Stage two: trains the student from images and cached teacher features, and shows what it learned.
//!
//! [`run`] is the table of contents. `commands/pretrain.rs` is the main job, one visible loop in one file; `commands/finetune.rs` is the
//! other loop. The other folders hold parts: `recipe` (settings), `data` (cache rows and images to batches), `train` (the step, the log,
//! checkpoints), `pretrained` (networks that exist already), `eval` (features and accuracies).
//!
//! ```text
//! cache rows ─┐
//!             ├─► data::loader ──► train::step ──► metrics.jsonl
//! images ─────┘   (threads)         │
//!                                   └──► checkpoint ──► RUN/checkpoints/step-…, LAST
//! ```

pub mod cli;
mod commands;
mod data;
mod dist;
mod eval;
mod output;
mod pretrained;
mod recipe;
mod train;

#[cfg(test)]
mod testing;

use std::io::Write;

use cli::{Cli, Command};
pub use commands::launch::LAUNCHED;
use commands::{
    bench, config, embed, export, finetune, knn, launch, linprobe, plan, predict, pretrain, reconstruct, report,
    segment,
};
use data::Problem;
use dist::LostRank;
pub use dist::Place;
use hub::HubSettings;
pub use program::ExitStatus;
use program::signals;
use torch_ext::catch_out_of_memory;

/// Runs the command of the command line. Results go to `out`, progress to `tracing`. Teachers that are given by id
/// are searched as `hub` says. `place` says which one of many processes this is that train together.
pub fn run(cli: &Cli, hub: &HubSettings, place: Option<&Place>, out: &mut dyn Write) -> anyhow::Result<ExitStatus> {
    let done = catch_out_of_memory(|| run_command(cli, hub, place, out));
    let done = done.unwrap_or_else(|out_of_memory| {
        // Training repeats forward and backward passes in smaller micro-batches. Everything else ends here, as does an update for which weights,
        // gradients, moments and averages do not fit side by side.
        Err(anyhow::Error::from(out_of_memory).context(
            "use smaller batches (optim.batch_size with a larger optim.accum_iter, or --batch-size), a smaller model, or a device with \
             more memory",
        ))
    });
    done.or_else(|error| {
        // The user asked for it, so it is not a failure.
        let stopped =
            matches!(error.downcast_ref(), Some(hub::Error::Interrupted { .. })) || error.is::<signals::Interrupted>();
        if !stopped {
            return Err(error);
        }
        tracing::warn!("{error:#}");
        Ok(ExitStatus::Interrupted)
    })
}

/// Commands that many processes do together.
fn runs_in_many(command: &Command) -> bool {
    matches!(command, Command::Pretrain(_) | Command::Finetune(_) | Command::Knn(_) | Command::Linprobe(_))
}

fn run_command(cli: &Cli, hub: &HubSettings, place: Option<&Place>, out: &mut dyn Write) -> anyhow::Result<ExitStatus> {
    if let Some(place) = place.filter(|place| place.world_size > 1 && !runs_in_many(&cli.command)) {
        anyhow::bail!(
            "this command runs as one process, and the environment says that it is rank {} of {} (RANK, WORLD_SIZE, or a Slurm job step)",
            place.rank,
            place.world_size
        );
    }
    match &cli.command {
        Command::Pretrain(args) => return pretrain::pretrain(args, hub, place),
        Command::Launch(args) => return launch::launch(args),
        Command::Finetune(args) => return finetune::finetune(args, hub, place, out),
        Command::Embed(args) => return embed::embed(args, hub, out),
        Command::Predict(args) => return predict::predict(args, hub, out),
        Command::Knn(args) => knn::knn(args, hub, place, out),
        Command::Export(args) => export::export(args, cli.log_format, out),
        Command::Linprobe(args) => linprobe::linprobe(args, hub, place, out),
        Command::Segment(args) => segment::segment(args, hub, out),
        Command::Config(args) => config::config(args, out),
        Command::Reconstruct(args) => reconstruct::reconstruct(args, out),
        Command::Report(args) => report::report(args, out),
        Command::Plan(args) => plan::plan(args, hub, out),
        Command::Bench(args) => bench::bench(args, out),
        Command::Completions { shell } => Ok(program::cli::completions::<Cli>(*shell, out)?),
    }?;
    Ok(ExitStatus::Fine)
}

/// The exit status for an error: [`ExitStatus::Problems`] if the data of a run has problems, else [`ExitStatus::of_error`].
pub fn exit_status(error: &anyhow::Error) -> ExitStatus {
    let lost = |cause: &(dyn std::error::Error + 'static)| {
        cause.is::<LostRank>() || matches!(cause.downcast_ref(), Some(torch_ext::Error::Group { .. }))
    };
    if error.chain().any(lost) {
        return ExitStatus::TryAgain;
    }
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
            | Problem::OtherCache { .. }
            | Problem::NoPixels { .. }
            | Problem::PackedPixels { .. },
        ) => ExitStatus::of_error(error),
        Some(_) => ExitStatus::Problems,
    }
}
