//! Losses. Everything here computes in f32, whatever it is given.

use tch::{Kind, Tensor};

/// Normalizes each patch to mean 0 and variance 1: `norm_pix_loss` of MAE. `[N, L, p²·3] → [N, L, p²·3]`.
///
/// The variance is *unbiased* (torch's `var`; at p = 16 the biased one differs by 0.13 %) with 1e-6 added. Source: He et al. 2022,
/// `models_mae.py::forward_loss`.
pub(crate) fn norm_pix(target: &Tensor) -> Tensor {
    let target = target.to_kind(Kind::Float);
    let mean = target.mean_dim(-1, true, None);
    let var = target.var_dim(-1, true, true);
    (target - mean) / (var + 1e-6).sqrt()
}

/// Mean squared error over *removed* patches: mean over a patch, then over the removed patches of the whole batch.
///
/// `pred`, `target`: `[N, L, p²·3]`. `mask`: `[N, L]`, 0 = seen, 1 = removed. A scalar; NaN if nothing is removed. Source:
/// `models_mae.py::forward_loss`.
pub(crate) fn masked_patch_loss(pred: &Tensor, target: &Tensor, mask: &Tensor) -> Tensor {
    let difference = pred.to_kind(Kind::Float) - target.to_kind(Kind::Float);
    let per_patch = difference.square().mean_dim(-1, false, None); // [N, L]
    (per_patch * mask).sum(None) / mask.sum(None)
}

/// Least length by which a cosine divides: PyTorch's default.
const COSINE_EPS: f64 = 1e-8;

/// The distance between a head's output and its target.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MimicLoss {
    /// Mean squared difference over tokens and channels. The paper sums over channels; the mean keeps the loss comparable between
    /// teachers of different width and with the pixel loss (for a B/16 student and a B teacher, 768 numbers each, the ratio of the
    /// two is the paper's).
    L2,
    /// Mean smooth L1 (Huber): `d² / (2 beta)` where `|d| < beta`, else `|d| - beta / 2`. MaskAlign, FD and dBOT use it.
    SmoothL1 {
        /// Where the square ends, in the target's units.
        beta: f64,
    },
    /// Mean over tokens of `1 - cos`; only directions count. MILAN's and EVA's up to constants.
    Cosine,
    /// `0.9 (1 - cos) + 0.1` smooth L1, each a mean over tokens: mostly directions, and a little of the lengths. The patch loss of EUPE
    /// (arXiv 2603.22387, equation 5), with the weights of AM-RADIO (arXiv 2312.06709).
    CosineSmoothL1 {
        /// As for [`MimicLoss::SmoothL1`].
        beta: f64,
    },
}

/// Weights of the two terms of [`MimicLoss::CosineSmoothL1`].
const COSINE_WEIGHT: f64 = 0.9;
const SMOOTH_L1_WEIGHT: f64 = 0.1;

impl MimicLoss {
    /// `pred`, `target` `[N, .., K]`, the target normalized → a scalar, f32.
    pub fn forward(self, pred: &Tensor, target: &Tensor) -> Tensor {
        let (pred, target) = (pred.to_kind(Kind::Float), target.to_kind(Kind::Float));
        match self {
            MimicLoss::L2 => (pred - target).square().mean(None),
            MimicLoss::SmoothL1 { beta } => pred.smooth_l1_loss(&target, tch::Reduction::Mean, beta),
            MimicLoss::Cosine => 1.0 - Tensor::cosine_similarity(&pred, &target, -1, COSINE_EPS).mean(None),
            MimicLoss::CosineSmoothL1 { beta } => {
                MimicLoss::Cosine.forward(&pred, &target) * COSINE_WEIGHT
                    + MimicLoss::SmoothL1 { beta }.forward(&pred, &target) * SMOOTH_L1_WEIGHT
            }
        }
    }

