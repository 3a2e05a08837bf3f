//! Collections of image files, in one fixed order.
//!
//! | given | kind | key of an image | label | order |
//! |---|---|---|---|---|
//! | a folder | `folder` | its path below the folder, with `/` | index of its first-level folder among all such, sorted | by key, bytewise |
//! | `*.tar`: one, a glob, braces, or a folder of them | `tar` | `shard.tar/` + the member's path up to the first dot of its name | the number in the member of the same key ending in `.cls` | by shard, then by position |
//! | `*.parquet`: one, a glob, braces, or a folder of them | `parquet` | `file.parquet/` + the row's number | an integer column | by file, then by row |
//!
//! A sample's number in this order is its `sample_id`. Opening reads names, lengths and labels, and no image; reading is by position
//! and from any number of threads at once.

mod files;
mod folder;
mod parquet;
mod spec;
mod tar;

use std::fmt;
use std::path::Path;

use schemas::DatasetIdentity;
use sha2::{Digest, Sha256};

use crate::SourceError;
use crate::decode::MAX_FILE_BYTES;

/// Files with these extensions, in any case, are images; others are passed by. They only select: what a file holds is decided by
/// its bytes.
pub const IMAGE_EXTENSIONS: [&str; 11] = [
    "jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "gif", "bmp", "tif", "tiff",
];

fn is_image_extension(extension: &str) -> bool {
    IMAGE_EXTENSIONS
        .iter()
        .any(|known| extension.eq_ignore_ascii_case(known))
}

/// Images to read by number, with their keys and labels.
pub struct ImageSource {
    samples: Vec<Sample>,
    /// Numbers of the samples, sorted by key.
    by_key: Vec<usize>,
    label_names: Vec<String>,
    shards_passed_by: usize,
    store: Store,
}

/// What is known of an image before it is read.
struct Sample {
    key: Box<str>,
    label: Option<i32>,
    /// What goes into the identity as its length: see [`ImageSource::identity`].
    bytes: u64,
}

/// What opening a source finds: the samples in order, and the names of their labels where the source has any.
struct Listing {
    samples: Vec<Sample>,
    label_names: Vec<String>,
    store: Store,
}

/// Where the bytes are.
enum Store {
    Folder(folder::Folder),
    Tar(tar::Shards),
    Parquet(parquet::Tables),
}

impl ImageSource {
    /// Opens a folder of class folders, WebDataset tar shards, or Parquet files in the Hugging Face layout.
    ///
    /// `spec` is the path of a folder or file, a glob (`shards/*.tar`), or a path with braces (`shards/train-{000..099}.tar`,
    /// `{train,val}.parquet`). A folder that holds nothing but files is opened as shards if there are `.parquet` or `.tar` files and
    /// no images among them.
    ///
    /// Fails when something is missing, unreadable or malformed, when two images have one key, and when there are no images at all.
    pub fn open(spec: &str) -> Result<Self, SourceError> {
        let mut shards_passed_by = 0;
        let Listing {
            samples,
            label_names,
            store,
        } = match spec::resolve(spec)? {
            spec::Resolved::Folder(root, shards) => {
                shards_passed_by = shards;
                folder::open(&root)?
            }
            spec::Resolved::Tar(shards) => tar::open(shards)?,
            spec::Resolved::Parquet(files) => parquet::open(files)?,
        };
        if samples.is_empty() {
            return Err(SourceError::NoImages {
                spec: spec.to_owned(),
                extensions: IMAGE_EXTENSIONS.join(", "),
            });
        }
        let mut by_key: Vec<usize> = (0..samples.len()).collect();
        by_key.sort_unstable_by(|&a, &b| samples[a].key.cmp(&samples[b].key).then(a.cmp(&b)));
        if let Some(twins) = by_key
            .windows(2)
            .find(|pair| samples[pair[0]].key == samples[pair[1]].key)
        {
            let [first, second] = [twins[0], twins[1]].map(|i| store.place(i, &samples[i].key));
            return Err(SourceError::DuplicateKey {
                key: samples[twins[0]].key.to_string(),
                first,
                second,
            });
        }
        Ok(Self {
            samples,
            by_key,
            label_names,
            shards_passed_by,
            store,
        })
    }

