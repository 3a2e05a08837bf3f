//! What a user chooses about a teacher besides its file.

use std::fmt;
use std::str::FromStr;

use crate::vit::Activation;

/// Which stage of the tower is the feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
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
            .ok_or_else(|| {
                format!(
                    "{name:?} is no layer; there are {}",
                    Layer::ALL.map(Layer::name).join(", ")
                )
            })
    }
}

/// How a teacher is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TeacherOptions {
    /// The stage whose tokens are the features.
    pub layer: Layer,
    /// The MLP's activation, where no file beside the weights says it. What a file does say cannot be overruled: naming another
    /// one is an error.
    pub activation: Option<Activation>,
}
