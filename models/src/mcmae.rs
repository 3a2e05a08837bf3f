//! MCMAE's encoder (Gao et al. 2022, "ConvMAE: Masked Convolution Meets Masked Autoencoders"): two stages of masked convolution
//! before a transformer, with the parameter names of its reference code (`Alpha-VL/ConvMAE`).
//!
//! The mask is drawn over the tokens of the last stage and holds for the cells of the first two (4 × 4 and 2 × 2 to a token): a
//! depthwise 5 × 5 convolution takes what is removed as zero. The reference computes every cell all the same and gathers the
//! visible ones at the end. Here only the visible cells are computed. All that mixes cells is the depthwise convolution, and what
//! it takes from a removed cell is zero, so that no visible number depends on one that is left out: the result is the same, and a
//! removed pixel is not even read.
//!
//! What an image of the base size costs at 224 pixels, in GFLOP of a forward pass (a product is two), 49 of 196 tokens visible:
//!
//! | part | sparse | dense |
//! |---|---|---|
//! | `patch_embed1` | 0.02 | 0.08 |
//! | `blocks1`, of it the depthwise convolutions | 2.08, 0.02 | 8.30, 0.08 |
//! | `patch_embed2` | 0.15 | 0.62 |
//! | `blocks2`, of it the depthwise convolutions | 1.16, 0.01 | 4.65, 0.03 |
//! | `patch_embed3`, `patch_embed4` | 0.17 | 0.69 |
//! | `stage1_output_decode`, `stage2_output_decode` | 0.42 | 1.70 |
//! | `blocks3` | 7.71 | 7.71 |
//! | encoder | 11.7 | 23.7 |
//! | with the published decoder, 10.7 | 22.4 | 34.4 |
//!
//! A ViT-B has 8.6 in its encoder and 19.3 with the decoder. By its arithmetic, a sparse step is then 2.0 times as fast as a dense one
//! where there is no decoder, and 1.5 times with it; what the dense one does besides products (norms, activations, transposed maps)
//! comes on top. The example `mcmae_rate` measures both.

use tch::Tensor;

use crate::blocks::{Blocks, Pass};
use crate::error::Result;
use crate::init::Init;
use crate::layers::{Activation, BlockConfig, LayerNorm, Linear, NORM_EPS};
use crate::masking::Masking;
use crate::params::Scope;
use crate::pos_embed::sincos_2d;
use cells::{CELL, Cells, SIDES};
use conv::Conv;
use stage::{ConvBlocks, ConvEmbed};

mod cells;
mod config;
mod conv;
mod dense;
mod stage;

pub use config::McmaeEncoderConfig;
pub(crate) use config::PATCH_SIZE;

