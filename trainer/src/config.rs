//! The recipe: the experiment as a typed TOML file.
//!
//! A recipe is read from a file, changed by `--set section.key=value`, completed by the documented defaults below and
//! checked once. The resolved recipe is printed and saved with the run; a run folder refuses a different one, naming the
//! first field that differs, except for the few settings that cannot change the result ([`Recipe::first_difference`]).
//! Folders, device and threads are not part of a recipe.

use std::collections::BTreeMap;

use models::precision::Precision;
use models::targets::TargetNorm;
use serde::{Deserialize, Serialize};

use crate::schedule::Decay;

pub use resolve::Error;

pub(crate) mod resolve;
#[cfg(test)]
mod tests;

/// Base learning rate per 256 images. The paper says "maximum lr 1.5e-4" without saying which; MAE, ConvMAE and MaskAlign
/// use the same number as a *base* rate, so we read it as one. `optim.lr` sets the peak literally instead.
pub const BLR: f64 = 1.5e-4;
/// AdamW's betas in MAE's pretraining code; MR-MAE does not state them.
pub const BETAS: [f64; 2] = [0.9, 0.95];
/// PyTorch's default, which MAE's code leaves untouched.
pub const ADAM_EPS: f64 = 1e-8;
/// MR-MAE section 4.1 and MAE.
pub const WEIGHT_DECAY: f64 = 0.05;
/// Share of patches that the encoder does not see. MR-MAE prints "mask ratio 25 %" and means the visible share.
pub const MASK_RATIO: f64 = 0.75;
/// MR-MAE weighs reconstruction and mimicking equally.
pub const LOSS_WEIGHT: f64 = 0.5;
/// Finished batches that wait for the device. Two hide one slow batch; more only cost memory.
pub const PREFETCH: usize = 3;
/// One is enough to resume; the second is there for the day the first turns out to be damaged.
pub const KEEP_CHECKPOINTS: usize = 2;
/// Enough to see what is learnt, and drawn in no time.
pub const PICTURES: usize = 4;
/// MaskAlign's for smooth L1.
pub const SMOOTH_L1_BETA: f64 = 1.0;
/// A few skipped steps are an accident, this many in a row are a diverged run.
pub const STOP_AFTER_NONFINITE: u32 = 5;

/// One experiment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Which samples are used.
    #[serde(default)]
    pub data: Data,
    /// The student.
    #[serde(default)]
    pub model: Model,
    /// Which teachers are mimicked.
    #[serde(default)]
    pub mimic: Mimic,
    /// How their features become targets.
    #[serde(default)]
    pub target: Target,
    /// How the losses add up.
    #[serde(default)]
    pub loss: Loss,
    /// Which patches are hidden.
    #[serde(default)]
    pub mask: Mask,
    /// The optimiser.
    pub optim: Optim,
    /// Its learning rate over time.
    pub schedule: ScheduleConfig,
    /// Everything around it.
    #[serde(default)]
    pub run: Run,
}

/// `[data]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Data {
    /// What to do about cached images that `--images` does not have.
    pub missing: Missing,
    /// Train on the parts that are complete although others are missing. Off by default: a run on a third of the data
    /// looks like a run. The samples in use are recorded, so a cache that has grown since refuses to resume.
    pub allow_incomplete: bool,
    /// Views used of those that the cache stores per image: the first so many, one an epoch in turn. Default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub views: Option<usize>,
    /// Finished batches that may wait for the device.
    pub prefetch: usize,
    /// Memory for rendered crops, in MiB. Views are finite, so a data set whose crops fit (12 KB each at 64 pixels, 150 KB at
    /// 224) is decoded once and not every epoch. 0 = none.
    pub pixel_cache_mib: usize,
}

impl Default for Data {
    fn default() -> Self {
        Data {
            missing: Missing::Error,
            allow_incomplete: false,
            views: None,
            prefetch: PREFETCH,
            pixel_cache_mib: 0,
        }
    }
}

/// What to do about images that cannot be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Missing {
    /// List them and stop.
    Error,
    /// List them and train on the rest.
    Skip,
}

