//! Reading a teacher's features: any row at any time, from any thread.

use std::collections::BTreeMap;
use std::path::Path;

use crate::{ContentHash, Result, SampleRow, TeacherCommit, TeacherRow};

/// One teacher's features of one part. `Send` and `Sync`: rows are read by position, without a shared cursor.
#[derive(Debug)]
pub struct TeacherPart {
    rows: usize,
    commit: TeacherCommit,
}

impl TeacherPart {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The file.
    pub fn path(&self) -> &Path {
        todo!()
    }

    /// The part's commit record.
    pub fn commit(&self) -> &TeacherCommit {
        &self.commit
    }

    /// Sample, view and content hash of a row, without reading its features.
    pub fn key(&self, row: usize) -> Result<(u64, u16, ContentHash)> {
        let _ = row;
        todo!()
    }

    /// Reads one row and checks it against its checksum.
    pub fn read_row(&self, row: usize) -> Result<TeacherRow> {
        let _ = row;
        todo!()
    }

    /// [`Self::read_row`] into a row that is reused, so that nothing is allocated.
    pub fn read_row_into(&self, row: usize, out: &mut TeacherRow) -> Result<()> {
        let _ = (row, out);
        todo!()
    }

    /// Refuses features that do not belong to this samples row: sample, view and content hash must be equal.
    pub fn check_join(&self, row: usize, features: &TeacherRow, sample: &SampleRow) -> Result<()> {
        let _ = (row, features, sample);
        todo!()
    }

    /// All rows in order, each with its own verdict.
    pub fn iter(&self) -> impl Iterator<Item = Result<TeacherRow>> + '_ {
        (0..self.rows).map(|row| self.read_row(row))
    }

    /// Compressed bytes of each column.
    pub fn column_bytes(&self) -> BTreeMap<String, u64> {
        todo!()
    }
}
