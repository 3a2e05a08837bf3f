//! One data page of a Parquet file: its header, its bytes, and the plain values in them.
//!
//! Only what the format's own writer makes is read: version-1 data pages with PLAIN values, uncompressed or zstd. It is read here
//! and not by the Parquet library for three reasons: a damaged page gives an error that knows its row; no length in a page
//! makes us allocate more than the row can need; and a single row costs one positioned read per column.

use std::cell::RefCell;

use parquet::basic::Compression;

use crate::thrift::{Compact, I32, I64, STRUCT};

/// Where a page lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PageLocation {
    /// From the start of the file, of the page's header.
    pub(crate) offset: u64,
    /// Bytes, with the header.
    pub(crate) size: u32,
    /// The page's first row, counted in its row group.
    pub(crate) first_row: u64,
}

/// The most pages of a column chunk; a limit on memory, not on the format.
const MAX_PAGES: usize = 1 << 24;

/// Reads an offset index (`OffsetIndex` of parquet.thrift).
pub(crate) fn read_offset_index(bytes: &[u8]) -> Result<Vec<PageLocation>, String> {
    let mut thrift = Compact::new(bytes);
    let mut locations = Vec::new();
    let read = thrift.fields(|thrift, id, kind| {
        if id != 1 {
            return thrift.skip(kind, 0);
        }
        let (count, element) = thrift.list(kind)?;
        // Each location takes at least 7 bytes.
        if count > MAX_PAGES.min(bytes.len() / 7) || (count > 0 && element != STRUCT) {
            return None;
        }
        locations.reserve_exact(count);
        for _ in 0..count {
            let mut location = PageLocation::default();
            thrift.fields(|thrift, id, kind| {
                match id {
                    1 => location.offset = u64::try_from(thrift.integer(kind, I64)?).ok()?,
                    2 => location.size = u32::try_from(thrift.integer(kind, I32)?).ok()?,
                    3 => location.first_row = u64::try_from(thrift.integer(kind, I64)?).ok()?,
                    _ => thrift.skip(kind, 0)?,
                }
                Some(())
            })?;
            locations.push(location);
        }
        Some(())
    });
    match read {
        Some(()) if !locations.is_empty() => Ok(locations),
        _ => Err("the page index cannot be read".to_string()),
    }
}

/// What a page's header says.
#[derive(Debug, Default, PartialEq, Eq)]
struct PageHeader {
    kind: i64,
    uncompressed: i64,
    compressed: i64,
    /// Values, encoding of the values, of the definition levels, of the repetition levels.
    data: Option<[i64; 4]>,
}

/// `DataPageHeader` of parquet.thrift: its four numbers.
fn data_page_header(thrift: &mut Compact<'_>) -> Option<[i64; 4]> {
    let mut data = [-1; 4];
    thrift.fields(|thrift, id, kind| {
        match id {
            1..=4 => data[id as usize - 1] = thrift.integer(kind, I32)?,
            _ => thrift.skip(kind, 0)?,
        }
        Some(())
    })?;
    Some(data)
}

/// A page whose header has been read and found to fit.
#[derive(Debug)]
pub(crate) struct Page<'a> {
    /// Rows in the page.
    pub(crate) rows: usize,
    body: &'a [u8],
    uncompressed: usize,
}

