//! What training leaves behind, of either kind: a run folder or a checkpoint's file, with the recipe in it.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use models::encoder::EncoderConfig;
use models::params::Tensors;
use models::weights::Weights;
use tracing::warn;

use crate::recipe::Recipe;
use crate::recipe::any::AnyRecipe;
use crate::recipe::finetune::FinetuneRecipe;
use crate::recipe::spec::Spec;
use crate::train::{checkpoint, run_folder};

/// Weights with what is known about where they are from.
#[derive(Debug)]
pub(crate) struct Trained {
    /// What they were trained by.
    pub(crate) recipe: AnyRecipe,
    /// Under the names of the network.
    pub(crate) tensors: Tensors,
    /// Updates done, where a run says so.
    pub(crate) step: Option<u64>,
    /// SHA-256 of the checkpoint's file.
    pub(crate) sha256: String,
    /// Whether this is a run's moving average.
    pub(crate) average: bool,
    /// Whether this is a student as its seed made it.
    pub(crate) untrained: bool,
    /// The path, with the step where it is known, for messages.
    pub(crate) place: String,
}

/// Refuses a file of a checkpoint that is not what the checkpoint's `state.json` beside it says. One that has left its checkpoint is nobody's to
/// vouch for.
fn vouched_for(path: &Path, weights: &Weights) -> anyhow::Result<()> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|n| n.to_str())) else {
        return Ok(());
    };
    if !folder.join(checkpoint::STATE).is_file() {
        return Ok(());
    }
    let state = checkpoint::read_state(folder)?;
    if let Some(expected) = state.sha256.get(name) {
        weights.require_sha256(expected, checkpoint::STATE)?;
    }
    Ok(())
}

/// Why `path` cannot follow `untrained:`.
pub(crate) fn not_untrained(path: &Path) -> &'static str {
    match path.exists() {
        true => {
            "only a student can be untrained, and this is none: give the folder of a run of trainer pretrain, or its checkpoint's file"
        }
        false => {
            "there is no such file or folder: give the folder of a run of trainer pretrain, or its checkpoint's file"
        }
    }
}

/// Why `path` cannot follow `ema:` unless it is a run folder.
pub(crate) fn no_average(path: &Path) -> String {
    let what = match (path.is_file(), path.exists()) {
        (true, _) => format!("is a file; a checkpoint's average is its file {}, without `ema:`", checkpoint::EMA),
        (_, true) => format!("is a folder without a run's {}", run_folder::RECIPE),
        (_, false) => "does not exist".to_owned(),
    };
    format!("only a run folder has a moving average (`ema:RUN`, --ema), and {path:?} {what}")
}

/// Why the run folder `run` cannot follow `ema:`.
pub(crate) fn keeps_no_average(run: &Path) -> String {
    format!("{run:?}: this run keeps no moving average; its recipe has no optim.ema_decay")
}

impl Trained {
    /// The newest whole checkpoint of a run folder, or a checkpoint's folder or model file; `ema` asks for a run's moving average instead.
    /// `None` if `path` is neither: another kind of weights, or nothing that can be found.
    ///
    /// # Errors
    /// If the run has no checkpoint, or no average, or is damaged.
    pub(crate) fn read(path: &Path, ema: bool) -> anyhow::Result<Option<Trained>> {
        if is_run(path) {
            return Trained::of_run(path, ema).map(Some);
        }
        ensure!(!ema, "{}", no_average(path));
        // A checkpoint's folder means the file of weights in it.
        let within = path.join(checkpoint::MODEL);
        let path = match path.join(checkpoint::STATE).is_file() && within.is_file() {
            true => &within,
            false => path,
        };
        if !path.is_file() {
            return Ok(None);
        }
        let weights = Weights::read(path)?;
        vouched_for(path, &weights)?;
        let origin = path.display().to_string();
        let Some(recipe) = weights.metadata().get(checkpoint::RECIPE_KEY) else {
            return Ok(None);
        };
        let tensors = weights.tensors().iter();
        Ok(Some(Trained {
            recipe: AnyRecipe::parse(recipe, &origin, &[])?,
            tensors: tensors.map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect(),
            step: None,
            sha256: weights.sha256().to_owned(),
            average: false,
            untrained: false,
            place: origin,
        }))
    }

