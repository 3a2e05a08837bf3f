//! Finds the image of each cached sample: by its key, and by its content if it was moved or renamed.
//!
//! A key does not prove the content, since images can trade names. Reading every image before the first step would prove it, but takes as
//! long as reading for an epoch; so it is done only if a difference shows: a key that is missing, or a length that differs. A difference that
//! neither keys nor lengths show comes out when the image is read, since its content is compared with its row; the content is then searched
//! in the same way ([`Images::read`]). A run that trains on what is there (`data.missing = "skip"`) has to know before the first step which
//! images are missing, so it reads every image once.

use std::collections::{BTreeMap, BTreeSet};

use images::rng::Rng;
use images::{Decoder, Filter, draw_crop, draw_view};
use schemas::{Cache, CacheIdentity, ContentHash, Reject, TeacherId, View, ViewIdentity};
use sha2::{Digest, Sha256};

use super::images::{Images, SourceImages};
use super::sample::Sample;
use super::{Problem, absent};
use crate::recipe::{self, Missing};

/// Everything a run trains on, in the cache's order.
#[derive(Debug)]
pub(crate) struct Samples {
    /// How many views of an image the run uses: the first ones of those stored.
    views: usize,
    /// How the cache's views were drawn.
    policy: ViewIdentity,
    samples: Vec<Sample>,
    fingerprint: String,
    decoder: Decoder,
    added: Vec<usize>,
    skipped: Listed,
}

/// The number of a view that no row has. Those of rows are below the number of views, which is 65,535 at most.
pub(crate) const FRESH_VIEW: u16 = u16::MAX;

/// Some images: how many, and the keys of the first few.
pub(crate) type Listed = (usize, Vec<String>);

/// Samples files that are read at once over a network.
const PARTS_AT_ONCE: usize = 32;

/// How many images a message names.
const NAMED: usize = 10;

pub(crate) fn listed<'a>(keys: impl Iterator<Item = &'a str>) -> Listed {
    let (mut count, mut first) = (0, Vec::new());
    for key in keys {
        count += 1;
        if first.len() < NAMED {
            first.push(key.to_owned());
        }
    }
    (count, first)
}

impl Samples {
    /// How many images an epoch has.
    pub(crate) fn len(&self) -> usize {
        self.samples.len()
    }

    /// Decodes image files by the rules and with the depth window of the cache's features.
    pub(crate) fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// The parts that have their rows, ascending.
    pub(crate) fn parts(&self) -> Vec<u32> {
        let parts: BTreeSet<u32> = self.samples.iter().map(|sample| sample.part).collect();
        parts.into_iter().collect()
    }

    /// Views used per image, `data.views` or all that are stored. Epoch `e` uses view `e % views`.
    pub(crate) fn views(&self) -> usize {
        self.views
    }

    /// Sample `idx` and its view `view`.
    pub(crate) fn get(&self, idx: usize, view: usize) -> (&Sample, View) {
        let sample = &self.samples[idx];
        // `join` has checked that the stored view is this one.
        (sample, draw(&self.policy, &sample.content_hash, view, [sample.width, sample.height]))
    }

    /// A view of sample `idx` that no row has, drawn from `rng` by the cache's policy.
    pub(crate) fn draw_fresh(&self, idx: usize, rng: &mut Rng) -> View {
        let Sample { width, height, .. } = self.samples[idx];
        let (crop, flip) = draw_crop(&self.policy.policy, rng, width, height);
        View { index: FRESH_VIEW, crop, flip }
    }

    /// Images of the data set that the cache does not have, by index.
    pub(crate) fn added(&self) -> &[usize] {
        &self.added
    }

    /// Images of the cache that `data.missing = "skip"` leaves out, since the data set does not have them.
    pub(crate) fn skipped(&self) -> &Listed {
        &self.skipped
    }

