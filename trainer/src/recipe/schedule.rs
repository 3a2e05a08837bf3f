//! `[schedule]`: the learning rate over time. Linear warm-up, then half a cosine, or a plateau and a short decay; per iteration, as a pure
//! function of the epoch.
//!
//! The cosine agrees with `facebookresearch/mae` (`util/lr_sched.py`, and `main_pretrain.py` for the scaling rule), which MR-MAE's
//! recipe is written in terms of. Warm-up, stable, decay is that of MiniCPM (Hu et al. 2024) with the decays of Hägele et al. 2024,
//! "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations".

use std::f64::consts::PI;

use program::range::at_least_one;
use program::recipe::{Error, require};
use serde::{Deserialize, Serialize};

/// `[schedule]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ScheduleConfig {
    /// What comes after the warm-up.
    #[serde(default)]
    pub kind: ScheduleKind,
    /// Length of the run. With `kind = "wsd"` it may be changed on a resume as long as the decay has not begun.
    pub epochs: u64,
    /// Epochs of linear warm-up; may have a fraction.
    #[serde(default)]
    pub warmup_epochs: f64,
    /// Learning rate at the end of the descent. Default: 0 in pretraining, 1e-6 in fine-tuning, both MAE's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_lr: Option<f64>,
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
pub(crate) enum ScheduleKind {
    /// Half a cosine to the end: MAE's and the paper's. The length must be known at the start.
    #[default]
    Cosine,
    /// Warm-up, stable, decay: the peak rate until `decay_epochs` before the end (Hu et al. 2024, MiniCPM; Hägele et al. 2024). One long
    /// run can be finished at several lengths, each from a checkpoint of the plateau.
    Wsd,
}

impl ScheduleConfig {
    /// Fills in the defaults, of which `min_lr` depends on the kind of training.
    pub(super) fn resolve(&mut self, min_lr: f64) {
        self.min_lr.get_or_insert(min_lr);
        if self.kind == ScheduleKind::Wsd {
            self.decay.get_or_insert_default();
        }
    }

    /// The learning rate over time, from a peak of `peak_lr`.
    pub(crate) fn schedule(&self, peak_lr: f64) -> Schedule {
        Schedule {
            lr: peak_lr,
            min_lr: self.min_lr.unwrap_or_default(),
            warmup_epochs: self.warmup_epochs,
            epochs: self.epochs as f64,
            descent: match self.kind {
                ScheduleKind::Cosine => Descent::Cosine,
                ScheduleKind::Wsd => Descent::Wsd {
                    epochs: self.decay_epochs.unwrap_or_default(),
                    decay: self.decay.unwrap_or_default(),
                },
            },
        }
    }

    pub(super) fn check(&self, peak_lr: f64) -> Result<(), Error> {
        at_least_one("schedule.epochs", self.epochs)?;
        require(
            (0.0..self.epochs as f64).contains(&self.warmup_epochs),
            "schedule.warmup_epochs",
            self.warmup_epochs,
            "must be zero or more, and less than schedule.epochs",
        )?;
        let wsd = self.kind == ScheduleKind::Wsd;
        require(
            wsd == self.decay_epochs.is_some(),
            "schedule.decay_epochs",
            self.decay_epochs.map_or("unset".into(), |epochs| epochs.to_string()),
            if wsd {
                "schedule.kind = \"wsd\" needs it; a fifth of schedule.epochs is usual"
            } else {
                "belongs to schedule.kind = \"wsd\": set both or neither"
            },
        )?;
        require(
            wsd || self.decay.is_none(),
            "schedule.decay",
            "given",
            "belongs to schedule.kind = \"wsd\": set both or neither",
        )?;
        let decay_epochs = self.decay_epochs.unwrap_or(1.0);
        require(
            !wsd || (decay_epochs > 0.0 && decay_epochs <= self.epochs as f64 - self.warmup_epochs),
            "schedule.decay_epochs",
            decay_epochs,
            "must be above 0 and at most schedule.epochs - schedule.warmup_epochs",
        )?;
        let min_lr = self.min_lr.unwrap_or_default();
        require((0.0..=peak_lr).contains(&min_lr), "schedule.min_lr", min_lr, "must lie between 0 and the peak rate")
    }
}

/// Images per step that a *base* learning rate is quoted for.
///
/// Source: Goyal et al. 2017, the linear scaling rule, as MAE's code applies it: `lr = blr * effective_batch / 256`.
pub(crate) const BASE_BATCH: f64 = 256.0;

/// The peak learning rate for a base learning rate, where `effective_batch` counts every image between two updates.
pub(crate) fn scale_lr(blr: f64, effective_batch: usize) -> f64 {
    blr * effective_batch as f64 / BASE_BATCH
}

/// The learning rate as a function of the (fractional) epoch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Schedule {
    /// Peak, reached at the end of the warm-up.
    pub lr: f64,
    /// Learning rate at the end of the descent.
    pub min_lr: f64,
    /// Length of the linear rise from zero, in epochs.
    pub warmup_epochs: f64,
    /// Length of the whole run, in epochs.
    pub epochs: f64,
    /// The way from the peak to the end.
    pub descent: Descent,
}

