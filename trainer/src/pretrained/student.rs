//! A student of a run or a checkpoint's file, with where it is from.

use std::path::Path;

use anyhow::Context;
use models::params::Tensors;
use sha2::{Digest, Sha256};

use super::trained::{self, Trained};
use crate::recipe::{Experiment, Recipe};
use crate::train::{checkpoint, run_folder};

/// A student with what is known about where it is from.
pub(crate) struct Student {
    pub recipe: Recipe,
    pub tensors: Tensors,
    /// Updates done, where a run says so.
    pub step: Option<u64>,
    /// SHA-256 of the checkpoint's file.
    pub sha256: String,
    pub origin: String,
}

impl Student {
    pub(crate) fn of(recipe: Recipe, found: Trained) -> Student {
        let what = if found.average { "the average of " } else { "" };
        Student {
            recipe,
            step: found.step,
            sha256: found.sha256,
            origin: format!("{what}{}", found.place),
            tensors: found.tensors,
        }
    }

    /// SHA-256 of the resolved recipe as TOML.
    pub(crate) fn recipe_digest(&self) -> String {
        digest_of(&self.recipe.to_toml())
    }
}

/// SHA-256 of a text.
pub(crate) fn digest_of(text: &str) -> String {
    let digest = Sha256::digest(text);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a run folder's newest whole checkpoint, or a checkpoint's model file, holds. `ema` asks for the run's moving average instead.
pub(crate) fn read_trained(path: &Path, ema: bool) -> anyhow::Result<Trained> {
    let found = Trained::read(path, ema)?;
    found.with_context(|| match path.is_file() {
        true => format!(
            "{path:?}: its header has no recipe, so it is not the {} of a checkpoint; give a run folder, or the file of one of its \
             checkpoints",
            checkpoint::MODEL
        ),
        false => format!(
            "{path:?}: is neither a run folder (with {}) nor a checkpoint's {}",
            run_folder::RECIPE,
            checkpoint::MODEL
        ),
    })
}

/// The student of a run folder or of a checkpoint's model file.
pub(crate) fn read(path: &Path, ema: bool) -> anyhow::Result<Student> {
    let found = read_trained(path, ema)?;
    let recipe = trained::pretraining(&found.recipe, &path.display().to_string())?;
    Ok(Student::of(recipe, found))
}
