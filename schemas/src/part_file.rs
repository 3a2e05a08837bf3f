//! A committed Parquet file, opened: its size and footer hold against the commit record before anything in it is believed.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use parquet::basic::Compression;
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};
use parquet::schema::types::Type;
use sha2::{Digest, Sha256};

use crate::columns::{Column, KEY_CACHE_FINGERPRINT, KEY_PART, KEY_TEACHER_FINGERPRINT, schema};
use crate::commit::check_place;
use crate::page::{PageLocation, read_offset_index};
use crate::{Error, FileStamp, Result, json, parquet_shape};
use storage::File;

/// What a part file must be, from the identities and its commit record.
#[derive(Debug)]
pub(crate) struct Expected<'a> {
    pub(crate) part: u32,
    pub(crate) stamp: &'a FileStamp,
    pub(crate) columns: &'a [Column],
    pub(crate) cache_fingerprint: String,
    pub(crate) teacher_fingerprint: Option<String>,
}

/// An open part file.
#[derive(Debug)]
pub(crate) struct PartFile {
    pub(crate) path: PathBuf,
    pub(crate) rows: usize,
    pub(crate) groups: Vec<RowGroup>,
    file: File,
}

/// Where bytes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fetch {
    /// From wherever they are quickest.
    Usual,
    /// From the object store itself; on a disk no different.
    Again,
}

/// A row group: where the pages of its columns lie.
#[derive(Debug)]
pub(crate) struct RowGroup {
    /// The group's first row, counted in the file.
    pub(crate) first_row: usize,
    pub(crate) rows: usize,
    /// In the order of the columns.
    pub(crate) chunks: Vec<Chunk>,
}

/// One column of one row group. A cache has millions of rows and a reader may keep many parts open, so this is kept small: pages
/// follow one another, and one number says where each ends and the next begins.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) compression: Compression,
    /// Where each page begins, and last where the chunk ends.
    offsets: Vec<u64>,
    /// The first row of each page, counted in the group, and last the group's rows; empty if each row is a page.
    first_rows: Vec<u64>,
}

impl Chunk {
    /// `pages` have been found to follow one another and to cover the rows.
    fn new(compression: Compression, pages: &[PageLocation], rows: usize) -> Chunk {
        let end = pages.last().map_or(0, |page| page.offset + u64::from(page.size));
        let offsets = pages.iter().map(|page| page.offset).chain([end]).collect();
        let first_rows = pages.iter().map(|page| page.first_row).chain([rows as u64]);
        Chunk { compression, offsets, first_rows: if pages.len() == rows { Vec::new() } else { first_rows.collect() } }
    }

    pub(crate) fn n_pages(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Where a page's header begins in the file, and the bytes of the page.
    pub(crate) fn page(&self, page: usize) -> (u64, usize) {
        (self.offsets[page], (self.offsets[page + 1] - self.offsets[page]) as usize)
    }

    /// The rows of a page, counted in the group.
    pub(crate) fn page_rows(&self, page: usize) -> Range<usize> {
        match self.first_rows.get(page..page + 2) {
            Some(rows) => rows[0] as usize..rows[1] as usize,
            None => page..page + 1,
        }
    }

    /// Where the chunk begins in the file, and its bytes.
    pub(crate) fn extent(&self) -> (u64, usize) {
        let (start, end) = (self.offsets[0], self.offsets[self.n_pages()]);
        (start, (end - start) as usize)
    }

    /// Forgets where single pages lie.
    pub(crate) fn forget_pages(&mut self) {
        let (start, length) = self.extent();
        self.offsets = vec![start, start + length as u64];
    }
}

impl PartFile {
    /// Opens the file. The size is compared first, then the footer's hash; only then is the footer parsed.
    pub(crate) fn open(path: &Path, expected: &Expected) -> Result<PartFile> {
        let stamp = expected.stamp;
        let io = |e| Error::io("read", path, e);
        let file = match storage::open(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                return Err(Error::FileMissing { path: path.to_path_buf() });
            }
            file => file.map_err(io)?,
        };
        let found = file.len().map_err(io)?;
        if found != stamp.bytes {
            return Err(Error::FileSize { path: path.to_path_buf(), found, expected: stamp.bytes });
        }
        let data_end =
            stamp.bytes.checked_sub(stamp.footer_bytes).ok_or_else(|| Error::Footer { path: path.to_path_buf() })?;
        // No larger than the file, which is there.
        let mut footer = vec![0; stamp.footer_bytes as usize];
        file.read_exact_at(&mut footer, data_end).map_err(io)?;
        let is_sound = |footer: &[u8]| json::sha256_hex(footer) == stamp.footer_sha256;
        for _ in 0..storage::COPIES {
            if is_sound(&footer) || !file.read_again_at(&mut footer, data_end).map_err(io)? {
                break;
            }
        }
        if !is_sound(&footer) {
            return Err(Error::Footer { path: path.to_path_buf() });
        }
        let metadata = parse_footer(&footer).map_err(|detail| Error::Parquet { path: path.to_path_buf(), detail })?;
        check_columns(path, metadata.file_metadata().schema(), expected.columns)?;
        check_key_values(path, &metadata, expected)?;
        let groups = row_groups(&metadata, &footer, data_end, expected.columns)
            .map_err(|detail| Error::Parquet { path: path.to_path_buf(), detail })?;
        let rows = groups.last().map_or(0, |group| group.first_row + group.rows);
        if rows as u64 != stamp.rows {
            return Err(Error::RowCount { path: path.to_path_buf(), found: rows as u64, expected: stamp.rows });
        }
        Ok(PartFile { path: path.to_path_buf(), rows, groups, file })
    }

