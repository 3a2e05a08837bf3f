//! Collections of image files, in one fixed order.
//!
//! | given | kind | key of an image | label | order |
//! |---|---|---|---|---|
//! | a folder | `folder` | its path below the folder, with `/` | index of its first-level folder among all such, sorted | by key, bytewise |
//! | `*.tar`: one, a glob, braces, or a folder of them | `tar` | `shard.tar/` + the member's path up to the last dot of its name | the number or name in the member of the same key ending in `.cls` | by shard, then by position |
//! | `*.parquet`: one, a glob, braces, or a folder of them | `parquet` | `file.parquet/` + the row's number | a column of numbers or names | by file, then by row |
//!
//! If shards of one name in several folders hold images with equal keys, the keys of these shards begin with the shard's path below the
//! longest folder that all shards have in common. `::` with a pattern after a folder or tar, or with a column's name after Parquet
//! files, selects the images. The [`Findings`] of a source list what it holds besides its images.
//!
//! A sample's number in this order is its `sample_id`. Opening reads names, lengths and labels, but no image. Images are read by position,
//! from any number of threads at once.

mod files;
mod findings;
mod folder;
mod labels;
mod parquet;
mod spec;
mod splits;
mod tar;

use std::fmt;
use std::ops::Range;
use std::path::Path;

use glob::Pattern;
use schemas::DatasetIdentity;
use sha2::{Digest, Sha256};

pub use self::findings::{Findings, Skipped};
pub use self::spec::lies_in;
use crate::decode::{MAX_FILE_BYTES, READABLE_EXTENSIONS};
use crate::{DecodeError, Decoder, DeepImages, RgbImage, SourceError};

/// Images by number, with their keys and labels.
pub struct ImageSource {
    samples: Vec<Sample>,
    /// Numbers of the samples, sorted by key.
    by_key: Vec<usize>,
    label_names: Vec<String>,
    findings: Findings,
    decoder: Decoder,
    deep: DeepImages,
    store: Store,
    /// Number in the store of each sample, where the order is not the store's; `None` for an image that is not there.
    order: Option<Vec<Option<usize>>>,
}

/// An image's place in an order that somebody else lays down: a cache that was built from the source when it held less.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// Its key in that order.
    pub key: String,
    /// Its label, an index into the names given with the order.
    pub label: Option<i32>,
    /// Its number in the source; `None` if the source does not have it.
    pub index: Option<usize>,
}

/// The facts about an image that are known before it is read.
struct Sample {
    /// Boxed to save memory, because a source has millions of keys.
    key: Box<str>,
    label: Option<i32>,
    /// The length that is part of the identity: see [`ImageSource::identity`].
    bytes: u64,
}

/// The samples of an opened source in order, and the names of their labels if it has any.
struct Listing {
    samples: Vec<Sample>,
    label_names: Vec<String>,
    findings: Findings,
    store: Store,
}

/// Storage of the images' bytes.
enum Store {
    Folder(folder::Folder),
    Tar(tar::Shards),
    Parquet(parquet::Tables),
}

impl ImageSource {
    /// Opens a folder of class folders, WebDataset tar shards, or Parquet files in the Hugging Face layout.
    ///
    /// `spec` is the path of a folder or file, a glob (`shards/*.tar`), or a path with braces (`shards/train-{000..099}.tar`,
    /// `{train,val}.parquet`). A folder of files without subfolders is opened as shards if it has `.parquet` or `.tar` files and
    /// no images.
    ///
    /// Warns of skipped pictures, and of the other notes in its [`findings`](Self::findings).
    ///
    /// Fails if a file is missing, unreadable or malformed, if two images have one key, if it has several splits and none was
    /// chosen, and if it holds no image.
    pub fn open(spec: &str) -> Result<Self, SourceError> {
        let (resolved, beside, within) = spec::resolve(spec)?;
        // After a folder, the whole text is a pattern: class folders may be called `label=cat`.
        let asks_for_labels =
            matches!(resolved, spec::Resolved::Folder(_)) && within.is_some_and(|within| within.starts_with("label="));
        let (within, label) = match (&resolved, within) {
            (spec::Resolved::Folder(_), within) => (within, None),
            (_, within) => spec::split_label(within),
        };
        let pattern = within
            .filter(|_| !matches!(resolved, spec::Resolved::Parquet(_)))
            .map(|within| Pattern::new(within.strip_prefix("./").unwrap_or(within)))
            .transpose()
            .map_err(|e| SourceError::BadPattern { spec: spec.to_owned(), detail: e.to_string() })?;
        let Listing { samples, label_names, mut findings, store } = match resolved {
            spec::Resolved::Folder(root) => folder::open(&root, pattern.as_ref())?,
            spec::Resolved::Tar(shards) => tar::open(shards, pattern.as_ref(), label)?,
            spec::Resolved::Parquet(files) => parquet::open(files, within, label)?,
        };
        findings.merge(beside);
        if let Some(note) = labels::near_twins(&label_names) {
            findings.note(note);
        }
        if samples.is_empty() {
            let mut found = findings.instead_of_images(spec);
            if asks_for_labels {
                found += ". `::label=` is for shards: the labels of a folder are the names of its subfolders";
            }
            return Err(SourceError::NoImages {
                spec: spec.to_owned(),
                extensions: READABLE_EXTENSIONS.join(", "),
                found,
            });
        }
        // Warnings are printed here so that no command forgets them.
        for warning in findings.warnings(spec) {
            tracing::warn!("{warning}");
        }
        let mut by_key: Vec<usize> = (0..samples.len()).collect();
        by_key.sort_unstable_by(|&a, &b| samples[a].key.cmp(&samples[b].key).then(a.cmp(&b)));
        if let Some(twins) = by_key.windows(2).find(|pair| samples[pair[0]].key == samples[pair[1]].key) {
            let [first, second] = [twins[0], twins[1]].map(|i| store.place(i, &samples[i].key));
            return Err(SourceError::DuplicateKey { key: samples[twins[0]].key.to_string(), first, second });
        }
        Ok(Self {
            samples,
            by_key,
            label_names,
            findings,
            decoder: Decoder::default(),
            deep: DeepImages::default(),
            store,
            order: None,
        })
    }

