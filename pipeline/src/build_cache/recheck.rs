//! Whether a source still holds the images of a cache's finished parts, each at its place.
//!
//! A data set's digest covers names, lengths and labels. Images that trade places under names of equal length, rows of a Parquet
//! file in another order, shards that are swapped: none of these show in it. A build that went on over such a source would store
//! some images twice and others not at all, each row right in itself. The rows say what was at every place, so before a build goes
//! on, these places are read again and hashed: it costs reading the finished parts' images once, without decoding any.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Instant;

use anyhow::Context;
use images::{ImageSource, SourceError};
use indicatif::{ProgressBar, ProgressStyle};
use program::{terminal, words::count};
use schemas::{Cache, ContentHash};

use super::parallel::{Ended, map_in_order};
use super::progress::LINE_EVERY;

/// Images whose expectations are held in memory at once.
const AT_ONCE: usize = 1 << 16;

/// Images that a thread reads at a time.
const READ_TOGETHER: usize = 16;

/// A place of the source: what the cache says was there; nothing where the image could not be read at all.
#[derive(Debug, Clone, Copy)]
struct Place {
    sample_id: u64,
    cached: Option<ContentHash>,
}

/// A place that holds something else now.
#[derive(Debug, Clone, Copy)]
struct Differs {
    place: Place,
    found: Found,
}

/// What is at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Content(ContentHash),
    /// An image that cannot be read at all.
    Unreadable,
    /// The source does not have the image.
    Gone,
}

impl Found {
    fn content(self) -> Option<ContentHash> {
        match self {
            Found::Content(hash) => Some(hash),
            Found::Unreadable | Found::Gone => None,
        }
    }
}

/// The places that hold something else than the cache was built from; at least one.
#[derive(Debug)]
pub(crate) struct Moved {
    /// How many were looked at.
    pub checked: u64,
    /// How many of the images that were there are at another of these places.
    pub elsewhere: u64,
    /// Keys, and what was and is there, in order.
    differs: Vec<(String, Differs)>,
}

impl Moved {
    /// How many images the source does not have.
    pub(crate) fn gone(&self) -> u64 {
        self.differs.iter().filter(|(_, differs)| differs.found == Found::Gone).count() as u64
    }

    /// How many images differ.
    pub(crate) fn count(&self) -> u64 {
        self.differs.len() as u64
    }

    /// Each of them, as a sentence without an end.
    pub(crate) fn problems(&self) -> impl Iterator<Item = String> + '_ {
        self.differs.iter().map(|(key, Differs { place, found })| {
            let image = format!("image {key:?} (sample {})", place.sample_id);
            let was = place.cached.map_or("nothing readable".to_owned(), |hash| format!("content hash {hash}"));
            match found {
                Found::Content(hash) => format!("{image} has changed: {was} then, content hash {hash} now"),
                Found::Unreadable => format!("{image} cannot be read any more: {was} then"),
                Found::Gone => format!("{image} cannot be found"),
            }
        })
    }
}

/// How a check ended.
#[derive(Debug)]
pub(crate) enum Checked {
    /// All of this many places hold what they held.
    Same(u64),
    Moved(Moved),
    Interrupted,
}

/// Compares the contents of every image of `parts`, whose samples are committed, with `source`, in which an image's place is its
/// `sample_id`; `total` images, on `threads` threads.
pub(crate) fn check(
    cache: &Cache,
    source: &ImageSource,
    parts: &[u32],
    threads: usize,
    total: u64,
) -> anyhow::Result<Checked> {
    let mut progress = Progress::new(total);
    let mut places = Vec::new();
    let mut differs: Vec<Differs> = Vec::new();
    let mut checked = 0;
    for (i, &part) in parts.iter().enumerate() {
        places.extend(places_of(cache, part)?);
        if places.len() < AT_ONCE && i + 1 < parts.len() {
            continue;
        }
        match compare(source, &places, threads, &mut progress)? {
            Some(found) => differs.extend(found),
            None => return Ok(Checked::Interrupted),
        }
        checked += places.len() as u64;
        places.clear();
    }
    if differs.is_empty() {
        return Ok(Checked::Same(checked));
    }
    let found: BTreeSet<ContentHash> = differs.iter().filter_map(|d| d.found.content()).collect();
    let is_there = |d: &&Differs| d.place.cached.is_some_and(|hash| found.contains(&hash));
    let elsewhere = differs.iter().filter(is_there).count() as u64;
    let with_key = |d: Differs| Ok((source.key(index(d.place.sample_id)?).to_owned(), d));
    let differs = differs.into_iter().map(with_key).collect::<anyhow::Result<_>>()?;
    Ok(Checked::Moved(Moved { checked, elsewhere, differs }))
}

