//! Batches: the samples that one thread takes together through decoding, every teacher and encoding.
//!
//! A batch is a range of consecutive samples of one part. Which rows pass through a teacher together, and with it the last bits of its
//! features, is therefore a function of the plan: it depends neither on the parts that a run builds, nor on images elsewhere that cannot be used.

use std::ops::Range;
use std::sync::Arc;

use schemas::{Cache, SamplesPart};

use super::build::Build;
use super::worklist::PartWork;

/// A part that lacks something.
#[derive(Debug)]
pub(crate) struct OpenPart {
    pub number: u32,
    pub samples: Range<u64>,
    /// Its samples where they are committed already: the rows to be built are theirs.
    pub committed: Option<SamplesPart>,
    /// The teachers whose features it lacks, by position in the build's list.
    pub teachers: Vec<usize>,
}

/// Samples of one part.
#[derive(Debug)]
pub(crate) struct Batch {
    pub part: Arc<OpenPart>,
    pub samples: Range<u64>,
}

impl Batch {
    /// Whether it begins its part.
    pub(crate) fn is_first(&self) -> bool {
        self.samples.start == self.part.samples.start
    }

    /// Whether it ends its part.
    pub(crate) fn is_last(&self) -> bool {
        self.samples.end == self.part.samples.end
    }
}

/// The batches of all parts in `work`, in order. A part is asked for and opened when its first batch is asked for.
pub(crate) fn batches<'a>(
    build: &'a Build,
    cache: &'a Cache,
    work: impl Iterator<Item = anyhow::Result<PartWork>> + 'a,
) -> impl Iterator<Item = anyhow::Result<Batch>> + 'a {
    let size = samples_per_batch(build.batch_size, build.identity.views.views);
    work.flat_map(move |work| match work.and_then(|work| open(build, cache, &work)) {
        Ok(part) => {
            let part = Arc::new(part);
            cut(part.samples.clone(), size).map(|samples| Ok(Batch { part: Arc::clone(&part), samples })).collect()
        }
        Err(error) => vec![Err(error)],
    })
}

/// Samples whose rows fill a forward pass of at most `batch_size` rows; at least one.
pub(crate) fn samples_per_batch(batch_size: u32, views: u16) -> usize {
    (batch_size / u32::from(views).max(1)).max(1) as usize
}

/// Ranges of `size` samples, the last one shorter.
fn cut(samples: Range<u64>, size: usize) -> impl Iterator<Item = Range<u64>> {
    let end = samples.end;
    samples.step_by(size).map(move |start| start..start.saturating_add(size as u64).min(end))
}

fn open(build: &Build, cache: &Cache, work: &PartWork) -> anyhow::Result<OpenPart> {
    schemas::remove_stale(cache.dir(), work.part)?;
    let is_missing = |&t: &usize| work.missing.teachers.contains(&build.teachers[t].identity.id);
    Ok(OpenPart {
        number: work.part,
        samples: build.identity.range(work.part),
        committed: if work.missing.samples { None } else { Some(cache.samples_part(work.part)?) },
        teachers: (0..build.teachers.len()).filter(is_missing).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_whole_samples_and_cover_the_part() {
        for (batch_size, views, samples) in [(8, 1, 8), (8, 2, 4), (5, 2, 2), (1, 3, 1), (128, 3, 42)] {
            assert_eq!(samples_per_batch(batch_size, views), samples, "{batch_size} rows, {views} views");
        }
        let cut = |range, size| cut(range, size).collect::<Vec<_>>();
        assert_eq!(cut(10..17, 3), [10..13, 13..16, 16..17]);
        assert_eq!(cut(10..16, 3), [10..13, 13..16]);
        assert_eq!(cut(u64::MAX - 4..u64::MAX, 3), [u64::MAX - 4..u64::MAX - 1, u64::MAX - 1..u64::MAX]);
    }
}
