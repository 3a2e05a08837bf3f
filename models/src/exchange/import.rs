//! A student's tensors from another package's file.

use std::path::Path;

use super::beside::Beside;
use super::{Part, Tensors, names};
use crate::encoder::EncoderConfig;
use crate::error::{Error, Mismatch, Result};
use crate::mcmae::{McmaeEncoderConfig, PATCH_SIZE};
use crate::mr_mae::is_mimic_param;
use crate::shapes::{McmaeShapes, VitShapes};
use crate::vit::VitConfig;
use crate::weights::{Weights, require_finite};

/// The tensor by which each layout is known.
const VIT_ANCHOR: &str = "patch_embed.proj.weight";
pub(super) const CONV_ANCHOR: &str = "patch_embed1.proj.weight";
const HF_ANCHOR: &str = "embeddings.patch_embeddings.projection.weight";

/// What may come before all of a student's names: the keys under which training code saves it, and what wraps it.
const WRAPPERS: [&str; 11] = [
    "model",
    "model_state",
    "model_state_dict",
    "state_dict",
    "module",
    "backbone",
    "encoder",
    "net",
    "network",
    "student",
    "_orig_mod",
];

/// What training code saves beside a student, by the first part of its names.
const BESIDE: [&str; 26] = [
    "optimizer",
    "optimizer_state",
    "optimizer_states",
    "optimizer_state_dict",
    "lr_scheduler",
    "lr_schedulers",
    "scheduler",
    "scaler",
    "amp_scaler",
    "grad_scaler",
    "loss_scaler",
    "callbacks",
    "loops",
    "hyper_parameters",
    "epoch",
    "step",
    "global_step",
    "n_averaged",
    "rng_state",
    "args",
    "config",
    "ema",
    "ema_model",
    "model_ema",
    "state_dict_ema",
    "teacher",
];

/// What other uses of an encoder put on top of it, by the beginning of its names.
const HEADS: [&str; 4] = ["head.", "fc.", "classifier.", "pooler."];

/// A student that came from a file.
#[derive(Debug)]
pub struct Imported {
    /// Whose names the file had, for people.
    pub layout: &'static str,
    /// Its tensors under a student's own names, in the types of the file.
    pub tensors: Tensors,
    /// What of the file is no part of a student, by the file's names.
    pub ignored: Vec<String>,
}

impl Imported {
    /// Whether a decoder came with it.
    pub fn has_decoder(&self) -> bool {
        self.tensors.keys().any(|name| Part::of(name) == Part::Decoder)
    }

    /// Whether it has MCMAE's convolution stages.
    pub fn is_convolutional(&self) -> bool {
        self.tensors.contains_key(CONV_ANCHOR)
    }

    /// The tensors of the encoder alone: what evaluation and fine-tuning need.
    pub fn encoder_tensors(&self) -> Tensors {
        let encoder = self.tensors.iter().filter(|(name, _)| Part::of(name) == Part::Encoder);
        encoder.map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect()
    }

    /// The encoder that its tensors are of, without fusion: sizes from shapes, the number of heads and sides of images that are no
    /// squares from the `config.json` beside the file `weights`, else those of the published sizes.
    ///
    /// # Errors
    /// [`Error::WeightsMismatch`] where the tensors that sizes are read off are missing, [`Error::StudentConfig`] where the file
    /// contradicts them or a number of heads is not known, [`Error::Config`] where there is no such network.
    pub fn encoder_config(&self, weights: &Path) -> Result<EncoderConfig> {
        let beside = Beside::read(weights)?;
        beside.check_activation()?;
        let config = if self.is_convolutional() {
            let shapes = McmaeShapes::of(&self.tensors)?;
            let usual = McmaeEncoderConfig::BASE.num_patches();
            EncoderConfig::Mcmae(McmaeEncoderConfig {
                img_size: beside.img_size(shapes.num_patches.unwrap_or(usual), PATCH_SIZE)?,
                embed_dims: shapes.embed_dims,
                depths: shapes.depths,
                num_heads: beside.num_heads(shapes.embed_dims[2])?,
                mlp_ratios: ratios("mlp_ratios", shapes.mlp_dims, shapes.embed_dims)?,
                cls_token: self.tensors.contains_key("cls_token"),
                fusion: false,
            })
        } else {
            let shapes = VitShapes::of(&self.tensors)?;
            let usual = (224 / shapes.patch_size.max(1)).pow(2);
            ratios("mlp_ratio", [shapes.mlp_dim], [shapes.embed_dim])?;
            let num_heads = beside.num_heads(shapes.embed_dim)?;
            EncoderConfig::Vit(VitConfig {
                img_size: beside.img_size(shapes.num_patches.unwrap_or(usual), shapes.patch_size)?,
                mlp_dim: shapes.mlp_dim,
                ..VitConfig::mae(shapes.patch_size, shapes.embed_dim, shapes.depth, num_heads)
            })
        };
        config.validate()?;
        Ok(config)
    }
}

