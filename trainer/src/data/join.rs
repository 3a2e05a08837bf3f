//! Which image belongs to which cached sample: by key first, by content for what was moved or renamed.

use std::collections::{BTreeMap, BTreeSet};

use images::{Decoder, Filter, draw_view};
use rayon::prelude::*;
use schemas::{Cache, ContentHash, SampleRow, TeacherId, View};
use sha2::{Digest, Sha256};

use super::Problem;
use super::images::Images;
use crate::config::{self, Missing};

/// Everything a run trains on, in the cache's order.
#[derive(Debug)]
pub struct Samples {
    /// Stored per image.
    stored_views: usize,
    /// Used by the run: the first of these.
    views: usize,
    samples: Vec<Sample>,
    rows: Vec<View>,
    fingerprint: String,
    decoder: Decoder,
}

/// One cached image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Its number in the data set the cache was built from.
    pub sample_id: u64,
    /// Of the original bytes; checked whenever they are read.
    pub content_hash: ContentHash,
    /// Its number in the data set of this run; of no meaning where images are packed.
    pub source_idx: usize,
    /// The cache's part it is in.
    pub part: u32,
    /// Row of its view 0 in that part; the other views follow.
    pub first_row: usize,
    /// Width after decoding, as the crop boxes assume it.
    pub width: u32,
    /// Height likewise.
    pub height: u32,
}

impl Sample {
    /// What is checked of the samples row of `view` when it is joined with a teacher's; its key and label are not kept.
    pub(crate) fn row(&self, view: &View) -> SampleRow {
        SampleRow {
            sample_id: self.sample_id,
            view: *view,
            key: String::new(),
            content_hash: self.content_hash,
            label: None,
            width: self.width,
            height: self.height,
            image_hash: None,
        }
    }
}

impl Samples {
    /// How many images an epoch has.
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// What image files become pixels by: the rules and the window that the cache's features belong to.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// Whether there is nothing to train on.
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// Views used per image, `data.views` or all that are stored. Epoch `e` uses view `e % views`.
    pub fn views(&self) -> usize {
        self.views
    }

    /// Sample `idx` and its view `view`.
    pub fn get(&self, idx: usize, view: usize) -> (&Sample, &View) {
        (
            &self.samples[idx],
            &self.rows[idx * self.stored_views + view],
        )
    }

