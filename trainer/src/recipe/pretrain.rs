//! The recipe of `trainer pretrain`.

use serde::{Deserialize, Serialize};

use super::{
    Data, Dist, Error, Experiment, FocusMode, Loss, Mask, MaskKind, Mimic, Model, Optim, Run, ScheduleConfig,
    ScheduleKind, Target, optim,
};
use crate::recipe::schedule::Schedule;
use program::recipe::require;

/// Base learning rate per 256 images. The paper says "maximum lr 1.5e-4" without saying which; MAE, ConvMAE and MaskAlign
/// use the same number as a *base* rate, so we read it as one. `optim.lr` sets the peak literally instead.
const BLR: f64 = 1.5e-4;
/// AdamW's betas in MAE's pretraining code; MR-MAE does not state them.
const BETAS: [f64; 2] = [0.9, 0.95];
/// Where MAE's cosine ends in pretraining.
const MIN_LR: f64 = 0.0;
/// Default number of pictures: enough to see what is learned, and quick to draw.
const PICTURES: usize = 4;

/// One pretraining.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Recipe {
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
    /// The optimizer.
    pub optim: Optim,
    /// The learning rate over time.
    pub schedule: ScheduleConfig,
    /// Seed, precision, logging and checkpoints.
    #[serde(default)]
    pub run: Run,
    /// How processes work together.
    #[serde(default)]
    pub dist: Dist,
}

impl Recipe {
    /// The learning rate over time.
    pub(crate) fn schedule(&self) -> Schedule {
        self.schedule.schedule(self.optim.peak_lr())
    }
}

impl Experiment for Recipe {
    const FREE: &[&str] = &["data.prefetch", "data.pixel_cache_mib", "run.pictures", "run.eval_every"];
    const COMMAND: &str = "pretrain";
    const NOT_OFFERED: &[(&str, &str)] = &[("`layer_decay`, ", ""), ("`prefetch`, `log_every`", "`log_every`")];

    fn resolve(&mut self) -> Result<(), Error> {
        self.optim.resolve(&optim::Defaults { blr: BLR, betas: BETAS, layer_decay: None })?;
        self.schedule.resolve(MIN_LR);
        self.run.pictures.get_or_insert(PICTURES);
        if self.mask.kind == MaskKind::Focused {
            self.mask.mode.get_or_insert(FocusMode::Multinomial);
        }
        self.resolve_encoder()?;
        self.check_model()?;
        self.resolve_mimicking();
        self.check_mimicking()?;
        self.check_mask()?;
        self.optim.check()?;
        self.schedule.check(self.optim.peak_lr())?;
        self.data.check()?;
        let prefetch = self.run.prefetch;
        require(
            prefetch.is_none(),
            "run.prefetch",
            prefetch.unwrap_or_default(),
            "is a setting of fine-tuning; pretraining has data.prefetch",
        )?;
        self.dist.check()?;
        self.run.check()
    }

    /// The length of a `wsd` run may change as long as its decay has not begun
    /// ([`run_folder::refuse_other_length`](crate::train::run_folder::refuse_other_length)); `model.init` is compared by the hash of its
    /// content and not by its path.
    fn may_differ(&self, other: &Recipe, name: &str) -> bool {
        match name {
            "schedule.epochs" => [self.schedule.kind, other.schedule.kind] == [ScheduleKind::Wsd; 2],
            "model.init" => self.model.init.is_some() && other.model.init.is_some(),
            _ => false,
        }
    }
}
