//! A student's tensors from another package's file.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::Value;

use super::{Part, Tensors, names};
use crate::error::{Error, Mismatch, Result};
use crate::mr_mae::is_mimic_param;
use crate::weights::Weights;

/// The tensor by which each layout is known.
const VIT_ANCHOR: &str = "patch_embed.proj.weight";
pub(super) const CONV_ANCHOR: &str = "patch_embed1.proj.weight";
const HF_ANCHOR: &str = "embeddings.patch_embeddings.projection.weight";

/// What may come before all of a student's names: the keys under which training code saves it, and what wraps it.
const WRAPPERS: [&str; 4] = ["model", "state_dict", "module", "backbone"];

/// What training code saves beside a student, by the first part of its names.
const BESIDE: [&str; 9] = [
    "optimizer",
    "optimizer_state",
    "lr_scheduler",
    "scaler",
    "loss_scaler",
    "epoch",
    "args",
    "model_ema",
    "state_dict_ema",
];

/// What other uses of an encoder put on top of it, by the beginning of its names.
const HEADS: [&str; 4] = ["head.", "fc.", "classifier.", "pooler."];

/// `config.json` is a few kilobytes; more is some other file.
const MAX_JSON_BYTES: u64 = 1 << 20;

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
        self.tensors
            .keys()
            .any(|name| Part::of(name) == Part::Decoder)
    }

    /// Whether it has MCMAE's convolution stages.
    pub fn is_convolutional(&self) -> bool {
        self.tensors.contains_key(CONV_ANCHOR)
    }
}

/// The student in `weights`: one of MAE, ConvMAE, timm's ViT, transformers' ViT or ViTMAE, or of this project, with or without a
/// decoder, alone or in a training checkpoint. What belongs to teachers, classifiers and optimisers are left out.
///
/// # Errors
/// [`Error::NoStudent`] if the names are none of these; [`Error::WeightsMismatch`] with every tensor that has no place in a student.
pub fn import(weights: &Weights) -> Result<Imported> {
    let tensors = weights.tensors();
    let origin = weights.path().display().to_string();
    let found = [VIT_ANCHOR, CONV_ANCHOR, HF_ANCHOR]
        .into_iter()
        .find_map(|anchor| Some((anchor, wrapper(tensors, anchor)?)));
    let Some((anchor, prefix)) = found else {
        return Err(Error::NoStudent {
            path: weights.path().to_path_buf(),
            count: weights.len(),
            first: weights.names().take(4).map(str::to_owned).collect(),
        });
    };

    let mut inside = Tensors::new();
    let mut ignored = Vec::new();
    let mut unexpected = Vec::new();
    for (full, tensor) in tensors {
        let first = full.split('.').next().unwrap_or_default();
        match full.strip_prefix(&prefix) {
            Some(name)
                if is_mimic_param(name) || HEADS.iter().any(|head| name.starts_with(head)) =>
            {
                ignored.push(full.clone());
            }
            _ if BESIDE.contains(&first) => ignored.push(full.clone()),
            Some(name) => {
                inside.insert(name.to_owned(), tensor.shallow_clone());
            }
            None => unexpected.push((full.clone(), tensor.size())),
        }
    }
    let with_origin = |mismatch| Error::WeightsMismatch {
        origin: origin.clone(),
        mismatch,
    };
    if !unexpected.is_empty() {
        return Err(with_origin(Mismatch {
            unexpected,
            ..Mismatch::default()
        }));
    }
    let tensors = if anchor == HF_ANCHOR {
        // The mask token of transformers' ViTModel, which pretraining by another method uses.
        let is_skipped =
            |name: &str| name.strip_prefix("vit.").unwrap_or(name) == "embeddings.mask_token";
        ignored.extend(
            inside
                .keys()
                .filter(|name| is_skipped(name))
                .map(|name| format!("{prefix}{name}")),
        );
        names::from_hugging_face(&inside, is_skipped).map_err(|error| match error {
            Error::WeightsMismatch { mismatch, .. } => with_origin(mismatch),
            other => other,
        })?
    } else {
        inside
    };
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
            || prefix
                .strip_suffix('.')
                .is_some_and(|p| p.split('.').all(|part| WRAPPERS.contains(&part)));
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
    let path = weights
        .parent()
        .unwrap_or(Path::new(""))
        .join("config.json");
    let wrong = |reason: String| {
        Err(Error::StudentConfig {
            path: path.clone(),
            reason,
        })
    };
    let mut text = String::new();
    match File::open(&path).and_then(|file| file.take(MAX_JSON_BYTES).read_to_string(&mut text)) {
        Ok(_) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return wrong(format!("cannot be read: {e}")),
    }
    let config: Value = match serde_json::from_str(&text) {
        Ok(config) => config,
        Err(e) => return wrong(format!("is no JSON: {e}")),
    };
    let heads = |keys: [&str; 2]| {
        keys.into_iter()
            .find_map(|key| config.pointer(key)?.as_i64())
    };
    let written = heads(["/num_attention_heads", "/model_args/num_heads"]);
    let decoder_written = heads([
        "/decoder_num_attention_heads",
        "/model_args/decoder_num_heads",
    ]);
    for (what, field, written, wanted) in [
        ("encoder", "num_heads", written, Some(num_heads)),
        (
            "decoder",
            "decoder_num_heads",
            decoder_written,
            decoder_num_heads,
        ),
    ] {
        if let (Some(written), Some(wanted)) = (written, wanted)
            && written != wanted
        {
            return wrong(format!(
                "the {what} has {written} attention heads, and model.{field} is {wanted}. Set it to {written}: the weights mean \
                 nothing else"
            ));
        }
    }
    match config.get("hidden_act").and_then(Value::as_str) {
        None | Some("gelu") => Ok(()),
        Some(other) => wrong(format!("hidden_act is {other:?}, and a student's is gelu")),
    }
}