    fn of_run(run: &Path, ema: bool) -> anyhow::Result<Trained> {
        let recipe = recipe_of(run)?;
        let checkpoint = checkpoint::load_last(run, &mut |notice| warn!("{notice}"))?;
        let checkpoint = checkpoint
            .with_context(|| format!("{run:?}: this run has no checkpoint yet; train it first, for a step at least"))?;
        let step = checkpoint.state.step;
        let (file, tensors) = match ema {
            false => (checkpoint::MODEL, checkpoint.model),
            true => (checkpoint::EMA, checkpoint.ema.with_context(|| keeps_no_average(run))?),
        };
        let sha256 = checkpoint.state.sha256.get(file).cloned();
        Ok(Trained {
            recipe,
            tensors,
            step: Some(step),
            sha256: sha256.context("a loaded checkpoint knows its digests")?,
            average: ema,
            untrained: false,
            place: format!("{} after step {step}", run.display()),
        })
    }

    /// A student before its first step. `digest` is the SHA-256 of its recipe.
    pub(crate) fn untrained(recipe: Recipe, tensors: Tensors, place: &str, digest: &str) -> Trained {
        Trained {
            recipe: AnyRecipe::Pretrain(Box::new(recipe)),
            tensors,
            step: None,
            sha256: format!("{digest} (of the recipe, untrained)"),
            average: false,
            untrained: true,
            place: place.to_owned(),
        }
    }

    /// For people: what it is and where from.
    pub(crate) fn describe(&self) -> String {
        let what = match (&self.recipe, self.average) {
            _ if self.untrained => "untrained student of",
            (_, true) => "average of",
            (AnyRecipe::Pretrain(_), _) if self.step.is_none() => "student",
            (AnyRecipe::Finetune(_), _) if self.step.is_none() => "fine-tuned",
            (AnyRecipe::Pretrain(_), _) => "student of",
            (AnyRecipe::Finetune(_), _) => "fine-tuning",
        };
        format!("{what} {}", self.place)
    }

    /// The number of classes of a classifier.
    pub(crate) fn n_classes(&self) -> anyhow::Result<i64> {
        let size = self.tensors.get("head.weight").map(tch::Tensor::size);
        match size.as_deref() {
            Some([n_classes, _]) => Ok(*n_classes),
            _ => bail!("{}: has no classifier head.weight [C, D]", self.place),
        }
    }
}

/// Whether a folder is a run's.
pub(crate) fn is_run(path: &Path) -> bool {
    path.join(run_folder::RECIPE).is_file()
}

/// The recipe of a run folder, of either kind.
pub(crate) fn recipe_of(run: &Path) -> anyhow::Result<AnyRecipe> {
    AnyRecipe::load(&run.join(run_folder::RECIPE), &[]).with_context(|| format!("{run:?}: its recipe cannot be used"))
}

/// The recipe of pretraining, for what only pretraining has. `option` has named `spec`.
pub(crate) fn pretraining(recipe: &AnyRecipe, option: &str, spec: &Spec) -> anyhow::Result<Recipe> {
    match recipe {
        AnyRecipe::Pretrain(recipe) => Ok((**recipe).clone()),
        AnyRecipe::Finetune(_) => bail!(
            "{option} {}: {} is a fine-tuning, and this is for students of `trainer pretrain`; give a run of pretraining{}",
            spec.given,
            spec.name,
            if spec.untrained { ", or leave out `untrained:`" } else { "" }
        ),
    }
}

/// What a fine-tuning's classifier stands on.
pub(crate) fn backbone<'r>(recipe: &'r FinetuneRecipe, origin: &str) -> anyhow::Result<&'r EncoderConfig> {
    recipe.encoder.as_ref().with_context(|| {
        format!(
            "{origin}: the recipe does not say which encoder was fine-tuned ([encoder]). Run the command of `trainer finetune` that \
             made the run once more: it adds what --init is, also to a finished run, and trains nothing again"
        )
    })
}
