//! Part files of arbitrary rows: sound Parquet files, whose rows carry the checksum that their values call for, and may hold anything.
//!
//! The rows come from the input by `arbitrary`, the files are written by the Parquet library, not by this crate's writers. So the checks
//! behind the checksums are reached, and whatever is called sound must come back as it was written.

use std::path::Path;
use std::sync::Arc;

use arbitrary::{Arbitrary, Unstructured};
use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{
    BoolType, ByteArray, ByteArrayType, DataType, FixedLenByteArray, FixedLenByteArrayType, Int32Type, Int64Type,
};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::ColumnPath;
use schemas::{CacheIdentity, ContentHash, CropBox, Pack, Plan, Reject, RowKey, SampleRow, TeacherIdentity, View};
use serde_json::{Map, Value, json};

use crate::{caches, scratch, seal};

/// What an input stands for.
struct Part {
    identity: CacheIdentity,
    teacher: TeacherIdentity,
    samples: Vec<(SampleRow, Option<Vec<u8>>)>,
    features: Vec<(RowKey, [Vec<u8>; 3])>,
    rejects: Vec<Reject>,
    /// Rows of a row group and of a page of samples.
    group_rows: usize,
    page_rows: usize,
}

type Made<T> = arbitrary::Result<T>;

/// Mostly a number that fits, at times any.
fn number(u: &mut Unstructured<'_>, below: u64) -> Made<u64> {
    if u.ratio(1, 16)? { u64::arbitrary(u) } else { u.int_in_range(0..=below.saturating_sub(1)) }
}

fn part(u: &mut Unstructured<'_>) -> Made<Part> {
    let views = u.int_in_range(1..=3)?;
    let pack = if u.arbitrary()? { Pack::Original } else { Pack::None };
    let samples = u.int_in_range(0..=6)?;
    let mut identity = caches::identity(views, pack);
    identity.dataset.samples = samples;
    identity.plan = Plan { samples, part_samples: samples.max(1) };
    if u.arbitrary()? {
        identity.label_names.clear();
    }
    let mut teacher = caches::teacher(caches::codec(u.arbitrary()?));
    teacher.grid = u.int_in_range(1..=3)?;
    teacher.input_size = teacher.grid * teacher.patch_size;
    let widths = caches::widths(&teacher);
    let mut part = Part {
        group_rows: u.int_in_range(1..=5)?,
        page_rows: u.int_in_range(1..=4)?,
        identity,
        teacher,
        samples: Vec::new(),
        features: Vec::new(),
        rejects: Vec::new(),
    };
    for id in 0..samples {
        if u.ratio(1, 4)? {
            let key: String = u.arbitrary()?;
            let content_hash = u.arbitrary::<Option<[u8; 16]>>()?.map(ContentHash);
            part.rejects.push(Reject { sample_id: id, key, reason: u.arbitrary()?, content_hash });
            continue;
        }
        for index in 0..views {
            if u.ratio(1, 32)? {
                continue;
            }
            let mut row = caches::sample_row(&part.identity, id, index);
            if u.ratio(1, 16)? {
                row.sample_id = number(u, samples)?;
                row.view.index = u.arbitrary()?;
            }
            let small = |u: &mut Unstructured<'_>| number(u, 9).map(|n| n as u32);
            if u.arbitrary()? {
                row.view = View {
                    crop: CropBox { x: small(u)?, y: small(u)?, w: small(u)?, h: small(u)? },
                    flip: u.arbitrary()?,
                    ..row.view
                };
                row.width = small(u)?;
                row.height = small(u)?;
                row.label = u.arbitrary()?;
                row.key = u.arbitrary()?;
                row.content_hash = ContentHash(u.arbitrary()?);
            }
            let mut image = None;
            if row.image_hash.is_some() && !u.ratio(1, 16)? {
                let bytes: Vec<u8> = u.arbitrary()?;
                row.image_hash = Some(ContentHash::of(&bytes));
                image = Some(bytes);
            }
            let mut key = row.row_key();
            if u.ratio(1, 32)? {
                key.content_hash = ContentHash(u.arbitrary()?);
            }
            let mut features = [Vec::new(), Vec::new(), Vec::new()];
            for (bytes, width) in features.iter_mut().zip(widths) {
                *bytes = vec![0; width];
                if !u.is_empty() {
                    u.fill_buffer(bytes)?;
                }
            }
            part.features.push((key, features));
            part.samples.push((row, image));
        }
    }
    Ok(part)
}

