//! `trainer export`: a student as a folder that timm, transformers or the reference code loads.
//!
//! ```text
//! DIR/model.safetensors          the tensors under the package's names
//!     config.json                what the package builds them into
//!     preprocessor_config.json   how an image becomes its input, where the package has such a file
//!     README.md                  what it is, where it is from, how to load it
//! ```
//!
//! The folder appears when all of it is written.

use std::fs;
use std::io::{BufWriter, ErrorKind, IntoInnerError, Write};
use std::path::Path;

use anyhow::{Context, bail};
use models::exchange::{self, Exported, Facts, Tensors};
use models::weights::{self, Weights};
use schemas::atomic::{self, AtomicDir, AtomicFile};
use sha2::{Digest, Sha256};
use tracing::warn;

use crate::checkpoint;
use crate::cli::ExportArgs;
use crate::config::Recipe;
use crate::run_folder;

mod card;
#[cfg(test)]
mod tests;

/// The name of the configuration in an exported folder.
pub const CONFIG: &str = "config.json";
/// The name of transformers' preprocessing.
pub const PREPROCESSOR: &str = "preprocessor_config.json";
/// The name of the model card.
pub const CARD: &str = "README.md";

/// transformers refuses files whose header does not name the framework that the tensors are laid out for.
const HEADER: (&str, &str) = ("format", "pt");

/// A student with what is known about where it is from.
pub(crate) struct Student {
    pub(crate) recipe: Recipe,
    pub(crate) tensors: Tensors,
    /// Updates done, where a run says so.
    pub(crate) step: Option<u64>,
    /// SHA-256 of the checkpoint's file.
    pub(crate) sha256: String,
    /// For messages.
    pub(crate) origin: String,
}

impl Student {
    /// SHA-256 of the resolved recipe as TOML.
    pub(crate) fn recipe_digest(&self) -> String {
        let digest = Sha256::digest(self.recipe.to_toml());
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// `trainer export`.
pub fn run_export(args: &ExportArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    refuse_foreign_folder(&args.out)?;
    let student = read(&args.run, args.ema)?;
    let facts = Facts::of(&student.recipe.mae_config(), student.recipe.mask.ratio);
    let exported = exchange::export(&student.tensors, &facts, args.format, args.decoder())
        .with_context(|| student.origin.clone())?;
    write(&args.out, &exported, &card::card(args, &student, &exported))?;
    let numbers: usize = exported.tensors.values().map(tch::Tensor::numel).sum();
    writeln!(
        out,
        "{}: {} of {}, {}, {} tensors, {numbers} numbers",
        args.out.display(),
        args.format,
        student.origin,
        card::parts(exported.decoder),
        exported.tensors.len(),
    )?;
    Ok(())
}

/// The student of a run folder's newest whole checkpoint, or of a checkpoint's model file.
/// `ema` asks for the run's moving average instead.
pub(crate) fn read(path: &Path, ema: bool) -> anyhow::Result<Student> {
    if path.join(run_folder::RECIPE).is_file() {
        let recipe = run_folder::load_recipe(path)?;
        let checkpoint = checkpoint::load_last(path, &mut |notice| warn!("{notice}"))?;
        let checkpoint = checkpoint.with_context(|| {
            format!("{path:?}: this run has no checkpoint yet; train it first, for a step at least")
        })?;
        let step = checkpoint.state.step;
        let (file, tensors, what) = match ema {
            false => (checkpoint::MODEL, checkpoint.model, ""),
            true => {
                let average = checkpoint.ema.with_context(|| {
                    format!("{path:?}: this run keeps no moving average; its recipe has no optim.ema_decay")
                })?;
                (checkpoint::EMA, average, "the average of ")
            }
        };
        return Ok(Student {
            recipe,
            step: Some(step),
            sha256: checkpoint
                .state
                .sha256
                .get(file)
                .cloned()
                .unwrap_or_default(),
            tensors,
            origin: format!("{what}{} after step {step}", path.display()),
        });
    }
    if ema {
        bail!(
            "--ema: {path:?} is no run folder; give the file {} of a checkpoint without it",
            checkpoint::EMA
        );
    }
    if !path.is_file() {
        bail!(
            "--run {path:?}: is neither a run folder (with {}) nor a checkpoint's {}",
            run_folder::RECIPE,
            checkpoint::MODEL
        );
    }
    let weights = Weights::read(path)?;
    let origin = path.display().to_string();
    let Some(recipe) = weights.metadata().get(checkpoint::RECIPE_KEY) else {
        bail!(
            "--run {path:?}: its header has no recipe, so it is no student's {}; give a run folder, or the file of one of its checkpoints",
            checkpoint::MODEL
        );
    };
    Ok(Student {
        recipe: Recipe::parse(recipe, &origin, &[])?,
        step: None,
        sha256: weights.sha256().to_owned(),
        tensors: weights
            .tensors()
            .iter()
            .map(|(name, tensor)| (name.clone(), tensor.shallow_clone()))
            .collect(),
        origin,
    })
}

/// Refuses a folder with anything in it: it would be another model's, or this one's with the user's changes.
fn refuse_foreign_folder(folder: &Path) -> anyhow::Result<()> {
    match fs::read_dir(folder) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e).with_context(|| format!("--out {folder:?}: cannot be read")),
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => bail!("--out {folder:?}: is not empty; give a new folder"),
        },
    }
}

fn write(folder: &Path, exported: &Exported, card: &str) -> anyhow::Result<()> {
    atomic::remove_stale(folder)?;
    // An empty folder makes way for the finished one; one that has been filled meanwhile stays and is reported.
    if folder.is_dir() {
        fs::remove_dir(folder).with_context(|| format!("--out {folder:?}: is in the way"))?;
    }
    let unfinished = AtomicDir::create(folder)?;
    let path = unfinished.path().join(checkpoint::MODEL);
    let mut file = BufWriter::new(AtomicFile::create(&path)?);
    let cannot = || format!("{:?}: cannot be written", folder.join(checkpoint::MODEL));
    weights::write(&mut file, &exported.tensors, Some(HEADER)).with_context(cannot)?;
    let file = file.into_inner().map_err(IntoInnerError::into_error);
    file.with_context(cannot)?.publish()?;
    let mut json = vec![(CONFIG, &exported.config)];
    json.extend(
        exported
            .preprocessor
            .iter()
            .map(|value| (PREPROCESSOR, value)),
    );
    for (name, value) in json {
        let text = serde_json::to_string_pretty(value)? + "\n";
        atomic::write(&unfinished.path().join(name), text.as_bytes())?;
    }
    atomic::write(&unfinished.path().join(CARD), card.as_bytes())?;
    Ok(unfinished.publish()?)
}
