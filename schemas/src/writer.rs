//! Writing a part: rows in, one finished and committed file out.

use std::path::Path;

use crate::{
    CacheIdentity, Reject, Result, SampleRow, SamplesCommit, TeacherCommit, TeacherIdentity,
    TeacherRow,
};

/// Writes `samples/part-*.parquet`, its rejects and its commit. Dropping it unfinished leaves nothing.
#[derive(Debug)]
pub struct SamplesWriter(());

impl SamplesWriter {
    /// Starts part `part` of the samples.
    pub fn create(cache: &Path, part: u32, identity: &CacheIdentity) -> Result<SamplesWriter> {
        let _ = (cache, part, identity);
        todo!()
    }
    /// Appends a row; rows come in ascending order of (sample, view).
    pub fn push(&mut self, row: &SampleRow) -> Result<()> {
        let _ = row;
        todo!()
    }
    /// Publishes the file, the rejects, then the commit that declares both.
    pub fn finish(self, rejects: &[Reject]) -> Result<SamplesCommit> {
        let _ = rejects;
        todo!()
    }
}

/// Writes `teachers/<id>/part-*.parquet` and its commit. Dropping it unfinished leaves nothing.
#[derive(Debug)]
pub struct TeacherWriter(());

impl TeacherWriter {
    /// Starts part `part` of a teacher's features.
    pub fn create(
        cache: &Path,
        part: u32,
        identity: &CacheIdentity,
        teacher: &TeacherIdentity,
    ) -> Result<TeacherWriter> {
        let _ = (cache, part, identity, teacher);
        todo!()
    }
    /// Appends a row; rows come in the order of the samples rows.
    pub fn push(&mut self, row: &TeacherRow) -> Result<()> {
        let _ = row;
        todo!()
    }
    /// Publishes the file, then the commit that declares it.
    pub fn finish(self) -> Result<TeacherCommit> {
        todo!()
    }
}