const SAMPLES: &str = "message schema {
    REQUIRED INT64 sample_id (INTEGER(64, false));
    REQUIRED INT32 view (INTEGER(16, false));
    REQUIRED BYTE_ARRAY key (STRING);
    REQUIRED FIXED_LEN_BYTE_ARRAY (16) content_hash;
    OPTIONAL INT32 label;
    REQUIRED INT32 width (INTEGER(32, false));
    REQUIRED INT32 height (INTEGER(32, false));
    REQUIRED INT32 crop_x (INTEGER(32, false));
    REQUIRED INT32 crop_y (INTEGER(32, false));
    REQUIRED INT32 crop_w (INTEGER(32, false));
    REQUIRED INT32 crop_h (INTEGER(32, false));
    REQUIRED BOOLEAN flip;
    OPTIONAL FIXED_LEN_BYTE_ARRAY (16) image_hash;
    OPTIONAL BYTE_ARRAY image;
    REQUIRED INT64 checksum (INTEGER(64, false));
}";

fn features_schema(widths: [usize; 3]) -> String {
    let [tokens, cls, cls_attn] = widths;
    format!(
        "message schema {{
            REQUIRED INT64 sample_id (INTEGER(64, false));
            REQUIRED INT32 view (INTEGER(16, false));
            REQUIRED FIXED_LEN_BYTE_ARRAY (16) content_hash;
            REQUIRED FIXED_LEN_BYTE_ARRAY ({tokens}) tokens;
            REQUIRED FIXED_LEN_BYTE_ARRAY ({cls}) cls;
            REQUIRED FIXED_LEN_BYTE_ARRAY ({cls_attn}) cls_attn;
            REQUIRED INT64 checksum (INTEGER(64, false));
        }}"
    )
}

fn put<T: DataType>(group: &mut SerializedRowGroupWriter<'_, Vec<u8>>, values: Vec<Option<T::T>>) {
    let mut column = group.next_column().expect("a column").expect("a column");
    let levels: Vec<i16> = values.iter().map(|value| value.is_some().into()).collect();
    let values: Vec<T::T> = values.into_iter().flatten().collect();
    // Of a required column no levels are written.
    column.typed::<T>().write_batch(&values, Some(&levels), None).expect("values");
    column.close().expect("a column");
}

fn fixed(bytes: &[u8]) -> FixedLenByteArray {
    ByteArray::from(bytes.to_vec()).into()
}

/// A Parquet file, and the bytes of its footer.
fn parquet(
    schema: &str,
    page_rows: usize,
    one_row_pages: &[&str],
    key_values: &[(&str, String)],
    groups: usize,
    mut write: impl FnMut(usize, &mut SerializedRowGroupWriter<'_, Vec<u8>>),
) -> (Vec<u8>, usize) {
    let key_values = key_values.iter().map(|(key, value)| KeyValue::new((*key).to_owned(), value.clone())).collect();
    let mut properties = WriterProperties::builder()
        .set_writer_version(WriterVersion::PARQUET_1_0)
        .set_key_value_metadata(Some(key_values))
        .set_dictionary_enabled(false)
        .set_statistics_enabled(EnabledStatistics::None)
        .set_write_batch_size(1)
        .set_data_page_row_count_limit(page_rows);
    for name in one_row_pages {
        properties = properties.set_column_data_page_row_count_limit(ColumnPath::from(*name), 1);
        if *name != "image" {
            let zstd = Compression::ZSTD(ZstdLevel::try_new(1).expect("a level"));
            properties = properties.set_column_compression(ColumnPath::from(*name), zstd);
        }
    }
    let schema = Arc::new(parse_message_type(schema).expect("a schema"));
    let mut file = SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties.build())).expect("a file");
    for number in 0..groups {
        let mut group = file.next_row_group().expect("a group");
        write(number, &mut group);
        group.close().expect("a group");
    }
    let data = file.bytes_written();
    let bytes = file.into_inner().expect("a file");
    let footer = bytes.len() - data;
    (bytes, footer)
}

