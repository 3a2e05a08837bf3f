//! The masked autoencoder (He et al. 2022), with the parameter names of its reference code.
//!
//! Agrees with `facebookresearch/mae` (and transformers' `ViTMAEForPreTraining`) given the same noise. One thing is done in another
//! order: the reference embeds all patches and drops three quarters of them, here the visible ones are cut out first and only they
//! are embedded. Each output is the same sum of products; a masked pixel is not even read by the encoder.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::error::{Error, Result};
use crate::init::Init;
use crate::losses::{masked_patch_loss, norm_pix};
use crate::masking::Masking;
use crate::params::Scope;
use crate::pos_embed::sincos_2d;
use crate::vit::{Activation, Block, BlockConfig, LayerNorm, Linear, PatchEmbed};

/// eps of every norm of MAE, where PyTorch's default would be 1e-5.
const NORM_EPS: f64 = 1e-6;

/// What a masked autoencoder is made of.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaeConfig {
    /// Height and width of an image in pixels, multiples of the patch.
    pub img_size: [i64; 2],
    /// Side of a patch in pixels.
    pub patch_size: i64,
    /// Width of the encoder; 4 divides it (positions) and so do the heads.
    pub embed_dim: i64,
    /// Blocks of the encoder.
    pub depth: i64,
    /// Attention heads of the encoder.
    pub num_heads: i64,
    /// Width of the decoder.
    pub decoder_embed_dim: i64,
    /// Blocks of the decoder.
    pub decoder_depth: i64,
    /// Attention heads of the decoder.
    pub decoder_num_heads: i64,
    /// Hidden width of every MLP, in widths.
    pub mlp_ratio: i64,
    /// Whether the pixel target is normalised per patch.
    pub norm_pix_loss: bool,
}

impl MaeConfig {
    /// ViT-B/16 at 224 with the published decoder, 8 blocks of width 512: the reference's `mae_vit_base_patch16`, with
    /// `norm_pix_loss` as in its recipe. The other sizes change a few fields of it.
    pub const VIT_BASE_PATCH16: Self = Self {
        img_size: [224, 224],
        patch_size: 16,
        embed_dim: 768,
        depth: 12,
        num_heads: 12,
        decoder_embed_dim: 512,
        decoder_depth: 8,
        decoder_num_heads: 16,
        mlp_ratio: 4,
        norm_pix_loss: true,
    };
    /// ViT-Ti/16 (DeiT's tiny), with the same decoder.
    pub const VIT_TINY_PATCH16: Self = Self {
        embed_dim: 192,
        num_heads: 3,
        ..Self::VIT_BASE_PATCH16
    };
    /// ViT-S/16, with the same decoder.
    pub const VIT_SMALL_PATCH16: Self = Self {
        embed_dim: 384,
        num_heads: 6,
        ..Self::VIT_BASE_PATCH16
    };
    /// ViT-L/16: the reference's `mae_vit_large_patch16`.
    pub const VIT_LARGE_PATCH16: Self = Self {
        embed_dim: 1024,
        depth: 24,
        num_heads: 16,
        ..Self::VIT_BASE_PATCH16
    };
    /// ViT-H/14: the reference's `mae_vit_huge_patch14`.
    pub const VIT_HUGE_PATCH14: Self = Self {
        patch_size: 14,
        embed_dim: 1280,
        depth: 32,
        num_heads: 16,
        ..Self::VIT_BASE_PATCH16
    };

    /// Rows and columns of patches.
    pub fn grid(&self) -> [i64; 2] {
        self.img_size.map(|side| side / self.patch_size)
    }

    /// `L`.
    pub fn num_patches(&self) -> i64 {
        let [grid_h, grid_w] = self.grid();
        grid_h * grid_w
    }

    /// # Errors
    /// [`Error::Config`] for the first field that no network can have.
    pub fn validate(&self) -> Result<()> {
        let refuse = |field, value: String, reason: &str| {
            Err(Error::Config {
                field,
                value,
                reason: reason.to_owned(),
            })
        };
        let positive = [
            ("patch_size", self.patch_size),
            ("embed_dim", self.embed_dim),
            ("depth", self.depth),
            ("num_heads", self.num_heads),
            ("decoder_embed_dim", self.decoder_embed_dim),
            ("decoder_depth", self.decoder_depth),
            ("decoder_num_heads", self.decoder_num_heads),
            ("mlp_ratio", self.mlp_ratio),
        ];
        if let Some((field, value)) = positive.into_iter().find(|(_, value)| *value < 1) {
            return refuse(field, value.to_string(), "must be at least 1");
        }
        if self
            .img_size
            .iter()
            .any(|side| *side < self.patch_size || side % self.patch_size != 0)
        {
            let reason = format!(
                "both sides must be multiples of patch_size = {}",
                self.patch_size
            );
            return refuse("img_size", format!("{:?}", self.img_size), &reason);
        }
        let widths = [
            ("embed_dim", self.embed_dim, "num_heads", self.num_heads),
            (
                "decoder_embed_dim",
                self.decoder_embed_dim,
                "decoder_num_heads",
                self.decoder_num_heads,
            ),
        ];
        for (field, width, heads_field, heads) in widths {
            if width % 4 != 0 {
                return refuse(
                    field,
                    width.to_string(),
                    "4 must divide it, for the sine-cosine positions",
                );
            }
            if width % heads != 0 {
                return refuse(
                    field,
                    width.to_string(),
                    &format!("{heads_field} = {heads} must divide it"),
                );
            }
        }
        Ok(())
    }
}

