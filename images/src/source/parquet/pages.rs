//! Reading single pages of a column, by position and from many threads.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parquet::column::page::PageReader;
use parquet::column::reader::ColumnReaderImpl;
use parquet::data_type::{ByteArray, ByteArrayType, DataType, Int32Type, Int64Type};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::reader::{ChunkReader, Length};
use parquet::file::serialized_reader::SerializedPageReader;

use super::explain;
use crate::SourceError;
use crate::source::io_error;

/// A file that is read by position. The `parquet` crate's own reader of files moves a cursor that all threads would share.
pub(super) struct Pread {
    file: Arc<File>,
    len: u64,
}

impl Pread {
    pub(super) fn new(path: &Path, file: &Arc<File>) -> std::result::Result<Self, SourceError> {
        let len = file.metadata().map_err(io_error(path))?.len();
        Ok(Self {
            file: file.clone(),
            len,
        })
    }
}

impl Length for Pread {
    fn len(&self) -> u64 {
        self.len
    }
}

impl ChunkReader for Pread {
    type T = BufReader<Cursor>;

    fn get_read(&self, start: u64) -> Result<Self::T> {
        Ok(BufReader::new(Cursor {
            file: self.file.clone(),
            position: start,
        }))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        // Lengths come from the file: one past its end must not become an allocation.
        if start
            .checked_add(length as u64)
            .is_none_or(|end| end > self.len)
        {
            return Err(ParquetError::EOF(format!(
                "{length} bytes at {start} reach past the end of the file"
            )));
        }
        let mut data = vec![0; length];
        self.file.read_exact_at(&mut data, start)?;
        Ok(data.into())
    }
}

/// A position of one's own in a shared file.
pub(super) struct Cursor {
    file: Arc<File>,
    position: u64,
}

impl Read for Cursor {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_at(buffer, self.position)?;
        self.position += n as u64;
        Ok(n)
    }
}

/// The rows of one page of the image column.
pub(super) struct Page {
    /// One per row, `None` where it is null. All share the memory of the page.
    rows: Vec<Option<ByteArray>>,
}

impl Page {
    /// Reads `rows` of a row group that has `group_rows`.
    pub(super) fn read(
        reader: Arc<Pread>,
        chunk: &ColumnChunkMetaData,
        group_rows: usize,
        rows: Range<usize>,
    ) -> Result<Self> {
        let rows = read_column::<ByteArrayType>(reader, chunk, group_rows, rows)?;
        Ok(Self { rows })
    }

    pub(super) fn row(&self, row: usize) -> Option<&[u8]> {
        self.rows[row].as_ref().map(ByteArray::data)
    }

    pub(super) fn bytes(&self) -> usize {
        self.rows
            .iter()
            .flatten()
            .map(|row| row.len() + size_of::<ByteArray>())
            .sum()
    }
}

/// The first row of every data page of a column chunk, from the pages' headers alone.
pub(super) fn page_starts(
    reader: Arc<Pread>,
    chunk: &ColumnChunkMetaData,
    group_rows: usize,
) -> Result<Vec<usize>> {
    let mut pages = SerializedPageReader::new(reader, chunk, group_rows, None)?;
    let (mut starts, mut row) = (Vec::new(), 0);
    while let Some(page) = pages.peek_next_page()? {
        if !page.is_dict {
            // The column is not repeated, so a level is a row.
            let rows = page.num_rows.or(page.num_levels).ok_or_else(|| {
                ParquetError::General("a page without a number of rows".to_owned())
            })?;
            if rows > 0 {
                starts.push(row);
            }
            row += rows;
        }
        pages.skip_next_page()?;
    }
    if row != group_rows {
        return Err(ParquetError::General(format!(
            "the pages of a row group hold {row} rows instead of {group_rows}"
        )));
    }
    Ok(starts)
}

/// The labels of a row group: `None` for nulls and for -1, with which Hugging Face marks rows whose label is kept secret.
pub(super) fn read_labels(
    path: &Path,
    reader: Arc<Pread>,
    chunk: &ColumnChunkMetaData,
    group_rows: usize,
    first_row: usize,
) -> std::result::Result<Vec<Option<i32>>, SourceError> {
    let numbers: Vec<Option<i64>> = match chunk.column_type() {
        parquet::basic::Type::INT32 => {
            let numbers = read_column::<Int32Type>(reader, chunk, group_rows, 0..group_rows)
                .map_err(explain(path))?;
            numbers
                .into_iter()
                .map(|number| number.map(i64::from))
                .collect()
        }
        _ => read_column::<Int64Type>(reader, chunk, group_rows, 0..group_rows)
            .map_err(explain(path))?,
    };
    let label = |(row, number): (usize, Option<i64>)| match number {
        None | Some(-1) => Ok(None),
        Some(number) => i32::try_from(number)
            .ok()
            .filter(|&label| label >= 0)
            .map(Some)
            .ok_or_else(|| SourceError::BadLabel {
                path: path.to_path_buf(),
                member: format!("row {}", first_row + row),
                found: number.to_string(),
            }),
    };
    numbers.into_iter().enumerate().map(label).collect()
}

/// Some rows of a column that is not repeated, `None` where it or the struct around it is null.
fn read_column<T: DataType>(
    reader: Arc<Pread>,
    chunk: &ColumnChunkMetaData,
    group_rows: usize,
    rows: Range<usize>,
) -> Result<Vec<Option<T::T>>> {
    let pages = SerializedPageReader::new(reader, chunk, group_rows, None)?;
    let mut column = ColumnReaderImpl::<T>::new(chunk.column_descr_ptr(), Box::new(pages));
    column.skip_records(rows.start)?;
    let (mut values, mut levels) = (Vec::new(), Vec::new());
    let mut read = 0;
    while read < rows.len() {
        let (records, _, _) =
            column.read_records(rows.len() - read, Some(&mut levels), None, &mut values)?;
        if records == 0 {
            return Err(ParquetError::EOF(format!(
                "the column ends {} rows early",
                rows.len() - read
            )));
        }
        read += records;
    }
    let present = chunk.column_descr().max_def_level();
    if present == 0 {
        return Ok(values.into_iter().map(Some).collect());
    }
    let mut values = values.into_iter();
    let rows: Vec<Option<T::T>> = levels
        .iter()
        .map(|&level| {
            if level == present {
                values.next()
            } else {
                None
            }
        })
        .collect();
    Ok(rows)
}
