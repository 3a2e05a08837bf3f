//! `[view]`: which crops of an image are stored.

use program::range::{at_least_one, probability};
use program::recipe::{Error, require};
use schemas::{ViewIdentity, ViewPolicy};
use serde::{Deserialize, Serialize};

/// RandomResizedCrop's share of the image's area, as MAE pretrains (MR-MAE follows it).
pub const SCALE: [f64; 2] = [0.2, 1.0];
/// RandomResizedCrop's width over height, torchvision's default.
pub const RATIO: [f64; 2] = [3.0 / 4.0, 4.0 / 3.0];
/// Probability of a horizontal flip.
pub const FLIP: f64 = 0.5;

/// `[view]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct View {
    /// How crops are chosen.
    pub policy: Policy,
    /// Crops per image. One is the cheapest cache; an epoch uses one of them, so more of them are more augmentation. More than one needs
    /// `rrc`: the others have only one.
    pub views: u16,
    /// Seed of crops and flips, less than 2^63.
    pub seed: u64,
    /// For `rrc`: smallest and largest share of the area; default [`SCALE`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale: Option<[f64; 2]>,
    /// For `rrc`: smallest and largest width over height; default [`RATIO`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<[f64; 2]>,
    /// For `rrc`: probability of a horizontal flip; default [`FLIP`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flip: Option<f64>,
}

/// How crops are chosen; see [`ViewPolicy`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// Random resized crops.
    #[default]
    Rrc,
    /// The central square.
    Center,
    /// The whole image.
    Full,
}

impl Default for View {
    fn default() -> Self {
        View { policy: Policy::Rrc, views: 1, seed: 0, scale: None, ratio: None, flip: None }
    }
}

impl View {
    /// Fills in what `rrc` needs and checks every value.
    pub(super) fn resolve(&mut self) -> Result<(), Error> {
        at_least_one("view.views", u64::from(self.views))?;
        // TOML's integers are signed 64-bit: a larger seed could not be printed as a recipe.
        require(i64::try_from(self.seed).is_ok(), "view.seed", self.seed, "must be less than 2^63")?;
        if self.policy == Policy::Rrc {
            let scale @ [_, largest] = *self.scale.get_or_insert(SCALE);
            let ratio = *self.ratio.get_or_insert(RATIO);
            let flip = *self.flip.get_or_insert(FLIP);
            let ordered = |[low, high]: [f64; 2]| low > 0.0 && low <= high && high.is_finite();
            let problem = "must be [low, high] with 0 < low <= high <= 1";
            require(ordered(scale) && largest <= 1.0, "view.scale", format!("{scale:?}"), problem)?;
            require(ordered(ratio), "view.ratio", format!("{ratio:?}"), "must be [low, high] with 0 < low <= high")?;
            probability("view.flip", flip)
        } else {
            let meaningless = [
                ("view.scale", self.scale.is_some()),
                ("view.ratio", self.ratio.is_some()),
                ("view.flip", self.flip.is_some()),
            ];
            for (field, set) in meaningless {
                require(!set, field, "set", "has a meaning only with view.policy = \"rrc\"")?;
            }
            let problem = "center and full have one view per image; use view.policy = \"rrc\" for more";
            require(self.views == 1, "view.views", self.views, problem)
        }
    }

    /// As a cache records it.
    pub(crate) fn identity(&self) -> ViewIdentity {
        let policy = match self.policy {
            Policy::Rrc => ViewPolicy::Rrc {
                scale: self.scale.unwrap_or(SCALE),
                ratio: self.ratio.unwrap_or(RATIO),
                flip: self.flip.unwrap_or(FLIP),
            },
            Policy::Center => ViewPolicy::Center,
            Policy::Full => ViewPolicy::Full,
        };
        ViewIdentity { policy, views: self.views, seed: self.seed, filter: "bicubic".into() }
    }
}

impl From<&ViewIdentity> for View {
    fn from(identity: &ViewIdentity) -> View {
        let view = View { views: identity.views, seed: identity.seed, ..View::default() };
        match identity.policy {
            ViewPolicy::Rrc { scale, ratio, flip } => {
                View { scale: Some(scale), ratio: Some(ratio), flip: Some(flip), ..view }
            }
            ViewPolicy::Center => View { policy: Policy::Center, ..view },
            ViewPolicy::Full => View { policy: Policy::Full, ..view },
        }
    }
}
