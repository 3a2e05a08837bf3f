//! Options of what computes features with a frozen network.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::shared::{LabeledArgs, NetworkArgs};

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
    #[command(flatten)]
    #[allow(missing_docs)]
    pub labeled: LabeledArgs,
    /// Kinds of feature: cls, mean (of the patch tokens), or, of a student of trainer pretrain, head.TEACHER and head.TEACHER.cls (what it predicts of a teacher's features)
    /// [default: cls and mean, as far as a model has them].
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    pub features: Vec<String>,
    /// Neighbors that vote.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub k: u32,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub network: NetworkArgs,
    /// Print the results as JSON: a list, one for each model.
    #[arg(long)]
    pub json: bool,
}

/// `trainer linprobe`. The defaults are MAE's protocol with the differences that docs/evaluation.md lists.
#[derive(Debug, Clone, Args)]
pub struct LinprobeArgs {
    /// The model to probe, as for `trainer knn`. May be given many times: every image is read and decoded once for all models.
    #[arg(long = "model", value_name = "RUN|FILE|TEACHER|pixels", required = true)]
    pub models: Vec<String>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub labeled: LabeledArgs,
    /// Kinds of feature to probe: cls, mean (of the patch tokens) [default: all that a model has].
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    pub features: Vec<String>,
    /// Fixed random crops of each training image, used in turn, one per epoch; 0 = only its central square.
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub views: u16,
    /// Base learning rates per 256 images, with commas between them, trained side by side; the best one is chosen on held-out training images.
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
    #[command(flatten)]
    #[allow(missing_docs)]
    pub network: NetworkArgs,
    /// Print the results as JSON: a list, one for each model.
    #[arg(long)]
    pub json: bool,
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
    /// The most training patches that a classifier is made of, drawn at random by the contents of their images. Their features stay in memory.
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub train_patches: u32,
    /// knn: neighbors that vote [default: 20].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub k: Option<u32>,
    /// linear: base learning rates per 256 patches, with commas between them, trained side by side; the best one is chosen on held-out training images [default:
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
    #[command(flatten)]
    #[allow(missing_docs)]
    pub network: NetworkArgs,
    /// Print the results as JSON: a list, one for each model.
    #[arg(long)]
    pub json: bool,
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
    #[command(flatten)]
    #[allow(missing_docs)]
    pub network: NetworkArgs,
}
