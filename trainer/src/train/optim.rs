//! AdamW over named parameters, in groups that differ in weight decay and learning rate.

use std::collections::BTreeMap;

use tch::Tensor;
use torch_ext::FusedAdamW;

use crate::recipe::Optim;

pub(crate) mod lars;
mod layer_decay;

/// AdamW in groups of equal learning rate and decay.
#[derive(Debug)]
pub(crate) struct Optimizer {
    adamw: FusedAdamW,
    /// The learning rate of each group, as a factor of the schedule's.
    lr_scales: Vec<f64>,
}

impl Optimizer {
    /// For pretraining, in two groups: parameters with two or more axes decay; biases and norms do not.
    ///
    /// The same split as MAE's code (timm's `add_weight_decay`): CLS and mask tokens are 3-D and decay.
    pub(crate) fn for_pretraining(params: BTreeMap<String, Tensor>, config: &Optim) -> Optimizer {
        let mut adamw = FusedAdamW::new(config.adamw());
        let (decay, no_decay): (Vec<_>, Vec<_>) = params.into_iter().partition(|(_, param)| param.dim() >= 2);
        adamw.add_group(decay, 0.0, config.weight_decay);
        adamw.add_group(no_decay, 0.0, 0.0);
        Optimizer { adamw, lr_scales: vec![1.0; 2] }
    }

    /// For fine-tuning, in two groups per layer: the nearer a layer is to the pixels, the slower it learns (`optim.layer_decay`).
    pub(crate) fn for_finetuning(params: BTreeMap<String, Tensor>, config: &Optim) -> Optimizer {
        let mut adamw = FusedAdamW::new(config.adamw());
        let mut lr_scales = Vec::new();
        for group in layer_decay::groups(params, config.layer_decay.unwrap_or(1.0)) {
            adamw.add_group(group.params, 0.0, if group.decays { config.weight_decay } else { 0.0 });
            lr_scales.push(group.lr_scale);
        }
        Optimizer { adamw, lr_scales }
    }

    /// Sets the learning rate of the last layer; the others are multiples of it.
    pub(crate) fn set_lr(&mut self, lr: f64) {
        for (group, scale) in self.lr_scales.iter().enumerate() {
            self.adamw.set_lr(group, lr * scale);
        }
    }

    pub(crate) fn zero_grad(&mut self) {
        self.adamw.zero_grad();
    }

    /// The gradients of all parameters that have one.
    pub(crate) fn grads(&self) -> Vec<Tensor> {
        self.adamw.grads()
    }

    /// Takes the step if `finite`, a bool scalar on the parameters' device, is true.
    pub(crate) fn step_if(&mut self, finite: &Tensor) -> anyhow::Result<()> {
        Ok(self.adamw.step_if(finite)?)
    }

    /// Handles on moments and step counts, by name. Learning rates are not part of it.
    pub(crate) fn state(&self) -> BTreeMap<String, Tensor> {
        self.adamw.state()
    }

    /// Replaces the state by a copy of one that [`Optimizer::state`] returned.
    ///
    /// # Errors
    /// If an entry is missing, unexpected or misshaped; the message names it, and nothing has been changed.
    pub(crate) fn load_state(&mut self, saved: &BTreeMap<String, Tensor>) -> anyhow::Result<()> {
        Ok(self.adamw.load_state(saved)?)
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::recipe::{Experiment, Recipe};

    /// With a gradient of zero only the decay moves a parameter: by the factor 1 - lr * weight_decay.
    #[test]
    fn matrices_and_tokens_decay_and_vectors_do_not() {
        let ones = |shape: &[i64]| Tensor::ones(shape, (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let params: BTreeMap<String, Tensor> = [
            ("blocks.0.attn.qkv.weight".to_owned(), ones(&[6, 2])),
            ("blocks.0.attn.qkv.bias".to_owned(), ones(&[6])),
            ("cls_token".to_owned(), ones(&[1, 1, 2])),
            ("norm.weight".to_owned(), ones(&[2])),
        ]
        .into();
        let text = "[optim]\nbatch_size = 1\nweight_decay = 0.5\n[schedule]\nepochs = 1\n";
        let recipe = Recipe::parse(text, "test", &[]).unwrap();
        let handles = params.iter().map(|(n, t)| (n.clone(), t.shallow_clone())).collect();
        let mut optim = Optimizer::for_pretraining(handles, &recipe.optim);
        optim.set_lr(0.1);
        for param in params.values() {
            (param * 0.0).sum(Kind::Float).backward();
        }
        optim.adamw.step().unwrap();
        for (name, param) in &params {
            let expected = if param.dim() >= 2 { 1.0 - 0.1 * 0.5 } else { 1.0 };
            let found = param.max().double_value(&[]);
            assert!((found - expected).abs() < 1e-6, "{name}: {found}, expected {expected}");
        }
    }
}
