//! Options of what uses and shows a finished run.

use std::path::PathBuf;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use models::interop::Format;
use schemas::DepthWindow;

use super::shared::NetworkArgs;

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
    #[command(flatten)]
    #[allow(missing_docs)]
    pub network: NetworkArgs,
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

/// Parses the name of an export format.
fn export_format() -> impl TypedValueParser<Value = Format> {
    PossibleValuesParser::new(Format::ALL.map(Format::name)).try_map(|name| name.parse::<Format>())
}
