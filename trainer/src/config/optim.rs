//! `[optim]` and `[schedule]`: AdamW, its moving average, and the learning rate over time.

use serde::{Deserialize, Serialize};

use super::{ADAM_EPS, BETAS, BLR, Recipe, WEIGHT_DECAY};
use crate::schedule::{self, Decay, Descent, Schedule};
use program::recipe::{Error, POSITIVE, require};

/// `[optim]`: AdamW, no decay on 1-D parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Optim {
    /// Images per forward pass.
    pub batch_size: usize,
    /// Forward passes whose gradients are averaged into one update.
    #[serde(default = "one")]
    pub accum_iter: usize,
    /// Base learning rate, scaled by effective batch / 256.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blr: Option<f64>,
    /// Peak learning rate, literally; excludes `blr`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
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
    /// Also keep a moving average of the parameters: the share of itself that it keeps at each step, for example 0.9999. It is saved with
    /// every checkpoint (`ema.safetensors`) and evaluated as `ema:RUN`. Absent = none, as in MAE and MR-MAE. Fine-tuning of MAE's
    /// successors commonly has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema_decay: Option<f64>,
    /// Begin the average fast: at step t (from 1) it keeps no more than (1 + t) / (10 + t), so that a short run's average forgets where it
    /// started. TensorFlow's `ExponentialMovingAverage(num_updates)`. Off by default, like timm's `--model-ema-warmup`.
    #[serde(default)]
    pub ema_warmup: bool,
}

fn one() -> usize {
    1
}
fn betas() -> [f64; 2] {
    BETAS
}
fn adam_eps() -> f64 {
    ADAM_EPS
}
fn weight_decay() -> f64 {
    WEIGHT_DECAY
}

/// `[schedule]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleConfig {
    /// What comes after the warm-up.
    #[serde(default)]
    pub kind: ScheduleKind,
    /// Length of the run. With `kind = "wsd"` it may be changed on a resume for as long as the decay has not begun.
    pub epochs: u64,
    /// Length of the linear rise, in epochs; may have a fraction.
    #[serde(default)]
    pub warmup_epochs: f64,
    /// Where the descent ends.
    #[serde(default)]
    pub min_lr: f64,
    /// For `wsd`, which needs it: length of the decay at the end, in epochs; may have a fraction. Hägele et al. 2024 find 10 to 20 % of the
    /// run enough to reach a cosine's loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decay_epochs: Option<f64>,
    /// For `wsd`: the decay's shape, "1-sqrt" (the default) or "linear". Hägele et al. 2024 find the first better.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decay: Option<Decay>,
}

/// What comes after the warm-up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    /// Half a cosine to the end: MAE's and the paper's. The length must be known at the start.
    #[default]
    Cosine,
    /// Warm-up, stable, decay: the peak rate until `decay_epochs` before the end (Hu et al. 2024, MiniCPM; Hägele et al. 2024). One long
    /// run can be finished at several lengths, each from a checkpoint of the plateau.
    Wsd,
}

impl Recipe {
    /// Images between two updates.
    pub fn effective_batch(&self) -> usize {
        self.optim.batch_size * self.optim.accum_iter
    }

    /// The learning rate over time.
    pub fn schedule(&self) -> Schedule {
        let blr = self.optim.blr.unwrap_or(BLR);
        Schedule {
            lr: self.optim.lr.unwrap_or_else(|| schedule::scale_lr(blr, self.effective_batch())),
            min_lr: self.schedule.min_lr,
            warmup_epochs: self.schedule.warmup_epochs,
            epochs: self.schedule.epochs as f64,
            descent: match self.schedule.kind {
                ScheduleKind::Cosine => Descent::Cosine,
                ScheduleKind::Wsd => Descent::Wsd {
                    epochs: self.schedule.decay_epochs.unwrap_or_default(),
                    decay: self.schedule.decay.unwrap_or_default(),
                },
            },
        }
    }

