//! The command line: exactly what was typed. The recipes and the commands give it meaning.

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use models::interop::Format;
use models::precision::Precision;
use program::LogFormat;
use schemas::DepthWindow;
use storage::CacheFolder;
use tch::Device;

use crate::data::classes::Matching;

/// Pretrains an MR-MAE student from images and cached teacher features, and shows what it learned.
#[derive(Debug, Parser)]
#[command(
    name = "trainer",
    version,
    after_help = "Exit status: 0 fine, 1 the data has problems, 2 could not do it, 75 could not now (disk, network, memory), 130 or 143 interrupted."
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

/// A recipe and the settings that override it.
#[derive(Debug, Clone, Args)]
pub struct RecipeArgs {
    /// Recipe file (TOML).
    #[arg(long, value_name = "FILE")]
    pub recipe: PathBuf,
    /// Override one setting of the recipe, for example `--set optim.batch_size=64`. May be given many times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// Where to compute.
#[derive(Debug, Clone, Args)]
pub struct DeviceArgs {
    /// auto, cpu, cuda or cuda:INDEX.
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Threads that read and decode images [default: one per core; with a GPU two fewer, to leave cores for feeding it].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
}

impl DeviceArgs {
    /// The number of loader threads: as given, or one per core; with a GPU as `device`, two cores are left for the thread that feeds it
    /// and for autograd's. Results do not depend on it.
    pub fn loader_threads(&self, device: Device) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        match (self.threads, device) {
            (Some(n), _) => usize::from(n),
            (None, Device::Cpu) => cores,
            (None, _) => cores.saturating_sub(2).max(1),
        }
    }
}

/// `trainer pretrain`.
#[derive(Debug, Clone, Args)]
pub struct PretrainArgs {
    /// The feature cache that `pipeline build-cache` wrote: a folder, or a URL such as s3://BUCKET/NAME. May be given many times: the caches are then one data
    /// set, in this order.
    #[arg(long, value_name = "DIR", required = true)]
    pub cache: Vec<PathBuf>,
    /// The run folder; created, or resumed when it holds the same recipe.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// The images the cache was built from: class folders, *.tar or *.parquet. They may have been moved or
    /// renamed since; they are then found by content. A cache that packs its images needs none. With several caches, give it once for each, or once for
    /// all.
    #[arg(long, value_name = "SRC")]
    pub images: Vec<String>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub recipe: RecipeArgs,
    /// Run this teacher inside the loop, in f32, instead of reading its rows (with data.fresh, for the fresh views alone): its name in the cache, and
    /// its folder, file or id on the Hugging Face hub. May be given many times.
    #[arg(long = "online-teacher", value_name = "ID=DIR|HUB_ID")]
    pub online_teachers: Vec<String>,
    /// Labeled images that vote in a k-NN classification of --eval-test every run.eval_every epochs and at the end. The results go to
    /// RUN/evaluations.jsonl, and the weights of the best to RUN/best. Training does not depend on them.
    #[arg(long, value_name = "SRC", requires = "eval_test")]
    pub eval_train: Option<String>,
    /// Labeled images to classify.
    #[arg(long, value_name = "SRC", requires = "eval_train")]
    pub eval_test: Option<String>,
    /// Train a linear probe at each of these evaluations as well, as `trainer linprobe --views 0` does.
    #[arg(long, requires = "eval_train")]
    pub eval_linprobe: bool,
    /// How the classes of --eval-train and --eval-test are matched.
    #[arg(long, value_enum, value_name = "HOW", default_value_t = Matching::Auto)]
    pub match_classes: Matching,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub device: DeviceArgs,
    /// Stop after this many optimization steps of this call, with a checkpoint; the same command continues.
    #[arg(long, value_name = "STEPS", value_parser = clap::value_parser!(u64).range(1..))]
    pub stop_after: Option<u64>,
}

