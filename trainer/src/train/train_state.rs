//! The state that an optimization step changes and a checkpoint holds: parameters, the optimizer's moments, and the moving average.

use std::collections::BTreeMap;

use models::params::ParamStore;
use tch::{Kind, Tensor};
use torch_ext::{Ema, all_finite, clip_grad_norm_, grad_norm};

use super::checkpoint::{Checkpoint, State};
use super::optim::Optimizer;
use super::step::StepValues;
use crate::dist::World;

/// Parameters, optimizer and moving average of a run.
#[derive(Debug)]
pub(crate) struct TrainState {
    pub(crate) params: ParamStore,
    pub(crate) optim: Optimizer,
    pub(crate) ema: Option<Ema>,
}

impl TrainState {
    /// The state at the start of training, with a moving average if `averages` is true.
    pub(crate) fn new(params: ParamStore, optim: Optimizer, averages: bool) -> TrainState {
        let ema = averages.then(|| Ema::new(params.trainable()));
        TrainState { params, optim, ema }
    }

    /// Loads the state of the checkpoint that rank 0 has, if it has one, and gives the state to all processes of `world`.
    ///
    /// # Errors
    /// If its tensors are not those of this network and optimizer; the message names the first mismatch.
    pub(crate) fn restore(&mut self, checkpoint: Option<&Checkpoint>, world: &World) -> anyhow::Result<()> {
        if let Some(checkpoint) = checkpoint {
            self.params.load("the checkpoint's model", &checkpoint.model)?;
            if let Some(ema) = &mut self.ema {
                // A checkpoint without an average fails here, naming the first missing tensor.
                ema.load_state(checkpoint.ema.as_ref().unwrap_or(&BTreeMap::new()))?;
            }
        }
        self.optim.share_state(checkpoint.map(|checkpoint| &checkpoint.optimizer), world)?;
        let ema = self.ema.as_ref().map(Ema::state).unwrap_or_default();
        world.broadcast(self.params.tensors().values().chain(ema.values()))
    }

    /// A checkpoint of everything, with handles on the tensors as they are now. `optimizer` is [`Optimizer::state`], for which all processes are needed.
    pub(crate) fn checkpoint(&self, state: State, optimizer: BTreeMap<String, Tensor>, recipe: String) -> Checkpoint {
        let averaged = |ema: &Ema| {
            let mut network = self.params.tensors();
            network.extend(ema.state());
            network
        };
        Checkpoint { state, model: self.params.tensors(), optimizer, ema: self.ema.as_ref().map(averaged), recipe }
    }

    /// Clips the gradients if asked to and takes the step, unless a loss or a gradient is not finite: then parameters, moments, step counts
    /// and averages stay as they are. The device decides; the host learns the decision from [`StepValues::read`], together with
    /// `losses`, the gradient's norm before clipping, and the numbers of all `ranks`. `ema_decay` is the decay of the moving average at this step.
    pub(crate) fn optimizer_step(
        &mut self,
        losses: Vec<(String, Tensor)>,
        ranks: Option<&Tensor>,
        clip_grad: Option<f64>,
        ema_decay: Option<f64>,
    ) -> anyhow::Result<StepValues> {
        let (mut names, mut values): (Vec<String>, Vec<Tensor>) = losses.into_iter().unzip();
        let mut grads = self.optim.grads();
        names.push("grad_norm".to_owned());
        values.push(match clip_grad {
            Some(max_norm) => clip_grad_norm_(&mut grads, max_norm)?,
            None => grad_norm(&grads)?,
        });
        // A non-finite element makes the norm non-finite, so these few scalars stand for all gradients.
        let values = Tensor::stack(&values, 0);
        let finite = all_finite(&[values.shallow_clone()])?;
        self.optim.step_if(&finite)?;
        if let Some((ema, decay)) = self.ema.as_mut().zip(ema_decay) {
            ema.update_if(decay, &finite)?;
        }
        let mut parts = vec![values, finite.to_kind(Kind::Float).view([1])];
        parts.extend(ranks.map(Tensor::shallow_clone));
        StepValues::queue(names, &Tensor::cat(&parts, 0))
    }

    /// Swaps the averages in for the parameters while `f` runs; without a moving average it only runs `f`.
    pub(crate) fn with_averages<T>(&self, f: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        let Some(ema) = &self.ema else {
            return f();
        };
        let trained = self.swap(&ema.state());
        let result = f();
        self.swap(&trained);
        result
    }

    /// Sets the parameters named in `values` to these values, in place, and returns copies of their previous values.
    fn swap(&self, values: &BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
        let _no_grad = tch::no_grad_guard();
        let mut before = BTreeMap::new();
        for (name, mut param) in self.params.trainable() {
            if let Some(value) = values.get(&name) {
                before.insert(name, param.detach().copy());
                param.copy_(value);
            }
        }
        before
    }
}
