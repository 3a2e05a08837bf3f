//! Options of what trains a network, and of what says beforehand how long that takes.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use schemas::DepthWindow;

use super::shared::{DeviceArgs, LabeledArgs, RecipeArgs};
use crate::data::classes::Matching;

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
    #[command(flatten)]
    #[allow(missing_docs)]
    pub labeled: LabeledArgs,
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

/// `trainer launch`.
#[derive(Debug, Clone, Args)]
pub struct LaunchArgs {
    /// Processes to start: on GPUs one for each.
    #[arg(short, long, value_name = "N", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1024))]
    pub nproc_per_node: usize,
    /// How many times all are started again after one was lost; the run goes on from its last checkpoint.
    #[arg(long, value_name = "R", default_value_t = 0)]
    pub max_restarts: u32,
    /// Port by which the processes meet [default: a free one].
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub master_port: Option<u16>,
    /// Leave OMP_NUM_THREADS, libtorch's threads on a CPU, as it is. Otherwise the processes share the cores.
    #[arg(long)]
    pub keep_threads: bool,
    /// The command with its options: pretrain, finetune, knn or linprobe.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
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
