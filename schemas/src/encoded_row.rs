//! A teacher's row as its part file holds it, made by any thread: encoded, measured, hashed and compressed, so that the one thread that
//! writes the file only appends.

use std::cell::RefCell;

use bytes::Bytes;
use parquet::basic::Encoding;
use parquet::column::page::{CompressedPage, Page, PageWriter};
use parquet::errors::ParquetError;
use parquet::file::writer::{SerializedPageWriter, TrackedWrite};
use serde::{Deserialize, Serialize};
use zstd::bulk::Compressor;

use crate::columns::{ZSTD_LEVEL, teacher_checksum, teacher_columns};
use crate::{ChannelSums, CodecError, Error, FeatureCodec, Result, RowKey, Scalar, TeacherIdentity};

/// The features of one row: as numbers (`f32`) or as they are stored (`u8`, little-endian).
#[derive(Clone, Copy, Debug)]
pub struct RowFeatures<'a, T> {
    /// Patch tokens `[L, D]`.
    pub tokens: &'a [T],
    /// CLS token `[D]`.
    pub cls: &'a [T],
    /// Attention of CLS to each patch `[L]`.
    pub cls_attn: &'a [T],
}

/// A row for [`TeacherWriter::push`](crate::TeacherWriter::push). What a process has serialized for itself it may write later.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EncodedRow {
    pub(crate) key: RowKey,
    /// One page for each column of the file, in their order.
    pub(crate) pages: [RowPage; 7],
    pub(crate) sums: ChannelSums,
    pub(crate) codec_error: Option<CodecError>,
}

/// One value of one column: a Parquet page with its header.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RowPage {
    /// Header and compressed value.
    pub(crate) bytes: Bytes,
    /// What they take uncompressed, the header included.
    pub(crate) uncompressed: usize,
    /// Bytes of the value alone.
    pub(crate) value: usize,
}

/// What a thread keeps from row to row: a row is some 300 kB, too much to ask the system for each time.
struct Scratch {
    zstd: Compressor<'static>,
    stored: [Vec<u8>; 3],
    decoded: Vec<f32>,
    compressed: Vec<u8>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch {
        zstd: Compressor::new(ZSTD_LEVEL).expect("a level of zstd"),
        stored: Default::default(),
        decoded: Vec::new(),
        compressed: Vec::new(),
    });
}

impl EncodedRow {
    /// Which row it is.
    pub fn key(&self) -> RowKey {
        self.key
    }

    /// Encodes features with the teacher's codec and measures what a lossy one loses.
    ///
    /// # Errors
    /// [`Error::Feature`] names the column with a value that cannot be stored ([`Error::Unstorable`]) or with other than the teacher's
    /// number of values.
    pub fn encode(teacher: &TeacherIdentity, key: RowKey, features: RowFeatures<'_, f32>) -> Result<EncodedRow> {
        SCRATCH.with_borrow_mut(|scratch| {
            let (width, cls) = (teacher.width as usize, teacher.codec.cls());
            let columns: [(_, &dyn FeatureCodec, _); 3] = [
                ("tokens", teacher.codec.tokens(), features.tokens),
                ("cls", &cls, features.cls),
                ("cls_attn", &Scalar::F16, features.cls_attn),
            ];
            let mut stored = std::mem::take(&mut scratch.stored);
            for ((column, codec, values), bytes) in columns.into_iter().zip(&mut stored) {
                bytes.clear();
                codec.encode(values, width, bytes).map_err(|e| e.of_feature(column))?;
            }
            let [tokens, cls, cls_attn] = &stored;
            let row = scratch.finish(teacher, key, RowFeatures { tokens, cls, cls_attn }, |decoded| {
                let exact = teacher.codec.tokens().is_exact();
                (!exact).then(|| CodecError::measure(features.tokens, decoded, width))
            });
            scratch.stored = stored;
            row
        })
    }

