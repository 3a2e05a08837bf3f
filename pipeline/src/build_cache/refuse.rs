//! What a build refuses before it writes: a folder that is not a cache, a cache of other settings, files that are gone, a source whose
//! images have changed places.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{anyhow, bail, ensure};
use images::source::lies_in;
use program::words::count;
use schemas::{Cache, TeacherId, layout};
use storage::is_url;

use super::build::Build;
use super::parallel::Ended;
use super::recheck::{self, Checked};
use super::worklist::PartWork;
use crate::recipe::Recipe;

/// Refuses a folder that holds something else: a typing error in `--out` must not sow files among a user's own.
pub(super) fn foreign_folder(out: &Path) -> anyhow::Result<()> {
    if storage::exists(&layout::cache_json(out))? {
        return Ok(());
    }
    ensure!(
        !schemas::holds_parts(out)?,
        "{} holds parts of a cache and no cache.json: the command that built it writes it again with --repair",
        out.display()
    );
    // Whether the folder is missing or unreadable shows when the first file is created in it.
    for name in storage::list(out).into_iter().flatten().map(|entry| entry.name) {
        // What a killed build left before it wrote its identity is hidden; in a bucket it is what workers know of each other.
        ensure!(
            name.starts_with('.') || (is_url(out) && layout::work_dir(out).ends_with(&name)),
            "{} holds {name:?} and is not a cache; give a new or empty folder as --out",
            out.display()
        );
    }
    Ok(())
}

/// Refuses a new cache in the folder of its images: its files would be taken for more of them, and a second command for another data set.
pub(super) fn out_among_images(recipe: &Recipe) -> anyhow::Result<()> {
    let images = recipe.data.images.as_deref().unwrap_or_default();
    ensure!(
        storage::exists(&layout::cache_json(&recipe.cache.out))? || !lies_in(&recipe.cache.out, images),
        "--out {}: lies in the folder of --images {images}, so that the cache would be taken for a part of the images; give a folder beside it",
        recipe.cache.out.display()
    );
    Ok(())
}

/// Refuses to take over features from the cache that is being built.
pub(super) fn reuse_of_itself(recipe: &Recipe) -> anyhow::Result<()> {
    let folder = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let reuse = recipe.cache.reuse.as_deref().map(folder);
    ensure!(
        reuse.is_none_or(|reuse| reuse != folder(&recipe.cache.out)),
        "--reuse {} is --out itself, which keeps its features anyway; give another cache, or leave it out",
        recipe.cache.out.display()
    );
    Ok(())
}

/// Refuses to call a cache complete, or to go on with it, whose commit records declare files that are gone or cut.
pub(crate) fn lost_files(cache: &Cache) -> anyhow::Result<()> {
    /// Named one by one; a folder that is gone as a whole need not fill the screen.
    const NAMED: usize = 5;
    let mut lost = cache.lost_files()?;
    let Some(last) = lost.pop() else {
        return Ok(());
    };
    if lost.is_empty() {
        return Err(last.into());
    }
    lost.push(last);
    let named: String = lost.iter().take(NAMED).map(|e| format!("\n  {e}")).collect();
    let more = match lost.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!("\n  and {more} more (`pipeline verify {}` names them all)", cache.dir().display()),
    };
    let problem = format!(
        "{}: {} of its files are not what their commit records declare:{named}{more}",
        cache.dir().display(),
        lost.len()
    );
    Err(LostFiles(problem).into())
}

/// Several files of a cache are gone or cut. A problem of the data.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct LostFiles(String);

/// Names the settings that differ as a recipe does, in front of the error, which has the fields of the identity of the cache or a teacher.
fn with_keys(changed: schemas::Error, teacher: Option<&TeacherId>) -> anyhow::Error {
    let schemas::Error::IdentityChanged { differences, .. } = &changed else {
        return changed.into();
    };
    let mut keys: Vec<String> = differences.iter().filter_map(|d| key(&d.field, teacher)).collect();
    keys.dedup();
    match keys.is_empty() {
        true => changed.into(),
        false => anyhow!(changed).context(format!("other settings than the cache's ({})", keys.join(", "))),
    }
}

/// Says how features of a data set that has changed are kept, where that is all that differs.
fn of_other_images(error: anyhow::Error, folder: &Path) -> anyhow::Error {
    let is_of_images = |field: &str| field == "plan.samples" || field == "label_names" || field.starts_with("dataset.");
    match error.downcast_ref() {
        Some(schemas::Error::IdentityChanged { differences, .. }) if differences.iter().all(|d| is_of_images(&d.field)) => {
            error.context(format!(
                "the images are no longer those that {0} was begun with; if that is meant, build into another folder with --reuse {0}, which takes over the features of \
                 those that are the same",
                folder.display()
            ))
        }
        _ => error,
    }
}

