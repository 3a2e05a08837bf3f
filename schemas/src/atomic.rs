//! Publishing files: what is visible under its name is complete.
//!
//! A file is written under a hidden temporary name in its own folder, made durable (fsync), renamed, and the folder made durable
//! too. A process that dies before the rename leaves only the temporary file, which [`remove_stale`] clears away. A temporary
//! file is locked while its writer lives, and the kernel drops the lock when the writer dies, however it dies: so the two can
//! be told apart, between containers too, where process ids say nothing.
//!
//! A file of an object store is written to a nameless temporary file of a local disk and uploaded when it is finished: it appears whole, and a
//! process that dies leaves nothing that anybody sees.

use std::collections::hash_map::RandomState;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::hash::{BuildHasher, Hasher};
use std::io::{ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// What temporary names end with; they begin with a dot.
const SUFFIX: &str = ".tmp";

/// A file that becomes visible when it is finished. Writes are not buffered here. Dropping it unpublished removes it.
#[derive(Debug)]
pub struct AtomicFile {
    file: File,
    place: Place,
    target: PathBuf,
}

/// Where a file becomes visible.
#[derive(Debug)]
enum Place {
    /// Beside its temporary name.
    Beside(Temp),
    /// In an object store. The temporary file has no name.
    Store,
}

impl AtomicFile {
    /// Starts a temporary file beside `target`, making the folder if needed.
    pub fn create(target: &Path) -> Result<AtomicFile> {
        if storage::is_url(target) {
            let file =
                storage::temporary().map_err(|e| Error::io("create a temporary file in", &storage::scratch(), e))?;
            return Ok(AtomicFile { file, place: Place::Store, target: target.to_path_buf() });
        }
        create_dir(folder_of(target))?;
        loop {
            let path = temp_path(target)?;
            let mut options = OpenOptions::new();
            let file = options.write(true).create_new(true).open(&path).map_err(|e| Error::io("create", &path, e))?;
            let temp = Temp { path, is_dir: false };
            if hold(&file, &temp.path)? {
                return Ok(AtomicFile { file, place: Place::Beside(temp), target: target.to_path_buf() });
            }
        }
    }

    /// Where the file will appear.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Makes the bytes durable and the file visible, replacing an older one of that name.
    pub fn publish(mut self) -> Result<()> {
        match self.place {
            Place::Beside(temp) => {
                self.file.sync_all().map_err(|e| Error::io("write", &self.target, e))?;
                temp.rename(&self.target)
            }
            Place::Store => {
                storage::upload(&mut self.file, &self.target).map_err(|e| Error::io("upload", &self.target, e))
            }
        }
    }

    /// Like [`Self::publish`], but leaves an older file of that name alone and returns false: of several processes that write
    /// the same name at once, one wins. Where the file system has no hard links, the last wins. Only for small files.
    pub fn publish_new(mut self) -> Result<bool> {
        let temp = match self.place {
            Place::Beside(temp) => temp,
            Place::Store => {
                let mut bytes = Vec::new();
                let read = self.file.rewind().and_then(|()| self.file.read_to_end(&mut bytes));
                let put = read.and_then(|_| storage::put_new(&self.target, &bytes));
                return put.map_err(|e| Error::io("write", &self.target, e));
            }
        };
        self.file.sync_all().map_err(|e| Error::io("write", &self.target, e))?;
        match fs::hard_link(&temp.path, &self.target) {
            Ok(()) => sync_dir(folder_of(&self.target)).map(|()| true),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(false),
            Err(_) if self.target.exists() => Ok(false),
            Err(_) => temp.rename(&self.target).map(|()| true),
        }
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

/// Writes a small file (a record, a pointer) and publishes it, replacing an older one of that name.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if storage::is_url(path) {
        return storage::put(path, bytes).map_err(|e| Error::io("write", path, e));
    }
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes).map_err(|e| Error::io("write", path, e))?;
    file.publish()
}

