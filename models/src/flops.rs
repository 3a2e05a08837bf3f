//! Floating-point operations, counted from a network's configuration.
//!
//! Matrix products and convolutions alone, a multiply-add as two; norms, activations and softmax are a few per cent and move bytes rather than
//! compute. A backward pass has two products for each of the forward's.

use crate::encoder::EncoderConfig;
use crate::mimic::HeadKind;
use crate::mr_mae::{MimicTokens, MrMaeConfig};

/// The backward pass computes the gradients of inputs and of weights, each as dear as the forward.
pub const STEP_PER_FORWARD: f64 = 3.0;

/// Operations of a forward pass for one image, by part.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Flops {
    /// The encoder, over the visible patches.
    pub encoder: f64,
    /// The decoder, over all patches; 0 where no loss needs it.
    pub decoder: f64,
    /// All mimic heads.
    pub heads: f64,
}

impl Flops {
    /// A pretraining forward with `keep` visible patches.
    ///
    /// ViT-B/16 at 224 with MAE's decoder and `keep` 49: 8.6 in the encoder and 10.7 in the decoder, in GFLOP. (Embedding all patches and
    /// dropping three quarters, as the reference code does, adds 0.2.) MCMAE-B: 11.7 and 10.7.
    pub fn of_pretraining(config: &MrMaeConfig, keep: i64) -> Self {
        let encoder = &config.mae.encoder;
        let l = encoder.num_patches();
        let prefix = encoder.prefix();
        let mut flops = Self { encoder: encoder.flops(keep), ..Self::default() };
        let at_encoder = config.mimic_tokens == MimicTokens::Encoder;
        let decoder = &config.mae.decoder;
        let dim = encoder.embed_dim();
        if config.rec_weight > 0.0 || !at_encoder {
            flops.decoder = linear(prefix + keep, dim, decoder.embed_dim)
                + block_flops(decoder.depth, prefix + l, decoder.embed_dim, decoder.mlp_ratio * decoder.embed_dim);
        }
        if config.rec_weight > 0.0 {
            let patch = 3 * encoder.patch_size().pow(2);
            flops.decoder += linear(prefix + l, decoder.embed_dim, patch);
        }
        let (tokens, head_dim) = match config.mimic_tokens {
            MimicTokens::Encoder => (keep, dim),
            MimicTokens::DecoderVisible => (keep, decoder.embed_dim),
            MimicTokens::DecoderRemoved => (l - keep, decoder.embed_dim),
            MimicTokens::DecoderAll => (l, decoder.embed_dim),
        };
        for teacher in config.teachers.values() {
            if teacher.weight > 0.0 {
                flops.heads += head(teacher.head, tokens, head_dim, teacher.width);
            }
            if teacher.cls_weight > 0.0 {
                flops.heads += head(teacher.head, 1, dim, teacher.width);
            }
        }
        flops
    }

    /// All of it.
    pub fn forward(&self) -> f64 {
        self.encoder + self.decoder + self.heads
    }

    /// Forward and backward.
    pub fn step(&self) -> f64 {
        STEP_PER_FORWARD * self.forward()
    }
}

/// A forward of a classifier over one image: its encoder and the linear layer to `n_classes` scores.
pub fn of_classifier(config: &EncoderConfig, n_classes: i64) -> f64 {
    config.flops(config.num_patches()) + linear(1, config.embed_dim(), n_classes)
}

/// `depth` transformer blocks over `tokens` of width `dim`: qkv and proj are 4 D x D, the MLP twice D x `mlp_dim`, and attention multiplies
/// T x T with D twice.
fn block_flops(depth: i64, tokens: i64, dim: i64, mlp_dim: i64) -> f64 {
    let weights = linear(tokens, dim, 4 * dim + 2 * mlp_dim);
    let attention = 4.0 * (tokens as f64).powi(2) * dim as f64;
    depth as f64 * (weights + attention)
}

/// A mimic head over `tokens` of width `dim`, to tokens of width `width`.
fn head(kind: HeadKind, tokens: i64, dim: i64, width: i64) -> f64 {
    match kind {
        HeadKind::Linear => linear(tokens, dim, width),
        HeadKind::Mlp { hidden } => linear(tokens, dim, hidden) + linear(tokens, hidden, width),
    }
}

/// A product of `[rows, from]` with `[from, to]`.
fn linear(rows: i64, from: i64, to: i64) -> f64 {
    2.0 * rows as f64 * from as f64 * to as f64
}

#[cfg(test)]
mod tests;
