//! The command line: exactly what was typed. The recipes and the commands give it meaning.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use clap_complete::Shell;
use program::LogFormat;
use storage::CacheFolder;

mod features;
mod results;
mod shared;
mod training;

pub use features::{EmbedArgs, KnnArgs, LinprobeArgs, SegmentArgs, SegmentMethod};
pub use results::{ExportArgs, PredictArgs, ReconstructArgs, ReportArgs};
pub use shared::{DeviceArgs, LabeledArgs, NetworkArgs, RecipeArgs};
pub use training::{BenchArgs, BenchPart, FinetuneArgs, LaunchArgs, PlanArgs, PretrainArgs};

/// Pretrains an MR-MAE student from images and cached teacher features, and shows what it learned.
#[derive(Debug, Parser)]
#[command(
    name = "trainer",
    version,
    after_help = "Exit status: 0 fine, 1 the data has problems, 2 could not do it, 75 could not now (disk, network, memory, a lost process), 130 or 143 interrupted."
)]
pub struct Cli {
    /// Format of messages on stderr and of what `export` prints on stdout; other commands have --json for stdout.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// Folder on a local disk that keeps what is read from object stores (s3://, gs://, az://, http://), for later epochs and runs.
    /// Any number of processes may share it.
    #[arg(long, global = true, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// The most that --cache-dir takes, for example 500GB or 64GiB; the longest unread blocks make room. At least 16MiB.
    #[arg(long, global = true, value_name = "SIZE", default_value = "100GB", value_parser = parse_size)]
    pub cache_dir_limit: u64,
    /// The command to run.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// Where blocks of objects are kept, if that is asked for.
    pub fn cache_folder(&self) -> Option<CacheFolder> {
        let folder = self.cache_dir.clone()?;
        Some(CacheFolder { folder, limit: self.cache_dir_limit })
    }
}

/// Bytes from a number with a unit: `1.5TB`, `64 GiB`, `1000000`.
fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = (&text[..end], text[end..].trim().to_ascii_lowercase());
    let unit: f64 = match &*unit {
        "" | "b" => 1.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        "tib" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return Err("expected a number with a unit, such as 500GB or 64GiB".to_owned()),
    };
    let number: f64 = number.parse().map_err(|_| "expected a number with a unit, such as 500GB or 64GiB".to_owned())?;
    Ok((number * unit) as u64)
}

/// The stages, one file each.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train a masked autoencoder whose visible tokens mimic the cached teachers. Run again to resume.
    Pretrain(PretrainArgs),
    /// Train a pretrained encoder further, with a classifier on top, on labeled images. Run again to resume.
    Finetune(FinetuneArgs),
    /// Run pretrain, finetune, knn or linprobe as many processes on this machine, one for each GPU. torchrun and Slurm can start them as well.
    Launch(LaunchArgs),
    /// Weighted k-nearest-neighbor classification on frozen features of a student, a teacher, or raw pixels.
    Knn(KnnArgs),
    /// Write features of any images to a Parquet or NumPy file: of a student, a teacher, or raw pixels. Run again to resume.
    Embed(EmbedArgs),
    /// Write the classes of any images by a fine-tuned network to a CSV or Parquet file. Run again to resume.
    Predict(PredictArgs),
    /// Write a student, or a fine-tuned classifier, as the files of timm, transformers, MAE or ConvMAE.
    Export(ExportArgs),
    /// Linear classification of frozen features of a student, a teacher, or raw pixels: MAE's linear probe.
    Linprobe(LinprobeArgs),
    /// Semantic segmentation by frozen patch tokens of a student, a teacher, or raw pixels: mean IoU on images with masks.
    Segment(SegmentArgs),
    /// Draw original, masked and reconstructed images of a student.
    Reconstruct(ReconstructArgs),
    /// Show runs side by side in one HTML file: curves, pictures, evaluations, recipes.
    Report(ReportArgs),
    /// Print the resolved recipe of pretraining or fine-tuning: the file with the settings of the command line and every default.
    Config(RecipeArgs),
    /// Estimate what a recipe costs before it is run: parameters, arithmetic, memory, time, and when a cache pays for itself.
    Plan(PlanArgs),
    /// Measure the loader alone, the training step alone, and a plain matmul, in one run.
    Bench(BenchArgs),
    /// Print a script that completes this program's commands and options in a shell: bash, zsh, fish, elvish or powershell.
    Completions {
        /// The shell.
        shell: Shell,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It would be a guess which of two values is meant. Options that may be given many times are accepted.
    #[test]
    fn an_option_given_twice_is_refused() {
        let parse = |line: &str| {
            let words = line.split(' ').map(Into::into);
            program::cli::parse::<Cli>(words).map(|_| ()).map_err(|e| e.to_string())
        };
        for line in [
            "trainer pretrain --cache a --recipe r --out o --out p",
            "trainer pretrain --cache a --recipe r --recipe r --out o",
            "trainer pretrain --cache a --recipe=r --out o --threads 1 --threads 2",
            "trainer knn --train a --test b --model m --train c",
            "trainer knn --train a --test b --model m --json --json",
            "trainer --log-format text knn --train a --test b --model m --log-format json",
            "trainer config --recipe a --recipe b",
            "trainer bench --recipe a --cache b --cache c",
        ] {
            let refused = parse(line).unwrap_err();
            assert!(refused.contains("cannot be used multiple times"), "{line}: {refused}");
        }
        for line in [
            "trainer pretrain --cache a --recipe r --out o --set a.b=1 --set a.c=2",
            "trainer pretrain --cache a --images x --cache b --images y --recipe r --out o",
            "trainer knn --train a --test b --model m --model n --log-format json",
        ] {
            parse(line).unwrap();
        }
    }

    /// A training that stops before its first step would be taken for one that does nothing.
    #[test]
    fn no_training_stops_after_0_steps() {
        for line in ["pretrain --cache a", "finetune --init a --train b --test c"] {
            let line = format!("trainer {line} --recipe r --out o --stop-after 0");
            let refused = Cli::try_parse_from(line.split(' ')).unwrap_err().to_string();
            assert!(refused.contains("'0' for '--stop-after <STEPS>'"), "{refused}");
        }
    }
}
