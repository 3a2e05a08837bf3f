//! The encoders: the vision transformer or MCMAE's convolutions and transformer, which keep the same promises.
//!
//! Each sees the visible patches alone, or a whole image, and gives `P` prefix tokens (CLS, registers, or none) and then one token
//! for each patch. Pretraining, evaluation and fine-tuning stand on it; a teacher's tower that is fine-tuned is one as well.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::blocks::ForwardOptions;
use crate::error::{Error, Result};
use crate::layers::NORM_EPS;
use crate::masking::Masking;
use crate::mcmae::{McmaeEncoder, McmaeEncoderConfig, PATCH_SIZE};
use crate::params::{Scope, Tensors};
use crate::pixels::{IMAGENET_MEAN, IMAGENET_STD};
use crate::shapes::{McmaeShapes, num_blocks};
use crate::vit::{Pooling, VisionTransformer, VitConfig};

mod record;

/// What an encoder is made of. In a record, with its `kind`: `vit` for MAE's ViT, `tower` for any other, `mcmae`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "record::Record", into = "record::Record")]
pub enum EncoderConfig {
    /// A vision transformer: MAE's, or the tower of a teacher exactly as it gives features.
    Vit(VitConfig),
    /// MCMAE's convolution stages and transformer.
    Mcmae(McmaeEncoderConfig),
}

impl EncoderConfig {
    /// Height and width of an image, in pixels.
    pub fn img_size(&self) -> [i64; 2] {
        match self {
            Self::Vit(vit) => vit.img_size,
            Self::Mcmae(mcmae) => mcmae.img_size,
        }
    }

    /// The same encoder for square images of another size.
    ///
    /// # Errors
    /// [`Error::Config`] if the patches do not fill it.
    pub fn at_size(&self, img_size: i64) -> Result<EncoderConfig> {
        let mut config = self.clone();
        match &mut config {
            Self::Vit(vit) => vit.img_size = [img_size; 2],
            Self::Mcmae(mcmae) => mcmae.img_size = [img_size; 2],
        }
        config.validate()?;
        Ok(config)
    }

    /// The same encoder without fusion, and with it ConvMAE's projections of its stages: what fine-tuning stands on.
    pub fn without_fusion(mut self) -> EncoderConfig {
        match &mut self {
            Self::Vit(vit) => vit.fusion.clear(),
            Self::Mcmae(mcmae) => mcmae.fusion = false,
        }
        self
    }

    /// Rows and columns of patches.
    pub fn grid(&self) -> [i64; 2] {
        match self {
            Self::Vit(vit) => vit.grid(),
            Self::Mcmae(mcmae) => mcmae.grid(),
        }
    }

    /// `L`.
    pub fn num_patches(&self) -> i64 {
        let [rows, columns] = self.grid();
        rows.saturating_mul(columns)
    }

    /// Size of a square patch, in pixels.
    pub fn patch_size(&self) -> i64 {
        match self {
            Self::Vit(vit) => vit.patch_size,
            Self::Mcmae(_) => PATCH_SIZE,
        }
    }

    /// Width `D` of its tokens.
    pub fn embed_dim(&self) -> i64 {
        match self {
            Self::Vit(vit) => vit.embed_dim,
            Self::Mcmae(mcmae) => mcmae.embed_dim(),
        }
    }

    /// Whether its first token is CLS.
    pub fn cls_token(&self) -> bool {
        match self {
            Self::Vit(vit) => vit.cls_token(),
            Self::Mcmae(mcmae) => mcmae.cls_token,
        }
    }

    /// Whether the last norm is that of the patches' mean.
    pub(crate) fn pools_mean(&self) -> bool {
        matches!(self, Self::Vit(vit) if vit.pooling == Pooling::Mean)
    }

    /// Tokens before the patches.
    pub fn prefix(&self) -> i64 {
        match self {
            Self::Vit(vit) => vit.prefix(),
            Self::Mcmae(mcmae) => i64::from(mcmae.cls_token),
        }
    }

    /// Whether pretraining sums the outputs of several blocks or stages before the last norm.
    pub fn is_fused(&self) -> bool {
        match self {
            Self::Vit(vit) => !vit.fusion.is_empty(),
            Self::Mcmae(mcmae) => mcmae.fusion,
        }
    }

    /// Blocks with two residual branches each, which stochastic depth may drop.
    pub fn num_blocks(&self) -> i64 {
        match self {
            Self::Vit(vit) => vit.depth,
            Self::Mcmae(mcmae) => mcmae.num_blocks(),
        }
    }

    /// Mean and standard deviation of the channels (R, G, B) of pixels in 0..1, by which images are normalized.
    pub fn normalization(&self) -> ([f64; 3], [f64; 3]) {
        match self {
            Self::Vit(vit) => (vit.mean, vit.std),
            Self::Mcmae(_) => (IMAGENET_MEAN, IMAGENET_STD),
        }
    }

    /// Whether pretraining has fixed positions, which fine-tuning trains.
    pub(crate) fn has_fixed_positions(&self) -> bool {
        match self {
            Self::Vit(vit) => vit.is_mae(),
            Self::Mcmae(_) => true,
        }
    }

    /// Rows of the table of positions before those of the patches, and whether it is antialiased where it is interpolated.
    pub(crate) fn table(&self) -> (i64, bool) {
        match self {
            Self::Vit(vit) => (vit.table_prefix(), vit.antialias()),
            Self::Mcmae(mcmae) => (i64::from(mcmae.cls_token), false),
        }
    }