/// The autoencoder.
#[derive(Debug)]
pub struct Mae {
    config: MaeConfig,
    patch_embed: PatchEmbed,
    cls_token: Tensor,
    pos_embed: Tensor,
    blocks: Vec<Block>,
    norm: LayerNorm,
    decoder_embed: Linear,
    mask_token: Tensor,
    decoder_pos_embed: Tensor,
    decoder_blocks: Vec<Block>,
    decoder_norm: LayerNorm,
    decoder_pred: Linear,
}

impl Mae {
    /// A network with the reference's parameter names directly under `scope`, started as its `initialize_weights` does:
    /// linear layers and the flattened patch projection xavier-uniform with zero biases (the patch projection's own bias keeps
    /// PyTorch's default), norms 1 and 0, CLS and mask token N(0, 0.02²).
    ///
    /// # Errors
    /// [`Error::Config`] if there is no such network.
    pub fn new(scope: &Scope, config: &MaeConfig) -> Result<Self> {
        config.validate()?;
        let [grid_h, grid_w] = config.grid();
        let (dim, decoder_dim) = (config.embed_dim, config.decoder_embed_dim);
        let block = |dim, num_heads| BlockConfig {
            dim,
            num_heads,
            mlp_dim: config.mlp_ratio * dim,
            qkv_bias: true,
            norm_eps: NORM_EPS,
            activation: Activation::Gelu,
            gated_mlp: false,
        };
        let blocks = |name: &str, depth, config: BlockConfig| {
            (0..depth)
                .map(|i| Block::new(&scope.sub(name).sub(i), &config))
                .collect()
        };
        let token = Init::Normal { std: 0.02 };
        Ok(Self {
            config: *config,
            patch_embed: PatchEmbed::new(&scope.sub("patch_embed"), config.patch_size, dim, true),
            cls_token: scope.param("cls_token", &[1, 1, dim], token),
            pos_embed: scope.buffer("pos_embed", &sincos_2d(dim, grid_h, grid_w, true)),
            blocks: blocks("blocks", config.depth, block(dim, config.num_heads)),
            norm: LayerNorm::new(&scope.sub("norm"), dim, NORM_EPS),
            decoder_embed: Linear::new(&scope.sub("decoder_embed"), dim, decoder_dim, true),
            mask_token: scope.param("mask_token", &[1, 1, decoder_dim], token),
            decoder_pos_embed: scope.buffer(
                "decoder_pos_embed",
                &sincos_2d(decoder_dim, grid_h, grid_w, true),
            ),
            decoder_blocks: blocks(
                "decoder_blocks",
                config.decoder_depth,
                block(decoder_dim, config.decoder_num_heads),
            ),
            decoder_norm: LayerNorm::new(&scope.sub("decoder_norm"), decoder_dim, NORM_EPS),
            decoder_pred: Linear::new(
                &scope.sub("decoder_pred"),
                decoder_dim,
                3 * config.patch_size.pow(2),
                true,
            ),
        })
    }

    /// What it is made of.
    pub fn config(&self) -> &MaeConfig {
        &self.config
    }

    /// Encodes the visible patches: `imgs [N, 3, H, W]`, normalised, → latent `[N, 1 + keep, D]`, CLS first, the others in the
    /// order of `ids_keep`.
    pub fn forward_encoder(&self, imgs: &Tensor, masking: &Masking) -> Tensor {
        let patches = gather_rows(&self.patch_embed.unfold(imgs), &masking.ids_keep); // [N, keep, 3p²]
        let positions = self
            .pos_embed
            .get(0)
            .narrow(0, 1, self.config.num_patches()); // [L, D]
        let (n, keep) = masking.ids_keep.size2().expect("ids_keep is [N, keep]");
        let positions = positions
            .index_select(0, &masking.ids_keep.flatten(0, 1))
            .reshape([n, keep, -1]); // [N, keep, D]
        self.encode(&(self.patch_embed.project(&patches) + positions))
    }