    /// Fills `bytes` from a place in the file.
    pub(crate) fn read_at(&self, offset: u64, bytes: &mut [u8], fetch: Fetch) -> Result<()> {
        let io = |e| Error::io("read", &self.path, e);
        if fetch == Fetch::Again && self.file.read_again_at(bytes, offset).map_err(io)? {
            return Ok(());
        }
        self.file.read_exact_at(bytes, offset).map_err(io)
    }

    /// Calls `read`, and a few times more as long as it finds damage that may have come on the way from an object store.
    pub(crate) fn read_patiently<T>(&self, mut read: impl FnMut(Fetch) -> Result<T>) -> Result<T> {
        let mut result = read(Fetch::Usual);
        for _ in 0..storage::COPIES {
            match &result {
                Err(error) if self.file.is_remote() && !error.is_io() => result = read(Fetch::Again),
                _ => break,
            }
        }
        result
    }

    /// Begins to read what [`Self::read_at`] will be asked for, if it has to come over a network.
    pub(crate) fn prefetch(&self, ranges: impl IntoIterator<Item = (u64, usize)>) {
        self.file.prefetch(ranges);
    }

    /// Whether reads go over a network.
    pub(crate) fn is_remote(&self) -> bool {
        self.file.is_remote()
    }

    /// Compressed bytes of each column, page headers included.
    pub(crate) fn column_bytes(&self, columns: &[Column]) -> BTreeMap<String, u64> {
        let bytes = |i: usize| self.groups.iter().map(|group| group.chunks[i].extent().1 as u64).sum();
        columns.iter().enumerate().map(|(i, column)| (column.name.to_string(), bytes(i))).collect()
    }

    /// Hashes the whole file and compares it with the commit record.
    pub(crate) fn check_hash(&self, stamp: &FileStamp) -> Result<()> {
        self.read_patiently(|fetch| self.check_hash_of(stamp, fetch))
    }

    fn check_hash_of(&self, stamp: &FileStamp, fetch: Fetch) -> Result<()> {
        let mut hash = Sha256::new();
        let mut buffer = vec![0; if self.file.is_remote() { 8 << 20 } else { 1 << 20 }];
        let mut offset = 0;
        while offset < stamp.bytes {
            let count = (stamp.bytes - offset).min(buffer.len() as u64);
            let bytes = &mut buffer[..count as usize];
            self.read_at(offset, bytes, fetch)?;
            hash.update(bytes);
            offset += count;
        }
        if json::hex(&hash.finalize()) == stamp.sha256 {
            Ok(())
        } else {
            Err(Error::FileHash { path: self.path.clone() })
        }
    }
}

