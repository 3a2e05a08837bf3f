//! MAE's encoder: a plain ViT over the patches that are seen.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::blocks::{Blocks, Pass};
use crate::error::{Error, Result};
use crate::init::Init;
use crate::masking::Masking;
use crate::params::Scope;
use crate::pos_embed::sincos_2d;
use crate::tokens::gather_rows;
use crate::validate::{positive, width_and_heads};
use crate::vit::{Activation, BlockConfig, LayerNorm, NORM_EPS, PatchEmbed};

/// What a ViT encoder is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VitConfig {
    /// Height and width of an image in pixels, multiples of the patch.
    pub img_size: [i64; 2],
    /// Side of a patch in pixels.
    pub patch_size: i64,
    /// Width `D`; 4 divides it (positions) and so do the heads.
    pub embed_dim: i64,
    /// Blocks.
    pub depth: i64,
    /// Attention heads.
    pub num_heads: i64,
    /// Hidden width of an MLP, in widths.
    pub mlp_ratio: i64,
    /// Multi-layer fusion (MR-MAE, section 3.3): blocks whose outputs are added to the last one's before the last norm, so that both
    /// losses see them. Each in `0..depth - 1`, none twice. Empty = none. Fine-tuning does not use it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fusion: Vec<i64>,
}

impl VitConfig {
    /// ViT-Ti/16 at 224 (DeiT's tiny).
    pub const TINY_PATCH16: Self = Self::at_224(16, 192, 12, 3);
    /// ViT-S/16 at 224.
    pub const SMALL_PATCH16: Self = Self::at_224(16, 384, 12, 6);
    /// ViT-B/16 at 224.
    pub const BASE_PATCH16: Self = Self::at_224(16, 768, 12, 12);
    /// ViT-L/16 at 224.
    pub const LARGE_PATCH16: Self = Self::at_224(16, 1024, 24, 16);
    /// ViT-H/14 at 224.
    pub const HUGE_PATCH14: Self = Self::at_224(14, 1280, 32, 16);

    const fn at_224(patch_size: i64, embed_dim: i64, depth: i64, num_heads: i64) -> Self {
        Self { img_size: [224, 224], patch_size, embed_dim, depth, num_heads, mlp_ratio: 4, fusion: Vec::new() }
    }

    /// Rows and columns of patches.
    pub fn grid(&self) -> [i64; 2] {
        self.img_size.map(|side| side / self.patch_size)
    }

    /// # Errors
    /// [`Error::Config`] for the first field that no network can have.
    pub fn validate(&self) -> Result<()> {
        positive(&[
            ("patch_size", self.patch_size),
            ("embed_dim", self.embed_dim),
            ("depth", self.depth),
            ("num_heads", self.num_heads),
            ("mlp_ratio", self.mlp_ratio),
        ])?;
        let is_cut = |side: &i64| *side >= self.patch_size && side % self.patch_size == 0;
        if !self.img_size.iter().all(is_cut) {
            return Err(Error::Config {
                field: "img_size",
                value: format!("{:?}", self.img_size),
                reason: format!("both sides must be multiples of patch_size = {}", self.patch_size),
            });
        }
        let mut seen = self.fusion.clone();
        seen.sort_unstable();
        seen.dedup();
        let before_last = 0..self.depth - 1;
        if seen.len() != self.fusion.len() || !seen.iter().all(|block| before_last.contains(block)) {
            return Err(Error::Config {
                field: "fusion",
                value: format!("{:?}", self.fusion),
                reason: format!(
                    "names blocks before the last (0 to {}), each once; the last is always part of the sum",
                    self.depth - 2
                ),
            });
        }
        width_and_heads(("embed_dim", self.embed_dim), ("num_heads", self.num_heads))
    }
}

/// The encoder. Agrees with `facebookresearch/mae`.
#[derive(Debug)]
pub struct VitEncoder {
    config: VitConfig,
    patch_embed: PatchEmbed,
    cls_token: Tensor,
    pos_embed: Tensor,
    blocks: Blocks,
    norm: LayerNorm,
}

