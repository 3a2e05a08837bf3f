//! The recipe of a fine-tuning: like that of pretraining a typed TOML file, completed by the documented defaults below.
//!
//! Defaults are those of MAE's fine-tuning of a ViT-B (He et al. 2022, appendix A.2; `facebookresearch/mae`, FINETUNE.md).

use std::path::Path;

use images::augment::{Interpolation, PolicyError, RandAugment};
use models::classifier::Pool;
use models::encoder::EncoderConfig;
use models::precision::Precision;
use program::recipe;
use serde::{Deserialize, Serialize};

use crate::augment::mixup::Mixup;
use crate::config::difference;
use crate::config::{Error, precision_name};
use crate::run_folder::Experiment;
use crate::schedule::{Descent, Schedule, scale_lr};
use crate::step::IMAGENET_MEAN;

mod check;

/// Base learning rate per 256 images for ViT-B; MAE has 1e-3 for L and H.
pub const BLR: f64 = 5e-4;
/// For ViT-B; MAE has 0.75 for L and H, MR-MAE 0.6 and MaskAlign 0.55 for B.
pub const LAYER_DECAY: f64 = 0.65;
/// Of the last block, rising linearly from 0 in the first, for ViT-B; MAE has 0.2 for L and 0.3 for H, MR-MAE 0.2 for B.
pub const DROP_PATH: f64 = 0.1;
/// PyTorch's default, which MAE's code leaves untouched here.
pub const BETAS: [f64; 2] = [0.9, 0.999];
/// Where MAE's cosine ends.
pub const MIN_LR: f64 = 1e-6;
/// One fine-tuning. On which images is not part of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FinetuneRecipe {
    /// What is added to the encoder.
    #[serde(default)]
    pub model: Model,
    /// What is done to images and labels.
    #[serde(default)]
    pub augment: Augment,
    /// The optimiser.
    pub optim: Optim,
    /// Its learning rate over time.
    pub schedule: ScheduleConfig,
    /// Everything around it.
    #[serde(default)]
    pub run: Run,
    /// What is fine-tuned, at the image size of fine-tuning. `trainer finetune` fills it in from `--init`, so that weights can be used
    /// without what they started from; in a recipe that is written by hand it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoder: Option<EncoderConfig>,
}

/// `[model]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Model {
    /// What is classified: `mean` of the patch tokens, through a norm of its own, or `cls`.
    pub pool: PoolKind,
    /// Stochastic depth: the share of samples that skip a branch of the last block; the first block's is 0, between them it is
    /// linear.
    pub drop_path: f64,
    /// Side of the square input, in pixels, if it is not that of pretraining; positions are interpolated.
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
pub struct Augment {
    /// Smallest and largest share of an image's area that a random crop has.
    pub crop_scale: [f64; 2],
    /// Probability of a horizontal flip.
    pub flip: f64,
    /// timm's RandAugment policy of training images, or "none".
    pub rand_augment: String,
    /// Probability that a box of a training image becomes noise.
    pub random_erasing: f64,
    /// a of mixup's Beta(a, a); 0 = off.
    pub mixup: f64,
    /// a of CutMix's Beta(a, a); 0 = off.
    pub cutmix: f64,
    /// Probability that a batch is mixed, by one of the two.
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
    /// How batches are mixed.
    pub fn mixing(&self) -> Mixup {
        Mixup {
            mixup_alpha: self.mixup,
            cutmix_alpha: self.cutmix,
            prob: self.mixup_prob,
            switch_prob: self.switch_prob,
            label_smoothing: self.label_smoothing,
        }
    }

    /// What RandAugment does, if anything. Bicubic, as timm is told to resize; images are filled up with ImageNet's mean colour.
    ///
    /// # Errors
    /// If there is no such policy.
    pub fn policy(&self) -> Result<Option<RandAugment>, PolicyError> {
        if self.rand_augment == "none" {
            return Ok(None);
        }
        let mean = IMAGENET_MEAN.map(f64::from);
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

/// `[optim]`: AdamW; biases, norms, positions and CLS do not decay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Optim {
    /// Images per forward pass.
    pub batch_size: usize,
    /// Forward passes whose gradients are averaged into one update.
    #[serde(default = "one")]
    pub accum_iter: usize,
    /// Base learning rate of the last layer, scaled by effective batch / 256.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blr: Option<f64>,
    /// Peak learning rate of the last layer, literally; excludes `blr`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// The learning rate of a layer, in that of the next; 1 = one for all.
    #[serde(default = "layer_decay")]
    pub layer_decay: f64,
    /// Decay rates of the two moments.
    #[serde(default = "betas")]
    pub betas: [f64; 2],
    /// Added to the denominator.
    #[serde(default = "adam_eps")]
    pub eps: f64,
    /// Decoupled weight decay.
    #[serde(default = "weight_decay")]
    pub weight_decay: f64,
    /// Largest global gradient norm. Absent = no clipping, as in MAE.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_grad: Option<f64>,
    /// Keeps a moving average of the parameters, with this share of itself at every step, for example 0.9999; it is then what is
    /// evaluated and kept as the best. Absent = none, as in MAE.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema_decay: Option<f64>,
}

fn one() -> usize {
    1
}
fn layer_decay() -> f64 {
    LAYER_DECAY
}
fn betas() -> [f64; 2] {
    BETAS
}
fn adam_eps() -> f64 {
    crate::config::ADAM_EPS
}
fn weight_decay() -> f64 {
    crate::config::WEIGHT_DECAY
}

/// `[schedule]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleConfig {
    /// Length of the run.
    pub epochs: u64,
    /// Length of the linear rise, in epochs; may have a fraction.
    #[serde(default)]
    pub warmup_epochs: f64,
    /// Where the cosine ends.
    #[serde(default = "min_lr")]
    pub min_lr: f64,
}

