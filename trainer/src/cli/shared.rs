//! Options that several commands share.

use std::path::PathBuf;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use models::precision::Precision;
use schemas::DepthWindow;
use tch::Device;

use crate::data::classes::Matching;

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
    /// Threads that read and decode images [default: one per core; with a GPU two fewer, to leave cores for feeding it. Processes
    /// that train together share the cores].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
}

impl DeviceArgs {
    /// The number of loader threads of one of `processes` on this machine: as given, or one per core of its share; with a GPU as `device`, two
    /// cores are left for the thread that feeds it and for autograd's. Results do not depend on it.
    pub fn loader_threads(&self, device: Device, processes: usize) -> usize {
        let cores = (std::thread::available_parallelism().map_or(1, |n| n.get()) / processes).max(1);
        match (self.threads, device) {
            (Some(n), _) => usize::from(n),
            (None, Device::Cpu) => cores,
            (None, _) => cores.saturating_sub(2).max(1),
        }
    }
}

/// How a network is run on images, and where.
#[derive(Debug, Clone, Args)]
pub struct NetworkArgs {
    /// How images of more than 8 bits per sample are reduced to 8 bits [default: as when the model's run was trained, else high-byte].
    #[arg(long, value_name = "high-byte|full-range|percentile:LOW,HIGH|MIN,MAX")]
    pub depth_window: Option<DepthWindow>,
    /// Images per forward pass.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    pub batch_size: u32,
    /// Precision of the network; tf32 needs a GPU. What is trained on its features is always f32.
    #[arg(long, default_value = "f32", value_parser = precision())]
    pub precision: Precision,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub device: DeviceArgs,
}

/// Two sets of labeled images.
#[derive(Debug, Clone, Args)]
pub struct LabeledArgs {
    /// Labeled images to learn from; in k-NN they vote.
    #[arg(long, value_name = "SRC")]
    pub train: String,
    /// Labeled images to classify.
    #[arg(long, value_name = "SRC")]
    pub test: String,
    /// How the classes of --train and --test are matched.
    #[arg(long, value_enum, value_name = "HOW", default_value_t = Matching::Auto)]
    pub match_classes: Matching,
}

/// Parses the name of a precision.
fn precision() -> impl TypedValueParser<Value = Precision> {
    PossibleValuesParser::new(Precision::NAMES).try_map(|name| name.parse::<Precision>())
}
