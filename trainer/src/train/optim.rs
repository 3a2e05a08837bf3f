//! AdamW over named parameters, in groups that differ in weight decay and learning rate.

use std::collections::BTreeMap;

use tch::Tensor;
use torch_ext::{FusedAdamW, remove_grads};

use crate::dist::World;
use crate::recipe::Optim;

pub(crate) mod lars;
mod layer_decay;
mod shards;

use shards::Shards;

/// AdamW in groups of equal learning rate and decay.
#[derive(Debug)]
pub(crate) struct Optimizer {
    /// Updates the parameters that are this process's own.
    adamw: FusedAdamW,
    /// The learning rate of each group, as a factor of the schedule's.
    lr_scales: Vec<f64>,
    /// All parameters, group by group.
    params: Vec<(String, Tensor)>,
    /// Who updates which, if they are divided among processes.
    shards: Option<Shards>,
}

/// Parameters of equal learning rate and decay.
struct Group {
    params: Vec<(String, Tensor)>,
    weight_decay: f64,
    lr_scale: f64,
}

impl Optimizer {
    /// For pretraining, in two groups: parameters with two or more axes decay; biases and norms do not.
    ///
    /// The same split as MAE's code (timm's `add_weight_decay`): CLS and mask tokens are 3-D and decay.
    pub(crate) fn for_pretraining(params: BTreeMap<String, Tensor>, config: &Optim, world: &World) -> Optimizer {
        let (decay, no_decay): (Vec<_>, Vec<_>) = params.into_iter().partition(|(_, param)| param.dim() >= 2);
        let group = |params, weight_decay| Group { params, weight_decay, lr_scale: 1.0 };
        Optimizer::of(vec![group(decay, config.weight_decay), group(no_decay, 0.0)], config, world)
    }

    /// For fine-tuning, in two groups per layer: the nearer a layer is to the pixels, the slower it learns (`optim.layer_decay`).
    pub(crate) fn for_finetuning(params: BTreeMap<String, Tensor>, config: &Optim, world: &World) -> Optimizer {
        let groups = layer_decay::groups(params, config.layer_decay.unwrap_or(1.0)).into_iter().map(|group| Group {
            params: group.params,
            weight_decay: if group.decays { config.weight_decay } else { 0.0 },
            lr_scale: group.lr_scale,
        });
        Optimizer::of(groups.collect(), config, world)
    }

    fn of(groups: Vec<Group>, config: &Optim, world: &World) -> Optimizer {
        let all = groups.iter().flat_map(|group| &group.params);
        let numbers = all.clone().map(|(_, param)| param.numel());
        let shards = if config.shard_state { Shards::of(numbers, world) } else { None };
        let params = all.map(|(name, param)| (name.clone(), param.shallow_clone())).collect();
        let mut adamw = FusedAdamW::new(config.adamw());
        let mut lr_scales = Vec::new();
        let mut place = 0;
        for Group { params, weight_decay, lr_scale } in groups {
            let own = params.into_iter().filter(|_| {
                place += 1;
                shards.as_ref().is_none_or(|shards| shards.owns(place - 1))
            });
            adamw.add_group(own, 0.0, weight_decay);
            lr_scales.push(lr_scale);
        }
        Optimizer { adamw, lr_scales, params, shards }
    }

    /// Sets the learning rate of the last layer; the others are multiples of it.
    pub(crate) fn set_lr(&mut self, lr: f64) {
        for (group, scale) in self.lr_scales.iter().enumerate() {
            self.adamw.set_lr(group, lr * scale);
        }
    }

    pub(crate) fn zero_grad(&mut self) {
        remove_grads(self.params.iter().map(|(_, param)| param));
    }

    /// The gradients of all parameters that have one.
    pub(crate) fn grads(&self) -> Vec<Tensor> {
        self.params.iter().map(|(_, param)| param.grad()).filter(Tensor::defined).collect()
    }

    /// Takes the step if `finite`, a bool scalar on the parameters' device, is true.
    pub(crate) fn step_if(&mut self, finite: &Tensor) -> anyhow::Result<()> {
        self.adamw.step_if(finite)?;
        self.shards.as_ref().map_or(Ok(()), |shards| shards.exchange(&self.params))
    }

    /// Moments and step counts, by name: handles on them, or where they are divided, copies for rank 0. All processes must call it. Learning
    /// rates are not part of it.
    pub(crate) fn state(&self) -> anyhow::Result<BTreeMap<String, Tensor>> {
        match &self.shards {
            Some(shards) => shards.gather(&self.params, &self.adamw),
            None => Ok(self.adamw.state()),
        }
    }

    /// Gives all processes the state that rank 0 has loaded, `saved`, or that of the start. All must call it.
    pub(crate) fn share_state(
        &mut self,
        saved: Option<&BTreeMap<String, Tensor>>,
        world: &World,
    ) -> anyhow::Result<()> {
        match &self.shards {
            Some(shards) => shards.scatter(&self.params, &mut self.adamw, saved),
            None => {
                if let Some(saved) = saved {
                    self.load_state(saved)?;
                }
                world.broadcast(self.adamw.state().values())
            }
        }
    }

    /// Replaces the state by a copy of one that [`Optimizer::state`] returned.
    ///
    /// # Errors
    /// If an entry is missing, unexpected or misshaped; the message names it, and nothing has been changed.
    fn load_state(&mut self, saved: &BTreeMap<String, Tensor>) -> anyhow::Result<()> {
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
        let mut optim = Optimizer::for_pretraining(handles, &recipe.optim, &World::alone());
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
