//! What a build takes on disk, and whether it is there.

use std::path::Path;

use anyhow::{Context, Result};
use indicatif::DecimalBytes;
use program::words::count;
use schemas::TeacherIdentity;

use storage::is_url;

use super::build::Build;
use super::worklist::{Outputs, PartWork};

/// What a samples row takes at most, in bytes, beside its key: numbers, hash and checksum.
const SAMPLE_ROW_BYTES: u64 = 100;

/// What a feature row takes beside the features: sample, view, hash, checksum, and headers and index entries of its pages.
const FEATURE_ROW_OVERHEAD: u64 = 400;

/// What a part's file and commit take beside rows and identity: schema, footer, digests.
const FILE_OVERHEAD: u64 = 32 << 10;

/// What a commit says of each channel: two sums in decimal digits.
const CHANNEL_BYTES: u64 = 60;

/// Rows that are to be written, and the most that they take: before compression, as if every image were usable.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub(crate) struct Bytes {
    pub rows: u64,
    pub bytes_at_most: u64,
}

/// What the parts of a work list take.
#[derive(Debug)]
pub(crate) struct Space {
    pub samples: Bytes,
    /// For each of the build's teachers.
    pub teachers: Vec<Bytes>,
}

/// The disk has no room for what is to be written. It may have later.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoRoom {
    #[error(
        "{out}: the build takes at most {} more, and {} are free. Free some, take a smaller --codec or fewer --views, give another disk as --out, or say \
         --allow-full-disk: features may compress to less, and a build that runs out of space keeps what is finished", DecimalBytes(*.needed), DecimalBytes(*.free)
    )]
    ForAll { out: String, needed: u64, free: u64 },
    #[error(
        "{out}: {} are free, and the next part and those in work take up to {}. What is finished is kept: free some space, and the same command goes on",
        DecimalBytes(*.free),
        DecimalBytes(*.needed)
    )]
    ForTheNextPart { out: String, needed: u64, free: u64 },
}

impl Space {
    /// What `work` takes if a packed image has `packed_bytes` bytes on average.
    pub(crate) fn of(build: &Build, work: &[PartWork], packed_bytes: u64) -> Result<Space> {
        let views = u64::from(build.identity.views.views);
        let rows_in = |part: u32| {
            let range = build.identity.range(part);
            (range.end - range.start) * views
        };
        // Parts that lack something, and their rows.
        let missing = |lacks: &dyn Fn(&Outputs) -> bool| -> (u64, u64) {
            let parts = work.iter().filter(|work| lacks(&work.missing));
            parts.fold((0, 0), |(parts, rows), work| (parts + 1, rows + rows_in(work.part)))
        };
        let keys = build.source.iter().flat_map(|source| (0..source.len()).map(|idx| source.key(idx).len() as u64));
        let longest_key = keys.max().unwrap_or(0);
        // Every file repeats the cache's identity, class names included, as JSON within JSON or base64.
        let file_bytes = FILE_OVERHEAD + 2 * serde_json::to_vec(&build.identity)?.len() as u64;
        let (parts, rows) = missing(&|lacks| lacks.samples);
        let samples = Bytes {
            rows,
            bytes_at_most: parts * file_bytes + rows * (SAMPLE_ROW_BYTES + longest_key) + rows / views * packed_bytes,
        };
        let of_teacher = |teacher: &TeacherIdentity| {
            let (parts, rows) = missing(&|lacks| lacks.teachers.contains(&teacher.id));
            let bytes_at_most =
                parts * (file_bytes + CHANNEL_BYTES * u64::from(teacher.width)) + rows * row_bytes(teacher);
            Bytes { rows, bytes_at_most }
        };
        Ok(Space { samples, teachers: build.identities().into_iter().map(of_teacher).collect() })
    }

    /// The most that all files take.
    pub(crate) fn needed(&self) -> u64 {
        self.samples.bytes_at_most + self.teachers.iter().map(|of| of.bytes_at_most).sum::<u64>()
    }

    /// Says what a build takes and what is free, and refuses what cannot fit.
    pub(crate) fn announce(&self, build: &Build) -> Result<()> {
        let out = &build.recipe.cache.out;
        // A bucket has room for everything.
        let free = if is_url(out) { None } else { Some(free_bytes(out)?) };
        let needed = self.needed();
        let teachers = build.identities().into_iter().zip(&self.teachers).map(|(teacher, of)| {
            format!(", teacher {} {} in {}", teacher.id, DecimalBytes(of.bytes_at_most), count(of.rows, "row"))
        });
        tracing::info!(
            "to write at most {}: samples {} in {}{}{}",
            DecimalBytes(needed),
            DecimalBytes(self.samples.bytes_at_most),
            count(self.samples.rows, "row"),
            teachers.collect::<String>(),
            free.map(|free| format!("; {} free", DecimalBytes(free))).unwrap_or_default()
        );
        if let Some(free) = free
            && needed > free
            && !build.recipe.run.allow_full_disk
        {
            return Err(NoRoom::ForAll { out: out.display().to_string(), needed, free }.into());
        }
        Ok(())
    }
}

/// Watches the disk while a build writes to it.
#[derive(Debug)]
pub(crate) struct DiskWatch {
    out: std::path::PathBuf,
    /// What a part takes at most.
    part: u64,
}

impl DiskWatch {
    /// A watch over parts like the largest of `work`.
    pub(crate) fn new(build: &Build, work: &[PartWork], space: &Space) -> DiskWatch {
        let out = &build.recipe.cache.out;
        // What goes into a bucket waits on a local disk until its part is whole.
        let out = if is_url(out) { storage::scratch() } else { out.clone() };
        DiskWatch { out, part: space.needed().div_ceil(work.len().max(1) as u64) }
    }

    /// Refuses to begin a part that the disk may not have room for beside the `in_work` that are being written.
    pub(crate) fn check(&self, in_work: usize) -> Result<()> {
        let free = free_bytes(&self.out)?;
        let needed = (in_work as u64 + 1) * self.part;
        if free >= needed {
            return Ok(());
        }
        Err(NoRoom::ForTheNextPart { out: self.out.display().to_string(), needed, free }.into())
    }
}

/// What a row of a teacher takes at most.
pub(super) fn row_bytes(teacher: &TeacherIdentity) -> u64 {
    (teacher.tokens_bytes() + teacher.cls_bytes() + teacher.cls_attn_bytes()) as u64 + FEATURE_ROW_OVERHEAD
}

/// Free space where `out` is or would be.
pub(crate) fn free_bytes(out: &Path) -> Result<u64> {
    let here = std::path::absolute(out)?;
    let existing = here.ancestors().find(|path| path.exists()).context("the file system has a root")?;
    let stat = rustix::fs::statvfs(existing)
        .with_context(|| format!("cannot ask {} for its free space", existing.display()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}
