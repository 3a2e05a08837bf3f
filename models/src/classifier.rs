//! An encoder with a linear classifier: what fine-tuning trains.
//!
//! Names and computation are those of MAE's fine-tuning model (`facebookresearch/mae`, `models_vit.py`) and so of timm's
//! `VisionTransformer`, and, for an encoder with convolution stages, of ConvMAE's `ConvViT`. The decoder, the mask token, fusion and
//! the mimic heads are gone; positions are trained, from the fixed ones. A teacher's tower is an encoder too, exactly as it is when
//! it gives features.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use crate::blocks::ForwardOptions;
use crate::encoder::{Encoder, EncoderConfig};
use crate::error::{Error, Result};
use crate::init::Init;
use crate::layers::{LayerNorm, Linear};
use crate::mr_mae::is_mimic_param;
use crate::params::ParamStore;
use crate::pos_interpolate::interpolate;
use crate::tokens::without_prefix;

#[cfg(test)]
mod tests;

/// Standard deviation of the classifier's start weights: MAE's `main_finetune.py`.
const HEAD_STD: f64 = 2e-5;

/// Which single vector of an image is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pool {
    /// The CLS token.
    Cls,
    /// The mean of the patch tokens.
    Mean,
}

/// The network.
#[derive(Debug)]
pub struct Classifier {
    encoder: Encoder,
    /// Tokens before the patches.
    prefix: i64,
    pool: Pool,
    /// Norm of the patches' mean; CLS goes through the encoder's own last norm.
    fc_norm: Option<LayerNorm>,
    head: Linear,
}

impl Classifier {
    /// A network in `params`: the encoder's names, `head.*` (weights from a truncated normal of standard deviation 2e-5), and for
    /// [`Pool::Mean`] `fc_norm.*` in place of `norm.*`.
    ///
    /// # Errors
    /// [`Error::Config`] if there is no such network, or the encoder has no CLS token to pool.
    pub fn new(params: &ParamStore, config: &EncoderConfig, pool: Pool, n_classes: i64) -> Result<Self> {
        if pool == Pool::Cls && !config.cls_token() {
            return Err(Error::Config {
                field: "pool",
                value: "cls".to_owned(),
                reason: "this encoder has no CLS token; mean pools its patches".to_owned(),
            });
        }
        if pool == Pool::Cls && config.pools_mean() {
            return Err(Error::Config {
                field: "pool",
                value: "cls".to_owned(),
                reason:
                    "this encoder was trained with the mean of its patches, and its CLS token has no norm; use mean"
                        .to_owned(),
            });
        }
        let root = params.root();
        let dim = config.embed_dim();
        let encoder = Encoder::new(&root, config)?;
        if config.has_fixed_positions() {
            params.train("pos_embed");
        }
        // The pooling attention of a tower without CLS is not used.
        params.remove("pool.");
        let fc_norm = match pool {
            Pool::Cls => None,
            Pool::Mean => {
                params.remove("norm.");
                Some(LayerNorm::new(&root.sub("fc_norm"), dim, config.norm_eps()))
            }
        };
        let start = Init::TruncNormal { std: HEAD_STD };
        let head = Linear::started(&root.sub("head"), dim, n_classes, true, start);
        Ok(Self { encoder, prefix: config.prefix(), pool, fc_norm, head })
    }

    /// Class scores of `imgs [N, 3, H, W]`, normalized: `[N, C]`, f32.
    pub fn forward(&self, imgs: &Tensor, pass: &ForwardOptions) -> Tensor {
        let tokens = self.encoder.forward_blocks(imgs, pass); // [N, P + L, D]
        let pooled = match self.pool {
            Pool::Mean => self.pooled_mean(&tokens),
            Pool::Cls => self.encoder.forward_norm(&tokens.select(1, 0)),
        }; // [N, D]
        self.head.forward(&pooled).to_kind(Kind::Float)
    }

    /// Features of whole images before the head: `imgs [N, 3, H, W]`, normalized.
    pub fn forward_features(&self, imgs: &Tensor) -> Features {
        let tokens = self.encoder.forward_blocks(imgs, &ForwardOptions::default());
        match self.pool {
            Pool::Mean => {
                let patches = self.patches(&tokens);
                let patches = match &self.fc_norm {
                    Some(fc_norm) => fc_norm.forward(&patches),
                    None => patches,
                };
                Features { cls: None, mean: self.pooled_mean(&tokens), patches }
            }
            Pool::Cls => {
                let tokens = self.encoder.forward_norm(&tokens);
                let patches = self.patches(&tokens);
                Features { cls: Some(tokens.select(1, 0)), mean: patches.mean_dim(1, false, Kind::Float), patches }
            }
        }
    }