/// `trainer finetune`.
#[derive(Debug, Clone, Args)]
pub struct FinetuneArgs {
    /// The model to fine-tune: a run folder of `trainer pretrain` or `trainer finetune`, a model.safetensors of one, weights of MAE,
    /// ConvMAE, timm's ViT or transformers' ViT or ViTMAE, or a tower of CLIP, DINO, DINOv2, DINOv3 or SigLIP (path or id on the
    /// Hugging Face hub). `untrained:RUN` is a student with its initial weights, `ema:RUN` a run's moving average; `teacher:PATH`
    /// reads a file that could be a student's or a teacher's as a frozen teacher.
    #[arg(long, value_name = "RUN|FILE|TEACHER")]
    pub init: String,
    /// Labeled images to train on.
    #[arg(long, value_name = "SRC")]
    pub train: String,
    /// Labeled images to classify after each epoch.
    #[arg(long, value_name = "SRC")]
    pub test: String,
    /// How the classes of --train and --test are matched.
    #[arg(long, value_enum, value_name = "HOW", default_value_t = Matching::Auto)]
    pub match_classes: Matching,
    /// How images of more than 8 bits per sample are reduced to 8 bits [default: as when the model's run was trained, else high-byte].
    #[arg(long, value_name = "high-byte|full-range|percentile:LOW,HIGH|MIN,MAX")]
    pub depth_window: Option<DepthWindow>,
    /// The run folder; created, or resumed when it holds the same recipe.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub recipe: RecipeArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub device: DeviceArgs,
    /// Stop after this many optimization steps of this call, with a checkpoint; the same command continues.
    #[arg(long, value_name = "STEPS", value_parser = clap::value_parser!(u64).range(1..))]
    pub stop_after: Option<u64>,
    /// Print the result as JSON.
    #[arg(long)]
    pub json: bool,
}

/// `trainer knn`.
#[derive(Debug, Clone, Args)]
pub struct KnnArgs {
    /// A run folder of `trainer pretrain` or `trainer finetune`; a model.safetensors of one; a teacher, or a student in another package's
    /// format, as a folder, a file or an id on the Hugging Face hub; or `pixels[:SIZE]` for the raw-pixel baseline.
    /// `untrained:RUN` (or FILE) is that student with its initial weights; `ema:RUN` the moving average of a run that keeps one
    /// (optim.ema_decay); `unfused:RUN` a run with multi-layer fusion, evaluated without it (the default is as it was trained);
    /// `teacher:PATH` reads a file only as a teacher.
    /// May be given many times: every image is read and decoded once for all models.
    #[arg(long = "model", value_name = "RUN|FILE|TEACHER|pixels", required = true)]
    pub models: Vec<String>,
    /// Labeled images that vote.
    #[arg(long, value_name = "SRC")]
    pub train: String,
    /// Labeled images to classify.
    #[arg(long, value_name = "SRC")]
    pub test: String,
    /// How the classes of --train and --test are matched.
    #[arg(long, value_enum, value_name = "HOW", default_value_t = Matching::Auto)]
    pub match_classes: Matching,
    /// How images of more than 8 bits per sample are reduced to 8 bits [default: as when the model's run was trained, else high-byte].
    #[arg(long, value_name = "high-byte|full-range|percentile:LOW,HIGH|MIN,MAX")]
    pub depth_window: Option<DepthWindow>,
    /// Kinds of feature: cls, mean (of the patch tokens), or, of a student of trainer pretrain, head.TEACHER and head.TEACHER.cls (what it predicts of a teacher's features)
    /// [default: cls and mean, as far as a model has them].
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    pub features: Vec<String>,
    /// Neighbors that vote.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub k: u32,
    /// Images per forward pass.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    pub batch_size: u32,
    /// Precision of the network; tf32 needs a GPU.
    #[arg(long, default_value = "f32", value_parser = precision())]
    pub precision: Precision,
    /// Print the results as JSON: a list, one for each model.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub device: DeviceArgs,
}