impl<'a> Page<'a> {
    /// Reads the header (`PageHeader` of parquet.thrift) of a page that must be exactly `bytes`.
    pub(crate) fn open(bytes: &'a [u8]) -> Result<Page<'a>, String> {
        let mut thrift = Compact::new(bytes);
        let mut header = PageHeader { kind: -1, ..PageHeader::default() };
        let read = thrift.fields(|thrift, id, kind| {
            match id {
                1 => header.kind = thrift.integer(kind, I32)?,
                2 => header.uncompressed = thrift.integer(kind, I32)?,
                3 => header.compressed = thrift.integer(kind, I32)?,
                5 if kind == STRUCT => header.data = Some(data_page_header(thrift)?),
                _ => thrift.skip(kind, 0)?,
            }
            Some(())
        });
        let body = &bytes[thrift.at.min(bytes.len())..];
        let sane = read.is_some() && header.kind == DATA_PAGE && header.compressed == body.len() as i64;
        match header.data {
            Some([rows, PLAIN, RLE, RLE]) if sane => {
                match (usize::try_from(rows), usize::try_from(header.uncompressed)) {
                    (Ok(rows), Ok(uncompressed)) => Ok(Page { rows, body, uncompressed }),
                    _ => Err("its page header has a negative length".to_string()),
                }
            }
            _ => Err("its page header makes no sense".to_string()),
        }
    }

    /// Replaces `out` by the page's values, of which there must be at most `limit` bytes.
    pub(crate) fn decompress(&self, compression: Compression, limit: usize, out: &mut Vec<u8>) -> Result<(), String> {
        if self.uncompressed > limit {
            return Err(format!("its page declares {} bytes, at most {limit} fit", self.uncompressed));
        }
        // To its exact length: how a damaged frame fails must not depend on what the buffer held before.
        out.resize(self.uncompressed, 0);
        let found = match compression {
            Compression::UNCOMPRESSED if self.body.len() == out.len() => {
                out.copy_from_slice(self.body);
                out.len()
            }
            Compression::UNCOMPRESSED => self.body.len(),
            Compression::ZSTD(_) => ZSTD
                .with_borrow_mut(|zstd| zstd.decompress_to_buffer(self.body, &mut out[..]))
                .map_err(|e| e.to_string())?,
            other => return Err(format!("its page is compressed with {other:?}")),
        };
        if found == self.uncompressed {
            Ok(())
        } else {
            Err(format!("its page holds {found} bytes, its header says {}", self.uncompressed))
        }
    }
}

thread_local! {
    /// A context takes longer to make than a row to decompress.
    static ZSTD: RefCell<zstd::bulk::Decompressor<'static>> = RefCell::default();
}

// Values of enumerations in parquet.thrift.
const DATA_PAGE: i64 = 0;
const PLAIN: i64 = 0;
const RLE: i64 = 3;

/// Plain values, read one after another. Everything is `None` beyond the end.
#[derive(Debug)]
pub(crate) struct Values<'a> {
    bytes: &'a [u8],
    bit: u8,
}

impl<'a> Values<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Values<'a> {
        Values { bytes, bit: 0 }
    }

    /// BOOLEAN: eight to a byte, the lowest bit first.
    pub(crate) fn bool(&mut self) -> Option<bool> {
        let value = self.bytes.first()? >> self.bit & 1 == 1;
        self.bit += 1;
        if self.bit == 8 {
            self.bit = 0;
            self.bytes = &self.bytes[1..];
        }
        Some(value)
    }

    /// FIXED_LEN_BYTE_ARRAY, and with it the little-endian numbers.
    pub(crate) fn fixed<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (value, rest) = self.bytes.split_first_chunk()?;
        self.bytes = rest;
        Some(*value)
    }

    /// INT32.
    pub(crate) fn i32(&mut self) -> Option<i32> {
        self.fixed().map(i32::from_le_bytes)
    }

    /// INT32 that holds an unsigned number.
    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.fixed().map(u32::from_le_bytes)
    }

    /// INT64 that holds an unsigned number.
    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.fixed().map(u64::from_le_bytes)
    }

    /// BYTE_ARRAY: a 4-byte length, then the bytes.
    pub(crate) fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = self.u32()? as usize;
        let (value, rest) = self.bytes.split_at_checked(length)?;
        self.bytes = rest;
        Some(value)
    }

    /// The definition levels of `rows` values of an optional column: whether each is there. They come before the values as a
    /// 4-byte length and runs of one bit each (Parquet's RLE / bit-packed hybrid).
    pub(crate) fn present(&mut self, rows: usize) -> Option<Vec<bool>> {
        let mut runs = Compact::new(self.bytes()?);
        let mut present = Vec::with_capacity(rows.min(MAX_PAGES));
        while present.len() < rows {
            let header = runs.varint()?;
            let (count, left) = (usize::try_from(header >> 1).ok().filter(|&count| count > 0)?, rows - present.len());
            if header & 1 == 0 {
                let value = runs.byte().filter(|&value| value <= 1 && count <= left)?;
                present.resize(present.len() + count, value == 1);
                continue;
            }
            // Groups of eight, of which the last may be longer than needed.
            for _ in 0..count {
                let bits = (rows - present.len()).min(8);
                let byte = runs.byte().filter(|&byte| bits == 8 || (bits > 0 && byte >> bits == 0))?;
                present.extend((0..bits).map(|bit| byte >> bit & 1 == 1));
            }
        }
        (runs.at == runs.bytes.len()).then_some(present)
    }

    /// Whether all values have been read. Bits that fill up the last byte have to be zero: no byte may change unnoticed.
    pub(crate) fn is_empty(&self) -> bool {
        match self.bytes {
            [] => true,
            [last] => self.bit > 0 && last >> self.bit == 0,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests;
