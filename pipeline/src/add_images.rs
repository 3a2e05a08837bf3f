//! More images for a cache that is there: new parts, and no byte of what is there changed.

use std::io::Write;

use anyhow::ensure;
use program::words::count;
use program::{ExitStatus, LogFormat};
use schemas::{Cache, TeacherIdentity};

use crate::Environment;
use crate::build_cache::{self, Existing, Grown, growth};
use crate::cli::AddImagesArgs;
use crate::recipe::Recipe;

/// `pipeline add-images`.
pub fn add_images(
    args: &AddImagesArgs,
    env: &Environment,
    format: LogFormat,
    out: &mut dyn Write,
) -> anyhow::Result<ExitStatus> {
    // ---- What the cache lacks of the source ----------------------------------------------------------------------------------
    let cache = Cache::open(&args.cache)?;
    let teachers: Vec<&TeacherIdentity> = cache.teachers().values().collect();
    ensure!(
        !teachers.is_empty(),
        "{} has no teachers whose features of new images could be added",
        args.cache.display()
    );
    if let Some(unknown) = unknown_teacher(args, &cache) {
        cache.teacher(&unknown.parse()?)?;
    }
    let whole = Recipe::of_added_images(args, cache.identity(), &teachers)?;
    let Grown { source, identity, added, gone, changed } =
        growth::arrange(&cache, build_cache::open_source(&whole)?, &args.images)?;
    let before = identity.samples() - added;
    tracing::info!(
        "{}: {} of {} are new to the cache, which has {}",
        args.images,
        added,
        count(source.len() as u64 - gone.as_ref().map_or(0, |(gone, _)| *gone), "image"),
        before
    );
    if let Some((gone, first)) = gone {
        tracing::warn!(
            "{} of the cache are not in {} ({first:?} is the first); their rows stay, and training needs a source that has them, or a cache that carries \
             its images",
            count(gone, "image"),
            args.images
        );
    }
    if changed {
        tracing::warn!(
            "names, sizes or labels of images that the cache has are no longer those that it was built from; their rows stay as they are, and training finds \
             out which of the images have changed"
        );
    }

    // ---- One build for all teachers that run alike ---------------------------------------------------------------------------
    let existing = || Existing::of_cache(&cache);
    let mut source = Some(source);
    for teachers in build_cache::run_alike(teachers) {
        let recipe = Recipe::of_added_images(args, cache.identity(), &teachers)?;
        let device = build_cache::open_device(&recipe)?;
        let mut build =
            build_cache::prepare(recipe, args.dry_run, device, source.take(), identity.clone(), existing(), env)?;
        let status = match args.dry_run {
            true => build_cache::forecast(&build, format, out)?,
            false => build_cache::run(&build, format, out)?,
        };
        if status != ExitStatus::Fine {
            return Ok(status);
        }
        source = build.source.take();
    }
    Ok(ExitStatus::Fine)
}

/// A teacher that was said to be elsewhere and is not in the cache.
fn unknown_teacher(args: &AddImagesArgs, cache: &Cache) -> Option<String> {
    let ids = args.teachers.iter().filter_map(|teacher| teacher.split_once('=')).map(|(id, _)| id);
    let mut unknown = ids.filter(|id| !cache.teachers().keys().any(|known| known.as_str() == *id));
    unknown.next().map(str::to_owned)
}
