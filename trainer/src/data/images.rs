//! Where a run's images come from: the data set the cache was built from, or the cache itself.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use images::ImageSource;
use rayon::prelude::*;
use schemas::{Cache, ContentHash, Pack, SamplesPart};

use super::Problem;
use super::sample::Sample;

/// The images of a run.
pub(crate) enum Images {
    /// A data set; its images are checked against the rows' content hashes.
    Source(Box<SourceImages>),
    /// The images packed into the cache, checked against the rows' image hashes.
    Packed(PackedImages),
}

impl Images {
    /// Opens what a run reads: `images` if given, else the images packed into the cache.
    ///
    /// # Errors
    /// [`Problem::NoPixels`] if there is neither; [`Problem::PackedPixels`] if `images` are given for a cache of re-encoded images, whose
    /// crops are those of the re-encoded images.
    pub(crate) fn open(cache: &Arc<Cache>, images: Option<&str>) -> anyhow::Result<Images> {
        let dir = || cache.dir().to_path_buf();
        match (images, cache.identity().pack) {
            (None, Pack::None) => Err(Problem::NoPixels { cache: dir() }.into()),
            (None, _) => Ok(Images::Packed(PackedImages::new(cache))),
            (Some(_), Pack::Jpeg { .. }) => Err(Problem::PackedPixels { cache: dir() }.into()),
            (Some(images), Pack::None | Pack::Original) => {
                let images = SourceImages::new(ImageSource::open(images)?);
                Ok(Images::Source(Box::new(images)))
            }
        }
    }

    /// The data set, if it is one.
    pub(crate) fn source(&self) -> Option<&SourceImages> {
        match self {
            Images::Source(images) => Some(images),
            Images::Packed(_) => None,
        }
    }

    /// Whether images come over a network.
    pub(crate) fn is_remote(&self) -> bool {
        match self {
            Images::Source(images) => images.source.is_remote(),
            Images::Packed(packed) => storage::is_url(packed.cache.dir()),
        }
    }

    /// Opens the packed images of these parts, many at a time, if each takes round trips. What fails is tried again when an image is read.
    pub(crate) fn open_ahead(&self, parts: &[u32]) {
        if let Images::Packed(packed) = self
            && self.is_remote()
        {
            storage::in_parallel(parts, |&part| drop(packed.part(part)), true);
        }
    }

    /// Begins to fetch a sample's image.
    pub(crate) fn prefetch(&self, sample: &Sample) {
        match self {
            Images::Source(images) => images.source.prefetch(sample.source_idx),
            Images::Packed(packed) => packed.prefetch(sample),
        }
    }

    /// The bytes of a sample's image, verified to be those that its features were computed from. `view` is for messages.
    pub(crate) fn read(&self, sample: &Sample, view: usize) -> Result<Vec<u8>, Problem> {
        let images = match self {
            Images::Packed(packed) => return packed.read(sample),
            Images::Source(images) => images,
        };
        let read = |at: usize| {
            let bytes = images.source.read(at);
            bytes.map_err(|e| self.problem(sample, view, e))
        };
        let bytes = read(sample.source_idx)?;
        let mut found = ContentHash::of(&bytes);
        if found == sample.content_hash {
            return Ok(bytes);
        }
        // The network may have damaged it.
        for _ in 0..storage::COPIES {
            if !images.source.forget(sample.source_idx) {
                break;
            }
            let bytes = read(sample.source_idx)?;
            found = ContentHash::of(&bytes);
            if found == sample.content_hash {
                return Ok(bytes);
            }
        }
        // Another image has this name. Search the other images for the content before reporting a change.
        let contents = images.contents(&log_search);
        if let Some(&at) = contents.first.get(&sample.content_hash) {
            let bytes = read(at)?;
            if ContentHash::of(&bytes) == sample.content_hash {
                return Ok(bytes);
            }
        }
        Err(Problem::Changed {
            key: images.source.key(sample.source_idx).to_owned(),
            part: sample.part,
            row: sample.row(view),
            expected: sample.content_hash.to_string(),
            found: found.to_string(),
        })
    }

