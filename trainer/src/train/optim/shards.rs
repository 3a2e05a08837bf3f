//! Moments that are divided among the processes, as in ZeRO stage 1 (Rajbhandari et al. 2020, arXiv 1910.02054).
//!
//! Every process has all gradients, updates the parameters that are its own, and gets the others from their owners. So the update is that of one
//! process to the bit, each keeps a share of the moments (8 bytes a parameter), and half as much more is sent.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context;
use tch::{Device, Kind, Tensor};
use torch_ext::{FusedAdamW, ProcessGroup};

use crate::dist::World;

/// The tensors of a parameter in an optimizer's state.
const KEYS: [&str; 3] = ["exp_avg", "exp_avg_sq", "step"];

/// Which process owns which parameter.
#[derive(Debug)]
pub(super) struct Shards {
    rank: usize,
    size: usize,
    group: Arc<ProcessGroup>,
    /// The owner of each parameter, in the order of the optimizer.
    owners: Vec<usize>,
}

impl Shards {
    /// Divides parameters by their `numbers` of elements: each goes to the process that has the fewest so far. `None` for a process that is alone.
    pub(super) fn of(numbers: impl IntoIterator<Item = usize>, world: &World) -> Option<Shards> {
        let group = Arc::clone(world.group().filter(|_| world.size() > 1)?);
        let owners = divide(numbers, world.size());
        Some(Shards { rank: world.rank(), size: world.size(), group, owners })
    }

    /// Whether this process updates parameter `i`.
    pub(super) fn owns(&self, i: usize) -> bool {
        self.owners[i] == self.rank
    }

    /// Gives the parameters of every process to all.
    pub(super) fn exchange(&self, params: &[(String, Tensor)]) -> anyhow::Result<()> {
        let _no_grad = tch::no_grad_guard();
        for owner in 0..self.size {
            let of_owner: Vec<&Tensor> =
                params.iter().zip(&self.owners).filter(|(_, of)| **of == owner).map(|((_, param), _)| param).collect();
            if of_owner.is_empty() {
                continue;
            }
            let flat: Vec<Tensor> = of_owner.iter().map(|param| param.detach().reshape([-1])).collect();
            let mut flat = Tensor::cat(&flat, 0);
            self.group.broadcast(&mut flat, owner)?;
            if owner != self.rank {
                let mut at = 0;
                for param in of_owner {
                    let numbers = param.numel() as i64;
                    param.detach().copy_(&flat.narrow(0, at, numbers).view(param.size().as_slice()));
                    at += numbers;
                }
            }
        }
        Ok(())
    }

    /// The whole state, in the host's memory: for rank 0, and nothing for the others. All must call it.
    pub(super) fn gather(
        &self,
        params: &[(String, Tensor)],
        own: &FusedAdamW,
    ) -> anyhow::Result<BTreeMap<String, Tensor>> {
        let own = own.state();
        let mut whole = BTreeMap::new();
        for ((name, param), &owner) in params.iter().zip(&self.owners) {
            for key in KEYS {
                let key = format!("{key}.{name}");
                let mut tensor = own.get(&key).map_or_else(|| empty(&key, param), Tensor::contiguous);
                self.group.broadcast(&mut tensor, owner)?;
                if self.rank == 0 {
                    whole.insert(key, tensor.to_device(Device::Cpu));
                }
            }
        }
        Ok(whole)
    }

    /// Gives every process its share of `whole`, the state that rank 0 has. All must call it.
    pub(super) fn scatter(
        &self,
        params: &[(String, Tensor)],
        own: &mut FusedAdamW,
        whole: Option<&BTreeMap<String, Tensor>>,
    ) -> anyhow::Result<()> {
        let mut share = BTreeMap::new();
        for (i, (name, param)) in params.iter().enumerate() {
            for key in KEYS {
                let key = format!("{key}.{name}");
                let mut tensor = empty(&key, param);
                if let Some(whole) = whole {
                    let saved = whole.get(&key).with_context(|| format!("the checkpoint lacks {key}"))?;
                    anyhow::ensure!(saved.size() == tensor.size(), "{key} of the checkpoint has another shape");
                    tensor.copy_(saved);
                }
                self.group.broadcast(&mut tensor, 0)?;
                if self.owns(i) {
                    share.insert(key, tensor);
                }
            }
        }
        Ok(own.load_state(&share)?)
    }
}

/// An entry of the state, to be filled: a scalar for the number of steps, else as the parameter.
fn empty(key: &str, param: &Tensor) -> Tensor {
    match key.starts_with("step.") {
        true => Tensor::zeros([0; 0], (Kind::Float, param.device())),
        false => Tensor::zeros(param.size().as_slice(), (param.kind(), param.device())),
    }
}

/// The owner of each of some parameters, of `size` processes.
fn divide(numbers: impl IntoIterator<Item = usize>, size: usize) -> Vec<usize> {
    let mut filled = vec![0; size];
    let owner = |numbers: usize| {
        let (owner, _) = filled.iter().enumerate().min_by_key(|(_, filled)| **filled).unwrap_or((0, &0));
        filled[owner] += numbers;
        owner
    };
    numbers.into_iter().map(owner).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_process_has_much_more_than_another() {
        let numbers = [100, 1, 1, 50, 50, 100, 3, 97];
        let owners = divide(numbers, 3);
        let filled: Vec<usize> = (0..3)
            .map(|rank| numbers.iter().zip(&owners).filter(|(_, of)| **of == rank).map(|(n, _)| n).sum())
            .collect();
        assert_eq!(filled.iter().sum::<usize>(), 402);
        assert!(filled.iter().max().unwrap() - filled.iter().min().unwrap() <= 100, "{filled:?}");
    }
}
