//! From a sample's number to its rows and pixels: read, hash, decode, draw the views, render each at every size wanted.
//!
//! An image is read and decoded once, however many views and teachers there are; teachers of the same input size share
//! the rendered pixels.

use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use images::{DecodeError, DeepImages, EncodeError, ImageSource, RgbImage};
use schemas::{ContentHash, Pack, Reject, SampleRow, SamplesPart, ViewIdentity};

use super::Build;
use super::timing::{Stage, Timings};

/// One sample to be decoded.
#[derive(Debug)]
pub(crate) struct Job {
    /// Its position in the order of the build.
    pub seq: u64,
    /// Its number in the data set's order.
    pub sample_id: u64,
    /// Its rows, when its part's samples are already committed: the image must still be the same.
    pub known: Option<Known>,
    /// Sides of the squares to render, in pixels, each once.
    pub sizes: Vec<u32>,
}

/// The committed rows of a sample.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    /// The part they are in.
    pub part: Arc<SamplesPart>,
    /// The first of them; the others follow.
    pub first_row: usize,
    /// How many they are.
    pub rows: usize,
}

impl Known {
    fn rows(&self) -> &[SampleRow] {
        &self.part.rows()[self.first_row..self.first_row + self.rows]
    }
}

/// One (sample, view) with its pixels.
#[derive(Debug)]
pub(crate) struct Row {
    /// What the samples file says.
    pub sample: SampleRow,
    /// One image per entry of [`Job::sizes`].
    pub pixels: Vec<RgbImage>,
}

/// What became of a sample.
#[derive(Debug)]
pub(crate) enum Decoded {
    /// It can.
    Rows {
        /// Its rows in order of view.
        rows: Vec<Row>,
        /// What is to be packed with the first of them, in a cache that packs images and does not have them yet.
        packed: Option<Vec<u8>>,
    },
    /// It cannot be used, and why.
    Rejected(Reject),
}

/// What decoding needs; shared by all workers.
pub(crate) struct Decoder<'a> {
    /// The data set; not needed for samples whose images are packed.
    pub source: Option<&'a ImageSource>,
    pub views: &'a ViewIdentity,
    pub pack: Pack,
    /// How files become pixels.
    pub decoder: images::Decoder,
    pub deep: &'a DeepImages,
    pub timings: &'a Timings,
}

