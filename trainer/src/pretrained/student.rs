//! A student of a run or a checkpoint's file, with where it is from.

use anyhow::{Context, ensure};
use models::params::Tensors;
use sha2::{Digest, Sha256};

use super::trained::{self, Trained};
use crate::recipe::spec::Spec;
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

/// What a run folder's newest whole checkpoint, or a checkpoint's model file, holds; after `ema:`, a run's moving average. `option` named
/// it.
///
/// # Errors
/// Those of reading; another kind of weights; and a prefix of what has not been trained here.
pub(crate) fn read_trained(option: &str, spec: &Spec) -> anyhow::Result<Trained> {
    let (given, path) = (spec.given, spec.path());
    ensure!(
        !spec.teacher,
        "{option} {given}: takes what `trainer` trained, and `teacher:` stands for files of other packages; leave it out"
    );
    ensure!(
        !spec.untrained,
        "{option} {given}: a student before its first step has learned nothing; leave out `untrained:`"
    );
    Trained::read(path, spec.ema)?.with_context(|| match path.is_file() {
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

/// The student of a run folder or of a checkpoint's model file, as [`read_trained`] takes them.
pub(crate) fn read(option: &str, spec: &Spec) -> anyhow::Result<Student> {
    let found = read_trained(option, spec)?;
    let recipe = trained::pretraining(&found.recipe, option, spec)?;
    Ok(Student::of(recipe, found))
}
