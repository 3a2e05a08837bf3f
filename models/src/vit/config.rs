//! What a vision transformer is made of: one description for students and for every family of teachers.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::layers::{Activation, BlockConfig, NORM_EPS};
use crate::pixels::{IMAGENET_MEAN, IMAGENET_STD};
use crate::validate::{MAX_SIZE, positive, within};

/// What a [`VisionTransformer`](super::VisionTransformer) is made of, with the statistics by which its pixels are normalized.
#[derive(Debug, Clone, PartialEq)]
pub struct VitConfig {
    /// Height and width of an image in pixels, multiples of the patch. Learned positions have a square native grid.
    pub img_size: [i64; 2],
    /// Size of a square patch, in pixels.
    pub patch_size: i64,
    /// Width `D`; the heads divide it, and 4 does for sine-cosine positions.
    pub embed_dim: i64,
    /// Number of blocks.
    pub depth: i64,
    /// Attention heads of each block.
    pub num_heads: i64,
    /// Width of the MLP's hidden layer; for a gated MLP, of the gate.
    pub mlp_dim: i64,
    /// Whether the MLPs are gated; see `Mlp::gated`.
    pub gated_mlp: bool,
    /// The MLP's non-linearity.
    pub activation: Activation,
    /// eps of every LayerNorm.
    pub norm_eps: f64,
    /// What the vector of an image comes from.
    pub pooling: Pooling,
    /// Register tokens, between CLS and the patches.
    pub registers: i64,
    /// How patches know where they are.
    pub positions: Positions,
    /// Whether there is a norm before the first block (CLIP).
    pub norm_pre: bool,
    /// Whether the patch projection has a bias (CLIP's has none).
    pub patch_bias: bool,
    /// Whether the published network scales the branches of each block (LayerScale, Touvron et al. 2021). The scales are
    /// multiplied into the branches' last matrices when a file is read, so the network has nothing to do for them.
    pub layer_scale: bool,
    /// The visual projection, where features of that layer are wanted.
    pub projection: Option<Projection>,
    /// Multi-layer fusion (MR-MAE, section 3.3): blocks whose outputs are added to the last one's before the last norm, so that both
    /// losses see them. Each in `0..depth - 1`, none twice. Empty = none. Fine-tuning does not use it.
    pub fusion: Vec<i64>,
    /// Mean of each channel (R, G, B) of pixels in 0..1, which is subtracted.
    pub mean: [f64; 3],
    /// Standard deviation of each channel, by which is divided.
    pub std: [f64; 3],
}

/// Where the vector of a whole image comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// A CLS token.
    Cls,
    /// The mean of the patches before the last norm, which it goes through: timm's `global_pool = "avg"`, whose norm is called `fc_norm`.
    /// There is a CLS token, which is not used, and patches have no last norm.
    Mean,
    /// Attention of a learned query to all patches, after the final norm (SigLIP). There is no CLS token.
    Attention,
}

/// How patches know where they are.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Positions {
    /// A table of sines and cosines with a row for CLS, fixed in pretraining (MAE).
    SinCos,
    /// A table of the patches, interpolated for other grids than the native one. A position of CLS is part of the CLS token.
    Learned,
    /// Queries and keys of every block are turned; see [`Rotary`](crate::layers::Rotary).
    Rotary {
        /// The base of the frequencies.
        base: f64,
    },
}

/// The visual projection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Projection {
    /// Width of the projected features.
    pub out_dim: i64,
    /// Whether it has a bias.
    pub bias: bool,
}

impl VitConfig {
    /// ViT-Ti/16 at 224 (DeiT's tiny).
    pub const TINY_PATCH16: Self = Self::mae(16, 192, 12, 3);
    /// ViT-S/16 at 224.
    pub const SMALL_PATCH16: Self = Self::mae(16, 384, 12, 6);
    /// ViT-B/16 at 224.
    pub const BASE_PATCH16: Self = Self::mae(16, 768, 12, 12);
    /// ViT-L/16 at 224.
    pub const LARGE_PATCH16: Self = Self::mae(16, 1024, 24, 16);
    /// ViT-H/14 at 224.
    pub const HUGE_PATCH14: Self = Self::mae(14, 1280, 32, 16);

    /// MAE's ViT at 224 x 224 pixels, its MLPs 4 widths wide.
    pub const fn mae(patch_size: i64, embed_dim: i64, depth: i64, num_heads: i64) -> Self {
        Self {
            img_size: [224, 224],
            patch_size,
            embed_dim,
            depth,
            num_heads,
            mlp_dim: embed_dim.saturating_mul(4),
            gated_mlp: false,
            activation: Activation::Gelu,
            norm_eps: NORM_EPS,
            pooling: Pooling::Cls,
            registers: 0,
            positions: Positions::SinCos,
            norm_pre: false,
            patch_bias: true,
            layer_scale: false,
            projection: None,
            fusion: Vec::new(),
            mean: IMAGENET_MEAN,
            std: IMAGENET_STD,
        }
    }