    /// How much of itself the moving average keeps at step `step` (from 0), if there is one.
    pub fn ema_decay(&self, step: u64) -> Option<f64> {
        let taken = (step + 1) as f64;
        let most = match self.optim.ema_warmup {
            true => (1.0 + taken) / (10.0 + taken),
            false => 1.0,
        };
        self.optim.ema_decay.map(|decay| decay.min(most))
    }

    pub(super) fn check_optim(&self) -> Result<(), Error> {
        let o = &self.optim;
        require(o.batch_size >= 1, "optim.batch_size", o.batch_size, POSITIVE)?;
        require(o.accum_iter >= 1, "optim.accum_iter", o.accum_iter, POSITIVE)?;
        require(
            o.batch_size.checked_mul(o.accum_iter).is_some(),
            "optim.accum_iter",
            o.accum_iter,
            "must leave an effective batch that can be counted",
        )?;
        require(
            o.blr.is_none() || o.lr.is_none(),
            "optim.lr",
            o.lr.unwrap_or_default(),
            "excludes optim.blr: give the peak or the base rate",
        )?;
        for (field, lr) in [("optim.blr", o.blr), ("optim.lr", o.lr)] {
            let lr = lr.unwrap_or(1.0);
            require(lr > 0.0 && lr.is_finite(), field, lr, "must be positive")?;
        }
        for beta in o.betas {
            require((0.0..1.0).contains(&beta), "optim.betas", format!("{:?}", o.betas), "must each be in [0, 1)")?;
        }
        require(o.eps > 0.0 && o.eps.is_finite(), "optim.eps", o.eps, "must be positive")?;
        require(
            o.weight_decay >= 0.0 && o.weight_decay.is_finite(),
            "optim.weight_decay",
            o.weight_decay,
            "must be zero or positive",
        )?;
        let clip = o.clip_grad.unwrap_or(1.0);
        require(
            clip > 0.0 && clip.is_finite(),
            "optim.clip_grad",
            clip,
            "must be positive; leave it out for no clipping",
        )?;
        let decay = o.ema_decay.unwrap_or(0.5);
        require(
            0.0 < decay && decay < 1.0,
            "optim.ema_decay",
            decay,
            "must be more than 0 and less than 1; leave it out for no average",
        )?;
        require(
            o.ema_decay.is_some() || !o.ema_warmup,
            "optim.ema_warmup",
            o.ema_warmup,
            "has a meaning only with optim.ema_decay",
        )
    }

    pub(super) fn check_schedule(&self) -> Result<(), Error> {
        let s = &self.schedule;
        require(s.epochs >= 1, "schedule.epochs", s.epochs, POSITIVE)?;
        require(
            (0.0..s.epochs as f64).contains(&s.warmup_epochs),
            "schedule.warmup_epochs",
            s.warmup_epochs,
            "must be zero or more, and less than schedule.epochs",
        )?;
        let wsd = s.kind == ScheduleKind::Wsd;
        require(
            wsd == s.decay_epochs.is_some(),
            "schedule.decay_epochs",
            s.decay_epochs.map_or("unset".into(), |epochs| epochs.to_string()),
            match wsd {
                true => "schedule.kind = \"wsd\" needs it; a fifth of schedule.epochs is usual",
                false => "belongs to schedule.kind = \"wsd\": set that too, or neither",
            },
        )?;
        require(
            wsd || s.decay.is_none(),
            "schedule.decay",
            "given",
            "belongs to schedule.kind = \"wsd\": set that too, or neither",
        )?;
        let decay_epochs = s.decay_epochs.unwrap_or(1.0);
        require(
            !wsd || (decay_epochs > 0.0 && decay_epochs <= s.epochs as f64 - s.warmup_epochs),
            "schedule.decay_epochs",
            decay_epochs,
            "must be more than 0, and no more than what the warm-up leaves of schedule.epochs",
        )?;
        let peak = self.schedule().lr;
        require((0.0..=peak).contains(&s.min_lr), "schedule.min_lr", s.min_lr, "must lie between 0 and the peak rate")
    }
}
