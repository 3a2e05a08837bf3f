//! What a classifier stands on: an encoder of pretraining, or the tower of a teacher as a network that is trained.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::blocks::Pass;
use crate::encoder::{Encoder, EncoderConfig, VitConfig};
use crate::error::{Error, Result};
use crate::mcmae::McmaeEncoderConfig;
use crate::params::{Scope, Tensors};
use crate::pixels::{IMAGENET_MEAN, IMAGENET_STD};
use crate::shapes::{McmaeShapes, VitShapes};
use crate::teacher::{Tower, VitTower};
use crate::vit::NORM_EPS;

/// Most blocks, and numbers in a width, that any network here has; more is damage.
const MAX_SIZE: i64 = 65_536;

/// What is fine-tuned, at the image size it is fine-tuned at. Fusion, which pretraining alone uses, is no part of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum BackboneConfig {
    /// MAE's ViT.
    Vit(VitConfig),
    /// MCMAE's convolution stages and transformer.
    Mcmae(McmaeEncoderConfig),
    /// The tower of a teacher, exactly as it gives features: its norms, activation, positions and pixels.
    Tower(Tower),
}

impl From<EncoderConfig> for BackboneConfig {
    /// Without fusion, and with it ConvMAE's projections of its stages.
    fn from(config: EncoderConfig) -> BackboneConfig {
        match config {
            EncoderConfig::Vit(mut vit) => {
                vit.fusion.clear();
                BackboneConfig::Vit(vit)
            }
            EncoderConfig::Mcmae(mut mcmae) => {
                mcmae.fusion = false;
                BackboneConfig::Mcmae(mcmae)
            }
        }
    }
}

impl BackboneConfig {
    /// The encoder of pretraining, unless it is a tower.
    pub fn encoder(&self) -> Option<EncoderConfig> {
        match self {
            Self::Vit(vit) => Some(EncoderConfig::Vit(vit.clone())),
            Self::Mcmae(mcmae) => Some(EncoderConfig::Mcmae(*mcmae)),
            Self::Tower(_) => None,
        }
    }

    /// Height and width of an image, in pixels.
    pub fn img_size(&self) -> [i64; 2] {
        match self {
            Self::Vit(vit) => vit.img_size,
            Self::Mcmae(mcmae) => mcmae.img_size,
            Self::Tower(tower) => [tower.img_size(); 2],
        }
    }

    /// The same at another side of the image.
    ///
    /// # Errors
    /// [`Error::Config`] if the patches do not fill it.
    pub fn at_size(&self, img_size: i64) -> Result<BackboneConfig> {
        let mut config = self.clone();
        match &mut config {
            Self::Vit(vit) => vit.img_size = [img_size; 2],
            Self::Mcmae(mcmae) => mcmae.img_size = [img_size; 2],
            Self::Tower(tower) => tower.set_img_size(img_size)?,
        }
        config.validate()?;
        Ok(config)
    }

    /// Rows and columns of patches.
    pub fn grid(&self) -> [i64; 2] {
        match self {
            Self::Vit(vit) => vit.grid(),
            Self::Mcmae(mcmae) => mcmae.grid(),
            Self::Tower(tower) => [tower.grid(); 2],
        }
    }

    /// `L`.
    pub fn num_patches(&self) -> i64 {
        let [height, width] = self.grid();
        height * width
    }

    /// Width `D` of its tokens.
    pub fn embed_dim(&self) -> i64 {
        match self {
            Self::Vit(vit) => vit.embed_dim,
            Self::Mcmae(mcmae) => mcmae.embed_dim(),
            Self::Tower(tower) => tower.embed_dim(),
        }
    }

    /// Whether its first token is CLS.
    pub fn cls_token(&self) -> bool {
        match self {
            Self::Vit(_) => true,
            Self::Mcmae(mcmae) => mcmae.cls_token,
            Self::Tower(tower) => tower.cls_token(),
        }
    }

    /// Blocks with two residual branches each, which stochastic depth may drop.
    pub fn num_blocks(&self) -> i64 {
        match self {
            Self::Vit(vit) => vit.depth,
            Self::Mcmae(mcmae) => mcmae.num_blocks(),
            Self::Tower(tower) => tower.num_blocks(),
        }
    }

    /// Hidden width of the MLPs of its last blocks, in widths; of gated ones that of MLPs with as many products.
    pub fn mlp_ratio(&self) -> f64 {
        match self {
            Self::Vit(vit) => vit.mlp_ratio as f64,
            Self::Mcmae(mcmae) => mcmae.mlp_ratios[2] as f64,
            Self::Tower(tower) => tower.mlp_dim() as f64 / tower.embed_dim() as f64,
        }
    }

    /// Mean and deviation of the channels (R, G, B) of pixels in 0..1, by which images are normalised.
    pub fn normalisation(&self) -> ([f64; 3], [f64; 3]) {
        match self {
            Self::Vit(_) | Self::Mcmae(_) => (IMAGENET_MEAN, IMAGENET_STD),
            Self::Tower(tower) => tower.normalisation(),
        }
    }

