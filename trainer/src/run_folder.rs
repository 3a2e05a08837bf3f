//! The run folder: one recipe, one data set, one process at a time.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use schemas::atomic;

use crate::checkpoint;
use crate::config::{Recipe, ScheduleKind};

#[cfg(test)]
mod tests;

/// The resolved recipe in a run folder.
pub const RECIPE: &str = "recipe.toml";

/// Held open while a process trains in the folder; the system releases it however the process ends.
const LOCK: &str = ".lock";

/// What a run folder is kept to.
pub trait Experiment: Sized {
    /// Reads a resolved recipe.
    fn read(path: &Path) -> anyhow::Result<Self>;
    /// The first setting in which two differ and that may not change: its dotted name and both values.
    fn first_difference(&self, other: &Self) -> Option<(String, String, String)>;
    /// All settings.
    fn to_toml(&self) -> String;
}

impl Experiment for Recipe {
    fn read(path: &Path) -> anyhow::Result<Recipe> {
        Ok(Recipe::load(path, &[])?)
    }

    fn first_difference(&self, other: &Recipe) -> Option<(String, String, String)> {
        Recipe::first_difference(self, other)
    }

    fn to_toml(&self) -> String {
        Recipe::to_toml(self)
    }
}

/// An open run folder.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// Locked for as long as it lives.
    lock: File,
}

impl Drop for RunFolder {
    /// Closing would do only when nobody else has the file open through this handle, as a program does that another thread of this process is
    /// about to start: until it runs, it has all files of its parent.
    fn drop(&mut self) {
        // Where there are no locks, there is nothing to undo.
        let _ = self.lock.unlock();
    }
}

impl RunFolder {
    /// Creates the folder and saves the recipe, or opens one that was created with the same recipe.
    ///
    /// Refuses a folder with checkpoints of another recipe, naming the first setting that differs; one that is in use; and one
    /// that holds other things.
    pub fn open<R: Experiment>(path: &Path, recipe: &R) -> anyhow::Result<RunFolder> {
        let saved = path.join(RECIPE);
        if !saved.exists() && path.exists() {
            let mut entries =
                fs::read_dir(path).with_context(|| format!("{path:?}: cannot be read"))?;
            // A lock or a temporary file alone is what a kill between the next few lines leaves.
            let foreign = entries.find(|e| {
                e.as_ref()
                    .is_ok_and(|e| !e.file_name().to_string_lossy().starts_with('.'))
            });
            if let Some(Ok(entry)) = foreign {
                bail!(
                    "{path:?}: is no run folder (it has no {RECIPE}, but {:?}); give a new folder with --out",
                    entry.file_name()
                );
            }
        }
        fs::create_dir_all(path).with_context(|| format!("{path:?}: cannot be created"))?;
        let lock = lock(path)?;
        // Until there is a checkpoint nothing depends on the recipe: a first attempt that failed may be corrected.
        if saved.exists() && checkpoint::newest(path)?.is_some() {
            let before: R = load(path)?;
            if let Some((field, old, new)) = before.first_difference(recipe) {
                bail!(
                    "{saved:?}: this run was started with {field} = {old}, now it is {new}. Use the same recipe to continue, or \
                     another --out"
                );
            }
        }
        atomic::remove_stale(&saved)?;
        // Also over an old one, for the settings that may change.
        atomic::write(&saved, recipe.to_toml().as_bytes())?;
        Ok(RunFolder {
            path: path.into(),
            lock,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The recipe of a run folder.
pub fn load_recipe(run: &Path) -> anyhow::Result<Recipe> {
    load(run)
}

fn load<R: Experiment>(run: &Path) -> anyhow::Result<R> {
    R::read(&run.join(RECIPE)).with_context(|| format!("{run:?}: its recipe cannot be used"))
}

/// Refuses to continue on other data than the run was started on, naming the first fact that differs.
pub fn refuse_other_data(
    run: &Path,
    before: &BTreeMap<String, String>,
    now: &BTreeMap<String, String>,
) -> anyhow::Result<()> {
    let mut names: Vec<&String> = before.keys().chain(now.keys()).collect();
    names.sort();
    let value = |facts: &BTreeMap<String, String>, name: &String| {
        facts.get(name).cloned().unwrap_or_else(|| "absent".into())
    };
    for name in names {
        let (old, new) = (value(before, name), value(now, name));
        if old != new {
            bail!(
                "{run:?}: this run was started with {name} = {old}, now it is {new}. Give the same data and weights to \
                 continue, or another --out"
            );
        }
    }
    Ok(())
}

/// Refuses another length of a `wsd` run whose decay has begun, or would have: at `epoch`, where the run stands, both `before` and `now`
/// must still be on the plateau. Their steps up to there are the same.
pub fn refuse_other_length(
    run: &Path,
    before: &Recipe,
    now: &Recipe,
    epoch: f64,
) -> anyhow::Result<()> {
    let (old, new) = (before.schedule.epochs, now.schedule.epochs);
    if now.schedule.kind != ScheduleKind::Wsd || old == new {
        return Ok(());
    }
    for (recipe, length) in [(before, old), (now, new)] {
        let begins = recipe.schedule().descends_from();
        if epoch > begins {
            bail!(
                "{run:?}: schedule.epochs was {old}, now it is {new}, and the run stands at epoch {epoch:.2}: with {length} the decay \
                 begins at epoch {begins}, and a decay cannot be taken back. Go on with {old}, or start from a checkpoint of the plateau \
                 (run.keep_every keeps them) in a folder of its own"
            );
        }
    }
    Ok(())
}

/// Whether a process trains in the folder now, as far as its lock tells.
pub fn in_use(path: &Path) -> bool {
    let file = File::open(path.join(LOCK));
    file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

fn lock(path: &Path) -> anyhow::Result<File> {
    let lock_path = path.join(LOCK);
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&lock_path);
    let file = file.with_context(|| format!("{lock_path:?}: cannot be opened"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            bail!("{path:?}: another process is training in this folder")
        }
        // Some network file systems have no locks; training there is allowed, unprotected.
        Err(TryLockError::Error(_)) => Ok(file),
    }
}