/// `trainer embed`.
#[derive(Debug, Clone, Args)]
pub struct EmbedArgs {
    /// The model, as for `trainer knn`.
    #[arg(long, value_name = "RUN|FILE|TEACHER|pixels")]
    pub model: String,
    /// The images; labels are not needed.
    #[arg(long, value_name = "SRC")]
    pub images: String,
    /// The file to write: .parquet with key, content hash, label and a vector for each kind of feature, or .npy with the vectors of one kind and their keys in
    /// FILE.keys.csv.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Kinds of feature: cls, mean (of the patch tokens), patches (every patch token, row by row), head.TEACHER and head.TEACHER.cls (what a student of
    /// trainer pretrain predicts of a teacher's features, on average over the patches or of its CLS token) [default: cls and mean, as far as the model has them].
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    pub features: Vec<String>,
    /// How images of more than 8 bits per sample are reduced to 8 bits [default: as when the model's run was trained, else high-byte].
    #[arg(long, value_name = "high-byte|full-range|percentile:LOW,HIGH|MIN,MAX")]
    pub depth_window: Option<DepthWindow>,
    /// Images per forward pass.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    pub batch_size: u32,
    /// Precision of the network; tf32 needs a GPU.
    #[arg(long, default_value = "f32", value_parser = precision())]
    pub precision: Precision,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub device: DeviceArgs,
}

/// `trainer predict`.
#[derive(Debug, Clone, Args)]
pub struct PredictArgs {
    /// A run folder of `trainer finetune` (its newest whole checkpoint), or a file of its weights such as RUN/best/model.safetensors. `ema:RUN` is the moving
    /// average of a run that keeps one.
    #[arg(long, value_name = "RUN|FILE")]
    pub model: String,
    /// The images; labels are not needed.
    #[arg(long, value_name = "SRC")]
    pub images: String,
    /// The file to write, .csv or .parquet: for each image its key, class, the number of the class among the network's outputs, and score (the class's probability).
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Write the N best classes of each image.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..))]
    pub top: u8,
    /// How images of more than 8 bits per sample are reduced to 8 bits [default: as when the run was trained, else high-byte].
    #[arg(long, value_name = "high-byte|full-range|percentile:LOW,HIGH|MIN,MAX")]
    pub depth_window: Option<DepthWindow>,
    /// Images per forward pass.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    pub batch_size: u32,
    /// Precision of the network; tf32 needs a GPU.
    #[arg(long, default_value = "f32", value_parser = precision())]
    pub precision: Precision,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub device: DeviceArgs,
}

/// `trainer reconstruct`.
#[derive(Debug, Clone, Args)]
pub struct ReconstructArgs {
    /// A run folder of `trainer pretrain` (its newest whole checkpoint), or a checkpoint's model.safetensors. `ema:RUN` is the moving
    /// average of a run that keeps one (optim.ema_decay); no other prefix of `trainer knn` is taken.
    #[arg(long, value_name = "RUN|FILE")]
    pub model: String,
    /// The same as `ema:` before the run.
    #[arg(long)]
    pub ema: bool,
    /// The images: class folders, *.tar or *.parquet.
    #[arg(long, value_name = "SRC")]
    pub images: String,
    /// How images of more than 8 bits per sample are reduced to 8 bits [default: as when the model's run was trained, else high-byte].
    #[arg(long, value_name = "high-byte|full-range|percentile:LOW,HIGH|MIN,MAX")]
    pub depth_window: Option<DepthWindow>,
    /// PNG file to write.
    #[arg(long, value_name = "PNG")]
    pub out: PathBuf,
    /// Images to draw, chosen by --seed.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub count: u32,
    /// Seed for the choice of images and for the masks.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Share of patches that are removed at random [default: the recipe's].
    #[arg(long, value_name = "SHARE")]
    pub mask_ratio: Option<f64>,
    /// auto, cpu, cuda or cuda:INDEX.
    #[arg(long, default_value = "auto")]
    pub device: String,
}

