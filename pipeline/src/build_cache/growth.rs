//! A data set that has grown: the images of a source in the order of a cache that has some of them, and the new ones behind.
//!
//! A sample keeps its number for good, while a new file changes the numbers of all behind it in its source. So the samples of a cache that was
//! appended to are found by their keys, as training finds them, and whatever no sample has is new.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use images::{ImageSource, Placed};
use program::words::count;
use schemas::{Cache, CacheIdentity, Plan, layout};

use super::identity::{self, Existing};
use super::lock::unfinished;
use crate::recipe::Recipe;

/// A source beside a cache.
#[derive(Debug)]
pub(crate) struct Grown {
    /// Its images, numbered as the cache's samples; new ones follow.
    pub source: ImageSource,
    /// The cache's identity. One more generation has the new images, if there are any.
    pub identity: CacheIdentity,
    /// New images.
    pub added: u64,
    /// Images of the cache that the source does not have, with the key of the first.
    pub gone: Option<(u64, String)>,
    /// Whether names, lengths or labels of earlier images have changed.
    pub changed: bool,
}

/// What a source is laid beside a cache for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To append new images: all samples but those of the last generation have to be there.
    Append,
    /// To build parts that are not there.
    Finish,
    /// To build parts that are not there or damaged.
    Repair,
}

/// The source and the identity of `build-cache`. A cache that was appended to is gone on with if the source holds what it held then; a repair needs no new images.
pub(super) fn of_build(
    recipe: &Recipe,
    purpose: Purpose,
    source: ImageSource,
    existing: &Existing,
) -> anyhow::Result<(ImageSource, CacheIdentity)> {
    let out = &recipe.cache.out;
    let asked = identity::cache_identity(recipe, &source, existing);
    // One without a part binds nothing.
    if !storage::exists(&layout::cache_json(out))? || !schemas::has_parts(out)? {
        return Ok((source, asked));
    }
    let cache = Cache::open(out)?;
    let there = cache.identity();
    let images = recipe.data.images.as_deref().unwrap_or_default();
    let advice = format!("pipeline add-images {} --images {images}", out.display());
    let repair = purpose == Purpose::Repair;
    if there.generations.is_empty() && !(repair && asked.samples() > there.samples()) {
        let is_complete = |part| matches!(cache.part_state(part), Ok(state) if state.samples.is_some());
        ensure!(
            asked.samples() <= there.samples() || !(0..there.parts()).all(is_complete),
            "{images} has {} now, and {} was built from {}. To append the new ones: {advice}",
            count(asked.samples(), "image"),
            out.display(),
            there.samples()
        );
        return Ok((source, asked));
    }
    let Grown { source, mut identity, added, gone, .. } = arrange(&cache, source, images, purpose)?;
    let source = match added > 0 && repair {
        true => {
            identity.generations.pop();
            source.limit(identity.samples())
        }
        false => source,
    };
    ensure!(
        added == 0 || repair,
        "{} of {images} are not in {} yet. To append them: {advice}",
        count(added, "image"),
        out.display()
    );
    if let Some((gone, first)) = gone {
        bail!(
            "{images} lacks {} of {} ({first:?} is the first): give the images as they were",
            count(gone, "image"),
            out.display()
        );
    }
    let CacheIdentity { dataset, plan, label_names, generations, .. } = identity;
    // The length of a part is as asked for, so that another than the cache's is refused by name.
    let plan = Plan { samples: plan.samples, ..asked.plan };
    Ok((source, CacheIdentity { dataset, plan, label_names, generations, ..asked }))
}

