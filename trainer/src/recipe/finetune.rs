//! The recipe of `trainer finetune`: a typed TOML file like that of pretraining, completed by the documented defaults below.
//!
//! Defaults are those of MAE's fine-tuning of a ViT-B (He et al. 2022, appendix A.2; `facebookresearch/mae`, FINETUNE.md).

use images::augment::{Interpolation, PolicyError, RandAugment};
use models::classifier::Pool;
use models::encoder::EncoderConfig;
use models::pixels::IMAGENET_MEAN;
use program::range::{below_one, probability};
use program::recipe::{invalid, require};
use serde::{Deserialize, Serialize};

use super::data::PREFETCH;
use super::model::model_error;
use super::schedule::Schedule;
use super::{Dist, Error, Experiment, Optim, Run, ScheduleConfig, ScheduleKind, optim};

/// Views are numbered by epoch in 16 bits.
const MAX_EPOCHS: u64 = 1 << 16;
/// Base learning rate per 256 images for ViT-B; MAE has 1e-3 for L and H.
const BLR: f64 = 5e-4;
/// MAE's for ViT-B; MAE has 0.75 for L and H, MR-MAE 0.6 and MaskAlign 0.55 for B.
const LAYER_DECAY: f64 = 0.65;
/// Rate of the last block, rising linearly from 0 in the first, for ViT-B; MAE has 0.2 for L and 0.3 for H, MR-MAE 0.2 for B.
const DROP_PATH: f64 = 0.1;
/// PyTorch's default, which MAE's code leaves untouched here.
const BETAS: [f64; 2] = [0.9, 0.999];
/// Where MAE's cosine ends.
const MIN_LR: f64 = 1e-6;

/// One fine-tuning. The images are not part of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FinetuneRecipe {
    /// Pooling, stochastic depth and image size.
    #[serde(default)]
    pub model: Model,
    /// Augmentation of images and labels.
    #[serde(default)]
    pub augment: Augment,
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
    /// The encoder that is fine-tuned, at the image size of fine-tuning. `trainer finetune` fills it in from `--init`, so that the run's
    /// weights can be used without the initial ones; a recipe that is written by hand leaves it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoder: Option<EncoderConfig>,
}

/// `[model]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Model {
    /// What the head classifies: the `mean` of the patch tokens, after a norm of its own, or `cls`.
    pub pool: PoolKind,
    /// Stochastic depth: the share of samples that skip a branch of the last block; the first block's is 0, between them it is
    /// linear.
    pub drop_path: f64,
    /// Side of the square input, in pixels, if it differs from pretraining's; positions are interpolated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub img_size: Option<u32>,
}

impl Default for Model {
    fn default() -> Self {
        Model { pool: PoolKind::Mean, drop_path: DROP_PATH, img_size: None }
    }
}

/// [`Pool`] in a recipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PoolKind {
    /// The mean of the patch tokens.
    Mean,
    /// The CLS token.
    Cls,
}

impl From<PoolKind> for Pool {
    fn from(kind: PoolKind) -> Pool {
        match kind {
            PoolKind::Mean => Pool::Mean,
            PoolKind::Cls => Pool::Cls,
        }
    }
}

/// `[augment]`. The defaults are MAE's fine-tuning (`FINETUNE.md` and `main_finetune.py`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Augment {
    /// Smallest and largest area of a random crop, as shares of the image's area.
    pub crop_scale: [f64; 2],
    /// Probability of a horizontal flip.
    pub flip: f64,
    /// RandAugment policy for training images, written as in timm, or "none".
    pub rand_augment: String,
    /// Probability that a box of a training image becomes noise.
    pub random_erasing: f64,
    /// a of mixup's Beta(a, a); 0 = off.
    pub mixup: f64,
    /// a of CutMix's Beta(a, a); 0 = off.
    pub cutmix: f64,
    /// Probability that a batch is mixed, by mixup or CutMix.
    pub mixup_prob: f64,
    /// Probability of CutMix where both are possible.
    pub switch_prob: f64,
    /// Share of the target that is spread over all classes.
    pub label_smoothing: f64,
    /// Share of the shorter side that the central square of a test image has: 0.875 is "resize to 256, crop 224". The square is cut from
    /// the original and resampled once, so that its border is within a pixel of that.
    pub crop_pct: f64,
}