fn min_lr() -> f64 {
    MIN_LR
}

/// `[run]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Run {
    /// The classifier's start, order, crops and what is dropped are functions of it.
    pub seed: u64,
    /// What matrix products and attention compute in; all else is f32.
    #[serde(with = "precision_name")]
    pub precision: Precision,
    /// TFLOP/s of the device's matrix products, by which `mfu` is reckoned. Absent = measured when training starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_tflops: Option<f64>,
    /// Epochs between two evaluations; there is always one at the end.
    pub eval_every: u64,
    /// Finished batches that may wait for the device.
    pub prefetch: usize,
    /// Steps between two log lines.
    pub log_every: u64,
    /// Steps between two checkpoints; there is always one at the end.
    pub checkpoint_every: u64,
    /// Checkpoints that are kept.
    pub keep_checkpoints: usize,
    /// Consecutive steps with a non-finite loss or gradient that end the run.
    pub stop_after_nonfinite: u32,
}

impl Default for Run {
    fn default() -> Self {
        Run {
            seed: 0,
            precision: Precision::Bf16,
            peak_tflops: None,
            eval_every: 1,
            prefetch: crate::config::PREFETCH,
            log_every: 20,
            checkpoint_every: 1000,
            keep_checkpoints: crate::config::KEEP_CHECKPOINTS,
            stop_after_nonfinite: crate::config::STOP_AFTER_NONFINITE,
        }
    }
}

impl FinetuneRecipe {
    /// Reads `path`, applies `settings` (`section.key=value`) and checks the result.
    pub fn load(path: &Path, settings: &[String]) -> Result<FinetuneRecipe, Error> {
        FinetuneRecipe::parse(&recipe::read(path)?, &path.display().to_string(), settings)
    }

    /// Like [`FinetuneRecipe::load`] for a text; `origin` is what messages call it.
    pub fn parse(text: &str, origin: &str, settings: &[String]) -> Result<FinetuneRecipe, Error> {
        let mut recipe: FinetuneRecipe = recipe::typed(text, origin, &recipe::parse_all(settings)?)?;
        if recipe.optim.blr.is_none() && recipe.optim.lr.is_none() {
            recipe.optim.blr = Some(BLR);
        }
        recipe.check()?;
        Ok(recipe)
    }

    /// The resolved recipe as TOML, every default spelled out.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a recipe is plain tables of plain values")
    }

    /// Images between two updates.
    pub fn effective_batch(&self) -> usize {
        self.optim.batch_size * self.optim.accum_iter
    }

    /// The learning rate of the last layer over time.
    pub fn schedule(&self) -> Schedule {
        let blr = self.optim.blr.unwrap_or(BLR);
        Schedule {
            lr: self.optim.lr.unwrap_or_else(|| scale_lr(blr, self.effective_batch())),
            min_lr: self.schedule.min_lr,
            warmup_epochs: self.schedule.warmup_epochs,
            epochs: self.schedule.epochs as f64,
            descent: Descent::Cosine,
        }
    }
}

impl Experiment for FinetuneRecipe {
    fn read(path: &Path) -> anyhow::Result<FinetuneRecipe> {
        Ok(FinetuneRecipe::load(path, &[])?)
    }

    /// Settings that cannot change what is computed do not count: `run.peak_tflops`, `run.prefetch`, `run.log_every`, `run.checkpoint_every`,
    /// `run.keep_checkpoints` and `run.stop_after_nonfinite`.
    fn differences(&self, other: &FinetuneRecipe) -> Vec<(String, String, String)> {
        let mut other = other.clone();
        other.run.peak_tflops = self.run.peak_tflops;
        other.run.prefetch = self.run.prefetch;
        // A run from before the encoder was recorded: weights to start from are compared by their digest.
        if self.encoder.is_none() {
            other.encoder = None;
        }
        other.run.log_every = self.run.log_every;
        other.run.checkpoint_every = self.run.checkpoint_every;
        other.run.keep_checkpoints = self.run.keep_checkpoints;
        other.run.stop_after_nonfinite = self.run.stop_after_nonfinite;
        let value = |r: &FinetuneRecipe| toml::Value::try_from(r).expect("a recipe is plain tables of plain values");
        difference::differences("", &value(self), &value(&other))
    }

    fn to_toml(&self) -> String {
        FinetuneRecipe::to_toml(self)
    }
}