/// `[model]`: the autoencoder. The defaults are those of ViT-B/16 or of MCMAE-B, with MAE's decoder (He et al. 2022, table 1 and
/// appendix; Gao et al. 2022).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Model {
    /// The kind of encoder.
    pub encoder: EncoderKind,
    /// Side of the square input, in pixels.
    pub img_size: u32,
    /// Side of a patch, in pixels; divides `img_size`. Of `mcmae` it is 16.
    pub patch_size: u32,
    /// Encoder width, for `vit`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embed_dim: Option<u32>,
    /// Encoder blocks, for `vit`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depth: Option<u32>,
    /// Hidden width of an MLP, in widths of its block, for `vit`; the decoder's too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mlp_ratio: Option<u32>,
    /// Widths of the three stages, for `mcmae`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embed_dims: Option<[u32; 3]>,
    /// Blocks of the three stages, for `mcmae`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depths: Option<[u32; 3]>,
    /// Hidden widths of the MLPs of the three stages, for `mcmae`; the last one's is the decoder's too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mlp_ratios: Option<[u32; 3]>,
    /// For `mcmae`: whether there is a CLS token. Not in the published code, but in the weights that MR-MAE's authors published later,
    /// and needed for `loss.w_cls`. A `vit` always has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cls_token: Option<bool>,
    /// Attention heads of the transformer blocks.
    pub num_heads: u32,
    /// Multi-layer fusion, for `vit`: encoder blocks (from 0, before the last) whose outputs are added to the last one's, for both
    /// losses, in pretraining alone. The paper does not say which: with 12 blocks `[3, 7]`, every fourth, is a reasonable reading.
    /// Empty = none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fusion: Vec<u32>,
    /// The same for `mcmae`: whether projections of the two convolution stages are added to the last stage's output, as in the
    /// published code. Default: true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stage_fusion: Option<bool>,
    /// Stochastic depth: the rate of the encoder's last block, falling linearly to 0 at its first. MaskAlign pretrains with 0.1; MAE and
    /// the paper's text have none.
    pub drop_path: f64,
    /// Decoder width. MR-MAE does not state it; MAE's.
    pub decoder_embed_dim: u32,
    /// Decoder blocks.
    pub decoder_depth: u32,
    /// Decoder attention heads.
    pub decoder_num_heads: u32,
    /// Reconstruct each patch normalised by its own mean and deviation. MAE's better setting; MR-MAE does not say.
    pub norm_pix_loss: bool,
    /// Start from this student: a run folder, a file or folder of weights that [`models::exchange::import()`] reads, or the id of one on
    /// the hub. The encoder is taken, and the decoder where it has one; heads start fresh. Absent = all from the seed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<String>,
}

impl Default for Model {
    fn default() -> Self {
        Model {
            encoder: EncoderKind::Vit,
            img_size: 224,
            patch_size: 16,
            embed_dim: None,
            depth: None,
            mlp_ratio: None,
            embed_dims: None,
            depths: None,
            mlp_ratios: None,
            cls_token: None,
            num_heads: 12,
            fusion: vec![],
            stage_fusion: None,
            drop_path: 0.0,
            decoder_embed_dim: 512,
            decoder_depth: 8,
            decoder_num_heads: 16,
            norm_pix_loss: true,
            init: None,
        }
    }
}

/// The kind of encoder.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EncoderKind {
    /// MAE's ViT.
    #[default]
    Vit,
    /// MCMAE (ConvMAE): two stages of masked convolution, then a transformer.
    Mcmae,
}

/// `[mimic]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mimic {
    /// Teacher ids of the cache. Each gets a linear head of its own on the encoder's visible tokens. Empty = plain MAE,
    /// which needs no teacher rows. More than one is never a default: the paper found CLIP and DINO together worse than
    /// either alone (table 4). Later work that gains from several normalises each first: try `target.norm = "phi_s"` or
    /// "standardize" with it.
    pub teachers: Vec<String>,
    /// Which of the student's tokens mimic. All but the default are ablations.
    pub tokens: MimicTokens,
    /// How a head's output is compared with its target.
    pub loss: LossKind,
    /// For `smooth_l1`: where the square becomes a line, in the target's units. Default 1, MaskAlign's; FD and dBOT have 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta: Option<f64>,
    /// Per teacher, what is different from the settings that all share.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub teacher: BTreeMap<String, TeacherSettings>,
}

/// `[mimic.teacher.ID]`: each absent setting is the shared one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TeacherSettings {
    /// Its share of `loss.w_mimic` and `loss.w_cls`. Default: one over the number of teachers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<f64>,
    /// Instead of `target.norm`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub norm: Option<TargetNorm>,
    /// Instead of `mimic.loss`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<LossKind>,
    /// Instead of `mimic.beta`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta: Option<f64>,
}