    /// This source with another decoder: that of the cache on which a model was trained.
    pub fn decoded_by(mut self, decoder: Decoder) -> Self {
        self.decoder = decoder;
        self
    }

    /// The decoder of its images.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// Decodes the bytes of image `index` from [`read`](Self::read). Warns at the first image for which the depth window is wrong.
    pub fn decode(&self, index: usize, bytes: &[u8]) -> Result<RgbImage, DecodeError> {
        let decoded = self.decoder.decode_noting(bytes)?;
        self.deep.count(self.key(index), &decoded, &self.decoder);
        Ok(decoded.image)
    }

    /// Skipped pictures of the source and notes for the user.
    pub fn findings(&self) -> &Findings {
        &self.findings
    }

    /// The first `samples` of this source. Its identity covers only these; names of labels stay.
    pub fn limit(mut self, samples: u64) -> Self {
        self.samples.truncate(usize::try_from(samples).unwrap_or(usize::MAX));
        let kept = self.samples.len();
        self.by_key.retain(|&i| i < kept);
        self
    }

    /// The images of this source in another order, with these labels. An image that the source does not have keeps its place; reading it is
    /// an error.
    pub fn arranged(self, places: Vec<Placed>, label_names: Vec<String>) -> Self {
        let order = places.iter().map(|place| place.index.and_then(|index| self.stored(index))).collect();
        let bytes = |place: &Placed| place.index.map_or(0, |index| self.samples[index].bytes);
        let samples: Vec<Sample> = places
            .iter()
            .map(|place| Sample { key: place.key.as_str().into(), label: place.label, bytes: bytes(place) })
            .collect();
        let mut by_key: Vec<usize> = (0..samples.len()).collect();
        by_key.sort_unstable_by(|&a, &b| samples[a].key.cmp(&samples[b].key).then(a.cmp(&b)));
        Self { samples, by_key, label_names, order: Some(order), ..self }
    }

    /// The number in the store.
    fn stored(&self, index: usize) -> Option<usize> {
        self.order.as_ref().map_or(Some(index), |order| order[index])
    }

    /// Whether an image is there: always, but in a source that was [`arranged`](Self::arranged).
    pub fn has(&self, index: usize) -> bool {
        self.stored(index).is_some()
    }

    /// The same as [`identity`](Self::identity) for a range of the samples.
    pub fn identity_of(&self, range: Range<usize>) -> DatasetIdentity {
        DatasetIdentity {
            kind: self.kind().to_owned(),
            samples: range.len() as u64,
            digest: self.digest(range.map(|index| (self.key(index), self.label(index), index))),
        }
    }

