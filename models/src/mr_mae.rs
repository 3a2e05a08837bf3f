//! MR-MAE (Gao et al. 2023, "Mimic before Reconstruct"): a masked autoencoder whose visible tokens also mimic frozen teachers.
//!
//! The encoder's output feeds two losses. Before the decoder, one linear head per teacher predicts the teacher's tokens at the
//! visible positions; after it, the decoder predicts the pixels of the removed ones. The decoder gets the encoder's output, not
//! a head's, and never sees a teacher (figure 2 of the paper). Total = `rec_weight`·rec + Σ `weight_t`·mimic_t.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use crate::blocks::Pass;
use crate::error::{Error, Result};
use crate::losses::{TargetNorm, mimic_loss};
use crate::mae::{Mae, MaeConfig, gather_rows};
use crate::masking::Masking;
use crate::mimic::MimicHeads;
use crate::params::Scope;

/// What an MR-MAE is made of. Without teachers it is a plain MAE.
#[derive(Debug, Clone, PartialEq)]
pub struct MrMaeConfig {
    /// The autoencoder.
    pub mae: MaeConfig,
    /// Weight of the pixel loss; 0 leaves the decoder out. The paper has 0.5.
    pub rec_weight: f64,
    /// The teachers, by id.
    pub teachers: BTreeMap<String, MimicConfig>,
}

/// How one teacher is mimicked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MimicConfig {
    /// Width `K` of the teacher's tokens.
    pub width: i64,
    /// Weight of its loss. The paper has 0.5 for its one teacher.
    pub weight: f64,
    /// What is done to its tokens first.
    pub target_norm: TargetNorm,
}

/// One batch, all on the network's device.
#[derive(Debug)]
pub struct Batch<'a> {
    /// `[N, 3, H, W]`, f32, normalised by the data set's mean and deviation.
    pub imgs: &'a Tensor,
    /// Which patches are seen.
    pub masking: &'a Masking,
    /// For each teacher its tokens at *all* patches, `[N, L, K]`, of any floating type, as stored.
    pub targets: &'a BTreeMap<String, Tensor>,
    /// Stochastic depth and the like.
    pub pass: Pass<'a>,
}

/// Scalars, f32, none of them weighted but `total`.
#[derive(Debug)]
pub struct Losses {
    /// What is minimised.
    pub total: Tensor,
    /// The pixel loss; `None` if its weight is 0.
    pub rec: Option<Tensor>,
    /// The mimic loss of each teacher.
    pub mimic: BTreeMap<String, Tensor>,
}

/// The network of pretraining: an autoencoder and its mimic heads.
#[derive(Debug)]
pub struct MrMae {
    config: MrMaeConfig,
    mae: Mae,
    heads: MimicHeads,
}

impl MrMae {
    /// The autoencoder directly under `scope`, the heads under `mimic_heads`.
    ///
    /// # Errors
    /// [`Error::Config`] if there is no such network or nothing to minimise.
    pub fn new(scope: &Scope, config: &MrMaeConfig) -> Result<Self> {
        let weights = config
            .teachers
            .values()
            .map(|t| t.weight)
            .chain([config.rec_weight]);
        for weight in weights.clone() {
            if !weight.is_finite() || weight < 0.0 {
                let reason = "a weight is finite and not negative".to_owned();
                return Err(Error::Config {
                    field: "weight",
                    value: weight.to_string(),
                    reason,
                });
            }
        }
        if weights.sum::<f64>() == 0.0 {
            let reason = "every loss has weight 0: nothing would be learnt".to_owned();
            return Err(Error::Config {
                field: "rec_weight",
                value: config.rec_weight.to_string(),
                reason,
            });
        }
        if let Some(teacher) = config.teachers.values().find(|t| t.width < 1) {
            let reason = "a teacher's tokens have at least one channel".to_owned();
            return Err(Error::Config {
                field: "width",
                value: teacher.width.to_string(),
                reason,
            });
        }
        let mae = Mae::new(scope, &config.mae)?;
        let teachers = config
            .teachers
            .iter()
            .map(|(id, teacher)| (id.as_str(), teacher.width));
        let heads = MimicHeads::new(scope, config.mae.encoder.embed_dim(), teachers);
        Ok(Self {
            config: config.clone(),
            mae,
            heads,
        })
    }

    /// What it is made of.
    pub fn config(&self) -> &MrMaeConfig {
        &self.config
    }

    /// The autoencoder.
    pub fn mae(&self) -> &Mae {
        &self.mae
    }

    /// All losses of one batch.
    ///
    /// # Panics
    /// If a teacher of the configuration has no target, or shapes do not fit: the loader's mistake.
    pub fn forward(&self, batch: &Batch) -> Losses {
        let (imgs, masking, pass) = (batch.imgs, batch.masking, &batch.pass);
        let latent = self.mae.encoder().forward_encoder(imgs, masking, pass); // [N, P + keep, D]
        let keep = masking.ids_keep.size()[1];
        let visible = latent.narrow(1, latent.size()[1] - keep, keep); // [N, keep, D]
        let mut total = Tensor::zeros([0; 0], (Kind::Float, latent.device()));

        let mut mimic = BTreeMap::new();
        for (id, teacher) in &self.config.teachers {
            let target = batch
                .targets
                .get(id)
                .unwrap_or_else(|| panic!("the batch has no tokens of {id}"));
            let target = teacher
                .target_norm
                .forward(&gather_rows(target, &masking.ids_keep)); // [N, keep, K]
            let loss = mimic_loss(&self.heads.forward(id, &visible), &target);
            total += &loss * teacher.weight;
            mimic.insert(id.clone(), loss);
        }

        let rec = (self.config.rec_weight > 0.0).then(|| {
            let decoder = self.mae.decoder();
            let tokens = decoder.forward_tokens(&latent, &masking.ids_restore, pass);
            let pred = decoder.predict(&tokens); // [N, L, p²·3]
            self.mae.forward_loss(imgs, &pred, &masking.mask)
        });
        if let Some(rec) = &rec {
            total += rec * self.config.rec_weight;
        }
        Losses { total, rec, mimic }
    }
}

#[cfg(test)]
mod tests;