/// Which of the student's tokens mimic the teachers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MimicTokens {
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
pub enum LossKind {
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
pub struct Target {
    /// What is done to a teacher's token before it is compared; always at load, never in the cache. The paper is silent. The
    /// default is `ln`, LayerNorm without affine parameters per token, on which its nearest relatives settled (MaskAlign calls
    /// it "whiten"): the residual stream of a ViT has a few channels tens of times larger than the rest, which under `none`,
    /// the paper's equation read literally, own the loss. `l2` keeps only the direction (MVP, MILAN). `standardize` (Theia) and
    /// `phi_s` (RADIO) use statistics of the whole cache and are meant for several teachers.
    pub norm: TargetNorm,
}

impl Default for Target {
    fn default() -> Self {
        Target {
            norm: TargetNorm::Ln,
        }
    }
}

/// `[loss]`: total = `w_rec` * reconstruction + the sum over teachers of their share of `w_mimic` * mimic + `w_cls` * CLS mimic.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Loss {
    /// Weight of the pixel loss; 0 = mimic only.
    pub w_rec: f64,
    /// Weight of mimicking, shared evenly by the teachers unless their settings say otherwise.
    pub w_mimic: f64,
    /// Weight of mimicking the teachers' CLS tokens with the student's, by heads of their own. 0 = off: the paper has no such term;
    /// MaskAlign, MILAN and MEDiC do. CLS targets are normalised one by one: `standardize` and `phi_s`, whose statistics are those
    /// of patches, are `ln` for them.
    pub w_cls: f64,
}

impl Default for Loss {
    fn default() -> Self {
        Loss {
            w_rec: LOSS_WEIGHT,
            w_mimic: LOSS_WEIGHT,
            w_cls: 0.0,
        }
    }
}

/// `[mask]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mask {
    /// How the visible patches are chosen.
    pub kind: MaskKind,
    /// Share of patches that are removed.
    pub ratio: f64,
    /// For `focused`: how the teacher's attention decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<FocusMode>,
    /// For `focused`: whose attention, by teacher id. Need not be mimicked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher: Option<String>,
}

impl Default for Mask {
    fn default() -> Self {
        Mask {
            kind: MaskKind::Random,
            ratio: MASK_RATIO,
            mode: None,
            teacher: None,
        }
    }
}

/// How the visible patches are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MaskKind {
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
pub enum FocusMode {
    /// Drawn without replacement, with the attention as probabilities (MILAN, MaskAlign). The default: masks still vary
    /// between epochs.
    Multinomial,
    /// The largest, always: one view of an image always gets the same mask.
    Topk,
}

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

/// `[run]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Run {
    /// Weights, order and masks are functions of it.
    pub seed: u64,
    /// What matrix products and attention compute in, forward and backward. Parameters, moments, norms, softmax, the residual
    /// stream and losses are f32 either way; bf16 has f32's range and needs no loss scaling.
    #[serde(with = "precision_name")]
    pub precision: Precision,
    /// Steps between two log lines.
    pub log_every: u64,
    /// Steps between two checkpoints; there is always one at the end.
    pub checkpoint_every: u64,
    /// Newest checkpoints that are kept.
    pub keep_checkpoints: usize,
    /// Samples of the current batch that are drawn with each checkpoint: original, masked, reconstruction, and how close each token comes
    /// to each teacher. Into `RUN/pictures/` and TensorBoard. 0 = none.
    pub pictures: usize,
    /// The device's matrix products in TFLOP/s, in this precision, for the log's MFU. Default: measured at the start by a small plain
    /// product.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_tflops: Option<f64>,
    /// Besides these, checkpoints after every so many steps are written and kept for good: to evaluate a run along its way, or to finish a
    /// `wsd` run at several lengths. Absent = none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_every: Option<u64>,
    /// Keep of each block (convolution stages and decoder included) only its input and compute the rest again in backward (Chen et al. 2016): a third more arithmetic
    /// for a fraction of the memory. Changes no number.
    pub grad_checkpointing: bool,
    /// Consecutive steps with a non-finite loss or gradient (each skipped and recorded) that end the run.
    pub stop_after_nonfinite: u32,
}

impl Default for Run {
    fn default() -> Self {
        Run {
            seed: 0,
            precision: Precision::Bf16,
            log_every: 20,
            checkpoint_every: 1000,
            keep_checkpoints: KEEP_CHECKPOINTS,
            pictures: PICTURES,
            peak_tflops: None,
            keep_every: None,
            grad_checkpointing: false,
            stop_after_nonfinite: STOP_AFTER_NONFINITE,
        }
    }
}

/// [`Precision`] as its name.
pub(crate) mod precision_name {
    use models::precision::Precision;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(
        precision: &Precision,
        out: S,
    ) -> Result<S::Ok, S::Error> {
        out.serialize_str(precision.name())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<Precision, D::Error> {
        String::deserialize(input)?
            .parse()
            .map_err(D::Error::custom)
    }
}
