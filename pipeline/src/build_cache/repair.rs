//! `build-cache --repair`: what is damaged is taken out of the cache, and the build makes it again.

use anyhow::{Context, ensure};
use indicatif::ProgressBar;
use program::{terminal, words::count};
use schemas::{SetAside, layout};

use super::build::Build;
use super::lock::Lock;

/// Writes the records again that were set aside and takes out every part with a problem. Refuses what is not this build's cache.
pub(super) fn take_out_damage(build: &Build, aside: SetAside) -> anyhow::Result<()> {
    let folder = &build.recipe.cache.out;
    ensure!(
        layout::cache_json(folder).exists() || aside.paths().next().is_some(),
        "{}: there is no cache to repair; leave out --repair to build it",
        folder.display()
    );
    let lock = Lock::take(folder)?;
    ensure!(lock.is_alone(), "{}: another build is at work here; repair it when that has ended", folder.display());
    let teachers = build.identities();
    let refused = || {
        format!(
            "{}: these are not the settings that it was built with, so it cannot be repaired with them",
            folder.display()
        )
    };
    schemas::parts_are_of(folder, &build.identity, &teachers).with_context(refused)?;
    let other = aside.paths().find(|path| {
        **path != layout::cache_json(folder)
            && teachers.iter().all(|teacher| **path != layout::teacher_json(folder, &teacher.id))
    });
    if let Some(other) = other {
        anyhow::bail!(
            "{} is damaged, and its teacher is not among those of this command: give it too",
            other.display()
        );
    }
    schemas::create_cache(folder, &build.identity).with_context(refused)?;
    for teacher in &teachers {
        schemas::add_teacher(folder, teacher)?;
    }
    let records: Vec<_> = aside.paths().map(|path| path.display().to_string()).collect();
    aside.forget();

    let bar = terminal::bars().add(ProgressBar::no_length());
    let report = schemas::verify(folder, &mut |progress| {
        bar.set_length(progress.total_bytes);
        bar.set_position(progress.bytes);
    });
    bar.finish_and_clear();
    let problems = report?.problems;
    problems.iter().for_each(|problem| tracing::warn!("{problem}"));
    let dropped = schemas::drop_damaged(&problems)?;
    if records.is_empty() && dropped.is_empty() {
        tracing::info!("nothing is damaged");
    } else {
        let records = match records.len() {
            0 => String::new(),
            _ => format!("; written again: {}", records.join(", ")),
        };
        let files = count(dropped.len() as u64, "damaged file");
        tracing::warn!("{} found; {files} to be built again{records}", count(problems.len() as u64, "problem"));
    }
    Ok(())
}
