//! What is fine-tuned: a pretrained encoder or a teacher's tower, from a run, a file or a hub.

use anyhow::{Context, ensure};
use hub::HubSettings;
use models::encoder::EncoderConfig;
use models::params::Tensors;
use models::pretrained::{Network, Wanted};
use tracing::info;

use super::trained::{self, Trained};
use super::{Door, Pretrained};
use crate::recipe::any::AnyRecipe;
use crate::recipe::spec::Spec;

/// What `--init` takes.
const TAKES: &str = "a run folder, a student's file, weights of MAE, ConvMAE, timm's ViT or transformers' ViT or ViTMAE, or a tower of CLIP, \
                     DINO, DINOv2, DINOv3 or SigLIP: a path, or an id of the Hugging Face hub";

#[derive(Debug)]
pub(crate) struct Start {
    /// What it is made of, at the image size it was pretrained at.
    pub encoder: EncoderConfig,
    /// Its tensors under their reference names, and others that pretraining has.
    pub tensors: Tensors,
    /// For people: what it is and where from.
    pub description: String,
    /// SHA-256 of the file it is in; of an untrained student, of the recipe that makes it.
    pub sha256: String,
}

impl Start {
    /// The encoder of a run folder's newest whole checkpoint, of a student's file, or of any that [`Pretrained::open`] reads.
    ///
    /// After `untrained:`, the student that a run's or file's seed makes; after `ema:`, a run's moving average; after `teacher:`, the tower
    /// exactly as a frozen teacher has it, of files that a student could have too.
    pub(crate) fn load(given: &str, hub: &HubSettings) -> anyhow::Result<Start> {
        let spec = Spec::parse(given);
        ensure!(!spec.unfused, "--init {given}: fine-tuning never uses multi-layer fusion; leave out `unfused:`");
        let door = Door { option: "--init", takes: TAKES, wanted: Wanted::StudentFirst, hub };
        match door.open(&spec)? {
            Pretrained::Trained(found) => Start::of_trained(*found),
            Pretrained::Foreign { found, source } => {
                let description = match &found.network {
                    Network::Student(student) => format!("{} {source}", student.layout),
                    Network::Tower(tower) => format!("teacher {source} ({})", tower.config.arch()),
                };
                let (encoder, tensors) = (found.encoder_config()?, found.encoder_tensors());
                Ok(Start { encoder, tensors, description, sha256: found.sha256 })
            }
        }
    }

    fn of_trained(found: Trained) -> anyhow::Result<Start> {
        let encoder = match &found.recipe {
            AnyRecipe::Pretrain(recipe) => {
                let encoder = recipe.mae_config().encoder;
                if encoder.is_fused() {
                    info!(
                        "{} was pretrained with multi-layer fusion, which fine-tuning does not use: the classifier stands on the last block",
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
