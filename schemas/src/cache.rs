//! A cache as a whole: making it, extending it, opening it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::{
    CacheIdentity, Reject, Result, SampleRow, SamplesCommit, TeacherCommit, TeacherId,
    TeacherIdentity, TeacherPart,
};

/// Makes the cache's folder and writes `cache.json`; where there is one already, checks that it says the same.
///
/// # Errors
/// [`Error::IdentityChanged`](crate::Error::IdentityChanged) names the first field in which an existing cache differs.
pub fn create_cache(dir: &Path, identity: &CacheIdentity) -> Result<()> {
    let _ = (dir, identity);
    todo!()
}

/// Writes the teacher's `teacher.json`; where there is one already, checks that it says the same.
pub fn add_teacher(dir: &Path, teacher: &TeacherIdentity) -> Result<()> {
    let _ = (dir, teacher);
    todo!()
}

/// What [`create_cache`] would refuse, without writing. True if the cache exists, false if it would be made.
pub fn check_cache(dir: &Path, identity: &CacheIdentity) -> Result<bool> {
    let _ = (dir, identity);
    todo!()
}

/// What [`add_teacher`] would refuse, without writing. True if the teacher exists, false if it would be added.
pub fn check_teacher(dir: &Path, teacher: &TeacherIdentity) -> Result<bool> {
    let _ = (dir, teacher);
    todo!()
}

/// Removes what killed builders left of this part: temporary files of the samples, rejects and every teacher.
/// Files of living builders are kept. Returns how many were removed.
pub fn remove_stale(dir: &Path, part: u32) -> Result<usize> {
    let _ = (dir, part);
    todo!()
}

/// An opened cache. Holds the identities; parts are read when asked for.
#[derive(Clone, Debug)]
pub struct Cache {
    dir: PathBuf,
    identity: CacheIdentity,
    teachers: BTreeMap<TeacherId, TeacherIdentity>,
}

/// Which records of a part are committed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PartState {
    /// The samples' commit record, if there is one.
    pub samples: Option<SamplesCommit>,
    /// The commit records of the teachers that have one.
    pub teachers: BTreeMap<TeacherId, TeacherCommit>,
}

impl Cache {
    /// Reads `cache.json` and every `teacher.json`.
    pub fn open(dir: &Path) -> Result<Cache> {
        let _ = dir;
        todo!()
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The identity.
    pub fn identity(&self) -> &CacheIdentity {
        &self.identity
    }

    /// The teachers, by name.
    pub fn teachers(&self) -> &BTreeMap<TeacherId, TeacherIdentity> {
        &self.teachers
    }

    /// The commit records of a part. A record that is there but damaged is an error.
    pub fn part_state(&self, part: u32) -> Result<PartState> {
        let _ = part;
        todo!()
    }

    /// The parts that lack the samples' or any teacher's commit record.
    pub fn missing_parts(&self) -> Result<Vec<u32>> {
        todo!()
    }

    /// The rows of a samples file, each checked against its checksum.
    pub fn samples(&self, part: u32) -> Result<Vec<SampleRow>> {
        let _ = part;
        todo!()
    }

    /// The lines of a rejects file, each checked.
    pub fn rejects(&self, part: u32) -> Result<Vec<Reject>> {
        let _ = part;
        todo!()
    }

    /// Compressed bytes of each column of a samples file.
    pub fn samples_column_bytes(&self, part: u32) -> Result<BTreeMap<String, u64>> {
        let _ = part;
        todo!()
    }

    /// Opens a teacher's features of a part.
    pub fn teacher_part(&self, id: &TeacherId, part: u32) -> Result<TeacherPart> {
        let _ = (id, part);
        todo!()
    }
}
