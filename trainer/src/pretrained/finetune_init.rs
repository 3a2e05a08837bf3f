//! What is fine-tuned: a pretrained encoder or a teacher's tower, from a run, a file or a hub.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, ensure};
use hub::HubSettings;
use models::encoder::EncoderConfig;
use models::exchange;
use models::mae::Mae;
use models::params::ParamStore;
use models::teacher::TowerWeights;
use models::weights::Weights;
use sha2::{Digest, Sha256};
use tch::{Device, Tensor};
use tracing::info;

use crate::pretrained::init;
use crate::pretrained::trained::{self, Trained};
use crate::recipe::any::AnyRecipe;
use crate::recipe::{Experiment, Recipe};
use program::fetch::resolve;

/// A pretrained encoder.
#[derive(Debug)]
pub(crate) struct Start {
    /// What it is made of, at the image size it was pretrained at.
    pub encoder: EncoderConfig,
    /// Its tensors under their reference names, and others that pretraining has.
    pub tensors: BTreeMap<String, Tensor>,
    /// For people: what it is and where from.
    pub description: String,
    /// SHA-256 of the file it is in; of an untrained student, of the recipe that makes it.
    pub sha256: String,
}

impl Start {
    /// The encoder of a run folder's newest whole checkpoint, of a student's file, or of any that [`fn@exchange::import`] reads; else the
    /// tower of any that [`TowerWeights::read`] reads.
    ///
    /// After `untrained:`, the student that a run's or file's seed makes; after `ema:`, a run's moving average; after `teacher:`, the tower
    /// exactly as a frozen teacher has it, of files that a student could have too.
    pub(crate) fn load(spec: &str, hub: &HubSettings) -> anyhow::Result<Start> {
        if let Some(rest) = spec.strip_prefix("untrained:") {
            return untrained(rest, hub);
        }
        if let Some(rest) = spec.strip_prefix("teacher:") {
            return of_tower(rest, hub);
        }
        if let Some(rest) = spec.strip_prefix("ema:") {
            let found = Trained::read(Path::new(rest), true)?;
            let found = found.with_context(|| {
                format!("--init ema:{rest}: only a run folder has a moving average, and this is none")
            })?;
            return of_trained(found);
        }
        if let Some(found) = Trained::read(Path::new(spec), false)? {
            return of_trained(found);
        }
        let resolved = resolve(spec, hub).with_context(|| not_found(spec))?;
        let weights = Weights::read(&resolved.path)?;
        let imported = match exchange::import(&weights) {
            Ok(imported) => imported,
            // A tower is no student; what is neither is told as such.
            Err(error) => {
                let tower = of_tower(spec, hub);
                return tower.map_err(|tower| {
                    anyhow::Error::from(error).context(format!("nor is it a teacher's tower: {tower:#}"))
                });
            }
        };
        Ok(Start {
            encoder: imported.encoder_config(weights.path())?,
            tensors: imported.encoder_tensors(),
            description: format!("{} {}", imported.layout, resolved.source),
            sha256: weights.sha256().to_owned(),
        })
    }
}

fn not_found(spec: &str) -> String {
    format!(
        "--init {spec}: give a run folder, a student's file, weights of MAE, ConvMAE, timm's ViT or transformers' ViT or ViTMAE, or a \
         tower of CLIP, DINO, DINOv2, DINOv3 or SigLIP: a path, or an id of the Hugging Face hub"
    )
}

fn of_trained(found: Trained) -> anyhow::Result<Start> {
    let encoder = match &found.recipe {
        AnyRecipe::Pretrain(recipe) => {
            let encoder = recipe.mae_config().encoder;
            if encoder.is_fused() {
                info!(
                    "{} was pretrained with multi-layer fusion, which is no part of fine-tuning: the classifier stands on the last block",
                    found.describe()
                );
            }
            encoder.without_fusion()
        }
        AnyRecipe::Finetune(recipe) => {
            let encoder = trained::backbone(recipe, &found.place)?;
            encoder.check(&found.tensors).with_context(|| found.place.clone())?;
            encoder.clone()
        }
    };
    Ok(Start { encoder, description: found.describe(), tensors: found.tensors, sha256: found.sha256 })
}

/// The student that a recipe's seed makes, or what it starts from.
fn untrained(spec: &str, hub: &HubSettings) -> anyhow::Result<Start> {
    let path = Path::new(spec);
    let recipe: Recipe = match trained::is_run(path) {
        true => trained::pretraining(&trained::recipe_of(path)?, spec)?,
        false => {
            let found = Trained::read(path, false)?
                .with_context(|| format!("--init untrained:{spec}: {}", trained::not_untrained(path)))?;
            trained::pretraining(&found.recipe, spec)?
        }
    };
    let params = ParamStore::new(Device::Cpu, recipe.run.seed);
    let mae = Mae::new(&params.root(), &recipe.mae_config())?;
    if let Some(begin) = init::open(&recipe, hub)? {
        begin.load(&params, &recipe)?;
    }
    let digest = Sha256::digest(recipe.to_toml());
    let hex = schemas::hex(&digest);
    Ok(Start {
        encoder: mae.config().encoder.clone().without_fusion(),
        tensors: params.tensors(),
        description: format!("untrained student of {spec}"),
        sha256: format!("{hex} (of the recipe, untrained)"),
    })
}

/// A teacher's tower.
fn of_tower(spec: &str, hub: &HubSettings) -> anyhow::Result<Start> {
    let resolved = resolve(spec, hub).with_context(|| not_found(spec))?;
    let found = TowerWeights::read(&resolved.path)?;
    Ok(Start {
        description: format!("teacher {} ({})", resolved.source, found.config.arch()),
        encoder: EncoderConfig::Vit(found.config),
        tensors: found.tensors,
        sha256: found.sha256,
    })
}

/// Side of the square image that `config` takes, in pixels.
pub(crate) fn img_size(config: &EncoderConfig) -> anyhow::Result<u32> {
    let [rows, columns] = config.img_size();
    ensure!(
        rows == columns,
        "the encoder takes images of {rows} x {columns} pixels, and only squares can be fine-tuned on"
    );
    Ok(u32::try_from(rows)?)
}
