//! What is fine-tuned: a pretrained encoder, from a run or a file.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, ensure};
use models::encoder::{EncoderConfig, VitConfig};
use models::weights::Weights;
use tch::Tensor;
use tracing::warn;

use crate::config::Recipe;
use crate::{checkpoint, run_folder};

/// Width of an attention head where a file does not say: that of every published ViT.
const HEAD_DIM: i64 = 64;

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
    /// The encoder of a run folder's newest whole checkpoint, of a student's file, or of a file with the names of MAE's and timm's
    /// ViT.
    pub fn load(spec: &str) -> anyhow::Result<Start> {
        let path = Path::new(spec);
        ensure!(
            path.exists(),
            "--init {spec}: no such file or folder. Give a run folder, or the weights of a ViT student or of MAE's or timm's ViT"
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
        let (encoder, description) = match weights.metadata().get(checkpoint::RECIPE_KEY) {
            Some(recipe) => {
                let recipe = Recipe::parse(recipe, &origin, &[])?;
                (recipe.mae_config().encoder, format!("student {origin}"))
            }
            None => (shaped(&weights)?, format!("ViT {origin}")),
        };
        Ok(Start {
            encoder,
            tensors: weights
                .tensors()
                .iter()
                .map(|(name, t)| (name.clone(), t.shallow_clone()))
                .collect(),
            description,
            sha256: weights.sha256().to_owned(),
        })
    }
}

/// The ViT that a file without a recipe holds, by the shapes of its tensors. Heads are 64 wide.
fn shaped(weights: &Weights) -> anyhow::Result<EncoderConfig> {
    let path = weights.path();
    let shape = |name: &str, axes: usize| {
        let found = weights.get(name).map(Tensor::size);
        found.filter(|shape| shape.len() == axes).with_context(|| {
            format!(
                "{path:?}: has no {name} as MAE's and timm's ViT do, so it is none that can be fine-tuned; give a run folder, a student's \
                 file or such a ViT"
            )
        })
    };
    let patch = shape("patch_embed.proj.weight", 4)?;
    let (embed_dim, patch_size) = (patch[0], patch[3]);
    let patches = shape("pos_embed", 3)?[1] - 1;
    let side = patches.max(0).isqrt();
    ensure!(
        side > 0 && side * side == patches,
        "{path:?}: pos_embed has {patches} patches beside CLS, which is no square grid"
    );
    let depth = (0..)
        .take_while(|i| weights.get(&format!("blocks.{i}.norm1.weight")).is_some())
        .count() as i64;
    let config = VitConfig {
        img_size: [side * patch_size; 2],
        patch_size,
        embed_dim,
        depth,
        num_heads: (embed_dim / HEAD_DIM).max(1),
        mlp_ratio: shape("blocks.0.mlp.fc1.weight", 2)?[0] / embed_dim.max(1),
        fusion: Vec::new(),
    };
    config
        .validate()
        .with_context(|| format!("{path:?}: its shapes are those of no ViT"))?;
    Ok(EncoderConfig::Vit(config))
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
