//! Where a run's images come from: the data set the cache was built from, or the cache itself.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use images::ImageSource;
use schemas::{Cache, ContentHash, Pack, SamplesPart};

use super::Problem;
use super::join::Sample;

/// The images of a run.
pub enum Images {
    /// A data set; its images are checked against the rows' content hashes.
    Source(ImageSource),
    /// Those packed into the cache, checked against the rows' image hashes.
    Packed(PackedImages),
}

impl Images {
    /// Opens what a run reads: `images` if given, else the images packed into the cache.
    ///
    /// # Errors
    /// [`Problem::NoPixels`] for neither; [`Problem::PackedPixels`] for both where they differ: the crops of a cache with
    /// re-encoded images are of those.
    pub fn open(cache: &Arc<Cache>, images: Option<&str>) -> anyhow::Result<Images> {
        let dir = || cache.dir().to_path_buf();
        match (images, cache.identity().pack) {
            (None, Pack::None) => Err(Problem::NoPixels { cache: dir() }.into()),
            (None, _) => Ok(Images::Packed(PackedImages::new(cache))),
            (Some(_), Pack::Jpeg { .. }) => Err(Problem::PackedPixels { cache: dir() }.into()),
            (Some(images), Pack::None | Pack::Original) => {
                Ok(Images::Source(ImageSource::open(images)?))
            }
        }
    }

    /// The data set, if it is one.
    pub fn source(&self) -> Option<&ImageSource> {
        match self {
            Images::Source(source) => Some(source),
            Images::Packed(_) => None,
        }
    }

    /// The bytes of a sample's image, found to be those its features were made from. `view` is for messages.
    pub fn read(&self, sample: &Sample, view: usize) -> Result<Vec<u8>, Problem> {
        let source = match self {
            Images::Packed(packed) => return packed.read(sample),
            Images::Source(source) => source,
        };
        let (part, row) = (sample.part, sample.first_row + view);
        let bytes = source
            .read(sample.source_idx)
            .map_err(|e| self.problem(sample, view, e))?;
        let found = ContentHash::of(&bytes);
        if found == sample.content_hash {
            return Ok(bytes);
        }
        Err(Problem::Changed {
            key: source.key(sample.source_idx).to_owned(),
            part,
            row,
            expected: sample.content_hash.to_string(),
            found: found.to_string(),
        })
    }

    /// That a sample's image cannot be used, and why.
    pub fn problem(
        &self,
        sample: &Sample,
        view: usize,
        cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Problem {
        let key = match self {
            Images::Source(source) => source.key(sample.source_idx).to_owned(),
            Images::Packed(_) => format!("of sample {}", sample.sample_id),
        };
        Problem::Image {
            key,
            part: sample.part,
            row: sample.first_row + view,
            cause: cause.into(),
        }
    }
}

/// The images in a cache's samples files. A part's file is opened when first used and stays open.
pub struct PackedImages {
    cache: Arc<Cache>,
    parts: Vec<Mutex<Option<Arc<SamplesPart>>>>,
}

impl PackedImages {
    fn new(cache: &Arc<Cache>) -> PackedImages {
        let parts = cache.identity().plan.parts();
        PackedImages {
            cache: Arc::clone(cache),
            parts: (0..parts).map(|_| Mutex::new(None)).collect(),
        }
    }

    fn read(&self, sample: &Sample) -> Result<Vec<u8>, Problem> {
        let part = {
            // A panic elsewhere leaves the slot as it was, empty or filled.
            let mut slot = self.parts[sample.part as usize]
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            match slot.as_ref() {
                Some(open) => Arc::clone(open),
                None => Arc::clone(slot.insert(Arc::new(self.cache.samples_part(sample.part)?))),
            }
        };
        // Rows of view 0 carry images in a cache that packs them; the reader has checked it.
        let image = part.read_image(sample.first_row)?;
        image.ok_or_else(|| Problem::NoPixels {
            cache: self.cache.dir().to_path_buf(),
        })
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
