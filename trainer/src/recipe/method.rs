//! `[mimic]`, `[target]`, `[loss]` and `[mask]`: the method.

use std::collections::BTreeMap;

use models::losses::{ClsLoss, MimicLoss};
use models::masking::len_keep;
use models::mimic;
use models::targets::TargetNorm;
use serde::{Deserialize, Serialize};

use super::Recipe;
use program::recipe::{Error, require};

/// Share of patches that the encoder does not see. MR-MAE prints "mask ratio 25 %" and means the visible share.
const MASK_RATIO: f64 = 0.75;
/// MR-MAE weighs reconstruction and mimicking equally.
const LOSS_WEIGHT: f64 = 0.5;
/// MaskAlign's and UNIC's beta of smooth L1, and PyTorch's default. EUPE states none for the smooth L1 beside its cosine; NVIDIA TAO has 2
/// there.
const SMOOTH_L1_BETA: f64 = 1.0;
/// Hidden width of an MLP head as a multiple of the student's: EUPE's 3072 for a ViT-B (arXiv 2603.22387, section 4.1, stages 2 and 3).
const HEAD_RATIO: i64 = 4;

/// `[mimic]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Mimic {
    /// Teacher ids of the cache. Each gets a head of its own on the encoder's visible tokens. Empty = plain MAE,
    /// which needs no teacher rows. More than one is never a default: the paper found CLIP and DINO together worse than
    /// either alone (table 4). Later work that gains from several normalizes each of them first, as `target.norm = "phi_s"` and
    /// "standardize" do.
    pub teachers: Vec<String>,
    /// Which of the student's tokens mimic. All but the default are ablations.
    pub tokens: MimicTokens,
    /// What the heads are made of.
    #[serde(skip_serializing_if = "HeadKind::is_default")]
    pub head: HeadKind,
    /// For `head = "mlp"`: width of the hidden layer. Default: four times the student's width, EUPE's 3072 for a ViT-B.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hidden: Option<u32>,
    /// How a head's output is compared with its target.
    pub loss: LossKind,
    /// For `smooth_l1` and `cosine_smooth_l1`: where the square becomes a line, in the target's units. Default 1, MaskAlign's and UNIC's; FD
    /// and dBOT have 2, and so has NVIDIA TAO in `cosine_smooth_l1`, for which EUPE states none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta: Option<f64>,
    /// How the output of a head of CLS tokens is compared with its target, where `loss.w_cls` has such heads. Default: as `mimic.loss`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cls_loss: Option<ClsLossKind>,
    /// Teacher dropping (UNIC): for each image the teacher with the largest weighted loss counts, and each other one is dropped with this
    /// probability, in [0, 1). Default 0; UNIC has 0.5. The total is the mean over what is kept, so that `loss.w_mimic` weighs as much as
    /// without dropping. Logged losses are of all images and teachers; `mimic_kept.TEACHER` is the share of images for which a teacher counted.
    #[serde(skip_serializing_if = "is_zero")]
    pub drop: f64,
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
    /// Overrides `target.cls_norm`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cls_norm: Option<TargetNorm>,
    /// Overrides `mimic.head`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head: Option<HeadKind>,
    /// Overrides `mimic.hidden`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hidden: Option<u32>,
    /// Overrides `mimic.loss`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<LossKind>,
    /// Overrides `mimic.beta`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta: Option<f64>,
    /// Overrides `mimic.cls_loss`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cls_loss: Option<ClsLossKind>,
}

/// What a mimic head is made of. Each teacher has one for patch tokens and, with `loss.w_cls`, another for CLS tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum HeadKind {
    /// One linear layer: the paper's.
    #[default]
    Linear,
    /// Linear, LayerNorm, GELU, linear, without biases (EUPE).
    Mlp,
}

impl HeadKind {
    fn is_default(&self) -> bool {
        *self == HeadKind::default()
    }
}

fn is_zero(value: &f64) -> bool {
    *value == 0.0
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
    /// 0.9 (1 - cosine) + 0.1 smooth L1 with `beta`: EUPE's loss of patch tokens.
    CosineSmoothL1,
}

impl LossKind {
    fn loss(self, beta: f64) -> MimicLoss {
        match self {
            LossKind::L2 => MimicLoss::L2,
            LossKind::SmoothL1 => MimicLoss::SmoothL1 { beta },
            LossKind::Cosine => MimicLoss::Cosine,
            LossKind::CosineSmoothL1 => MimicLoss::CosineSmoothL1 { beta },
        }
    }

