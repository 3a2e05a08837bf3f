//! From what was typed to a checked recipe: reading, `--set`, defaults that depend on other settings, ranges.

use std::path::{Path, PathBuf};

use models::decoder::DecoderConfig;
use models::encoder::{EncoderConfig, VitConfig};
use models::losses::MimicLoss;
use models::mae::MaeConfig;
use models::masking::len_keep;
use models::mcmae::McmaeEncoderConfig;
use models::targets::TargetNorm;
use serde::de::DeserializeOwned;

use super::{
    BLR, EncoderKind, FocusMode, LossKind, MaskKind, MimicTokens, Recipe, SMOOTH_L1_BETA,
    ScheduleKind,
};
use crate::schedule::{self, Descent, Schedule};

/// What can be wrong with a recipe. Every message names the setting and what would be accepted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("{path:?}: cannot read the recipe")]
    Read {
        /// The recipe file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not TOML, an unknown key, a missing key, or a value of the wrong type.
    #[error("{origin}: {message}")]
    Parse {
        /// The file, with the settings applied to it.
        origin: String,
        /// The parser's message, which names the key.
        message: String,
    },
    /// `--set` without `=`, or through something that is not a section.
    #[error(
        "--set {setting}: {problem}; write it as section.key=value, for example optim.batch_size=64"
    )]
    Set {
        /// What was typed.
        setting: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A value outside its range, or two settings that exclude each other.
    #[error("{field} = {value}: {problem}")]
    Invalid {
        /// Dotted name of the setting.
        field: &'static str,
        /// What it was.
        value: String,
        /// What it must be.
        problem: String,
    },
    /// There is no such network.
    #[error("[model] {0}")]
    Model(models::Error),
}

impl Recipe {
    /// Reads `path`, applies `settings` (`section.key=value`) and checks the result.
    pub fn load(path: &Path, settings: &[String]) -> Result<Recipe, Error> {
        Recipe::parse(&read(path)?, &path.display().to_string(), settings)
    }

