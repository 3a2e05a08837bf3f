//! The recipe of a cache: a typed TOML file, `--set`, flags, and what they resolve to.
//!
//! Three layers, the later one wins: the documented defaults below, the recipe file, and `--set section.key=value` with the flags. A setting
//! that is given both ways is refused.
//! [`BuildConfig::resolve`] merges and checks them once; nothing downstream sees a half-valid setting. Three defaults
//! depend on what the run finds (the grid on the teachers, batch size and precision on the device), so the complete recipe is
//! printed when the build knows them.

use std::path::PathBuf;

use models::precision::Precision;
use schemas::{DepthWindow, Pack, TeacherId, ViewIdentity, ViewPolicy};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::str::FromStr;
use tch::Device;

pub use program::recipe::Error;
pub use teachers::{TeacherEntry, TeacherSource, TeacherTable};

mod resolve;
mod teachers;
#[cfg(test)]
mod tests;

/// Crops per image. One is the cheapest cache; an epoch uses one of K, so more of them are more augmentation.
pub const VIEWS: u16 = 1;
/// RandomResizedCrop's share of the image's area, as MAE pretrains (MR-MAE follows it).
pub const SCALE: [f64; 2] = [0.2, 1.0];
/// RandomResizedCrop's width over height, torchvision's default.
pub const RATIO: [f64; 2] = [3.0 / 4.0, 4.0 / 3.0];
/// Probability of a horizontal flip.
pub const FLIP: f64 = 0.5;
/// Half the bytes of f32. Its rounding is 2e-4 of a token (relative 2-norm), far below what bf16 products cost (4e-3 to 1.2e-2 on the
/// demo's teachers and on random B/16 ones).
pub const CODEC: &str = "f16";
/// Exact by default on a CPU; bf16 is three times as fast where the processor has it, and is one word away.
pub const PRECISION_CPU: Precision = Precision::F32;
/// On a GPU f32 products take several times as long as bf16 ones, whose error (4e-3 to 1.2e-2 of a token, relative 2-norm) is below what
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

/// What a recipe file may say. Everything is optional: the rest comes from flags and defaults.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Recipe {
    /// Where the images are.
    pub data: Data,
    /// Which crops of them are stored.
    pub view: View,
    /// Name in the cache → what it is.
    pub teachers: BTreeMap<String, TeacherEntry>,
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
    /// Class folders, tar or Parquet; see [`images::ImageSource::open`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub images: Option<String>,
    /// The first N samples of the source are the data set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// `high-byte`, `full-range`, `percentile:LOW,HIGH` or `MIN,MAX`: see [`DepthWindow`]. Part of the cache's identity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depth_window: Option<String>,
}

/// `[view]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct View {
    /// `rrc`, `center` or `full`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Crops per image. More than one needs `rrc`: the others have only one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub views: Option<u16>,
    /// Crops and flips are a function of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// For `rrc`: smallest and largest share of the area.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale: Option<[f64; 2]>,
    /// For `rrc`: smallest and largest width over height.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<[f64; 2]>,
    /// For `rrc`: probability of a horizontal flip.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flip: Option<f64>,
}

/// A codec by name; `i8` is calibrated when the build has its teachers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CodecName {
    /// [`schemas::Codec::F32`]
    F32,
    /// [`schemas::Codec::F16`]
    F16,
    /// [`schemas::Codec::Bf16`]
    Bf16,
    /// [`schemas::Codec::I8`]
    I8,
}

impl CodecName {
    /// The name.
    pub fn name(self) -> &'static str {
        match self {
            CodecName::F32 => "f32",
            CodecName::F16 => "f16",
            CodecName::Bf16 => "bf16",
            CodecName::I8 => "i8",
        }
    }
}

impl FromStr for CodecName {
    type Err = String;
    fn from_str(name: &str) -> Result<CodecName, String> {
        [CodecName::F32, CodecName::F16, CodecName::Bf16, CodecName::I8]
            .into_iter()
            .find(|codec| codec.name() == name)
            .ok_or_else(|| format!("no codec {name:?}; there are {}", schemas::Codec::NAMES.join(", ")))
    }
}

/// `[features]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Features {
    /// Patches along one side. A teacher with patch size p sees `grid * p` pixels. Default: that of the cache's
    /// teachers if it has any, else the smallest native grid of those asked for (14 for every /16 teacher at 224).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grid: Option<u32>,
    /// `f32`, `f16`, `bf16` or `i8`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub codec: Option<String>,
    /// Images, spread evenly over the data set, that codec `i8` takes the ranges of its channels from; default
    /// [`CALIBRATION_IMAGES`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calibration_images: Option<u64>,
    /// `f32`, `bf16` or, on a GPU, `tf32`. Default [`PRECISION_CPU`] or [`PRECISION_CUDA`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub precision: Option<String>,
    /// Rows per forward pass. It can change the last bits of a feature, so it is part of the cache's identity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch_size: Option<u32>,
}

