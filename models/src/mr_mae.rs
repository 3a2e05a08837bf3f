//! MR-MAE (Gao et al. 2023, "Mimic before Reconstruct"): a masked autoencoder whose visible tokens also mimic frozen teachers.
//!
//! The encoder's output feeds two losses. Before the decoder, one head per teacher predicts the teacher's tokens at the
//! visible positions; after it, the decoder predicts the pixels of the removed ones. The decoder gets the encoder's output, not
//! a head's, and never sees a teacher (figure 2 of the paper). Total = `rec_weight`·rec + Σ `weight_t`·mimic_t
//! + Σ `cls_weight_t`·mimic_cls_t. The paper's ablations are fields of the configuration.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use crate::blocks::ForwardOptions;
use crate::cls_target::{ClsStats, ClsTarget};
use crate::error::{Error, Result};
use crate::losses::{ClsLoss, MimicLoss};
use crate::mae::{Mae, MaeConfig};
use crate::masking::Masking;
use crate::mimic::{HeadKind, MimicHeads};
use crate::params::Scope;
use crate::targets::{Target, TargetNorm, TargetStats};
use crate::teacher_drop::{TeacherDrop, kept};
use crate::tokens::gather_rows;

/// What an MR-MAE is made of. Without teachers it is a plain MAE.
#[derive(Debug, Clone, PartialEq)]
pub struct MrMaeConfig {
    /// The autoencoder.
    pub mae: MaeConfig,
    /// Weight of the pixel loss; 0 leaves it out. The paper has 0.5.
    pub rec_weight: f64,
    /// Which of the student's tokens mimic.
    pub mimic_tokens: MimicTokens,
    /// Probability, in [0, 1), with which a teacher does not count for an image unless the student is farthest from it; see
    /// [`teacher_drop`](crate::teacher_drop). 0 drops none; above it, two teachers need weights above 0.
    pub teacher_drop: f64,
    /// The teachers, by id.
    pub teachers: BTreeMap<String, MimicConfig>,
}

impl MrMaeConfig {
    /// Teachers with a weight above 0.
    fn weighted(&self) -> usize {
        self.teachers.values().filter(|t| t.weight + t.cls_weight > 0.0).count()
    }
}

/// Which of the student's tokens mimic the teachers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MimicTokens {
    /// The encoder's visible tokens, before the decoder: the paper's method.
    #[default]
    Encoder,
    /// The decoder's tokens at the removed patches, beside the pixels that it predicts there: the fifth row of the paper's table 3,
    /// which costs 1.7 points. The paper does not say which of the decoder's tokens; the removed ones are where it also reconstructs.
    DecoderRemoved,
    /// The decoder's tokens at the visible patches.
    DecoderVisible,
    /// The decoder's tokens at all patches.
    DecoderAll,
}

/// How one teacher is mimicked.
#[derive(Debug, Clone, PartialEq)]
pub struct MimicConfig {
    /// Width `K` of the teacher's tokens.
    pub width: i64,
    /// Weight of the loss of its patch tokens. The paper has 0.5 for its one teacher.
    pub weight: f64,
    /// Weight of the loss of its CLS token, which the student's CLS token mimics by a head of its own; 0 = no such head. The paper does
    /// not mention one; MaskAlign, MILAN and MEDiC have it.
    pub cls_weight: f64,
    /// What its heads are made of.
    pub head: HeadKind,
    /// How its patch tokens are normalized.
    pub target_norm: TargetNorm,
    /// The distance between patch tokens that is minimized.
    pub loss: MimicLoss,
    /// Statistics of its patch tokens, for the normalizations that need them.
    pub stats: Option<TargetStats>,
    /// How its CLS token is normalized; [`TargetNorm::PhiS`] is refused.
    pub cls_norm: TargetNorm,
    /// The distance between CLS tokens that is minimized.
    pub cls_loss: ClsLoss,
    /// Statistics of its CLS tokens, for [`TargetNorm::Standardize`] and [`ClsLoss::Angle`].
    pub cls_stats: Option<ClsStats>,
}

/// One batch, all on the network's device.
#[derive(Debug)]
pub struct Batch<'a> {
    /// `[N, 3, H, W]`, f32, normalized by ImageNet's mean and standard deviation.
    pub imgs: &'a Tensor,
    /// Which patches are seen.
    pub masking: &'a Masking,
    /// For each teacher its tokens, of any floating type, as stored.
    pub targets: Targets<'a>,
    /// For each teacher whose CLS token is mimicked that token, `[N, K]`.
    pub cls_targets: &'a BTreeMap<String, Tensor>,
    /// Which teachers are dropped; needed if the configuration drops any.
    pub teacher_drop: Option<TeacherDrop<'a>>,
    /// Stochastic depth and gradient checkpointing.
    pub pass: ForwardOptions<'a>,
}

