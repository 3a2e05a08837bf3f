//! Reading a teacher's features: any row at any time, from any thread.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{PoisonError, RwLock};

use crate::columns::{Column, teacher_checksum, teacher_columns};
use crate::page::{Page, Values};
use crate::part_file::{Expected, Fetch, PartFile, RowGroup};
use crate::rules::RowRules;
use crate::{CacheIdentity, ContentHash, Error, Result, RowKey, TeacherCommit, TeacherIdentity, TeacherRow, layout};

/// One teacher's features of one part. `Send` and `Sync`: rows are read by position, without a shared cursor.
///
/// Opening reads the footer and the small columns; a row then costs one positioned read per feature.
#[derive(Debug)]
pub struct TeacherPart {
    file: PartFile,
    commit: TeacherCommit,
    columns: [Column; 7],
    heads: RwLock<Vec<Result<Head, Damage>>>,
}

/// The small columns of a row.
#[derive(Clone, Copy, Debug)]
struct Head {
    key: RowKey,
    checksum: u64,
}

/// What is wrong with a row.
#[derive(Clone, Debug)]
struct Damage {
    column: &'static str,
    detail: String,
}

// Positions of the columns in the file.
const SAMPLE_ID: usize = 0;
const VIEW: usize = 1;
const CONTENT_HASH: usize = 2;
const TOKENS: usize = 3;
const CLS: usize = 4;
const CLS_ATTN: usize = 5;
const CHECKSUM: usize = 6;

/// The small columns.
const HEADS: [usize; 4] = [SAMPLE_ID, VIEW, CONTENT_HASH, CHECKSUM];

/// Rows that are on their way while rows are read in order over a network.
pub(crate) const AHEAD: usize = 64;

