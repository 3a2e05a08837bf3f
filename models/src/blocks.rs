//! A stack of transformer blocks, as encoders and the decoder run it in training.

use tch::Tensor;

use crate::drop_path::DropPath;
use crate::layers::{Block, BlockConfig, Rotary};
use crate::params::Scope;

/// How a forward pass is made, besides its inputs. The default is the plain one.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pass<'a> {
    /// The residual branches of the encoder to drop; branch `2 b` is the first of its block `b`, `2 b + 1` the second.
    pub drop_path: Option<&'a DropPath>,
    /// Whether each block keeps its input alone and is computed again in backward ([`torch_ext::checkpoint()`]). Changes no
    /// number.
    pub grad_checkpointing: bool,
}

impl Pass<'_> {
    /// The block `index` of the encoder in training: `[N, T, D] → [N, T, D]`, attention turned by `rotary`.
    pub(crate) fn block(&self, index: usize, block: &Block, x: &Tensor, rotary: Option<&Rotary>) -> Tensor {
        let branches = self.branches(index);
        match self.grad_checkpointing {
            true => {
                // The graph outlives these borrows.
                let (block, rotary) = (block.shallow_clone(), rotary.map(Rotary::shallow_clone));
                let forward = move |x: &Tensor| block.forward_dropped(x, rotary.as_ref(), branches.as_ref());
                torch_ext::checkpoint(forward, x)
            }
            false => block.forward_dropped(x, rotary, branches.as_ref()),
        }
    }

    /// The scales `[N, 1, 1]` of both branches of the encoder's block `index`, if branches are dropped.
    pub(crate) fn branches(&self, index: usize) -> Option<[Tensor; 2]> {
        self.drop_path.map(|drop| [drop.branch(2 * index), drop.branch(2 * index + 1)])
    }
}

/// Blocks `0..depth`, one after the other.
#[derive(Debug)]
pub struct Blocks {
    blocks: Vec<Block>,
    /// What [`Pass::drop_path`] calls the first of them.
    first: usize,
}

impl Blocks {
    /// Parameters `<name>.<i>.*` for each block under `scope`. `first` is the place of the first one among all blocks of the
    /// encoder, those of convolution stages included.
    pub fn new(scope: &Scope, name: &str, depth: i64, config: &BlockConfig, first: usize) -> Self {
        let scope = scope.sub(name);
        Self { blocks: (0..depth).map(|i| Block::new(&scope.sub(i), config)).collect(), first }
    }

    /// The last block, and those before it.
    ///
    /// # Panics
    /// If there is none.
    pub(crate) fn split_last(&self) -> (&Block, &[Block]) {
        self.blocks.split_last().expect("a network has at least one block")
    }

    /// `[N, T, D] → [N, T, D]`.
    pub fn forward(&self, x: &Tensor, pass: &Pass) -> Tensor {
        self.forward_fused(x, &[], None, pass)
    }

    /// The output of the last block plus those of the blocks `fusion` (each at most once, in any order), attention turned by
    /// `rotary`: `[N, T, D] → [N, T, D]`.
    pub fn forward_fused(&self, x: &Tensor, fusion: &[i64], rotary: Option<&Rotary>, pass: &Pass) -> Tensor {
        let mut x = x.shallow_clone();
        let mut sum: Option<Tensor> = None;
        for (i, block) in self.blocks.iter().enumerate() {
            x = pass.block(self.first + i, block, &x, rotary);
            let is_last = i + 1 == self.blocks.len();
            if !is_last && fusion.contains(&(i as i64)) {
                sum = Some(match sum {
                    Some(sum) => sum + &x,
                    None => x.shallow_clone(),
                });
                // What comes back from the next block is summed before fusion's share is added, as it is where that block is computed
                // again: else the order of three summands, and so the last bit, would depend on it.
                x = x.view_as(&x);
            }
        }
        match sum {
            Some(sum) => sum + x,
            None => x,
        }
    }
}

#[cfg(test)]
mod tests;
