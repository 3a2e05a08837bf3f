//! From a teacher's tokens to what is mimicked.
//!
//! Normalization happens here, when features are used, and never when they are stored: one cache serves every choice. Everything is
//! computed in f32, also inside a bf16 scope.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use torch_ext::{Autocast, linear};

use crate::error::{Error, Result};
use crate::params::Scope;

mod hadamard;

pub use hadamard::hadamard;

/// How a teacher's token is normalized before it becomes a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TargetNorm {
    /// Not at all: the paper's equation as written. Channels of large variance then dominate the loss.
    None,
    /// LayerNorm of each token without scale and shift (eps 1e-6): what the neighboring methods agree on.
    #[default]
    Ln,
    /// Length √K. The mean over channels of the squared difference is then the sum over channels for unit vectors, the form that
    /// MILAN and others use, and weighs about as much as with [`TargetNorm::Ln`].
    L2,
    /// Each channel to mean 0 and variance 1 over the data set, as Theia does for several teachers at once. A channel that never changes
    /// is 0.
    Standardize,
    /// PHI-S (Ranzinger et al. 2024, arXiv 2410.01680): rotated so that every channel has the same variance, then divided by one number.
    /// Distances keep their ratios, as they do not under [`TargetNorm::Standardize`], and teachers become comparable all the same.
    PhiS,
}

impl TargetNorm {
    /// Whether it needs [`TargetStats`].
    pub fn needs_stats(self) -> bool {
        matches!(self, TargetNorm::Standardize | TargetNorm::PhiS)
    }

    /// The normalization of CLS tokens where only that of patch tokens is given: the same, but [`TargetNorm::Ln`] for the two that need
    /// statistics, since those are of patch tokens.
    pub fn without_stats(self) -> Self {
        if self.needs_stats() { TargetNorm::Ln } else { self }
    }

    /// `[.., K] → [.., K]`, f32, of what a token alone decides: [`TargetNorm::without_stats`]. A token of zeros stays one.
    pub(crate) fn per_token(self, target: &Tensor) -> Tensor {
        let target = target.to_kind(Kind::Float);
        let width = *target.size().last().expect("a target has channels");
        match self {
            TargetNorm::None => target,
            TargetNorm::Ln | TargetNorm::Standardize | TargetNorm::PhiS => {
                target.layer_norm([width], None::<Tensor>, None::<Tensor>, 1e-6, true)
            }
            TargetNorm::L2 => {
                let length = target.square().sum_dim_intlist(-1, true, None).sqrt().clamp_min(1e-12);
                target / length * (width as f64).sqrt()
            }
        }
    }
}

/// Statistics of the tokens of a data set, by channel.
#[derive(Debug, Clone, PartialEq)]
pub struct TargetStats {
    /// `[K]`.
    pub mean: Vec<f64>,
    /// `[K]`, over all tokens (not the unbiased one).
    pub variance: Vec<f64>,
    /// `[K, K]`, row-major; [`TargetNorm::PhiS`] alone needs it.
    pub covariance: Option<Vec<f64>>,
}

impl TargetStats {
    /// Statistics of uncorrelated channels of mean 0 and variance 1, for where values come later or do not matter.
    pub fn standard(width: usize) -> Self {
        let mut covariance = vec![0.0; width * width];
        covariance.iter_mut().step_by(width + 1).for_each(|v| *v = 1.0);
        Self { mean: vec![0.0; width], variance: vec![1.0; width], covariance: Some(covariance) }
    }
}

/// The normalization of one teacher's tokens.
#[derive(Debug)]
pub struct Target {
    norm: TargetNorm,
    /// `[K]`.
    mean: Option<Tensor>,
    /// `[K]` or `[K, K]`.
    scale: Option<Tensor>,
}

