//! What a convolution stage is made of.

use tch::Tensor;

use super::cells::Cells;
use super::conv::{Conv, DepthwiseConv};
use crate::blocks::Pass;
use crate::layers::LayerNorm;
use crate::params::Scope;

/// eps of the norms over cells: PyTorch's default, where those over tokens have 1e-6.
const NORM_EPS: f64 = 1e-5;

/// How a stage begins: squares of cells (or pixels) are projected, normalised, and go through a GELU.
#[derive(Debug)]
pub(super) struct ConvEmbed {
    pub(super) proj: Conv,
    pub(super) norm: LayerNorm,
}

impl ConvEmbed {
    /// Parameters `proj.*` (of `proj`), `norm.*` of width `dim`.
    pub(super) fn new(scope: &Scope, proj: impl FnOnce(&Scope) -> Conv, dim: i64) -> Self {
        Self { proj: proj(&scope.sub("proj")), norm: LayerNorm::new(&scope.sub("norm"), dim, NORM_EPS) }
    }

    /// `[N, cells, side²·in_dim] → [N, cells, dim]`.
    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        self.norm.forward(&self.proj.forward(x)).gelu("none")
    }

    /// [`ConvEmbed::forward`] of pixels, within a square channel, row, column.
    pub(super) fn forward_pixels(&self, x: &Tensor) -> Tensor {
        self.norm.forward(&self.proj.forward_pixels(x)).gelu("none")
    }
}

/// `x + conv2(attn(keep · conv1(norm1(x))))`, then `x + mlp(norm2(x))`, where `attn` is the depthwise convolution and stands where
/// a transformer's attention does.
#[derive(Debug)]
pub(super) struct ConvBlock {
    pub(super) norm1: LayerNorm,
    pub(super) conv1: Conv,
    pub(super) attn: DepthwiseConv,
    pub(super) conv2: Conv,
    pub(super) norm2: LayerNorm,
    pub(super) fc1: Conv,
    pub(super) fc2: Conv,
}

impl ConvBlock {
    /// Parameters `norm1.*`, `conv1.*`, `attn.*`, `conv2.*`, `norm2.*`, `mlp.fc1.*`, `mlp.fc2.*`.
    fn new(scope: &Scope, dim: i64, mlp_dim: i64) -> Self {
        let mlp = scope.sub("mlp");
        Self {
            norm1: LayerNorm::new(&scope.sub("norm1"), dim, NORM_EPS),
            conv1: Conv::new(&scope.sub("conv1"), dim, dim, 1),
            attn: DepthwiseConv::new(&scope.sub("attn"), dim),
            conv2: Conv::new(&scope.sub("conv2"), dim, dim, 1),
            norm2: LayerNorm::new(&scope.sub("norm2"), dim, NORM_EPS),
            fc1: Conv::new(&mlp.sub("fc1"), dim, mlp_dim, 1),
            fc2: Conv::new(&mlp.sub("fc2"), mlp_dim, dim, 1),
        }
    }

    /// Another handle on the same parameters.
    fn shallow_clone(&self) -> Self {
        Self {
            norm1: self.norm1.shallow_clone(),
            conv1: self.conv1.shallow_clone(),
            attn: self.attn.shallow_clone(),
            conv2: self.conv2.shallow_clone(),
            norm2: self.norm2.shallow_clone(),
            fc1: self.fc1.shallow_clone(),
            fc2: self.fc2.shallow_clone(),
        }
    }

    /// `[N, cells, C] → [N, cells, C]`, `side × side` cells to a token, the branches scaled by `drop` (each `[N, 1, 1]`).
    fn forward(&self, x: &Tensor, cells: &Cells, side: i64, drop: Option<&[Tensor; 2]>) -> Tensor {
        let seen = cells.depthwise(&self.conv1.forward(&self.norm1.forward(x)), side, &self.attn);
        let seen = self.conv2.forward(&seen);
        let (seen, drop) = match drop {
            Some([first, second]) => (seen * first, Some(second)),
            None => (seen, None),
        };
        let x = x + seen;
        let hidden = self.fc1.forward(&self.norm2.forward(&x)).gelu("none");
        let mlp = self.fc2.forward(&hidden);
        match drop {
            Some(second) => x + mlp * second,
            None => x + mlp,
        }
    }
}

/// The blocks of a stage.
#[derive(Debug)]
pub(super) struct ConvBlocks {
    pub(super) blocks: Vec<ConvBlock>,
    /// What [`Pass::drop_path`] calls the first of them.
    pub(super) first: usize,
}

impl ConvBlocks {
    /// Parameters `<i>.*` for each block under `scope`.
    pub(super) fn new(scope: &Scope, depth: i64, dim: i64, mlp_dim: i64, first: usize) -> Self {
        Self { blocks: (0..depth).map(|i| ConvBlock::new(&scope.sub(i), dim, mlp_dim)).collect(), first }
    }

    /// `[N, cells, C] → [N, cells, C]`, `side × side` cells to a token.
    pub(super) fn forward(&self, x: Tensor, cells: &Cells, side: i64, pass: &Pass) -> Tensor {
        let blocks = self.blocks.iter().enumerate();
        blocks.fold(x, |x, (i, block)| {
            let branches = pass.branches(self.first + i);
            if !pass.grad_checkpointing {
                return block.forward(&x, cells, side, branches.as_ref());
            }
            // The graph outlives these borrows.
            let (block, cells) = (block.shallow_clone(), cells.shallow_clone());
            let forward = move |x: &Tensor| block.forward(x, &cells, side, branches.as_ref());
            torch_ext::checkpoint(forward, &x)
        })
    }
}
