//! The masked autoencoder (He et al. 2022), with the parameter names of its reference code.
//!
//! Agrees with `facebookresearch/mae` (and transformers' `ViTMAEForPreTraining`) given the same noise.

use tch::Tensor;

use crate::blocks::Pass;
use crate::decoder::{Decoder, DecoderConfig};
use crate::encoder::{Encoder, EncoderConfig};
use crate::error::{Error, Result};
use crate::layers::NORM_EPS;
use crate::losses::{masked_patch_loss, norm_pix};
use crate::masking::Masking;
use crate::params::Scope;
use crate::tokens::patchify;
use crate::vit::VitConfig;

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
    /// [`Error::Config`] for the first field that no network can have, and for rotary positions, which no masked encoder has here.
    pub fn validate(&self) -> Result<()> {
        self.encoder.validate()?;
        if let EncoderConfig::Vit(vit) = &self.encoder
            && let Some(base) = vit.rotary_base()
        {
            let reason = "a masked autoencoder needs a table of positions".to_owned();
            return Err(Error::Config { field: "positions", value: format!("rotary, base {base}"), reason });
        }
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
    /// [`VisionTransformer::new`](crate::vit::VisionTransformer::new) and [`Decoder::new`].
    ///
    /// # Errors
    /// [`Error::Config`] if there is no such network.
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

#[cfg(test)]
mod tests;