/// Is shown the name of a module and what it gives.
pub type Observe<'a> = &'a mut dyn FnMut(&'static str, &Tensor);

/// The encoder.
#[derive(Debug)]
pub struct McmaeEncoder {
    config: McmaeEncoderConfig,
    patch_embed1: ConvEmbed,
    blocks1: ConvBlocks,
    patch_embed2: ConvEmbed,
    blocks2: ConvBlocks,
    patch_embed3: ConvEmbed,
    patch_embed4: Linear,
    cls_token: Option<Tensor>,
    pos_embed: Tensor,
    blocks3: Blocks,
    /// `stage1_output_decode` and `stage2_output_decode`: fusion's projections to the tokens.
    decode: Option<[Conv; 2]>,
    norm: LayerNorm,
}

impl McmaeEncoder {
    /// Parameters `patch_embed1` to `4`, `blocks1` to `3`, `pos_embed`, `norm`, with fusion `stage1_output_decode` and
    /// `stage2_output_decode`, and, if so configured, `cls_token`, directly under `scope`.
    ///
    /// Started as the reference does: linear layers and the flattened `patch_embed3.proj` xavier-uniform, biases of linear layers
    /// zero, norms 1 and 0, all other convolutions and their biases as PyTorch starts them. CLS, which the reference has not, is
    /// N(0, 0.02²) at position zero, as in MAE.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) if there is no such network.
    pub fn new(scope: &Scope, config: &McmaeEncoderConfig) -> Result<Self> {
        config.validate()?;
        let [grid_h, grid_w] = config.grid();
        let [dim1, dim2, dim] = config.embed_dims;
        let [depth1, depth2, depth] = config.depths;
        let [ratio1, ratio2, ratio] = config.mlp_ratios;
        let [first2, first3] = [depth1, depth1 + depth2].map(|i| i as usize);
        let block = BlockConfig {
            dim,
            num_heads: config.num_heads,
            mlp_dim: ratio * dim,
            qkv_bias: true,
            norm_eps: NORM_EPS,
            activation: Activation::Gelu,
            gated_mlp: false,
        };
        let stage =
            |name: &str, depth, dim, ratio, first| ConvBlocks::new(&scope.sub(name), depth, dim, ratio * dim, first);
        let embed = |name: &str, in_dim, dim, side| {
            let proj = |scope: &Scope| Conv::new(scope, in_dim, dim, side);
            ConvEmbed::new(&scope.sub(name), proj, dim)
        };
        let xavier = |scope: &Scope| Conv::xavier(scope, dim2, dim, 2);
        let decode = |name: &str, in_dim, side| Conv::new(&scope.sub(name), in_dim, dim, side);
        let positions = sincos_2d(dim, grid_h, grid_w, config.cls_token);
        let cls = Init::Normal { std: 0.02 };
        Ok(Self {
            config: *config,
            patch_embed1: embed("patch_embed1", 3, dim1, CELL),
            blocks1: stage("blocks1", depth1, dim1, ratio1, 0),
            patch_embed2: embed("patch_embed2", dim1, dim2, 2),
            blocks2: stage("blocks2", depth2, dim2, ratio2, first2),
            patch_embed3: ConvEmbed::new(&scope.sub("patch_embed3"), xavier, dim),
            patch_embed4: Linear::new(&scope.sub("patch_embed4"), dim, dim, true),
            cls_token: config.cls_token.then(|| scope.param("cls_token", &[1, 1, dim], cls)),
            pos_embed: scope.buffer("pos_embed", &positions),
            blocks3: Blocks::new(scope, "blocks3", depth, &block, first3),
            decode: config.fusion.then(|| {
                [decode("stage1_output_decode", dim1, SIDES[0]), decode("stage2_output_decode", dim2, SIDES[1])]
            }),
            norm: LayerNorm::new(&scope.sub("norm"), dim, NORM_EPS),
        })
    }

    /// What it is made of.
    pub fn config(&self) -> &McmaeEncoderConfig {
        &self.config
    }

    /// Encodes the visible tokens: `imgs [N, 3, H, W]`, normalised, → latent `[N, P + keep, D]` after the last norm, the patches in
    /// the order of `ids_keep`; `P` is 1 with a CLS token, else 0. With fusion, if the configuration has it; CLS, which is nowhere
    /// in the maps of the first stages, gets nothing added.
    pub fn forward_encoder(&self, imgs: &Tensor, masking: &Masking, pass: &Pass) -> Tensor {
        self.observe_encoder(imgs, masking, pass, &mut |_, _| ())
    }

    /// [`McmaeEncoder::forward_encoder`], showing what each module gives under the module's name: for `patch_embed1` and `blocks1`
    /// `[N, keep·16, C1]`, token by token and in each row by row, for `patch_embed2` and `blocks2` `[N, keep·4, C2]`, for
    /// `patch_embed3` and `patch_embed4` (without positions) `[N, keep, D]`, for `blocks3` `[N, P + keep, D]`.
    pub fn observe_encoder(&self, imgs: &Tensor, masking: &Masking, pass: &Pass, observe: Observe) -> Tensor {
        let cells = Cells::visible(masking, self.config.grid());
        self.norm.forward(&self.stages(imgs, &cells, self.decode.as_ref(), pass, observe))
    }

    /// Encodes whole images: `imgs [N, 3, H, W]`, normalised, → `[N, P + L, D]`, patches in order, before the last norm and without
    /// fusion, as the reference's classifier does.
    pub fn forward_blocks(&self, imgs: &Tensor, pass: &Pass) -> Tensor {
        self.whole(imgs, None, pass)
    }

    /// The last norm: `[.., D] → [.., D]`.
    pub fn forward_norm(&self, x: &Tensor) -> Tensor {
        self.norm.forward(x)
    }

    /// Encodes whole images: `imgs [N, 3, H, W]`, normalised, → `[N, P + L, D]`, patches in order, after the last norm. With `fused`
    /// as in pretraining, if the configuration has fusion; without as in [`McmaeEncoder::forward_blocks`].
    pub fn forward_features(&self, imgs: &Tensor, fused: bool) -> Tensor {
        let decode = self.decode.as_ref().filter(|_| fused);
        self.norm.forward(&self.whole(imgs, decode, &Pass::default()))
    }

    fn whole(&self, imgs: &Tensor, decode: Option<&[Conv; 2]>, pass: &Pass) -> Tensor {
        let grid = self.config.grid();
        self.stages(imgs, &Cells::Whole { grid }, decode, pass, &mut |_, _| ())
    }

    /// All three stages over `cells`, and `decode` of the first two: `[N, P + tokens, D]`.
    fn stages(
        &self,
        imgs: &Tensor,
        cells: &Cells,
        decode: Option<&[Conv; 2]>,
        pass: &Pass,
        observe: Observe,
    ) -> Tensor {
        let [side1, side2] = SIDES;
        let x = self.patch_embed1.forward_pixels(&cells.pixels(imgs));
        observe("patch_embed1", &x);
        let x = self.blocks1.forward(x, cells, side1, pass);
        observe("blocks1", &x);
        let stage1 = decode.map(|[conv, _]| conv.forward(&cells.merge(&x, side1, side1)));
        let x = self.patch_embed2.forward(&cells.merge(&x, side1, 2));
        observe("patch_embed2", &x);
        let x = self.blocks2.forward(x, cells, side2, pass);
        observe("blocks2", &x);
        let x = cells.merge(&x, side2, 2); // [N, tokens, 4·C2]
        let stage2 = decode.map(|[_, conv]| conv.forward(&x));
        let x = self.patch_embed3.forward(&x);
        observe("patch_embed3", &x);
        let x = self.patch_embed4.forward(&x);
        observe("patch_embed4", &x);
        let x = self.with_cls(&(x + cells.positions(&self.patch_positions().get(0))));
        let x = self.blocks3.forward(&x, pass);
        observe("blocks3", &x);
        match (stage1, stage2) {
            (Some(stage1), Some(stage2)) => self.add_to_patches(&x, [stage1, stage2]),
            _ => x,
        }
    }

    fn prefix(&self) -> i64 {
        i64::from(self.config.cls_token)
    }

    /// `[1, L, D]`.
    fn patch_positions(&self) -> Tensor {
        self.pos_embed.narrow(1, self.prefix(), self.config.num_patches())
    }

    /// CLS, if there is one, before the patches: `[N, K, D] → [N, P + K, D]`.
    fn with_cls(&self, patches: &Tensor) -> Tensor {
        let Some(cls_token) = &self.cls_token else {
            return patches.shallow_clone();
        };
        let cls = cls_token + self.pos_embed.narrow(1, 0, 1);
        let cls = cls.expand([patches.size()[0], -1, -1], false);
        Tensor::cat(&[&cls, patches], 1)
    }

    /// `x [N, P + K, D]`, f32, with both `stages [N, K, D]` added behind the prefix.
    fn add_to_patches(&self, x: &Tensor, [stage1, stage2]: [Tensor; 2]) -> Tensor {
        let prefix = self.prefix();
        let patches = x.narrow(1, prefix, stage1.size()[1]) + stage1 + stage2;
        match &self.cls_token {
            Some(_) => Tensor::cat(&[&x.narrow(1, 0, prefix), &patches], 1),
            None => patches,
        }
    }
}

#[cfg(test)]
mod tests;