    /// Like [`Recipe::load`] for a text; `origin` is what messages call it.
    pub fn parse(text: &str, origin: &str, settings: &[String]) -> Result<Recipe, Error> {
        let mut recipe: Recipe = typed(text, origin, settings)?;
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

    /// Patches along one side.
    pub fn grid(&self) -> u32 {
        self.model.img_size / self.model.patch_size
    }

    /// The autoencoder.
    pub fn mae_config(&self) -> MaeConfig {
        let m = &self.model;
        let img_size = [i64::from(m.img_size); 2];
        let (encoder, mlp_ratio) = match m.encoder {
            EncoderKind::Vit => {
                let base = VitConfig::BASE_PATCH16;
                let config = VitConfig {
                    img_size,
                    patch_size: m.patch_size.into(),
                    embed_dim: m.embed_dim.map_or(base.embed_dim, i64::from),
                    depth: m.depth.map_or(base.depth, i64::from),
                    num_heads: m.num_heads.into(),
                    mlp_ratio: m.mlp_ratio.map_or(base.mlp_ratio, i64::from),
                    fusion: m.fusion.iter().map(|&block| block.into()).collect(),
                };
                let mlp_ratio = config.mlp_ratio;
                (EncoderConfig::Vit(config), mlp_ratio)
            }
            EncoderKind::Mcmae => {
                let base = McmaeEncoderConfig::BASE;
                let three = |given: Option<[u32; 3]>, default: [i64; 3]| {
                    given.map_or(default, |given| given.map(i64::from))
                };
                let config = McmaeEncoderConfig {
                    img_size,
                    embed_dims: three(m.embed_dims, base.embed_dims),
                    depths: three(m.depths, base.depths),
                    num_heads: m.num_heads.into(),
                    mlp_ratios: three(m.mlp_ratios, base.mlp_ratios),
                    cls_token: m.cls_token.unwrap_or(base.cls_token),
                    fusion: m.stage_fusion.unwrap_or(base.fusion),
                };
                (EncoderConfig::Mcmae(config), config.mlp_ratios[2])
            }
        };
        MaeConfig {
            encoder,
            decoder: DecoderConfig {
                embed_dim: m.decoder_embed_dim.into(),
                depth: m.decoder_depth.into(),
                num_heads: m.decoder_num_heads.into(),
                mlp_ratio,
            },
            norm_pix_loss: m.norm_pix_loss,
        }
    }

    /// Spells out the defaults that depend on the kind of encoder, and refuses the settings of the other kind.
    fn resolve_encoder(&mut self) -> Result<(), Error> {
        let m = &mut self.model;
        let narrow = |value: i64| u32::try_from(value).expect("a published size");
        let kind = m.encoder;
        let of_other_kind = match kind {
            EncoderKind::Vit => {
                let base = VitConfig::BASE_PATCH16;
                m.embed_dim.get_or_insert(narrow(base.embed_dim));
                m.depth.get_or_insert(narrow(base.depth));
                m.mlp_ratio.get_or_insert(narrow(base.mlp_ratio));
                [
                    ("model.embed_dims", m.embed_dims.is_some()),
                    ("model.depths", m.depths.is_some()),
                    ("model.mlp_ratios", m.mlp_ratios.is_some()),
                    ("model.cls_token", m.cls_token.is_some()),
                    ("model.stage_fusion", m.stage_fusion.is_some()),
                ]
            }
            EncoderKind::Mcmae => {
                let base = McmaeEncoderConfig::BASE;
                m.embed_dims.get_or_insert(base.embed_dims.map(narrow));
                m.depths.get_or_insert(base.depths.map(narrow));
                m.mlp_ratios.get_or_insert(base.mlp_ratios.map(narrow));
                m.cls_token.get_or_insert(base.cls_token);
                m.stage_fusion.get_or_insert(base.fusion);
                if m.patch_size != 16 {
                    return Err(Error::Invalid {
                        field: "model.patch_size",
                        value: m.patch_size.to_string(),
                        problem: "is 16 with model.encoder = \"mcmae\": 4 x 2 x 2 pixels".into(),
                    });
                }
                [
                    ("model.embed_dim", m.embed_dim.is_some()),
                    ("model.depth", m.depth.is_some()),
                    ("model.mlp_ratio", m.mlp_ratio.is_some()),
                    ("model.fusion", !m.fusion.is_empty()),
                    // A fifth, so that both kinds have as many; never set.
                    ("model.encoder", false),
                ]
            }
        };
        match of_other_kind.into_iter().find(|(_, given)| *given) {
            Some((field, _)) => Err(Error::Invalid {
                field,
                value: "given".into(),
                problem: match kind {
                    EncoderKind::Vit => "is a setting of model.encoder = \"mcmae\"".into(),
                    EncoderKind::Mcmae => {
                        "is a setting of model.encoder = \"vit\"; mcmae has embed_dims, depths, mlp_ratios and stage_fusion".into()
                    }
                },
            }),
            None => Ok(()),
        }
    }

    /// How the teacher `id` is mimicked: its share, its normalisation, its loss.
    pub fn mimic_of(&self, id: &str) -> (f64, TargetNorm, MimicLoss) {
        let own = self.mimic.teacher.get(id).cloned().unwrap_or_default();
        let beta = own.beta.or(self.mimic.beta).unwrap_or(SMOOTH_L1_BETA);
        let loss = match own.loss.unwrap_or(self.mimic.loss) {
            LossKind::L2 => MimicLoss::L2,
            LossKind::SmoothL1 => MimicLoss::SmoothL1 { beta },
            LossKind::Cosine => MimicLoss::Cosine,
        };
        let even = 1.0 / self.mimic.teachers.len().max(1) as f64;
        let norm = own.norm.unwrap_or(self.target.norm);
        (own.share.unwrap_or(even), norm, loss)
    }

    /// Patches that the encoder sees.
    pub fn len_keep(&self) -> i64 {
        len_keep(self.mae_config().num_patches(), self.mask.ratio)
    }

    /// The learning rate over time.
    pub fn schedule(&self) -> Schedule {
        let blr = self.optim.blr.unwrap_or(BLR);
        Schedule {
            lr: self
                .optim
                .lr
                .unwrap_or_else(|| schedule::scale_lr(blr, self.effective_batch())),
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

    /// Residual branches that stochastic depth draws a number for; 0 without it.
    pub fn drop_path_branches(&self) -> usize {
        match self.model.drop_path > 0.0 {
            true => 2 * usize::try_from(self.mae_config().encoder.num_blocks()).unwrap_or_default(),
            false => 0,
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

    /// The first setting in which `self` and `other` differ: its dotted name and both values as TOML.
    ///
    /// Settings that cannot change what is computed, only how fast and what is kept, do not count: `data.prefetch`,
    /// `data.pixel_cache_mib`, `run.log_every`, `run.checkpoint_every`, `run.keep_checkpoints`, `run.keep_every`,
    /// `run.pictures`, `run.peak_tflops`, `run.grad_checkpointing` and `run.stop_after_nonfinite`. Nor does `schedule.epochs` of two `wsd` schedules: whether it may change
    /// depends on where the run stands, see [`run_folder::refuse_other_length`](crate::run_folder::refuse_other_length).
    /// Nor does the place of `model.init`, whose content a run compares by its hash.
    pub fn first_difference(&self, other: &Recipe) -> Option<(String, String, String)> {
        let mut other = other.clone();
        other.data.prefetch = self.data.prefetch;
        other.data.pixel_cache_mib = self.data.pixel_cache_mib;
        other.run.pictures = self.run.pictures;
        other.run.peak_tflops = self.run.peak_tflops;
        if let (Some(before), Some(now)) = (&self.model.init, &mut other.model.init) {
            now.clone_from(before);
        }
        other.run.log_every = self.run.log_every;
        other.run.checkpoint_every = self.run.checkpoint_every;
        other.run.keep_checkpoints = self.run.keep_checkpoints;
        other.run.keep_every = self.run.keep_every;
        other.run.grad_checkpointing = self.run.grad_checkpointing;
        other.run.stop_after_nonfinite = self.run.stop_after_nonfinite;
        if [self.schedule.kind, other.schedule.kind] == [ScheduleKind::Wsd; 2] {
            other.schedule.epochs = self.schedule.epochs;
        }
        let value = |r: &Recipe| {
            toml::Value::try_from(r).expect("a recipe is plain tables of plain values")
        };
        first_difference("", &value(self), &value(&other))
    }

    fn check(&self) -> Result<(), Error> {
        let positive = "must be at least 1";
        let m = &self.model;
        require(
            m.img_size >= 1 && m.img_size.is_multiple_of(m.patch_size),
            "model.img_size",
            m.img_size,
            "must be a positive multiple of model.patch_size",
        )?;
        // Far beyond any published network, and small enough to multiply and to hold.
        let largest =
            |sizes: Option<[u32; 3]>| sizes.into_iter().flatten().max().unwrap_or_default();
        for (field, size, most) in [
            ("model.embed_dim", m.embed_dim.unwrap_or_default(), 16384),
            ("model.embed_dims", largest(m.embed_dims), 16384),
            ("model.depth", m.depth.unwrap_or_default(), 512),
            ("model.depths", largest(m.depths), 512),
            ("model.decoder_embed_dim", m.decoder_embed_dim, 16384),
            ("model.decoder_depth", m.decoder_depth, 512),
            ("model.mlp_ratio", m.mlp_ratio.unwrap_or_default(), 64),
            ("model.mlp_ratios", largest(m.mlp_ratios), 64),
        ] {
            require(
                size <= most,
                field,
                size,
                &format!("must be at most {most}"),
            )?;
        }
        self.mae_config().validate().map_err(Error::Model)?;

        let mut teachers = self.mimic.teachers.clone();
        teachers.sort();
        teachers.dedup();
        require(
            teachers.len() == self.mimic.teachers.len(),
            "mimic.teachers",
            format!("{:?}", self.mimic.teachers),
            "names a teacher twice",
        )?;
        for (field, w) in [
            ("loss.w_rec", self.loss.w_rec),
            ("loss.w_mimic", self.loss.w_mimic),
            ("loss.w_cls", self.loss.w_cls),
        ] {
            require(
                w >= 0.0 && w.is_finite(),
                field,
                w,
                "must be zero or positive",
            )?;
        }
        let mimics = !self.mimic.teachers.is_empty();
        let learns = self.loss.w_rec > 0.0 || (mimics && self.loss.w_mimic + self.loss.w_cls > 0.0);
        require(
            learns,
            "loss.w_rec",
            self.loss.w_rec,
            "is the only loss of this recipe and must be positive",
        )?;
        for (id, own) in &self.mimic.teacher {
            require(
                teachers.contains(id),
                "mimic.teacher",
                id,
                "has settings, but is not in mimic.teachers",
            )?;
            let share = own.share.unwrap_or(1.0);
            require(
                share >= 0.0 && share.is_finite(),
                "mimic.teacher.*.share",
                share,
                "must be zero or positive",
            )?;
            let smooth = own.loss.unwrap_or(self.mimic.loss) == LossKind::SmoothL1;
            require(
                smooth || own.beta.is_none(),
                "mimic.teacher.*.beta",
                own.beta.unwrap_or_default(),
                "has a meaning only with loss = \"smooth_l1\"",
            )?;
        }
        let smooth = |own: &super::TeacherSettings| own.loss == Some(LossKind::SmoothL1);
        require(
            self.mimic.beta.is_none()
                || self.mimic.loss == LossKind::SmoothL1
                || self.mimic.teacher.values().any(smooth),
            "mimic.beta",
            self.mimic.beta.unwrap_or_default(),
            "has a meaning only with loss = \"smooth_l1\"",
        )?;
        let betas = self.mimic.teacher.values().map(|own| own.beta);
        for beta in betas.chain([self.mimic.beta]).flatten() {
            require(
                beta > 0.0 && beta.is_finite(),
                "mimic.beta",
                beta,
                "must be positive",
            )?;
        }
        require(
            self.loss.w_cls == 0.0 || self.mae_config().encoder.cls_token(),
            "loss.w_cls",
            self.loss.w_cls,
            "needs a CLS token: model.cls_token = true",
        )?;
        require(
            (0.0..1.0).contains(&m.drop_path),
            "model.drop_path",
            m.drop_path,
            "must be in [0, 1)",
        )?;

        let keep = self.len_keep();
        require(
            (0.0..1.0).contains(&self.mask.ratio) && keep >= 1,
            "mask.ratio",
            self.mask.ratio,
            "must be in [0, 1) and leave at least one patch visible",
        )?;
        let removed_matter =
            self.loss.w_rec > 0.0 || self.mimic.tokens == MimicTokens::DecoderRemoved;
        let removes = keep < self.mae_config().num_patches() || !removed_matter;
        require(
            removes,
            "mask.ratio",
            self.mask.ratio,
            "must remove a patch, or loss.w_rec be 0",
        )?;
        let focused = self.mask.kind == MaskKind::Focused;
        require(
            focused == self.mask.teacher.is_some(),
            "mask.teacher",
            self.mask.teacher.as_deref().unwrap_or("none"),
            "is set exactly when mask.kind = \"focused\": the teacher whose CLS attention chooses",
        )?;
        require(
            focused || self.mask.mode.is_none(),
            "mask.mode",
            "set",
            "has a meaning only with mask.kind = \"focused\"",
        )?;

        require(self.data.views != Some(0), "data.views", 0, positive)?;

        let o = &self.optim;
        require(
            o.batch_size >= 1,
            "optim.batch_size",
            o.batch_size,
            positive,
        )?;
        require(
            o.accum_iter >= 1,
            "optim.accum_iter",
            o.accum_iter,
            positive,
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
            require(
                (0.0..1.0).contains(&beta),
                "optim.betas",
                format!("{:?}", o.betas),
                "must each be in [0, 1)",
            )?;
        }
        require(
            o.eps > 0.0 && o.eps.is_finite(),
            "optim.eps",
            o.eps,
            "must be positive",
        )?;
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
        )?;

        let s = &self.schedule;
        require(s.epochs >= 1, "schedule.epochs", s.epochs, positive)?;
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
            s.decay_epochs
                .map_or("unset".into(), |epochs| epochs.to_string()),
            "is set exactly when schedule.kind = \"wsd\"; a fifth of schedule.epochs is usual",
        )?;
        require(
            wsd || s.decay.is_none(),
            "schedule.decay",
            "set",
            "has a meaning only with schedule.kind = \"wsd\"",
        )?;
        let decay_epochs = s.decay_epochs.unwrap_or(1.0);
        require(
            !wsd || (decay_epochs > 0.0 && decay_epochs <= s.epochs as f64 - s.warmup_epochs),
            "schedule.decay_epochs",
            decay_epochs,
            "must be more than 0, and no more than what the warm-up leaves of schedule.epochs",
        )?;
        let peak = self.schedule().lr;
        require(
            (0.0..=peak).contains(&s.min_lr),
            "schedule.min_lr",
            s.min_lr,
            "must lie between 0 and the peak rate",
        )?;

        require(
            self.data.prefetch >= 1,
            "data.prefetch",
            self.data.prefetch,
            positive,
        )?;
        let most = usize::MAX >> 20;
        let mib = self.data.pixel_cache_mib;
        require(
            mib <= most,
            "data.pixel_cache_mib",
            mib,
            "must fit this machine's address space",
        )?;
        require(
            self.run.log_every >= 1,
            "run.log_every",
            self.run.log_every,
            positive,
        )?;
        require(
            self.run.checkpoint_every >= 1,
            "run.checkpoint_every",
            self.run.checkpoint_every,
            positive,
        )?;
        require(
            self.run.keep_checkpoints >= 1,
            "run.keep_checkpoints",
            self.run.keep_checkpoints,
            positive,
        )?;
        let every = self.run.keep_every.unwrap_or(1);
        require(every >= 1, "run.keep_every", every, positive)?;
        let peak = self.run.peak_tflops.unwrap_or(1.0);
        require(
            peak > 0.0 && peak.is_finite(),
            "run.peak_tflops",
            peak,
            "must be positive; leave it out to have it measured",
        )?;
        require(
            self.run.stop_after_nonfinite >= 1,
            "run.stop_after_nonfinite",
            self.run.stop_after_nonfinite,
            positive,
        )?;
        // TOML integers are signed 64-bit; a larger seed could not be saved with the run.
        require(
            i64::try_from(self.run.seed).is_ok(),
            "run.seed",
            self.run.seed,
            "must be less than 2^63",
        )
    }
}

/// The text of a recipe.
pub(crate) fn read(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|source| Error::Read {
        path: path.into(),
        source,
    })
}

/// A recipe as its type has it, with `settings` applied, not yet checked.
pub(crate) fn typed<R: DeserializeOwned>(
    text: &str,
    origin: &str,
    settings: &[String],
) -> Result<R, Error> {
    let parse_error = |message: String| Error::Parse {
        origin: origin.to_owned(),
        message,
    };
    let mut table: toml::Table = toml::from_str(text).map_err(|e| parse_error(e.to_string()))?;
    let mut before = table.clone();
    for setting in settings {
        apply(&mut table, setting)?;
        // One at a time, so that the message names the setting and not the file.
        let checked = R::deserialize(toml::Value::Table(table.clone()));
        if let Err(e) = checked
            && R::deserialize(toml::Value::Table(before.clone())).is_ok()
        {
            return Err(Error::Set {
                setting: setting.clone(),
                problem: e.to_string().trim().to_owned(),
            });
        }
        before.clone_from(&table);
    }
    R::deserialize(toml::Value::Table(table))
        .map_err(|e| parse_error(e.to_string().trim().to_owned()))
}

/// An error that names `field`, unless `ok`.
pub(crate) fn require(
    ok: bool,
    field: &'static str,
    value: impl ToString,
    problem: &str,
) -> Result<(), Error> {
    if ok {
        Ok(())
    } else {
        Err(Error::Invalid {
            field,
            value: value.to_string(),
            problem: problem.into(),
        })
    }
}

/// Sets `section.key` of `table` to a TOML value, or to a bare string when it is not one (`run.precision=bf16`).
fn apply(table: &mut toml::Table, setting: &str) -> Result<(), Error> {
    let problem = |problem: &str| Error::Set {
        setting: setting.to_owned(),
        problem: problem.to_owned(),
    };
    let (key, text) = setting
        .split_once('=')
        .ok_or_else(|| problem("has no '='"))?;
    let value = match toml::from_str::<toml::Table>(&format!("value = {text}")) {
        // A text with line breaks could smuggle in further keys; only the one asked for is taken.
        Ok(mut parsed) if parsed.len() == 1 => parsed.remove("value").expect("the only key"),
        _ => toml::Value::String(text.trim().to_owned()),
    };
    let mut path: Vec<&str> = key.trim().split('.').collect();
    let last = path
        .pop()
        .filter(|k| !k.is_empty())
        .ok_or_else(|| problem("names no key"))?;
    let mut table = table;
    for section in path {
        table = table
            .entry(section)
            .or_insert_with(|| toml::Value::Table(toml::Table::new()))
            .as_table_mut()
            .ok_or_else(|| problem("goes through a key that is not a section"))?;
    }
    table.insert(last.to_owned(), value);
    Ok(())
}

/// The first leaf, in key order, in which two TOML values differ, as (dotted name, left, right).
pub(crate) fn first_difference(
    name: &str,
    a: &toml::Value,
    b: &toml::Value,
) -> Option<(String, String, String)> {
    let (toml::Value::Table(ta), toml::Value::Table(tb)) = (a, b) else {
        return (a != b).then(|| (name.to_owned(), a.to_string(), b.to_string()));
    };
    let mut keys: Vec<&String> = ta.keys().chain(tb.keys()).collect();
    keys.sort();
    keys.dedup();
    keys.into_iter().find_map(|key| {
        let full = if name.is_empty() {
            key.clone()
        } else {
            format!("{name}.{key}")
        };
        match (ta.get(key), tb.get(key)) {
            (Some(va), Some(vb)) => first_difference(&full, va, vb),
            (va, vb) => {
                let text =
                    |v: Option<&toml::Value>| v.map_or("unset".to_owned(), |v| v.to_string());
                Some((full, text(va), text(vb)))
            }
        }
    })
}
