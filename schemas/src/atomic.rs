//! Publishing files: what is visible is complete.

use std::io::Write;
use std::path::{Path, PathBuf};

use crate::Result;

/// A file that becomes visible when it is finished.
#[derive(Debug)]
pub struct AtomicFile {
    target: PathBuf,
}

impl AtomicFile {
    /// Starts a temporary file beside `target`, making the folder if needed. Dropping it unpublished removes it.
    pub fn create(target: &Path) -> Result<AtomicFile> {
        let _ = target;
        todo!()
    }

    /// Makes the bytes durable and the file visible, replacing an older one of that name.
    pub fn publish(self) -> Result<()> {
        todo!()
    }

    /// Like [`Self::publish`], but leaves an older file of that name alone and returns false.
    pub fn publish_new(self) -> Result<bool> {
        todo!()
    }

    /// Where the file will appear.
    pub fn target(&self) -> &Path {
        &self.target
    }
}

impl Write for AtomicFile {
    fn write(&mut self, _bytes: &[u8]) -> std::io::Result<usize> {
        todo!()
    }
    fn flush(&mut self) -> std::io::Result<()> {
        todo!()
    }
}

/// Writes a small file (a pointer, a record), replacing an older one of that name.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let _ = (path, bytes);
    todo!()
}

/// A folder that becomes visible when all its files are finished.
#[derive(Debug)]
pub struct AtomicDir {
    temp: PathBuf,
}

impl AtomicDir {
    /// Starts a temporary folder beside `target`. Dropping it unpublished removes it with everything inside.
    pub fn create(target: &Path) -> Result<AtomicDir> {
        let _ = target;
        todo!()
    }

    /// The temporary folder: write the files here, by any means.
    pub fn path(&self) -> &Path {
        &self.temp
    }

    /// Makes every file and folder inside durable and the folder visible under its name.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`](crate::Error::AlreadyExists) if the name is taken: a finished folder is never overwritten.
    pub fn publish(self) -> Result<()> {
        todo!()
    }
}

/// Removes the temporary files and folders that killed processes left for `target`, and returns how many. Those of living
/// processes are kept.
pub fn remove_stale(target: &Path) -> Result<usize> {
    let _ = target;
    todo!()
}