    /// Encodes whole images: `imgs [N, 3, H, W]`, normalised, → `[N, 1 + L, D]`, CLS first, patches in order.
    pub fn forward_features(&self, imgs: &Tensor) -> Tensor {
        let positions = self.pos_embed.narrow(1, 1, self.config.num_patches());
        self.encode(&(self.patch_embed.forward(imgs) + positions))
    }

    /// CLS, the blocks and the last norm over embedded patches: `[N, K, D] → [N, 1 + K, D]`.
    fn encode(&self, patches: &Tensor) -> Tensor {
        let cls = &self.cls_token + self.pos_embed.narrow(1, 0, 1);
        let cls = cls.expand([patches.size()[0], -1, -1], false);
        let x = Tensor::cat(&[&cls, patches], 1);
        self.norm
            .forward(&self.blocks.iter().fold(x, |x, block| block.forward(&x)))
    }

    /// Predicts the pixels of every patch: latent `[N, 1 + keep, D]`, `ids_restore [N, L]` → `[N, L, p²·3]`, in the order of
    /// [`patchify`].
    pub fn forward_decoder(&self, latent: &Tensor, ids_restore: &Tensor) -> Tensor {
        let x = self.decoder_embed.forward(latent); // [N, 1 + keep, Dd]
        let (n, tokens, _) = x.size3().expect("latent is [N, 1 + keep, D]");
        let num_patches = ids_restore.size()[1];
        let mask_tokens = self
            .mask_token
            .expand([n, num_patches + 1 - tokens, -1], false);
        let shuffled = Tensor::cat(&[&x.narrow(1, 1, tokens - 1), &mask_tokens], 1); // [N, L, Dd]
        let patches = gather_rows(&shuffled, ids_restore);
        let x = Tensor::cat(&[&x.narrow(1, 0, 1), &patches], 1) + &self.decoder_pos_embed; // [N, 1 + L, Dd]
        let x = self
            .decoder_blocks
            .iter()
            .fold(x, |x, block| block.forward(&x));
        let pred = self.decoder_pred.forward(&self.decoder_norm.forward(&x));
        pred.narrow(1, 1, num_patches)
    }

    /// The pixel loss over removed patches: `imgs [N, 3, H, W]`, `pred [N, L, p²·3]`, `mask [N, L]` → scalar.
    pub fn forward_loss(&self, imgs: &Tensor, pred: &Tensor, mask: &Tensor) -> Tensor {
        let target = patchify(imgs, self.config.patch_size);
        let target = if self.config.norm_pix_loss {
            norm_pix(&target)
        } else {
            target
        };
        masked_patch_loss(pred, &target, mask)
    }
}

/// Rows `ids [N, K]` of each `x [N, L, D]`: `[N, K, D]`.
///
/// What `gather` with an index of `D` equal columns does, on whole rows: ten times as fast on a CPU at a decoder's size.
pub(crate) fn gather_rows(x: &Tensor, ids: &Tensor) -> Tensor {
    let (n, num_patches, dim) = x.size3().expect("tokens are [N, L, D]");
    let first_row =
        Tensor::arange_start_step(0, n * num_patches, num_patches, (Kind::Int64, ids.device()));
    let rows = (ids + first_row.unsqueeze(1)).flatten(0, 1); // [N·K], into [N·L, D]
    x.reshape([n * num_patches, dim])
        .index_select(0, &rows)
        .reshape([n, ids.size()[1], dim])
}

/// `imgs [N, 3, H, W] → [N, L, p²·3]`: patches row-major; within a patch row, column, channel.
///
/// # Panics
/// If `patch_size` does not divide `H` and `W`.
pub fn patchify(imgs: &Tensor, patch_size: i64) -> Tensor {
    let p = patch_size;
    let (n, c, height, width) = imgs.size4().expect("imgs are [N, 3, H, W]");
    assert!(
        height % p == 0 && width % p == 0,
        "{height}x{width} is no whole number of {p}x{p} patches"
    );
    let (h, w) = (height / p, width / p);
    let patches = imgs.reshape([n, c, h, p, w, p]).permute([0, 2, 4, 3, 5, 1]); // [N, h, w, p, p, c]
    patches.reshape([n, h * w, p * p * c])
}

/// The inverse of [`patchify`] for images of `grid_h` × `grid_w` patches.
pub fn unpatchify(patches: &Tensor, patch_size: i64, [grid_h, grid_w]: [i64; 2]) -> Tensor {
    let p = patch_size;
    let n = patches.size()[0];
    let imgs = patches
        .reshape([n, grid_h, grid_w, p, p, 3])
        .permute([0, 5, 1, 3, 2, 4]); // [N, c, h, p, w, p]
    imgs.reshape([n, 3, grid_h * p, grid_w * p])
}

#[cfg(test)]
mod tests;
