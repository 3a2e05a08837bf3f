//! What a recipe of fine-tuning may hold.

use program::recipe::{Error, invalid, require};

use super::FinetuneRecipe;
use crate::config::model_error;

/// Views are numbered by epoch in 16 bits.
const MAX_EPOCHS: u64 = 1 << 16;

impl FinetuneRecipe {
    pub(super) fn check(&self) -> Result<(), Error> {
        let share = |field, value: f64| {
            require((0.0..1.0).contains(&value), field, value, "must be zero or more, and less than 1")
        };
        let not_negative =
            |field, value: f64| require(value >= 0.0 && value.is_finite(), field, value, "must be zero or positive");
        let positive = |field, value: f64| require(value > 0.0 && value.is_finite(), field, value, "must be positive");
        let at_least_one = |field, value: u64| require(value >= 1, field, value, "must be at least 1");

        share("model.drop_path", self.model.drop_path)?;
        let a = &self.augment;
        let [low, high] = a.crop_scale;
        require(
            low > 0.0 && low <= high && high <= 1.0,
            "augment.crop_scale",
            format!("{:?}", a.crop_scale),
            "must be two shares of the area, above 0 and at most 1, the smaller first",
        )?;
        require((0.0..=1.0).contains(&a.flip), "augment.flip", a.flip, "must be a probability")?;
        for (field, probability) in [
            ("augment.random_erasing", a.random_erasing),
            ("augment.mixup_prob", a.mixup_prob),
            ("augment.switch_prob", a.switch_prob),
        ] {
            require((0.0..=1.0).contains(&probability), field, probability, "must be a probability")?;
        }
        share("augment.label_smoothing", a.label_smoothing)?;
        require(
            a.crop_pct > 0.0 && a.crop_pct <= 1.0,
            "augment.crop_pct",
            a.crop_pct,
            "must be above 0 and at most 1",
        )?;
        a.mixing().check().map_err(|e| invalid("augment.mixup", a.mixup, e))?;
        a.policy().map_err(|e| invalid("augment.rand_augment", &a.rand_augment, e))?;

        let o = &self.optim;
        at_least_one("optim.batch_size", o.batch_size as u64)?;
        at_least_one("optim.accum_iter", o.accum_iter as u64)?;
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
        positive("optim.blr", o.blr.unwrap_or(1.0))?;
        positive("optim.lr", o.lr.unwrap_or(1.0))?;
        require(
            o.layer_decay > 0.0 && o.layer_decay <= 1.0,
            "optim.layer_decay",
            o.layer_decay,
            "must be above 0 and at most 1",
        )?;
        for beta in o.betas {
            share("optim.betas", beta)?;
        }
        positive("optim.eps", o.eps)?;
        not_negative("optim.weight_decay", o.weight_decay)?;
        positive("optim.clip_grad", o.clip_grad.unwrap_or(1.0))?;
        let decay = o.ema_decay.unwrap_or(0.5);
        require(
            0.0 < decay && decay < 1.0,
            "optim.ema_decay",
            decay,
            "must be more than 0 and less than 1; leave it out for no average",
        )?;

        let s = &self.schedule;
        require((1..=MAX_EPOCHS).contains(&s.epochs), "schedule.epochs", s.epochs, "must be from 1 to 65536")?;
        require(
            (0.0..s.epochs as f64).contains(&s.warmup_epochs),
            "schedule.warmup_epochs",
            s.warmup_epochs,
            "must be zero or more, and less than schedule.epochs",
        )?;
        require(
            (0.0..=self.schedule().lr).contains(&s.min_lr),
            "schedule.min_lr",
            s.min_lr,
            "must lie between 0 and the peak rate",
        )?;

        let r = &self.run;
        positive("run.peak_tflops", r.peak_tflops.unwrap_or(1.0))?;
        at_least_one("run.eval_every", r.eval_every)?;
        at_least_one("run.prefetch", r.prefetch as u64)?;
        at_least_one("run.log_every", r.log_every)?;
        at_least_one("run.checkpoint_every", r.checkpoint_every)?;
        at_least_one("run.keep_checkpoints", r.keep_checkpoints as u64)?;
        at_least_one("run.stop_after_nonfinite", r.stop_after_nonfinite.into())?;
        // TOML integers are signed 64-bit; a larger seed could not be saved with the run.
        require(i64::try_from(r.seed).is_ok(), "run.seed", r.seed, "must be less than 2^63")?;
        match &self.encoder {
            Some(encoder) => encoder.validate().map_err(model_error),
            None => Ok(()),
        }
    }
}
