//! Whether this is the only build in a cache.

use std::fs::{File, TryLockError};
use std::path::Path;

use anyhow::{Context, anyhow};

use super::workers::{Leases, Worker};
use crate::recipe::Run;

/// Others build here. It may be tried again when they have ended.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Busy(pub(super) String);

/// A lock on the folder of the cache, which a build holds as long as it lives: alone at first, if nobody else does, so that it may
/// start over what a build of other settings had begun; then shared with others. It is a kernel lock: it leaves no file behind and ends with the process,
/// however the process ends.
#[derive(Debug)]
pub(crate) struct Lock {
    held: Held,
    alone: bool,
}

#[derive(Debug)]
enum Held {
    Folder(File),
    /// A bucket has no locks. Builds announce themselves first and look for others then: of two that begin at once at least one sees the other.
    Bucket {
        _announced: Worker,
    },
}

impl Lock {
    pub(crate) fn take(out: &Path, leases: &Leases) -> anyhow::Result<Lock> {
        if storage::is_url(out) {
            let announced = leases.announce()?;
            let alone = leases.living(Some(announced.id()))?.is_empty();
            return Ok(Lock { held: Held::Bucket { _announced: announced }, alone });
        }
        let folder = File::open(out).with_context(|| format!("cannot open {}", out.display()))?;
        let alone = match folder.try_lock() {
            Ok(()) => true,
            Err(TryLockError::WouldBlock) => {
                // It is held alone only to write the identity records, and while a cache is repaired.
                tracing::info!("{}: another build is at work here; waiting until it can be joined", out.display());
                let _ = folder.lock_shared();
                false
            }
            Err(TryLockError::Error(error)) => {
                tracing::debug!("{} cannot be locked here: {error}", out.display());
                true
            }
        };
        Ok(Lock { held: Held::Folder(folder), alone })
    }

    /// Whether nobody else builds here, as far as locks tell: other machines may not see them.
    pub(crate) fn is_alone(&self) -> bool {
        self.alone
    }

    /// Lets others build here too.
    pub(crate) fn share(&self) {
        if let Held::Folder(folder) = &self.held {
            // A file system without locks refuses this, and lets others build anyway.
            let _ = folder.try_lock_shared();
        }
    }
}

/// Writes to a cache beside other builders.
pub(crate) fn join_builders(out: &Path) -> anyhow::Result<Lock> {
    let lock = Lock::take(out, &Leases::new(out, Run::default().patience()))?;
    lock.share();
    Ok(lock)
}

/// Has a cache to itself, or is refused.
pub(crate) fn refuse_builders(out: &Path) -> anyhow::Result<Lock> {
    let leases = Leases::new(out, Run::default().patience());
    let lock = Lock::take(out, &leases)?;
    // In a bucket, being alone is what the leases say.
    if lock.is_alone() && (storage::is_url(out) || leases.living(None)?.is_empty()) {
        return Ok(lock);
    }
    Err(Busy(format!("{}: a build is at work here; wait for its end", out.display())).into())
}

/// The error that a cache lacks something, in words: it may be tried again if a build is at work that may be about to make it.
pub(crate) fn unfinished(out: &Path, problem: String) -> anyhow::Error {
    match is_being_built(out) {
        true => Busy(format!("{problem}. A build is at work here: try again when it has ended")).into(),
        false => anyhow!(problem),
    }
}

/// Whether a build is at work in a cache, for a process that does not hold its lock.
pub(crate) fn is_being_built(out: &Path) -> bool {
    // If that cannot be found out, the error is not one to wait for.
    let lives = Leases::new(out, Run::default().patience()).living(None).is_ok_and(|living| !living.is_empty());
    let is_locked = || {
        let folder = File::open(out).ok()?;
        let locked = matches!(folder.try_lock(), Err(TryLockError::WouldBlock));
        let _ = folder.unlock();
        Some(locked)
    };
    lives || (!storage::is_url(out) && is_locked().unwrap_or(false))
}

impl Drop for Lock {
    /// Closing the folder is not enough: a program that another thread of this process is about to start has all files of its parent
    /// open until it runs.
    fn drop(&mut self) {
        if let Held::Folder(folder) = &self.held {
            // A file system without locks refuses this, which does no harm.
            let _ = folder.unlock();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_lock_ends_with_its_build_even_if_another_process_has_the_folder_open() {
        let dir = tempfile::tempdir().unwrap();
        let leases = Leases::new(dir.path(), Duration::from_secs(3600));
        let take = || Lock::take(dir.path(), &leases).unwrap();
        let lock = take();
        assert!(lock.is_alone());
        // What a program that is being started has of it.
        let Held::Folder(folder) = &lock.held else { panic!("a folder was locked") };
        let _inherited = folder.try_clone().unwrap();
        drop(lock);
        let lock = take();
        assert!(lock.is_alone());
        lock.share();
        assert!(!take().is_alone());
        let second = take();
        drop(lock);
        // The second is still there.
        assert!(!take().is_alone());
        drop(second);
        assert!(take().is_alone());
    }
}