impl VitEncoder {
    /// Parameters `patch_embed`, `cls_token`, `pos_embed`, `blocks`, `norm` directly under `scope`, started as the reference's
    /// `initialize_weights` does: linear layers and the flattened patch projection xavier-uniform with zero biases (the patch
    /// projection's own bias keeps PyTorch's default), norms 1 and 0, CLS N(0, 0.02²).
    ///
    /// # Errors
    /// [`Error::Config`] if there is no such network.
    pub fn new(scope: &Scope, config: &VitConfig) -> Result<Self> {
        config.validate()?;
        let [grid_h, grid_w] = config.grid();
        let dim = config.embed_dim;
        let block = BlockConfig {
            dim,
            num_heads: config.num_heads,
            mlp_dim: config.mlp_ratio * dim,
            qkv_bias: true,
            norm_eps: NORM_EPS,
            activation: Activation::Gelu,
            gated_mlp: false,
        };
        Ok(Self {
            config: config.clone(),
            patch_embed: PatchEmbed::new(&scope.sub("patch_embed"), config.patch_size, dim, true),
            cls_token: scope.param("cls_token", &[1, 1, dim], Init::Normal { std: 0.02 }),
            pos_embed: scope.buffer("pos_embed", &sincos_2d(dim, grid_h, grid_w, true)),
            blocks: Blocks::new(scope, "blocks", config.depth, &block, 0),
            norm: LayerNorm::new(&scope.sub("norm"), dim, NORM_EPS),
        })
    }

    /// See [`Encoder::forward_encoder`](super::Encoder::forward_encoder).
    ///
    /// One thing is done in another order than in the reference, which embeds all patches and drops three quarters of them: here the
    /// visible ones are cut out first and only they are embedded. Each output is the same sum of products; a masked pixel is not even
    /// read.
    pub fn forward_encoder(&self, imgs: &Tensor, masking: &Masking, pass: &Pass) -> Tensor {
        let patches = gather_rows(&self.patch_embed.unfold(imgs), &masking.ids_keep); // [N, keep, 3p²]
        let positions = self.patch_positions().get(0); // [L, D]
        let (n, keep) = masking.ids_keep.size2().expect("ids_keep is [N, keep]");
        let positions = positions.index_select(0, &masking.ids_keep.flatten(0, 1)).reshape([n, keep, -1]); // [N, keep, D]
        let x = self.with_cls(&(self.patch_embed.project(&patches) + positions));
        self.norm.forward(&self.blocks.forward_fused(&x, &self.config.fusion, pass))
    }

    /// See [`Encoder::forward_blocks`](super::Encoder::forward_blocks).
    pub fn forward_blocks(&self, imgs: &Tensor, pass: &Pass) -> Tensor {
        self.blocks.forward(&self.embed(imgs), pass)
    }

    /// See [`Encoder::forward_features`](super::Encoder::forward_features).
    pub fn forward_features(&self, imgs: &Tensor, fused: bool) -> Tensor {
        let fusion = match fused {
            true => &self.config.fusion[..],
            false => &[],
        };
        let x = self.embed(imgs);
        self.norm.forward(&self.blocks.forward_fused(&x, fusion, &Pass::default()))
    }

    /// The tokens of whole images before the first block: `[N, 3, H, W] → [N, 1 + L, D]`.
    fn embed(&self, imgs: &Tensor) -> Tensor {
        self.with_cls(&(self.patch_embed.forward(imgs) + self.patch_positions()))
    }

    /// The last norm: `[.., D] → [.., D]`.
    pub fn forward_norm(&self, x: &Tensor) -> Tensor {
        self.norm.forward(x)
    }

    /// `[1, L, D]`.
    fn patch_positions(&self) -> Tensor {
        let tokens = self.pos_embed.size()[1];
        self.pos_embed.narrow(1, 1, tokens - 1)
    }

    /// CLS before embedded patches: `[N, K, D] → [N, 1 + K, D]`.
    fn with_cls(&self, patches: &Tensor) -> Tensor {
        let cls = &self.cls_token + self.pos_embed.narrow(1, 0, 1);
        let cls = cls.expand([patches.size()[0], -1, -1], false);
        Tensor::cat(&[&cls, patches], 1)
    }
}
