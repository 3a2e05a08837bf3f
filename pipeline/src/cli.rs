//! The command line: exactly what was typed. Meaning is given to it in [`crate::recipe`] and the stages.

use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use models::layers::Activation;
use models::precision::Precision;
use models::teacher::Layer;
use program::LogFormat;
use schemas::{Codec, TeacherId};

use crate::channels::Channels;

/// Builds, checks and shows caches of teacher features.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "pipeline",
    version,
    after_help = "Exit status: 0 fine, 1 the data has problems, 2 could not do it, 75 could not now (disk, network, memory), 130 or 143 interrupted."
)]
pub struct Cli {
    /// How messages and progress are written to stderr, and what build-cache, add-teacher and verify print on stdout.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The stages, one file each.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Run teachers over images once and store their features. Run again to resume: finished parts are kept.
    BuildCache(Box<BuildCacheArgs>),
    /// Add the features of one more teacher to a cache; nothing that is there is touched. Run again to resume.
    AddTeacher(Box<AddTeacherArgs>),
    /// Append the images of a source that a cache does not have yet, with the features of all its teachers; nothing that is there is touched. Run again
    /// to resume.
    AddImages(Box<AddImagesArgs>),
    /// Store a teacher's features a second time, in a codec that takes less space; the teacher is not needed. Run again to resume.
    Recode(RecodeArgs),
    /// Remove a teacher's features from a cache.
    DropTeacher(DropTeacherArgs),
    /// Check every hash, join and checksum of a cache.
    Verify(VerifyArgs),
    /// Show what a cache holds: identity, teachers, progress, sizes, statistics, rows; draw rows as a picture.
    Inspect(InspectArgs),
    /// Read the features of a cache and show their statistics: channels, norms, outliers, attention, bytes.
    Stats(StatsArgs),
    /// List the caches below a folder: teachers, views, rows, size, completeness. Exit status 1 if one of them is damaged.
    List(ListArgs),
    /// Print a script that completes this program's commands and options in a shell: bash, zsh, fish, elvish or powershell.
    Completions {
        /// The shell.
        shell: Shell,
    },
}

impl Command {
    /// The device that a command which builds was given on the command line.
    pub(crate) fn device(&self) -> Option<&str> {
        match self {
            Command::BuildCache(args) if !args.dry_run => args.features.device.as_deref(),
            Command::AddTeacher(args) => args.features.device.as_deref(),
            Command::AddImages(args) if !args.dry_run => args.device.as_deref(),
            _ => None,
        }
    }
}

