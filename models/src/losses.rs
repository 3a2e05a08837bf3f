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
}

impl MimicLoss {
    /// `pred`, `target` `[N, .., K]`, the target normalized → a scalar, f32.
    pub fn forward(self, pred: &Tensor, target: &Tensor) -> Tensor {
        let (pred, target) = (pred.to_kind(Kind::Float), target.to_kind(Kind::Float));
        match self {
            MimicLoss::L2 => (pred - target).square().mean(None),
            MimicLoss::SmoothL1 { beta } => pred.smooth_l1_loss(&target, tch::Reduction::Mean, beta),
            MimicLoss::Cosine => 1.0 - Tensor::cosine_similarity(&pred, &target, -1, 1e-8).mean(None),
        }
    }
}

#[cfg(test)]
mod tests;
