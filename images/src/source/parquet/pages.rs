//! Reading single pages of a column, by position and from many threads.

use std::io::{self, BufReader, Read};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::Type;
use parquet::column::reader::ColumnReaderImpl;
use parquet::data_type::{
    BoolType, ByteArray, ByteArrayType, DataType, DoubleType, FixedLenByteArrayType, FloatType, Int32Type, Int64Type,
};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData, ParquetMetaDataReader};
use parquet::file::page_index::offset_index::PageLocation;
use parquet::file::reader::{ChunkReader, Length};
use parquet::file::serialized_reader::SerializedPageReader;
use schemas::parquet_shape::{PageFacts, check_footer, page_facts};

use storage::File;

use super::columns::LabelKind;
use crate::SourceError;
use crate::source::io_error;
use crate::source::labels::whole;

/// A file that is read by position. The `parquet` crate's own file reader moves a cursor, which all threads would share.
pub(super) struct Pread {
    file: Arc<File>,
    len: u64,
    /// A piece of the file that is at hand, and where it begins.
    held: (u64, Bytes),
}

impl Pread {
    pub(super) fn new(path: &Path, file: &Arc<File>) -> std::result::Result<Self, SourceError> {
        let len = file.len().map_err(io_error(path))?;
        Ok(Self { file: file.clone(), len, held: Default::default() })
    }

    /// The same with a piece of the file at hand, if reading it takes a round trip each time and the piece is small enough.
    pub(super) fn holding(&self, start: u64, length: u64) -> io::Result<Self> {
        const MOST: u64 = 64 << 20;
        let held = match self.file.is_remote()
            && length <= MOST
            && start.checked_add(length).is_some_and(|end| end <= self.len)
        {
            true => {
                let mut bytes = vec![0; length as usize];
                self.file.read_exact_at(&mut bytes, start)?;
                (start, bytes.into())
            }
            false => Default::default(),
        };
        Ok(Self { file: self.file.clone(), len: self.len, held })
    }

    /// What is at hand from `start` on.
    fn held(&self, start: u64) -> Option<Bytes> {
        let from = usize::try_from(start.checked_sub(self.held.0)?).ok()?;
        (from < self.held.1.len()).then(|| self.held.1.slice(from..))
    }
}

/// The file's metadata, which is looked at before the Parquet library reads it.
pub(super) fn metadata(reader: &Pread) -> Result<ParquetMetaData> {
    if let Some(start) = reader.len.checked_sub(8) {
        let tail = reader.get_bytes(start, 8)?;
        let length = u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]);
        // What else can be wrong with these eight bytes, the library says.
        if let (b"PAR1", Some(start)) = (&tail[4..], start.checked_sub(length.into())) {
            check_footer(&reader.get_bytes(start, length as usize)?).map_err(ParquetError::General)?;
        }
    }
    ParquetMetaDataReader::new().parse_and_finish(reader)
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
            held: self.held(start).unwrap_or_default(),
        }))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        // Lengths come from the file, so they are checked before memory is allocated.
        if start.checked_add(length as u64).is_none_or(|end| end > self.len) {
            return Err(ParquetError::EOF(format!("{length} bytes at {start} reach past the end of the file")));
        }
        if let Some(held) = self.held(start).filter(|held| held.len() >= length) {
            return Ok(held.slice(..length));
        }
        let mut data = vec![0; length];
        self.file.read_exact_at(&mut data, start)?;
        Ok(data.into())
    }
}

/// A separate position in a shared file.
pub(super) struct Cursor {
    file: Arc<File>,
    position: u64,
    /// What is at hand from the position on.
    held: Bytes,
}

impl Read for Cursor {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.held.is_empty() {
            let n = self.held.len().min(buffer.len());
            buffer[..n].copy_from_slice(&self.held.split_to(n));
            self.position += n as u64;
            return Ok(n);
        }
        let n = self.file.read_at(buffer, self.position)?;
        self.position += n as u64;
        Ok(n)
    }
}

/// Where the data pages of a column chunk begin.
pub(super) struct PageStarts {
    /// The first row of each page, counted in the group.
    pub(super) rows: Vec<usize>,
    /// The place of each page in the file, and last where the chunk ends.
    offsets: Vec<u64>,
}

impl PageStarts {
    /// The place and the length of a page.
    pub(super) fn extent(&self, page: usize) -> Option<(u64, usize)> {
        let [start, end] = *self.offsets.get(page..page + 2)? else { return None };
        Some((start, usize::try_from(end.checked_sub(start)?).ok()?))
    }

