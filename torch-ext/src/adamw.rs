//! AdamW (Loshchilov and Hutter 2019) in one kernel per group, with state that can be read and restored.
//!
//! tch's optimizer is not fused, and its moments cannot be read or saved. Here they are tensors under the parameter's name,
//! so that a checkpoint can hold them and a resumed run takes the same steps. Agrees with `torch.optim.AdamW(fused=True)`.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use crate::error::{Error, Result};
use crate::ffi;
use crate::grads::remove_grads;

/// Settings that all groups share.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWConfig {
    /// Decay of the mean of gradients. MAE pretrains with 0.9.
    pub beta1: f64,
    /// Decay of the mean of squared gradients. MAE pretrains with 0.95 (PyTorch's default is 0.999).
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
}

impl Default for AdamWConfig {
    /// MAE's pretraining values.
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.95, eps: 1e-8 }
    }
}

/// The optimizer.
#[derive(Debug)]
pub struct FusedAdamW {
    config: AdamWConfig,
    groups: Vec<Group>,
}

#[derive(Debug)]
struct Group {
    lr: f64,
    weight_decay: f64,
    params: Vec<(String, State)>,
}

#[derive(Debug)]
struct State {
    param: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    /// An f32 scalar on the parameter's device, as the fused kernel needs it; exact up to 2²⁴ steps.
    step: Tensor,
}

/// Prefixes of the three tensors of each parameter in a state: `exp_avg.<param>` etc.
const KEYS: [&str; 3] = ["exp_avg", "exp_avg_sq", "step"];

impl FusedAdamW {
    /// An optimizer without parameters.
    pub fn new(config: AdamWConfig) -> Self {
        Self { config, groups: Vec::new() }
    }

    /// Adds parameters that share a learning rate and a weight decay; returns the group's index.
    ///
    /// # Panics
    /// If a name is already in the optimizer, because its state would be ambiguous.
    pub fn add_group(
        &mut self,
        params: impl IntoIterator<Item = (String, Tensor)>,
        lr: f64,
        weight_decay: f64,
    ) -> usize {
        let mut group = Group { lr, weight_decay, params: Vec::new() };
        for (name, param) in params {
            let taken = self.groups.iter().chain([&group]).any(|g| g.params.iter().any(|(n, _)| *n == name));
            assert!(!taken, "{name} is in the optimizer twice");
            let state = State {
                exp_avg: param.detach().zeros_like(),
                exp_avg_sq: param.detach().zeros_like(),
                step: Tensor::zeros([0; 0], (Kind::Float, param.device())),
                param,
            };
            group.params.push((name, state));
        }
        self.groups.push(group);
        self.groups.len() - 1
    }

    /// Sets a group's learning rate for the next steps.
    pub fn set_lr(&mut self, group: usize, lr: f64) {
        self.groups[group].lr = lr;
    }

    /// A group's learning rate.
    pub fn lr(&self, group: usize) -> f64 {
        self.groups[group].lr
    }

    /// Number of groups.
    pub fn num_groups(&self) -> usize {
        self.groups.len()
    }

    /// Removes all gradients, so that the next step skips a parameter without a new one: [`remove_grads`].
    pub fn zero_grad(&mut self) {
        remove_grads(self.groups.iter().flat_map(|g| &g.params).map(|(_, s)| &s.param));
    }

    /// Handles on the existing gradients, ordered by group, then as added.
    pub fn grads(&self) -> Vec<Tensor> {
        let params = self.groups.iter().flat_map(|g| &g.params);
        params.map(|(_, state)| state.param.grad()).filter(Tensor::defined).collect()
    }

    /// One step for every parameter that has a gradient.
    ///
    /// # Errors
    /// If libtorch reports an error.
    pub fn step(&mut self) -> Result<()> {
        self.fused_step(None)
    }

    /// One step if `go` (a scalar boolean, for example from [`all_finite`](crate::all_finite)) is true; else nothing changes, not even step
    /// counts. The device decides, so the host does not wait.
    ///
    /// # Errors
    /// If libtorch reports an error.
    pub fn step_if(&mut self, go: &Tensor) -> Result<()> {
        self.fused_step(Some(&go.logical_not().to_kind(Kind::Float)))
    }

    fn fused_step(&mut self, found_inf: Option<&Tensor>) -> Result<()> {
        let AdamWConfig { beta1, beta2, eps } = self.config;
        for group in &self.groups {
            let with_grad: Vec<(&State, Tensor)> = group
                .params
                .iter()
                .map(|(_, state)| (state, state.param.grad()))
                .filter(|(_, grad)| grad.defined())
                .collect();
            let params = ffi::pointers(with_grad.iter().map(|(s, _)| &s.param));
            let grads = ffi::pointers(with_grad.iter().map(|(_, g)| g));
            let exp_avgs = ffi::pointers(with_grad.iter().map(|(s, _)| &s.exp_avg));
            let exp_avg_sqs = ffi::pointers(with_grad.iter().map(|(s, _)| &s.exp_avg_sq));
            let steps = ffi::pointers(with_grad.iter().map(|(s, _)| &s.step));
            let found_inf = found_inf.map_or(std::ptr::null(), Tensor::as_ptr);
            // SAFETY: the five lists are equally long and point at tensors that `with_grad` and `self` keep alive; `self` is
            // exclusively borrowed. Values change, shapes and storage do not.
            let code = unsafe {
                ffi::te_fused_adamw(
                    params.as_ptr(),
                    grads.as_ptr(),
                    exp_avgs.as_ptr(),
                    exp_avg_sqs.as_ptr(),
                    steps.as_ptr(),
                    params.len() as i64,
                    group.lr,
                    beta1,
                    beta2,
                    group.weight_decay,
                    eps,
                    found_inf,
                )
            };
            ffi::check("the AdamW step", code)?;
        }
        Ok(())
    }

    /// Handles on the whole state: `exp_avg.<param>`, `exp_avg_sq.<param>`, `step.<param>`. Learning rates and decays come from
    /// the recipe and are not part of the state.
    pub fn state(&self) -> BTreeMap<String, Tensor> {
        let mut out = BTreeMap::new();
        for (name, state) in self.groups.iter().flat_map(|g| &g.params) {
            for (key, tensor) in KEYS.into_iter().zip([&state.exp_avg, &state.exp_avg_sq, &state.step]) {
                out.insert(format!("{key}.{name}"), tensor.shallow_clone());
            }
        }
        out
    }

    /// Replaces the state by one from [`FusedAdamW::state`].
    ///
    /// # Errors
    /// [`Error::OptimizerState`] for a missing, unexpected or misshaped entry; then nothing is changed.
    pub fn load_state(&mut self, saved: &BTreeMap<String, Tensor>) -> Result<()> {
        let own = self.state();
        let wrong = |param: &str, problem: String| Err(Error::OptimizerState { param: param.to_owned(), problem });
        for (name, tensor) in &own {
            match saved.get(name) {
                None => return wrong(name, "missing".to_owned()),
                Some(t) if t.size() != tensor.size() => {
                    return wrong(name, format!("shape {:?}, the parameter's is {:?}", t.size(), tensor.size()));
                }
                Some(_) => {}
            }
        }
        if let Some(name) = saved.keys().find(|name| !own.contains_key(*name)) {
            return wrong(name, "unexpected: the network has no such parameter".to_owned());
        }
        tch::no_grad(|| {
            for (name, mut tensor) in own {
                tensor.copy_(&saved[&name]);
            }
        });
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests;
