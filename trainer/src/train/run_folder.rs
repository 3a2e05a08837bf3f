//! The run folder: one recipe, one data set, one process at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail, ensure};
use images::source::lies_in;
use schemas::atomic;

use crate::recipe::Experiment;
use crate::recipe::any::AnyRecipe;
use crate::recipe::schedule::Schedule;
use crate::train::checkpoint;

#[cfg(test)]
mod tests;

/// The resolved recipe in a run folder.
pub(crate) const RECIPE: &str = "recipe.toml";

/// Held open while a process trains in the folder; the system releases it however the process ends.
const LOCK: &str = ".lock";

/// An open run folder.
#[derive(Debug)]
pub(crate) struct RunFolder {
    path: PathBuf,
    /// Locked for as long as it lives.
    lock: File,
}

impl Drop for RunFolder {
    /// Unlocks explicitly: closing the file would not release the lock while a child process that another thread is starting still holds the
    /// file, as a child holds all files of its parent until it executes its program.
    fn drop(&mut self) {
        // A file system without locks refuses this, which does no harm.
        let _ = self.lock.unlock();
    }
}

impl RunFolder {
    /// Creates the folder and saves the recipe, or opens one that was created with the same recipe.
    ///
    /// Refuses a folder with checkpoints of another recipe, naming the settings that differ; one that is in use; and one
    /// that holds other things.
    pub(crate) fn open<R: Experiment>(path: &Path, recipe: &R) -> anyhow::Result<RunFolder> {
        let saved = path.join(RECIPE);
        if !saved.exists() && path.exists() {
            let mut entries = fs::read_dir(path).with_context(|| format!("{path:?}: cannot be read"))?;
            // A run that is killed within the next few lines leaves only a lock or a temporary file.
            let foreign = entries.find(|e| e.as_ref().is_ok_and(|e| !e.file_name().to_string_lossy().starts_with('.')));
            if let Some(Ok(entry)) = foreign {
                bail!(
                    "{path:?}: is not a run folder (it holds {:?} and no {RECIPE}); give a new folder with --out",
                    entry.file_name()
                );
            }
        }
        fs::create_dir_all(path).with_context(|| format!("{path:?}: cannot be created"))?;
        let lock = lock(path)?;
        // Until there is a checkpoint nothing depends on the recipe: a first attempt that failed may be corrected.
        if saved.exists() && checkpoint::newest(path)?.is_some() {
            let before: R = load(path)?;
            let differences = before.differences(recipe);
            ensure!(
                differences.is_empty(),
                "{saved:?}: this run was started with {}. Use the same recipe to continue, or another --out",
                describe(&differences)
            );
        }
        // What a killed attempt left, in the folder of the checkpoints too: one of them is as large as the network.
        for folder in [path.to_path_buf(), path.join(checkpoint::FOLDER)] {
            atomic::remove_all_stale(&folder)?;
        }
        // An old recipe is replaced, too: some settings may have changed.
        atomic::write(&saved, recipe.to_toml().as_bytes())?;
        Ok(RunFolder { path: path.into(), lock })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// `a = 1, now it is 2; b = 3, now it is 4`.
fn describe(differences: &[(String, String, String)]) -> String {
    let phrases: Vec<_> =
        differences.iter().map(|(name, old, new)| format!("{name} = {old}, now it is {new}")).collect();
    phrases.join("; ")
}

fn load<R: Experiment>(run: &Path) -> anyhow::Result<R> {
    let path = run.join(RECIPE);
    R::load(&path, &[]).map_err(|error| match AnyRecipe::load(&path, &[]) {
        // AnyRecipe can read it, so it is of the other kind.
        Ok(other) => anyhow!("{run:?}: holds a run of `trainer {}`; give another --out", other.command()),
        Err(_) => anyhow::Error::from(error).context(format!("{run:?}: its recipe cannot be used")),
    })
}

/// Refuses to continue a run on data that differ from those it was started on, and names the facts that differ.
pub(crate) fn refuse_other_data(
    run: &Path,
    before: &BTreeMap<String, String>,
    now: &BTreeMap<String, String>,
) -> anyhow::Result<()> {
    let names: BTreeSet<&String> = before.keys().chain(now.keys()).collect();
    let value =
        |facts: &BTreeMap<String, String>, name: &String| facts.get(name).cloned().unwrap_or_else(|| "absent".into());
    let differences: Vec<_> = names
        .into_iter()
        .map(|name| (name.clone(), value(before, name), value(now, name)))
        .filter(|(_, old, new)| old != new)
        .map(|(name, old, new)| (name, plain(&old), plain(&new)))
        .collect();
    ensure!(
        differences.is_empty(),
        "{run:?}: this run was started with {}. Give the same data and weights to continue, or another --out",
        describe(&differences)
    );
    Ok(())
}

/// Refuses a new run in a folder of images, since its pictures would be taken for images of the data set.
pub(crate) fn refuse_among_images(run: &Path, images: &[(&str, &str)]) -> anyhow::Result<()> {
    for (option, spec) in images {
        ensure!(
            run.join(RECIPE).exists() || !lies_in(run, spec),
            "--out {run:?}: lies in the folder of {option} {spec}, so that the run's pictures would be taken for a part of the images; give a \
             folder beside it"
        );
    }
    Ok(())
}

/// A fact in readable form. Facts about views and packing are recorded in Rust's `Debug` format, by which older runs are compared too.
fn plain(fact: &str) -> String {
    let words = [
        ("ViewIdentity {", "("),
        ("Rrc {", "rrc ("),
        ("Jpeg {", "jpeg ("),
        ("{", "("),
        (" }", ")"),
        ("( ", "("),
        ("Center", "center"),
        ("Full", "full"),
        ("Original", "original"),
        ("None", "none"),
    ];
    let is_debug = |fact: &str| {
        let kinds = ["ViewIdentity {", "Jpeg {"];
        kinds.iter().any(|kind| fact.starts_with(kind)) || matches!(fact, "None" | "Original")
    };
    match is_debug(fact) {
        true => (words.iter()).fold(fact.to_owned(), |text, (from, to)| text.replace(from, to)),
        false => fact.to_owned(),
    }
}

/// Refuses another length for a run whose rate has begun to descend, or would have begun to with the new length: at `epoch`, where the run
/// is now, both schedules must still be on the plateau of `wsd`. Up to there they take the same steps.
pub(crate) fn refuse_other_length(run: &Path, before: &Schedule, now: &Schedule, epoch: f64) -> anyhow::Result<()> {
    let (old, new) = (before.epochs, now.epochs);
    if old == new {
        return Ok(());
    }
    for schedule in [before, now] {
        let (length, begins) = (schedule.epochs, schedule.descends_from());
        if epoch > begins {
            bail!(
                "{run:?}: schedule.epochs was {old}, now it is {new}, and the run is at epoch {epoch:.2}: with {length} the decay \
                 begins at epoch {begins}, and a decay cannot be taken back. Continue with {old}, or start from a checkpoint of the \
                 plateau (run.keep_every keeps them) in another run folder"
            );
        }
    }
    Ok(())
}

/// Whether a process trains in the folder now, as far as its lock tells.
pub(crate) fn in_use(path: &Path) -> bool {
    let file = File::open(path.join(LOCK));
    file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

fn lock(path: &Path) -> anyhow::Result<File> {
    let lock_path = path.join(LOCK);
    let file = OpenOptions::new().create(true).append(true).open(&lock_path);
    let file = file.with_context(|| format!("{lock_path:?}: cannot be opened"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            bail!("{path:?}: another process is training in this folder")
        }
        // Some network file systems have no locks; training there is allowed without one.
        Err(TryLockError::Error(_)) => Ok(file),
    }
}