    /// The pages as the library wants them, if they are sane.
    fn locations(&self) -> Option<Vec<PageLocation>> {
        let bounds = self.offsets.windows(2).zip(&self.rows);
        let location = |(bounds, &row): (&[u64], &usize)| {
            Some(PageLocation {
                offset: i64::try_from(bounds[0]).ok()?,
                compressed_page_size: i32::try_from(bounds[1].checked_sub(bounds[0])?).ok()?,
                first_row_index: i64::try_from(row).ok()?,
            })
        };
        bounds.map(location).collect()
    }
}

/// The rows of one page of the image column.
pub(super) struct Page {
    /// One per row, `None` for null. All share the memory of the page.
    rows: Vec<Option<ByteArray>>,
}

impl Page {
    /// Reads `rows` of a row group that has `group_rows`.
    pub(super) fn read(
        reader: Arc<Pread>,
        chunk: &ColumnChunkMetaData,
        group_rows: usize,
        rows: Range<usize>,
        starts: &PageStarts,
    ) -> Result<Self> {
        // Without places, the library looks at the header of every page before this one, which over a network takes a round trip each.
        let places = if reader.file.is_remote() { starts.locations() } else { None };
        let rows = read_column::<ByteArrayType>(reader, chunk, group_rows, rows, places)?;
        Ok(Self { rows })
    }

    pub(super) fn row(&self, row: usize) -> Option<&[u8]> {
        self.rows[row].as_ref().map(ByteArray::data)
    }

    pub(super) fn bytes(&self) -> usize {
        self.rows.iter().flatten().map(|row| row.len() + size_of::<ByteArray>()).sum()
    }
}

/// Where the data pages of a column chunk begin, from the pages' headers alone. What it has passed may be given to the Parquet library.
pub(super) fn page_starts(reader: &Pread, chunk: &ColumnChunkMetaData, group_rows: usize) -> Result<PageStarts> {
    let (mut at, length) = chunk.byte_range();
    let end = at.checked_add(length).filter(|&end| end <= reader.len);
    let end =
        end.ok_or_else(|| ParquetError::EOF(format!("a column of {length} bytes at {at} reaches past the file")))?;
    let (mut starts, mut row) = (PageStarts { rows: Vec::new(), offsets: Vec::new() }, 0usize);
    while at < end {
        let facts = page_facts_at(reader, at..end)?;
        if let Some(rows) = facts.rows {
            // The column is not repeated, so a value is a row.
            if rows > 0 {
                starts.rows.push(row);
                starts.offsets.push(at);
            }
            row = row.saturating_add(rows);
        }
        at += facts.header as u64;
        if facts.body as u64 > end - at {
            return Err(ParquetError::EOF(format!("a page of {} bytes at {at} reaches past its column", facts.body)));
        }
        at += facts.body as u64;
    }
    if row != group_rows {
        return Err(ParquetError::General(format!("the pages of a row group hold {row} rows instead of {group_rows}")));
    }
    starts.offsets.push(end);
    Ok(starts)
}

/// The header at the beginning of a place in the file.
fn page_facts_at(reader: &Pread, place: Range<u64>) -> Result<PageFacts> {
    // Most headers take 30 bytes; one with statistics may hold two values of the column, which are images.
    let mut length = 1 << 12;
    loop {
        let left = place.end - place.start;
        let bytes = reader.get_bytes(place.start, left.min(length) as usize)?;
        match page_facts(&bytes) {
            Some(facts) => return Ok(facts),
            None if length < left => length *= 8,
            None => {
                return Err(ParquetError::General(format!(
                    "the header of the page at byte {} is malformed",
                    place.start
                )));
            }
        }
    }
}

/// The value of a row of a label column.
pub(super) enum Value {
    /// Null or an equivalent: -1, with which Hugging Face marks rows whose label is secret, NaN and empty text.
    Missing,
    Number(i64),
    Text(ByteArray),
    /// A number that is not whole, or larger than any label.
    Unfit(String),
}