/// Hidden widths in widths, which have to be whole numbers.
fn ratios<const N: usize>(field: &'static str, mlp_dims: [i64; N], dims: [i64; N]) -> Result<[i64; N]> {
    let mut ratios = [0; N];
    for ((ratio, mlp_dim), dim) in ratios.iter_mut().zip(mlp_dims).zip(dims) {
        if dim < 1 || mlp_dim % dim != 0 {
            return Err(Error::Config {
                field,
                value: format!("{mlp_dim} / {dim}"),
                reason: "a student's MLPs are a whole number of widths wide".to_owned(),
            });
        }
        *ratio = mlp_dim / dim;
    }
    Ok(ratios)
}

/// The student in `weights`: one of MAE, ConvMAE, timm's ViT, transformers' ViT or ViTMAE, or of this project, with or without a
/// decoder, alone or in a training checkpoint. What belongs to teachers, classifiers and optimisers are left out.
///
/// # Errors
/// [`Error::NoStudent`] if the names are none of these; [`Error::WeightsMismatch`] with every tensor that has no place in a student;
/// [`NotFinite`](hub::weights::Error::NotFinite) if one that has holds NaN or infinities.
pub fn import(weights: &Weights) -> Result<Imported> {
    let tensors = weights.tensors();
    let origin = weights.path().display().to_string();
    let found =
        [VIT_ANCHOR, CONV_ANCHOR, HF_ANCHOR].into_iter().find_map(|anchor| Some((anchor, wrapper(tensors, anchor)?)));
    let Some((anchor, prefix)) = found else {
        weights.require_read(|_| true)?;
        return Err(Error::NoStudent {
            path: weights.path().to_path_buf(),
            count: weights.len(),
            first: weights.names().take(4).map(str::to_owned).collect(),
        });
    };

    weights.require_read(|full| {
        let first = full.split('.').next().unwrap_or_default();
        let name = full.strip_prefix(&prefix).filter(|_| !BESIDE.contains(&first));
        name.is_some_and(|name| !HEADS.iter().any(|head| name.starts_with(head)))
    })?;
    let mut inside = Tensors::new();
    let mut ignored = Vec::new();
    let mut unexpected = Vec::new();
    for (full, tensor) in tensors {
        let first = full.split('.').next().unwrap_or_default();
        match full.strip_prefix(&prefix) {
            Some(name) if is_mimic_param(name) || HEADS.iter().any(|head| name.starts_with(head)) => {
                ignored.push(full.clone());
            }
            _ if BESIDE.contains(&first) => ignored.push(full.clone()),
            Some(name) => {
                inside.insert(name.to_owned(), tensor.shallow_clone());
            }
            None => unexpected.push((full.clone(), tensor.size())),
        }
    }
    let with_origin = |mismatch| Error::WeightsMismatch { origin: origin.clone(), mismatch };
    if !unexpected.is_empty() {
        return Err(with_origin(Mismatch { unexpected, ..Mismatch::default() }));
    }
    let tensors = if anchor == HF_ANCHOR {
        // The mask token of transformers' ViTModel, which pretraining by another method uses.
        let is_skipped = |name: &str| name.strip_prefix("vit.").unwrap_or(name) == "embeddings.mask_token";
        ignored.extend(inside.keys().filter(|name| is_skipped(name)).map(|name| format!("{prefix}{name}")));
        names::from_hugging_face(&inside, is_skipped).map_err(|error| match error {
            Error::WeightsMismatch { mismatch, .. } => with_origin(mismatch),
            other => other,
        })?
    } else {
        inside
    };
    let taken = (weights.tensors().iter()).filter(|(name, _)| !ignored.contains(name));
    require_finite(weights.path(), taken.map(|(name, tensor)| (name.as_str(), tensor)))?;
    let decoder = tensors.keys().any(|name| Part::of(name) == Part::Decoder);
    Ok(Imported {
        layout: match (anchor, decoder) {
            (CONV_ANCHOR, true) => "ConvMAE",
            (CONV_ANCHOR, false) => "ConvMAE's encoder",
            (HF_ANCHOR, true) => "Hugging Face ViTMAE",
            (HF_ANCHOR, false) => "Hugging Face ViT",
            (_, true) => "MAE",
            (_, false) => "MAE's or timm's ViT",
        },
        tensors,
        ignored,
    })
}

/// What stands before `anchor` in the names, where it consists of wrappers: the shortest.
fn wrapper(tensors: &Tensors, anchor: &str) -> Option<String> {
    let prefixes = tensors.keys().filter_map(|name| {
        let mut prefix = name.strip_suffix(anchor)?;
        if anchor == HF_ANCHOR {
            // Not a wrapper: it tells the encoder from the decoder.
            prefix = match prefix.strip_suffix("vit.") {
                Some(outer) if outer.is_empty() || outer.ends_with('.') => outer,
                _ => prefix,
            };
        }
        let wraps = prefix.is_empty()
            || prefix.strip_suffix('.').is_some_and(|p| p.split('.').all(|part| WRAPPERS.contains(&part)));
        wraps.then(|| prefix.to_owned())
    });
    prefixes.min_by_key(String::len)
}

/// Compares the `config.json` beside `weights`, where there is one, with the network that its tensors go into: the number of
/// heads and the activation show in no shape. `decoder_num_heads`: where a decoder is taken too.
///
/// # Errors
/// [`Error::StudentConfig`] if they differ, or the file is no JSON.
pub fn check_beside(weights: &Path, num_heads: i64, decoder_num_heads: Option<i64>) -> Result<()> {
    Beside::read(weights)?.check(num_heads, decoder_num_heads)
}
