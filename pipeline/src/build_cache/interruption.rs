//! What an interrupted build says: what it keeps and what has to be computed again.

use std::collections::BTreeSet;

use program::words::count;
use schemas::Cache;

use super::build::Build;
use super::queue::Queue;
use super::worklist::PartWork;

/// Warns about a run that has dealt with `images` images of the parts that it has begun.
pub(super) fn warn(build: &Build, cache: &Cache, queue: &Queue<'_>, images: u64) -> anyhow::Result<()> {
    let left: BTreeSet<u32> = build.worklist(cache)?.iter().map(|work| work.part).collect();
    let begun = images_of_parts(build, cache, queue.begun())?;
    let saved: u64 =
        begun.iter().filter(|(part, _)| left.contains(part)).map(|(part, _)| queue.saved().images(*part)).sum();
    tracing::warn!("{}", interruption(&begun, &left, images.saturating_sub(saved)));
    Ok(())
}

/// The parts begun, and the images of each that this run had to deal with.
fn images_of_parts(build: &Build, cache: &Cache, work: &[PartWork]) -> anyhow::Result<Vec<(u32, u64)>> {
    let images = |PartWork { part, missing }: &PartWork| {
        let rejected = if missing.samples { 0 } else { cache.part_state(*part)?.samples.map_or(0, |s| s.rejects.rows) };
        Ok((*part, build.samples_in(*part) - rejected))
    };
    work.iter().map(images).collect()
}

/// What an interrupted run keeps and what it loses: `planned` are the parts that it has begun and their images, `left` those that are not
/// finished, `images` how many it has dealt with.
fn interruption(planned: &[(u32, u64)], left: &BTreeSet<u32>, images: u64) -> String {
    let done = planned.iter().filter(|(part, _)| !left.contains(part));
    let (parts, kept) = done.fold((0, 0), |(parts, kept), (_, of)| (parts + 1, kept + of));
    let lost = match images.saturating_sub(kept) {
        0 => String::new(),
        1 => "; 1 image of an unfinished part has to be computed again".to_owned(),
        lost => format!("; {lost} images of unfinished parts have to be computed again"),
    };
    let smaller = if lost.is_empty() { "" } else { " (a build with a smaller --part-samples loses less)" };
    let finished = match parts {
        0 => "interrupted before this run had finished a part".to_owned(),
        _ => format!("interrupted; {} of {} are finished and kept", count(kept, "image"), count(parts, "part")),
    };
    format!("{finished}{lost}{smaller}; run the same command to go on")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interruption_says_what_is_kept_and_what_is_lost() {
        let planned = [(0, 8), (1, 8), (2, 5)];
        let said = |left: &[u32], images| interruption(&planned, &left.iter().copied().collect(), images);
        let none = said(&[0, 1, 2], 7);
        assert!(none.contains("before this run had finished a part; 7 images"), "{none}");
        assert!(none.contains("--part-samples"), "{none}");
        let some = said(&[1, 2], 9);
        assert!(some.contains("8 images of 1 part are finished and kept; 1 image of an"), "{some}");
        let whole = said(&[2], 16);
        assert!(whole.contains("16 images of 2 parts") && !whole.contains("again"), "{whole}");
        let nothing = said(&[0, 1, 2], 0);
        assert!(!nothing.contains("computed again"), "{nothing}");
    }
}