fn index(sample_id: u64) -> anyhow::Result<usize> {
    usize::try_from(sample_id).context("sample number")
}

/// What a committed part says of its samples: its rows, and the images that it rejected.
fn places_of(cache: &Cache, part: u32) -> anyhow::Result<Vec<Place>> {
    let mut places: Vec<Place> = Vec::new();
    for row in cache.samples(part)? {
        if row.view.index == 0 {
            places.push(Place { sample_id: row.sample_id, cached: Some(row.content_hash) });
        }
    }
    places.extend(
        cache
            .rejects(part)?
            .into_iter()
            .map(|reject| Place { sample_id: reject.sample_id, cached: reject.content_hash }),
    );
    // A source is read best in its order.
    places.sort_unstable_by_key(|place| place.sample_id);
    Ok(places)
}

/// The places that differ, in order; nothing after a signal.
fn compare(
    source: &ImageSource,
    places: &[Place],
    threads: usize,
    progress: &mut Progress,
) -> anyhow::Result<Option<Vec<Differs>>> {
    let mut differs = Vec::new();
    let ended = map_in_order(
        places.chunks(READ_TOGETHER).map(Ok),
        vec![(); threads],
        |(), places, stop| {
            let look = |&place: &Place| {
                stop.check()?;
                look(source, place)
            };
            places.iter().map(look).collect::<anyhow::Result<Vec<_>>>()
        },
        |looked| {
            progress.add(looked.len());
            differs.extend(looked.into_iter().flatten());
            Ok(())
        },
    )?;
    Ok((ended == Ended::Finished).then_some(differs))
}

/// Reads a place; says what is there if that is not what the cache says.
fn look(source: &ImageSource, place: Place) -> anyhow::Result<Option<Differs>> {
    let index = index(place.sample_id)?;
    let found = match source.read(index) {
        Ok(bytes) => Found::Content(ContentHash::of(&bytes)),
        Err(error) if error.is_bad_record() => Found::Unreadable,
        Err(SourceError::Gone { .. }) => Found::Gone,
        Err(error) => {
            return Err(error)
                .with_context(|| format!("cannot read image {:?} (sample {})", source.key(index), place.sample_id));
        }
    };
    let same = found != Found::Gone && found.content() == place.cached;
    Ok((!same).then_some(Differs { place, found }))
}

/// A bar on a terminal, a line now and then elsewhere.
struct Progress {
    bar: ProgressBar,
    total: u64,
    last_line: Instant,
}

impl Progress {
    fn new(total: u64) -> Progress {
        let bar = terminal::bars().add(ProgressBar::new(total));
        let style = "{elapsed_precise} {wide_bar} {human_pos}/{human_len} images read again, ETA {eta}";
        bar.set_style(ProgressStyle::with_template(style).expect("a constant template"));
        Progress { bar, total, last_line: Instant::now() }
    }

    fn add(&mut self, images: usize) {
        self.bar.inc(images as u64);
        if self.bar.is_hidden() && self.last_line.elapsed() >= LINE_EVERY {
            self.last_line = Instant::now();
            tracing::info!(images = self.bar.position(), of = self.total, "reading again");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// As a clause that follows the source's name and a colon.
impl fmt::Display for Moved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = self.problems().next().unwrap_or_default();
        write!(
            f,
            "{} of the {} that the cache's finished parts were built from are no longer in their places, though names and sizes are the \
             same; {} of them are in the place of another finished one (places that no finished part was built from were not looked at). The first: {first}",
            self.count(),
            count(self.checked, "image"),
            self.elsewhere,
        )
    }
}