    /// SHA-256 over every sample's id and content hash, in order: equal only for the same training set.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

/// Reads the cache's sample rows, checks them, and finds each one's image in `images`.
///
/// Packed images are where their rows are. In a data set, an image is looked up by its key; its bytes are compared with the row's hash when they are read. Images whose key is not
/// found are searched by content among the files that no key matched: those are read once, with `progress(done, of)`.
pub fn join(
    cache: &Cache,
    teachers: &[TeacherId],
    images: &Images,
    config: &config::Data,
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
            "the cache was built with earlier rules for images, and the student sees what its teachers saw: {rules}. If that concerns your \
             images, build the cache again"
        );
    }
    let views = usize::from(identity.views.views);
    let used_views = config.views.unwrap_or(views);
    if used_views > views {
        return Err(Problem::TooManyViews {
            wanted: used_views,
            stored: views,
        });
    }
    let parts = complete_parts(cache, teachers, config.allow_incomplete)?;

    // ---- rows of the cache
    let mut samples = Vec::new();
    let mut keys = Vec::new();
    let mut rows = Vec::new();
    for part in parts {
        let part_rows = cache.samples(part)?;
        for (i, of_sample) in part_rows.chunks(views).enumerate() {
            let first = &of_sample[0];
            for (index, row) in of_sample.iter().enumerate() {
                let drawn = draw_view(
                    &identity.views.policy,
                    identity.views.seed,
                    &row.content_hash,
                    index as u16,
                    row.width,
                    row.height,
                );
                if row.sample_id != first.sample_id || row.view != drawn || of_sample.len() != views
                {
                    return Err(Problem::View {
                        cache: cache.dir().into(),
                        part,
                        row: i * views + index,
                        key: row.key.clone(),
                    });
                }
                rows.push(row.view);
            }
            samples.push(Sample {
                sample_id: first.sample_id,
                content_hash: first.content_hash,
                source_idx: usize::MAX,
                part,
                first_row: i * views,
                width: first.width,
                height: first.height,
            });
            keys.push(first.key.clone());
        }
    }

    // ---- images by key
    let mut missing: BTreeMap<ContentHash, Vec<usize>> = BTreeMap::new();
    let mut taken = BTreeSet::new();
    if let Some(source) = images.source() {
        for (idx, (sample, key)) in samples.iter_mut().zip(&keys).enumerate() {
            match source.find(key) {
                Some(found) => {
                    sample.source_idx = found;
                    taken.insert(found);
                }
                None => missing.entry(sample.content_hash).or_default().push(idx),
            }
        }
    }

    // ---- the rest by content
    if let Some(source) = images.source().filter(|_| !missing.is_empty()) {
        let unclaimed: Vec<usize> = (0..source.len()).filter(|i| !taken.contains(i)).collect();
        let done = std::sync::atomic::AtomicU64::new(0);
        // A file that cannot be read is no match; what then stays missing is reported below, by name.
        let hashes: Vec<Option<ContentHash>> = unclaimed
            .par_iter()
            .map(|&i| {
                let hash = source.read(i).ok().map(|bytes| ContentHash::of(&bytes));
                progress(
                    1 + done.fetch_add(1, std::sync::atomic::Ordering::Relaxed),
                    unclaimed.len() as u64,
                );
                hash
            })
            .collect();
        for (source_idx, hash) in unclaimed.into_iter().zip(hashes) {
            for idx in hash
                .and_then(|hash| missing.remove(&hash))
                .unwrap_or_default()
            {
                samples[idx].source_idx = source_idx;
            }
        }
    }
    if !missing.is_empty() {
        let mut lost: Vec<usize> = missing.into_values().flatten().collect();
        lost.sort_unstable();
        let problem = Problem::MissingImages {
            count: lost.len(),
            of: samples.len(),
            first: lost.iter().take(10).map(|&idx| keys[idx].clone()).collect(),
        };
        match config.missing {
            Missing::Error => return Err(problem),
            Missing::Skip => {
                tracing::warn!("data.missing = \"skip\": training without them. {problem}")
            }
        }
        let mut kept_rows = Vec::with_capacity(rows.len());
        let found = |idx: usize| samples[idx].source_idx != usize::MAX;
        (0..samples.len())
            .filter(|&idx| found(idx))
            .for_each(|idx| kept_rows.extend(&rows[idx * views..(idx + 1) * views]));
        rows = kept_rows;
        samples.retain(|sample| sample.source_idx != usize::MAX);
    }

    let mut digest = Sha256::new();
    for sample in &samples {
        digest.update(sample.sample_id.to_le_bytes());
        digest.update(sample.content_hash.0);
    }
    let fingerprint = digest
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Ok(Samples {
        stored_views: views,
        views: used_views,
        samples,
        rows,
        fingerprint,
        decoder,
    })
}

/// The parts that hold samples and every one of `teachers`; an error for others unless `allow_incomplete`.
fn complete_parts(
    cache: &Cache,
    teachers: &[TeacherId],
    allow_incomplete: bool,
) -> Result<Vec<u32>, Problem> {
    let parts = cache.identity().plan.parts();
    let mut complete = Vec::new();
    let mut missing = 0;
    let mut example = None;
    for part in 0..parts {
        let state = cache.part_state(part)?;
        let lacks = match teachers.iter().find(|id| !state.teachers.contains_key(*id)) {
            _ if state.samples.is_none() => Some("its samples".to_owned()),
            Some(id) => Some(format!("the features of {id}")),
            None => None,
        };
        match lacks {
            None => complete.push(part),
            Some(what) => {
                missing += 1;
                example.get_or_insert_with(|| format!("part {part} lacks {what}"));
            }
        }
    }
    match example {
        Some(example) if !allow_incomplete || complete.is_empty() => Err(Problem::Incomplete {
            cache: cache.dir().into(),
            missing,
            parts,
            example,
        }),
        Some(example) => {
            tracing::warn!(
                "data.allow_incomplete: training without {missing} of {parts} parts ({example})"
            );
            Ok(complete)
        }
        None => Ok(complete),
    }
}