    /// `folder`, `tar` or `parquet`.
    pub fn kind(&self) -> &'static str {
        match self.store {
            Store::Folder(_) => "folder",
            Store::Tar(_) => "tar",
            Store::Parquet(_) => "parquet",
        }
    }

    /// Number of tar or Parquet files; 0 for a folder.
    pub fn files(&self) -> usize {
        match &self.store {
            Store::Folder(_) => 0,
            Store::Tar(shards) => shards.files(),
            Store::Parquet(tables) => tables.files(),
        }
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Whether the source holds no image; only a [`limit`](Self::limit) of 0 causes that.
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// Name of an image, unique in the source. Panics from [`len`](Self::len) on, as indexing a slice does.
    pub fn key(&self, index: usize) -> &str {
        &self.samples[index].key
    }

    /// Label of an image, 0 or above; an index into [`label_names`](Self::label_names) where there are any.
    pub fn label(&self, index: usize) -> Option<i32> {
        self.samples[index].label
    }

    /// Names of the labels: first-level folders, the names in a Hugging Face `ClassLabel`, or those in `.cls` members or in
    /// a label column. Empty if labels are numbers.
    pub fn label_names(&self) -> &[String] {
        &self.label_names
    }

    /// A fingerprint over every sample in order: the key, the label, and the length in bytes.
    ///
    /// It reads no image, so it does not detect a change that keeps all lengths; the content hash of each row does. A row of Parquet, whose
    /// length is unknown until it is read, counts with the uncompressed size of its row group's image column.
    pub fn identity(&self) -> DatasetIdentity {
        self.identity_of(0..self.len())
    }

    /// The fingerprint of a data set whose images had these keys and labels, in this order, and are now these images of this source. It equals
    /// the recorded one if their lengths have not changed, even if they have moved or other images were added.
    pub fn digest<'a>(&self, samples: impl Iterator<Item = (&'a str, Option<i32>, usize)>) -> String {
        let mut digest = Sha256::new();
        for (key, label, index) in samples {
            digest.update((key.len() as u64).to_le_bytes());
            digest.update(key.as_bytes());
            digest.update(self.samples[index].bytes.to_le_bytes());
            // Labels are not negative, so -1 can mark an image without one.
            digest.update(label.unwrap_or(-1).to_le_bytes());
        }
        schemas::hex(&digest.finalize())
    }

    /// The bytes of an image file. After an error, [`SourceError::is_bad_record`] tells whether to go on.
    pub fn read(&self, index: usize) -> Result<Vec<u8>, SourceError> {
        let sample = &self.samples[index];
        let stored = self.stored(index).ok_or_else(|| SourceError::Gone { key: sample.key.to_string() })?;
        match &self.store {
            Store::Folder(folder) => folder.read(&sample.key),
            Store::Tar(shards) => shards.read(stored, &sample.key),
            Store::Parquet(tables) => tables.read(stored),
        }
    }

    /// Whether images come over a network.
    pub fn is_remote(&self) -> bool {
        match &self.store {
            Store::Folder(folder) => storage::is_url(&folder.path("")),
            Store::Tar(shards) => shards.is_remote(),
            Store::Parquet(tables) => tables.is_remote(),
        }
    }

    /// Begins to fetch the image that [`read`](Self::read) will be asked for, if it comes over a network. Indices from [`len`](Self::len) on are
    /// ignored.
    pub fn prefetch(&self, index: usize) {
        if index < self.samples.len()
            && let Some(stored) = self.stored(index)
        {
            match &self.store {
                Store::Folder(folder) => folder.prefetch(&self.samples[index].key),
                Store::Tar(shards) => shards.prefetch(stored),
                Store::Parquet(tables) => tables.prefetch(stored),
            }
        }
    }

    /// Drops the copies that are kept of an image, which turned out to be damaged, so that it is fetched again. False where the only copy is
    /// the data set's own.
    pub fn forget(&self, index: usize) -> bool {
        let Some(stored) = self.stored(index) else {
            return false;
        };
        match &self.store {
            Store::Folder(folder) => storage::is_url(&folder.path("")),
            Store::Tar(shards) => shards.forget(stored),
            Store::Parquet(tables) => tables.forget(stored),
        }
    }

    /// The number of the image with this key.
    pub fn find(&self, key: &str) -> Option<usize> {
        let at = self.by_key.binary_search_by(|&i| (*self.samples[i].key).cmp(key)).ok()?;
        Some(self.by_key[at])
    }
}

impl fmt::Debug for ImageSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ImageSource {{ {}, {} images }}", self.kind(), self.len())
    }
}

impl Store {
    /// Where an image is, for messages.
    fn place(&self, index: usize, key: &str) -> String {
        match self {
            Store::Folder(folder) => folder.path(key).display().to_string(),
            Store::Tar(shards) => shards.place(index),
            Store::Parquet(tables) => tables.place(index),
        }
    }
}

fn io_error(path: &Path) -> impl FnOnce(std::io::Error) -> SourceError {
    let path = path.to_path_buf();
    move |source| SourceError::Io { path, source }
}

/// Results in order, computed by several threads, because on a network file system each takes a round trip.
fn in_parallel<T: Sync, R: Send>(items: &[T], ask: impl Fn(&T) -> R + Sync) -> Vec<R> {
    const THREADS: usize = 16;
    let chunk = items.len().div_ceil(THREADS).max(1000);
    std::thread::scope(|scope| {
        let workers: Vec<_> =
            items.chunks(chunk).map(|items| scope.spawn(|| items.iter().map(&ask).collect::<Vec<R>>())).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("asking a file system does not panic")).collect()
    })
}

/// Refuses a record that is too large to decode, before memory is allocated for it.
fn check_length(path: &Path, member: impl FnOnce() -> String, bytes: u64) -> Result<(), SourceError> {
    if bytes > MAX_FILE_BYTES {
        return Err(SourceError::RecordTooLarge {
            path: path.to_path_buf(),
            member: member(),
            bytes,
            limit: MAX_FILE_BYTES,
        });
    }
    Ok(())
}

/// A file's own name as text, for keys.
fn file_name(path: &Path) -> Result<&str, SourceError> {
    path.file_name().and_then(|name| name.to_str()).ok_or_else(|| SourceError::NotUtf8 { path: path.to_path_buf() })
}

#[cfg(test)]
mod tests;