fn stamp(rows: usize, bytes: &[u8], footer: usize) -> Value {
    json!({
        "rows": rows,
        "bytes": bytes.len(),
        "sha256": seal::sha256(bytes),
        "footer_bytes": footer,
        "footer_sha256": seal::sha256(&bytes[bytes.len() - footer..]),
    })
}

fn write(part: &Part, dir: &Path) {
    let (identity, teacher) = (&part.identity, &part.teacher);
    let record = |value: Value| seal::record_of(value.as_object().unwrap_or(&Map::new()));
    let put_record = |name: &str, value: Value| scratch::write(&dir.join(name), &record(value));
    put_record("cache.json", serde_json::to_value(identity).expect("JSON"));
    put_record("teachers/clip/teacher.json", serde_json::to_value(teacher).expect("JSON"));
    let fingerprint = identity.fingerprint();
    let place = [("mr-mae.part", "0".to_owned()), ("mr-mae.cache_fingerprint", fingerprint.clone())];

    let chunks: Vec<_> = part.samples.chunks(part.group_rows).collect();
    let (bytes, footer) = parquet(SAMPLES, part.page_rows, &["image"], &place, chunks.len(), |number, group| {
        let rows = chunks[number];
        let int = |value: fn(&SampleRow) -> u32| rows.iter().map(|(row, _)| Some(value(row).cast_signed())).collect();
        put::<Int64Type>(group, rows.iter().map(|(row, _)| Some(row.sample_id.cast_signed())).collect());
        put::<Int32Type>(group, int(|row| row.view.index.into()));
        put::<ByteArrayType>(group, rows.iter().map(|(row, _)| Some(row.key.as_bytes().to_vec().into())).collect());
        put::<FixedLenByteArrayType>(group, rows.iter().map(|(row, _)| Some(fixed(&row.content_hash.0))).collect());
        put::<Int32Type>(group, rows.iter().map(|(row, _)| row.label).collect());
        put::<Int32Type>(group, int(|row| row.width));
        put::<Int32Type>(group, int(|row| row.height));
        put::<Int32Type>(group, int(|row| row.view.crop.x));
        put::<Int32Type>(group, int(|row| row.view.crop.y));
        put::<Int32Type>(group, int(|row| row.view.crop.w));
        put::<Int32Type>(group, int(|row| row.view.crop.h));
        put::<BoolType>(group, rows.iter().map(|(row, _)| Some(row.view.flip)).collect());
        put::<FixedLenByteArrayType>(
            group,
            rows.iter().map(|(row, _)| row.image_hash.map(|hash| fixed(&hash.0))).collect(),
        );
        put::<ByteArrayType>(group, rows.iter().map(|(_, image)| image.clone().map(ByteArray::from)).collect());
        put::<Int64Type>(group, rows.iter().map(|(row, _)| Some(seal::sample(row).cast_signed())).collect());
    });
    scratch::write(&dir.join("samples/part-00000.parquet"), &bytes);
    let lines = part.rejects.iter().map(|reject| {
        let hash = reject.content_hash.map(|hash| hash.to_string());
        let line =
            json!({"content_hash": hash, "key": reject.key, "reason": reject.reason, "sample_id": reject.sample_id});
        line.to_string() + "\n"
    });
    let rejects = seal::lines(lines.collect::<String>().as_bytes(), "mr-mae reject v1");
    scratch::write(&dir.join("rejects/part-00000.jsonl"), &rejects);
    put_record(
        "samples/part-00000.commit.json",
        json!({
            "format_version": 1, "part": 0, "cache": fingerprint,
            "file": stamp(part.samples.len(), &bytes, footer),
            "rejects": {"rows": part.rejects.len(), "bytes": rejects.len(), "sha256": seal::sha256(&rejects)},
        }),
    );

    let place = [&place[..], &[("mr-mae.teacher_fingerprint", teacher.fingerprint())]].concat();
    let chunks: Vec<_> = part.features.chunks(part.group_rows).collect();
    let schema = features_schema(caches::widths(teacher));
    let (bytes, footer) = parquet(&schema, 1, &["tokens", "cls", "cls_attn"], &place, chunks.len(), |number, group| {
        let rows = chunks[number];
        put::<Int64Type>(group, rows.iter().map(|(key, _)| Some(key.sample_id.cast_signed())).collect());
        put::<Int32Type>(group, rows.iter().map(|(key, _)| Some(key.view.into())).collect());
        put::<FixedLenByteArrayType>(group, rows.iter().map(|(key, _)| Some(fixed(&key.content_hash.0))).collect());
        for column in 0..3 {
            put::<FixedLenByteArrayType>(group, rows.iter().map(|(_, bytes)| Some(fixed(&bytes[column]))).collect());
        }
        let checksum = |(key, [tokens, cls, attn]): &(RowKey, [Vec<u8>; 3])| {
            Some(seal::features(key, [tokens, cls, attn]).cast_signed())
        };
        put::<Int64Type>(group, rows.iter().map(checksum).collect());
    });
    scratch::write(&dir.join("teachers/clip/part-00000.parquet"), &bytes);
    // Sums as the format has them, so that only values can be wrong.
    let width = teacher.width as usize;
    let (mut sum, mut sum_sq, mut count) = (vec![0.0; width], vec![0.0; width], 0u64);
    for (_, [tokens, ..]) in &part.features {
        let mut values = Vec::new();
        teacher.decode_tokens(tokens, &mut values).expect("bytes of a row");
        let (mut row_sum, mut row_sq) = (vec![0.0; width], vec![0.0; width]);
        for (i, value) in values.iter().enumerate() {
            row_sum[i % width] += f64::from(*value);
            row_sq[i % width] += f64::from(*value) * f64::from(*value);
        }
        count += (values.len() / width) as u64;
        sum.iter_mut().zip(row_sum).for_each(|(sum, row)| *sum += row);
        sum_sq.iter_mut().zip(row_sq).for_each(|(sum, row)| *sum += row);
    }
    put_record(
        "teachers/clip/part-00000.commit.json",
        json!({
            "format_version": 1, "id": "clip", "part": 0, "cache": fingerprint, "teacher": teacher.fingerprint(),
            "file": stamp(part.features.len(), &bytes, footer),
            "channels": {"count": count, "sum": sum, "sum_sq": sum_sq}, "codec_error": null,
        }),
    );
}

pub fn files(input: &[u8], dir: &Path) {
    if let Ok(part) = part(&mut Unstructured::new(input)) {
        write(&part, dir);
    }
}

pub fn run(input: &[u8]) {
    let Ok(part) = part(&mut Unstructured::new(input)) else {
        return;
    };
    let folder = scratch::folder();
    write(&part, folder.path());
    let contents = caches::read(folder.path(), input);
    // Values that JSON cannot hold make the sums unreadable, which is told of the record.
    if let Some(samples) = contents.samples {
        let written: Vec<_> = part.samples.iter().map(|(row, _)| row.clone()).collect();
        assert_eq!(samples, written, "rows that are called sound are those that were written");
    }
    if let Some(features) = contents.features {
        assert_eq!(features, part.features, "features that are called sound are those that were written");
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    // Random bytes: the generator makes rows of anything.
    let mut state = 1u64;
    let mut byte = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    [64, 200, 400, 800, 1600].into_iter().map(|length| (0..length).map(|_| byte()).collect()).collect()
}