    fn has_beta(self) -> bool {
        self.loss(SMOOTH_L1_BETA).beta().is_some()
    }
}

/// How the output of a head of CLS tokens is compared with its target: as patch tokens are, or by the angle between the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ClsLossKind {
    /// As [`LossKind::L2`].
    L2,
    /// As [`LossKind::SmoothL1`].
    SmoothL1,
    /// As [`LossKind::Cosine`], EUPE's loss of CLS tokens.
    Cosine,
    /// As [`LossKind::CosineSmoothL1`].
    CosineSmoothL1,
    /// The squared angle, divided by the teacher's angular dispersion, which is measured on cached CLS tokens when a run begins: C-RADIOv4's.
    Angle,
}

impl ClsLossKind {
    fn loss(self, beta: f64) -> ClsLoss {
        ClsLoss::Mimic(match self {
            ClsLossKind::L2 => MimicLoss::L2,
            ClsLossKind::SmoothL1 => MimicLoss::SmoothL1 { beta },
            ClsLossKind::Cosine => MimicLoss::Cosine,
            ClsLossKind::CosineSmoothL1 => MimicLoss::CosineSmoothL1 { beta },
            ClsLossKind::Angle => return ClsLoss::Angle,
        })
    }

    fn has_beta(self) -> bool {
        self.loss(SMOOTH_L1_BETA).beta().is_some()
    }
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
    /// How a teacher's CLS tokens are normalized, where `loss.w_cls` mimics them: `none`, `ln`, `l2`, or `standardize` by the means and
    /// variances of CLS tokens. Default: as `norm`, but `ln` for the two that use statistics, which are those of patch tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cls_norm: Option<TargetNorm>,
}

impl Default for Target {
    fn default() -> Self {
        Target { norm: TargetNorm::Ln, cls_norm: None }
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
    /// MaskAlign, MILAN and MEDiC do. `mimic.cls_loss` and `target.cls_norm` say how.
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

/// How one teacher is mimicked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Mimicked {
    /// Its share of `loss.w_mimic` and `loss.w_cls`.
    pub share: f64,
    /// What its heads are made of.
    pub head: mimic::HeadKind,
    /// How its patch tokens are normalized, and how they are compared.
    pub patches: (TargetNorm, MimicLoss),
    /// The same of its CLS tokens.
    pub cls: (TargetNorm, ClsLoss),
}

impl Recipe {
    /// How the teacher `id` is mimicked: its own settings, or the shared ones.
    pub(crate) fn mimic_of(&self, id: &str) -> Mimicked {
        let shared = &self.mimic;
        let own = shared.teacher.get(id).cloned().unwrap_or_default();
        let beta = own.beta.or(shared.beta).unwrap_or(SMOOTH_L1_BETA);
        let loss = own.loss.unwrap_or(shared.loss).loss(beta);
        let cls_loss = own.cls_loss.or(shared.cls_loss).map_or(ClsLoss::Mimic(loss), |kind| kind.loss(beta));
        let norm = own.norm.unwrap_or(self.target.norm);
        let hidden = own.hidden.or(shared.hidden).map_or_else(|| self.default_hidden().into(), i64::from);
        Mimicked {
            share: own.share.unwrap_or(1.0 / shared.teachers.len().max(1) as f64),
            head: match own.head.unwrap_or(shared.head) {
                HeadKind::Linear => mimic::HeadKind::Linear,
                HeadKind::Mlp => mimic::HeadKind::Mlp { hidden },
            },
            patches: (norm, loss),
            cls: (own.cls_norm.or(self.target.cls_norm).unwrap_or(norm.without_stats()), cls_loss),
        }
    }

    fn default_hidden(&self) -> u32 {
        u32::try_from(HEAD_RATIO * self.mae_config().encoder.embed_dim()).unwrap_or(u32::MAX)
    }

    /// Spells out the defaults of the settings that the chosen heads and losses have.
    pub(super) fn resolve_mimicking(&mut self) {
        let has_mlp = |own: &TeacherSettings| own.head == Some(HeadKind::Mlp);
        if self.mimic.head == HeadKind::Mlp || self.mimic.teacher.values().any(has_mlp) {
            let hidden = self.default_hidden();
            self.mimic.hidden.get_or_insert(hidden);
        }
        if self.mimic.loss.has_beta() {
            self.mimic.beta.get_or_insert(SMOOTH_L1_BETA);
        }
    }