/// Like [`write()`], but leaves it to the system when the bytes reach the disk: a killed process loses nothing, a power cut may leave anything. For files
/// that are checked by a hash of their own and cost only time.
pub fn write_soon(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes).map_err(|e| Error::io("write", path, e))?;
    match file.place {
        Place::Beside(temp) => temp.rename_soon(&file.target),
        Place::Store => file.publish(),
    }
}

/// Gives a finished, durable file its name, or removes it.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    Temp { path: from.to_path_buf(), is_dir: false }.rename(to)
}

/// Makes a symbolic link at `path` that leads to `target`, replacing an older file of that name, and the folders above it.
pub fn symlink(target: &Path, path: &Path) -> Result<()> {
    create_dir(folder_of(path))?;
    let temp = Temp { path: temp_path(path)?, is_dir: false };
    std::os::unix::fs::symlink(target, &temp.path).map_err(|e| Error::io("make a link at", path, e))?;
    temp.rename(path)
}

/// A folder that becomes visible when everything in it is finished. Dropping it unpublished removes it with all it holds.
#[derive(Debug)]
pub struct AtomicDir {
    /// Open for its lock.
    _handle: File,
    temp: Temp,
    target: PathBuf,
}

impl AtomicDir {
    /// Starts a temporary folder beside `target`, making the folders above if needed.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] if the name is taken: a finished folder is never overwritten.
    pub fn create(target: &Path) -> Result<AtomicDir> {
        refuse_existing(target)?;
        create_dir(folder_of(target))?;
        loop {
            let path = temp_path(target)?;
            fs::create_dir(&path).map_err(|e| Error::io("create", &path, e))?;
            let handle = File::open(&path).map_err(|e| Error::io("create", &path, e))?;
            let temp = Temp { path, is_dir: true };
            if hold(&handle, &temp.path)? {
                return Ok(AtomicDir { _handle: handle, temp, target: target.to_path_buf() });
            }
        }
    }

    /// The temporary folder: write the files here, by any means.
    pub fn path(&self) -> &Path {
        &self.temp.path
    }

    /// Makes every file and folder inside durable and the folder visible under its name.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] if the name was taken meanwhile.
    pub fn publish(self) -> Result<()> {
        sync_tree(&self.temp.path)?;
        refuse_existing(&self.target)?;
        self.temp.rename(&self.target)
    }
}

/// Removes the temporary files and folders that dead processes left for `target`, and returns how many there were. Those of
/// living ones are kept, and so is all that the file system cannot lock.
pub fn remove_stale(target: &Path) -> Result<usize> {
    match target.file_name().and_then(|name| name.to_str()) {
        Some(target_name) => remove_stale_of(folder_of(target), |name| name == target_name),
        None => Ok(0),
    }
}

/// The same for every file that was to be published in `folder`; folders in it are not searched.
pub fn remove_all_stale(folder: &Path) -> Result<usize> {
    remove_stale_of(folder, |_| true)
}

/// Removes the temporary files of dead processes in `folder` whose targets have a name that `is_wanted`.
fn remove_stale_of(folder: &Path, is_wanted: impl Fn(&str) -> bool) -> Result<usize> {
    if storage::is_url(folder) {
        return Ok(0);
    }
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(0),
        entries => entries.map_err(|e| Error::io("list", folder, e))?,
    };
    let mut removed = 0;
    for entry in entries {
        let entry = entry.map_err(|e| Error::io("list", folder, e))?;
        let path = entry.path();
        if !entry.file_name().to_str().and_then(target_name).is_some_and(&is_wanted) {
            continue;
        }
        // Another cleaner, or the writer itself, may be quicker; what is gone needs no removing.
        let Ok(handle) = File::open(&path) else {
            continue;
        };
        if let Err(TryLockError::WouldBlock | TryLockError::Error(_)) = handle.try_lock() {
            continue;
        }
        let is_dir = handle.metadata().is_ok_and(|metadata| metadata.is_dir());
        let result = if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        match result {
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            result => {
                result.map_err(|e| Error::io("remove", &path, e))?;
                removed += 1;
            }
        }
    }
    Ok(removed)
}