/// `trainer report`.
#[derive(Debug, Clone, Args)]
pub struct ReportArgs {
    /// Run folders, of `trainer pretrain` or `trainer finetune`.
    #[arg(value_name = "RUN", required = true)]
    pub runs: Vec<PathBuf>,
    /// HTML file to write.
    #[arg(long, value_name = "HTML", default_value = "report.html")]
    pub out: PathBuf,
}

/// `trainer plan`.
#[derive(Debug, Clone, Args)]
pub struct PlanArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub recipe: RecipeArgs,
    /// The cache whose images, views and teachers are counted.
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,
    /// For a recipe of fine-tuning: the model to fine-tune, as for `trainer finetune` [default: the recipe's encoder section, which the
    /// recipe.toml of a run has].
    #[arg(long, value_name = "RUN|FILE|TEACHER")]
    pub init: Option<String>,
    /// For a recipe of fine-tuning: number of classes [default: 1000].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub num_classes: Option<u32>,
    /// Number of images in the data set, instead of the cache's.
    #[arg(long, value_name = "N")]
    pub num_images: Option<u64>,
    /// The device's matmul rate in TFLOP/s, in the recipe's precision [default: the recipe's run.peak_tflops, else measured on --device].
    #[arg(long, value_name = "T")]
    pub peak_tflops: Option<f64>,
    /// Share of the peak that training is assumed to reach, from 0 to 1.
    #[arg(long, value_name = "SHARE", default_value_t = 0.4)]
    pub mfu: f64,
    /// Where to measure: auto, cpu, cuda or cuda:INDEX.
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Print the plan as JSON.
    #[arg(long)]
    pub json: bool,
}

/// `trainer export`.
#[derive(Debug, Clone, Args)]
pub struct ExportArgs {
    /// A run folder of `trainer pretrain` or `trainer finetune` (its newest whole checkpoint), or a checkpoint's model.safetensors.
    /// `ema:RUN` is the moving average of a run that keeps one (optim.ema_decay), `unfused:RUN` the same as --unfused; no other prefix
    /// of `trainer knn` is taken.
    #[arg(long, value_name = "RUN|FILE")]
    pub run: String,
    /// timm, hf-mae (ViTMAEForPreTraining), hf-vit (ViTModel, or ViTForImageClassification for a fine-tuned run), mae or convmae (names of the
    /// reference code).
    #[arg(long, value_parser = export_format())]
    pub format: Format,
    /// The folder to write; it must be empty or not exist.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// The same as `ema:` before the run.
    #[arg(long)]
    pub ema: bool,
    /// Include the decoder, which is the default if the format can hold one.
    #[arg(long, conflicts_with = "encoder_only")]
    pub with_decoder: bool,
    /// Leave out the decoder, the mask token and everything else that only pretraining needs.
    #[arg(long)]
    pub encoder_only: bool,
    /// Leave out the multi-layer fusion that the run was trained with, which no other package's encoder has. The features then equal those of
    /// `trainer knn --model unfused:RUN`, not those of `--model RUN`.
    #[arg(long)]
    pub unfused: bool,
}

impl ExportArgs {
    /// Whether the decoder is exported too.
    pub fn decoder(&self) -> bool {
        self.with_decoder || (self.format.holds_decoder() && !self.encoder_only)
    }
}