    /// The problem that a sample's image cannot be used, with its cause.
    pub(crate) fn problem(
        &self,
        sample: &Sample,
        view: usize,
        cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Problem {
        let key = match self {
            Images::Source(images) => images.source.key(sample.source_idx).to_owned(),
            Images::Packed(_) => format!("of sample {}", sample.sample_id),
        };
        Problem::Image { key, part: sample.part, row: sample.row(view), cause: cause.into() }
    }
}

/// A data set, with the content hashes of its images once they have been needed.
pub(crate) struct SourceImages {
    source: ImageSource,
    contents: OnceLock<Contents>,
}

/// Content hashes of the images of a data set.
pub(crate) struct Contents {
    /// The hash of every image, by index; `None` for one that cannot be read.
    pub hashes: Vec<Option<ContentHash>>,
    /// The index of the image with a hash; of copies, the first.
    pub first: BTreeMap<ContentHash, usize>,
}

impl SourceImages {
    fn new(source: ImageSource) -> SourceImages {
        SourceImages { source, contents: OnceLock::new() }
    }

    pub(crate) fn source(&self) -> &ImageSource {
        &self.source
    }

    /// The content hashes of all images. The first call reads the whole data set and reports `progress(done, total)`; other threads wait for
    /// it.
    pub(crate) fn contents(&self, progress: &(dyn Fn(u64, u64) + Sync)) -> &Contents {
        self.contents.get_or_init(|| {
            tracing::info!("reading all {} images of --images once, to join them by content", self.source.len());
            let all: Vec<usize> = (0..self.source.len()).collect();
            let hashes = self.hashes(&all, progress);
            let mut first = BTreeMap::new();
            for (at, hash) in hashes.iter().enumerate() {
                if let Some(hash) = hash {
                    first.entry(*hash).or_insert(at);
                }
            }
            Contents { hashes, first }
        })
    }

    /// The content hashes, if they have been computed already.
    pub(super) fn known_contents(&self) -> Option<&Contents> {
        self.contents.get()
    }

    /// The content hash of each of these images, on all threads; `None` for one that cannot be read.
    pub(super) fn hashes(&self, images: &[usize], progress: &(dyn Fn(u64, u64) + Sync)) -> Vec<Option<ContentHash>> {
        let done = AtomicU64::new(0);
        let hash = |&at: &usize| {
            let bytes = self.source.read(at).ok();
            progress(1 + done.fetch_add(1, Ordering::Relaxed), images.len() as u64);
            bytes.map(|bytes| ContentHash::of(&bytes))
        };
        images.par_iter().map(hash).collect()
    }
}

/// Logs the progress of a search by content, at every tenth of the way.
pub(crate) fn log_search(done: u64, total: u64) {
    if done * 10 / total != (done - 1) * 10 / total {
        tracing::info!("searching images by content: {done} of {total} read");
    }
}

/// The images in a cache's samples files. A part's file is opened when first used and stays open.
pub(crate) struct PackedImages {
    cache: Arc<Cache>,
    parts: Vec<Mutex<Option<Arc<SamplesPart>>>>,
}

impl PackedImages {
    fn new(cache: &Arc<Cache>) -> PackedImages {
        let parts = cache.identity().parts();
        PackedImages { cache: Arc::clone(cache), parts: (0..parts).map(|_| Mutex::new(None)).collect() }
    }

    fn part(&self, part: u32) -> Result<Arc<SamplesPart>, Problem> {
        // A panic elsewhere leaves the slot as it was, empty or filled.
        let mut slot = self.parts[part as usize].lock().unwrap_or_else(PoisonError::into_inner);
        Ok(match slot.as_ref() {
            Some(open) => Arc::clone(open),
            None => Arc::clone(slot.insert(Arc::new(self.cache.samples_part(part)?))),
        })
    }

    /// Begins to fetch an image of a part that is open.
    fn prefetch(&self, sample: &Sample) {
        let open = self.parts[sample.part as usize].lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(part) = open {
            part.prefetch_image(sample.row(0));
        }
    }

    fn read(&self, sample: &Sample) -> Result<Vec<u8>, Problem> {
        let part = self.part(sample.part)?;
        // Rows of view 0 carry images in a cache that packs them; the reader has checked it.
        let image = part.read_image(sample.row(0))?;
        image.ok_or_else(|| Problem::NoPixels { cache: self.cache.dir().to_path_buf() })
    }
}

impl fmt::Debug for Images {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, place): (_, &Path) = match self {
            Images::Source(_) => ("Source", Path::new("")),
            Images::Packed(packed) => ("Packed", packed.cache.dir()),
        };
        f.debug_tuple(kind).field(&place).finish()
    }
}
