//! Batches whose features took long to compute, saved until their part is committed: a build that is killed within a part goes on where it was.
//!
//! A part's rows become visible when all of them are there. On a CPU that takes minutes, and a worker that is preempted more often than that
//! would never finish one. So the encoded features of a batch that cost more time than it takes to save them are kept in
//! `CACHE/work/batches`. On a GPU, where a batch takes milliseconds, nothing is saved.
//!
//! What is read back is what would be computed: the file is of the same teachers by their fingerprints, of the same rows by their keys, which
//! hold the images' content hashes, and its own hash is right. Anything else is computed again.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use schemas::{CacheIdentity, EncodedRow, RowKey, TeacherIdentity, atomic, layout};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use storage::is_url;

use super::batch::Batch;

/// Batches that took less are not saved. Saving one of 5 MB takes some 10 ms of its thread.
const WORTH_SAVING: Duration = Duration::from_millis(500);

/// The saved batches of a cache.
#[derive(Debug)]
pub(crate) struct SavedBatches {
    folder: PathBuf,
    /// Fingerprint of the cache's identity.
    cache: String,
}

/// The contents of a file, behind a SHA-256 of the rest.
#[derive(Serialize, Deserialize)]
struct Contents {
    /// Fingerprint of the cache's identity, by which the views of its rows are drawn.
    cache: String,
    /// Fingerprints, in the order of `features`.
    teachers: Vec<String>,
    /// For each teacher its rows.
    features: Vec<Vec<EncodedRow>>,
}

impl SavedBatches {
    pub(crate) fn new(cache: &Path, identity: &CacheIdentity) -> SavedBatches {
        SavedBatches { folder: layout::work_dir(cache).join("batches"), cache: identity.last_fingerprint() }
    }

    /// Features of `teachers` for the rows of a batch, if they were saved.
    pub(crate) fn load(
        &self,
        batch: &Batch,
        teachers: &[&TeacherIdentity],
        rows: &[RowKey],
    ) -> Result<Option<Vec<Vec<EncodedRow>>>> {
        let path = self.path(batch);
        let bytes = match storage::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            read => read.with_context(|| format!("cannot read {}", path.display()))?,
        };
        let contents = decode(&bytes);
        let fits = contents.filter(|contents| {
            contents.cache == self.cache
                && contents.teachers == fingerprints(teachers)
                && contents
                    .features
                    .iter()
                    .all(|of_teacher| of_teacher.iter().map(EncodedRow::key).eq(rows.iter().copied()))
        });
        if fits.is_none() {
            tracing::debug!("{}: of other rows or teachers, or damaged; computed again", path.display());
        }
        Ok(fits.map(|contents| contents.features))
    }

    /// Saves the features of a batch that took `took` to compute, if that is worth it.
    pub(crate) fn save(
        &self,
        batch: &Batch,
        teachers: &[&TeacherIdentity],
        features: &[Vec<EncodedRow>],
        took: Duration,
    ) -> Result<()> {
        if took < WORTH_SAVING {
            return Ok(());
        }
        let contents =
            Contents { cache: self.cache.clone(), teachers: fingerprints(teachers), features: features.to_vec() };
        let body = postcard::to_allocvec(&contents).context("cannot encode a batch")?;
        let mut bytes = Sha256::digest(&body).to_vec();
        bytes.extend(body);
        Ok(atomic::write_soon(&self.path(batch), &bytes)?)
    }

    /// Removes what was saved of a part.
    pub(crate) fn remove(&self, part: u32) -> Result<()> {
        let folder = self.folder_of(part);
        storage::remove_tree(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
        if is_url(&folder) {
            return Ok(());
        }
        for folder in self.folder.ancestors().take(2) {
            // Only if nothing is in it.
            let _ = std::fs::remove_dir(folder);
        }
        Ok(())
    }

    /// Removes what was saved of any part: what workers left that were killed after their part was committed.
    pub(crate) fn clear(&self) -> Result<()> {
        storage::remove_tree(&self.folder).with_context(|| format!("cannot remove {}", self.folder.display()))
    }

    /// Images of a part whose features are saved.
    pub(crate) fn images(&self, part: u32) -> u64 {
        let names = storage::list(&self.folder_of(part)).into_iter().flatten().map(|entry| entry.name);
        let images = |name: String| -> Option<u64> {
            let (start, end) = name.split_once('-')?;
            end.parse::<u64>().ok()?.checked_sub(start.parse().ok()?)
        };
        names.filter_map(images).sum()
    }

    fn folder_of(&self, part: u32) -> PathBuf {
        self.folder.join(format!("part-{part:05}"))
    }

    fn path(&self, batch: &Batch) -> PathBuf {
        self.folder_of(batch.part.number).join(format!("{}-{}", batch.samples.start, batch.samples.end))
    }
}

fn fingerprints(teachers: &[&TeacherIdentity]) -> Vec<String> {
    teachers.iter().map(|teacher| teacher.fingerprint()).collect()
}

/// The contents of a sound file.
fn decode(bytes: &[u8]) -> Option<Contents> {
    let (hash, body) = bytes.split_at_checked(32)?;
    (Sha256::digest(body)[..] == *hash).then(|| postcard::from_bytes(body).ok())?
}
