//! The contents of all images by hash, read before a build that stores each content once (`data.dedup`).
//!
//! Which image of several equal ones is stored must not depend on which part is built first, so all of them are read before the first part: the one with
//! the lowest number is stored, the others are rejects. Finished parts say what they hold. What was read is kept in `CACHE/work` until the cache is finished,
//! for other workers and for the next time.

use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use images::ImageSource;
use indicatif::{ProgressBar, ProgressStyle};
use program::{terminal, words::count};
use schemas::{Cache, ContentHash, atomic, layout};
use sha2::{Digest, Sha256};

use super::parallel::{Ended, map_in_order};

/// Images that a thread reads at a time.
const READ_TOGETHER: u64 = 16;

/// Bytes of an image in the file: whether it could be read, and the hash.
const ENTRY: usize = 17;

/// The content of every sample.
#[derive(Debug)]
pub(crate) struct Contents {
    /// By sample; `None` for an image that cannot be read.
    hashes: Vec<Option<ContentHash>>,
    /// The first sample with a content.
    first: HashMap<ContentHash, u64>,
}

impl Contents {
    fn new(hashes: Vec<Option<ContentHash>>) -> Contents {
        let mut first = HashMap::new();
        for (sample_id, hash) in hashes.iter().enumerate() {
            if let Some(hash) = hash {
                first.entry(*hash).or_insert(sample_id as u64);
            }
        }
        Contents { hashes, first }
    }

    /// Reads the images of `source`, in the order of the cache's samples, that no finished part describes; `None` after a signal.
    pub(crate) fn read(cache: &Cache, source: &ImageSource, threads: usize) -> anyhow::Result<Option<Contents>> {
        let (path, identity) = (path(cache), cache.identity());
        let samples = identity.samples();
        if let Some(saved) = load(&path, samples)? {
            return Ok(Some(Contents::new(saved)));
        }
        let mut hashes = vec![None; usize::try_from(samples)?];
        let mut unknown = Vec::new();
        for part in 0..identity.parts() {
            if cache.part_state(part)?.samples.is_none() {
                unknown.extend(identity.range(part));
                continue;
            }
            for row in cache.samples(part)? {
                hashes[row.sample_id as usize] = Some(row.content_hash);
            }
            for reject in cache.rejects(part)? {
                hashes[reject.sample_id as usize] = reject.content_hash;
            }
        }
        tracing::info!(
            "reading {} once before the build, to find those with the same bytes",
            count(unknown.len() as u64, "image")
        );
        let bar = terminal::bars().add(ProgressBar::new(unknown.len() as u64));
        bar.set_style(
            ProgressStyle::with_template("{elapsed_precise} {wide_bar} {human_pos}/{human_len} images read, ETA {eta}")
                .expect("a constant template"),
        );
        let ended = map_in_order(
            unknown.chunks(READ_TOGETHER as usize).map(Ok),
            vec![(); threads],
            |(), samples, stop| {
                let hash = |&sample_id: &u64| {
                    stop.check()?;
                    let index = usize::try_from(sample_id)?;
                    match source.read(index) {
                        Ok(bytes) => Ok((sample_id, Some(ContentHash::of(&bytes)))),
                        Err(error) if error.is_bad_record() => Ok((sample_id, None)),
                        Err(error) => Err(error)
                            .with_context(|| format!("cannot read image {:?} (sample {sample_id})", source.key(index))),
                    }
                };
                samples.iter().map(hash).collect::<anyhow::Result<Vec<_>>>()
            },
            |found| {
                bar.inc(found.len() as u64);
                found.into_iter().for_each(|(sample_id, hash)| hashes[sample_id as usize] = hash);
                Ok(())
            },
        );
        bar.finish_and_clear();
        if ended? == Ended::Interrupted {
            return Ok(None);
        }
        save(&path, &hashes)?;
        Ok(Some(Contents::new(hashes)))
    }

    /// The sample that is stored instead of this one, whose image has the content `hash`; `None` if it is stored itself.
    ///
    /// # Errors
    /// An image that is not the one that was read before the build.
    pub(crate) fn original(&self, sample_id: u64, hash: &ContentHash) -> anyhow::Result<Option<u64>> {
        let read = self.hashes.get(usize::try_from(sample_id)?).copied().flatten();
        ensure!(
            read == Some(*hash),
            "the image of sample {sample_id} has changed since the build read it first; run the same command again when the source is at rest"
        );
        Ok(self.first.get(hash).copied().filter(|&first| first != sample_id))
    }
}

/// Removes what was kept for other workers.
pub(crate) fn forget(cache: &Cache) -> anyhow::Result<()> {
    let path = path(cache);
    storage::remove(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    // Only if nothing else is in it; a bucket has no folders.
    let _ = path.parent().map(fs::remove_dir);
    Ok(())
}

fn path(cache: &Cache) -> PathBuf {
    layout::work_dir(cache.dir()).join("contents").join(cache.identity().last_fingerprint())
}

fn save(path: &Path, hashes: &[Option<ContentHash>]) -> anyhow::Result<()> {
    let mut bytes = vec![0; 32];
    for hash in hashes {
        bytes.push(u8::from(hash.is_some()));
        bytes.extend(hash.unwrap_or(ContentHash([0; 16])).0);
    }
    let digest = Sha256::digest(&bytes[32..]);
    bytes[..32].copy_from_slice(&digest);
    Ok(atomic::write_soon(path, &bytes)?)
}

/// What was saved for this many samples; nothing if it is damaged or not there.
fn load(path: &Path, samples: u64) -> anyhow::Result<Option<Vec<Option<ContentHash>>>> {
    let bytes = match storage::read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        read => read.with_context(|| format!("cannot read {}", path.display()))?,
    };
    let Some((digest, body)) = bytes.split_at_checked(32) else {
        return Ok(None);
    };
    if Sha256::digest(body)[..] != *digest || body.len() as u64 != samples * ENTRY as u64 {
        return Ok(None);
    }
    let hash = |entry: &[u8]| {
        let mut hash = [0; 16];
        hash.copy_from_slice(&entry[1..]);
        (entry[0] == 1).then_some(ContentHash(hash))
    };
    Ok(Some(body.chunks_exact(ENTRY).map(hash).collect()))
}