/// The labels of a row group.
pub(super) fn read_labels(
    reader: Arc<Pread>,
    chunk: &ColumnChunkMetaData,
    group_rows: usize,
    kind: LabelKind,
) -> Result<Vec<Value>> {
    page_starts(&reader, chunk, group_rows)?;
    let read = |value: Option<Value>| match value {
        None | Some(Value::Number(-1)) => Value::Missing,
        Some(value) => value,
    };
    macro_rules! column {
        ($type:ty, $value:expr) => {
            read_column::<$type>(reader, chunk, group_rows, 0..group_rows, None)?
                .into_iter()
                .map(|value| read(value.map($value)))
                .collect()
        };
    }
    let large = |number: u64| i64::try_from(number).map_or_else(|_| Value::Unfit(number.to_string()), Value::Number);
    Ok(match (kind, chunk.column_type()) {
        (LabelKind::Integer, Type::INT32) => column!(Int32Type, |n| Value::Number(n.into())),
        (LabelKind::Integer, _) => column!(Int64Type, Value::Number),
        (LabelKind::Unsigned, Type::INT32) => {
            column!(Int32Type, |n| Value::Number(n.cast_unsigned().into()))
        }
        (LabelKind::Unsigned, _) => column!(Int64Type, |n| large(n.cast_unsigned())),
        (LabelKind::Boolean, _) => column!(BoolType, |b| Value::Number(b.into())),
        (LabelKind::Float, Type::FLOAT) => column!(FloatType, |n| float(n.into())),
        (LabelKind::Float, Type::DOUBLE) => column!(DoubleType, float),
        (LabelKind::Float, _) => column!(FixedLenByteArrayType, |n| float(half(n.data()))),
        (LabelKind::Decimal(scale), Type::INT32) => {
            column!(Int32Type, |n| decimal(n.into(), scale))
        }
        (LabelKind::Decimal(scale), Type::INT64) => {
            column!(Int64Type, |n| decimal(n.into(), scale))
        }
        (LabelKind::Decimal(scale), Type::BYTE_ARRAY) => {
            column!(ByteArrayType, |n| decimal_bytes(n.data(), scale))
        }
        (LabelKind::Decimal(scale), _) => {
            column!(FixedLenByteArrayType, |n| decimal_bytes(n.data(), scale))
        }
        (LabelKind::Text, _) => column!(ByteArrayType, |text| match text.data().is_empty() {
            true => Value::Missing,
            false => Value::Text(text),
        }),
    })
}

fn float(number: f64) -> Value {
    match whole(number) {
        Some(number) => Value::Number(number),
        None if number.is_nan() => Value::Missing,
        None => Value::Unfit(number.to_string()),
    }
}

/// The number in two bytes of IEEE 754 binary16, little-endian.
fn half(bytes: &[u8]) -> f64 {
    let [low, high] = bytes else { return f64::NAN };
    let bits = u16::from_le_bytes([*low, *high]);
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023) / 1024.0);
    let size = match exponent {
        0 => fraction * 2f64.powi(-14),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (1.0 + fraction) * 2f64.powi(exponent - 15),
    };
    if bits >> 15 == 1 { -size } else { size }
}

fn decimal(digits: i128, scale: u32) -> Value {
    let unit = 10i128.pow(scale);
    match i64::try_from(digits / unit) {
        Ok(number) if digits % unit == 0 => Value::Number(number),
        _ => Value::Unfit(format!(
            "{}{}.{:0width$}",
            if digits < 0 { "-" } else { "" },
            (digits / unit).unsigned_abs(),
            (digits % unit).unsigned_abs(),
            width = scale as usize
        )),
    }
}

/// A decimal in big-endian bytes of two's complement.
fn decimal_bytes(bytes: &[u8], scale: u32) -> Value {
    let sign = if bytes.first().is_some_and(|&byte| byte >= 128) { 0xFF } else { 0 };
    // A small number in many bytes begins with bytes that repeat its sign.
    let (repeated, bytes) = bytes.split_at(bytes.len().saturating_sub(16));
    let is_wider =
        repeated.iter().any(|&byte| byte != sign) || (!repeated.is_empty() && (bytes[0] >= 128) != (sign == 0xFF));
    if is_wider {
        return Value::Unfit("a decimal of more than 38 digits".to_owned());
    }
    let mut wide = [sign; 16];
    wide[16 - bytes.len()..].copy_from_slice(bytes);
    decimal(i128::from_be_bytes(wide), scale)
}

/// Some rows of a column that is not repeated, `None` where it or the struct around it is null.
fn read_column<T: DataType>(
    reader: Arc<Pread>,
    chunk: &ColumnChunkMetaData,
    group_rows: usize,
    rows: Range<usize>,
    places: Option<Vec<PageLocation>>,
) -> Result<Vec<Option<T::T>>> {
    let pages = SerializedPageReader::new(reader, chunk, group_rows, places)?;
    let mut column = ColumnReaderImpl::<T>::new(chunk.column_descr_ptr(), Box::new(pages));
    column.skip_records(rows.start)?;
    let (mut values, mut levels) = (Vec::new(), Vec::new());
    let mut read = 0;
    while read < rows.len() {
        let (records, _, _) = column.read_records(rows.len() - read, Some(&mut levels), None, &mut values)?;
        if records == 0 {
            return Err(ParquetError::EOF(format!("the column ends {} rows early", rows.len() - read)));
        }
        read += records;
    }
    let present = chunk.column_descr().max_def_level();
    if present == 0 {
        return Ok(values.into_iter().map(Some).collect());
    }
    let mut values = values.into_iter();
    let rows: Vec<Option<T::T>> =
        levels.iter().map(|&level| if level == present { values.next() } else { None }).collect();
    Ok(rows)
}
