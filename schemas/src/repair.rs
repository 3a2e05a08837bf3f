//! Taking what is damaged out of a cache, so that a builder builds it again.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::cache::{read_first_generation, read_teacher, teacher_folders};
use crate::files::{exists, remove};
use crate::{CacheIdentity, Error, Result, SamplesCommit, TeacherCommit, TeacherIdentity, atomic, layout};

/// Identity records that cannot be read, out of their place: a builder that knows what they said writes them again. Dropping it puts them back.
#[derive(Debug, Default)]
pub struct SetAside {
    files: Vec<(PathBuf, Vec<u8>)>,
}

impl SetAside {
    /// Takes the damaged `cache.json` and `teacher.json` records out of a cache. Records of another version of the format are not damaged.
    ///
    /// # Errors
    /// I/O.
    pub fn damaged_identities(dir: &Path) -> Result<SetAside> {
        let mut aside = SetAside::default();
        if exists(&layout::cache_json(dir))? {
            aside.take_if_damaged(layout::cache_json(dir), read_first_generation(dir).map(drop))?;
        }
        for id in teacher_folders(dir)? {
            aside.take_if_damaged(layout::teacher_json(dir, &id), read_teacher(dir, &id).map(drop))?;
        }
        Ok(aside)
    }

    fn take_if_damaged(&mut self, path: PathBuf, read: Result<()>) -> Result<()> {
        use Error::{IdentityValue, Misplaced, Record, RecordDigest, RecordSize};
        match read {
            Err(RecordSize { .. } | RecordDigest { .. } | Record { .. } | IdentityValue { .. } | Misplaced { .. }) => {
                let bytes = storage::read(&path).map_err(|e| Error::io("read", &path, e))?;
                remove(&path)?;
                self.files.push((path, bytes));
                Ok(())
            }
            read => read,
        }
    }

    /// The records, where they were.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|(path, _)| path.as_path())
    }

    /// The records have been written again.
    pub fn forget(mut self) {
        self.files.clear();
    }
}

impl Drop for SetAside {
    fn drop(&mut self) {
        for (path, bytes) in &self.files {
            // Nobody can be told of a failure here, and a damaged record is not worth much.
            let _ = atomic::write(path, bytes);
        }
    }
}

/// Whether the parts of a cache are of this identity, as far as their commit records can be read: true if none can.
///
/// # Errors
/// [`Error::Misplaced`] for a part of another cache; I/O.
pub fn parts_are_of(dir: &Path, identity: &CacheIdentity, teachers: &[&TeacherIdentity]) -> Result<()> {
    let other = |read: Result<()>| match read {
        Err(error @ Error::Misplaced { .. }) => Err(error),
        Err(error) if error.is_io() => Err(error),
        _ => Ok(()),
    };
    for part in 0..identity.parts() {
        other(SamplesCommit::read(dir, part, identity).map(drop))?;
        for teacher in teachers {
            other(TeacherCommit::read(dir, part, identity, teacher).map(drop))?;
        }
    }
    Ok(())
}

/// Removes the parts that `problems` of a [`Report`](crate::Report) are about: the commit record first, then the files that it declares. Returns the commit
/// records. Problems of identity records are left alone. Only for a builder that has the cache to itself.
///
/// # Errors
/// I/O.
pub fn drop_damaged(problems: &[Error]) -> Result<Vec<PathBuf>> {
    let commits: BTreeSet<PathBuf> = problems.iter().filter_map(Error::path).filter_map(layout::commit_of).collect();
    for commit in &commits {
        remove(commit)?;
        for file in layout::declared_by(commit) {
            remove(&file)?;
        }
    }
    Ok(commits.into_iter().collect())
}