    /// `[N, P + L, D] → [N, D]`: the norm of the patches' mean.
    fn pooled_mean(&self, tokens: &Tensor) -> Tensor {
        let mean = self.patches(tokens).mean_dim(1, false, Kind::Float);
        match &self.fc_norm {
            Some(fc_norm) => fc_norm.forward(&mean),
            None => mean,
        }
    }

    /// `[N, P + L, D] → [N, L, D]`.
    fn patches(&self, tokens: &Tensor) -> Tensor {
        without_prefix(tokens, self.prefix)
    }

    /// Which vector is classified.
    pub fn pool(&self) -> Pool {
        self.pool
    }
}

/// One vector per image, `[N, D]`, f32, and one per patch.
#[derive(Debug)]
pub struct Features {
    /// CLS after the last norm; absent where the patches' mean is classified, since nothing has trained CLS then and it has no norm.
    pub cls: Option<Tensor>,
    /// The patches' mean: for [`Pool::Mean`] through its own norm, as the head sees it, else of the patches after the last norm.
    pub mean: Tensor,
    /// Every patch, `[N, L, D]`, row by row from the top left: for [`Pool::Mean`] each through the norm of the mean, else after the last
    /// norm.
    pub patches: Tensor,
}

/// Beginnings of names that a classifier does not start from: what else pretraining and other classifiers have.
const PASSED_OVER: [&str; 8] =
    ["decoder", "mask_token", "stage1_output_decode.", "stage2_output_decode.", "head.", "fc_norm.", "norm.", "pool."];

/// Starts the encoder of a [`Classifier`] in `params` from pretrained weights; its head, and the norm of a mean, stay as they are.
/// Positions of another grid are interpolated bicubically, those of CLS kept, as MAE's `interpolate_pos_embed` does.
///
/// `tensors` may hold a decoder, mimic heads and a classifier, which are passed over; `origin` names them in the error.
///
/// # Errors
/// [`Error::WeightsMismatch`] unless the rest is exactly the encoder's; then nothing has been changed.
pub fn start_from(
    params: &ParamStore,
    config: &EncoderConfig,
    origin: &str,
    tensors: &BTreeMap<String, Tensor>,
) -> Result<()> {
    let own = params.tensors();
    let kept_norm = own.contains_key("norm.weight");
    let mut start: BTreeMap<String, Tensor> = BTreeMap::new();
    for (name, tensor) in tensors {
        let is_passed_over = is_mimic_param(name)
            || PASSED_OVER.iter().any(|prefix| name.starts_with(prefix)) && !(kept_norm && name.starts_with("norm."));
        if !is_passed_over {
            start.insert(name.clone(), tensor.shallow_clone());
        }
    }
    for (name, tensor) in own {
        if name.starts_with("head.") || name.starts_with("fc_norm.") {
            start.insert(name, tensor);
        }
    }
    if let Some(positions) = start.get("pos_embed").and_then(|t| resized(t, config)) {
        start.insert("pos_embed".to_owned(), positions);
    }
    params.load(origin, &start)
}

/// `pos_embed [1, P + g², D]` for the grid of `config`; `None` where it fits already, or cannot be positions of a square grid.
fn resized(pos_embed: &Tensor, config: &EncoderConfig) -> Option<Tensor> {
    let (prefix, antialias) = config.table();
    let (_, tokens, dim) = pos_embed.size3().ok()?;
    let patches = tokens - prefix;
    let [height, width] = config.grid();
    let is_square = patches > 0 && patches.isqrt().pow(2) == patches;
    if patches == height * width || !is_square || dim != config.embed_dim() {
        return None;
    }
    let cut = |start, length| pos_embed.narrow(1, start, length).to_kind(Kind::Float);
    let positions = interpolate(&cut(prefix, patches), (height, width), antialias);
    Some(Tensor::cat(&[cut(0, prefix), positions], 1))
}

/// Cross entropy with soft targets, the mean over the batch: `scores [N, C]`, `targets [N, C]`, each row of which sums to 1, → a scalar.
///
/// With targets `1 - s + s / C` and `s / C` this is label smoothing by `s`. Source: timm's `SoftTargetCrossEntropy`.
pub fn soft_target_cross_entropy(scores: &Tensor, targets: &Tensor) -> Tensor {
    let log_probabilities = scores.log_softmax(-1, Kind::Float);
    -(log_probabilities * targets).sum_dim_intlist(-1, false, Kind::Float).mean(Kind::Float)
}
