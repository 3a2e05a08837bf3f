//! `build-cache --repair`: what is damaged is taken out of the cache, and the build makes it again.

use std::path::Path;

use anyhow::{Context, anyhow, bail, ensure};
use indicatif::ProgressBar;
use program::{terminal, words::count};
use schemas::{Cache, SetAside, layout};

use super::build::Build;
use super::lock::{Busy, Lock};
use super::workers::Leases;

/// Writes the records again that were set aside and takes out every part with a problem. Refuses what is not this build's cache.
pub(super) fn take_out_damage(build: &Build, aside: SetAside) -> anyhow::Result<()> {
    let folder = &build.recipe.cache.out;
    ensure!(
        storage::exists(&layout::cache_json(folder))?
            || aside.paths().next().is_some()
            || schemas::holds_parts(folder)?,
        "{}: there is no cache to repair; leave out --repair to build it",
        folder.display()
    );
    let leases = Leases::new(folder, build.recipe.run.patience());
    let lock = Lock::take(folder, &leases)?;
    if !lock.is_alone() {
        let problem = "another build is at work here; repair it when that has ended";
        return Err(Busy(format!("{}: {problem}", folder.display())).into());
    }
    let teachers = build.identities();
    let refused = || {
        format!(
            "{}: these are not the settings that it was built with, so it cannot be repaired with them",
            folder.display()
        )
    };
    // Parts of other settings are not damaged: it is the command that is not the right one.
    schemas::parts_are_of(folder, &build.identity, &teachers).map_err(|error| match error {
        schemas::Error::Misplaced { .. } => anyhow!("{}: {error}", refused()),
        error => anyhow!(error).context(refused()),
    })?;
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
    // What nobody builds again is not to be removed.
    for id in Cache::open(folder)?.teachers().keys().filter(|id| !build.wanted().contains(*id)) {
        let record = layout::teacher_json(folder, id);
        let of_teacher = |problem: &&schemas::Error| problem.path().and_then(Path::parent) == record.parent();
        ensure!(
            !problems.iter().any(|problem| of_teacher(&problem)),
            "{}: features of teacher {id} are damaged, and it is not among the teachers of this command: give it too (--teacher {id}=DIR)",
            folder.display()
        );
    }
    let dropped = schemas::drop_damaged(&problems)?;
    if records.is_empty() && dropped.is_empty() {
        tracing::info!("nothing is damaged");
    } else {
        let records = match records.len() {
            0 => String::new(),
            _ => format!("; written again: {}", records.join(", ")),
        };
        tracing::warn!("to be built again: {}{records}", count(dropped.len() as u64, "damaged file"));
    }
    Ok(())
}
