//! Students in other packages' files: what each package calls a student's tensors, in both directions.
//!
//! | format | names of | holds |
//! |---|---|---|
//! | `timm` | timm's `VisionTransformer` | encoder |
//! | `hf-mae` | transformers' `ViTMAEForPreTraining`; without a decoder `ViTMAEModel` | encoder, decoder |
//! | `hf-vit` | transformers' `ViTModel` without a pooler | encoder |
//! | `timm`, `hf-vit` of a classifier | timm's `VisionTransformer`, transformers' `ViTForImageClassification` | all: [`export_classifier`] |
//! | `mae` | `facebookresearch/mae` | encoder, decoder |
//! | `convmae` | `Alpha-VL/ConvMAE`'s pretraining model | encoder, stage projections, decoder |
//!
//! A student's own names are the last two's, so what is left to do for them is to choose. transformers keeps q, k and v apart and
//! calls everything else; its files have the names of transformers 4, which version 5 translates when it reads and writes. No
//! value is changed on the way, so that a student is the same to the bit after any way there and back.
//!
//! Everything works on maps of named tensors and takes sizes from their shapes. What shapes cannot tell is [`Facts`]. [`export`]
//! is the way out, [`import()`] the way in, [`load_into`] puts what came in into a network.

use std::fmt;
use std::str::FromStr;

use serde_json::Value;

use crate::encoder::EncoderConfig;
use crate::error::{Error, Result};
use crate::mae::MaeConfig;
use crate::mr_mae::is_mimic_param;
pub use crate::params::Tensors;
use crate::shapes::{McmaeShapes, VitShapes};

mod beside;
mod classifier;
mod configs;
mod import;
mod load;
mod names;

pub use classifier::{ClassifierFacts, export_classifier};
pub use import::{Imported, check_beside, import};
pub use load::{Loaded, load_into};

#[cfg(test)]
mod tests;

/// What other packages read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// timm's `VisionTransformer`.
    Timm,
    /// transformers' `ViTMAEForPreTraining`.
    HfMae,
    /// transformers' `ViTModel`.
    HfVit,
    /// `facebookresearch/mae`.
    Mae,
    /// `Alpha-VL/ConvMAE`.
    ConvMae,
}

impl Format {
    /// All of them.
    pub const ALL: [Format; 5] = [Format::Timm, Format::HfMae, Format::HfVit, Format::Mae, Format::ConvMae];

    /// The name on command lines.
    pub fn name(self) -> &'static str {
        match self {
            Format::Timm => "timm",
            Format::HfMae => "hf-mae",
            Format::HfVit => "hf-vit",
            Format::Mae => "mae",
            Format::ConvMae => "convmae",
        }
    }

    /// Whether it has a place for a decoder.
    pub fn holds_decoder(self) -> bool {
        match self {
            Format::Timm | Format::HfVit => false,
            Format::HfMae | Format::Mae | Format::ConvMae => true,
        }
    }

    fn refuses(self, reason: impl Into<String>) -> Error {
        Error::CannotExport { format: self.name(), reason: reason.into() }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Format::ALL.into_iter().find(|format| format.name() == name);
        found.ok_or_else(|| format!("unknown format {name:?}; there are {}", Format::ALL.map(Format::name).join(", ")))
    }
}

/// What a student's tensors do not tell.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// Height and width of an image, in pixels.
    pub img_size: [i64; 2],
    /// Attention heads of the encoder.
    pub num_heads: i64,
    /// Attention heads of the decoder.
    pub decoder_num_heads: i64,
    /// Whether the pixel target is normalised per patch.
    pub norm_pix_loss: bool,
    /// Share of patches that were removed in training.
    pub mask_ratio: f64,
    /// Whether the outputs of several blocks or stages are summed before the last norm. No other package's ViT does that in front of
    /// a decoder; ConvMAE always does.
    pub fusion: bool,
}

impl Facts {
    /// What `config` says, for a student trained with this mask ratio.
    pub fn of(config: &MaeConfig, mask_ratio: f64) -> Facts {
        let (img_size, num_heads, fusion) = match &config.encoder {
            EncoderConfig::Vit(vit) => (vit.img_size, vit.num_heads, !vit.fusion.is_empty()),
            EncoderConfig::Mcmae(mcmae) => (mcmae.img_size, mcmae.num_heads, mcmae.fusion),
        };
        Facts {
            img_size,
            num_heads,
            decoder_num_heads: config.decoder.num_heads,
            norm_pix_loss: config.norm_pix_loss,
            mask_ratio,
            fusion,
        }
    }
}

