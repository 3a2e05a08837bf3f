//! Losses and the normalisation of their targets. Everything here computes in f32, whatever it is given.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// Normalises each patch to mean 0 and variance 1: `norm_pix_loss` of MAE. `[N, L, p²·3] → [N, L, p²·3]`.
///
/// The variance is *unbiased* (torch's `var`; at p = 16 the biased one differs by 0.13 %) with 1e-6 added. Source: He et al. 2022,
/// `models_mae.py::forward_loss`.
pub fn norm_pix(target: &Tensor) -> Tensor {
    let target = target.to_kind(Kind::Float);
    let mean = target.mean_dim(-1, true, None);
    let var = target.var_dim(-1, true, true);
    (target - mean) / (var + 1e-6).sqrt()
}

/// Mean squared error over *removed* patches: mean over a patch, then over the removed patches of the whole batch.
///
/// `pred`, `target`: `[N, L, p²·3]`. `mask`: `[N, L]`, 0 = seen, 1 = removed. A scalar; NaN if nothing is removed. Source:
/// `models_mae.py::forward_loss`.
pub fn masked_patch_loss(pred: &Tensor, target: &Tensor, mask: &Tensor) -> Tensor {
    let difference = pred.to_kind(Kind::Float) - target.to_kind(Kind::Float);
    let per_patch = difference.square().mean_dim(-1, false, None); // [N, L]
    (per_patch * mask).sum(None) / mask.sum(None)
}

/// What is done to a teacher's token before it is a target. Done at load and never at store: a cache serves every choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TargetNorm {
    /// Nothing: the paper's equation to the letter. Channels of large variance then have most of the loss.
    None,
    /// LayerNorm of each token without scale and shift (eps 1e-6): what the neighbouring methods agree on.
    #[default]
    Ln,
    /// Length √K. The mean over channels of the squared difference is then the sum over channels for unit vectors, the form that
    /// MILAN and others use, and weighs about as much as with [`TargetNorm::Ln`].
    L2,
}

impl TargetNorm {
    /// `[.., K] → [.., K]`, f32. A token of zeros stays one.
    pub fn forward(self, target: &Tensor) -> Tensor {
        let target = target.to_kind(Kind::Float);
        let width = *target.size().last().expect("a target has channels");
        match self {
            TargetNorm::None => target,
            TargetNorm::Ln => {
                target.layer_norm([width], None::<Tensor>, None::<Tensor>, 1e-6, true)
            }
            TargetNorm::L2 => {
                let length = target
                    .square()
                    .sum_dim_intlist(-1, true, None)
                    .sqrt()
                    .clamp_min(1e-12);
                target / length * (width as f64).sqrt()
            }
        }
    }
}

/// Mean squared difference between a head's output and the teacher's tokens, over tokens and channels: a scalar.
///
/// `pred`, `target`: `[N, keep, K]`, the target normalised. The paper sums over channels; the mean keeps the loss comparable
/// between teachers of different width and with the pixel loss (for a B/16 student and a B teacher, 768 numbers each, the ratio
/// of the two is the paper's).
pub fn mimic_loss(pred: &Tensor, target: &Tensor) -> Tensor {
    (pred.to_kind(Kind::Float) - target.to_kind(Kind::Float))
        .square()
        .mean(None)
}

#[cfg(test)]
mod tests;