    /// SHA-256 over every sample's id and content hash, in order: equal only for the same training set.
    pub(crate) fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

/// Reads the cache's sample rows, checks them, and finds each one's image in `images`.
///
/// Packed images are found by their rows, images of a data set as the module says. A search by content reports `progress(done, total)`.
pub(crate) fn join(
    cache: &Cache,
    teachers: &[TeacherId],
    images: &Images,
    config: &recipe::Data,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Samples, Problem> {
    let identity = cache.identity();
    let known = Decoder::of_cache(&identity.image_code, identity.depth_window)
        .filter(|_| identity.views.filter == Filter::Bicubic.name());
    let Some(decoder) = known else {
        return Err(Problem::ImageCode {
            cached: format!("{}; {}", identity.image_code, identity.views.filter),
            ours: format!("{}; {}", images::IMAGE_CODE, Filter::Bicubic.name()),
        });
    };
    if let Some(rules) = decoder.earlier_rules() {
        tracing::warn!(
            "the cache was built with earlier rules for decoding images, which apply to the student too: {rules}. If this affects your \
             images, build the cache again"
        );
    }
    let views = usize::from(identity.views.views);
    let used_views = config.views.unwrap_or(views);
    if used_views > views {
        return Err(Problem::TooManyViews { wanted: used_views, stored: views });
    }
    let parts = complete_parts(cache, teachers, config.allow_incomplete)?;
    let all_parts = parts.len() == identity.parts() as usize;

    // ---- rows of the cache
    let mut samples = Vec::new();
    let (mut keys, mut labels) = (Vec::new(), Vec::new());
    // Where each part takes round trips, the next ones are on their way while one is looked at.
    let is_remote = storage::is_url(cache.dir());
    let some_parts = parts.chunks(if is_remote { PARTS_AT_ONCE } else { 1 });
    let read = some_parts.flat_map(|parts| {
        let rows = storage::in_parallel(parts, |&part| cache.samples(part), is_remote);
        parts.iter().copied().zip(rows).collect::<Vec<_>>()
    });
    for (part, part_rows) in read {
        let part_rows = part_rows?;
        for (i, sample_rows) in part_rows.chunks(views).enumerate() {
            let first = &sample_rows[0];
            for (index, row) in sample_rows.iter().enumerate() {
                let drawn = draw(&identity.views, &row.content_hash, index, [row.width, row.height]);
                if row.sample_id != first.sample_id || row.view != drawn || sample_rows.len() != views {
                    return Err(Problem::View {
                        cache: cache.dir().into(),
                        part,
                        row: i * views + index,
                        key: row.key.clone(),
                    });
                }
            }
            samples.push(Sample {
                sample_id: first.sample_id,
                content_hash: first.content_hash,
                source_idx: usize::MAX,
                part,
                first_row: u32::try_from(i * views).expect("the rows of a part are in memory"),
                width: first.width,
                height: first.height,
            });
            keys.push(first.key.clone());
            labels.push(first.label);
        }
    }

    // ---- their images
    let (mut added, mut skipped) = (Vec::new(), Listed::default());
    if let Some(images) = images.source() {
        let rejects = match all_parts {
            true => rejects(cache)?,
            false => Vec::new(),
        };
        let mut finder =
            Finder { images, samples: &mut samples, keys: &keys, labels: &labels, rejects: &rejects, progress };
        finder.by_key();
        finder.moved();
        if config.missing == Missing::Skip
            || finder.samples.iter().any(|s| s.source_idx == usize::MAX)
            || (all_parts && finder.lengths_differ(identity))
        {
            finder.by_content();
        }
        let lost = finder.lost();
        if all_parts {
            added = finder.added(&lost);
        }
        if !lost.is_empty() {
            let source = images.source();
            let has_name = |&&idx: &&usize| source.find(&keys[idx]).is_some();
            let names = |idx: &usize| &*keys[*idx];
            let (count, total) = (lost.len(), samples.len());
            let missing = listed(lost.iter().filter(|idx| !has_name(idx)).map(names));
            let changed = listed(lost.iter().filter(has_name).map(names));
            match config.missing {
                Missing::Error => {
                    return Err(Problem::MissingImages { count, total, missing, changed });
                }
                Missing::Skip => tracing::warn!(
                    "{count} of the cache's {total} images are not in --images and are left out (data.missing = \"skip\"): {}",
                    absent(&missing, &changed)
                ),
            }
            skipped = listed(lost.iter().map(names));
            let lost: BTreeSet<usize> = lost.into_iter().collect();
            let kept = |idx: &usize| !lost.contains(idx);
            samples = (0..samples.len()).filter(kept).map(|idx| samples[idx].clone()).collect();
        }
    }
    let mut digest = Sha256::new();
    for sample in &samples {
        digest.update(sample.sample_id.to_le_bytes());
        digest.update(sample.content_hash.0);
    }
    let fingerprint = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Samples { views: used_views, policy: identity.views.clone(), samples, fingerprint, decoder, added, skipped })
}

/// View `index` of an image with this content hash and size (width, height).
fn draw(views: &ViewIdentity, hash: &ContentHash, index: usize, [width, height]: [u32; 2]) -> View {
    draw_view(&views.policy, views.seed, hash, index as u16, width, height)
}

/// How many images of a cache a run can use, as far as the cache's records say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Usable {
    /// Images with rows. Of parts that are still to be built, all planned images are counted, unless `data.allow_incomplete` leaves these
    /// parts out.
    pub images: u64,
    /// Images that the build could not use.
    pub rejected: u64,
    /// Parts that are still to be built.
    pub unfinished_parts: u32,
}

