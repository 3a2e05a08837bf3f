//! An exponential moving average of parameters, which generalizes better than the last step's parameters and may replace them in evaluation
//! (Polyak and Juditsky 1992; Tarvainen and Valpola 2017 for networks).
//!
//! Agrees with `torch.optim.swa_utils.get_ema_multi_avg_fn`: each average starts as its parameter and moves by a share
//! `1 - decay` of the difference after every step.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use crate::error::{Error, Result};
use crate::ffi;

/// Averages of parameters.
#[derive(Debug)]
pub struct Ema {
    params: BTreeMap<String, Tensor>,
    averages: BTreeMap<String, Tensor>,
}

impl Ema {
    /// Averages that start at the current `params`.
    pub fn new(params: BTreeMap<String, Tensor>) -> Self {
        let copy = |(name, param): (&String, &Tensor)| (name.clone(), param.detach().copy());
        Self { averages: params.iter().map(copy).collect(), params }
    }

    /// Sets every average to `decay` times itself plus `1 - decay` times its parameter if `go` (a scalar boolean, for example from
    /// [`all_finite`](crate::all_finite)) is true; else nothing changes. The device decides, so the host does not wait.
    ///
    /// # Errors
    /// If libtorch reports an error.
    pub fn update_if(&mut self, decay: f64, go: &Tensor) -> Result<()> {
        let weight = go.to_kind(Kind::Float) * (1.0 - decay);
        let averages = ffi::pointers(self.averages.values());
        let params = ffi::pointers(self.params.values());
        // SAFETY: both lists have the same names in the same order, so they are equally long; `self`, exclusively borrowed, keeps
        // their tensors alive. Values of the averages change, shapes and storage do not.
        let code =
            unsafe { ffi::te_ema_update(averages.as_ptr(), params.as_ptr(), averages.len() as i64, weight.as_ptr()) };
        ffi::check("the moving average", code)
    }

    /// Handles on the averages, by the names of their parameters.
    pub fn state(&self) -> BTreeMap<String, Tensor> {
        let handle = |(name, average): (&String, &Tensor)| (name.clone(), average.shallow_clone());
        self.averages.iter().map(handle).collect()
    }

    /// Replaces the averages by those of [`Ema::state`]. Other names in `saved` (buffers, in a file of a whole network) are
    /// ignored.
    ///
    /// # Errors
    /// [`Error::EmaState`] for a missing or misshaped average; then nothing is changed.
    pub fn load_state(&mut self, saved: &BTreeMap<String, Tensor>) -> Result<()> {
        for (name, average) in &self.averages {
            let problem = match saved.get(name) {
                None => "missing".to_owned(),
                Some(t) if t.size() != average.size() => {
                    format!("shape {:?}, the parameter's is {:?}", t.size(), average.size())
                }
                Some(_) => continue,
            };
            return Err(Error::EmaState { param: name.clone(), problem });
        }
        tch::no_grad(|| {
            for (name, average) in &mut self.averages {
                average.copy_(&saved[name]);
            }
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests;
