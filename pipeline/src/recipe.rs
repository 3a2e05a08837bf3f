//! The recipe of a cache: a typed TOML file, overridden by `--set section.key=value` and flags, completed by the defaults below.
//!
//! [`Recipe::of_build`] and [`Recipe::of_added_teacher`] read, merge and check everything once; nothing downstream sees a setting that is
//! out of range. The defaults of three settings depend on what the run finds (the grid on the teachers, batch size and precision on the
//! device), so the complete recipe is printed when the build knows them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use models::precision::Precision;
use program::range::at_least_one;
use program::recipe::{Error, require};
use schemas::{DepthWindow, Pack, TeacherId};
use serde::{Deserialize, Serialize};
use tch::Device;

use crate::division::Division;
pub use max_rejects::MaxRejects;
pub use teacher::TeacherSource;
pub use view::{FLIP, Policy, RATIO, SCALE, View};

mod flags;
mod max_rejects;
mod pack;
mod teacher;
#[cfg(test)]
mod tests;
mod view;

/// On a CPU, exact; bf16 is three times as fast where the processor has it, and is one word away.
pub const PRECISION_CPU: Precision = Precision::F32;
/// On a GPU, f32 products take several times as long as bf16 ones, whose error (4e-3 to 1.2e-2 of a token, relative 2-norm) is below what
/// training with bf16 products adds again.
pub const PRECISION_CUDA: Precision = Precision::Bf16;
/// Images for codec `i8`: 256 x 196 tokens show each channel's range to a few per cent, and cost a minute with a B/16 on two cores.
pub const CALIBRATION_IMAGES: u64 = 256;
/// Rows per forward pass on a CPU, where every lane has a batch of its own. Larger ones gain nothing, and at B/16 their activations
/// pass 32 MiB, from where on glibc returns memory to the system after every operation: 16 rows cost 10 % more processor time.
pub const BATCH_SIZE_CPU: u32 = 8;
/// Rows per forward pass on a GPU, which one batch has to fill.
pub const BATCH_SIZE_CUDA: u32 = 128;
/// Rows of a part, over all its views. A part is what a killed build may lose and what one file holds: at B/16 and f16
/// a teacher's part has 300 MB, a few minutes on a CPU and a second on a GPU.
pub const PART_ROWS: u64 = 1024;
/// Longer than a file system or a suspended machine usually stalls, and short beside a build.
pub const LEASE_SECONDS: u64 = 60;
/// More threads than any machine has cores; systems refuse some tens of thousands, and each takes memory.
const MAX_THREADS: u64 = 4096;

/// 4096 pixels for patches of 16. Attention grows with the fourth power of the grid, and beyond this no machine has the memory.
const MAX_GRID: u32 = 256;

/// A build of a cache, or of one more teacher of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Recipe {
    /// Where the images are.
    pub data: Data,
    /// Which crops of them are stored.
    pub view: View,
    /// At least one teacher.
    pub teachers: BTreeMap<TeacherId, TeacherSource>,
    /// What is computed and how it is stored.
    pub features: Features,
    /// Where it is stored.
    pub cache: CacheFolder,
    /// How the machine is used; changes no byte of the result.
    pub run: Run,
}

/// `[data]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Data {
    /// Class folders, tar or Parquet; see [`images::ImageSource::open`]. Optional only where a cache has the images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub images: Option<String>,
    /// The first N samples of the source are the data set, at least 1; default all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// How samples of more than 8 bits become 8 bits: `high-byte`, `full-range`, `percentile:LOW,HIGH` or `MIN,MAX`. Part of the cache's
    /// identity.
    pub depth_window: DepthWindow,
    /// Store only the first of images with the same bytes; all images are read once before the build. Part of the cache's identity.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dedup: bool,
    /// How many images may be unusable before the build stops with exit status 1: a number, or a share such as `1%`. Default 1 %, or 10 images if
    /// that is more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_rejects: Option<MaxRejects>,
}

/// `[features]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Features {
    /// Patches along one side, at most 256. A teacher with patch size p sees `grid * p` pixels. Default: that of the cache's
    /// teachers if it has any, else the smallest native grid of those asked for (14 for every /16 teacher at 224).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grid: Option<u32>,
    /// How features are stored.
    pub codec: CodecName,
    /// Images, spread evenly over the data set, that codec `i8` takes the ranges of its channels from, at least 1.
    pub calibration_images: u64,
    /// What matrix products are computed in. Default [`PRECISION_CPU`] or [`PRECISION_CUDA`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub precision: Option<Precision>,
    /// Rows per forward pass. It can change the last bits of a feature, so it is part of the cache's identity. Default [`BATCH_SIZE_CPU`]
    /// or [`BATCH_SIZE_CUDA`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch_size: Option<u32>,
}

impl Default for Features {
    fn default() -> Self {
        Features {
            grid: None,
            codec: CodecName::default(),
            calibration_images: CALIBRATION_IMAGES,
            precision: None,
            batch_size: None,
        }
    }
}

