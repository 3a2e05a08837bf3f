//! The masked autoencoder (He et al. 2022), with the parameter names of its reference code.
//!
//! Agrees with `facebookresearch/mae` (and transformers' `ViTMAEForPreTraining`) given the same noise.

use tch::{Kind, Tensor};

use crate::blocks::Pass;
use crate::decoder::{Decoder, DecoderConfig};
use crate::encoder::{Encoder, EncoderConfig, VitConfig};
use crate::error::Result;
use crate::losses::{masked_patch_loss, norm_pix};
use crate::masking::Masking;
use crate::params::Scope;

/// eps of every norm of MAE's transformer blocks, where PyTorch's default would be 1e-5.
pub(crate) const NORM_EPS: f64 = 1e-6;

/// What a masked autoencoder is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct MaeConfig {
    /// What sees the visible patches.
    pub encoder: EncoderConfig,
    /// What predicts the others.
    pub decoder: DecoderConfig,
    /// Whether the pixel target is normalised per patch.
    pub norm_pix_loss: bool,
}

impl MaeConfig {
    /// ViT-B/16 at 224 with the published decoder: the reference's `mae_vit_base_patch16`, with `norm_pix_loss` as in its recipe.
    pub const VIT_BASE_PATCH16: Self = Self {
        encoder: EncoderConfig::Vit(VitConfig::BASE_PATCH16),
        decoder: DecoderConfig::PUBLISHED,
        norm_pix_loss: true,
    };

    /// `L`.
    pub fn num_patches(&self) -> i64 {
        self.encoder.num_patches()
    }

    /// # Errors
    /// [`Error::Config`](crate::Error::Config) for the first field that no network can have.
    pub fn validate(&self) -> Result<()> {
        self.encoder.validate()?;
        self.decoder.validate()
    }
}

/// The autoencoder.
#[derive(Debug)]
pub struct Mae {
    config: MaeConfig,
    encoder: Encoder,
    decoder: Decoder,
}

impl Mae {
    /// A network with the reference's parameter names directly under `scope`, started as its `initialize_weights` does; see
    /// [`VitEncoder::new`](crate::encoder::VitEncoder::new) and [`Decoder::new`].
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) if there is no such network.
    pub fn new(scope: &Scope, config: &MaeConfig) -> Result<Self> {
        config.validate()?;
        let encoder = &config.encoder;
        Ok(Self {
            encoder: Encoder::new(scope, encoder)?,
            decoder: Decoder::new(
                scope,
                &config.decoder,
                encoder.embed_dim(),
                encoder.grid(),
                encoder.patch_size(),
                encoder.cls_token(),
                NORM_EPS,
            )?,
            config: config.clone(),
        })
    }

    /// What it is made of.
    pub fn config(&self) -> &MaeConfig {
        &self.config
    }

    /// The encoder.
    pub fn encoder(&self) -> &Encoder {
        &self.encoder
    }

    /// The encoder alone.
    pub fn into_encoder(self) -> Encoder {
        self.encoder
    }

    /// The decoder.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// See [`Encoder::forward_encoder`].
    pub fn forward_encoder(&self, imgs: &Tensor, masking: &Masking) -> Tensor {
        self.encoder.forward_encoder(imgs, masking, &Pass::default())
    }

    /// [`Encoder::forward_features`] without fusion: what other packages compute with the same weights.
    pub fn forward_features(&self, imgs: &Tensor) -> Tensor {
        self.encoder.forward_features(imgs, false)
    }

    /// Predicts the pixels of every patch: latent `[N, P + keep, D]`, `ids_restore [N, L]` → `[N, L, p²·3]`, in the order of
    /// [`patchify`].
    pub fn forward_decoder(&self, latent: &Tensor, ids_restore: &Tensor) -> Tensor {
        let tokens = self.decoder.forward_tokens(latent, ids_restore, &Pass::default());
        self.decoder.predict(&tokens)
    }

    /// The pixel loss over removed patches: `imgs [N, 3, H, W]`, `pred [N, L, p²·3]`, `mask [N, L]` → scalar.
    pub fn forward_loss(&self, imgs: &Tensor, pred: &Tensor, mask: &Tensor) -> Tensor {
        let target = patchify(imgs, self.config.encoder.patch_size());
        let target = if self.config.norm_pix_loss { norm_pix(&target) } else { target };
        masked_patch_loss(pred, &target, mask)
    }
}

/// Rows `ids [N, K]` of each `x [N, L, D]`: `[N, K, D]`.
///
/// What `gather` with an index of `D` equal columns does, on whole rows: ten times as fast on a CPU at a decoder's size.
pub(crate) fn gather_rows(x: &Tensor, ids: &Tensor) -> Tensor {
    let (n, num_patches, dim) = x.size3().expect("tokens are [N, L, D]");
    let first_row = Tensor::arange_start_step(0, n * num_patches, num_patches, (Kind::Int64, ids.device()));
    let rows = (ids + first_row.unsqueeze(1)).flatten(0, 1); // [N·K], into [N·L, D]
    x.reshape([n * num_patches, dim]).index_select(0, &rows).reshape([n, ids.size()[1], dim])
}

/// `imgs [N, 3, H, W] → [N, L, p²·3]`: patches row-major; within a patch row, column, channel.
///
/// # Panics
/// If `patch_size` does not divide `H` and `W`.
pub fn patchify(imgs: &Tensor, patch_size: i64) -> Tensor {
    let p = patch_size;
    let (n, c, height, width) = imgs.size4().expect("imgs are [N, 3, H, W]");
    assert!(height % p == 0 && width % p == 0, "{height}x{width} is no whole number of {p}x{p} patches");
    let (h, w) = (height / p, width / p);
    let patches = imgs.reshape([n, c, h, p, w, p]).permute([0, 2, 4, 3, 5, 1]); // [N, h, w, p, p, c]
    patches.reshape([n, h * w, p * p * c])
}

/// The inverse of [`patchify`] for images of `grid_h` × `grid_w` patches.
pub fn unpatchify(patches: &Tensor, patch_size: i64, [grid_h, grid_w]: [i64; 2]) -> Tensor {
    let p = patch_size;
    let n = patches.size()[0];
    let imgs = patches.reshape([n, grid_h, grid_w, p, p, 3]).permute([0, 5, 1, 3, 2, 4]); // [N, c, h, p, w, p]
    imgs.reshape([n, 3, grid_h * p, grid_w * p])
}

#[cfg(test)]
mod tests;
