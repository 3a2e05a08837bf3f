//! The columns of the two kinds of Parquet files, and the checksums of their rows.

use std::sync::Arc;

use parquet::basic::{Compression, LogicalType, Repetition, Type as Physical, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesPtr, WriterVersion};
use parquet::schema::types::{ColumnPath, Type, TypePtr};
use xxhash_rust::xxh3::Xxh3;

use crate::{CacheIdentity, Generation, RowFeatures, RowKey, SampleRow, TeacherIdentity, json};

/// Row groups are closed once the rows in them reach this many bytes: a writer holds one group in memory, and a reader that
/// streams holds one too.
pub(crate) const ROW_GROUP_BYTES: usize = 64 << 20;

/// Rows per page of the samples columns. Small, so that damage to a page's own header costs few rows.
const SAMPLES_PAGE_ROWS: usize = 256;

/// Level of zstd of the columns that are compressed.
pub(crate) const ZSTD_LEVEL: i32 = 1;

/// What `created_by` says. Not this crate's version: the same rows must give the same bytes after every release.
const CREATED_BY: &str = "mr-mae version 1 (build cache-v1)";

/// How a column's values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// INT32 annotated as unsigned of this width.
    Unsigned32(i8),
    /// INT64 annotated as unsigned.
    Unsigned64,
    /// INT32.
    Signed32,
    /// BOOLEAN.
    Bool,
    /// BYTE_ARRAY annotated as UTF-8.
    Utf8,
    /// BYTE_ARRAY.
    Binary,
    /// FIXED_LEN_BYTE_ARRAY.
    Fixed(usize),
}

/// A column of a Parquet file of this format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Column {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) optional: bool,
    pub(crate) zstd: bool,
    pub(crate) page_rows: usize,
}

/// The columns of a samples file. Nothing is compressed: the rows are a thousandth of the features, and plain bytes let damage
/// be told row by row.
pub(crate) fn samples_columns() -> [Column; 15] {
    let column = |name, kind| Column { name, kind, optional: false, zstd: false, page_rows: SAMPLES_PAGE_ROWS };
    [
        column("sample_id", Kind::Unsigned64),
        column("view", Kind::Unsigned32(16)),
        column("key", Kind::Utf8),
        column("content_hash", Kind::Fixed(16)),
        Column { optional: true, ..column("label", Kind::Signed32) },
        column("width", Kind::Unsigned32(32)),
        column("height", Kind::Unsigned32(32)),
        column("crop_x", Kind::Unsigned32(32)),
        column("crop_y", Kind::Unsigned32(32)),
        column("crop_w", Kind::Unsigned32(32)),
        column("crop_h", Kind::Unsigned32(32)),
        column("flip", Kind::Bool),
        Column { optional: true, ..column("image_hash", Kind::Fixed(16)) },
        Column { optional: true, page_rows: 1, ..column("image", Kind::Binary) },
        column("checksum", Kind::Unsigned64),
    ]
}

/// The columns of a teacher's file. Every row is a page of its own, so that it can be read alone and damage stays in it.
pub(crate) fn teacher_columns(teacher: &TeacherIdentity) -> [Column; 7] {
    let column = |name, kind| Column { name, kind, optional: false, zstd: false, page_rows: 1 };
    let features = |name, bytes| Column { zstd: true, ..column(name, Kind::Fixed(bytes)) };
    [
        column("sample_id", Kind::Unsigned64),
        column("view", Kind::Unsigned32(16)),
        column("content_hash", Kind::Fixed(16)),
        features("tokens", teacher.tokens_bytes()),
        features("cls", teacher.cls_bytes()),
        features("cls_attn", teacher.cls_attn_bytes()),
        column("checksum", Kind::Unsigned64),
    ]
}

impl Column {
    fn parquet_type(&self) -> Type {
        let integer = |bit_width| LogicalType::integer(bit_width, false);
        let (physical, logical, length) = match self.kind {
            Kind::Unsigned32(width) => (Physical::INT32, Some(integer(width)), -1),
            Kind::Unsigned64 => (Physical::INT64, Some(integer(64)), -1),
            Kind::Signed32 => (Physical::INT32, None, -1),
            Kind::Bool => (Physical::BOOLEAN, None, -1),
            Kind::Utf8 => (Physical::BYTE_ARRAY, Some(LogicalType::String), -1),
            Kind::Binary => (Physical::BYTE_ARRAY, None, -1),
            Kind::Fixed(bytes) => {
                let length = i32::try_from(bytes).expect("identities bound a row's bytes far below 2 GiB");
                (Physical::FIXED_LEN_BYTE_ARRAY, None, length)
            }
        };
        let repetition = if self.optional { Repetition::OPTIONAL } else { Repetition::REQUIRED };
        Type::primitive_type_builder(self.name, physical)
            .with_repetition(repetition)
            .with_logical_type(logical)
            .with_length(length)
            .build()
            .expect("every kind above is a valid Parquet type")
    }

    /// Bytes of a value in a required column of fixed width; 0 for the others.
    pub(crate) fn width(&self) -> usize {
        match self.kind {
            Kind::Unsigned32(_) | Kind::Signed32 => 4,
            Kind::Unsigned64 => 8,
            Kind::Fixed(bytes) => bytes,
            Kind::Bool | Kind::Utf8 | Kind::Binary => 0,
        }
    }

    pub(crate) fn compression(&self) -> Compression {
        if self.zstd {
            Compression::ZSTD(ZstdLevel::try_new(ZSTD_LEVEL).expect("a level of zstd"))
        } else {
            Compression::UNCOMPRESSED
        }
    }

