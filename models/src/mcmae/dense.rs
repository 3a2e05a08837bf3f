//! The published computation to the letter: real convolutions over whole maps, the mask laid over the depthwise convolution's
//! input, and the visible tokens gathered after the last merge.
//!
//! It is what the sparse computation is tested against and compared with in speed, and shares nothing with it but the parameters
//! and the transformer blocks.

use tch::{Kind, Tensor};

use super::stage::{ConvBlock, ConvBlocks, ConvEmbed};
use super::{McmaeEncoder, Observe};
use crate::blocks::Pass;
use crate::layers::LayerNorm;
use crate::masking::Masking;
use crate::tokens::gather_rows;

impl McmaeEncoder {
    /// What [`McmaeEncoder::forward_encoder`] computes, as the published code computes it: every cell, removed or not, as feature
    /// maps `[N, C, h, w]`.
    pub fn forward_encoder_dense(&self, imgs: &Tensor, masking: &Masking, pass: &Pass) -> Tensor {
        self.observe_encoder_dense(imgs, masking, pass, &mut |_, _| ())
    }

    /// [`McmaeEncoder::forward_encoder_dense`], showing what each module gives under the module's name: for the first three
    /// `patch_embed` and the first two `blocks` the map `[N, C, h, w]`, for `patch_embed4` the tokens `[N, L, D]` without positions,
    /// for `blocks3` `[N, P + keep, D]`.
    pub fn observe_encoder_dense(&self, imgs: &Tensor, masking: &Masking, pass: &Pass, observe: Observe) -> Tensor {
        let [grid_h, grid_w] = self.config.grid();
        let keep: Tensor = 1.0 - masking.mask.to_kind(Kind::Float);
        let keep = keep.reshape([-1, 1, grid_h, grid_w]);
        let keep_of = |side: i64| {
            let rows = keep.repeat_interleave_self_int(side, 2, grid_h * side);
            rows.repeat_interleave_self_int(side, 3, grid_w * side)
        };

        let x = embed(&self.patch_embed1, imgs);
        observe("patch_embed1", &x);
        let x = blocks(&self.blocks1, x, &keep_of(4), pass);
        observe("blocks1", &x);
        let stage1 = self.decode.as_ref().map(|[conv, _]| tokens(&conv.forward_map(&x)));
        let x = embed(&self.patch_embed2, &x);
        observe("patch_embed2", &x);
        let x = blocks(&self.blocks2, x, &keep_of(2), pass);
        observe("blocks2", &x);
        let stage2 = self.decode.as_ref().map(|[_, conv]| tokens(&conv.forward_map(&x)));
        let x = embed(&self.patch_embed3, &x);
        observe("patch_embed3", &x);
        let x = self.patch_embed4.forward(&tokens(&x));
        observe("patch_embed4", &x);

        let visible = |tokens: &Tensor| gather_rows(tokens, &masking.ids_keep);
        let x = visible(&(x + self.patch_positions()));
        let x = self.blocks3.forward(&self.with_cls(&x), pass);
        observe("blocks3", &x);
        let x = match (stage1, stage2) {
            (Some(stage1), Some(stage2)) => self.add_to_patches(&x, [visible(&stage1), visible(&stage2)]),
            _ => x,
        };
        self.norm.forward(&x)
    }
}

fn embed(embed: &ConvEmbed, x: &Tensor) -> Tensor {
    norm(&embed.norm, &embed.proj.forward_map(x)).gelu("none")
}

fn blocks(stage: &ConvBlocks, x: Tensor, keep: &Tensor, pass: &Pass) -> Tensor {
    let blocks = stage.blocks.iter().enumerate();
    blocks.fold(x, |x, (i, b)| {
        let drop = pass.branches(stage.first + i);
        let [first, second] = match drop {
            Some(drop) => drop.map(|scale| Some(scale.unsqueeze(3))),
            None => [None, None],
        };
        block(b, &x, keep, first, second)
    })
}

fn block(block: &ConvBlock, x: &Tensor, keep: &Tensor, first: Option<Tensor>, second: Option<Tensor>) -> Tensor {
    let scaled = |branch: Tensor, scale: Option<Tensor>| match scale {
        Some(scale) => branch * scale,
        None => branch,
    };
    let seen = keep * block.conv1.forward_map(&norm(&block.norm1, x));
    let seen = block.conv2.forward_map(&block.attn.forward_map(&seen));
    let x = x + scaled(seen, first);
    let hidden = block.fc1.forward_map(&norm(&block.norm2, &x)).gelu("none");
    &x + scaled(block.fc2.forward_map(&hidden), second)
}

/// Over the channels of a map: `[N, C, h, w] → [N, C, h, w]`.
fn norm(norm: &LayerNorm, x: &Tensor) -> Tensor {
    norm.forward(&x.permute([0, 2, 3, 1])).permute([0, 3, 1, 2])
}

/// `[N, C, h, w] → [N, h·w, C]`.
fn tokens(map: &Tensor) -> Tensor {
    map.flatten(2, 3).transpose(1, 2)
}
