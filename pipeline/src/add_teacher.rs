//! One more teacher for a cache that is there: the same views of the same images, and no byte of what is there changed.

use std::io::Write;
use std::path::Path;

use anyhow::ensure;
use program::{ExitStatus, LogFormat};
use schemas::{Cache, Pack};

use crate::Environment;
use crate::build_cache::{self, Existing, growth};
use crate::cli::AddTeacherArgs;
use crate::recipe::Recipe;

/// `pipeline add-teacher`.
pub fn add_teacher(
    args: &AddTeacherArgs,
    env: &Environment,
    format: LogFormat,
    out: &mut dyn Write,
) -> anyhow::Result<ExitStatus> {
    let cache = Cache::open(&args.cache)?;
    let identity = cache.identity().clone();
    let recipe = Recipe::of_added_teacher(args, &identity)?;
    let device = build_cache::open_device(&recipe)?;

    for part in 0..identity.parts() {
        if cache.part_state(part)?.samples.is_none() {
            return Err(growth::no_samples(&cache, part));
        }
    }
    let source = match &recipe.data.images {
        Some(images) => Some(growth::same_images(&cache, images)?),
        None => {
            ensure!(
                identity.pack != Pack::None,
                "{} holds no images: give those it was built from with --images",
                args.cache.display()
            );
            None
        }
    };
    let existing = Existing::of_cache(&cache);
    let build = build_cache::prepare(recipe, false, device, source, identity, existing, env)?;
    build_cache::run(&build, format, out).map_err(|error| {
        match error.downcast_ref() {
            // The field that differs follows; the way out is another than for a whole cache.
            Some(schemas::Error::IdentityChanged { path, .. }) if is_teacher(path) => error.context(
                "a teacher of this name is in the cache already, with other weights or settings: choose another name, or give the same \
                 to go on with it",
            ),
            _ => error,
        }
    })
}

fn is_teacher(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == "teacher.json")
}