/// `pipeline build-cache`. Flags and `--set` win over the recipe, the recipe over the defaults.
#[derive(Debug, Clone, Default, Args)]
pub struct BuildCacheArgs {
    /// The images: class folders, WebDataset *.tar or *.parquet in the Hugging Face layout (a file, a glob or a {000..099} range). `::` and a
    /// pattern behind it say which files or members are images, as in `photos::*.png`; behind Parquet, the image column. `::label=NAME`, or `,label=NAME` behind
    /// either, says which column or member holds the labels. URLs of object stores (s3://, gs://, az://, http://) are taken, too.
    #[arg(long, value_name = "SRC")]
    pub images: Option<String>,
    /// The cache: a folder, or a URL such as s3://BUCKET/NAME; created, or resumed when it holds the same build.
    #[arg(long, value_name = "CACHE")]
    pub out: Option<PathBuf>,
    /// A teacher: its name in the cache, and the folder or file of its weights, or its id on the Hugging Face hub
    /// (org/name or org/name@revision). May be given many times.
    #[arg(long = "teacher", value_name = "ID=DIR|HUB_ID")]
    pub teachers: Vec<String>,
    /// Crops stored per image [default: 1].
    #[arg(long, value_name = "K")]
    pub views: Option<u16>,
    /// How crops are chosen: random resized crops, the central square, or the whole image [default: rrc].
    #[arg(long, value_name = "POLICY", value_parser = ["rrc", "center", "full"])]
    pub view_policy: Option<String>,
    /// Crops and flips are a function of it and of each image's content [default: 0].
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Patches along one side of the student's grid; each teacher sees images of this times its patch size
    /// [default: that of the cache, else the smallest native grid of the teachers].
    #[arg(long, value_name = "G")]
    pub grid: Option<u32>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub features: FeatureArgs,
    /// Whether the cache carries the images too: as they are, or as JPEGs scaled down to a short side, which the teachers then see.
    /// Training then needs nothing but the cache [default: none].
    #[arg(long, value_name = "none|original|jpeg:SIDE:QUALITY")]
    pub pack: Option<String>,
    /// Images of a part. An interrupted build keeps its finished parts, so a smaller number loses less; it stays that of the cache
    /// [default: as many as give 1024 rows].
    #[arg(long, value_name = "N")]
    pub part_samples: Option<u64>,
    /// Which levels of images with more than 8 bits per sample become 0 and 255: those of the high byte, each image's own least and
    /// greatest, two percentiles of its own samples, or two fixed levels of 0 to 65535. Part of the cache [default: high-byte].
    #[arg(long, value_name = "high-byte|full-range|percentile:LOW,HIGH|MIN,MAX")]
    pub depth_window: Option<String>,
    /// Store only the first of images with the same bytes; the others become rejects. All images are read once more, before the build. Part of the cache.
    #[arg(long)]
    pub dedup: bool,
    /// How many images may be unusable before the build stops with exit status 1: a number, or a share of all [default: 1%, or 10 images if that
    /// is more].
    #[arg(long, value_name = "N|P%")]
    pub max_rejects: Option<String>,
    /// Take over the features that another cache has of the same teachers, for the same crops of the same images, wherever these are in the source now.
    #[arg(long, value_name = "CACHE")]
    pub reuse: Option<PathBuf>,
    /// Use the first N samples of the source only. They are then the data set: another N is another cache.
    #[arg(long, value_name = "N")]
    pub limit: Option<u64>,
    /// Say what would be built, how large it is, how long it takes and when it pays; keep nothing of it. Exit status 1 if the disk is too small.
    #[arg(long)]
    pub dry_run: bool,
    /// First check the whole cache, as `pipeline verify` does, and build again what is damaged, with the bytes that it had. Give the command that built
    /// the cache.
    #[arg(long, conflicts_with = "dry_run")]
    pub repair: bool,
    /// Recipe file (TOML) with any of these settings.
    #[arg(long, value_name = "FILE")]
    pub recipe: Option<PathBuf>,
    /// Override one setting of the recipe, for example `--set view.scale=[0.5,1.0]`. May be given many times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// What teachers compute, how it is stored and where it runs: the same for a build and for an added teacher.
#[derive(Debug, Clone, Default, Args)]
pub struct FeatureArgs {
    /// Which features: the residual stream after the last block, the same after the final norm, or projected (CLIP); for every
    /// teacher that the recipe does not say it of [default: last].
    #[arg(long, value_name = "LAYER", value_parser = layer())]
    pub layer: Option<Layer>,
    /// The activation of a teacher, if its files do not say it.
    #[arg(long, value_name = "FUNCTION", value_parser = activation())]
    pub activation: Option<Activation>,
    /// Mean of pixels in 0..1 that a teacher subtracts, if its files do not say it: one number, or one for each channel.
    #[arg(long, value_name = "R,G,B")]
    pub mean: Option<Channels>,
    /// Standard deviation that a teacher divides by, likewise.
    #[arg(long, value_name = "R,G,B")]
    pub std: Option<Channels>,
    /// Epsilon of a teacher's layer norms, if its files do not say it.
    #[arg(long, value_name = "EPS")]
    pub eps: Option<f64>,
    /// Attention heads of a teacher's blocks, if its files do not say it.
    #[arg(long, value_name = "N")]
    pub heads: Option<u32>,
    /// How features are stored; i8 takes half of f16 and is calibrated first [default: f16].
    #[arg(long, value_name = "CODEC", value_parser = Codec::NAMES)]
    pub codec: Option<String>,
    /// Images that codec i8 takes the ranges of its channels from [default: 256].
    #[arg(long, value_name = "N")]
    pub calibration_images: Option<u64>,
    /// What the teachers' matrix products are computed in; tf32 on a GPU only [default: f32 on a CPU, bf16 on a GPU].
    #[arg(long, value_name = "PRECISION", value_parser = Precision::NAMES)]
    pub precision: Option<String>,
    /// Rows per forward pass [default: 8 on a CPU, 128 on a GPU].
    #[arg(long, value_name = "N")]
    pub batch_size: Option<u32>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub run: RunArgs,
    /// Where the teachers run: auto, cpu, cuda, cuda:INDEX, or cuda:all for a worker on each GPU of the machine [default: auto].
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,
}

/// How the machine is used, and how several processes share a build: the same for every command that runs teachers.
#[derive(Debug, Clone, Default, Args)]
pub struct RunArgs {
    /// Worker threads, for everything; the bytes written do not depend on it [default: one per core].
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// How several processes divide the parts of one cache: each takes the next one that nobody has (leases), or worker I of N, numbered from 0,
    /// builds its share [default: the share that Slurm, Kubernetes, AWS Batch or torchrun state in the environment, else leases].
    #[arg(long, value_name = "I/N|leases")]
    pub worker: Option<String>,
    /// Begin although the disk may have no room for all of it: features may compress to less, and a build that runs out of space keeps what is
    /// finished.
    #[arg(long)]
    pub allow_full_disk: bool,
}

/// One of the names of a layer.
fn layer() -> impl TypedValueParser<Value = Layer> {
    PossibleValuesParser::new(Layer::ALL.map(Layer::name)).try_map(|name| name.parse::<Layer>())
}

/// One of the names of an activation.
fn activation() -> impl TypedValueParser<Value = Activation> {
    PossibleValuesParser::new(Activation::ALL.map(Activation::name)).try_map(|name| name.parse::<Activation>())
}

/// `pipeline add-teacher`.
#[derive(Debug, Clone, Args)]
pub struct AddTeacherArgs {
    /// The cache: a folder, or a URL such as s3://BUCKET/NAME.
    pub cache: PathBuf,
    /// A teacher: its name in the cache, and the folder or file of its weights, or its id on the Hugging Face hub
    /// (org/name or org/name@revision). May be given many times.
    #[arg(long = "teacher", value_name = "ID=DIR|HUB_ID", required = true)]
    pub teachers: Vec<String>,
    /// The images the cache was built from; not needed for a cache that carries them.
    #[arg(long, value_name = "SRC")]
    pub images: Option<String>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub features: FeatureArgs,
}

/// `pipeline add-images`.
#[derive(Debug, Clone, Default, Args)]
pub struct AddImagesArgs {
    /// The cache folder; finished.
    pub cache: PathBuf,
    /// The images: the source that the cache was built from, which has more of them now, or another that has the new ones (training then needs a source with all of
    /// them, or a cache that carries its images). An image is new if the cache has none of its name.
    #[arg(long, value_name = "SRC")]
    pub images: String,
    /// Where a teacher of the cache is now: its name in the cache, and the folder or file of its weights, or its id on the Hugging Face hub
    /// [default: where it was when the cache was built].
    #[arg(long = "teacher", value_name = "ID=DIR|HUB_ID")]
    pub teachers: Vec<String>,
    /// How many images of the grown cache may be unusable before the build stops with exit status 1: a number, or a share of all [default: 1%, or 10 images
    /// if that is more].
    #[arg(long, value_name = "N|P%")]
    pub max_rejects: Option<String>,
    /// Say what would be built, how large it is and how long it takes; write nothing.
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub run: RunArgs,
    /// Which GPU the teachers run on, for teachers that ran on one: cuda, cuda:INDEX, or cuda:all for a worker on each [default: cuda].
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,
}

/// `pipeline recode`.
#[derive(Debug, Clone, Args)]
pub struct RecodeArgs {
    /// The cache folder.
    pub cache: PathBuf,
    /// The teacher whose features are stored again; they stay as they are.
    #[arg(long, value_name = "ID")]
    pub teacher: TeacherId,
    /// The new codec, which has to keep less than the present one: f32 more than f16, bf16, i8 in this order.
    #[arg(long, value_name = "CODEC", value_parser = ["f16", "bf16", "i8"])]
    pub codec: String,
    /// Name of the recoded teacher in the cache [default: the teacher's, a hyphen and the codec, such as clip-i8].
    #[arg(long = "as", value_name = "ID")]
    pub id: Option<TeacherId>,
    /// Images that codec i8 takes the ranges of its channels from [default: 256].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub calibration_images: Option<u64>,
    /// Worker threads; the bytes written do not depend on it [default: one per core].
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

/// `pipeline drop-teacher`.
#[derive(Debug, Clone, Args)]
pub struct DropTeacherArgs {
    /// The cache folder.
    pub cache: PathBuf,
    /// The teacher.
    pub id: TeacherId,
    /// Remove it although it is the only one.
    #[arg(long)]
    pub last: bool,
}

/// `pipeline verify`.
#[derive(Debug, Clone, Args)]
pub struct VerifyArgs {
    /// The cache: a folder, or a URL such as s3://BUCKET/NAME.
    pub cache: PathBuf,
    /// Also read the source it was built from, and check that every image is still at its place with the content that the cache has of
    /// it.
    #[arg(long, value_name = "SRC")]
    pub images: Option<String>,
    /// Check only this part. May be given many times [default: all].
    #[arg(long = "part", value_name = "N")]
    pub parts: Vec<u32>,
    /// Check only the features of this teacher, beside the samples. May be given many times [default: all].
    #[arg(long = "teacher", value_name = "ID")]
    pub teachers: Vec<TeacherId>,
    /// Also run the teachers again on N rows, spread over the cache, and compare what they give with what is stored. Needs the teachers' weights, and the images
    /// unless the cache carries them.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), conflicts_with = "quick")]
    pub spot_check: Option<u64>,
    /// For --spot-check: where a teacher is now: its name in the cache, and the folder or file of its weights, or its id on the Hugging Face hub [default: where it
    /// was when the cache was built].
    #[arg(long, value_name = "ID=DIR|HUB_ID", requires = "spot_check")]
    pub weights: Vec<String>,
    /// For --spot-check: where the teachers run: auto, cpu, cuda or cuda:INDEX [default: where they ran].
    #[arg(long, value_name = "DEVICE", requires = "spot_check")]
    pub device: Option<String>,
    /// Check only records, sizes and footers, and no row: seconds for any cache. Damage inside of files is not found.
    #[arg(long)]
    pub quick: bool,
    /// Print one JSON object instead of text; the same as --log-format json.
    #[arg(long)]
    pub json: bool,
}

/// `pipeline inspect`.
#[derive(Debug, Clone, Args)]
pub struct InspectArgs {
    /// The cache: a folder, or a URL such as s3://BUCKET/NAME.
    pub cache: PathBuf,
    /// Print JSON instead of text.
    #[arg(long)]
    pub json: bool,
    /// Also show the rows of these samples: a number in the data set's order, or a range `FIRST-LAST` with both ends. May be given
    /// many times.
    #[arg(long, value_name = "SAMPLE_ID")]
    pub row: Vec<SampleRange>,
    /// Show only this view of the samples [default: all; view 0 for a picture without --row].
    #[arg(long, value_name = "V")]
    pub view: Option<u16>,
    /// Draw the rows into a PNG file: the crop, and for each teacher the principal components of its features as colors, its
    /// CLS attention, and a focused mask. Without --row it shows the first, the middle and the last usable image.
    #[arg(long, value_name = "OUT")]
    pub png: Option<PathBuf>,
    /// Size of the picture's panels in pixels, rounded to a multiple of the grid [default: 224, or 176 with three teachers or
    /// more].
    #[arg(long, value_name = "PIXELS", requires = "png", value_parser = clap::value_parser!(u32).range(64..=512))]
    pub panel: Option<u32>,
    /// Source of the picture's crops if the cache packs no images: the one it was built from, or any source with the same
    /// files.
    #[arg(long, value_name = "SRC", requires = "png")]
    pub images: Option<String>,
}

/// Samples by number, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SampleRange {
    /// The first.
    pub first: u64,
    /// The last, not before the first.
    pub last: u64,
}

impl FromStr for SampleRange {
    type Err = String;

    fn from_str(text: &str) -> Result<SampleRange, String> {
        let number = |text: &str| {
            text.parse::<u64>()
                .map_err(|_| format!("{text:?} is not a sample number; give one like 7, or a range like 3-9"))
        };
        let (first, last) = match text.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(text)?, number(text)?),
        };
        if first > last {
            return Err(format!("the range {text} ends before it begins"));
        }
        Ok(SampleRange { first, last })
    }
}

/// `pipeline stats`.
#[derive(Debug, Clone, Args)]
pub struct StatsArgs {
    /// The cache: a folder, or a URL such as s3://BUCKET/NAME.
    pub cache: PathBuf,
    /// Only this teacher. May be given many times [default: all].
    #[arg(long = "teacher", value_name = "ID")]
    pub teachers: Vec<String>,
    /// Print JSON with every channel and grid instead of text.
    #[arg(long)]
    pub json: bool,
    /// Only the first N rows of each teacher.
    #[arg(long, value_name = "ROWS", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
}

/// `pipeline list`.
#[derive(Debug, Clone, Args)]
pub struct ListArgs {
    /// The folder to search.
    pub dir: PathBuf,
    /// Print JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}
