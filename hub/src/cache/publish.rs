//! Writing into the cache: what is visible under its name is complete and durable.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use schemas::atomic;

use super::super::{Error, Result};
use super::Repo;

impl Repo {
    /// The file of a content.
    pub(in super::super) fn blob(&self, etag: &str) -> PathBuf {
        self.root().join("blobs").join(etag)
    }

    /// Where a blob grows while it is fetched.
    pub(in super::super) fn incomplete(&self, etag: &str) -> PathBuf {
        self.blob(&format!("{etag}.incomplete"))
    }

    /// Holds other processes off a blob, until the file is dropped. `waiting` is called if one of them has it now.
    pub(in super::super) fn lock(&self, etag: &str, waiting: impl FnOnce() -> Result<()>) -> Result<File> {
        let folder = self.cache.join(".locks").join(&self.folder);
        atomic::create_dir(&folder).map_err(cache_error)?;
        let path = folder.join(format!("{etag}.lock"));
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(false).write(true).open(&path).map_err(disk("open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                waiting()?;
                file.lock().map_err(disk("lock", &path))?;
            }
            Err(TryLockError::Error(error)) => return Err(disk("lock", &path)(error)),
        }
        Ok(file)
    }

    /// Opens the growing file of a blob, for reading and writing.
    pub(in super::super) fn open_incomplete(&self, etag: &str) -> Result<(File, PathBuf)> {
        let path = self.incomplete(etag);
        atomic::create_dir(&self.root().join("blobs")).map_err(cache_error)?;
        let mut options = OpenOptions::new();
        let file =
            options.create(true).truncate(false).read(true).write(true).open(&path).map_err(disk("create", &path))?;
        Ok((file, path))
    }

    /// Makes a grown blob durable and gives it its name.
    pub(in super::super) fn publish_blob(&self, etag: &str, file: &File) -> Result<()> {
        let path = self.incomplete(etag);
        file.sync_all().map_err(disk("write", &path))?;
        atomic::rename(&path, &self.blob(etag)).map_err(cache_error)
    }

    /// Makes a blob visible as a file of a commit.
    pub(in super::super) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<()> {
        let target = Path::new("../../blobs").join(etag);
        atomic::symlink(&target, &self.snapshot(commit).join(file)).map_err(cache_error)
    }

    /// Records that a commit has no such file.
    pub(in super::super) fn mark_absent(&self, commit: &str, file: &str) -> Result<()> {
        let path = self.absence_mark(commit, file);
        if path.is_file() {
            return Ok(());
        }
        atomic::write(&path, b"").map_err(cache_error)
    }

    /// Records the commit of a branch or tag.
    pub(in super::super) fn write_ref(&self, revision: &str, commit: &str) -> Result<()> {
        atomic::write(&self.ref_file(revision), commit.as_bytes()).map_err(cache_error)
    }
}

/// An error of the disk, from what the system says.
pub(in super::super) fn disk(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Disk { action, path, source }
}

/// An error of [`atomic`] as one of the cache.
fn cache_error(error: schemas::Error) -> Error {
    match error {
        schemas::Error::Io { action, path, source } => Error::Disk { action, path, source },
        schemas::Error::DiskFull { path } => {
            Error::Disk { action: "write", path, source: ErrorKind::StorageFull.into() }
        }
        other => Error::Disk { action: "write", path: PathBuf::new(), source: io::Error::other(other) },
    }
}
