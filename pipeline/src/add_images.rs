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
        growth::arrange(&cache, build_cache::open_source(&whole)?, &args.images, growth::Purpose::Append)?;
    let before = identity.samples() - added;
    tracing::info!(
        "{}: {}, of them new to the cache: {added}; it has {before}",
        args.images,
        count(source.len() as u64 - gone.as_ref().map_or(0, |(gone, _)| *gone), "image"),
    );
    if let Some((gone, first)) = gone {
        tracing::warn!(
            "{} lacks {} of the cache ({first:?} is the first); their rows stay, and training needs a source that has them, or a cache that carries its \
             images",
            args.images,
            count(gone, "image")
        );
    }
    if changed {
        tracing::warn!(
            "names, sizes or labels of images that the cache has are no longer those that it was built from; their rows stay as they are, and training finds \
             out which of the images have changed"
        );
    }

    // ---- One build for all teachers that run alike ---------------------------------------------------------------------------
    // All of them are found before the first is run: what is wrong with the last should not show after hours.
    for (id, teacher) in &whole.teachers {
        build_cache::resolve_recorded(&args.cache, id, &teacher.path, "--teacher", &env.hub)?;
    }
    let existing = || Existing::of_cache(&cache);
    let mut source = Some(source);
    for teachers in build_cache::run_alike(teachers) {
        let recipe = Recipe::of_added_images(args, cache.identity(), &teachers)?;
        let device = build_cache::open_device(&recipe)?;
        let mut build =
            build_cache::prepare(recipe, args.dry_run, device, source.take(), identity.clone(), existing(), env)?;
        if let (Some(source), false, true) = (&build.source, args.dry_run, added > 0) {
            // A refused command leaves nothing.
            build.refuse_changes()?;
            growth::note_begun(&args.cache, &identity, source)?;
        }
        let status = match args.dry_run {
            true => build_cache::forecast(&build, format, out)?,
            false => build_cache::run(&build, format, out)?,
        };
        if status != ExitStatus::Fine {
            return Ok(status);
        }
        source = build.source.take();
    }
    let last = identity.generations.len();
    let finished = Cache::open(&args.cache)?;
    let is_finished = |part| finished.part_state(part).is_ok_and(|state| state.samples.is_some());
    if !args.dry_run && last > 0 && identity.generation_parts(last).all(is_finished) {
        growth::forget_begun(&args.cache, &identity)?;
    }
    Ok(ExitStatus::Fine)
}

/// A teacher that was said to be elsewhere and is not in the cache.
fn unknown_teacher(args: &AddImagesArgs, cache: &Cache) -> Option<String> {
    let ids = args.teachers.iter().filter_map(|teacher| teacher.split_once('=')).map(|(id, _)| id);
    let mut unknown = ids.filter(|id| !cache.teachers().keys().any(|known| known.as_str() == *id));
    unknown.next().map(str::to_owned)
}
