//! The weights of the best evaluation of a run so far.

use std::io::Write;

use models::params::Tensors;
use models::weights;
use schemas::atomic::AtomicFile;

use super::checkpoint;
use super::run_folder::RunFolder;
use crate::recipe::Experiment;

/// The weights of the best evaluation in a run folder.
pub(crate) const BEST: &str = "best/model.safetensors";

/// Publishes the weights as the best so far.
pub(crate) fn save_best(run: &RunFolder, tensors: &Tensors, recipe: &impl Experiment) -> anyhow::Result<()> {
    let mut file = AtomicFile::create(&run.path().join(BEST))?;
    let recipe = recipe.to_toml();
    weights::write(&mut file, tensors, Some((checkpoint::RECIPE_KEY, recipe.as_str())))?;
    file.flush()?;
    Ok(file.publish()?)
}
