//! `[optim]`: AdamW, its peak learning rate, and the moving average of the parameters.

use program::range::{at_least_one, below_one, not_negative, positive};
use program::recipe::{Error, require};
use serde::{Deserialize, Serialize};
use torch_ext::AdamWConfig;

use super::schedule::scale_lr;

/// PyTorch's default, which MAE's code leaves untouched.
pub(super) const ADAM_EPS: f64 = 1e-8;
/// MR-MAE section 4.1 and MAE.
pub(super) const WEIGHT_DECAY: f64 = 0.05;

/// `[optim]`: AdamW. In pretraining 1-D parameters do not decay; in fine-tuning positions, CLS and registers do not either.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Optim {
    /// Images per forward pass.
    pub batch_size: usize,
    /// Forward passes whose gradients are averaged into one update.
    #[serde(default = "one")]
    pub accum_iter: usize,
    /// Base learning rate, scaled by effective batch / 256; in fine-tuning the last layer's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blr: Option<f64>,
    /// Peak learning rate, literally; excludes `blr`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// For fine-tuning: a layer's learning rate as a factor of the next layer's; 1 = one rate for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer_decay: Option<f64>,
    /// Decay rates of the two moments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub betas: Option<[f64; 2]>,
    /// Added to the denominator.
    #[serde(default = "adam_eps")]
    pub eps: f64,
    /// Decoupled weight decay.
    #[serde(default = "weight_decay")]
    pub weight_decay: f64,
    /// Largest global gradient norm. Absent = no clipping, as in MAE.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_grad: Option<f64>,
    /// Decay of a moving average of the parameters, for example 0.9999. The average is saved with every checkpoint (`ema.safetensors`) and
    /// evaluated as `ema:RUN`; fine-tuning evaluates it instead of the last step's weights and saves it as the best. Absent = no average, as
    /// in MAE and MR-MAE. Fine-tuning recipes of MAE's successors commonly have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema_decay: Option<f64>,
    /// Use a smaller decay at first: at step t (from 1) it is at most (1 + t) / (10 + t), so that a short run's average forgets the initial
    /// weights. TensorFlow's `ExponentialMovingAverage(num_updates)`. Off by default, like timm's `--model-ema-warmup`.
    #[serde(default)]
    pub ema_warmup: bool,
    /// Divide the two moments among the processes of a run (ZeRO stage 1): each has 8 bytes a parameter less than one process by itself has, times the
    /// share of the others, and half as much more is sent between them. Results do not change. Without other processes it has no effect.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shard_state: bool,
}

/// Settings of `[optim]` that change only how a run is computed.
pub(super) const FREE: [&str; 1] = ["optim.shard_state"];

fn one() -> usize {
    1
}
fn adam_eps() -> f64 {
    ADAM_EPS
}
fn weight_decay() -> f64 {
    WEIGHT_DECAY
}

/// Defaults in which pretraining and fine-tuning differ.
pub(super) struct Defaults {
    pub blr: f64,
    pub betas: [f64; 2],
    /// Absent in pretraining, where the setting is refused.
    pub layer_decay: Option<f64>,
}

impl Optim {
    /// Fills in the defaults of one kind of training and refuses the settings of the other.
    pub(super) fn resolve(&mut self, defaults: &Defaults) -> Result<(), Error> {
        if self.blr.is_none() && self.lr.is_none() {
            self.blr = Some(defaults.blr);
        }
        self.betas.get_or_insert(defaults.betas);
        match (defaults.layer_decay, self.layer_decay) {
            (Some(layer_decay), _) => drop(self.layer_decay.get_or_insert(layer_decay)),
            (None, None) => {}
            (None, Some(given)) => {
                require(
                    false,
                    "optim.layer_decay",
                    given,
                    "is a setting of fine-tuning; all layers pretrain at one rate",
                )?;
            }
        }
        Ok(())
    }

    /// Images between two updates.
    pub(crate) fn effective_batch(&self) -> usize {
        self.batch_size * self.accum_iter
    }

    /// The peak of the schedule: `lr`, or `blr` scaled by the effective batch.
    pub(crate) fn peak_lr(&self) -> f64 {
        self.lr.unwrap_or_else(|| scale_lr(self.blr.unwrap_or_default(), self.effective_batch()))
    }

    /// AdamW's configuration.
    pub(crate) fn adamw(&self) -> AdamWConfig {
        let [beta1, beta2] = self.betas.unwrap_or_default();
        AdamWConfig { beta1, beta2, eps: self.eps }
    }

    /// The decay of the moving average at step `step` (from 0); `None` without an average.
    pub(crate) fn ema_decay_at(&self, step: u64) -> Option<f64> {
        let taken = (step + 1) as f64;
        let largest = if self.ema_warmup { (1.0 + taken) / (10.0 + taken) } else { 1.0 };
        self.ema_decay.map(|decay| decay.min(largest))
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        at_least_one("optim.batch_size", self.batch_size as u64)?;
        at_least_one("optim.accum_iter", self.accum_iter as u64)?;
        require(
            self.batch_size.checked_mul(self.accum_iter).is_some(),
            "optim.accum_iter",
            self.accum_iter,
            "makes the effective batch size overflow",
        )?;
        require(
            self.blr.is_none() || self.lr.is_none(),
            "optim.lr",
            self.lr.unwrap_or_default(),
            "excludes optim.blr: give either the peak or the base rate",
        )?;
        positive("optim.blr", self.blr)?;
        positive("optim.lr", self.lr)?;
        let layer_decay = self.layer_decay.unwrap_or(1.0);
        require(
            layer_decay > 0.0 && layer_decay <= 1.0,
            "optim.layer_decay",
            layer_decay,
            "must be above 0 and at most 1",
        )?;
        for beta in self.betas.into_iter().flatten() {
            below_one("optim.betas", beta)?;
        }
        positive("optim.eps", self.eps)?;
        not_negative("optim.weight_decay", self.weight_decay)?;
        positive("optim.clip_grad", self.clip_grad)?;
        let ema_decay = self.ema_decay.unwrap_or(0.5);
        require(
            0.0 < ema_decay && ema_decay < 1.0,
            "optim.ema_decay",
            ema_decay,
            "must be more than 0 and less than 1; leave it out for no average",
        )?;
        require(
            self.ema_decay.is_some() || !self.ema_warmup,
            "optim.ema_warmup",
            self.ema_warmup,
            "applies only with optim.ema_decay",
        )
    }
}