/// Lays the images of `source` (`images` names it in messages) beside the samples of `cache`.
///
/// The cache's samples have to be complete, apart from those of its last generation, which is finished with the images as they were when it
/// was begun. A last generation without a finished part binds nothing, and its images count as new.
pub(crate) fn arrange(cache: &Cache, source: ImageSource, images: &str, purpose: Purpose) -> anyhow::Result<Grown> {
    let mut identity = cache.identity().clone();
    let Committed { mut places, rejected, has_last } = committed(cache, &source, purpose)?;
    let last = identity.generations.len();
    let of_last = identity.generation_samples(last);
    if last > 0 && !has_last && purpose == Purpose::Append {
        identity.generations.pop();
        places.truncate(of_last.start as usize);
    }
    if identity.generations.len() != last
        && let Some(sample) = places.iter().position(Option::is_none)
    {
        return Err(no_samples(cache, identity.part_of(sample as u64)));
    }

    // ---- what no sample has, in the order of the source
    let mut taken = vec![false; source.len()];
    for index in places.iter().flatten().filter_map(|place| place.index) {
        taken[index] = true;
    }
    let unfinished: Vec<usize> = (0..places.len()).filter(|&sample| places[sample].is_none()).collect();
    // The images that an addition was begun with, whatever has come to the source since.
    let begun = if unfinished.is_empty() { None } else { begun(cache, &identity)? };
    let mut filling = Vec::new();
    if let Some(keys) = &begun {
        let first = identity.generation_samples(identity.generations.len()).start as usize;
        for &sample in unfinished.iter().filter(|&&sample| sample >= first) {
            let index = source.find(&keys[sample - first]);
            filling.push((sample, index.with_context(|| lacks(cache, images, &keys[sample - first]))?));
        }
    }
    filling.iter().for_each(|&(_, index)| taken[index] = true);
    let mut new = (0..source.len()).filter(|&index| !taken[index]).peekable();
    let names = merged_names(&identity, &source, new.peek().is_some(), images)?;
    let label = |index: usize| {
        let label = source.label(index)?;
        let name = usize::try_from(label).ok().and_then(|label| source.label_names().get(label));
        name.map_or(Some(label), |name| names.iter().position(|known| known == name).map(|at| at as i32))
    };
    let place = |index: usize| Placed { key: source.key(index).to_owned(), label: label(index), index: Some(index) };
    for &sample in &rejected {
        if let Some(place) = &mut places[sample] {
            place.label = place.index.and_then(label);
        }
    }
    for (sample, index) in filling {
        places[sample] = Some(place(index));
    }
    for &sample in &unfinished {
        if places[sample].is_none() {
            places[sample] = new.next().map(place);
        }
    }
    // One addition after the other.
    let added: Vec<Placed> = if unfinished.is_empty() { new.by_ref().map(place).collect() } else { Vec::new() };
    let later = new.count();
    if later > 0 {
        tracing::info!("{images}: {later} more are new; append them when this is finished, with pipeline add-images");
    }
    let count_added = added.len() as u64;
    ensure!(places.iter().all(Option::is_some), changed_since(cache, images));
    let placed: Vec<Placed> = places.into_iter().flatten().chain(added).collect();
    let mut gone = placed.iter().filter(|place| place.index.is_none());
    let first_gone = gone.next().map(|place| place.key.clone());
    let gone = first_gone.map(|key| (gone.count() as u64 + 1, key));

    // ---- the new generation
    let samples = identity.samples() as usize;
    let source = source.arranged(placed, names.clone());
    let same = |generation: usize| {
        let range = identity.generation_samples(generation);
        let found = source.identity_of(range.start as usize..range.end as usize);
        found.digest == identity.generation_dataset(generation).digest
    };
    let last = identity.generations.len();
    let is_whole = |generation: usize| {
        let range = identity.generation_samples(generation);
        !unfinished.iter().any(|&sample| range.contains(&(sample as u64)))
    };
    ensure!((0..=last).all(|generation| is_whole(generation) || same(generation)), changed_since(cache, images));
    let changed = gone.is_none() && !(0..=last).all(same);
    if count_added > 0 {
        let next = identity.next_generation(source.identity_of(samples..source.len()), names);
        identity.generations.push(next);
    }
    Ok(Grown { source, identity, added: count_added, gone, changed })
}

/// The error that samples lack which have to be there.
pub(crate) fn no_samples(cache: &Cache, part: u32) -> anyhow::Error {
    let (dir, builder) = (cache.dir(), cache.builder_of(part, None));
    unfinished(
        dir,
        format!("{}: part {part} has no samples yet: run {builder} again to finish it first", dir.display()),
    )
}

fn changed_since(cache: &Cache, images: &str) -> String {
    format!(
        "{images}: the images of unfinished parts of {} have changed since these were begun, and others are finished. Give them as they were to finish \
         these parts, and add others after that",
        cache.dir().display()
    )
}

fn lacks(cache: &Cache, images: &str, key: &str) -> String {
    format!(
        "{images}: does not have {key:?}, with which an addition to {} was begun; put it back to finish the addition",
        cache.dir().display()
    )
}

/// Where the keys of a generation are kept until it is finished.
fn begun_file(cache: &Path, generation: usize) -> PathBuf {
    layout::work_dir(cache).join(format!("generation-{generation:05}.json"))
}

/// Notes with which images the last generation is begun, so that it can be finished with them although more have come.
pub(crate) fn note_begun(cache: &Path, identity: &CacheIdentity, source: &ImageSource) -> anyhow::Result<()> {
    let generation = identity.generations.len();
    let keys: Vec<&str> = identity.generation_samples(generation).map(|sample| source.key(sample as usize)).collect();
    Ok(schemas::atomic::write(&begun_file(cache, generation), &serde_json::to_vec(&keys)?)?)
}