/// The name that a temporary file was to be published under: `Some("a.json")` for `.a.json.0123456789abcdef.tmp`, `None` for a
/// name that is not of a temporary file.
pub(crate) fn target_name(temp: &str) -> Option<&str> {
    let (name, random) = temp.strip_prefix('.')?.strip_suffix(SUFFIX)?.rsplit_once('.')?;
    (random.len() == 16 && random.bytes().all(|b| b.is_ascii_hexdigit()) && !name.is_empty()).then_some(name)
}

/// A temporary name that is removed unless it was renamed.
#[derive(Debug)]
struct Temp {
    path: PathBuf,
    is_dir: bool,
}

impl Temp {
    fn rename(self, target: &Path) -> Result<()> {
        self.rename_soon(target)?;
        sync_dir(folder_of(target))
    }

    /// Without waiting until the name is durable.
    #[expect(clippy::disallowed_methods, reason = "the one place that renames")]
    fn rename_soon(self, target: &Path) -> Result<()> {
        fs::rename(&self.path, target).map_err(|e| Error::io("rename a finished temporary file to", target, e))?;
        std::mem::forget(self);
        Ok(())
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        // Nobody can be told of a failure here; what stays is cleared away as stale by the next run.
        let _ = if self.is_dir { fs::remove_dir_all(&self.path) } else { fs::remove_file(&self.path) };
    }
}

/// Locks a new temporary file. False if a cleaner came in between creation and lock and removed it.
fn hold(file: &File, path: &Path) -> Result<bool> {
    // A file system without locks is served too; there, stale files are only reported.
    let _ = file.lock();
    path.try_exists().map_err(|e| Error::io("create", path, e))
}

/// A name that no other process and no other call uses. `RandomState` is seeded by the operating system, anew for each.
fn temp_path(target: &Path) -> Result<PathBuf> {
    let Some(name) = target.file_name().and_then(|name| name.to_str()) else {
        return Err(Error::io(
            "create",
            target,
            std::io::Error::new(ErrorKind::InvalidFilename, "it has no UTF-8 file name"),
        ));
    };
    let random = RandomState::new().build_hasher().finish() ^ u64::from(std::process::id());
    Ok(target.with_file_name(format!(".{name}.{random:016x}{SUFFIX}")))
}

fn folder_of(target: &Path) -> &Path {
    match target.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Makes a folder and those above it, each durable in the one that holds it. An object store has no folders and needs none.
pub fn create_dir(folder: &Path) -> Result<()> {
    if storage::is_url(folder) || folder.is_dir() {
        return Ok(());
    }
    create_dir(folder_of(folder))?;
    match fs::create_dir(folder) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        Err(e) => Err(Error::io("create the folder", folder, e)),
        Ok(()) => sync_dir(folder_of(folder)),
    }
}

/// Makes the names in a folder durable. Some network file systems do it on their own and refuse the call.
fn sync_dir(folder: &Path) -> Result<()> {
    match File::open(folder).and_then(|handle| handle.sync_all()) {
        Err(e) if matches!(e.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => Ok(()),
        result => result.map_err(|e| Error::io("make durable", folder, e)),
    }
}

/// Makes everything in a folder durable, without following links.
fn sync_tree(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(|e| Error::io("list", folder, e))? {
        let entry = entry.map_err(|e| Error::io("list", folder, e))?;
        let path = entry.path();
        let kind = entry.file_type().map_err(|e| Error::io("read", &path, e))?;
        if kind.is_dir() {
            sync_tree(&path)?;
        } else if kind.is_file() {
            File::open(&path).and_then(|file| file.sync_all()).map_err(|e| Error::io("write", &path, e))?;
        }
    }
    sync_dir(folder)
}

fn refuse_existing(target: &Path) -> Result<()> {
    match fs::symlink_metadata(target) {
        Ok(_) => Err(Error::AlreadyExists { path: target.to_path_buf() }),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io("read", target, e)),
    }
}

#[cfg(test)]
mod tests;