/// `trainer linprobe`. The defaults are MAE's protocol with the differences that docs/evaluation.md lists.
#[derive(Debug, Clone, Args)]
pub struct LinprobeArgs {
    /// The model to probe, as for `trainer knn`. May be given many times: every image is read and decoded once for all models.
    #[arg(long = "model", value_name = "RUN|FILE|TEACHER|pixels", required = true)]
    pub models: Vec<String>,
    /// Labeled images to train the classifier on.
    #[arg(long, value_name = "SRC")]
    pub train: String,
    /// Labeled images to classify.
    #[arg(long, value_name = "SRC")]
    pub test: String,
    /// How the classes of --train and --test are matched.
    #[arg(long, value_enum, value_name = "HOW", default_value_t = Matching::Auto)]
    pub match_classes: Matching,
    /// How images of more than 8 bits per sample are reduced to 8 bits [default: as when the model's run was trained, else high-byte].
    #[arg(long, value_name = "high-byte|full-range|percentile:LOW,HIGH|MIN,MAX")]
    pub depth_window: Option<DepthWindow>,
    /// Kinds of feature to probe: cls, mean (of the patch tokens) [default: all that a model has].
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    pub features: Vec<String>,
    /// Fixed random crops of each training image, used in turn, one per epoch; 0 = only its central square.
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub views: u16,
    /// Base learning rates per 256 images, trained side by side; the best one is chosen on held-out training images.
    #[arg(
        long = "blr",
        value_name = "LR",
        value_delimiter = ',',
        default_values_t = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]
    )]
    pub blrs: Vec<f64>,
    /// Passes over the training images.
    #[arg(long, value_name = "N", default_value_t = 90, value_parser = clap::value_parser!(u32).range(1..))]
    pub epochs: u32,
    /// Epochs of linear learning-rate warm-up.
    #[arg(long, value_name = "N", default_value_t = 10.0)]
    pub warmup_epochs: f64,
    /// Images per step of the classifier.
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    pub probe_batch: u32,
    /// Weight decay of the classifier.
    #[arg(long, value_name = "DECAY", default_value_t = 0.0)]
    pub weight_decay: f64,
    /// Share of the training images on which the learning rate is chosen.
    #[arg(long, value_name = "SHARE", default_value_t = 0.1)]
    pub held_out: f64,
    /// Seed for crops, order, initial weights and the choice of held-out images.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Limit on the memory for features, in GiB.
    #[arg(long, value_name = "GIB", default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..))]
    pub feature_gib: u64,
    /// Images per forward pass of the network.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    pub batch_size: u32,
    /// Precision of the network; tf32 needs a GPU. The classifier is always f32.
    #[arg(long, default_value = "f32", value_parser = precision())]
    pub precision: Precision,
    /// Print the results as JSON: a list, one for each model.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub device: DeviceArgs,
}

/// How `trainer segment` classifies patches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SegmentMethod {
    /// The k nearest training patches vote.
    Knn,
    /// A linear layer after a batch norm is trained on the training patches.
    Linear,
}