/// Counts what [`join`] will find, from the records alone.
pub(crate) fn count(cache: &Cache, teachers: &[TeacherId], config: &recipe::Data) -> Result<Usable, Problem> {
    let identity = cache.identity();
    let views = u64::from(cache.identity().views.views);
    let mut usable = Usable { images: 0, rejected: 0, unfinished_parts: 0 };
    for (part, state) in (0..).zip(cache.part_states()?) {
        let complete = teachers.iter().all(|id| state.teachers.contains_key(id));
        if state.samples.is_none() || !complete {
            usable.unfinished_parts += 1;
            if config.allow_incomplete {
                continue;
            }
        }
        match state.samples {
            Some(commit) => {
                usable.images += commit.file.rows / views;
                usable.rejected += commit.rejects.rows;
            }
            None => {
                let range = identity.range(part);
                usable.images += range.end - range.start;
            }
        }
    }
    Ok(usable)
}

/// The images that the build could not use, part by part.
fn rejects(cache: &Cache) -> Result<Vec<Reject>, Problem> {
    let parts: Vec<u32> = (0..cache.identity().parts()).collect();
    let read = storage::in_parallel(&parts, |&part| cache.rejects(part), storage::is_url(cache.dir()));
    let rejects = read.into_iter().collect::<schemas::Result<Vec<_>>>()?;
    Ok(rejects.into_iter().flatten().collect())
}

/// Sets `source_idx` of `samples`; `keys` and `labels` are theirs, in the same order.
struct Finder<'a> {
    images: &'a SourceImages,
    samples: &'a mut [Sample],
    keys: &'a [String],
    labels: &'a [Option<i32>],
    /// Images of the cache without rows; empty if not all parts are used.
    rejects: &'a [Reject],
    progress: &'a (dyn Fn(u64, u64) + Sync),
}

