//! Chooses rows and reads their features.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, bail, ensure};
use schemas::{Cache, SampleRow, TeacherId, TeacherIdentity, TeacherPart, TeacherRow};

use crate::cli::SampleRange;

/// Largest number of samples of one call. For more, any Parquet reader is the better tool.
const MAX_SAMPLES: u64 = 10_000;

/// A chosen (sample, view).
#[derive(Debug)]
pub(super) struct Chosen {
    /// The part, and the row in it.
    pub(super) part: u32,
    pub(super) row: usize,
    pub(super) sample: SampleRow,
}

/// The requested views of the requested samples, ascending, each once. Without `view`, all views. A rejected image is an error
/// if it was named by itself, and skipped in a range.
pub(super) fn choose(cache: &Cache, ranges: &[SampleRange], view: Option<u16>) -> anyhow::Result<Vec<Chosen>> {
    let identity = cache.identity();
    check_view(cache, view)?;
    let mut ids = BTreeSet::new();
    let mut single = BTreeSet::new();
    for &SampleRange { first, last } in ranges {
        ensure!(
            last < identity.samples(),
            "there is no sample {last}: the data set has {}, numbered from 0",
            identity.samples()
        );
        ensure!(
            last - first < MAX_SAMPLES,
            "samples {first}-{last} are more than {MAX_SAMPLES}, the most that are shown at once"
        );
        ids.extend(first..=last);
        if first == last {
            single.insert(first);
        }
        ensure!(
            ids.len() as u64 <= MAX_SAMPLES,
            "{} samples are asked for; {MAX_SAMPLES} are the most that are shown at once",
            ids.len()
        );
    }
    let mut by_part: BTreeMap<u32, BTreeSet<u64>> = BTreeMap::new();
    for id in ids {
        let part = identity.part_of(id);
        by_part.entry(part).or_default().insert(id);
    }
    let mut chosen = Vec::new();
    for (part, ids) in by_part {
        for reject in cache.rejects(part)? {
            ensure!(
                !single.contains(&reject.sample_id),
                "sample {} ({:?}) has no rows, it was rejected: {}",
                reject.sample_id,
                reject.key,
                reject.reason
            );
        }
        chosen.extend(part_rows(cache, part, |sample| {
            ids.contains(&sample.sample_id) && view.is_none_or(|view| sample.view.index == view)
        })?);
    }
    ensure!(!chosen.is_empty() || ranges.is_empty(), "every image in the range was rejected: none has rows");
    Ok(chosen)
}

/// The default choice, with one view each: the first usable sample of the first committed part, the middle one of the middle part and the
/// last one of the last part; fewer if these coincide.
pub(super) fn first_middle_last(cache: &Cache, view: Option<u16>) -> anyhow::Result<Vec<Chosen>> {
    check_view(cache, view)?;
    let view = view.unwrap_or(0);
    let mut parts = Vec::new();
    for part in 0..cache.identity().parts() {
        if let Some(commit) = cache.part_state(part)?.samples
            && commit.file.rows > 0
        {
            parts.push(part);
        }
    }
    let (Some(&first), Some(&last)) = (parts.first(), parts.last()) else {
        bail!("{}: no part with rows is built yet, so there is nothing to show", cache.dir().display());
    };
    let middle = parts[parts.len() / 2];
    let pick = |part: u32, place: fn(usize) -> usize| -> anyhow::Result<Chosen> {
        let mut rows = part_rows(cache, part, |sample| sample.view.index == view)?;
        ensure!(!rows.is_empty(), "part {part} has no row of view {view}");
        let at = place(rows.len());
        Ok(rows.swap_remove(at))
    };
    let mut chosen = vec![pick(first, |_| 0)?, pick(middle, |n| n / 2)?, pick(last, |n| n - 1)?];
    chosen.dedup_by_key(|chosen| chosen.sample.sample_id);
    Ok(chosen)
}

fn check_view(cache: &Cache, view: Option<u16>) -> anyhow::Result<()> {
    let views = cache.identity().views.views;
    match view {
        Some(view) if view >= views => {
            bail!("there is no view {view}: the cache has {views} of each image, numbered from 0")
        }
        _ => Ok(()),
    }
}

/// The wanted rows of a part.
fn part_rows(cache: &Cache, part: u32, wanted: impl Fn(&SampleRow) -> bool) -> anyhow::Result<Vec<Chosen>> {
    let rows = cache.samples(part)?.into_iter().enumerate();
    Ok(rows.filter(|(_, sample)| wanted(sample)).map(|(row, sample)| Chosen { part, row, sample }).collect())
}

/// Reads the features of the chosen rows, checks that they belong to them, and hands each to `visit` with the position of its row
/// in `chosen`. A teacher whose part is not committed is skipped.
pub(super) fn for_each_feature(
    cache: &Cache,
    chosen: &[Chosen],
    mut visit: impl FnMut(usize, &TeacherIdentity, &TeacherRow) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut open: Option<(u32, BTreeMap<TeacherId, TeacherPart>)> = None;
    let mut feature = TeacherRow::default();
    for (position, chosen) in chosen.iter().enumerate() {
        let parts = match &open {
            Some((part, parts)) if *part == chosen.part => parts,
            _ => {
                let committed = cache.part_state(chosen.part)?.teachers;
                let parts = committed
                    .keys()
                    .map(|id| Ok((id.clone(), cache.teacher_part(id, chosen.part)?)))
                    .collect::<schemas::Result<_>>()?;
                &open.insert((chosen.part, parts)).1
            }
        };
        for (id, part) in parts {
            part.read_row_into(chosen.row, &mut feature)?;
            part.check_join(chosen.row, &feature.key, &chosen.sample.row_key())
                .context("features belong to another view: run `pipeline verify`")?;
            visit(position, cache.teacher(id)?, &feature)?;
        }
    }
    Ok(())
}
