//! Parquet files of images. The first byte selects the columns of images and labels (`SPECS`).

use std::path::Path;
use std::sync::{Arc, LazyLock};

use parquet::basic::Compression;
use parquet::data_type::{
    BoolType, ByteArray, ByteArrayType, DataType, DoubleType, FixedLenByteArrayType, FloatType, Int32Type, Int64Type,
};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{WriterProperties, WriterVersion};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use tempfile::TempDir;

use crate::{scratch, sources};

const SPECS: [&str; 4] = ["", "::image", "::label=label", "::image,label=text"];

fn made(input: &[u8]) -> Option<(&'static str, &[u8])> {
    let (&first, file) = input.split_first()?;
    Some((SPECS[usize::from(first) % SPECS.len()], file))
}

pub fn files(input: &[u8], dir: &Path) {
    if let Some((_, file)) = made(input) {
        scratch::write(&dir.join("t.parquet"), file);
    }
}

pub fn run(input: &[u8]) {
    static FOLDER: LazyLock<TempDir> = LazyLock::new(scratch::folder);
    let Some((spec, file)) = made(input) else {
        return;
    };
    let path = FOLDER.path().join("t.parquet");
    scratch::write(&path, file);
    sources::read(&format!("{}{spec}", path.display()), file.len());
}

/// Levels of an optional column or struct are 0 for null and the greatest for a value.
fn put<T: DataType>(group: &mut SerializedRowGroupWriter<'_, Vec<u8>>, greatest: i16, values: Vec<Option<T::T>>) {
    let mut column = group.next_column().expect("a column").expect("a column");
    let levels: Vec<i16> = values.iter().map(|value| if value.is_some() { greatest } else { 0 }).collect();
    let values: Vec<T::T> = values.into_iter().flatten().collect();
    column.typed::<T>().write_batch(&values, Some(&levels), None).expect("values");
    column.close().expect("a column");
}

fn text(text: &str) -> ByteArray {
    ByteArray::from(text.as_bytes().to_vec())
}

/// Seven rows in groups of four, with a label column of this type.
fn table(label: &str, compression: Compression, version: WriterVersion, dictionary: bool) -> Vec<u8> {
    let schema = format!(
        "message schema {{
            OPTIONAL GROUP image {{ OPTIONAL BYTE_ARRAY bytes; OPTIONAL BYTE_ARRAY path (STRING); }}
            OPTIONAL {label};
        }}"
    );
    let names = r#"{"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}"#;
    let properties = WriterProperties::builder()
        .set_writer_version(version)
        .set_compression(compression)
        .set_dictionary_enabled(dictionary)
        .set_write_batch_size(1)
        .set_data_page_row_count_limit(3)
        .set_key_value_metadata(Some(vec![KeyValue::new("huggingface".to_owned(), names.to_owned())]));
    let schema = Arc::new(parse_message_type(&schema).expect("a schema"));
    let mut file = SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties.build())).expect("a file");
    for rows in [4i32, 3] {
        let mut group = file.next_row_group().expect("a group");
        let image = |i: i32| (i != 2).then(|| ByteArray::from(vec![(i % 2) as u8; 40]));
        put::<ByteArrayType>(&mut group, 2, (0..rows).map(image).collect());
        put::<ByteArrayType>(&mut group, 2, (0..rows).map(|i| Some(text(&format!("{i}.png")))).collect());
        let number = |i: i32| (i != 1).then_some(i % 2);
        match label.split(' ').next().unwrap_or_default() {
            "INT32" => put::<Int32Type>(&mut group, 1, (0..rows).map(number).collect()),
            "INT64" => put::<Int64Type>(&mut group, 1, (0..rows).map(|i| number(i).map(i64::from)).collect()),
            "BOOLEAN" => put::<BoolType>(&mut group, 1, (0..rows).map(|i| number(i).map(|n| n == 1)).collect()),
            "FLOAT" => put::<FloatType>(&mut group, 1, (0..rows).map(|i| number(i).map(|n| n as f32)).collect()),
            "DOUBLE" => put::<DoubleType>(&mut group, 1, (0..rows).map(|i| number(i).map(f64::from)).collect()),
            "FIXED_LEN_BYTE_ARRAY" => {
                let values = (0..rows).map(|i| number(i).map(|n| ByteArray::from(vec![0, n as u8]).into()));
                put::<FixedLenByteArrayType>(&mut group, 1, values.collect());
            }
            _ => put::<ByteArrayType>(
                &mut group,
                1,
                (0..rows).map(|i| number(i).map(|n| text(&format!("class {n}")))).collect(),
            ),
        }
        group.close().expect("a group");
    }
    file.into_inner().expect("a file")
}

pub fn seeds() -> Vec<Vec<u8>> {
    let labels = [
        "INT64 label",
        "INT32 label (INTEGER(8, false))",
        "BOOLEAN label",
        "FLOAT label",
        "DOUBLE label",
        "BYTE_ARRAY label (STRING)",
        "INT32 label (DECIMAL(9, 2))",
        "FIXED_LEN_BYTE_ARRAY (2) label (DECIMAL(4, 1))",
        "FIXED_LEN_BYTE_ARRAY (2) label (FLOAT16)",
        "BYTE_ARRAY text",
    ];
    let codecs = [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(Default::default()),
        Compression::BROTLI(Default::default()),
        Compression::LZ4,
        Compression::LZ4_RAW,
        Compression::ZSTD(Default::default()),
    ];
    let mut seeds = Vec::new();
    for (i, label) in labels.iter().enumerate() {
        let version = if i % 3 == 2 { WriterVersion::PARQUET_2_0 } else { WriterVersion::PARQUET_1_0 };
        let spec = if label.ends_with("text") { 3 } else { (i % 3) as u8 };
        seeds.push([&[spec][..], &table(label, codecs[i % codecs.len()], version, i % 2 == 0)].concat());
    }
    for (i, codec) in codecs.into_iter().enumerate() {
        let version = if i % 2 == 0 { WriterVersion::PARQUET_2_0 } else { WriterVersion::PARQUET_1_0 };
        seeds.push([&[0][..], &table("INT64 label", codec, version, i % 2 == 1)].concat());
    }
    seeds
}