impl Augment {
    fn check(&self) -> Result<(), Error> {
        let [low, high] = self.crop_scale;
        require(
            low > 0.0 && low <= high && high <= 1.0,
            "augment.crop_scale",
            format!("{:?}", self.crop_scale),
            "must be two shares of the area, above 0 and at most 1, the smaller first",
        )?;
        probability("augment.flip", self.flip)?;
        probability("augment.random_erasing", self.random_erasing)?;
        for (name, alpha) in [("augment.mixup", self.mixup), ("augment.cutmix", self.cutmix)] {
            require(
                alpha == 0.0 || (1e-3..=1e3).contains(&alpha),
                name,
                alpha,
                "must be the parameter of a Beta distribution: 0 (off), or from 0.001 to 1000",
            )?;
        }
        probability("augment.mixup_prob", self.mixup_prob)?;
        probability("augment.switch_prob", self.switch_prob)?;
        below_one("augment.label_smoothing", self.label_smoothing)?;
        let crop_pct = self.crop_pct;
        require(crop_pct > 0.0 && crop_pct <= 1.0, "augment.crop_pct", crop_pct, "must be above 0 and at most 1")?;
        self.policy().map(drop).map_err(|e| invalid("augment.rand_augment", &self.rand_augment, e))
    }

    /// The RandAugment policy; `None` for "none". It interpolates bicubically, as MAE's fine-tuning has timm do, and fills areas outside
    /// the image with ImageNet's mean color.
    ///
    /// # Errors
    /// If there is no such policy.
    pub(crate) fn policy(&self) -> Result<Option<RandAugment>, PolicyError> {
        if self.rand_augment == "none" {
            return Ok(None);
        }
        let mean = IMAGENET_MEAN;
        RandAugment::parse(&self.rand_augment, mean, Interpolation::Bicubic).map(Some)
    }
}

impl Default for Augment {
    fn default() -> Self {
        Augment {
            crop_scale: [0.08, 1.0],
            flip: 0.5,
            rand_augment: "rand-m9-mstd0.5-inc1".to_owned(),
            random_erasing: 0.25,
            mixup: 0.8,
            cutmix: 1.0,
            mixup_prob: 1.0,
            switch_prob: 0.5,
            label_smoothing: 0.1,
            crop_pct: 0.875,
        }
    }
}

impl FinetuneRecipe {
    /// The learning rate of the last layer over time.
    pub(crate) fn schedule(&self) -> Schedule {
        self.schedule.schedule(self.optim.peak_lr())
    }

    /// Checks `[augment]` and the settings that only fine-tuning has.
    fn check(&self) -> Result<(), Error> {
        below_one("model.drop_path", self.model.drop_path)?;
        self.augment.check()?;
        let epochs = self.schedule.epochs;
        require(epochs <= MAX_EPOCHS, "schedule.epochs", epochs, "must be at most 65536")?;
        let pictures = self.run.pictures;
        require(pictures.is_none(), "run.pictures", pictures.unwrap_or_default(), "is a setting of pretraining")?;
        match &self.encoder {
            Some(encoder) => encoder.validate().map_err(model_error),
            None => Ok(()),
        }
    }
}

impl Experiment for FinetuneRecipe {
    const FREE: &[&str] = &[];
    const COMMAND: &str = "finetune";
    const NOT_OFFERED: &[(&str, &str)] = &[("`pictures`, ", "")];

    fn resolve(&mut self) -> Result<(), Error> {
        self.optim.resolve(&optim::Defaults { blr: BLR, betas: BETAS, layer_decay: Some(LAYER_DECAY) })?;
        self.schedule.resolve(MIN_LR);
        self.run.eval_every.get_or_insert(1);
        self.run.prefetch.get_or_insert(PREFETCH);
        self.check()?;
        self.optim.check()?;
        self.schedule.check(self.optim.peak_lr())?;
        self.run.check()
    }

    /// The length of a `wsd` run may change as long as its decay has not begun. A run of a version that did not record the encoder may get
    /// one: its initial weights are compared by their digest.
    fn may_differ(&self, other: &FinetuneRecipe, name: &str) -> bool {
        match name {
            "schedule.epochs" => [self.schedule.kind, other.schedule.kind] == [ScheduleKind::Wsd; 2],
            name => self.encoder.is_none() && (name == "encoder" || name.starts_with("encoder.")),
        }
    }
}
