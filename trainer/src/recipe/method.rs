//! `[mimic]`, `[target]`, `[loss]` and `[mask]`: the method.

use std::collections::BTreeMap;

use models::losses::MimicLoss;
use models::masking::len_keep;
use models::targets::TargetNorm;
use serde::{Deserialize, Serialize};

use super::Recipe;
use program::recipe::{Error, require};

/// Share of patches that the encoder does not see. MR-MAE prints "mask ratio 25 %" and means the visible share.
const MASK_RATIO: f64 = 0.75;
/// MR-MAE weighs reconstruction and mimicking equally.
const LOSS_WEIGHT: f64 = 0.5;
/// MaskAlign's beta of smooth L1.
pub(super) const SMOOTH_L1_BETA: f64 = 1.0;

/// `[mimic]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Mimic {
    /// Teacher ids of the cache. Each gets a linear head of its own on the encoder's visible tokens. Empty = plain MAE,
    /// which needs no teacher rows. More than one is never a default: the paper found CLIP and DINO together worse than
    /// either alone (table 4). Later work that gains from several normalizes each of them first, as `target.norm = "phi_s"` and
    /// "standardize" do.
    pub teachers: Vec<String>,
    /// Which of the student's tokens mimic. All but the default are ablations.
    pub tokens: MimicTokens,
    /// How a head's output is compared with its target.
    pub loss: LossKind,
    /// For `smooth_l1`: where the square becomes a line, in the target's units. Default 1, MaskAlign's; FD and dBOT have 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta: Option<f64>,
    /// Settings of single teachers, which override the shared ones.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub teacher: BTreeMap<String, TeacherSettings>,
}

/// `[mimic.teacher.ID]`. If a setting is absent, the shared one applies.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct TeacherSettings {
    /// The teacher's share of `loss.w_mimic` and `loss.w_cls`. Default: one over the number of teachers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<f64>,
    /// Overrides `target.norm`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub norm: Option<TargetNorm>,
    /// Overrides `mimic.loss`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<LossKind>,
    /// Overrides `mimic.beta`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta: Option<f64>,
}

/// Which of the student's tokens mimic the teachers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum MimicTokens {
    /// The encoder's visible tokens: the method.
    #[default]
    Visible,
    /// The decoder's, at the patches that it reconstructs: table 3's "feature loss at the decoder".
    DecoderRemoved,
    /// The decoder's, at the patches that the encoder saw.
    DecoderVisible,
    /// The decoder's, at all patches.
    DecoderAll,
}

/// How a head's output is compared with its target.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LossKind {
    /// Mean squared difference: the paper's.
    #[default]
    L2,
    /// Smooth L1 with `beta`: a token far off counts less (MaskAlign, MaskDistill, FD).
    SmoothL1,
    /// One minus the cosine (MILAN, EVA).
    Cosine,
}

/// `[target]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Target {
    /// How a teacher's tokens are normalized before they are compared. This happens during training; the cache stores them as they are.
    /// The paper does not say. The default is `ln`, LayerNorm without affine parameters per token, as in closely related work (MaskAlign
    /// calls it "whiten"): the residual stream of a ViT has a few channels tens of times larger than the rest, which dominate the loss
    /// under `none`, the paper's equation read literally. `l2` keeps only the direction (MVP, MILAN). `standardize` (Theia) and `phi_s`
    /// (RADIO) use statistics of the whole cache and are meant for several teachers.
    pub norm: TargetNorm,
}

impl Default for Target {
    fn default() -> Self {
        Target { norm: TargetNorm::Ln }
    }
}

/// `[loss]`: total = `w_rec` * reconstruction + the sum over teachers of their share of `w_mimic` * mimic + `w_cls` * CLS mimic.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Loss {
    /// Weight of the pixel loss; 0 = mimic only.
    pub w_rec: f64,
    /// Weight of mimicking, shared evenly by the teachers unless their settings say otherwise.
    pub w_mimic: f64,
    /// Weight of mimicking the teachers' CLS tokens with the student's, by heads of their own. 0 = off: the paper has no such term;
    /// MaskAlign, MILAN and MEDiC do. The statistics of `standardize` and `phi_s` are those of patches, so CLS targets are normalized by
    /// `ln` instead.
    pub w_cls: f64,
}

impl Default for Loss {
    fn default() -> Self {
        Loss { w_rec: LOSS_WEIGHT, w_mimic: LOSS_WEIGHT, w_cls: 0.0 }
    }
}

/// `[mask]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Mask {
    /// How the visible patches are chosen.
    pub kind: MaskKind,
    /// Share of patches that are removed.
    pub ratio: f64,
    /// For `focused`: how the teacher's attention decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<FocusMode>,
    /// For `focused`: the id of the teacher whose attention is used. The student need not mimic it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher: Option<String>,
}