thread_local! {
    /// Compressed bytes on their way; a row's are too many for the allocator to hand out anew without asking the kernel.
    static PAGE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl TeacherPart {
    pub(crate) fn open(
        cache: &Path,
        part: u32,
        identity: &CacheIdentity,
        teacher: &TeacherIdentity,
        commit: TeacherCommit,
    ) -> Result<TeacherPart> {
        let columns = teacher_columns(teacher);
        let expected = Expected {
            part,
            stamp: &commit.file,
            columns: &columns,
            cache_fingerprint: identity.part_fingerprint(part),
            teacher_fingerprint: Some(teacher.fingerprint()),
        };
        let file = PartFile::open(&layout::teacher_file(cache, &teacher.id, part), &expected)?;
        let mut part = TeacherPart { file, commit, columns, heads: RwLock::default() };
        let mut heads = Vec::new();
        for group in &part.file.groups {
            part.read_heads(group, &mut heads)?;
        }
        part.heads = RwLock::new(heads);
        if part.file.is_remote() {
            // A row that turns out to be damaged is read again, its small columns too.
            return Ok(part);
        }
        for group in &mut part.file.groups {
            HEADS.into_iter().for_each(|column| group.chunks[column].forget_pages());
        }
        Ok(part)
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.file.rows
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    /// The part's commit record.
    pub fn commit(&self) -> &TeacherCommit {
        &self.commit
    }

    /// Which row it is, without reading its features and so without checking its checksum.
    pub fn key(&self, row: usize) -> Result<RowKey> {
        Ok(self.head(row)?.key)
    }

    /// Reads one row and checks it against its checksum.
    ///
    /// # Errors
    /// [`Error::RowUnreadable`] and [`Error::RowChecksum`] name the row if it is damaged; other rows can be read all the same.
    pub fn read_row(&self, row: usize) -> Result<TeacherRow> {
        let mut out = TeacherRow::default();
        self.read_row_into(row, &mut out)?;
        Ok(out)
    }

    /// [`Self::read_row`] into a row whose memory is reused. After an error its contents are unspecified.
    pub fn read_row_into(&self, row: usize, out: &mut TeacherRow) -> Result<()> {
        self.file.read_patiently(|fetch| {
            if fetch == Fetch::Again && row < self.rows() {
                self.read_head_again(row)?;
            }
            self.read_row_from(row, out, fetch)
        })
    }

    /// Begins to fetch a row, if it has to come over a network. Nothing is done for a row that there is not.
    pub fn prefetch_row(&self, row: usize) {
        if row < self.rows() && self.file.is_remote() {
            let group = self.group_of(row);
            let page = |column: usize| group.chunks[column].page(row - group.first_row);
            self.file.prefetch([TOKENS, CLS, CLS_ATTN].map(page));
        }
    }

    fn group_of(&self, row: usize) -> &RowGroup {
        &self.file.groups[self.file.groups.partition_point(|group| group.first_row <= row) - 1]
    }

    fn read_row_from(&self, row: usize, out: &mut TeacherRow, fetch: Fetch) -> Result<()> {
        let head = self.head(row)?;
        out.key = head.key;
        let group = self.group_of(row);
        for (column, blob) in [(TOKENS, &mut out.tokens), (CLS, &mut out.cls), (CLS_ATTN, &mut out.cls_attn)] {
            let chunk = &group.chunks[column];
            let (offset, length) = chunk.page(row - group.first_row);
            PAGE.with_borrow_mut(|bytes| {
                bytes.resize(length, 0);
                self.file.read_at(offset, bytes, fetch)?;
                let read =
                    Page::open(bytes).and_then(|page| self.columns[column].decompress_row(&page, group, column, blob));
                read.map_err(|detail| self.unreadable(row, self.columns[column].name, detail))
            })?;
        }
        let found = teacher_checksum(&out.key, out.features());
        if found == head.checksum {
            return Ok(());
        }
        Err(Error::RowChecksum { path: self.file.path.clone(), row, found, expected: head.checksum })
    }

    /// Refuses features, read from `row`, that do not belong to the samples row with the key `sample`.
    ///
    /// # Errors
    /// [`Error::Join`] names the column that differs.
    pub fn check_join(&self, row: usize, features: &RowKey, sample: &RowKey) -> Result<()> {
        let check = |column: &str, equal: bool, found: &dyn ToString, expected: &dyn ToString| {
            if equal {
                return Ok(());
            }
            let (column, found, expected) = (column.to_string(), found.to_string(), expected.to_string());
            Err(Error::Join { path: self.file.path.clone(), row, column, found, expected })
        };
        check("sample_id", features.sample_id == sample.sample_id, &features.sample_id, &sample.sample_id)?;
        check("view", features.view == sample.view, &features.view, &sample.view)?;
        check(
            "content_hash",
            features.content_hash == sample.content_hash,
            &features.content_hash,
            &sample.content_hash,
        )
    }

    /// All rows in order, each with its own verdict.
    pub fn iter(&self) -> impl Iterator<Item = Result<TeacherRow>> + '_ {
        (0..AHEAD).for_each(|row| self.prefetch_row(row));
        (0..self.rows()).map(|row| {
            self.prefetch_row(row + AHEAD);
            self.read_row(row)
        })
    }

    /// Compressed bytes of each column.
    pub fn column_bytes(&self) -> BTreeMap<String, u64> {
        self.file.column_bytes(&self.columns)
    }

    pub(crate) fn file(&self) -> &PartFile {
        &self.file
    }

    /// The rules that the rows of this part must satisfy in order.
    pub(crate) fn rules(&self, identity: &CacheIdentity) -> RowRules {
        RowRules::new(self.file.path.clone(), identity, self.commit.part)
    }

    fn head(&self, row: usize) -> Result<Head> {
        match self.heads.read().unwrap_or_else(PoisonError::into_inner).get(row) {
            Some(Ok(head)) => Ok(*head),
            Some(Err(damage)) => Err(self.unreadable(row, damage.column, damage.detail.clone())),
            None => Err(Error::NoSuchRow { path: self.file.path.clone(), row, rows: self.rows() }),
        }
    }

    fn unreadable(&self, row: usize, column: &str, detail: String) -> Error {
        Error::RowUnreadable { path: self.file.path.clone(), row, column: column.to_string(), detail }
    }

    /// Reads the small columns of a row group, each with one positioned read.
    fn read_heads(&self, group: &RowGroup, heads: &mut Vec<Result<Head, Damage>>) -> Result<()> {
        self.file.prefetch(HEADS.map(|column| group.chunks[column].extent()));
        let mut chunks = Vec::new();
        for column in HEADS {
            let (offset, length) = group.chunks[column].extent();
            let mut bytes = vec![0; length];
            self.file.read_at(offset, &mut bytes, Fetch::Usual)?;
            chunks.push((offset, bytes));
        }
        for i in 0..group.rows {
            let pages: [&[u8]; 4] = std::array::from_fn(|at| {
                let (start, bytes) = &chunks[at];
                let (offset, length) = group.chunks[HEADS[at]].page(i);
                &bytes[(offset - start) as usize..][..length]
            });
            heads.push(self.parse_head(group, pages));
        }
        Ok(())
    }

    /// Reads the small columns of one row again from the object store.
    fn read_head_again(&self, row: usize) -> Result<()> {
        let group = self.group_of(row);
        let mut pages: [Vec<u8>; 4] = Default::default();
        for (page, column) in pages.iter_mut().zip(HEADS) {
            let (offset, length) = group.chunks[column].page(row - group.first_row);
            page.resize(length, 0);
            self.file.read_at(offset, page, Fetch::Again)?;
        }
        let head = self.parse_head(group, pages.each_ref().map(Vec::as_slice));
        self.heads.write().unwrap_or_else(PoisonError::into_inner)[row] = head;
        Ok(())
    }

    /// The small columns of a row from their pages.
    fn parse_head(&self, group: &RowGroup, pages: [&[u8]; 4]) -> Result<Head, Damage> {
        let (mut fields, mut value) = ([[0; 16]; 4], Vec::new());
        for ((column, page), field) in HEADS.into_iter().zip(pages).zip(&mut fields) {
            Page::open(page)
                .and_then(|page| self.columns[column].decompress_row(&page, group, column, &mut value))
                .map_err(|detail| Damage { column: self.columns[column].name, detail })?;
            field[..value.len()].copy_from_slice(&value);
        }
        let number = |field: &[u8; 16]| Values::new(field).u64().expect("16 bytes hold a number of 8");
        let view = u16::try_from(number(&fields[1]));
        let key = RowKey {
            sample_id: number(&fields[0]),
            view: view.map_err(|e| Damage { column: "view", detail: e.to_string() })?,
            content_hash: ContentHash(fields[2]),
        };
        Ok(Head { key, checksum: number(&fields[3]) })
    }
}

impl Column {
    /// The one value of a page of a required column of fixed width.
    fn decompress_row(
        &self,
        page: &Page<'_>,
        group: &RowGroup,
        column: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), String> {
        let width = self.width();
        if page.rows != 1 {
            return Err(format!("its page has {} rows instead of 1", page.rows));
        }
        page.decompress(group.chunks[column].compression, width, out)?;
        if out.len() == width { Ok(()) } else { Err(format!("its page has {} bytes instead of {width}", out.len())) }
    }
}