/// A codec by name; `i8` is calibrated when the build has its teachers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CodecName {
    /// [`schemas::Codec::F32`]
    F32,
    /// [`schemas::Codec::F16`]: half the bytes of f32. Its rounding is 2e-4 of a token (relative 2-norm), far below what bf16 products cost
    /// (4e-3 to 1.2e-2 on the demo's teachers and on random B/16 ones).
    #[default]
    F16,
    /// [`schemas::Codec::Bf16`]
    Bf16,
    /// [`schemas::Codec::I8`]
    I8,
}

/// `[cache]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CacheFolder {
    /// The folder; it must be given.
    pub out: PathBuf,
    /// A cache whose features are taken over where they are of the same teachers, images and crops.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reuse: Option<PathBuf>,
    /// Whether and how images are stored: `none`, `original`, or `jpeg:SHORT_SIDE:QUALITY`.
    #[serde(with = "pack")]
    pub pack: Pack,
    /// Samples of a part; default that of the cache, else [`PART_ROWS`] / views. Part of the cache's identity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub part_samples: Option<u64>,
}

/// `[run]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Run {
    /// `auto`, `cpu`, `cuda` or `cuda:INDEX`; see [`torch_ext::resolve_device`].
    pub device: String,
    /// Worker threads, at least 1; default one per core.
    pub threads: usize,
    /// How the parts are divided among several processes that build the cache: `leases`, or `I/N` for worker I of N. Default what the
    /// scheduler states in the environment, else leases.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker: Option<Division>,
    /// After this many seconds without a sign of life a worker of another machine counts as ended, and others take over its parts. At least 1.
    pub lease_seconds: u64,
    /// Begin although the disk may have no room for the whole cache.
    pub allow_full_disk: bool,
}

impl Run {
    /// How long others wait for a sign of life of a worker.
    pub(crate) fn patience(&self) -> Duration {
        Duration::from_secs(self.lease_seconds)
    }
}

impl Default for Run {
    fn default() -> Self {
        let cores = std::thread::available_parallelism();
        Run {
            device: "auto".to_owned(),
            threads: cores.map_or(1, |cores| cores.get()),
            worker: None,
            lease_seconds: LEASE_SECONDS,
            allow_full_disk: false,
        }
    }
}

impl Recipe {
    /// Samples of a part where neither settings nor a cache say: about [`PART_ROWS`] rows.
    pub fn usual_part_samples(&self) -> u64 {
        (PART_ROWS / u64::from(self.view.views)).max(1)
    }

    /// What matrix products are computed in on a device.
    pub fn precision_on(&self, device: Device) -> Precision {
        self.features.precision.unwrap_or(if device.is_cuda() { PRECISION_CUDA } else { PRECISION_CPU })
    }

    /// Rows per forward pass on a device.
    pub fn batch_size_on(&self, device: Device) -> u32 {
        self.features.batch_size.unwrap_or(if device.is_cuda() { BATCH_SIZE_CUDA } else { BATCH_SIZE_CPU })
    }

    /// The recipe as TOML, every default spelled out: `--recipe` with this text repeats the build. `grid` and `device` are what the run
    /// settled on.
    pub fn to_toml(&self, grid: u32, device: Device) -> String {
        let mut recipe = self.clone();
        recipe.features.grid = Some(grid);
        recipe.features.batch_size = Some(self.batch_size_on(device));
        recipe.features.precision = Some(self.precision_on(device));
        recipe.run.device = match device {
            Device::Cuda(index) => format!("cuda:{index}"),
            _ => "cpu".to_owned(),
        };
        toml::to_string(&recipe).expect("a recipe is plain tables of plain values")
    }

    /// Fills in the defaults that depend on other settings and checks every value.
    fn resolve(&mut self) -> Result<(), Error> {
        if self.cache.out.as_os_str().is_empty() {
            return Err(Error::Missing { field: "cache.out", flag: "--out CACHE" });
        }
        if self.teachers.is_empty() {
            return Err(Error::Missing { field: "teachers", flag: "--teacher ID=DIR" });
        }
        self.view.resolve()?;
        self.teachers.iter().try_for_each(|(id, teacher)| teacher.check(id))?;
        at_least_one("data.limit", self.data.limit)?;
        at_least_one("features.grid", self.features.grid.map(u64::from))?;
        let grid = self.features.grid.unwrap_or(1);
        let problem =
            format!("must be at most {MAX_GRID} patches along a side, which are {} tokens an image", MAX_GRID.pow(2));
        require(grid <= MAX_GRID, "features.grid", grid, &problem)?;
        at_least_one("features.batch_size", self.features.batch_size.map(u64::from))?;
        at_least_one("features.calibration_images", self.features.calibration_images)?;
        at_least_one("cache.part_samples", self.cache.part_samples)?;
        at_least_one("run.lease_seconds", self.run.lease_seconds)?;
        let threads = self.run.threads as u64;
        at_least_one("run.threads", threads)?;
        require(threads <= MAX_THREADS, "run.threads", threads, "must be at most 4096")
    }
}
