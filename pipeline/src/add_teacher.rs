//! One more teacher for a cache that is there: the same views of the same images, and no byte of what is there changed.

use std::io::Write;
use std::path::Path;

use anyhow::{bail, ensure};
use images::ImageSource;
use program::{ExitStatus, LogFormat};
use schemas::{Cache, Pack};

use crate::Environment;
use crate::build_cache::{self, Existing, Grown, growth};
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
        ensure!(
            cache.part_state(part)?.samples.is_some(),
            "{}: part {part} has no samples yet; finish it first: run the pipeline build-cache that began it again",
            args.cache.display()
        );
    }
    let source = match &recipe.data.images {
        Some(images) => Some(same_images(&cache, images)?),
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

/// Opens the data set that the cache was built from. Content is compared image by image, when it is read.
pub(crate) fn same_images(cache: &Cache, images: &str) -> anyhow::Result<ImageSource> {
    let (source, differs) = open_images(cache, images)?;
    differs.map_or(Ok(source), |differs| bail!(differs))
}

/// Opens images in the order of the cache's samples, and says why they are not the data set that the cache was built from, if they are not.
pub(crate) fn open_images(cache: &Cache, images: &str) -> anyhow::Result<(ImageSource, Option<String>)> {
    let source = ImageSource::open(images)?;
    let identity = cache.identity();
    let found = source.len() as u64;
    let differ = |how: &str| {
        format!(
            "{images} is not the data set that {} was built from: {found} images here, {} there{how}. Give the same folder, tar or Parquet files \
             with the same names",
            cache.dir().display(),
            identity.samples(),
        )
    };
    if !identity.generations.is_empty() {
        let Grown { source, gone, changed, .. } = growth::arrange(cache, source, images)?;
        let differs = match gone {
            Some((gone, _)) => Some(differ(&format!(", {gone} of which are gone"))),
            None => changed.then(|| differ(", with other sizes or labels")),
        };
        let source = source.limit(identity.samples());
        return Ok((source, differs));
    }
    // A cache of the first samples of a source was built with --limit.
    let source = if found > identity.samples() { source.limit(identity.samples()) } else { source };
    let differs = (source.identity().digest != identity.dataset.digest)
        .then(|| differ(if found == identity.samples() { ", with other names, sizes or labels" } else { "" }));
    Ok((source, differs))
}