    /// Takes features that are encoded already, with what the codec lost of them if that is known.
    ///
    /// # Errors
    /// [`Error::Feature`] names the column with a value that no encoder writes ([`Error::Unstorable`]) or with other than the teacher's
    /// number of bytes.
    pub fn from_stored(
        teacher: &TeacherIdentity,
        key: RowKey,
        features: RowFeatures<'_, u8>,
        codec_error: Option<CodecError>,
    ) -> Result<EncodedRow> {
        let (width, cls) = (teacher.width as usize, teacher.codec.cls());
        let tokens = teacher.n_tokens();
        let columns: [(_, &dyn FeatureCodec, _, _); 3] = [
            ("tokens", teacher.codec.tokens(), features.tokens, tokens * width),
            ("cls", &cls, features.cls, width),
            ("cls_attn", &Scalar::F16, features.cls_attn, tokens),
        ];
        for (column, codec, bytes, count) in columns {
            if let Some(position) = codec.first_bad(bytes, width) {
                let mut values = vec![0.0; count];
                codec.decode_into(bytes, width, &mut values).map_err(|e| e.of_feature(column))?;
                let value = values[position];
                return Err(Error::Unstorable { codec: codec.name(), position, value }.of_feature(column));
            }
        }
        SCRATCH.with_borrow_mut(|scratch| scratch.finish(teacher, key, features, |_| codec_error))
    }
}

impl Scratch {
    /// The row of these stored features; `codec_error` is told the tokens as they will be read.
    fn finish(
        &mut self,
        teacher: &TeacherIdentity,
        key: RowKey,
        features: RowFeatures<'_, u8>,
        codec_error: impl FnOnce(&[f32]) -> Option<CodecError>,
    ) -> Result<EncodedRow> {
        teacher.decode_tokens(features.tokens, &mut self.decoded).map_err(|e| e.of_feature("tokens"))?;
        for (column, bytes, expected) in
            [("cls", features.cls, teacher.cls_bytes()), ("cls_attn", features.cls_attn, teacher.cls_attn_bytes())]
        {
            if bytes.len() != expected {
                let codec = if column == "cls" { teacher.codec.cls() } else { Scalar::F16 };
                let expected = expected / codec.bytes_per_value();
                return Err(Error::CodecLength { codec: codec.name(), found: bytes.len(), expected }.of_feature(column));
            }
        }
        let mut sums = ChannelSums::new(teacher.width as usize);
        sums.add_row(&self.decoded);
        let values: [&[u8]; 7] = [
            &key.sample_id.to_le_bytes(),
            &u32::from(key.view).to_le_bytes(),
            &key.content_hash.0,
            features.tokens,
            features.cls,
            features.cls_attn,
            &teacher_checksum(&key, features).to_le_bytes(),
        ];
        let columns = teacher_columns(teacher);
        let mut pages = Vec::with_capacity(columns.len());
        for (column, value) in columns.iter().zip(values) {
            let page = if column.zstd { self.compressed_page(value) } else { page(value.to_vec(), value.len()) };
            pages.push(page.expect("memory takes any page"));
        }
        let pages = pages.try_into().expect("a page for each column");
        Ok(EncodedRow { key, pages, sums, codec_error: codec_error(&self.decoded) })
    }

    fn compressed_page(&mut self, value: &[u8]) -> Result<RowPage, ParquetError> {
        self.compressed.clear();
        self.compressed.reserve(zstd::zstd_safe::compress_bound(value.len()));
        self.zstd.compress_to_buffer(value, &mut self.compressed)?;
        page(self.compressed.clone(), value.len())
    }
}

/// The page of one value, which takes `value` bytes uncompressed.
fn page(body: Vec<u8>, value: usize) -> Result<RowPage, ParquetError> {
    let mut sink = TrackedWrite::new(Vec::with_capacity(body.len() + 32));
    let page = Page::DataPage {
        buf: body.into(),
        num_values: 1,
        encoding: Encoding::PLAIN,
        def_level_encoding: Encoding::RLE,
        rep_level_encoding: Encoding::RLE,
        statistics: None,
    };
    let written = SerializedPageWriter::new(&mut sink).write_page(CompressedPage::new(page, value))?;
    Ok(RowPage { bytes: sink.into_inner()?.into(), uncompressed: written.uncompressed_size, value })
}
