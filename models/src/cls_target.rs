//! From a teacher's CLS token to what is mimicked, and how far the student is from it.
//!
//! CLS tokens have statistics of their own: their channels' means and variances are not those of patch tokens (UNIC, arXiv 2408.05088,
//! and EUPE, arXiv 2603.22387, section 3.3, measure both), and their directions fill a cone whose width differs between teachers (C-RADIOv4,
//! arXiv 2601.17237, section 2.5).

use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};
use crate::losses::{ClsLoss, angular_dispersion};
use crate::params::{ParamStore, Scope};
use crate::targets::{Target, TargetNorm, TargetStats};

/// Statistics of a data set's CLS tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct ClsStats {
    /// Means and variances of the channels of the tokens as they are stored; without covariance.
    pub channels: TargetStats,
    /// [`angular_dispersion`] of the normalized tokens, radians².
    pub dispersion: f64,
}

impl ClsStats {
    /// Statistics of `tokens` `[V, K]`, of any floating type, that become targets by `norm`.
    ///
    /// # Errors
    /// [`Error::Config`] for [`TargetNorm::PhiS`], which is defined for patch tokens, and if [`TargetNorm::Standardize`] meets tokens that do not
    /// vary.
    pub fn measure(id: &str, tokens: &Tensor, norm: TargetNorm) -> Result<Self> {
        let tokens = tokens.to_kind(Kind::Double).to_device(Device::Cpu);
        let vector = |t: &Tensor| Vec::<f64>::try_from(t.contiguous()).expect("a tensor of doubles");
        let channels = TargetStats {
            mean: vector(&tokens.mean_dim(0, false, Kind::Double)),
            variance: vector(&tokens.var_dim(0, false, false)),
            covariance: None,
        };
        let scratch = ParamStore::frozen(Device::Cpu);
        let target = target(&scratch.root(), id, norm, tokens.size()[1], Some(&channels))?;
        let dispersion = angular_dispersion(&target.forward(&tokens));
        Ok(Self { channels, dispersion })
    }

    /// Statistics for where values come later or do not matter.
    pub fn standard(width: usize) -> Self {
        let channels = TargetStats { mean: vec![0.0; width], variance: vec![1.0; width], covariance: None };
        Self { channels, dispersion: 1.0 }
    }
}

/// The normalization of one teacher's CLS tokens, and the loss.
#[derive(Debug)]
pub(crate) struct ClsTarget {
    target: Target,
    loss: ClsLoss,
    /// `[1]`.
    dispersion: Option<Tensor>,
}

impl ClsTarget {
    /// For the teacher `id` of width `K`. What comes from `stats` is saved with the parameters, as `mimic_cls_targets.<id>.mean [K]` and
    /// `.scale [K]` for [`TargetNorm::Standardize`] and `.dispersion [1]` for [`ClsLoss::Angle`].
    ///
    /// # Errors
    /// [`Error::Config`] if statistics are needed and absent or not of this width, if the tokens do not vary, or for
    /// [`TargetNorm::PhiS`], which is defined for patch tokens.
    pub(crate) fn new(
        scope: &Scope,
        id: &str,
        (norm, loss): (TargetNorm, ClsLoss),
        width: i64,
        stats: Option<&ClsStats>,
    ) -> Result<Self> {
        let scope = scope.sub("mimic_cls_targets").sub(id);
        let target = target(&scope, id, norm, width, stats.map(|stats| &stats.channels))?;
        let dispersion = match loss {
            ClsLoss::Mimic(_) => None,
            ClsLoss::Angle => {
                let dispersion = stats.map(|stats| stats.dispersion).filter(|d| d.is_finite() && *d > 0.0);
                let dispersion = dispersion.ok_or_else(|| Error::Config {
                    field: "cls_loss",
                    value: format!("angle of {id}"),
                    reason: "needs CLS tokens that were measured and do not all have one direction".to_owned(),
                })?;
                Some(scope.buffer("dispersion", &Tensor::from_slice(&[dispersion])))
            }
        };
        Ok(Self { target, loss, dispersion })
    }

    /// The mean loss of `pred` `[N, K]` for the teacher's CLS tokens `cls` `[N, K]`, as stored: a scalar, f32.
    pub(crate) fn loss(&self, pred: &Tensor, cls: &Tensor) -> Tensor {
        self.loss.forward(pred, &self.target.forward(cls), self.dispersion.as_ref())
    }

    /// [`ClsTarget::loss`] of each image alone: `[N]`.
    pub(crate) fn loss_per_image(&self, pred: &Tensor, cls: &Tensor) -> Tensor {
        self.loss.per_image(pred, &self.target.forward(cls), self.dispersion.as_ref())
    }
}

fn target(scope: &Scope, id: &str, norm: TargetNorm, width: i64, stats: Option<&TargetStats>) -> Result<Target> {
    if norm == TargetNorm::PhiS {
        let reason = "phi_s rotates patch tokens; standardize brings CLS tokens to one scale".to_owned();
        return Err(Error::Config { field: "cls_norm", value: format!("phi_s of {id}"), reason });
    }
    Target::within(scope, id, norm, width, stats)
}

#[cfg(test)]
mod tests;