    /// eps of a norm that is added to it.
    pub(crate) fn norm_eps(&self) -> f64 {
        match self {
            Self::Vit(vit) => vit.norm_eps,
            Self::Mcmae(_) => NORM_EPS,
        }
    }

    /// FLOPs of a forward pass over `patches` patches of one image, a multiply-add as two.
    pub fn flops(&self, patches: i64) -> f64 {
        match self {
            Self::Vit(vit) => vit.flops(patches),
            Self::Mcmae(mcmae) => mcmae.flop_per_image(patches, patches).into_iter().map(|(_, flops)| flops).sum(),
        }
    }

    /// # Errors
    /// [`Error::Config`] for the first field that no network can have.
    pub fn validate(&self) -> Result<()> {
        match self {
            Self::Vit(vit) => vit.validate(),
            Self::Mcmae(mcmae) => mcmae.validate(),
        }
    }

    /// Whether `tensors`, under the names of this encoder, have its sizes: before anything of a size that a damaged file names is
    /// allocated.
    ///
    /// # Errors
    /// [`Error::Config`] for what differs, [`Error::WeightsMismatch`] where the tensors that sizes are read off are missing.
    pub fn check(&self, tensors: &Tensors) -> Result<()> {
        self.validate()?;
        match self {
            Self::Vit(vit) => {
                for (name, shape) in VisionTransformer::landmarks(vit)? {
                    let found = tensors.get(&name).map(Tensor::size).unwrap_or_default();
                    same_sizes(&shape, &found)?;
                }
                same_sizes(&[vit.depth], &[num_blocks(tensors, "blocks.")])
            }
            Self::Mcmae(mcmae) => {
                let shapes = McmaeShapes::of(tensors)?;
                same_sizes(&mcmae.embed_dims, &shapes.embed_dims)?;
                same_sizes(&mcmae.depths, &shapes.depths)?;
                let mlp_dims = [0, 1, 2].map(|i| mcmae.mlp_ratios[i].saturating_mul(mcmae.embed_dims[i]));
                same_sizes(&mlp_dims, &shapes.mlp_dims)?;
                same_sizes(&[self.num_patches()], &[shapes.num_patches.unwrap_or_default()])
            }
        }
    }
}

/// Refuses a record whose sizes are not those of the tensors beside it.
fn same_sizes(recorded: &[i64], found: &[i64]) -> Result<()> {
    if recorded == found {
        return Ok(());
    }
    Err(Error::Config {
        field: "encoder",
        value: format!("{recorded:?}"),
        reason: format!("the tensors beside it say {found:?}"),
    })
}

/// An encoder.
#[derive(Debug)]
pub enum Encoder {
    /// A vision transformer.
    Vit(Box<VisionTransformer>),
    /// MCMAE's convolution stages and transformer.
    Mcmae(Box<McmaeEncoder>),
}

impl Encoder {
    /// An encoder with its reference's parameter names directly under `scope`.
    ///
    /// # Errors
    /// [`Error::Config`] if there is no such network.
    pub fn new(scope: &Scope, config: &EncoderConfig) -> Result<Self> {
        Ok(match config {
            EncoderConfig::Vit(vit) => Self::Vit(Box::new(VisionTransformer::new(scope, vit)?)),
            EncoderConfig::Mcmae(mcmae) => Self::Mcmae(Box::new(McmaeEncoder::new(scope, mcmae)?)),
        })
    }

    /// Whether its first token is CLS.
    pub fn cls_token(&self) -> bool {
        match self {
            Self::Vit(vit) => vit.config().cls_token(),
            Self::Mcmae(mcmae) => mcmae.config().cls_token,
        }
    }

    /// Encodes the visible patches: `imgs [N, 3, H, W]`, normalized, → latent `[N, P + keep, D]` after the last norm, the patches in
    /// the order of `ids_keep`. With fusion, if the configuration has it.
    pub fn forward_encoder(&self, imgs: &Tensor, masking: &Masking, pass: &ForwardOptions) -> Tensor {
        match self {
            Self::Vit(vit) => vit.forward_encoder(imgs, masking, pass),
            Self::Mcmae(mcmae) => mcmae.forward_encoder(imgs, masking, pass),
        }
    }

    /// Encodes whole images: `imgs [N, 3, H, W]`, normalized, → `[N, P + L, D]`, patches in order, before the last norm and without
    /// fusion: what fine-tuning stands on.
    pub(crate) fn forward_blocks(&self, imgs: &Tensor, pass: &ForwardOptions) -> Tensor {
        match self {
            Self::Vit(vit) => vit.forward_blocks(imgs, pass),
            Self::Mcmae(mcmae) => mcmae.forward_blocks(imgs, pass),
        }
    }

    /// The last norm: `[.., D] → [.., D]`.
    pub(crate) fn forward_norm(&self, x: &Tensor) -> Tensor {
        match self {
            Self::Vit(vit) => vit.forward_norm(x),
            Self::Mcmae(mcmae) => mcmae.forward_norm(x),
        }
    }

    /// Encodes whole images: `imgs [N, 3, H, W]`, normalized, → `[N, P + L, D]`, patches in order, after the last norm.
    ///
    /// With `fused` as the encoder was pretrained, if its configuration has fusion: the norm's parameters belong to the sum. Without, the
    /// last block alone goes through it, as in packages that know no fusion.
    pub fn forward_features(&self, imgs: &Tensor, fused: bool) -> Tensor {
        match self {
            Self::Vit(vit) => vit.forward_features(imgs, fused),
            Self::Mcmae(mcmae) => mcmae.forward_features(imgs, fused),
        }
    }
}