/// The footer's metadata. A hash has vouched for the bytes, but their writer may have meant harm: they are looked at first, and the Parquet
/// library's panics become errors.
fn parse_footer(footer: &[u8]) -> Result<ParquetMetaData, String> {
    let (rest, magic) = footer.split_last_chunk::<4>().ok_or("it has no footer")?;
    let (rest, length) = rest.split_last_chunk::<4>().ok_or("it has no footer")?;
    let length = u32::from_le_bytes(*length) as usize;
    let start = rest.len().checked_sub(length).filter(|_| magic == b"PAR1").ok_or("it has no Parquet footer")?;
    parquet_shape::check_footer(&rest[start..])?;
    let parse = AssertUnwindSafe(|| ParquetMetaDataReader::decode_metadata(&rest[start..]));
    match catch_unwind(parse) {
        Ok(metadata) => metadata.map_err(|e| e.to_string()),
        Err(_) => Err("its footer makes no sense to the Parquet library".to_string()),
    }
}

/// Names the first column that differs from the format's.
fn check_columns(path: &Path, found: &Type, columns: &[Column]) -> Result<()> {
    let expected = schema(columns);
    if found.get_fields() == expected.get_fields() {
        return Ok(());
    }
    let show = |field: Option<&std::sync::Arc<Type>>| field.map_or("missing".to_string(), |field| describe(field));
    let count = found.get_fields().len().max(columns.len());
    for i in 0..count {
        let (found, expected) = (found.get_fields().get(i), expected.get_fields().get(i));
        if found != expected {
            let name = expected.or(found).map_or(String::new(), |field| field.name().to_string());
            return Err(Error::Column {
                path: path.to_path_buf(),
                column: name,
                found: show(found),
                expected: show(expected),
            });
        }
    }
    Ok(())
}

/// For example `"tokens" REQUIRED FIXED_LEN_BYTE_ARRAY(301056)`.
fn describe(field: &Type) -> String {
    let info = field.get_basic_info();
    match field {
        Type::GroupType { .. } => format!("{:?} (a group)", field.name()),
        Type::PrimitiveType { physical_type, type_length, .. } => {
            let repetition = if info.has_repetition() { info.repetition().to_string() } else { String::new() };
            let length = if *type_length >= 0 { format!("({type_length})") } else { String::new() };
            let logical = info.logical_type_ref().map_or(String::new(), |logical| format!(" {logical:?}"));
            format!("{:?} {repetition} {physical_type}{length}{logical}", field.name())
        }
    }
}

/// A file that was copied from another cache, teacher or part gives itself away.
fn check_key_values(path: &Path, metadata: &ParquetMetaData, expected: &Expected) -> Result<()> {
    let entries = metadata.file_metadata().key_value_metadata().map_or(&[][..], |entries| &entries[..]);
    let check = |key: &str, expected: &str| {
        let found = entries.iter().find(|entry| entry.key == key).and_then(|entry| entry.value.clone());
        check_place(
            path,
            &format!("key-value entry {key}"),
            &found.unwrap_or("missing".to_string()),
            &expected.to_string(),
        )
    };
    check(KEY_PART, &expected.part.to_string())?;
    check(KEY_CACHE_FINGERPRINT, &expected.cache_fingerprint)?;
    expected.teacher_fingerprint.as_ref().map_or(Ok(()), |fingerprint| check(KEY_TEACHER_FINGERPRINT, fingerprint))
}

/// Where the pages lie. Every location is held against the file's size and the rows before it is believed.
fn row_groups(
    metadata: &ParquetMetaData,
    footer: &[u8],
    data_end: u64,
    columns: &[Column],
) -> Result<Vec<RowGroup>, String> {
    let mut groups = Vec::new();
    let mut first_row = 0usize;
    // What every row takes in the columns that are not compressed. It bounds what readers make room for.
    let plain = columns.iter().filter(|column| !column.optional && !column.zstd);
    let row_bytes: usize = plain.map(Column::width).sum();
    for (g, group) in metadata.row_groups().iter().enumerate() {
        let rows = usize::try_from(group.num_rows()).map_err(|e| e.to_string())?;
        first_row
            .checked_add(rows)
            .filter(|&rows| rows as u64 <= data_end / row_bytes as u64)
            .ok_or_else(|| format!("row group {g} has more rows than the file has bytes for"))?;
        let mut chunks = Vec::new();
        for (column, chunk) in columns.iter().zip(group.columns()) {
            let place = || format!("row group {g}, column {}", column.name);
            let index = chunk.offset_index_range().ok_or_else(|| format!("{} has no page index", place()))?;
            let bytes = index_bytes(footer, data_end, &index)
                .ok_or_else(|| format!("{}: the page index lies outside the footer", place()))?;
            let pages = read_offset_index(bytes).map_err(|detail| format!("{}: {detail}", place()))?;
            check_pages(&pages, rows, data_end).map_err(|detail| format!("{}: {detail}", place()))?;
            if column.page_rows == 1 && pages.len() != rows {
                return Err(format!("{} has not one page per row", place()));
            }
            chunks.push(Chunk::new(chunk.compression(), &pages, rows));
        }
        if chunks.len() != columns.len() {
            return Err(format!("row group {g} has {} columns", chunks.len()));
        }
        groups.push(RowGroup { first_row, rows, chunks });
        first_row += rows;
    }
    Ok(groups)
}

