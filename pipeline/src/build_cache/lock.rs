//! One build at a time in a cache.

use std::fs::{File, TryLockError};
use std::path::Path;

use anyhow::{Context, bail};

/// Holds the cache for this build. It is a kernel lock on the folder itself: it leaves no file behind and ends with the process, however
/// the process ends. Two builds at once would publish the same bytes and do no harm, but all work would be done twice.
#[derive(Debug)]
pub(crate) struct Lock {
    folder: File,
}

impl Lock {
    pub(crate) fn take(out: &Path) -> anyhow::Result<Lock> {
        let folder = File::open(out).with_context(|| format!("cannot open {}", out.display()))?;
        match folder.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                bail!("{}: another build is running in this cache", out.display())
            }
            Err(TryLockError::Error(error)) => {
                tracing::debug!("{} cannot be locked here: {error}", out.display())
            }
        }
        Ok(Lock { folder })
    }
}

impl Drop for Lock {
    /// Closing the folder is not enough: a program that another thread of this process is about to start has all files of its parent
    /// open until it runs.
    fn drop(&mut self) {
        // Where there are no locks, there is nothing to undo.
        let _ = self.folder.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_ends_with_its_build_even_if_another_process_has_the_folder_open() {
        let dir = tempfile::tempdir().unwrap();
        let lock = Lock::take(dir.path()).unwrap();
        let refused = Lock::take(dir.path()).unwrap_err().to_string();
        assert!(refused.contains("another build is running"), "{refused}");
        // What a program that is being started has of it.
        let _inherited = lock.folder.try_clone().unwrap();
        drop(lock);
        Lock::take(dir.path()).unwrap();
    }
}