    fn path(&self) -> ColumnPath {
        ColumnPath::from(self.name)
    }
}

/// The Parquet schema of some columns.
pub(crate) fn schema(columns: &[Column]) -> TypePtr {
    let fields = columns.iter().map(|column| Arc::new(column.parquet_type())).collect();
    Arc::new(
        Type::group_type_builder("schema")
            .with_fields(fields)
            .build()
            .expect("a group of primitive columns is a valid schema"),
    )
}

/// How the columns are written. Everything that could make bytes depend on more than the rows is fixed here.
pub(crate) fn properties(columns: &[Column], key_values: Vec<KeyValue>) -> WriterPropertiesPtr {
    // The library looks at the limits of a page after each of its own batches of rows.
    let batch = columns.iter().filter(|column| !column.optional).map(|column| column.page_rows).min().unwrap_or(1);
    let mut properties = WriterProperties::builder()
        .set_created_by(CREATED_BY.to_string())
        .set_writer_version(WriterVersion::PARQUET_1_0)
        .set_key_value_metadata(Some(key_values))
        .set_dictionary_enabled(false)
        .set_statistics_enabled(EnabledStatistics::None)
        .set_write_batch_size(batch)
        // Row groups are cut by the writers, which know the bytes of a row.
        .set_max_row_group_row_count(None);
    for column in columns {
        properties = properties.set_column_data_page_row_count_limit(column.path(), column.page_rows);
        properties = properties.set_column_compression(column.path(), column.compression());
    }
    Arc::new(properties.build())
}

/// Key-value metadata names.
pub(crate) const KEY_FORMAT: &str = "mr-mae.format_version";
pub(crate) const KEY_PART: &str = "mr-mae.part";
pub(crate) const KEY_CACHE: &str = "mr-mae.cache";
pub(crate) const KEY_CACHE_FINGERPRINT: &str = "mr-mae.cache_fingerprint";
pub(crate) const KEY_GENERATION: &str = "mr-mae.generation";
pub(crate) const KEY_TEACHER: &str = "mr-mae.teacher";
pub(crate) const KEY_TEACHER_FINGERPRINT: &str = "mr-mae.teacher_fingerprint";

/// The identity, repeated in every file so that a lone one explains itself. Class names are left to `cache.json`: there can be
/// tens of thousands. The fingerprint covers them.
pub(crate) fn key_values(part: u32, cache: &CacheIdentity, teacher: Option<&TeacherIdentity>) -> Vec<KeyValue> {
    let entry = |key: &str, value: String| KeyValue::new(key.to_string(), value);
    let brief = CacheIdentity { depth_window: crate::DepthWindow::HighByte, label_names: Vec::new(), ..cache.clone() };
    let mut entries = vec![
        entry(KEY_FORMAT, cache.format_version.to_string()),
        entry(KEY_PART, part.to_string()),
        entry(KEY_CACHE, json::canonical(&brief.compared())),
        entry(KEY_CACHE_FINGERPRINT, cache.part_fingerprint(part)),
    ];
    if let Some(generation) = cache.generation_of(part).checked_sub(1) {
        let brief = Generation { label_names: Vec::new(), ..cache.generations[generation].clone() };
        entries.push(entry(KEY_GENERATION, json::canonical(&json::to_value(&brief))));
    }
    if let Some(teacher) = teacher {
        entries.push(entry(KEY_TEACHER, json::canonical(&teacher.compared())));
        entries.push(entry(KEY_TEACHER_FINGERPRINT, teacher.fingerprint()));
    }
    entries
}

/// The checksum of a samples row: XXH3-64 over its values in column order, as `cache-v1.md` lays down.
pub(crate) fn sample_checksum(row: &SampleRow) -> u64 {
    let mut hash = Hash::new(b"mr-mae samples row v1");
    hash.number(row.sample_id);
    hash.number(row.view.index.into());
    hash.bytes(row.key.as_bytes());
    hash.bytes(&row.content_hash.0);
    hash.optional(row.label.map(i32::to_le_bytes).as_ref().map(|label| &label[..]));
    for value in [row.width, row.height, row.view.crop.x, row.view.crop.y, row.view.crop.w, row.view.crop.h] {
        hash.number(value.into());
    }
    hash.number(row.view.flip.into());
    hash.optional(row.image_hash.as_ref().map(|hash| &hash.0[..]));
    hash.finish()
}

/// The checksum of a teacher's row: XXH3-64 over its values in column order, as `cache-v1.md` lays down.
pub(crate) fn teacher_checksum(key: &RowKey, features: RowFeatures<'_, u8>) -> u64 {
    let mut hash = Hash::new(b"mr-mae teacher row v1");
    hash.number(key.sample_id);
    hash.number(key.view.into());
    for bytes in [&key.content_hash.0[..], features.tokens, features.cls, features.cls_attn] {
        hash.bytes(bytes);
    }
    hash.finish()
}

/// XXH3-64 over parts that are told apart: numbers take 8 bytes, everything else comes after its length.
pub(crate) struct Hash(Xxh3);

impl Hash {
    pub(crate) fn new(domain: &[u8]) -> Hash {
        let mut hash = Hash(Xxh3::new());
        hash.bytes(domain);
        hash
    }

    fn number(&mut self, value: u64) {
        self.0.update(&value.to_le_bytes());
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.update(bytes);
    }

    fn optional(&mut self, bytes: Option<&[u8]>) {
        match bytes {
            None => self.number(u64::MAX),
            Some(bytes) => self.bytes(bytes),
        }
    }

    pub(crate) fn finish(&self) -> u64 {
        self.0.digest()
    }
}