fn index_bytes<'a>(footer: &'a [u8], data_end: u64, range: &Range<u64>) -> Option<&'a [u8]> {
    let start = usize::try_from(range.start.checked_sub(data_end)?).ok()?;
    let end = usize::try_from(range.end.checked_sub(data_end)?).ok()?;
    footer.get(start..end)
}

/// Pages follow one another without a gap, lie before the footer, and begin with ascending rows.
fn check_pages(pages: &[PageLocation], rows: usize, data_end: u64) -> Result<(), String> {
    let mut next: Option<(u64, u64)> = None;
    for page in pages {
        let end = page.offset.checked_add(page.size.into()).filter(|&end| end <= data_end);
        let (Some(end), true) = (end, page.size > 0 && page.first_row < rows as u64) else {
            return Err("a page lies outside the data".to_string());
        };
        let follows = match next {
            None => page.first_row == 0,
            Some((offset, row)) => page.offset == offset && page.first_row > row,
        };
        if !follows {
            return Err("its pages do not follow one another".to_string());
        }
        next = Some((end, page.first_row));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::columns::samples_columns;
    use crate::layout;
    use crate::testing::Tiny;

    fn location(offset: u64, size: u32, first_row: u64) -> PageLocation {
        PageLocation { offset, size, first_row }
    }

    #[test]
    fn pages_must_follow_one_another_inside_the_data() {
        let check = |pages: &[PageLocation]| check_pages(pages, 5, 100);
        assert_eq!(check(&[location(4, 50, 0), location(54, 46, 3)]), Ok(()));
        for bad in [
            [location(4, 50, 0), location(54, 47, 3)],
            [location(4, 50, 0), location(u64::MAX, 1, 3)],
            [location(4, 50, 0), location(55, 10, 3)],
            [location(4, 50, 0), location(54, 10, 0)],
            [location(4, 50, 0), location(54, 10, 5)],
            [location(4, 50, 0), location(54, 0, 3)],
            [location(4, 50, 1), location(54, 10, 3)],
        ] {
            assert!(check(&bad).is_err(), "{bad:?}");
        }
    }

    /// A footer may promise any number of rows; no reader may make room for them before it has seen bytes for them.
    #[test]
    fn a_footer_that_promises_endless_rows_is_refused() {
        let (dir, tiny) = (tempfile::tempdir().unwrap(), Tiny::least());
        tiny.build(dir.path());
        let bytes = std::fs::read(layout::samples_file(dir.path(), 0)).unwrap();
        let length = u32::from_le_bytes(bytes[bytes.len() - 8..][..4].try_into().unwrap());
        let metadata = parse_footer(&bytes[bytes.len() - 8 - length as usize..]).unwrap();
        let promise = |rows: i64| {
            let group = metadata.row_group(0).clone().into_builder().set_num_rows(rows).build().unwrap();
            let metadata = metadata.clone().into_builder().set_row_groups(vec![group]).build();
            // The whole file stands in for the footer: what is asked for lies at its end.
            row_groups(&metadata, &bytes[4..], 4, &samples_columns())
        };
        for rows in [i64::MAX, 1 << 40, 5] {
            assert!(promise(rows).unwrap_err().contains("more rows than the file has bytes"), "{rows}");
        }
        assert!(promise(-1).is_err());
    }
}
