//! LARS (You et al. 2017) for a stack of networks that are trained side by side, each with its own learning rate.
//!
//! A probe is so small that trying a dozen learning rates costs hardly more than one, if one pass over the features serves them
//! all. The networks share nothing but the batches: the first axis of every parameter counts them, and each has its own trust
//! ratio and rate.
//!
//! Agrees with the optimizer of MAE's linear probe (`facebookresearch/mae`, `util/lars.py`). Nothing here waits for the device.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

#[cfg(test)]
mod tests;

/// What all networks and parameters share.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct LarsConfig {
    /// Decay of the running sum of updates.
    pub momentum: f64,
    /// Norm of an update relative to its parameter's norm, before the learning rate.
    pub trust_coefficient: f64,
    /// Multiple of the parameter that is added to its gradient before the trust ratio is computed.
    pub weight_decay: f64,
}

impl Default for LarsConfig {
    /// The values of MAE's linear probe.
    fn default() -> Self {
        Self { momentum: 0.9, trust_coefficient: 0.001, weight_decay: 0.0 }
    }
}

/// The optimizer of `R` networks.
#[derive(Debug)]
pub(crate) struct Lars {
    config: LarsConfig,
    /// `[R]` f32 on the device.
    lrs: Tensor,
    params: BTreeMap<String, State>,
}

#[derive(Debug)]
struct State {
    /// `[R, ..]`.
    param: Tensor,
    /// `[R, ..]`: the running sum of updates.
    mu: Tensor,
}

impl Lars {
    /// An optimizer of the stacked parameters `[R, ..]`, by name, with the learning rate of each of the `R` networks.
    ///
    /// # Panics
    /// If the first axis of a parameter is not `R`, or there is no parameter.
    pub(crate) fn new(config: LarsConfig, lrs: &[f64], params: BTreeMap<String, Tensor>) -> Lars {
        let device = params.values().next().expect("there is something to train").device();
        let stacked = |(name, param): (String, Tensor)| {
            assert_eq!(param.size()[0], lrs.len() as i64, "networks of {name}");
            let mu = param.detach().zeros_like();
            (name, State { param, mu })
        };
        Lars {
            config,
            lrs: Tensor::from_slice(lrs).to_kind(Kind::Float).to_device(device),
            params: params.into_iter().map(stacked).collect(),
        }
    }

    /// Sets all gradients to zero.
    pub(crate) fn zero_grad(&mut self) {
        for state in self.params.values_mut() {
            state.param.zero_grad();
        }
    }

    /// One step of every parameter that has a gradient, at `lr_scale` times each network's learning rate.
    ///
    /// `u = g + weight_decay · p`, scaled by `trust_coefficient · |p| / |u|` unless either length is zero; then
    /// `mu = momentum · mu + u` and `p -= lr · mu`. Parameters with one axis per network (biases) neither decay nor are scaled.
    pub(crate) fn step(&mut self, lr_scale: f64) {
        let LarsConfig { momentum, trust_coefficient, weight_decay } = self.config;
        tch::no_grad(|| {
            for state in self.params.values_mut() {
                let mut update = state.param.grad();
                if !update.defined() {
                    continue;
                }
                let mut per_network = vec![1; state.param.dim()];
                per_network[0] = -1;
                if state.param.dim() > 2 {
                    // Not in place: this is the gradient itself.
                    update = &update + &state.param * weight_decay;
                    let (p, u) = (lengths(&state.param), lengths(&update));
                    let known = p.gt(0.0).logical_and(&u.gt(0.0));
                    let trust = (p * trust_coefficient / u).where_self(&known, &known.ones_like().to_kind(Kind::Float));
                    update *= trust.view(&per_network[..]);
                }
                state.mu *= momentum;
                state.mu += update;
                let _ = state.param.subtract_(&(&state.mu * (&self.lrs * lr_scale).view(&per_network[..])));
            }
        });
    }
}

/// The 2-norm of each network's part of `x [R, ..]`: `[R]`.
fn lengths(x: &Tensor) -> Tensor {
    x.flatten(1, -1).square().sum_dim_intlist(1, false, None).sqrt()
}