    /// Random numbers of an image by which teachers are dropped: one for each teacher with a weight but one; 0 if none is dropped.
    pub(crate) fn teacher_draws(&self) -> usize {
        match self.mimic.drop > 0.0 {
            true => self.weighted_teachers().saturating_sub(1),
            false => 0,
        }
    }

    fn weighted_teachers(&self) -> usize {
        let weight = |id: &&String| self.mimic_of(id).share * (self.loss.w_mimic + self.loss.w_cls);
        self.mimic.teachers.iter().filter(|id| weight(id) > 0.0).count()
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
            let how = self.mimic_of(id);
            let has_beta = how.patches.1.beta().is_some() || (self.loss.w_cls > 0.0 && how.cls.1.beta().is_some());
            require(
                has_beta || own.beta.is_none(),
                "mimic.teacher.*.beta",
                own.beta.unwrap_or_default(),
                "applies only with a loss of \"smooth_l1\" or \"cosine_smooth_l1\"",
            )?;
            require(
                own.hidden.is_none() || how.head != mimic::HeadKind::Linear,
                "mimic.teacher.*.hidden",
                own.hidden.unwrap_or_default(),
                "applies only with head = \"mlp\"",
            )?;
        }
        let has_beta = |own: &TeacherSettings| {
            own.loss.is_some_and(LossKind::has_beta) || own.cls_loss.is_some_and(ClsLossKind::has_beta)
        };
        require(
            self.mimic.beta.is_none()
                || self.mimic.loss.has_beta()
                || self.mimic.cls_loss.is_some_and(ClsLossKind::has_beta)
                || self.mimic.teacher.values().any(has_beta),
            "mimic.beta",
            self.mimic.beta.unwrap_or_default(),
            "applies only with a loss of \"smooth_l1\" or \"cosine_smooth_l1\"",
        )?;
        let has_mlp = |own: &TeacherSettings| own.head == Some(HeadKind::Mlp);
        require(
            self.mimic.hidden.is_none() || self.mimic.head == HeadKind::Mlp || self.mimic.teacher.values().any(has_mlp),
            "mimic.hidden",
            self.mimic.hidden.unwrap_or_default(),
            "applies only with head = \"mlp\"",
        )?;
        let widths = self.mimic.teacher.values().map(|own| own.hidden).chain([self.mimic.hidden]);
        for hidden in widths.flatten() {
            require(hidden >= 1, "mimic.hidden", hidden, "must be at least 1")?;
        }
        self.check_cls()?;
        self.check_drop()?;
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

    /// Settings of CLS tokens need `loss.w_cls`, and have no `phi_s`.
    fn check_cls(&self) -> Result<(), Error> {
        let own = |(id, own): (&String, &TeacherSettings)| {
            (format!("mimic.teacher.{id}.cls_norm"), own.cls_norm, format!("mimic.teacher.{id}.cls_loss"), own.cls_loss)
        };
        let shared =
            ("target.cls_norm".to_owned(), self.target.cls_norm, "mimic.cls_loss".to_owned(), self.mimic.cls_loss);
        for (norm_field, norm, loss_field, loss) in self.mimic.teacher.iter().map(own).chain([shared]) {
            for (field, given) in [(&norm_field, norm.is_some()), (&loss_field, loss.is_some())] {
                require(
                    !given || self.loss.w_cls > 0.0,
                    field,
                    "given",
                    "is about CLS tokens, which are mimicked only with loss.w_cls above 0",
                )?;
            }
            require(
                norm != Some(TargetNorm::PhiS),
                &norm_field,
                "phi_s",
                "is defined for patch tokens; CLS tokens take none, ln, l2 or standardize",
            )?;
        }
        Ok(())
    }

    fn check_drop(&self) -> Result<(), Error> {
        let drop = self.mimic.drop;
        require((0.0..1.0).contains(&drop), "mimic.drop", drop, "must be in [0, 1)")?;
        require(
            drop == 0.0 || self.weighted_teachers() >= 2,
            "mimic.drop",
            drop,
            "leaves one of several teachers: mimic.teachers needs two whose share of loss.w_mimic or loss.w_cls is above 0",
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