/// A student as another package's files.
#[derive(Debug)]
pub struct Exported {
    /// `model.safetensors`.
    pub tensors: Tensors,
    /// `config.json`.
    pub config: Value,
    /// `preprocessor_config.json`, where the package looks for one.
    pub preprocessor: Option<Value>,
    /// Whether the decoder is in it.
    pub decoder: bool,
}

/// The parts of a student by its tensors' names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part<'n> {
    /// What sees the image.
    Encoder,
    /// What predicts pixels, with the mask token.
    Decoder,
    /// What belongs to the teachers of a run: heads, statistics of features.
    Mimic,
    /// Anything else, by the first part of its names: ConvMAE's projections of its stages.
    Other(&'n str),
}

impl Part<'_> {
    pub(crate) fn of(name: &str) -> Part<'_> {
        let first = name.split('.').next().unwrap_or_default();
        match first {
            "cls_token" | "pos_embed" | "norm" => Part::Encoder,
            _ if first.starts_with("patch_embed") || first.starts_with("blocks") => Part::Encoder,
            "mask_token" => Part::Decoder,
            _ if first.starts_with("decoder_") => Part::Decoder,
            _ if is_mimic_param(name) => Part::Mimic,
            _ => Part::Other(first),
        }
    }
}

/// The student `tensors`, under its own names, as `format` has it: with its decoder where `decoder` says so, without what
/// belongs to teachers. Names and numbers only; nothing is written.
///
/// # Errors
/// [`Error::CannotExport`] if the format has no place for such a student.
pub fn export(tensors: &Tensors, facts: &Facts, format: Format, decoder: bool) -> Result<Exported> {
    if decoder && !format.holds_decoder() {
        return Err(format.refuses("it has no place for a decoder. Export the encoder alone, or choose hf-mae or mae"));
    }
    let convolutional = tensors.contains_key(import::CONV_ANCHOR);
    match format {
        Format::ConvMae if !convolutional => {
            return Err(format.refuses("the student is a ViT. Choose mae, timm, hf-mae or hf-vit"));
        }
        Format::ConvMae => {}
        _ if convolutional => {
            return Err(format.refuses("the student has MCMAE's convolution stages. Choose convmae"));
        }
        _ => {}
    }
    if decoder && !tensors.keys().any(|name| Part::of(name) == Part::Decoder) {
        return Err(format.refuses("the student has no decoder. Export the encoder alone"));
    }
    if decoder && convolutional && !facts.fusion {
        return Err(format.refuses(
            "the decoder was trained without the projections of the first stages, which ConvMAE's network always adds. Export the \
             encoder alone",
        ));
    }
    if decoder && facts.fusion && !convolutional {
        return Err(format.refuses(
            "the decoder was trained on the sum of several blocks (model.fusion), which this format's network does not build. \
             Export the encoder alone, without fusion (--encoder-only --unfused)",
        ));
    }
    let wanted: Tensors = tensors
        .iter()
        .filter(|(name, _)| match Part::of(name) {
            Part::Encoder => true,
            Part::Decoder | Part::Other(_) => decoder,
            Part::Mimic => false,
        })
        .map(|(name, tensor)| (name.clone(), tensor.shallow_clone()))
        .collect();
    let hugging_face = matches!(format, Format::HfMae | Format::HfVit);
    if hugging_face && facts.img_size[0] != facts.img_size[1] {
        return Err(format.refuses(format!(
            "images are {} x {} pixels, and transformers' code takes the patches for a square. Choose timm or mae",
            facts.img_size[0], facts.img_size[1]
        )));
    }
    let (config, preprocessor) = match format {
        Format::ConvMae => {
            let cls_token = wanted.contains_key("cls_token");
            let config = configs::convmae(&McmaeShapes::of(&wanted)?, facts, cls_token);
            (config, None)
        }
        Format::Timm => (configs::timm(&VitShapes::of(&wanted)?, facts), None),
        Format::Mae => (configs::mae(&VitShapes::of(&wanted)?, facts), None),
        Format::HfMae | Format::HfVit => {
            let shapes = VitShapes::of(&wanted)?;
            let config = match format {
                Format::HfVit => configs::hf_vit(&shapes, facts),
                _ => configs::hf_mae(&shapes, facts, decoder),
            };
            (config, Some(configs::hf_preprocessor(facts)))
        }
    };
    let tensors = match format {
        // A model with a decoder keeps its encoder one level down.
        Format::HfMae | Format::HfVit => names::to_hugging_face(&wanted, decoder)?,
        _ => wanted,
    };
    Ok(Exported { tensors, config, preprocessor, decoder })
}
