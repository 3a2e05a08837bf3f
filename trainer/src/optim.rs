//! Optimizers over named parameters: which of them decay, and at which rate each learns.

use std::collections::BTreeMap;

use tch::Tensor;
use torch_ext::{AdamWConfig, FusedAdamW};

use crate::config;

pub mod lars;
pub mod layer_decay;

/// Fused AdamW in two groups: weight decay for what has two or more axes, none for biases and norms.
///
/// The same split as MAE's code (timm's `add_weight_decay`): CLS and mask tokens are 3-D and decay. The learning rate is set
/// before every step, see [`set_lr`].
pub fn adamw(params: BTreeMap<String, Tensor>, config: &config::Optim) -> FusedAdamW {
    let [beta1, beta2] = config.betas;
    let mut optim = FusedAdamW::new(AdamWConfig { beta1, beta2, eps: config.eps });
    let (decay, no_decay): (Vec<_>, Vec<_>) = params.into_iter().partition(|(_, param)| param.dim() >= 2);
    optim.add_group(decay, 0.0, config.weight_decay);
    optim.add_group(no_decay, 0.0, 0.0);
    optim
}

/// Sets the learning rate of every group.
pub fn set_lr(optim: &mut FusedAdamW, lr: f64) {
    for group in 0..optim.num_groups() {
        optim.set_lr(group, lr);
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::config::Recipe;

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
        let mut optim = adamw(handles, &recipe.optim);
        set_lr(&mut optim, 0.1);
        for param in params.values() {
            (param * 0.0).sum(Kind::Float).backward();
        }
        optim.step().unwrap();
        for (name, param) in &params {
            let expected = if param.dim() >= 2 { 1.0 - 0.1 * 0.5 } else { 1.0 };
            let found = param.max().double_value(&[]);
            assert!((found - expected).abs() < 1e-6, "{name}: {found}, expected {expected}");
        }
    }
}
