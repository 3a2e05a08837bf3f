//! Files of a cache, on a disk or in an object store, with errors of this crate.

use std::io::ErrorKind;
use std::path::Path;

use storage::Entry;

use crate::{Error, Result};

/// Whether there is a file of this name.
pub(crate) fn exists(path: &Path) -> Result<bool> {
    storage::exists(path).map_err(|e| Error::io("look for", path, e))
}

/// Removes a file that may be gone already.
pub(crate) fn remove(path: &Path) -> Result<()> {
    storage::remove(path).map_err(|e| Error::io("remove", path, e))
}

/// What lies in a folder; nothing if there is no such folder.
pub(crate) fn list(folder: &Path) -> Result<Vec<Entry>> {
    match storage::list(folder) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries.map_err(|e| Error::io("list", folder, e)),
    }
}