    /// [`MimicLoss::forward`] of each image alone: `[N]`, f32. Their mean is that of the batch, since images have equally many tokens.
    pub fn per_image(self, pred: &Tensor, target: &Tensor) -> Tensor {
        let (pred, target) = (pred.to_kind(Kind::Float), target.to_kind(Kind::Float));
        let mean = |each: &Tensor| each.reshape([pred.size()[0], -1]).mean_dim(1, false, None);
        match self {
            MimicLoss::L2 => mean(&(&pred - &target).square()),
            MimicLoss::SmoothL1 { beta } => mean(&pred.smooth_l1_loss(&target, tch::Reduction::None, beta)),
            MimicLoss::Cosine => 1.0 - mean(&Tensor::cosine_similarity(&pred, &target, -1, COSINE_EPS)),
            MimicLoss::CosineSmoothL1 { beta } => {
                MimicLoss::Cosine.per_image(&pred, &target) * COSINE_WEIGHT
                    + MimicLoss::SmoothL1 { beta }.per_image(&pred, &target) * SMOOTH_L1_WEIGHT
            }
        }
    }

    /// Where a smooth L1 in it turns into a line; `None` if it has none.
    pub fn beta(self) -> Option<f64> {
        match self {
            MimicLoss::SmoothL1 { beta } | MimicLoss::CosineSmoothL1 { beta } => Some(beta),
            MimicLoss::L2 | MimicLoss::Cosine => None,
        }
    }
}

/// The distance between a head's output and a teacher's CLS token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ClsLoss {
    /// As for patch tokens.
    Mimic(MimicLoss),
    /// `angle² / dispersion`: the squared angle between the two in radians, divided by how far the teacher's CLS tokens spread around
    /// their mean direction ([`angular_dispersion`]), so that teachers with narrow and wide cones of directions weigh the same. The
    /// summary loss of C-RADIOv4 (arXiv 2601.17237, equations 3 to 7).
    Angle,
}

impl ClsLoss {
    /// `pred`, `target` `[N, K]`, the target normalized → `[N]`, f32. `dispersion`, a tensor of one number, is for [`ClsLoss::Angle`].
    ///
    /// # Panics
    /// If [`ClsLoss::Angle`] has no dispersion.
    pub(crate) fn per_image(self, pred: &Tensor, target: &Tensor, dispersion: Option<&Tensor>) -> Tensor {
        match self {
            ClsLoss::Mimic(loss) => loss.per_image(pred, target),
            ClsLoss::Angle => {
                let dispersion = dispersion.expect("an angle is divided by a dispersion");
                angle(&pred.to_kind(Kind::Float), &target.to_kind(Kind::Float)).square() / dispersion
            }
        }
    }

    /// The mean of [`ClsLoss::per_image`], a scalar.
    pub(crate) fn forward(self, pred: &Tensor, target: &Tensor, dispersion: Option<&Tensor>) -> Tensor {
        match self {
            ClsLoss::Mimic(loss) => loss.forward(pred, target),
            ClsLoss::Angle => self.per_image(pred, target, dispersion).mean(None),
        }
    }

    /// As [`MimicLoss::beta`].
    pub fn beta(self) -> Option<f64> {
        match self {
            ClsLoss::Mimic(loss) => loss.beta(),
            ClsLoss::Angle => None,
        }
    }
}

/// Mean squared angle, in radians, between `tokens` `[V, K]` and their mean direction, computed in f64: 0 if all have one direction, at
/// most π². `Disp` in C-RADIOv4 (arXiv 2601.17237, equations 5 and 6): the direction is that of the mean of the tokens, not of the mean of
/// unit vectors.
pub fn angular_dispersion(tokens: &Tensor) -> f64 {
    let tokens = tokens.to_kind(Kind::Double);
    let mean = tokens.mean_dim(0, true, Kind::Double); // [1, K]
    angle(&tokens, &mean.expand_as(&tokens)).square().mean(Kind::Double).double_value(&[])
}

/// The angle between vectors in radians, 0 to π: `[.., K]` twice → `[..]`, in the type given.
///
/// It is `2 atan2(|u - v|, |u + v|)` of the unit vectors `u` and `v`, which is exact to rounding at every angle. The arc cosine is not: near
/// a cosine of 1 it loses half of the digits, and its derivative has no bound.
fn angle(a: &Tensor, b: &Tensor) -> Tensor {
    let length = |x: &Tensor, keepdim: bool| x.norm_scalaropt_dim(2, -1, keepdim);
    let unit = |x: &Tensor| x / length(x, true).clamp_min(COSINE_EPS);
    let (u, v) = (unit(a), unit(b));
    length(&(&u - &v), false).atan2(&length(&(u + v), false)) * 2.0
}

#[cfg(test)]
mod tests;
