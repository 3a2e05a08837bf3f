//! From samples to their rows and pixels: read, hash, decode, draw the views, render each at every size wanted.
//!
//! An image is read and decoded once, however many views and teachers there are; teachers of the same input size share
//! the rendered pixels.

use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::Context;
use images::{DecodeError, DeepImages, EncodeError, ImageSource, RgbImage};
use schemas::{CacheIdentity, ContentHash, Pack, Reject, SampleRow, SamplesPart, TeacherIdentity, ViewIdentity};

use super::contents::Contents;
use super::network::Pixels;
use super::parallel::Stop;
use super::reuse::Reuse;
use super::timing::{Stage, Timings};

/// The word that the reason begins with for which an image is rejected whose bytes an earlier one has.
pub(crate) const DUPLICATE: &str = "duplicate";

/// An image that is not the one of its committed rows any more, or cannot be used any more.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct OtherImage(String);

/// The committed rows of a sample.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CommittedRows<'a> {
    /// The part that they are in.
    part: &'a SamplesPart,
    /// The first of them.
    first_row: usize,
    rows: &'a [SampleRow],
}

impl<'a> CommittedRows<'a> {
    /// The first of them, as a row of its part.
    pub(crate) fn first_row(&self) -> usize {
        self.first_row
    }

    /// The rows of a sample; nothing if it was rejected.
    pub(crate) fn of_sample(part: &'a SamplesPart, sample_id: u64) -> Option<CommittedRows<'a>> {
        let first_row = part.rows().partition_point(|row| row.sample_id < sample_id);
        let rows = &part.rows()[first_row..];
        let rows = &rows[..rows.partition_point(|row| row.sample_id == sample_id)];
        (!rows.is_empty()).then_some(CommittedRows { part, first_row, rows })
    }
}

/// Result of decoding one sample.
#[derive(Debug)]
enum Decoded {
    /// Decoded; its rows in order of view. An image that nobody has to see is not decoded.
    Image { image: Option<RgbImage>, rows: Vec<SampleRow>, packed: Option<Vec<u8>> },
    /// It cannot be used, and why.
    Rejected(Reject),
}

/// Samples decoded and rendered, as far as they can be used.
#[derive(Debug, Default)]
pub(crate) struct DecodedSamples {
    /// In order of sample and view.
    pub rows: Vec<SampleRow>,
    /// The image to be packed with each row: one with view 0, in a cache that packs images and does not have them yet.
    pub packed: Vec<Option<Vec<u8>>>,
    /// An image for each row in `rendered` and each size.
    pub pixels: Pixels,
    /// The rows that have pixels, ascending.
    pub rendered: Vec<usize>,
    pub rejects: Vec<Reject>,
}

/// What decoding needs; shared by all threads.
pub(crate) struct Decoder<'a> {
    /// The data set; not needed for samples whose images are packed.
    pub source: Option<&'a ImageSource>,
    pub views: &'a ViewIdentity,
    pub pack: Pack,
    /// How files become pixels.
    pub decoder: images::Decoder,
    pub deep: &'a DeepImages,
    /// Where each content is stored once: which sample has it.
    pub contents: Option<&'a Contents>,
    /// A cache to take features over from, and the teachers that want them: an image whose features it has is not decoded.
    pub reuse: Option<(&'a Reuse, &'a [&'a TeacherIdentity])>,
    pub timings: &'a Timings,
}

impl Decoder<'_> {
    /// Decodes as the cache with this identity wants it.
    pub(crate) fn new<'a>(
        source: Option<&'a ImageSource>,
        identity: &'a CacheIdentity,
        decoder: images::Decoder,
        deep: &'a DeepImages,
        timings: &'a Timings,
    ) -> Decoder<'a> {
        Decoder {
            source,
            views: &identity.views,
            pack: identity.pack,
            decoder,
            deep,
            contents: None,
            reuse: None,
            timings,
        }
    }

    /// Decodes samples in order and renders the first `views` views of each at every size (sides of squares, in pixels).
    ///
    /// # Errors
    /// What stops the build: a source that cannot be read, or an image that is no longer the one of the committed rows. A bad image is a
    /// reject.
    pub(crate) fn samples<'a>(
        &self,
        samples: impl IntoIterator<Item = (u64, Option<CommittedRows<'a>>)>,
        views: u16,
        sizes: &[u32],
        stop: &Stop,
    ) -> anyhow::Result<DecodedSamples> {
        let mut all = DecodedSamples::default();
        let samples: Vec<_> = samples.into_iter().collect();
        self.prefetch(&samples);
        for (sample_id, committed) in samples {
            stop.check()?;
            match self.sample(sample_id, committed)? {
                Decoded::Rejected(reject) => all.rejects.push(reject),
                Decoded::Image { image, mut rows, packed } => {
                    rows.truncate(views.into());
                    if let Some(image) = image {
                        self.timings.time(Stage::Render, || render(&image, &rows, sizes, &mut all.pixels))?;
                        all.rendered.extend(all.rows.len()..all.rows.len() + rows.len());
                    }
                    all.packed.push(packed);
                    all.rows.extend(rows);
                    all.packed.resize(all.rows.len(), None);
                }
            }
        }
        Ok(all)
    }

    /// Begins to fetch the images of a batch, where each would take a round trip.
    fn prefetch(&self, samples: &[(u64, Option<CommittedRows<'_>>)]) {
        for (sample_id, committed) in samples {
            match (committed, self.source) {
                (Some(CommittedRows { part, first_row, .. }), _) if self.pack != Pack::None => {
                    part.prefetch_image(*first_row)
                }
                (_, Some(source)) if source.is_remote() => {
                    source.prefetch(usize::try_from(*sample_id).unwrap_or(usize::MAX));
                }
                _ => {}
            }
        }
    }

    fn sample(&self, sample_id: u64, committed: Option<CommittedRows<'_>>) -> anyhow::Result<Decoded> {
        if self.pack != Pack::None
            && let Some(committed) = committed
        {
            return self.packed(sample_id, committed);
        }
        let index = usize::try_from(sample_id).context("sample number")?;
        let reject = |key, reason, content_hash| reject(sample_id, committed, key, reason, content_hash);
        let source = self.source.context("images that are not packed are read from --images")?;
        let key = source.key(index);
        let bytes = self.timings.time(Stage::Read, || source.read(index));
        let bytes = match bytes {
            Ok(bytes) => bytes,
            Err(error) if error.is_bad_record() => {
                return reject(key, format!("bad-record: {error}"), None);
            }
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read image {key:?} (sample {sample_id})"));
            }
        };
        let mut bytes = bytes;
        let mut content_hash = ContentHash::of(&bytes);
        if let Some(known) = committed.and_then(|committed| committed.rows.first()) {
            // The network may have damaged it.
            for _ in 0..storage::COPIES {
                if known.content_hash == content_hash || !source.forget(index) {
                    break;
                }
                bytes =
                    source.read(index).with_context(|| format!("cannot read image {key:?} (sample {sample_id})"))?;
                content_hash = ContentHash::of(&bytes);
            }
            if known.content_hash != content_hash {
                return Err(OtherImage(format!(
                    "image {key:?} (sample {sample_id}) is not the one that was there when its samples were cached: content hash {} then, \
                     {content_hash} now. Either it has changed or images have changed places; put the source back as it was, or build a new \
                     cache",
                    known.content_hash,
                ))
                .into());
            }
        }
        if committed.is_none()
            && let Some(contents) = self.contents
            && let Some(original) = contents.original(sample_id, &content_hash)?
        {
            let key = key.to_owned();
            let reason =
                format!("{DUPLICATE}: the same bytes as sample {original} ({:?})", source.key(original as usize));
            return Ok(Decoded::Rejected(Reject { sample_id, key, reason, content_hash: Some(content_hash) }));
        }
        let rows_of = |[width, height]: [u32; 2], packed: Option<&[u8]>| -> Vec<SampleRow> {
            let image_hash = match self.pack {
                // The very bytes that were hashed already.
                Pack::Original => Some(content_hash),
                Pack::None | Pack::Jpeg { .. } => packed.map(ContentHash::of),
            };
            let ViewIdentity { policy, seed, views, .. } = self.views;
            let row = |view| SampleRow {
                sample_id,
                view: images::draw_view(policy, *seed, &content_hash, view, width, height),
                key: key.to_owned(),
                content_hash,
                label: source.label(index),
                width,
                height,
                image_hash: image_hash.filter(|_| view == 0),
            };
            (0..*views).map(row).collect()
        };
        if committed.is_none()
            && self.pack == Pack::None
            && let Some((reuse, teachers)) = self.reuse
            && let Some(size) = reuse.size(&content_hash)
        {
            let rows = rows_of(size, None);
            if reuse.has_all(teachers, &rows)? {
                return Ok(Decoded::Image { image: None, rows, packed: None });
            }
        }
        let decoded = self.timings.time(Stage::Decode, || self.decode_and_pack(key, bytes));
        let (image, packed) = match decoded {
            Ok(decoded) => decoded?,
            Err(error) => {
                return reject(key, format!("{}: {error}", error.reason()), Some(content_hash));
            }
        };
        let rows = match committed {
            Some(committed) => committed.rows.to_vec(),
            None => rows_of([image.width, image.height], packed.as_deref()),
        };
        Ok(Decoded::Image { image: Some(image), rows, packed })
    }

    /// A sample whose image is in the cache.
    fn packed(&self, sample_id: u64, committed: CommittedRows<'_>) -> anyhow::Result<Decoded> {
        let CommittedRows { part, first_row, rows } = committed;
        let bytes = self.timings.time(Stage::Read, || part.read_image(first_row))?;
        // Rows of view 0 carry an image where images are packed; reading the rows has checked it.
        let bytes = bytes.context("a packed image")?;
        let image = self.timings.time(Stage::Decode, || self.decoder.decode(&bytes));
        let image = image.with_context(|| {
            format!("the image packed with sample {sample_id} of {} cannot be decoded", part.path().display())
        })?;
        Ok(Decoded::Image { image: Some(image), rows: rows.to_vec(), packed: None })
    }

    /// The pixels that teachers and student see, and the bytes to be packed. An image that is packed as a JPEG is decoded again.
    #[allow(clippy::type_complexity, reason = "an image that cannot be decoded is a result, all else an error")]
    fn decode_and_pack(
        &self,
        key: &str,
        bytes: Vec<u8>,
    ) -> Result<anyhow::Result<(RgbImage, Option<Vec<u8>>)>, DecodeError> {
        // A panic of a decoder is a bug of it, and no reason to lose the other images.
        let decode = AssertUnwindSafe(|| self.decoder.decode_noting(&bytes));
        let decoded = catch_unwind(decode).unwrap_or_else(|_| {
            Err(DecodeError::Unsupported { format: "image", detail: "its decoder panicked, which is a bug".to_owned() })
        })?;
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
}

/// Adds every row at every size.
fn render(image: &RgbImage, rows: &[SampleRow], sizes: &[u32], pixels: &mut Pixels) -> anyhow::Result<()> {
    for &size in sizes {
        let of_size = pixels.entry(size).or_default();
        for row in rows {
            let rendered = images::render(image, &row.view, size);
            of_size.push(rendered.with_context(|| format!("cannot render image {:?}", row.key))?);
        }
    }
    Ok(())
}

/// A bad image of a new part is recorded, its reason beginning with a word to count by. One whose rows are committed has been good, so
/// something else is wrong.
fn reject(
    sample_id: u64,
    committed: Option<CommittedRows<'_>>,
    key: &str,
    reason: String,
    content_hash: Option<ContentHash>,
) -> anyhow::Result<Decoded> {
    if committed.is_some() {
        let problem = format!(
            "image {key:?} (sample {sample_id}) was decoded when its samples were cached and is not now: {reason}"
        );
        return Err(OtherImage(problem).into());
    }
    tracing::warn!(key, reason, "rejected");
    Ok(Decoded::Rejected(Reject { sample_id, key: key.to_owned(), reason, content_hash }))
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
            contents: None,
            reuse: None,
            timings: &timings,
        };
        let decode = || decoder.samples([(0, None)], 1, &[8], &Stop::default());
        let rejects = decode().unwrap().rejects;
        assert!(matches!(&rejects[..], [reject] if reject.reason.starts_with("unknown-format: ")));
        std::fs::remove_file(&path).unwrap();
        let error = format!("{:#}", decode().unwrap_err());
        assert!(error.contains("class/photo.png") && error.contains("cannot read"), "{error}");
    }
}