impl Finder<'_> {
    /// Finds every image by its key, if the source has that key.
    fn by_key(&mut self) {
        for (sample, key) in self.samples.iter_mut().zip(self.keys) {
            sample.source_idx = self.images.source().find(key).unwrap_or(usize::MAX);
        }
    }

    /// Searches the images whose key is missing, by content, among those that no sample has found: files may have been moved or renamed.
    fn moved(&mut self) {
        let mut missing: BTreeMap<ContentHash, Vec<usize>> = BTreeMap::new();
        let mut taken = BTreeSet::new();
        for (idx, sample) in self.samples.iter().enumerate() {
            match sample.source_idx {
                usize::MAX => missing.entry(sample.content_hash).or_default().push(idx),
                at => drop(taken.insert(at)),
            }
        }
        if missing.is_empty() {
            return;
        }
        let free: Vec<usize> = (0..self.images.source().len()).filter(|at| !taken.contains(at)).collect();
        for (&at, hash) in free.iter().zip(self.images.hashes(&free, self.progress)) {
            let idxs = hash.and_then(|hash| missing.remove(&hash));
            for idx in idxs.into_iter().flatten() {
                self.samples[idx].source_idx = at;
            }
        }
    }

    /// Whether an image that was found by its key has changed its length: the cache has digests over the keys, labels and lengths of the images
    /// of every generation.
    fn lengths_differ(&self, identity: &CacheIdentity) -> bool {
        let source = self.images.source();
        let mut all: Vec<(u64, &str, Option<i32>, usize)> = Vec::new();
        for ((sample, key), label) in self.samples.iter().zip(self.keys).zip(self.labels) {
            all.push((sample.sample_id, key, *label, sample.source_idx));
        }
        for reject in self.rejects {
            // An image that could not be used may have been removed.
            let Some(at) = source.find(&reject.key) else {
                return false;
            };
            all.push((reject.sample_id, &reject.key, source.label(at), at));
        }
        all.sort_unstable_by_key(|(sample_id, ..)| *sample_id);
        (0..=identity.generations.len()).any(|generation| {
            let range = identity.generation_samples(generation);
            let of_generation = all.iter().filter(|(sample_id, ..)| range.contains(sample_id));
            let digest = source.digest(of_generation.map(|&(_, key, label, at)| (key, label, at)));
            digest != identity.generation_dataset(generation).digest
        })
    }

    /// Finds every image by its content, and prefers the one with its key if that has the content. Images that are nowhere count as lost.
    fn by_content(&mut self) {
        let contents = self.images.contents(self.progress);
        for sample in self.samples.iter_mut() {
            let hash = sample.content_hash;
            if contents.hashes.get(sample.source_idx) != Some(&Some(hash)) {
                sample.source_idx = contents.first.get(&hash).copied().unwrap_or(usize::MAX);
            }
        }
    }

    /// The samples whose images are nowhere.
    fn lost(&self) -> Vec<usize> {
        (0..self.samples.len()).filter(|&idx| self.samples[idx].source_idx == usize::MAX).collect()
    }

    /// The images of the data set that are not in the cache: by content if that is known, else by index. An image with the key of a lost one
    /// is not new, but changed.
    fn added(&self, lost: &[usize]) -> Vec<usize> {
        let source = self.images.source();
        let places = self.samples.iter().map(|sample| sample.source_idx);
        let by_name = |key: &str| source.find(key);
        let changed = lost.iter().filter_map(|&idx| by_name(&self.keys[idx]));
        let rejects = self.rejects.iter().filter_map(|reject| by_name(&reject.key));
        let places: BTreeSet<usize> = places.chain(changed).chain(rejects).collect();
        let samples = self.samples.iter().map(|sample| sample.content_hash);
        let rejects = self.rejects.iter().filter_map(|reject| reject.content_hash);
        let contents: BTreeSet<ContentHash> = samples.chain(rejects).collect();
        let is_known = |at: &usize| {
            let content = self.images.known_contents().and_then(|known| known.hashes[*at]);
            places.contains(at) || content.is_some_and(|content| contents.contains(&content))
        };
        (0..source.len()).filter(|at| !is_known(at)).collect()
    }
}

/// The parts that hold samples and every one of `teachers`; an error if other parts exist, unless `allow_incomplete`.
fn complete_parts(cache: &Cache, teachers: &[TeacherId], allow_incomplete: bool) -> Result<Vec<u32>, Problem> {
    let parts = cache.identity().parts();
    let mut complete = Vec::new();
    let mut missing = 0;
    let mut example = None;
    for (part, state) in (0..).zip(cache.part_states()?) {
        let lacks = match teachers.iter().find(|id| !state.teachers.contains_key(*id)) {
            _ if state.samples.is_none() => Some(("its samples".to_owned(), None)),
            Some(id) => Some((format!("the features of {id}"), Some(id))),
            None => None,
        };
        match lacks {
            None => complete.push(part),
            Some((what, teacher)) => {
                missing += 1;
                example.get_or_insert_with(|| (format!("part {part} lacks {what}"), cache.builder_of(part, teacher)));
            }
        }
    }
    match example {
        Some((example, builder)) if !allow_incomplete || complete.is_empty() => {
            Err(Problem::Incomplete { cache: cache.dir().into(), missing, parts, example, builder })
        }
        Some((example, _)) => {
            tracing::warn!("data.allow_incomplete: training without {missing} of {parts} parts ({example})");
            Ok(complete)
        }
        None => Ok(complete),
    }
}
