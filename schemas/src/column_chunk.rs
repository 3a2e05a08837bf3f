//! One column of a row group, put together from pages that are ready.

use std::io::Read;

use bytes::{Buf, Bytes};
use parquet::basic::{Compression, Encoding, PageType};
use parquet::column::writer::ColumnCloseResult;
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{ColumnChunkMetaData, OffsetIndexBuilder, PageEncodingStats};
use parquet::file::reader::{ChunkReader, Length};
use parquet::schema::types::ColumnDescPtr;

use crate::encoded_row::RowPage;

/// The pages of a column chunk, one row each, as the Parquet library reads them to append them to a file.
pub(crate) struct ColumnChunk(Vec<RowPage>);

impl ColumnChunk {
    pub(crate) fn new(pages: impl Iterator<Item = RowPage>) -> ColumnChunk {
        ColumnChunk(pages.collect())
    }

    /// What the library's own column writer would say of these pages; offsets count from the start of the chunk.
    pub(crate) fn close_result(&self, column: ColumnDescPtr, compression: Compression) -> Result<ColumnCloseResult> {
        let rows = self.0.len();
        let mut pages = OffsetIndexBuilder::new();
        let mut offset = 0;
        for page in &self.0 {
            pages.append_row_count(1);
            pages.append_offset_and_size(offset, i32::try_from(page.bytes.len())?);
            offset += page.bytes.len() as i64;
        }
        let count = i32::try_from(rows)?;
        let stats = PageEncodingStats { page_type: PageType::DATA_PAGE, encoding: Encoding::PLAIN, count };
        let metadata = ColumnChunkMetaData::builder(column)
            .set_compression(compression)
            .set_encodings(vec![Encoding::PLAIN, Encoding::RLE])
            .set_page_encoding_stats(vec![stats])
            .set_total_compressed_size(offset)
            .set_total_uncompressed_size(self.0.iter().map(|page| page.uncompressed as i64).sum())
            .set_num_values(rows as i64)
            .set_data_page_offset(0)
            .build()?;
        Ok(ColumnCloseResult {
            bytes_written: offset as u64,
            rows_written: rows as u64,
            metadata,
            bloom_filter: None,
            column_index: None,
            offset_index: Some(pages.build()),
        })
    }
}

impl Length for ColumnChunk {
    fn len(&self) -> u64 {
        self.0.iter().map(|page| page.bytes.len() as u64).sum()
    }
}

impl ChunkReader for ColumnChunk {
    type T = PagesReader;

    /// The library reads a chunk once, from its start.
    fn get_read(&self, start: u64) -> Result<PagesReader> {
        if start != 0 {
            return Err(ParquetError::General("a chunk is read from its start".to_string()));
        }
        let pages: Vec<Bytes> = self.0.iter().map(|page| page.bytes.clone()).collect();
        Ok(PagesReader { pages: pages.into_iter(), current: Bytes::new() })
    }

    fn get_bytes(&self, _start: u64, _length: usize) -> Result<Bytes> {
        Err(ParquetError::General("a chunk is read as a stream".to_string()))
    }
}

/// Pages one after another.
pub(crate) struct PagesReader {
    pages: std::vec::IntoIter<Bytes>,
    current: Bytes,
}

impl Read for PagesReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.current.is_empty() {
            match self.pages.next() {
                Some(page) => self.current = page,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.current.len());
        self.current.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}