/// The teachers' tokens of a batch, by id.
#[derive(Debug, Clone, Copy)]
pub enum Targets<'a> {
    /// At all patches: `[N, L, K]`.
    All(&'a BTreeMap<String, Tensor>),
    /// At the visible patches alone, in the order of `ids_keep`: `[N, keep, K]`. Enough where the encoder's tokens mimic.
    Visible(&'a BTreeMap<String, Tensor>),
}

impl Targets<'_> {
    /// The tokens of teacher `id` at the patches `ids [N, T]`, all in order if `None`: `[N, T, K]`.
    fn at(&self, id: &str, ids: Option<&Tensor>) -> Tensor {
        match (self, ids) {
            (Self::All(targets), Some(ids)) => gather_rows(of_teacher(targets, id), ids),
            (Self::All(targets), None) | (Self::Visible(targets), _) => of_teacher(targets, id).shallow_clone(),
        }
    }
}

/// Losses of one batch: f32 scalars. Only `total` is weighted, and only it leaves out what is dropped: the others are means over all images.
#[derive(Debug)]
pub struct Losses {
    /// The weighted sum that is minimized.
    pub total: Tensor,
    /// The pixel loss; `None` if its weight is 0.
    pub rec: Option<Tensor>,
    /// The mimic loss of each teacher's patch tokens.
    pub mimic: BTreeMap<String, Tensor>,
    /// The mimic loss of the CLS token of each teacher that has one.
    pub mimic_cls: BTreeMap<String, Tensor>,
    /// Where teachers are dropped: the share of images for which each counts, 0 to 1.
    pub mimic_kept: BTreeMap<String, Tensor>,
}

