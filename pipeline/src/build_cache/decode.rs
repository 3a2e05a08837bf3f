//! From a sample's number to its rows and pixels: read, hash, decode, draw the views, render each at every size wanted.
//!
//! An image is read and decoded once, however many views and teachers there are; teachers of the same input size share
//! the rendered pixels.

use anyhow::{Context, bail, ensure};
use images::{ImageSource, RgbImage};
use schemas::{ContentHash, Reject, SampleRow, ViewIdentity};

use super::timing::{Stage, Timings};

/// One sample to be decoded.
#[derive(Debug)]
pub(crate) struct Job {
    /// Its position in the order of the build.
    pub seq: u64,
    /// Its number in the data set's order.
    pub sample_id: u64,
    /// Its rows, when its part's samples are already committed: the image must still be the same.
    pub known: Option<Vec<SampleRow>>,
    /// Sides of the squares to render, in pixels, each once.
    pub sizes: Vec<u32>,
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
    /// Its rows in order of view.
    Rows(Vec<Row>),
    /// It cannot be used, and why.
    Rejected(Reject),
}

/// What decoding needs; shared by all workers.
pub(crate) struct Decoder<'a> {
    pub source: &'a ImageSource,
    pub views: &'a ViewIdentity,
    pub timings: &'a Timings,
}

impl Decoder<'_> {
    /// Does one job. A bad image is a result; an error is what stops the build: a source that cannot be read, or an image
    /// that is no longer the one of the committed rows.
    pub(crate) fn run(&self, job: Job) -> anyhow::Result<Decoded> {
        let index = usize::try_from(job.sample_id).context("sample number")?;
        let key = self.source.key(index);
        let bytes = self.timings.time(Stage::Read, || self.source.read(index));
        let bytes = match bytes {
            Ok(bytes) => bytes,
            Err(error) if error.is_bad_record() => {
                return self.reject(&job, key, format!("bad-record: {error}"), None);
            }
            Err(error) => {
                return Err(error).with_context(|| {
                    format!("cannot read image {key:?} (sample {})", job.sample_id)
                });
            }
        };
        let content_hash = ContentHash::of(&bytes);
        if let Some(known) = job.known.as_ref().and_then(|rows| rows.first()) {
            ensure!(
                known.content_hash == content_hash,
                "image {key:?} (sample {}) has changed since its samples were cached: content hash {} then, {content_hash} now; \
                 restore the image, or build a new cache",
                job.sample_id,
                known.content_hash,
            );
        }
        let image = match self.timings.time(Stage::Decode, || images::decode(&bytes)) {
            Ok(image) => image,
            Err(error) => {
                return self.reject(
                    &job,
                    key,
                    format!("{}: {error}", error.reason()),
                    Some(content_hash),
                );
            }
        };
        let rows = match job.known {
            Some(known) => known,
            None => (0..self.views.views)
                .map(|index| self.sample_row(job.sample_id, key, &image, content_hash, index))
                .collect(),
        };
        let render = |sample: SampleRow| -> anyhow::Result<Row> {
            let pixels = job
                .sizes
                .iter()
                .map(|&size| images::render(&image, &sample.view, size));
            let pixels = pixels
                .collect::<Result<_, _>>()
                .with_context(|| format!("cannot render image {key:?}"))?;
            Ok(Row { sample, pixels })
        };
        let rows = self.timings.time(Stage::Render, || {
            rows.into_iter().map(render).collect::<anyhow::Result<_>>()
        })?;
        Ok(Decoded::Rows(rows))
    }

    fn sample_row(
        &self,
        sample_id: u64,
        key: &str,
        image: &RgbImage,
        content_hash: ContentHash,
        index: u16,
    ) -> SampleRow {
        let ViewIdentity { policy, seed, .. } = self.views;
        SampleRow {
            sample_id,
            view: images::draw_view(
                policy,
                *seed,
                &content_hash,
                index,
                image.width,
                image.height,
            ),
            key: key.to_owned(),
            content_hash,
            label: self.source.label(sample_id as usize),
            width: image.width,
            height: image.height,
            image: None,
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
        Ok(Decoded::Rejected(Reject {
            sample_id: job.sample_id,
            key: key.to_owned(),
            reason,
            content_hash,
        }))
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
        let views = ViewIdentity {
            policy: ViewPolicy::Full,
            views: 1,
            seed: 0,
            filter: "bicubic".into(),
        };
        let timings = Timings::default();
        let decoder = Decoder {
            source: &source,
            views: &views,
            timings: &timings,
        };
        let job = || Job {
            seq: 0,
            sample_id: 0,
            known: None,
            sizes: vec![8],
        };
        assert!(
            matches!(decoder.run(job()), Ok(Decoded::Rejected(reject)) if reject.reason.starts_with("unknown-format: "))
        );
        std::fs::remove_file(&path).unwrap();
        let error = format!("{:#}", decoder.run(job()).unwrap_err());
        assert!(
            error.contains("class/photo.png") && error.contains("cannot read"),
            "{error}"
        );
    }
}