/// The way from the peak to the end.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Descent {
    /// Half a cosine from the end of the warm-up on.
    Cosine,
    /// The peak until `epochs` before the end, then down.
    Wsd {
        /// Length of the decay, in epochs.
        epochs: f64,
        /// Its shape.
        decay: Decay,
    },
}

/// The shape of a decay after a plateau, over its progress `t` from 0 to 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Decay {
    /// `1 - t`.
    #[serde(rename = "linear")]
    Linear,
    /// `1 - sqrt(t)`, which Hägele et al. found better than the linear one at every length.
    #[default]
    #[serde(rename = "1-sqrt")]
    OneMinusSqrt,
}

impl Schedule {
    /// The learning rate at `epoch`, which counts from 0 and has a fraction: step `s` of epoch `e` is at
    /// `e + s / steps_per_epoch`.
    ///
    /// `lr * e / w` during the warm-up. The very first step therefore has a rate of zero, as in the reference code. Then
    /// `min + (lr - min) * f`, where `f` falls from 1 to 0: `(1 + cos(pi * (e - w) / (E - w))) / 2`, or 1 and then the [`Decay`].
    pub(crate) fn lr_at(&self, epoch: f64) -> f64 {
        if epoch < self.warmup_epochs {
            return self.lr * epoch / self.warmup_epochs;
        }
        let factor = match self.descent {
            Descent::Cosine => {
                let progress = (epoch - self.warmup_epochs) / (self.epochs - self.warmup_epochs);
                0.5 * (1.0 + (PI * progress).cos())
            }
            Descent::Wsd { epochs, decay } => {
                let progress = (epoch - (self.epochs - epochs)).max(0.0) / epochs;
                match decay {
                    Decay::Linear => 1.0 - progress,
                    Decay::OneMinusSqrt => 1.0 - progress.sqrt(),
                }
            }
        };
        self.min_lr + (self.lr - self.min_lr) * factor
    }

    /// The epoch from which the rate depends on the length of the run. Up to this epoch a longer run takes the same steps.
    pub(crate) fn descends_from(&self) -> f64 {
        match self.descent {
            Descent::Cosine => self.warmup_epochs,
            Descent::Wsd { epochs, .. } => self.epochs - epochs,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() <= 1e-12 * expected.abs().max(1e-9), "{found} != {expected}");
    }

    #[test]
    fn base_lr_scales_with_the_effective_batch() {
        // MAE's PRETRAIN.md: blr 1.5e-4 at 64 images x 8 GPUs x 8 nodes = 4096 gives 2.4e-3.
        close(scale_lr(1.5e-4, 4096), 2.4e-3);
        close(scale_lr(1.5e-4, 1024), 6e-4);
        close(scale_lr(1.5e-4, 256), 1.5e-4);
    }

    #[test]
    fn follows_the_reference_at_hand_computed_points() {
        // MAE's 800-epoch recipe. Worked by hand: cos(pi/4) = sqrt(1/2), cos(pi/2) = 0, cos(pi) = -1.
        let schedule =
            Schedule { lr: 2.4e-3, min_lr: 0.0, warmup_epochs: 40.0, epochs: 800.0, descent: Descent::Cosine };
        close(schedule.lr_at(0.0), 0.0);
        close(schedule.lr_at(0.5), 3.0e-5);
        close(schedule.lr_at(20.0), 1.2e-3);
        close(schedule.lr_at(40.0), 2.4e-3);
        close(schedule.lr_at(40.0 + 190.0), 2.4e-3 * (1.0 + 0.5f64.sqrt()) / 2.0);
        close(schedule.lr_at(40.0 + 380.0), 1.2e-3);
        assert!(schedule.lr_at(800.0).abs() < 1e-18);
    }

    #[test]
    fn ends_at_min_lr_and_may_have_no_warmup() {
        let schedule = Schedule { lr: 1.0, min_lr: 0.25, warmup_epochs: 0.0, epochs: 10.0, descent: Descent::Cosine };
        close(schedule.lr_at(0.0), 1.0);
        close(schedule.lr_at(5.0), 0.625);
        close(schedule.lr_at(10.0), 0.25);
    }

    #[test]
    fn a_plateau_ends_in_the_decay_asked_for() {
        let schedule = |decay| Schedule {
            lr: 1.0,
            min_lr: 0.2,
            warmup_epochs: 5.0,
            epochs: 100.0,
            descent: Descent::Wsd { epochs: 20.0, decay },
        };
        // Equation 1 of Hägele et al.: 1 - sqrt((n - (N - N_decay)) / N_decay); at a quarter and a half, by hand.
        for (decay, quarter, half) in [(Decay::Linear, 0.75, 0.5), (Decay::OneMinusSqrt, 0.5, 1.0 - 0.5f64.sqrt())] {
            let schedule = schedule(decay);
            close(schedule.lr_at(2.5), 0.5);
            close(schedule.lr_at(5.0), 1.0);
            close(schedule.lr_at(79.99), 1.0);
            close(schedule.lr_at(80.0), 1.0);
            close(schedule.lr_at(85.0), 0.2 + 0.8 * quarter);
            close(schedule.lr_at(90.0), 0.2 + 0.8 * half);
            close(schedule.lr_at(100.0), 0.2);
            close(schedule.descends_from(), 80.0);
        }
    }
}
