//! What a masked convolution encoder is made of.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::validate::{positive, width_and_heads};

/// Pixels along a side of a token's patch: 4 for the first stage's cell, twice 2 for the merges after it.
pub(crate) const PATCH_SIZE: i64 = 16;

/// What an MCMAE encoder is made of.
///
/// Only the base size was ever published as code. The others were read off files of weights by third parties; the confidence in
/// each is at its constant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct McmaeEncoderConfig {
    /// Height and width of an image in pixels, multiples of 16.
    pub img_size: [i64; 2],
    /// Widths `C1`, `C2` of the convolution stages and `D` of the tokens; 4 divides `D` (positions) and so do the heads.
    pub embed_dims: [i64; 3],
    /// Blocks of each stage.
    pub depths: [i64; 3],
    /// Attention heads of the last stage.
    pub num_heads: i64,
    /// Hidden width of the MLPs of each stage, in widths.
    pub mlp_ratios: [i64; 3],
    /// Whether a CLS token comes before the patches. The published code (v1) has none; the weights of MR-MAE's authors ("v2") have
    /// one.
    pub cls_token: bool,
    /// Whether projections of the first two stages are added to the tokens before the last norm. Pretraining alone uses it; an
    /// encoder that is evaluated or fine-tuned needs no such parameters.
    pub fusion: bool,
}

impl McmaeEncoderConfig {
    /// Low confidence: published nowhere; copies in circulation agree on widths and depths and have 6 or 12 heads.
    pub const SMALL: Self = Self { embed_dims: [128, 256, 384], num_heads: 6, ..Self::BASE };
    /// The published `convmae_convvit_base_patch16`.
    pub const BASE: Self = Self {
        img_size: [224, 224],
        embed_dims: [256, 384, 768],
        depths: [2, 2, 11],
        num_heads: 12,
        mlp_ratios: [4, 4, 4],
        cls_token: false,
        fusion: true,
    };
    /// Medium confidence: what loads the v2 weights; another copy has 20 blocks in the last stage, and the paper's text other MLP
    /// ratios.
    pub const LARGE: Self =
        Self { embed_dims: [384, 768, 1024], depths: [2, 2, 23], num_heads: 16, mlp_ratios: [8, 8, 4], ..Self::BASE };
    /// Medium confidence: what loads the v2 weights; the paper's text has other MLP ratios and another patch size.
    pub const HUGE: Self =
        Self { embed_dims: [768, 1024, 1280], depths: [2, 2, 31], num_heads: 16, mlp_ratios: [8, 8, 4], ..Self::BASE };

    /// Rows and columns of tokens.
    pub fn grid(&self) -> [i64; 2] {
        self.img_size.map(|side| side / PATCH_SIZE)
    }

    /// `L`.
    pub fn num_patches(&self) -> i64 {
        let [grid_h, grid_w] = self.grid();
        grid_h * grid_w
    }

    /// Width `D` of its tokens.
    pub fn embed_dim(&self) -> i64 {
        self.embed_dims[2]
    }

    /// Blocks of all stages, with two residual branches each.
    pub fn num_blocks(&self) -> i64 {
        self.depths.iter().sum()
    }

    /// Arithmetic of a forward pass for one image, by module, a product with an addition counted as two: the cells of `computed`
    /// tokens in the convolution stages (`keep` of them in the sparse computation, `L` in the dense one), then `keep` tokens (without
    /// CLS) in the transformer. Norms, activations and additions are not counted.
    pub fn flop_per_image(&self, computed: i64, keep: i64) -> Vec<(&'static str, f64)> {
        let [dim1, dim2, dim] = self.embed_dims.map(|dim| dim as f64);
        let [depth1, depth2, depth3] = self.depths.map(|depth| depth as f64);
        let [ratio1, ratio2, ratio3] = self.mlp_ratios.map(|ratio| ratio as f64);
        let computed = computed as f64;
        let tokens = (keep + i64::from(self.cls_token)) as f64;
        let [cells1, cells2] = [16.0 * computed, 4.0 * computed];
        let conv_blocks =
            |cells: f64, depth: f64, dim: f64, ratio: f64| depth * cells * dim * (2.0 * dim + 25.0 + 2.0 * ratio * dim);
        let transformer = depth3 * (tokens * dim * dim * (4.0 + 2.0 * ratio3) + 2.0 * tokens * tokens * dim);
        let decode = f64::from(u8::from(self.fusion));
        let products = [
            ("patch_embed1", cells1 * 48.0 * dim1),
            ("blocks1", conv_blocks(cells1, depth1, dim1, ratio1)),
            ("patch_embed2", cells2 * 4.0 * dim1 * dim2),
            ("blocks2", conv_blocks(cells2, depth2, dim2, ratio2)),
            ("patch_embed3", computed * 4.0 * dim2 * dim),
            ("patch_embed4", computed * dim * dim),
            ("stage1_output_decode", decode * cells1 * dim1 * dim),
            ("stage2_output_decode", decode * cells2 * dim2 * dim),
            ("blocks3", transformer),
        ];
        products.into_iter().map(|(name, products)| (name, 2.0 * products)).collect()
    }

    /// # Errors
    /// [`Error::Config`] for the first field that no network can have.
    pub fn validate(&self) -> Result<()> {
        positive(&[("num_heads", self.num_heads)])?;
        let threes = [("embed_dims", self.embed_dims), ("depths", self.depths), ("mlp_ratios", self.mlp_ratios)];
        let refuse = |field, value, reason: &str| {
            Err(Error::Config { field, value: format!("{value:?}"), reason: reason.to_owned() })
        };
        for (field, values) in threes {
            if values.iter().any(|value| *value < 1) {
                return refuse(field, values.as_slice(), "each must be at least 1");
            }
        }
        let is_cut = |side: &i64| *side >= PATCH_SIZE && side % PATCH_SIZE == 0;
        if !self.img_size.iter().all(is_cut) {
            let reason = "both sides must be multiples of 16, the patch of every MCMAE";
            return refuse("img_size", self.img_size.as_slice(), reason);
        }
        width_and_heads(("embed_dims[2]", self.embed_dim()), ("num_heads", self.num_heads))
    }
}

#[cfg(test)]
mod tests;
