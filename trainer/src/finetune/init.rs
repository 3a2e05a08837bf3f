//! What is fine-tuned: a pretrained encoder, from a run or a file.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, ensure};
use models::encoder::EncoderConfig;
use models::exchange;
use models::weights::Weights;
use tch::Tensor;
use tracing::warn;

use crate::config::Recipe;
use crate::{checkpoint, run_folder};

/// A pretrained encoder.
#[derive(Debug)]
pub struct Start {
    /// What it is made of, at the image size it was pretrained at.
    pub encoder: EncoderConfig,
    /// Its tensors under their reference names, and others that pretraining has.
    pub tensors: BTreeMap<String, Tensor>,
    /// For people: what it is and where from.
    pub description: String,
    /// SHA-256 of the file it is in.
    pub sha256: String,
}

impl Start {
    /// The encoder of a run folder's newest whole checkpoint, of a student's file, or of any that [`fn@exchange::import`] reads.
    pub fn load(spec: &str) -> anyhow::Result<Start> {
        let path = Path::new(spec);
        ensure!(
            path.exists(),
            "--init {spec}: no such file or folder. Give a run folder, a student's file, or weights of MAE, ConvMAE, timm's ViT or \
             transformers' ViT or ViTMAE"
        );
        if path.join(run_folder::RECIPE).is_file() {
            let recipe = run_folder::load_recipe(path)?;
            let checkpoint = checkpoint::load_last(path, &mut |notice| warn!("{notice}"))?
                .with_context(|| format!("{path:?}: this run has no checkpoint yet"))?;
            let sha256 = checkpoint.state.sha256.get(checkpoint::MODEL).cloned();
            return Ok(Start {
                encoder: recipe.mae_config().encoder,
                tensors: checkpoint.model,
                description: format!(
                    "student of {} after step {}",
                    path.display(),
                    checkpoint.state.step
                ),
                sha256: sha256.context("a loaded checkpoint knows its digests")?,
            });
        }
        let weights = Weights::read(path)?;
        let origin = weights.path().display().to_string();
        let (encoder, tensors, description) = match weights.metadata().get(checkpoint::RECIPE_KEY) {
            Some(recipe) => {
                let recipe = Recipe::parse(recipe, &origin, &[])?;
                let tensors = weights.tensors().iter();
                (
                    recipe.mae_config().encoder,
                    tensors
                        .map(|(name, t)| (name.clone(), t.shallow_clone()))
                        .collect(),
                    format!("student {origin}"),
                )
            }
            None => {
                let imported = exchange::import(&weights)?;
                (
                    imported.encoder_config(weights.path())?,
                    imported.encoder_tensors(),
                    format!("{} {origin}", imported.layout),
                )
            }
        };
        Ok(Start {
            encoder,
            tensors,
            description,
            sha256: weights.sha256().to_owned(),
        })
    }
}

/// `config` at another side of the image.
pub fn at_size(config: &EncoderConfig, img_size: u32) -> anyhow::Result<EncoderConfig> {
    let mut config = config.clone();
    match &mut config {
        EncoderConfig::Vit(vit) => vit.img_size = [img_size.into(); 2],
        EncoderConfig::Mcmae(mcmae) => mcmae.img_size = [img_size.into(); 2],
    }
    config
        .validate()
        .with_context(|| format!("model.img_size = {img_size}"))?;
    Ok(config)
}

/// Side of the square image that `config` takes, in pixels.
pub fn img_size(config: &EncoderConfig) -> anyhow::Result<u32> {
    let [rows, columns] = config.grid().map(|n| n * config.patch_size());
    ensure!(
        rows == columns,
        "the encoder takes images of {rows} x {columns} pixels, and only squares can be fine-tuned on"
    );
    Ok(u32::try_from(rows)?)
}