impl Default for Mask {
    fn default() -> Self {
        Mask { kind: MaskKind::Random, ratio: MASK_RATIO, mode: None, teacher: None }
    }
}

/// How the visible patches are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum MaskKind {
    /// Uniformly (MAE).
    Random,
    /// By the CLS attention of a teacher's last block ("focused mimicking").
    Focused,
    /// In blocks (BEiT's), with the same number of visible patches in every image.
    Block,
}

/// How the teacher's attention decides which patches stay visible. The paper says only "the most salient".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum FocusMode {
    /// Drawn without replacement, with the attention as probabilities (MILAN, MaskAlign). The default: masks still vary
    /// between epochs.
    Multinomial,
    /// Always the patches with the most attention: one view of an image always gets the same mask.
    Topk,
}

impl Recipe {
    /// How the teacher `id` is mimicked: its share of the weights, its normalization and its loss.
    pub(crate) fn mimic_of(&self, id: &str) -> (f64, TargetNorm, MimicLoss) {
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
    pub(crate) fn len_keep(&self) -> i64 {
        len_keep(self.mae_config().num_patches(), self.mask.ratio)
    }

    pub(super) fn check_mimicking(&self) -> Result<(), Error> {
        let mut teachers = self.mimic.teachers.clone();
        teachers.sort();
        teachers.dedup();
        require(
            teachers.len() == self.mimic.teachers.len(),
            "mimic.teachers",
            format!("{:?}", self.mimic.teachers),
            "names a teacher twice",
        )?;
        for (field, w) in
            [("loss.w_rec", self.loss.w_rec), ("loss.w_mimic", self.loss.w_mimic), ("loss.w_cls", self.loss.w_cls)]
        {
            require(w >= 0.0 && w.is_finite(), field, w, "must be zero or positive")?;
        }
        let mimics = !self.mimic.teachers.is_empty();
        let learns = self.loss.w_rec > 0.0 || (mimics && self.loss.w_mimic + self.loss.w_cls > 0.0);
        require(learns, "loss.w_rec", self.loss.w_rec, "is the only loss of this recipe and must be positive")?;
        for (id, own) in &self.mimic.teacher {
            require(teachers.contains(id), "mimic.teacher", id, "has settings, but is not in mimic.teachers")?;
            let share = own.share.unwrap_or(1.0);
            require(share >= 0.0 && share.is_finite(), "mimic.teacher.*.share", share, "must be zero or positive")?;
            let smooth = own.loss.unwrap_or(self.mimic.loss) == LossKind::SmoothL1;
            require(
                smooth || own.beta.is_none(),
                "mimic.teacher.*.beta",
                own.beta.unwrap_or_default(),
                "applies only with loss = \"smooth_l1\"",
            )?;
        }
        let smooth = |own: &super::TeacherSettings| own.loss == Some(LossKind::SmoothL1);
        require(
            self.mimic.beta.is_none()
                || self.mimic.loss == LossKind::SmoothL1
                || self.mimic.teacher.values().any(smooth),
            "mimic.beta",
            self.mimic.beta.unwrap_or_default(),
            "applies only with loss = \"smooth_l1\"",
        )?;
        let betas = self.mimic.teacher.values().map(|own| own.beta);
        for beta in betas.chain([self.mimic.beta]).flatten() {
            require(beta > 0.0 && beta.is_finite(), "mimic.beta", beta, "must be positive")?;
        }
        require(
            self.loss.w_cls == 0.0 || self.mae_config().encoder.cls_token(),
            "loss.w_cls",
            self.loss.w_cls,
            "needs a CLS token: model.cls_token = true",
        )
    }

    pub(super) fn check_mask(&self) -> Result<(), Error> {
        let keep = self.len_keep();
        require(
            (0.0..1.0).contains(&self.mask.ratio) && keep >= 1,
            "mask.ratio",
            self.mask.ratio,
            "must be in [0, 1) and leave at least one patch visible",
        )?;
        let removed_matter = self.loss.w_rec > 0.0 || self.mimic.tokens == MimicTokens::DecoderRemoved;
        let removes = keep < self.mae_config().num_patches() || !removed_matter;
        require(
            removes,
            "mask.ratio",
            self.mask.ratio,
            "must remove a patch, because this recipe has a loss over removed patches",
        )?;
        let focused = self.mask.kind == MaskKind::Focused;
        require(
            focused == self.mask.teacher.is_some(),
            "mask.teacher",
            self.mask.teacher.as_deref().unwrap_or("unset"),
            match focused {
                true => "mask.kind = \"focused\" needs the teacher whose CLS attention chooses",
                false => "belongs to mask.kind = \"focused\": set both or neither",
            },
        )?;
        require(
            focused || self.mask.mode.is_none(),
            "mask.mode",
            "given",
            "belongs to mask.kind = \"focused\": set both or neither",
        )
    }
}