    /// Rows of the table of positions before those of the patches, and whether it is antialiased where it is interpolated.
    pub(super) fn positions(&self) -> (i64, bool) {
        match self {
            Self::Vit(_) => (1, false),
            Self::Mcmae(mcmae) => (i64::from(mcmae.cls_token), false),
            // The position of CLS is part of the CLS token.
            Self::Tower(tower) => (0, tower.antialias()),
        }
    }

    /// eps of a norm that is added to it.
    pub(super) fn norm_eps(&self) -> f64 {
        match self {
            Self::Vit(_) | Self::Mcmae(_) => NORM_EPS,
            Self::Tower(tower) => tower.norm_eps(),
        }
    }

    /// # Errors
    /// [`Error::Config`] for the first field that no network can have.
    pub fn validate(&self) -> Result<()> {
        match self {
            Self::Vit(vit) => vit.validate(),
            Self::Mcmae(mcmae) => mcmae.validate(),
            Self::Tower(tower) => tower.validate(),
        }
    }

    /// Whether `tensors`, of a classifier of this backbone, have its sizes: before anything of a size that a damaged file names is
    /// allocated.
    ///
    /// # Errors
    /// [`Error::Config`] for what differs, [`Error::WeightsMismatch`] where the tensors that sizes are read off are missing.
    pub fn check(&self, tensors: &Tensors) -> Result<()> {
        self.validate()?;
        let sizes = |field: &'static str, said: &[i64], found: &[i64]| match said == found {
            true => Ok(()),
            false => Err(Error::Config {
                field,
                value: format!("{said:?}"),
                reason: format!("the tensors beside it say {found:?}"),
            }),
        };
        let mlp = |ratio: i64, dim: i64| ratio.saturating_mul(dim);
        match self {
            Self::Vit(vit) => {
                let shapes = VitShapes::of(tensors)?;
                let [height, width] = vit.grid();
                sizes(
                    "encoder",
                    &[
                        vit.patch_size,
                        vit.embed_dim,
                        vit.depth,
                        mlp(vit.mlp_ratio, vit.embed_dim),
                        height.saturating_mul(width),
                    ],
                    &[
                        shapes.patch_size,
                        shapes.embed_dim,
                        shapes.depth,
                        shapes.mlp_dim,
                        shapes.num_patches.unwrap_or_default(),
                    ],
                )
            }
            Self::Mcmae(mcmae) => {
                let shapes = McmaeShapes::of(tensors)?;
                let [height, width] = mcmae.grid();
                sizes("encoder", &mcmae.embed_dims, &shapes.embed_dims)?;
                sizes("encoder", &mcmae.depths, &shapes.depths)?;
                let mlp_dims = [0, 1, 2].map(|i| mlp(mcmae.mlp_ratios[i], mcmae.embed_dims[i]));
                sizes("encoder", &mlp_dims, &shapes.mlp_dims)?;
                sizes("encoder", &[height.saturating_mul(width)], &[shapes.num_patches.unwrap_or_default()])
            }
            Self::Tower(tower) => {
                for (name, shape) in tower.landmarks() {
                    let found = tensors.get(&name).map(Tensor::size).unwrap_or_default();
                    sizes("encoder", &shape, &found)?;
                }
                let depth = tower.num_blocks();
                sizes("encoder", &[depth], &[depth.min(tensors.len() as i64)])?;
                sizes("encoder", &[depth], &[depth.min(MAX_SIZE)])
            }
        }
    }
}

/// The network.
#[derive(Debug)]
pub(super) enum Backbone {
    Encoder(Encoder),
    Tower(Box<VitTower>),
}

impl Backbone {
    /// Its reference's parameter names directly under `scope`.
    pub(super) fn new(scope: &Scope, config: &BackboneConfig) -> Result<Self> {
        config.validate()?;
        Ok(match config {
            BackboneConfig::Vit(vit) => Self::Encoder(Encoder::new(scope, &EncoderConfig::Vit(vit.clone()))?),
            BackboneConfig::Mcmae(mcmae) => Self::Encoder(Encoder::new(scope, &EncoderConfig::Mcmae(*mcmae))?),
            BackboneConfig::Tower(tower) => Self::Tower(Box::new(tower.network(scope))),
        })
    }

    /// Tokens before the patches.
    pub(super) fn prefix(&self) -> i64 {
        match self {
            Self::Encoder(encoder) => i64::from(encoder.cls_token()),
            Self::Tower(tower) => tower.num_prefix(),
        }
    }

    /// `imgs [N, 3, H, W]`, normalised, → `[N, P + L, D]`, before the last norm.
    pub(super) fn forward_blocks(&self, imgs: &Tensor, pass: &Pass) -> Tensor {
        match self {
            Self::Encoder(encoder) => encoder.forward_blocks(imgs, pass),
            Self::Tower(tower) => tower.forward_blocks(imgs, pass),
        }
    }

    /// The last norm: `[.., D] → [.., D]`.
    pub(super) fn forward_norm(&self, x: &Tensor) -> Tensor {
        match self {
            Self::Encoder(encoder) => encoder.forward_norm(x),
            Self::Tower(tower) => tower.norm(x),
        }
    }
}