impl Target {
    /// For patch tokens, of width `K`, of the teacher `id`. What comes from `stats` is saved with the parameters, as
    /// `mimic_targets.<id>.mean [K]` and `mimic_targets.<id>.scale` (`[K]`, or `[K, K]` for [`TargetNorm::PhiS`]): a resumed run has the
    /// same targets to the bit.
    ///
    /// # Errors
    /// [`Error::Config`] if the normalization needs statistics and they are absent, not of this width, or without any variance, or
    /// if no Hadamard matrix of this width is known (see [`hadamard`]).
    pub fn new(scope: &Scope, id: &str, norm: TargetNorm, width: i64, stats: Option<&TargetStats>) -> Result<Self> {
        Self::within(&scope.sub("mimic_targets").sub(id), id, norm, width, stats)
    }

    /// [`Target::new`] with `mean` and `scale` directly under `scope`.
    pub(crate) fn within(
        scope: &Scope,
        id: &str,
        norm: TargetNorm,
        width: i64,
        stats: Option<&TargetStats>,
    ) -> Result<Self> {
        let mut target = Self { norm, mean: None, scale: None };
        if !norm.needs_stats() {
            return Ok(target);
        }
        let refuse =
            |reason: String| Error::Config { field: "target_norm", value: format!("{norm:?} of {id}"), reason };
        let stats = stats.ok_or_else(|| refuse("needs statistics of the teacher's features".to_owned()))?;
        let k = usize::try_from(width).unwrap_or_default();
        if stats.mean.len() != k || stats.variance.len() != k {
            return Err(refuse(format!("statistics of {} channels for {width}", stats.mean.len())));
        }
        let mean_variance = stats.variance.iter().sum::<f64>() / k as f64;
        if !(mean_variance.is_finite() && mean_variance > 0.0) {
            return Err(refuse("the features do not vary".to_owned()));
        }
        let scale = match norm {
            TargetNorm::PhiS => {
                let covariance = stats.covariance.as_ref().filter(|c| c.len() == k * k);
                let covariance = covariance.ok_or_else(|| refuse("needs the channels' covariance".to_owned()))?;
                phi_s(covariance, k).ok_or_else(|| {
                    refuse(format!("no Hadamard matrix of width {width} is known here: use standardize"))
                })?
            }
            // A channel that never changes says nothing; dividing by next to nothing would make it noise.
            _ => {
                let scale = stats.variance.iter().map(|&variance| {
                    let varies = variance > 1e-12 * mean_variance;
                    if varies { variance.sqrt().recip() } else { 0.0 }
                });
                Tensor::from_slice(&scale.collect::<Vec<f64>>())
            }
        };
        target.mean = Some(scope.buffer("mean", &Tensor::from_slice(&stats.mean)));
        target.scale = Some(scope.buffer("scale", &scale));
        Ok(target)
    }

    /// The normalization.
    pub fn norm(&self) -> TargetNorm {
        self.norm
    }

    /// Tokens `[.., K] → [.., K]`, f32.
    pub fn forward(&self, tokens: &Tensor) -> Tensor {
        let (Some(mean), Some(scale)) = (&self.mean, &self.scale) else {
            return self.norm.per_token(tokens);
        };
        let centered = tokens.to_kind(Kind::Float) - mean;
        if scale.dim() == 1 {
            return centered * scale;
        }
        let _f32 = Autocast::pause(tokens.device());
        linear(&centered, scale, None)
    }
}

/// `H Uᵀ / √(mean eigenvalue)` for a covariance `[k, k]` with eigenvectors `U` and the normalized Hadamard matrix `H`: every channel of
/// the result has variance `Σ eigenvalues / k`, since the entries of `H` are `±1/√k`, before the division.
fn phi_s(covariance: &[f64], k: usize) -> Option<Tensor> {
    let hadamard = hadamard(k)?;
    let side = k as i64;
    let covariance = Tensor::from_slice(covariance).reshape([side, side]);
    let (eigenvalues, eigenvectors) = covariance.linalg_eigh("L");
    let alpha = eigenvalues.mean(Kind::Double).rsqrt();
    let h = Tensor::from_slice(&hadamard).reshape([side, side]).to_kind(Kind::Double) / (k as f64).sqrt();
    Some((h.matmul(&eigenvectors.tr()) * alpha).to_device(Device::Cpu))
}

#[cfg(test)]
mod tests;