/// `trainer segment`.
#[derive(Debug, Clone, Args)]
pub struct SegmentArgs {
    /// The model, as for `trainer knn`; of `pixels[:SIZE]` a patch is one pixel of the image at SIZE x SIZE. May be given many times: every
    /// image is read and decoded once for all models.
    #[arg(long = "model", value_name = "RUN|FILE|TEACHER|pixels", required = true)]
    pub models: Vec<String>,
    /// A folder with images/ and masks/, whose patches train the classifier: the mask of images/A/B.jpg is masks/A/B.png, with one channel of
    /// class numbers. `DIR::PATTERN` selects paths below images/.
    #[arg(long, value_name = "DIR")]
    pub train: String,
    /// A folder of the same kind, whose pixels are classified.
    #[arg(long, value_name = "DIR")]
    pub test: String,
    /// Numbers in masks that are not classes: their pixels take no part.
    #[arg(long = "ignore-label", value_name = "N", value_delimiter = ',', default_values_t = [255])]
    pub ignore_labels: Vec<u16>,
    /// How patches are classified.
    #[arg(long, value_enum, default_value_t = SegmentMethod::Knn)]
    pub method: SegmentMethod,
    /// How images of more than 8 bits per sample are reduced to 8 bits [default: as when the model's run was trained, else high-byte].
    #[arg(long, value_name = "high-byte|full-range|percentile:LOW,HIGH|MIN,MAX")]
    pub depth_window: Option<DepthWindow>,
    /// The most training patches that a classifier is made of, drawn at random by the contents of their images. Their features stay in memory.
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub train_patches: u32,
    /// knn: neighbors that vote [default: 20].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub k: Option<u32>,
    /// linear: base learning rates per 256 patches, trained side by side; the best one is chosen on held-out training images [default:
    /// 0.01,0.03,0.1,0.3,1,3,10,30].
    #[arg(long = "blr", value_name = "LR", value_delimiter = ',')]
    pub blrs: Vec<f64>,
    /// linear: passes over the training patches [default: 40].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub epochs: Option<u32>,
    /// linear: epochs of linear learning-rate warm-up [default: a tenth of --epochs].
    #[arg(long, value_name = "N")]
    pub warmup_epochs: Option<f64>,
    /// linear: patches per step of the classifier [default: 1024].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub probe_batch: Option<u32>,
    /// linear: weight decay of the classifier [default: 0].
    #[arg(long, value_name = "DECAY")]
    pub weight_decay: Option<f64>,
    /// linear: share of the training images on which the learning rate is chosen [default: 0.1].
    #[arg(long, value_name = "SHARE")]
    pub held_out: Option<f64>,
    /// Seed for the choice of training patches, of held-out images and of pictures, and for order and initial weights.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Write DIR/segment.png: eight test images, their masks, and the predictions of each model in the order in which they are given.
    #[arg(long, value_name = "DIR")]
    pub pictures: Option<PathBuf>,
    /// Images per forward pass.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    pub batch_size: u32,
    /// Precision of the network; tf32 needs a GPU. The classifier is always f32.
    #[arg(long, default_value = "f32", value_parser = precision())]
    pub precision: Precision,
    /// Print the results as JSON: a list, one for each model.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub device: DeviceArgs,
}

/// Parses the name of an export format.
fn export_format() -> impl TypedValueParser<Value = Format> {
    PossibleValuesParser::new(Format::ALL.map(Format::name)).try_map(|name| name.parse::<Format>())
}

/// Parses the name of a precision.
fn precision() -> impl TypedValueParser<Value = Precision> {
    PossibleValuesParser::new(Precision::NAMES).try_map(|name| name.parse::<Precision>())
}

/// What `trainer bench` measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BenchPart {
    /// The loader, which needs --cache.
    Loader,
    /// The training step in bf16.
    Bf16,
    /// The training step in f32.
    F32,
    /// The training step in TF32, which only a GPU has.
    Tf32,
}

/// `trainer bench`.
#[derive(Debug, Clone, Args)]
pub struct BenchArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub recipe: RecipeArgs,
    /// Also measure the loader on this cache.
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,
    /// The images of that cache, unless it carries them.
    #[arg(long, value_name = "SRC", requires = "cache")]
    pub images: Option<String>,
    /// Measure only this, so that the process's peak memory is its own [default: everything]. May be given many times.
    #[arg(long, value_enum, value_name = "WHAT")]
    pub only: Vec<BenchPart>,
    /// Batches for which the loader is timed, after the first [default: those of one epoch].
    #[arg(long, value_name = "N", requires = "cache", value_parser = clap::value_parser!(u32).range(1..))]
    pub loader_batches: Option<u32>,
    /// Take the loader's batches at this pace, as a GPU that trains so fast would, and print which share of the time it would have waited for
    /// them. Without it they are taken as they come.
    #[arg(long, value_name = "IMG_PER_S", requires = "cache", value_parser = clap::value_parser!(u32).range(1..))]
    pub consume: Option<u32>,
    /// Steps to time in each precision, after a warm-up.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub steps: u32,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub device: DeviceArgs,
    /// Print the result as JSON.
    #[arg(long)]
    pub json: bool,
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