    /// How many `.tar` and `.parquet` files lie beside the images or class folders of a folder: none of them is read.
    pub fn shards_passed_by(&self) -> usize {
        self.shards_passed_by
    }

    /// The first `samples` of this source. Its identity covers only these; names of labels stay.
    pub fn limit(mut self, samples: u64) -> Self {
        self.samples
            .truncate(usize::try_from(samples).unwrap_or(usize::MAX));
        let kept = self.samples.len();
        self.by_key.retain(|&i| i < kept);
        self
    }

    /// `folder`, `tar` or `parquet`.
    pub fn kind(&self) -> &'static str {
        match self.store {
            Store::Folder(_) => "folder",
            Store::Tar(_) => "tar",
            Store::Parquet(_) => "parquet",
        }
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Whether nothing is left, after a [`limit`](Self::limit) of 0.
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

    /// Names of the labels: first-level folders, or the names in a Hugging Face `ClassLabel`. Empty for tar shards.
    pub fn label_names(&self) -> &[String] {
        &self.label_names
    }

    /// A fingerprint over every sample in order: the key, the label, and the length in bytes.
    ///
    /// It costs no reading, so it does not see a change that keeps all lengths; the content hash of each row does. For Parquet, where
    /// a row's length is known only by reading it, the uncompressed size of its row group's image column stands in.
    pub fn identity(&self) -> DatasetIdentity {
        let samples = self.samples.iter();
        let samples = samples.enumerate();
        DatasetIdentity {
            kind: self.kind().to_owned(),
            samples: self.samples.len() as u64,
            digest: self.digest(samples.map(|(index, sample)| (&*sample.key, sample.label, index))),
        }
    }

    /// The fingerprint of a data set whose images had these keys and labels, in this order, and are now these of this source. Equal to
    /// the one that was recorded if their lengths are what they were, wherever they are now and whatever has come to lie beside them.
    pub fn digest<'a>(
        &self,
        samples: impl Iterator<Item = (&'a str, Option<i32>, usize)>,
    ) -> String {
        let mut digest = Sha256::new();
        for (key, label, index) in samples {
            digest.update((key.len() as u64).to_le_bytes());
            digest.update(key.as_bytes());
            digest.update(self.samples[index].bytes.to_le_bytes());
            // Labels are not negative, so -1 is free to say that there is none.
            digest.update(label.unwrap_or(-1).to_le_bytes());
        }
        let digest = digest.finalize();
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The bytes of an image file. See [`SourceError::is_bad_record`] for whether to go on after an error.
    pub fn read(&self, index: usize) -> Result<Vec<u8>, SourceError> {
        let sample = &self.samples[index];
        match &self.store {
            Store::Folder(folder) => folder.read(&sample.key),
            Store::Tar(shards) => shards.read(index, &sample.key),
            Store::Parquet(tables) => tables.read(index),
        }
    }

    /// The number of the image with this key.
    pub fn find(&self, key: &str) -> Option<usize> {
        let at = self
            .by_key
            .binary_search_by(|&i| (*self.samples[i].key).cmp(key))
            .ok()?;
        Some(self.by_key[at])
    }
}

/// Short: a source has millions of keys.
impl fmt::Debug for ImageSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "ImageSource {{ {}, {} images }}",
            self.kind(),
            self.len()
        )
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

/// Refuses a record that no decoder would accept, before memory is allocated for it.
fn check_length(
    path: &Path,
    member: impl FnOnce() -> String,
    bytes: u64,
) -> Result<(), SourceError> {
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

/// A file's own name, as text, for keys.
fn file_name(path: &Path) -> Result<&str, SourceError> {
    path.file_name()
        .and_then(|name| name.to_str())
        .ok_or_else(|| SourceError::NotUtf8 {
            path: path.to_path_buf(),
        })
}

#[cfg(test)]
mod tests;
