//! The light decoder of masked autoencoders: from the visible tokens to every patch.
//!
//! Agrees with `facebookresearch/mae` and, without a CLS token, with ConvMAE, whose decoder is the same.

use tch::Tensor;

use crate::blocks::{Blocks, Pass};
use crate::error::Result;
use crate::init::Init;
use crate::layers::{Activation, BlockConfig, LayerNorm, Linear};
use crate::params::Scope;
use crate::pos_embed::sincos_2d;
use crate::tokens::{gather_rows, without_prefix};
use crate::validate::{positive, width_and_heads};

/// What a decoder is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecoderConfig {
    /// Width `Dd`; 4 divides it (positions) and so do the heads.
    pub embed_dim: i64,
    /// Blocks.
    pub depth: i64,
    /// Attention heads.
    pub num_heads: i64,
    /// Hidden width of an MLP, in widths.
    pub mlp_ratio: i64,
}

impl DecoderConfig {
    /// 8 blocks of width 512 with 16 heads: the published decoder of every size of MAE and ConvMAE.
    pub const PUBLISHED: Self = Self { embed_dim: 512, depth: 8, num_heads: 16, mlp_ratio: 4 };

    /// # Errors
    /// [`Error::Config`] for the first field that no network can have.
    pub fn validate(&self) -> Result<()> {
        positive(&[
            ("decoder_embed_dim", self.embed_dim),
            ("decoder_depth", self.depth),
            ("decoder_num_heads", self.num_heads),
            ("mlp_ratio", self.mlp_ratio),
        ])?;
        width_and_heads(("decoder_embed_dim", self.embed_dim), ("decoder_num_heads", self.num_heads))
    }
}

/// The decoder.
#[derive(Debug)]
pub struct Decoder {
    decoder_embed: Linear,
    mask_token: Tensor,
    decoder_pos_embed: Tensor,
    decoder_blocks: Blocks,
    decoder_norm: LayerNorm,
    decoder_pred: Linear,
    cls_token: bool,
}

impl Decoder {
    /// Parameters `decoder_embed`, `mask_token`, `decoder_pos_embed`, `decoder_blocks`, `decoder_norm`, `decoder_pred` directly under
    /// `scope`, for latents of width `encoder_dim` and images of `grid` patches of `patch_size` pixels. `cls_token` says whether
    /// the first token of a latent is CLS. `norm_eps` is that of every norm.
    ///
    /// # Errors
    /// [`Error::Config`] if there is no such network.
    pub fn new(
        scope: &Scope,
        config: &DecoderConfig,
        encoder_dim: i64,
        [grid_h, grid_w]: [i64; 2],
        patch_size: i64,
        cls_token: bool,
        norm_eps: f64,
    ) -> Result<Self> {
        config.validate()?;
        let dim = config.embed_dim;
        let block = BlockConfig {
            dim,
            num_heads: config.num_heads,
            mlp_dim: config.mlp_ratio * dim,
            qkv_bias: true,
            norm_eps,
            activation: Activation::Gelu,
            gated_mlp: false,
        };
        let positions = sincos_2d(dim, grid_h, grid_w, cls_token);
        let out = 3 * patch_size.pow(2);
        Ok(Self {
            decoder_embed: Linear::new(&scope.sub("decoder_embed"), encoder_dim, dim, true),
            mask_token: scope.param("mask_token", &[1, 1, dim], Init::Normal { std: 0.02 }),
            decoder_pos_embed: scope.buffer("decoder_pos_embed", &positions),
            decoder_blocks: Blocks::new(scope, "decoder_blocks", config.depth, &block, 0),
            decoder_norm: LayerNorm::new(&scope.sub("decoder_norm"), dim, norm_eps),
            decoder_pred: Linear::new(&scope.sub("decoder_pred"), dim, out, true),
            cls_token,
        })
    }

    /// What the decoder makes of every patch, before the pixels: latent `[N, P + keep, D]`, `ids_restore [N, L]` →
    /// `[N, P + L, Dd]`, after the last norm, CLS first (`P` is 1 with a CLS token, else 0), then the patches in order.
    ///
    /// Stochastic depth is the encoder's: [`Pass::drop_path`] is not looked at.
    pub fn forward_tokens(&self, latent: &Tensor, ids_restore: &Tensor, pass: &Pass) -> Tensor {
        let prefix = i64::from(self.cls_token);
        let x = self.decoder_embed.forward(latent); // [N, P + keep, Dd]
        let (n, tokens, _) = x.size3().expect("latent is [N, P + keep, D]");
        let num_patches = ids_restore.size()[1];
        let keep = tokens - prefix;
        let mask_tokens = self.mask_token.expand([n, num_patches - keep, -1], false);
        let shuffled = Tensor::cat(&[&x.narrow(1, prefix, keep), &mask_tokens], 1); // [N, L, Dd]
        let patches = gather_rows(&shuffled, ids_restore);
        let x = Tensor::cat(&[&x.narrow(1, 0, prefix), &patches], 1) + &self.decoder_pos_embed; // [N, P + L, Dd]
        let mut pass = *pass;
        pass.drop_path = None;
        self.decoder_norm.forward(&self.decoder_blocks.forward(&x, &pass))
    }

    /// The pixels of every patch from [`Decoder::forward_tokens`]: `[N, P + L, Dd] → [N, L, p²·3]`.
    pub fn predict(&self, tokens: &Tensor) -> Tensor {
        self.patches(&self.decoder_pred.forward(tokens))
    }

    /// Without CLS: `[N, P + L, ..] → [N, L, ..]`.
    pub fn patches(&self, tokens: &Tensor) -> Tensor {
        without_prefix(tokens, i64::from(self.cls_token))
    }
}
