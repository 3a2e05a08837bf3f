//! `build-cache --repair`: what is damaged is taken out of the cache, and the build makes it again.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail, ensure};
use indicatif::ProgressBar;
use program::{terminal, words::count};
use schemas::{Cache, SetAside, TeacherIdentity, layout};

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
    let cache = Cache::open(folder)?;
    for teacher in cache.teachers().values() {
        let record = layout::teacher_json(folder, &teacher.id);
        let of_teacher = |problem: &&schemas::Error| problem.path().and_then(Path::parent) == record.parent();
        let damaged: Vec<&schemas::Error> = problems.iter().filter(of_teacher).collect();
        if damaged.is_empty() {
            continue;
        }
        refuse_recoded(&cache, teacher, &damaged)?;
        ensure!(
            build.wanted().contains(&teacher.id),
            "{}: features of teacher {id} are damaged, and it is not among the teachers of this command: give it too (--teacher {id}=DIR)",
            folder.display(),
            id = teacher.id
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

/// Refuses to build features again that were recoded from another teacher's: a network computes other last bits than a more exact codec keeps.
fn refuse_recoded(cache: &Cache, teacher: &TeacherIdentity, damaged: &[&schemas::Error]) -> anyhow::Result<()> {
    let Some(from) = cache.more_exact(teacher) else {
        return Ok(());
    };
    // Of exact features both ways give the same bytes.
    if from.codec.tokens().is_exact() || !may_be_recoded(cache, from, teacher, damaged)? {
        return Ok(());
    }
    let commits: BTreeSet<PathBuf> =
        damaged.iter().filter_map(|problem| problem.path()).filter_map(layout::commit_of).collect();
    let commits: String = commits.iter().map(|commit| format!("\n  {}", commit.display())).collect();
    let (folder, id) = (cache.dir().display(), &teacher.id);
    bail!(
        "{folder}: features of teacher {id} are damaged, which was recoded from {from} ({}), so that its network would not give the same bytes. Delete these commit \
         records, repair the rest with this command, if anything is left, and then run `pipeline recode {folder} --teacher {from} --codec {} --as {id}` again:{commits}",
        from.codec,
        teacher.codec.name(),
        from = from.id,
    )
}

/// Whether an intact part of a teacher is what recoding another one gives; true if no part can tell.
fn may_be_recoded(
    cache: &Cache,
    from: &TeacherIdentity,
    teacher: &TeacherIdentity,
    damaged: &[&schemas::Error],
) -> anyhow::Result<bool> {
    let commits: BTreeSet<PathBuf> =
        damaged.iter().filter_map(|problem| problem.path()).filter_map(layout::commit_of).collect();
    for part in 0..cache.identity().parts() {
        if commits.contains(&layout::teacher_commit(cache.dir(), &teacher.id, part)) {
            continue;
        }
        let (Ok(exact), Ok(stored)) = (cache.teacher_part(&from.id, part), cache.teacher_part(&teacher.id, part))
        else {
            continue;
        };
        let mut tokens = Vec::new();
        for (exact, stored) in exact.iter().zip(stored.iter()) {
            // Another damaged part is told by its own problem.
            let (Ok(exact), Ok(stored)) = (exact, stored) else { return Ok(true) };
            from.decode_tokens(&exact.tokens, &mut tokens)?;
            let mut recoded = Vec::new();
            teacher.codec.tokens().encode(&tokens, teacher.width as usize, &mut recoded)?;
            if recoded != stored.tokens {
                return Ok(false);
            }
        }
        if stored.rows() > 0 {
            return Ok(true);
        }
    }
    Ok(true)
}
