//! The student's encoder: MAE's ViT or MCMAE's, which keep the same promises.
//!
//! Each sees the visible patches alone, or a whole image, and gives `P` prefix tokens (CLS, or none) and then one token for each
//! patch.

use tch::Tensor;

use crate::blocks::Pass;
use crate::error::Result;
use crate::masking::Masking;
use crate::mcmae::{McmaeEncoder, McmaeEncoderConfig, PATCH_SIZE};
use crate::params::Scope;

mod vit;

pub use vit::{VitConfig, VitEncoder};

/// What an encoder is made of.
#[derive(Debug, Clone, PartialEq)]
pub enum EncoderConfig {
    /// MAE's ViT.
    Vit(VitConfig),
    /// MCMAE's convolution stages and transformer.
    Mcmae(McmaeEncoderConfig),
}

impl EncoderConfig {
    /// Rows and columns of patches.
    pub fn grid(&self) -> [i64; 2] {
        match self {
            Self::Vit(config) => config.grid(),
            Self::Mcmae(config) => config.grid(),
        }
    }

    /// `L`.
    pub fn num_patches(&self) -> i64 {
        let [grid_h, grid_w] = self.grid();
        grid_h * grid_w
    }

    /// Side of a patch in pixels.
    pub fn patch_size(&self) -> i64 {
        match self {
            Self::Vit(config) => config.patch_size,
            Self::Mcmae(_) => PATCH_SIZE,
        }
    }

    /// Width `D` of its tokens.
    pub fn embed_dim(&self) -> i64 {
        match self {
            Self::Vit(config) => config.embed_dim,
            Self::Mcmae(config) => config.embed_dim(),
        }
    }

    /// Whether its first token is CLS.
    pub fn cls_token(&self) -> bool {
        match self {
            Self::Vit(_) => true,
            Self::Mcmae(config) => config.cls_token,
        }
    }

    /// Whether pretraining sums the outputs of several blocks or stages before the last norm.
    pub fn is_fused(&self) -> bool {
        match self {
            Self::Vit(config) => !config.fusion.is_empty(),
            Self::Mcmae(config) => config.fusion,
        }
    }

    /// Blocks with two residual branches each, which stochastic depth may drop.
    pub fn num_blocks(&self) -> i64 {
        match self {
            Self::Vit(config) => config.depth,
            Self::Mcmae(config) => config.num_blocks(),
        }
    }

    /// # Errors
    /// [`Error::Config`](crate::Error::Config) for the first field that no network can have.
    pub fn validate(&self) -> Result<()> {
        match self {
            Self::Vit(config) => config.validate(),
            Self::Mcmae(config) => config.validate(),
        }
    }
}

/// An encoder.
#[derive(Debug)]
pub enum Encoder {
    /// MAE's ViT.
    Vit(VitEncoder),
    /// MCMAE's convolution stages and transformer.
    Mcmae(Box<McmaeEncoder>),
}

impl Encoder {
    /// An encoder with its reference's parameter names directly under `scope`.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) if there is no such network.
    pub fn new(scope: &Scope, config: &EncoderConfig) -> Result<Self> {
        Ok(match config {
            EncoderConfig::Vit(config) => Self::Vit(VitEncoder::new(scope, config)?),
            EncoderConfig::Mcmae(config) => Self::Mcmae(Box::new(McmaeEncoder::new(scope, config)?)),
        })
    }

    /// Whether its first token is CLS.
    pub fn cls_token(&self) -> bool {
        match self {
            Self::Vit(_) => true,
            Self::Mcmae(encoder) => encoder.config().cls_token,
        }
    }

    /// Encodes the visible patches: `imgs [N, 3, H, W]`, normalised, → latent `[N, P + keep, D]` after the last norm, the patches in
    /// the order of `ids_keep`. With fusion, if the configuration has it.
    pub fn forward_encoder(&self, imgs: &Tensor, masking: &Masking, pass: &Pass) -> Tensor {
        match self {
            Self::Vit(encoder) => encoder.forward_encoder(imgs, masking, pass),
            Self::Mcmae(encoder) => encoder.forward_encoder(imgs, masking, pass),
        }
    }

    /// Encodes whole images: `imgs [N, 3, H, W]`, normalised, → `[N, P + L, D]`, patches in order, before the last norm and without
    /// fusion: what fine-tuning stands on.
    pub fn forward_blocks(&self, imgs: &Tensor, pass: &Pass) -> Tensor {
        match self {
            Self::Vit(encoder) => encoder.forward_blocks(imgs, pass),
            Self::Mcmae(encoder) => encoder.forward_blocks(imgs, pass),
        }
    }

    /// The last norm: `[.., D] → [.., D]`.
    pub fn forward_norm(&self, x: &Tensor) -> Tensor {
        match self {
            Self::Vit(encoder) => encoder.forward_norm(x),
            Self::Mcmae(encoder) => encoder.forward_norm(x),
        }
    }

    /// Encodes whole images: `imgs [N, 3, H, W]`, normalised, → `[N, P + L, D]`, patches in order, after the last norm.
    ///
    /// With `fused` as the encoder was pretrained, if its configuration has fusion: the norm's parameters belong to the sum. Without, the
    /// last block alone goes through it, as in packages that know no fusion.
    pub fn forward_features(&self, imgs: &Tensor, fused: bool) -> Tensor {
        match self {
            Self::Vit(encoder) => encoder.forward_features(imgs, fused),
            Self::Mcmae(encoder) => encoder.forward_features(imgs, fused),
        }
    }
}
