//! The cache's identity: everything that decides its bytes, except the teachers.

use serde::{Deserialize, Serialize};

use crate::Plan;

/// The version of the format that this crate reads and writes.
pub const FORMAT_VERSION: u32 = 1;

/// The contents of `cache.json`. Two builds with equal identities write equal bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CacheIdentity {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// The images.
    pub dataset: DatasetIdentity,
    /// Name and version of the code that turns an image file into the pixels a teacher sees.
    pub image_code: String,
    /// The views.
    pub views: ViewIdentity,
    /// The parts.
    pub plan: Plan,
    /// Whether and how images are packed into the samples files.
    pub pack: Pack,
    /// Names of the classes; label `i` is `label_names[i]`. Empty if the data set names none.
    pub label_names: Vec<String>,
}

/// The images a cache is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetIdentity {
    /// Layout of the source: `folder`, `tar` or `parquet`.
    pub kind: String,
    /// Number of samples.
    pub samples: u64,
    /// SHA-256, lower-case hexadecimal, over key, length and label of every sample in order.
    pub digest: String,
}

/// How views are drawn and rendered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ViewIdentity {
    /// The rule.
    #[serde(flatten)]
    pub policy: ViewPolicy,
    /// Views per image, at least 1.
    pub views: u16,
    /// Seed of the random ones.
    pub seed: u64,
    /// Resampling filter: `bicubic`.
    pub filter: String,
}

/// The rule that draws a view's crop box and flip.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "policy", rename_all = "lowercase")]
pub enum ViewPolicy {
    /// RandomResizedCrop.
    Rrc {
        /// Share of the image's area: least, greatest; in 0..1.
        scale: [f64; 2],
        /// Width over height: least, greatest.
        ratio: [f64; 2],
        /// Probability of mirroring.
        flip: f64,
    },
    /// The largest centred square.
    Center,
    /// The whole image, whatever its shape.
    Full,
}

impl ViewPolicy {
    /// RandomResizedCrop as MAE and MR-MAE pretrain with it: area 0.2 to 1, ratio 3/4 to 4/3, mirrored half of the time.
    pub fn rrc() -> ViewPolicy {
        ViewPolicy::Rrc {
            scale: [0.2, 1.0],
            ratio: [3.0 / 4.0, 4.0 / 3.0],
            flip: 0.5,
        }
    }
}

/// Whether samples files carry the images themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pack {
    /// They do not: the trainer reads the data set.
    None,
}
