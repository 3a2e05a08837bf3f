//! Checking a whole cache: every hash, checksum, join and count.

use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// How far a verification has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes read so far.
    pub bytes: u64,
    /// Bytes to read in all, as the commit records declare them.
    pub total_bytes: u64,
}

/// What a verification found.
#[derive(Debug, Default)]
pub struct Report {
    /// Everything wrong, in a fixed order; empty for a sound cache.
    pub problems: Vec<Error>,
    /// Commit records that are not there (yet): the cache is incomplete but not wrong.
    pub missing: Vec<PathBuf>,
    /// What was seen and does not matter: temporary files, files the format does not know.
    pub notes: Vec<String>,
    /// Part files checked.
    pub files: u64,
    /// Rows checked.
    pub rows: u64,
    /// Bytes checked.
    pub bytes: u64,
}

/// Checks everything in a cache.
///
/// # Errors
/// Only what prevents looking at all, such as a missing folder. Everything wrong with the data is in the report.
pub fn verify(dir: &Path, progress: &mut dyn FnMut(Progress)) -> Result<Report> {
    let _ = (dir, progress);
    todo!()
}