/// `[cache]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CacheFolder {
    /// The folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub out: Option<PathBuf>,
    /// `none`, `original`, or `jpeg:SHORT_SIDE:QUALITY`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pack: Option<String>,
    /// Samples of a part; default that of the cache, else [`PART_ROWS`] / views. Part of the cache's identity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub part_samples: Option<u64>,
}

/// `[run]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Run {
    /// `auto`, `cpu`, `cuda` or `cuda:INDEX`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Worker threads; default one per core.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
}

/// A build, checked: what [`crate::build_cache`] is given.
#[derive(Debug, Clone, PartialEq)]
pub struct BuildConfig {
    /// The image source, as [`images::ImageSource::open`] takes it; none where the cache has the images.
    pub images: Option<String>,
    /// The first N samples only, if set; at least 1.
    pub limit: Option<u64>,
    /// How samples of more than 8 bits become 8 bits.
    pub depth_window: DepthWindow,
    /// The cache folder.
    pub out: PathBuf,
    /// At least one teacher, in order of id.
    pub teachers: BTreeMap<TeacherId, TeacherSource>,
    /// Policy, number, seed and filter of the crops, as the cache's identity has them.
    pub views: ViewIdentity,
    /// Patches along one side, if it was said.
    pub grid: Option<u32>,
    /// How features are stored.
    pub codec: CodecName,
    /// Images that codec `i8` is calibrated on, at least 1.
    pub calibration_images: u64,
    /// Whether and how images are stored.
    pub pack: Pack,
    /// What matrix products are computed in, if it was said.
    pub precision: Option<Precision>,
    /// Rows per forward pass, if it was said.
    pub batch_size: Option<u32>,
    /// Samples of a part, at least 1, if it was said.
    pub part_samples: Option<u64>,
    /// The device's name, for [`torch_ext::resolve_device`].
    pub device: String,
    /// Worker threads, at least 1.
    pub threads: usize,
    /// Plan only.
    pub dry_run: bool,
}

/// `none`, `original` or `jpeg:SHORT_SIDE:QUALITY`.
pub fn pack_name(pack: Pack) -> String {
    match pack {
        Pack::None => "none".to_owned(),
        Pack::Original => "original".to_owned(),
        Pack::Jpeg { short_side, quality } => format!("jpeg:{short_side}:{quality}"),
    }
}

impl BuildConfig {
    /// Samples of a part where neither settings nor a cache say: about [`PART_ROWS`] rows.
    pub fn usual_part_samples(&self) -> u64 {
        (PART_ROWS / u64::from(self.views.views)).max(1)
    }

    /// What matrix products are computed in on a device.
    pub fn precision_on(&self, device: Device) -> Precision {
        self.precision.unwrap_or(if device == Device::Cpu { PRECISION_CPU } else { PRECISION_CUDA })
    }

    /// The complete recipe, every default spelled out, as TOML: `--recipe` with this text repeats the build.
    ///
    /// `grid`, `batch_size`, `precision` and `device` are what the run settled on.
    pub fn to_toml(&self, grid: u32, batch_size: u32, precision: Precision, device: &str) -> String {
        let (policy, scale, ratio, flip) = match self.views.policy {
            ViewPolicy::Rrc { scale, ratio, flip } => ("rrc", Some(scale), Some(ratio), Some(flip)),
            ViewPolicy::Center => ("center", None, None, None),
            ViewPolicy::Full => ("full", None, None, None),
        };
        let recipe = Recipe {
            data: Data {
                images: self.images.clone(),
                limit: self.limit,
                depth_window: Some(self.depth_window.to_string()),
            },
            view: View {
                policy: Some(policy.into()),
                views: Some(self.views.views),
                seed: Some(self.views.seed),
                scale,
                ratio,
                flip,
            },
            teachers: self.teachers.iter().map(|(id, teacher)| (id.to_string(), teacher.entry())).collect(),
            features: Features {
                grid: Some(grid),
                codec: Some(self.codec.name().into()),
                calibration_images: (self.codec == CodecName::I8).then_some(self.calibration_images),
                precision: Some(precision.name().into()),
                batch_size: Some(batch_size),
            },
            cache: CacheFolder {
                out: Some(self.out.clone()),
                pack: Some(pack_name(self.pack)),
                part_samples: self.part_samples,
            },
            run: Run { device: Some(device.into()), threads: Some(self.threads) },
        };
        toml::to_string(&recipe).expect("a recipe is plain tables of plain values")
    }
}