/// Whether a parameter of that name is for pretraining alone: mimic heads, and statistics of the teachers' features. The others are
/// the autoencoder's.
pub fn is_mimic_param(name: &str) -> bool {
    ["mimic_heads.", "mimic_cls_heads.", "mimic_targets.", "mimic_cls_targets."]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

/// The network of pretraining: an autoencoder and its mimic heads.
#[derive(Debug)]
pub struct MrMae {
    config: MrMaeConfig,
    mae: Mae,
    heads: MimicHeads,
    cls_heads: MimicHeads,
    targets: BTreeMap<String, Target>,
    cls_targets: BTreeMap<String, ClsTarget>,
}

impl MrMae {
    /// The autoencoder directly under `scope`, the heads under `mimic_heads` and `mimic_cls_heads`, statistics of the teachers'
    /// features under `mimic_targets` and `mimic_cls_targets`.
    ///
    /// # Errors
    /// [`Error::Config`] if there is no such network or nothing to minimize.
    pub fn new(scope: &Scope, config: &MrMaeConfig) -> Result<Self> {
        let weights = config.teachers.values().flat_map(|t| [t.weight, t.cls_weight]).chain([config.rec_weight]);
        for weight in weights.clone() {
            if !weight.is_finite() || weight < 0.0 {
                let reason = "a weight is finite and not negative".to_owned();
                return Err(Error::Config { field: "weight", value: weight.to_string(), reason });
            }
        }
        if weights.sum::<f64>() == 0.0 {
            let reason = "every loss has weight 0: nothing would be learned".to_owned();
            return Err(Error::Config { field: "rec_weight", value: config.rec_weight.to_string(), reason });
        }
        if let Some(teacher) = config.teachers.values().find(|t| t.width < 1) {
            let reason = "a teacher's tokens have at least one channel".to_owned();
            return Err(Error::Config { field: "width", value: teacher.width.to_string(), reason });
        }
        let with_cls = |t: &&MimicConfig| t.cls_weight > 0.0;
        let cls_of = config.teachers.values().find(with_cls);
        if let Some(teacher) = cls_of.filter(|_| !config.mae.encoder.cls_token()) {
            return Err(Error::Config {
                field: "cls_weight",
                value: teacher.cls_weight.to_string(),
                reason: "this encoder has no CLS token".to_owned(),
            });
        }
        let betas = config.teachers.values().flat_map(|t| [t.loss.beta(), t.cls_loss.beta()]).flatten();
        for beta in betas {
            if !(beta > 0.0 && beta.is_finite()) {
                let reason = "must be positive".to_owned();
                return Err(Error::Config { field: "beta", value: beta.to_string(), reason });
            }
        }
        check_heads(&config.teachers)?;
        let drops = config.teacher_drop;
        if !(0.0..1.0).contains(&drops) || (drops > 0.0 && config.weighted() < 2) {
            let reason = "is a probability below 1, and leaves one of several teachers".to_owned();
            return Err(Error::Config { field: "teacher_drop", value: drops.to_string(), reason });
        }
        let mae = Mae::new(scope, &config.mae)?;
        let encoder_dim = config.mae.encoder.embed_dim();
        let dim = match config.mimic_tokens {
            MimicTokens::Encoder => encoder_dim,
            _ => config.mae.decoder.embed_dim,
        };
        let widths = |of: fn(&MimicConfig) -> f64| {
            let teachers = config.teachers.iter().filter(move |(_, t)| of(t) > 0.0);
            teachers.map(|(id, teacher)| (id.as_str(), teacher.head, teacher.width))
        };
        let targets = config.teachers.iter().map(|(id, teacher)| {
            let target = Target::new(scope, id, teacher.target_norm, teacher.width, teacher.stats.as_ref());
            Ok((id.clone(), target?))
        });
        let cls_targets = config.teachers.iter().filter(|(_, t)| t.cls_weight > 0.0).map(|(id, teacher)| {
            let how = (teacher.cls_norm, teacher.cls_loss);
            Ok((id.clone(), ClsTarget::new(scope, id, how, teacher.width, teacher.cls_stats.as_ref())?))
        });
        Ok(Self {
            heads: MimicHeads::new(&scope.sub("mimic_heads"), dim, widths(|t| t.weight)),
            cls_heads: MimicHeads::new(&scope.sub("mimic_cls_heads"), encoder_dim, widths(|t| t.cls_weight)),
            targets: targets.collect::<Result<_>>()?,
            cls_targets: cls_targets.collect::<Result<_>>()?,
            config: config.clone(),
            mae,
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
    /// If a teacher of the configuration has no target, if teachers are dropped and the batch does not say which, or if shapes do not fit:
    /// the loader's mistake.
    pub fn forward(&self, batch: &Batch) -> Losses {
        let (imgs, masking, pass) = (batch.imgs, batch.masking, &batch.pass);
        let latent = self.mae.encoder().forward_encoder(imgs, masking, pass); // [N, P + keep, D]
        let at_encoder = self.config.mimic_tokens == MimicTokens::Encoder;
        let decoded = (self.config.rec_weight > 0.0 || !at_encoder).then(|| {
            let decoder = self.mae.decoder();
            decoder.forward_tokens(&latent, &masking.ids_restore, pass) // [N, P + L, Dd]
        });
        let (tokens, ids) = self.mimicking(&latent, decoded.as_ref(), masking);

        let mut losses = Losses {
            total: Tensor::zeros([0; 0], (Kind::Float, latent.device())),
            rec: None,
            mimic: BTreeMap::new(),
            mimic_cls: BTreeMap::new(),
            mimic_kept: BTreeMap::new(),
        };
        let drops = self.config.teacher_drop > 0.0;
        let mut per_image = Vec::new(); // Of each teacher `[N]`, weighted, where teachers are dropped.
        for (id, teacher) in &self.config.teachers {
            let mut terms = Vec::new(); // Scalars, or `[N]` where teachers are dropped.
            if teacher.weight > 0.0 {
                let target = self.targets[id].forward(&batch.targets.at(id, ids.as_ref()));
                let pred = self.heads.forward(id, &tokens);
                let loss = match drops {
                    false => teacher.loss.forward(&pred, &target),
                    true => teacher.loss.per_image(&pred, &target),
                };
                terms.push(&loss * teacher.weight);
                losses.mimic.insert(id.clone(), loss.mean(None));
            }
            if teacher.cls_weight > 0.0 {
                let pred = self.cls_heads.forward(id, &latent.select(1, 0));
                let (target, cls) = (&self.cls_targets[id], of_teacher(batch.cls_targets, id)); // [N, K]
                let loss = match drops {
                    false => target.loss(&pred, cls),
                    true => target.loss_per_image(&pred, cls),
                };
                terms.push(&loss * teacher.cls_weight);
                losses.mimic_cls.insert(id.clone(), loss.mean(None));
            }
            if !drops {
                terms.iter().for_each(|term| losses.total += term);
            } else if let Some(sum) = terms.into_iter().reduce(|sum, term| sum + term) {
                per_image.push((id, sum));
            }
        }
        if drops {
            let drop = batch.teacher_drop.as_ref().expect("the batch says which teachers are dropped");
            let (ids, each): (Vec<_>, Vec<_>) = per_image.into_iter().unzip();
            let each = Tensor::stack(&each, 0); // [teachers, N]
            let kept = kept(&each, drop, self.config.teacher_drop);
            // The weights are those of the sum over all teachers: where none is dropped, the total is that sum.
            let scale = ids.len() as f64 / (each.size()[1] as f64 * drop.mean_kept);
            losses.total += (&kept * each).sum(None) * scale;
            let shares = kept.mean_dim(1, false, Kind::Float).unbind(0);
            losses.mimic_kept = ids.into_iter().cloned().zip(shares).collect();
        }
        if let Some(decoded) = decoded.filter(|_| self.config.rec_weight > 0.0) {
            let pred = self.mae.decoder().predict(&decoded); // [N, L, p²·3]
            let rec = self.mae.forward_loss(imgs, &pred, &masking.mask);
            losses.total += &rec * self.config.rec_weight;
            losses.rec = Some(rec);
        }
        losses
    }

    /// How close each mimicking token comes to its target: per teacher `[N, K]` cosines in [-1, 1], f32, and the patches `[N, K]` they
    /// are of. For pictures, without gradients.
    ///
    /// # Panics
    /// As [`MrMae::forward`].
    pub fn similarity(&self, batch: &Batch) -> (BTreeMap<String, Tensor>, Tensor) {
        let _no_grad = tch::no_grad_guard();
        let (imgs, masking, pass) = (batch.imgs, batch.masking, &batch.pass);
        let latent = self.mae.encoder().forward_encoder(imgs, masking, pass);
        let decoded = (self.config.mimic_tokens != MimicTokens::Encoder).then(|| {
            let decoder = self.mae.decoder();
            decoder.forward_tokens(&latent, &masking.ids_restore, pass)
        });
        let (tokens, ids) = self.mimicking(&latent, decoded.as_ref(), masking);
        let (n, l) = masking.mask.size2().expect("mask is [N, L]");
        let ids = ids.unwrap_or_else(|| Tensor::arange(l, (Kind::Int64, latent.device())).expand([n, l], false));
        let mut maps = BTreeMap::new();
        for (id, _) in self.config.teachers.iter().filter(|(_, t)| t.weight > 0.0) {
            let target = self.targets[id].forward(&batch.targets.at(id, Some(&ids)));
            let found = self.heads.forward(id, &tokens).to_kind(Kind::Float);
            maps.insert(id.clone(), Tensor::cosine_similarity(&found, &target, -1, 1e-8));
        }
        (maps, ids)
    }

    /// The tokens that mimic, `[N, T, ..]`, and the patches `[N, T]` they are of; `None` for all patches in order.
    fn mimicking(&self, latent: &Tensor, decoded: Option<&Tensor>, masking: &Masking) -> (Tensor, Option<Tensor>) {
        let keep = masking.ids_keep.size()[1];
        let patches = decoded.map(|tokens| self.mae.decoder().patches(tokens)); // [N, L, Dd]
        let taken = |ids: &Tensor| {
            let patches = patches.as_ref().expect("the decoder's tokens were computed");
            (gather_rows(patches, ids), Some(ids.shallow_clone()))
        };
        match self.config.mimic_tokens {
            MimicTokens::Encoder => {
                (latent.narrow(1, latent.size()[1] - keep, keep), Some(masking.ids_keep.shallow_clone()))
            }
            MimicTokens::DecoderVisible => taken(&masking.ids_keep),
            MimicTokens::DecoderRemoved => taken(&masking.ids_removed),
            MimicTokens::DecoderAll => (patches.expect("the decoder's tokens were computed"), None),
        }
    }
}

/// Refuses heads without a hidden layer's width, and teachers whose parameters would have one name: `a.fc1` beside `a`.
fn check_heads(teachers: &BTreeMap<String, MimicConfig>) -> Result<()> {
    for (id, teacher) in teachers {
        let HeadKind::Mlp { hidden } = teacher.head else { continue };
        if hidden < 1 {
            let reason = "a head's hidden layer has at least one channel".to_owned();
            return Err(Error::Config { field: "hidden", value: hidden.to_string(), reason });
        }
        let of_layer = |other: &&String| ["fc1", "norm", "fc2"].iter().any(|layer| **other == format!("{id}.{layer}"));
        if let Some(other) = teachers.keys().find(of_layer) {
            let reason = format!("is the name of a layer in the head of teacher {id}; give one of them another id");
            return Err(Error::Config { field: "teachers", value: other.clone(), reason });
        }
    }
    Ok(())
}

fn of_teacher<'a>(targets: &'a BTreeMap<String, Tensor>, id: &str) -> &'a Tensor {
    targets.get(id).unwrap_or_else(|| panic!("the batch has no tokens of {id}"))
}

#[cfg(test)]
mod tests;