/// The setting that decides a field of an identity; `None` where images, weights or the program do.
fn key(field: &str, teacher: Option<&TeacherId>) -> Option<String> {
    let field = field.split('[').next().unwrap_or_default();
    let Some(id) = teacher else {
        return match field {
            "depth_window" => Some("data.depth_window".to_owned()),
            "dedup" => Some("data.dedup".to_owned()),
            "plan.part_samples" => Some("cache.part_samples".to_owned()),
            "views.filter" => None,
            _ if field.split('.').next() == Some("pack") => Some("cache.pack".to_owned()),
            _ => field.strip_prefix("views.").map(|name| format!("view.{name}")),
        };
    };
    match field.split('.').next().unwrap_or_default() {
        name @ ("grid" | "codec" | "precision" | "batch_size") => Some(format!("features.{name}")),
        "device" => Some("run.device".to_owned()),
        "norm_eps" => Some(format!("teachers.{id}.eps")),
        name @ ("layer" | "activation" | "mean" | "std") => Some(format!("teachers.{id}.{name}")),
        _ => None,
    }
}

impl Build {
    /// The parts that lack something, of the cache that is there or of an empty one. Refuses what a build refuses, and writes nothing.
    pub(super) fn missing(&self) -> anyhow::Result<Vec<PartWork>> {
        if !self.refuse_changes()? {
            return Ok(self.whole_worklist());
        }
        let cache = Cache::open(&self.recipe.cache.out)?;
        lost_files(&cache)?;
        Ok(self.worklist(&cache)?)
    }

    /// Compares with the cache that is there, if there is one, and says whether there is. All that differs is said at once.
    pub(crate) fn refuse_changes(&self) -> anyhow::Result<bool> {
        let folder = &self.recipe.cache.out;
        let mut refused: Vec<_> = self.other_codecs.iter().map(|p| anyhow!("{p}")).collect();
        schemas::check_generation(folder, &self.identity)?;
        let exists = match schemas::check_cache(folder, &self.identity) {
            Ok(exists) => exists,
            // Without a part it binds nothing and will be replaced.
            Err(schemas::Error::IdentityChanged { .. }) if !schemas::has_parts(folder)? => false,
            Err(changed @ schemas::Error::IdentityChanged { .. }) => {
                refused.push(of_other_images(with_keys(changed, None), folder));
                true
            }
            Err(error) => return Err(error.into()),
        };
        // Those of a new cache too: a value that no cache can have is refused before anything is written.
        for teacher in &self.teachers {
            match schemas::check_teacher(folder, &teacher.identity) {
                Err(changed @ schemas::Error::IdentityChanged { .. }) => {
                    refused.push(with_keys(changed, Some(&teacher.identity.id)));
                }
                checked => drop(checked?),
            }
        }
        // All teachers of a cache share one grid: they are mimicked by the same tokens of one student.
        if let Some((id, cached)) = &self.existing.grid
            && let Some(teacher) = self.teachers.iter().map(|t| &t.identity).find(|t| t.grid != *cached)
            && self.teachers.iter().all(|t| t.identity.id != *id)
        {
            refused.push(anyhow!(
                "grid {} was asked for, but teacher {id} of this cache has grid {cached}, and all teachers of a cache share one: leave \
                 out --grid, or build into another folder",
                teacher.grid
            ));
        }
        match (refused.pop(), refused.is_empty()) {
            (None, _) => Ok(exists),
            (Some(only), true) => Err(only),
            (Some(last), false) => {
                refused.push(last);
                let lines = refused.iter().map(|error| format!("\n  {error:#}"));
                bail!("not what was built before:{}", lines.collect::<String>())
            }
        }
    }

    /// Refuses to read more samples from a source whose images were swapped since the finished parts were built from it.
    ///
    /// A part whose samples are committed and that only lacks features needs no such look: each of its images is compared when it is
    /// read, and nothing is added that another place could have had.
    pub(super) fn recheck_source(&self, cache: &Cache, work: &[PartWork]) -> anyhow::Result<Ended> {
        let lacking: BTreeSet<u32> = work.iter().filter(|work| work.missing.samples).map(|work| work.part).collect();
        // What is lacking is of one generation. The images of others are found by their keys, and can take nobody's place.
        let generations: BTreeSet<usize> = lacking.iter().map(|&part| self.identity.generation_of(part)).collect();
        let finished: Vec<u32> = (0..self.identity.parts())
            .filter(|part| !lacking.contains(part) && generations.contains(&self.identity.generation_of(*part)))
            .collect();
        let Some(source) = self.source.as_ref().filter(|_| !lacking.is_empty()) else {
            return Ok(Ended::Finished);
        };
        if finished.is_empty() {
            return Ok(Ended::Finished);
        }
        let images = finished.iter().map(|&part| self.samples_in(part)).sum();
        tracing::info!(
            "reading the {} of {} again, to see that they are the same",
            count(images, "image"),
            count(finished.len() as u64, "finished part")
        );
        let checked = recheck::check(cache, source, &finished, self.recipe.run.threads, images)?;
        match checked {
            Checked::Same(_) => Ok(Ended::Finished),
            Checked::Interrupted => Ok(Ended::Interrupted),
            Checked::Moved(moved) => bail!(
                "{}: {moved}. To go on would store some images twice and others not at all. Put the source back as it was, or build \
                 into another folder",
                self.recipe.data.images.as_deref().unwrap_or("the source")
            ),
        }
    }
}
