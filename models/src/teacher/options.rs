//! What a user chooses about a teacher besides its file.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::layers::Activation;

/// Which stage of the tower is the feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layer {
    /// The residual stream after the last block, before the final norm. Hugging Face's CLIP calls this `last_hidden_state`; its
    /// other towers apply the norm first.
    #[default]
    Last,
    /// After the final norm: what DINO's and DINOv2's own code gives as features.
    LastNorm,
    /// After the final norm and the visual projection, on patches as on CLS: the space that CLIP shares with text.
    Proj,
}

impl Layer {
    /// All of them.
    pub const ALL: [Layer; 3] = [Layer::Last, Layer::LastNorm, Layer::Proj];

    /// The name in recipes, on command lines and in cache identities.
    pub fn name(self) -> &'static str {
        match self {
            Layer::Last => "last",
            Layer::LastNorm => "last_norm",
            Layer::Proj => "proj",
        }
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Layer {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Layer::ALL
            .into_iter()
            .find(|layer| layer.name() == name)
            .ok_or_else(|| format!("unknown layer {name:?}; there are {}", Layer::ALL.map(Layer::name).join(", ")))
    }
}

/// How a teacher is read.
///
/// All but the layer are facts about the network. What a file beside the weights says cannot be overruled: naming another value
/// here is an error.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TeacherOptions {
    /// The stage whose tokens are the features.
    pub layer: Layer,
    /// The MLP's activation.
    pub activation: Option<Activation>,
    /// Mean of each channel (R, G, B) of pixels in 0..1.
    pub mean: Option<[f64; 3]>,
    /// Standard deviation of each channel.
    pub std: Option<[f64; 3]>,
    /// Epsilon of the layer norms.
    pub norm_eps: Option<f64>,
    /// Attention heads of each block.
    pub num_heads: Option<u32>,
}

/// The smallest plausible standard deviation: `1/255`, that of towers that take pixels of 0..255.
const LEAST_STD: f64 = 0.0039;

/// Whether a constant can only belong to pixels of 0..255.
fn is_of_bytes(value: &f64) -> bool {
    *value > 1.0 && *value <= 255.0
}

/// What is wrong with a `mean` of pixels in 0..1, if anything. Every published tower has one in 0..=1.
pub fn mean_problem(mean: [f64; 3]) -> Option<&'static str> {
    if mean.iter().all(|v| (0.0..=1.0).contains(v)) {
        None
    } else if mean.iter().any(is_of_bytes) {
        Some("must be from 0 to 1, since pixels are: these look like values from 0 to 255; divide mean and std by 255")
    } else {
        Some("must be from 0 to 1, since pixels are")
    }
}

/// Likewise of a standard deviation, which is above 0 and, of numbers in 0..1, never above 1.
pub fn std_problem(std: [f64; 3]) -> Option<&'static str> {
    if std.iter().all(|v| (LEAST_STD..=1.0).contains(v)) {
        None
    } else if std.iter().any(is_of_bytes) {
        Some(
            "must be above 0 and at most 1, since pixels are from 0 to 1: these look like values from 0 to 255; divide mean and std by 255",
        )
    } else if std.iter().all(|v| (f64::MIN_POSITIVE..LEAST_STD).contains(v)) {
        Some("must be at least 1/255: these look like values that were divided by 255 twice")
    } else {
        Some("must be above 0 and at most 1, since pixels are from 0 to 1")
    }
}

/// A fact about a teacher that neither a file nor an option states, taken from its family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assumed {
    /// The settings that would state it.
    pub settings: &'static str,
    /// The value, and why it was taken.
    pub text: String,
    /// Whether published files of the same layout have other values.
    pub doubtful: bool,
}

impl fmt::Display for Assumed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