impl Decoder<'_> {
    /// Of a build.
    pub(crate) fn new<'a>(build: &'a Build, timings: &'a Timings) -> Decoder<'a> {
        Decoder {
            source: build.source.as_ref(),
            views: &build.identity.views,
            pack: build.identity.pack,
            decoder: build.decoder,
            deep: &build.deep,
            timings,
        }
    }

    /// Does one job. A bad image is a result; an error is what stops the build: a source that cannot be read, or an image
    /// that is no longer the one of the committed rows.
    pub(crate) fn run(&self, job: Job) -> anyhow::Result<Decoded> {
        if self.pack != Pack::None
            && let Some(known) = &job.known
        {
            return self.packed(&job, known);
        }
        let index = usize::try_from(job.sample_id).context("sample number")?;
        let source = self.source.context("images that are not packed are read from --images")?;
        let key = source.key(index);
        let bytes = self.timings.time(Stage::Read, || source.read(index));
        let bytes = match bytes {
            Ok(bytes) => bytes,
            Err(error) if error.is_bad_record() => {
                return self.reject(&job, key, format!("bad-record: {error}"), None);
            }
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read image {key:?} (sample {})", job.sample_id));
            }
        };
        let content_hash = ContentHash::of(&bytes);
        if let Some(known) = job.known.as_ref().and_then(|known| known.rows().first()) {
            ensure!(
                known.content_hash == content_hash,
                "image {key:?} (sample {}) is not the one that was there when its samples were cached: content hash {} then, \
                 {content_hash} now. Either it has changed or images have changed places; put the source back as it was, or build a new \
                 cache",
                job.sample_id,
                known.content_hash,
            );
        }
        let decoded = self.timings.time(Stage::Decode, || self.decode_and_pack(key, bytes));
        let (image, packed) = match decoded {
            Ok(decoded) => decoded?,
            Err(error) => {
                return self.reject(&job, key, format!("{}: {error}", error.reason()), Some(content_hash));
            }
        };
        let rows = match &job.known {
            Some(known) => known.rows().to_vec(),
            None => {
                let image_hash = match self.pack {
                    // The very bytes that were hashed already.
                    Pack::Original => Some(content_hash),
                    Pack::None | Pack::Jpeg { .. } => packed.as_deref().map(ContentHash::of),
                };
                let label = source.label(index);
                let row = |view| {
                    let id = job.sample_id;
                    self.sample_row(id, key, &image, content_hash, label, image_hash, view)
                };
                (0..self.views.views).map(row).collect()
            }
        };
        Ok(Decoded::Rows { rows: self.render(&job, &image, rows)?, packed })
    }

    /// A sample whose image is in the cache.
    fn packed(&self, job: &Job, known: &Known) -> anyhow::Result<Decoded> {
        let bytes = self.timings.time(Stage::Read, || known.part.read_image(known.first_row))?;
        // Rows of view 0 carry an image where images are packed; reading the rows has checked it.
        let bytes = bytes.context("a packed image")?;
        let image = self.timings.time(Stage::Decode, || self.decoder.decode(&bytes));
        let image = image.with_context(|| {
            format!(
                "the image packed with sample {} of {} cannot be decoded",
                job.sample_id,
                known.part.path().display()
            )
        })?;
        Ok(Decoded::Rows { rows: self.render(job, &image, known.rows().to_vec())?, packed: None })
    }

    /// The pixels that teachers and student see, and the bytes to be packed. Whoever encodes an image looks at what came of it.
    #[allow(clippy::type_complexity, reason = "an image that cannot be decoded is a result, all else an error")]
    fn decode_and_pack(
        &self,
        key: &str,
        bytes: Vec<u8>,
    ) -> Result<anyhow::Result<(RgbImage, Option<Vec<u8>>)>, DecodeError> {
        let decoded = self.decoder.decode_noting(&bytes)?;
        self.deep.count(key, &decoded, &self.decoder);
        let image = decoded.image;
        Ok(match self.pack {
            Pack::None => Ok((image, None)),
            Pack::Original => Ok((image, Some(bytes))),
            Pack::Jpeg { short_side, quality } => {
                let packed = match images::to_jpeg(&image, short_side, quality) {
                    Ok(packed) => packed,
                    Err(EncodeError::TooLong { width, height }) => {
                        return Err(DecodeError::Unsupported {
                            format: "image",
                            detail: format!("{width} x {height} pixels, which no JPEG holds"),
                        });
                    }
                    Err(error) => return Ok(Err(error.into())),
                };
                Ok((self.decoder.decode(&packed)?, Some(packed)))
            }
        })
    }

    /// Every row at every size.
    fn render(&self, job: &Job, image: &RgbImage, rows: Vec<SampleRow>) -> anyhow::Result<Vec<Row>> {
        let key = rows.first().map_or("", |row| &row.key).to_owned();
        let render = |sample: SampleRow| -> anyhow::Result<Row> {
            let pixels = job.sizes.iter().map(|&size| images::render(image, &sample.view, size));
            let pixels = pixels.collect::<Result<_, _>>().with_context(|| format!("cannot render image {key:?}"))?;
            Ok(Row { sample, pixels })
        };
        self.timings.time(Stage::Render, || rows.into_iter().map(render).collect::<anyhow::Result<_>>())
    }

    #[allow(clippy::too_many_arguments, reason = "a row is made in one place")]
    fn sample_row(
        &self,
        sample_id: u64,
        key: &str,
        image: &RgbImage,
        content_hash: ContentHash,
        label: Option<i32>,
        image_hash: Option<ContentHash>,
        index: u16,
    ) -> SampleRow {
        let ViewIdentity { policy, seed, .. } = self.views;
        SampleRow {
            sample_id,
            view: images::draw_view(policy, *seed, &content_hash, index, image.width, image.height),
            key: key.to_owned(),
            content_hash,
            label,
            width: image.width,
            height: image.height,
            image_hash: image_hash.filter(|_| index == 0),
        }
    }

    /// A bad image of a new part is recorded, its reason beginning with a word to count by; one whose rows are committed has been good, so something else is wrong.
    fn reject(
        &self,
        job: &Job,
        key: &str,
        reason: String,
        content_hash: Option<ContentHash>,
    ) -> anyhow::Result<Decoded> {
        if job.known.is_some() {
            bail!(
                "image {key:?} (sample {}) was decoded when its samples were cached and is not now: {reason}",
                job.sample_id
            );
        }
        tracing::warn!(key, reason, "rejected");
        Ok(Decoded::Rejected(Reject { sample_id: job.sample_id, key: key.to_owned(), reason, content_hash }))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods, reason = "tests write throw-away files")]

    use schemas::ViewPolicy;

    use super::*;

    /// A disk or network that fails must not turn a good image into a reject for ever.
    #[test]
    fn a_file_that_cannot_be_read_stops_the_build_and_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("class/photo.png");
        std::fs::create_dir_all(dir.path().join("class")).unwrap();
        std::fs::write(&path, "not an image").unwrap();
        let source = ImageSource::open(dir.path().to_str().unwrap()).unwrap();
        let views = ViewIdentity { policy: ViewPolicy::Full, views: 1, seed: 0, filter: "bicubic".into() };
        let timings = Timings::default();
        let decoder = Decoder {
            source: Some(&source),
            views: &views,
            pack: Pack::None,
            decoder: images::Decoder::default(),
            deep: &DeepImages::default(),
            timings: &timings,
        };
        let job = || Job { seq: 0, sample_id: 0, known: None, sizes: vec![8] };
        assert!(
            matches!(decoder.run(job()), Ok(Decoded::Rejected(reject)) if reject.reason.starts_with("unknown-format: "))
        );
        std::fs::remove_file(&path).unwrap();
        let error = format!("{:#}", decoder.run(job()).unwrap_err());
        assert!(error.contains("class/photo.png") && error.contains("cannot read"), "{error}");
    }
}