    /// Rows and columns of patches.
    pub fn grid(&self) -> [i64; 2] {
        self.img_size.map(|side| side / self.patch_size)
    }

    /// Whether it is a student's, which alone has sine-cosine positions.
    pub(crate) fn is_mae(&self) -> bool {
        self.positions == Positions::SinCos
    }

    /// Whether the first token is CLS.
    pub fn cls_token(&self) -> bool {
        self.pooling != Pooling::Attention
    }

    /// Tokens before the patches: CLS and registers.
    pub fn prefix(&self) -> i64 {
        i64::from(self.cls_token()) + self.registers
    }

    /// Rows of the table of positions before those of the patches.
    pub(crate) fn table_prefix(&self) -> i64 {
        i64::from(self.is_mae() && self.cls_token())
    }

    /// Whether positions are antialiased where they are interpolated; see [`crate::pos_interpolate`].
    pub(crate) fn antialias(&self) -> bool {
        self.registers > 0
    }

    /// The base of rotary positions.
    pub(crate) fn rotary_base(&self) -> Option<f64> {
        match self.positions {
            Positions::SinCos | Positions::Learned => None,
            Positions::Rotary { base } => Some(base),
        }
    }

    /// The periods of rotary positions, one per pair of a quarter head.
    pub(crate) fn rotary_periods(&self) -> Option<Vec<f64>> {
        let quarter = self.embed_dim / self.num_heads / 4;
        let base = self.rotary_base()?;
        let periods = (0..quarter).map(|k| base.powf(k as f64 / quarter as f64));
        Some(periods.collect())
    }

    /// A block of the network.
    pub(crate) fn block(&self) -> BlockConfig {
        BlockConfig {
            dim: self.embed_dim,
            num_heads: self.num_heads,
            mlp_dim: self.mlp_dim,
            qkv_bias: true,
            norm_eps: self.norm_eps,
            activation: self.activation,
            gated_mlp: self.gated_mlp,
        }
    }

    /// Hidden width of the MLPs in widths; for gated ones, which have three matrices where others have two, that of plain MLPs
    /// with as many products.
    pub fn mlp_ratio(&self) -> f64 {
        self.mlp_matrices() as f64 / 2.0 * self.mlp_dim as f64 / self.embed_dim as f64
    }

    /// Matrices `[D, mlp_dim]` in an MLP.
    fn mlp_matrices(&self) -> i64 {
        if self.gated_mlp { 3 } else { 2 }
    }

    /// FLOPs of a forward pass over `patches` patches of one image, a multiply-add as two: the patch projection, and in each
    /// block qkv and proj (4 D x D), the MLP's matrices and attention (T x T with D, twice). Heads are not counted.
    pub fn flops(&self, patches: i64) -> f64 {
        let [dim, mlp_dim, tokens] = [self.embed_dim, self.mlp_dim, self.prefix() + patches].map(|n| n as f64);
        let embed = patches as f64 * (3 * self.patch_size.pow(2)) as f64 * dim;
        let weights = tokens * dim * (4.0 * dim + self.mlp_matrices() as f64 * mlp_dim);
        let attention = 2.0 * tokens.powi(2) * dim;
        2.0 * (embed + self.depth as f64 * (weights + attention))
    }

    /// # Errors
    /// [`Error::Config`] for the first field that no network can have.
    pub fn validate(&self) -> Result<()> {
        let sizes = [
            ("patch_size", self.patch_size),
            ("embed_dim", self.embed_dim),
            ("depth", self.depth),
            ("num_heads", self.num_heads),
            ("mlp_dim", self.mlp_dim),
        ];
        positive(&sizes)?;
        within(&[&sizes[..], &[("registers", self.registers)]].concat(), 0..=MAX_SIZE)?;
        let is_cut = |side: &i64| *side >= self.patch_size && side % self.patch_size == 0;
        if !self.img_size.iter().all(is_cut) {
            return Err(Error::Config {
                field: "img_size",
                value: format!("{:?}", self.img_size),
                reason: format!("both sides must be multiples of patch_size = {}", self.patch_size),
            });
        }
        within(&self.grid().map(|side| ("grid", side)), 1..=MAX_SIZE)?;
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
        let refuse =
            |reason: String| Err(Error::Config { field: "embed_dim", value: self.embed_dim.to_string(), reason });
        if self.is_mae() && self.embed_dim % 4 != 0 {
            return refuse("4 must divide it, for the sine-cosine positions".to_owned());
        }
        if self.embed_dim % self.num_heads != 0 {
            return refuse(format!("num_heads = {} must divide it", self.num_heads));
        }
        if self.rotary_base().is_some() && self.embed_dim / self.num_heads % 4 != 0 {
            return refuse(format!(
                "rotary positions need heads of a width that 4 divides (num_heads = {})",
                self.num_heads
            ));
        }
        Ok(())
    }
}