/// The last generation is finished.
pub(crate) fn forget_begun(cache: &Path, identity: &CacheIdentity) -> anyhow::Result<()> {
    let path = begun_file(cache, identity.generations.len());
    storage::remove(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    // Only if nothing else is in it; a bucket has no folders.
    let _ = std::fs::remove_dir(layout::work_dir(cache));
    Ok(())
}

/// The keys that were noted of the last generation, if they are there and as many as its samples.
fn begun(cache: &Cache, identity: &CacheIdentity) -> anyhow::Result<Option<Vec<String>>> {
    let generation = identity.generations.len();
    let path = begun_file(cache.dir(), generation);
    if generation == 0 || !storage::exists(&path)? {
        return Ok(None);
    }
    let text = storage::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let keys: Option<Vec<String>> = serde_json::from_slice(&text).ok();
    let samples = identity.generation_dataset(generation).samples;
    Ok(keys.filter(|keys| keys.len() as u64 == samples))
}

/// What the committed parts say of their samples.
struct Committed {
    /// The place of every sample that they have.
    places: Vec<Option<Placed>>,
    /// Samples that were rejected: what label these had is not recorded.
    rejected: Vec<usize>,
    /// Whether a part of the last generation is among them, damaged or not.
    has_last: bool,
}

fn committed(cache: &Cache, source: &ImageSource, purpose: Purpose) -> anyhow::Result<Committed> {
    let identity = cache.identity();
    let last = identity.generations.len();
    let mut places = vec![None; usize::try_from(identity.samples())?];
    let (mut rejected, mut has_last) = (Vec::new(), false);
    for part in 0..identity.parts() {
        let of_last = identity.generation_of(part) == last;
        let read = match cache.part_state(part) {
            Ok(state) if state.samples.is_none() => {
                if purpose == Purpose::Append && !(of_last && last > 0) {
                    return Err(no_samples(cache, part));
                }
                continue;
            }
            Ok(_) => cache.samples(part).and_then(|rows| Ok((rows, cache.rejects(part)?))),
            Err(error) => Err(error),
        };
        has_last |= of_last;
        let (rows, rejects) = match read {
            // It is built again.
            Err(_) if purpose == Purpose::Repair => continue,
            read => read.with_context(|| {
                format!(
                    "{}: part {part} is damaged; build it again with the pipeline build-cache that built the cache and --repair",
                    cache.dir().display()
                )
            })?,
        };
        let rows = rows.into_iter().filter(|row| row.view.index == 0);
        let rows = rows.map(|row| (row.sample_id, row.key, row.label));
        let rejects: Vec<_> = rejects.into_iter().map(|reject| (reject.sample_id, reject.key, None)).collect();
        rejected.extend(rejects.iter().map(|&(sample_id, ..)| sample_id as usize));
        for (sample_id, key, label) in rows.chain(rejects) {
            let index = source.find(&key);
            places[sample_id as usize] = Some(Placed { key, label, index });
        }
    }
    Ok(Committed { places, rejected, has_last })
}

/// The names of the cache's classes, and behind them those that only the source has.
fn merged_names(
    identity: &CacheIdentity,
    source: &ImageSource,
    appends: bool,
    images: &str,
) -> anyhow::Result<Vec<String>> {
    let cached = identity.all_label_names();
    if !appends {
        return Ok(cached.to_vec());
    }
    let found = source.label_names();
    if cached.is_empty() != found.is_empty() {
        let words = |names: &[String]| match names.len() {
            0 => "no names".to_owned(),
            classes => format!("names ({classes} of them)"),
        };
        bail!(
            "{images}: its labels have {}, and those of the cache {}: give the new images in the layout of the earlier ones",
            words(found),
            words(cached)
        );
    }
    let new = found.iter().filter(|name| !cached.contains(name));
    Ok(cached.iter().chain(new).cloned().collect())
}

/// Opens the data set that the cache was built from. Content is compared image by image, when it is read.
pub(crate) fn same_images(cache: &Cache, images: &str) -> anyhow::Result<ImageSource> {
    let Opened { source, differs, .. } = open_images(cache, images)?;
    differs.map_or(Ok(source), |differs| bail!(differs))
}

/// Images that were opened to be compared with a cache.
pub(crate) struct Opened {
    pub source: ImageSource,
    /// Why they are not the data set that the cache was built from, if they are not.
    pub differs: Option<String>,
    /// Whether each image is at the place of its sample.
    pub in_order: bool,
}

/// Opens images in the order of the cache's samples. If they are not the data set that the cache was built from, they are put in order by their keys as far
/// as that can be done.
pub(crate) fn open_images(cache: &Cache, images: &str) -> anyhow::Result<Opened> {
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
        let Grown { source, gone, changed, .. } = arrange(cache, source, images, Purpose::Finish)?;
        let differs = match gone {
            Some((gone, _)) => Some(differ(&format!(", {gone} of which are gone"))),
            None => changed.then(|| differ(", with other sizes or labels")),
        };
        let source = source.limit(identity.samples());
        return Ok(Opened { source, differs, in_order: true });
    }
    // A cache of the first samples of a source was built with --limit.
    let samples = source.len().min(usize::try_from(identity.samples())?);
    if source.identity_of(0..samples).digest == identity.dataset.digest {
        return Ok(Opened { source: source.limit(identity.samples()), differs: None, in_order: true });
    }
    let differs = Some(differ(if found == identity.samples() { ", with other names, sizes or labels" } else { "" }));
    // An image that is gone has changed the number of all behind it.
    match arrange(cache, source, images, Purpose::Finish) {
        Ok(Grown { source, .. }) => Ok(Opened { source: source.limit(identity.samples()), differs, in_order: true }),
        Err(error) => {
            tracing::debug!("{images}: not in the order of {}: {error:#}", cache.dir().display());
            Ok(Opened { source: ImageSource::open(images)?, differs, in_order: false })
        }
    }
}
