//! Writing into the cache: what is visible under its name is complete and durable.

use std::collections::hash_map::RandomState;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::hash::{BuildHasher, Hasher};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

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
        create_dir(&folder)?;
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
        create_dir(folder_of(&path))?;
        let mut options = OpenOptions::new();
        let file =
            options.create(true).truncate(false).read(true).write(true).open(&path).map_err(disk("create", &path))?;
        Ok((file, path))
    }

    /// Makes a grown blob durable and gives it its name.
    pub(in super::super) fn publish_blob(&self, etag: &str, file: &File) -> Result<()> {
        let path = self.incomplete(etag);
        file.sync_all().map_err(disk("write", &path))?;
        rename(&path, &self.blob(etag))
    }

    /// Makes a blob visible as a file of a commit.
    pub(in super::super) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<()> {
        let path = self.snapshot(commit).join(file);
        create_dir(folder_of(&path))?;
        let temp = temp_path(&path);
        let target = Path::new("../../blobs").join(etag);
        symlink(target, &temp).map_err(disk("make a link at", &temp))?;
        rename(&temp, &path)
    }

    /// Records that a commit has no such file.
    pub(in super::super) fn mark_absent(&self, commit: &str, file: &str) -> Result<()> {
        let path = self.absence_mark(commit, file);
        match path.is_file() {
            true => Ok(()),
            false => write(&path, b""),
        }
    }

    /// Records the commit of a branch or tag.
    pub(in super::super) fn write_ref(&self, revision: &str, commit: &str) -> Result<()> {
        write(&self.ref_file(revision), commit.as_bytes())
    }
}

/// An error of the disk, from what the system says.
pub(in super::super) fn disk(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Disk { action, path, source }
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    create_dir(folder_of(path))?;
    let temp = temp_path(path);
    let mut options = OpenOptions::new();
    options
        .write(true)
        .create_new(true)
        .open(&temp)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .map_err(disk("write", &temp))?;
    rename(&temp, path)
}

/// Gives a durable file its name, durably, or removes it.
#[expect(
    clippy::disallowed_methods,
    reason = "this crate may not use schemas; the hub's layout wants links and names that grow, which schemas::atomic has not"
)]
fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(|source| {
        // The first error is the one to tell.
        let _ = fs::remove_file(from);
        disk("rename a finished file to", to)(source)
    })?;
    sync_dir(folder_of(to))
}

/// A name in the folder of `path` that no other process uses. `RandomState` is seeded by the operating system.
fn temp_path(path: &Path) -> PathBuf {
    let random = RandomState::new().build_hasher().finish() ^ u64::from(std::process::id());
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{random:016x}.tmp"))
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Makes a folder and those above it, each durable in the one that holds it.
fn create_dir(folder: &Path) -> Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    create_dir(folder_of(folder))?;
    match fs::create_dir(folder) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        Err(e) => Err(disk("create the folder", folder)(e)),
        Ok(()) => sync_dir(folder_of(folder)),
    }
}

/// Makes the names in a folder durable. Some network file systems do it on their own and refuse the call.
fn sync_dir(folder: &Path) -> Result<()> {
    match File::open(folder).and_then(|handle| handle.sync_all()) {
        Err(e) if matches!(e.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => Ok(()),
        result => result.map_err(disk("make durable", folder)),
    }
}
