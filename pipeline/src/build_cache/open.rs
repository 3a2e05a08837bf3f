//! The cache that a build writes to: created, or found to be the same build.

use std::collections::BTreeSet;

use images::ImageSource;
use schemas::{Cache, atomic, layout};

use storage::is_url;

use super::build::Build;
use super::lock::{Busy, Lock};
use super::refuse;
use super::workers::Leases;

/// Makes the cache, or compares the one that is there with what is asked for.
pub(super) fn open_cache(build: &Build, leases: &Leases) -> anyhow::Result<(Cache, Lock)> {
    let folder = &build.recipe.cache.out;
    refuse::foreign_folder(folder)?;
    // Everything is compared before anything is written: a refused command must not leave half of what it asked for.
    let early = if is_url(folder) || folder.is_dir() { Some(Lock::take(folder, leases)?) } else { None };
    build.refuse_changes()?;
    if storage::exists(&layout::cache_json(folder))? && !schemas::has_parts(folder)? && is_another(build)? {
        let alone = early.as_ref().is_some_and(Lock::is_alone) && leases.living(None)?.is_empty();
        if !alone {
            let problem =
                "another build with other settings has begun here; wait for its end, or build into another folder";
            return Err(Busy(format!("{}: {problem}", folder.display())).into());
        }
        tracing::info!(
            "{}: the build that was interrupted here had other settings and had not finished a part; starting over",
            folder.display()
        );
        schemas::start_over(folder, &build.identity)?;
    }
    schemas::create_cache(folder, &build.identity)?;
    let lock = match early {
        Some(lock) => lock,
        None => Lock::take(folder, leases)?,
    };
    let alone = lock.is_alone() && leases.living(None)?.is_empty();
    // Another build may be appending other images at this moment, with the first part to come.
    if let Some(last) = build.identity.generations.last()
        && !alone
        && storage::exists(&layout::generation_json(folder, last.generation))?
        && !schemas::check_generation(folder, &build.identity)?
    {
        let problem = "another command appends other images at this moment; wait for its end";
        return Err(Busy(format!("{}: {problem}", folder.display())).into());
    }
    schemas::add_generation(folder, &build.identity)?;
    for teacher in &build.teachers {
        let id = &teacher.identity.id;
        // Another build may be adding it at this moment, with the first part to come.
        if !alone
            && storage::exists(&layout::teacher_json(folder, id))?
            && !schemas::check_teacher(folder, &teacher.identity)?
        {
            let problem = "another build adds a teacher of this name with other weights or settings; give another name";
            return Err(Busy(format!("{}: teacher {id}: {problem}", folder.display())).into());
        }
        schemas::add_teacher(folder, &teacher.identity)?;
        atomic::remove_stale(&layout::teacher_json(folder, &teacher.identity.id))?;
    }
    lock.share();
    atomic::remove_stale(&layout::cache_json(folder))?;
    if let Some(source) = &build.source {
        schemas::write_skipped(folder, &skipped(source))?;
    }
    Ok((Cache::open(folder)?, lock))
}

/// Whether the cache without a part that is there is of another build.
fn is_another(build: &Build) -> anyhow::Result<bool> {
    let folder = &build.recipe.cache.out;
    if matches!(schemas::check_cache(folder, &build.identity), Err(schemas::Error::IdentityChanged { .. })) {
        return Ok(true);
    }
    for teacher in &build.teachers {
        let there = storage::exists(&layout::teacher_json(folder, &teacher.identity.id))?;
        if there && !schemas::check_teacher(folder, &teacher.identity)? {
            return Ok(true);
        }
    }
    let there: BTreeSet<_> = Cache::open(folder)?.teachers().keys().cloned().collect();
    Ok(!there.is_subset(&build.wanted()))
}

/// The pictures of the source that the cache does not take as samples, as its record lists them.
fn skipped(source: &ImageSource) -> Vec<schemas::Skipped> {
    let skipped = source.findings().skipped.iter();
    skipped.map(|skipped| schemas::Skipped::new(&skipped.key, &skipped.reason, skipped.count)).collect()
}
