//! The recipe: the experiment as a typed TOML file.
//!
//! A recipe is read from a file, changed by `--set section.key=value`, completed by the documented defaults below and
//! checked once. The resolved recipe is printed and saved with the run; a run folder refuses a different one, naming the
//! first field that differs, except for the few settings that cannot change the result ([`Recipe::differences`]).
//! Folders, device and threads are not part of a recipe.

use std::path::Path;

use program::recipe;
use serde::{Deserialize, Serialize};

pub use method::{FocusMode, Loss, LossKind, Mask, MaskKind, Mimic, MimicTokens, Target, TeacherSettings};
pub(crate) use model::model_error;
pub use model::{EncoderKind, Model};
pub use optim::{Optim, ScheduleConfig, ScheduleKind};
pub use program::recipe::Error;
pub(crate) use run::precision_name;
pub use run::{Data, Missing, Run};

pub(crate) mod any;
pub(crate) mod difference;
mod method;
mod model;
mod optim;
mod run;
#[cfg(test)]
mod tests;

/// Base learning rate per 256 images. The paper says "maximum lr 1.5e-4" without saying which; MAE, ConvMAE and MaskAlign
/// use the same number as a *base* rate, so we read it as one. `optim.lr` sets the peak literally instead.
pub const BLR: f64 = 1.5e-4;
/// AdamW's betas in MAE's pretraining code; MR-MAE does not state them.
pub const BETAS: [f64; 2] = [0.9, 0.95];
/// PyTorch's default, which MAE's code leaves untouched.
pub const ADAM_EPS: f64 = 1e-8;
/// MR-MAE section 4.1 and MAE.
pub const WEIGHT_DECAY: f64 = 0.05;
/// Share of patches that the encoder does not see. MR-MAE prints "mask ratio 25 %" and means the visible share.
pub const MASK_RATIO: f64 = 0.75;
/// MR-MAE weighs reconstruction and mimicking equally.
pub const LOSS_WEIGHT: f64 = 0.5;
/// Finished batches that wait for the device. Two hide one slow batch; more only cost memory.
pub const PREFETCH: usize = 3;
/// One is enough to resume; the second is there for the day the first turns out to be damaged.
pub const KEEP_CHECKPOINTS: usize = 2;
/// Enough to see what is learnt, and drawn in no time.
pub const PICTURES: usize = 4;
/// MaskAlign's for smooth L1.
pub const SMOOTH_L1_BETA: f64 = 1.0;
/// A few skipped steps are an accident, this many in a row are a diverged run.
pub const STOP_AFTER_NONFINITE: u32 = 5;
/// One experiment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Which samples are used.
    #[serde(default)]
    pub data: Data,
    /// The student.
    #[serde(default)]
    pub model: Model,
    /// Which teachers are mimicked.
    #[serde(default)]
    pub mimic: Mimic,
    /// How their features become targets.
    #[serde(default)]
    pub target: Target,
    /// How the losses add up.
    #[serde(default)]
    pub loss: Loss,
    /// Which patches are hidden.
    #[serde(default)]
    pub mask: Mask,
    /// The optimiser.
    pub optim: Optim,
    /// Its learning rate over time.
    pub schedule: ScheduleConfig,
    /// Everything around it.
    #[serde(default)]
    pub run: Run,
}

impl Recipe {
    /// Reads `path`, applies `settings` (`section.key=value`) and checks the result.
    pub fn load(path: &Path, settings: &[String]) -> Result<Recipe, Error> {
        Recipe::parse(&recipe::read(path)?, &path.display().to_string(), settings)
    }

    /// Like [`Recipe::load`] for a text; `origin` is what messages call it.
    pub fn parse(text: &str, origin: &str, settings: &[String]) -> Result<Recipe, Error> {
        let mut recipe: Recipe = recipe::typed(text, origin, &recipe::parse_all(settings)?)?;
        if recipe.optim.blr.is_none() && recipe.optim.lr.is_none() {
            recipe.optim.blr = Some(BLR);
        }
        if recipe.mask.kind == MaskKind::Focused {
            recipe.mask.mode.get_or_insert(FocusMode::Multinomial);
        }
        recipe.resolve_encoder()?;
        let m = &mut recipe.mimic;
        if m.loss == LossKind::SmoothL1 {
            m.beta.get_or_insert(SMOOTH_L1_BETA);
        }
        if recipe.schedule.kind == ScheduleKind::Wsd {
            recipe.schedule.decay.get_or_insert_default();
        }
        recipe.check_model()?;
        recipe.check_mimicking()?;
        recipe.check_mask()?;
        recipe.check_optim()?;
        recipe.check_schedule()?;
        recipe.check_data_and_run()?;
        Ok(recipe)
    }

    /// The resolved recipe as TOML, every default spelled out.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a recipe is plain tables of plain values")
    }
}
