use std::sync::Arc;

use ::parquet::arrow::ArrowWriter;
use ::parquet::basic::Compression;
use ::parquet::file::metadata::KeyValue;
use ::parquet::file::properties::WriterProperties;
use arrow_array::{ArrayRef, BinaryArray, Int8Array, Int64Array, RecordBatch, StringArray, StructArray};
use arrow_schema::{DataType, Field, Fields};

use super::*;

const CLASSES: &str =
    r#"{"info": {"features": {"img": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}"#;

pub(super) fn image_column(images: Vec<Option<&[u8]>>) -> ArrayRef {
    let paths = StringArray::from_iter((0..images.len()).map(|i| Some(format!("{i}.jpg"))));
    let fields =
        Fields::from(vec![Field::new("bytes", DataType::Binary, true), Field::new("path", DataType::Utf8, true)]);
    Arc::new(StructArray::new(fields, vec![Arc::new(BinaryArray::from(images)), Arc::new(paths)], None))
}

pub(super) fn label_column(labels: Vec<Option<i64>>) -> ArrayRef {
    Arc::new(Int64Array::from(labels))
}

/// A file with small pages and row groups, compressed as Hugging Face does, with or without its note on the columns.
pub(super) fn table(columns: Vec<(&str, ArrayRef)>, note: Option<&str>) -> Vec<u8> {
    compressed(columns, note, Compression::SNAPPY)
}

fn compressed(columns: Vec<(&str, ArrayRef)>, note: Option<&str>, compression: Compression) -> Vec<u8> {
    let note = note.map(|text| vec![KeyValue::new("huggingface".to_owned(), text.to_owned())]);
    let properties = WriterProperties::builder()
        .set_compression(compression)
        .set_max_row_group_row_count(Some(10))
        .set_data_page_row_count_limit(3)
        .set_write_batch_size(1)
        .set_key_value_metadata(note)
        .build();
    let columns = columns.into_iter().map(|(name, values)| {
        let has_nulls = values.logical_null_count() > 0;
        (name, values, has_nulls)
    });
    let batch = RecordBatch::try_from_iter_with_nullable(columns).unwrap();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.into_inner().unwrap()
}

fn usual(images: &[Vec<u8>], labels: Vec<Option<i64>>) -> Vec<u8> {
    let images = image_column(images.iter().map(|image| Some(image.as_slice())).collect());
    table(vec![("img", images), ("label", label_column(labels))], Some(CLASSES))
}

/// Images of different lengths, some of them equal, so that some pages are dictionaries.
fn some_images(n: usize) -> Vec<Vec<u8>> {
    (0..n).map(|i| vec![(i % 11) as u8; 1 + i * 37 % 300]).collect()
}

/// pyarrow's codecs: none, snappy, gzip, brotli, lz4, zstd; and Hadoop's framing of LZ4.
#[test]
fn every_codec_of_pyarrow_is_read() {
    let root = scratch();
    let images = some_images(23);
    for (i, compression) in [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(Default::default()),
        Compression::BROTLI(Default::default()),
        Compression::LZ4,
        Compression::LZ4_RAW,
        Compression::ZSTD(Default::default()),
    ]
    .into_iter()
    .enumerate()
    {
        let column = image_column(images.iter().map(|image| Some(image.as_slice())).collect());
        let labels = label_column((0..23).map(|i| Some(i % 2)).collect());
        let bytes = compressed(vec![("img", column), ("label", labels)], None, compression);
        let source = open(write(root.path().join(format!("{i}.parquet")), bytes)).unwrap();
        assert_eq!(source.len(), 23, "{compression}");
        for (i, image) in images.iter().enumerate() {
            assert_eq!(&source.read(i).unwrap(), image, "{compression}, row {i}");
        }
    }
}

#[test]
fn rows_of_several_groups_pages_and_files() {
    let root = scratch();
    let images = some_images(57);
    let (first, second) = images.split_at(34);
    let labels = |n: usize| (0..n as i64).map(|i| Some(i % 2)).collect();
    write(root.path().join("train-00000.parquet"), usual(first, labels(34)));
    write(root.path().join("train-00001.parquet"), usual(second, labels(23)));
    let source = open(root.path().join("train-*.parquet")).unwrap();
    assert_eq!(source.kind(), "parquet");
    assert_eq!(source.label_names(), ["cat", "dog"]);
    assert_eq!(source.key(33), "train-00000.parquet/33");
    assert_eq!(source.key(34), "train-00001.parquet/0");
    assert_eq!((source.label(33), source.label(34), source.label(35)), (Some(1), Some(0), Some(1)));
    check_reading(&source, &images.iter().map(Vec::as_slice).collect::<Vec<_>>());
    assert_eq!(open(root.path()).unwrap().identity(), source.identity());
}

/// The cache forgets: 40 pages of 4 MiB are more than it keeps, and every row still comes out right, in any order.
#[test]
fn more_pages_than_are_kept() {
    let root = scratch();
    let images: Vec<Vec<u8>> = (0..40u8).map(|i| [i, 255 - i].repeat(1 << 21)).collect();
    let column = image_column(images.iter().map(|image| Some(image.as_slice())).collect());
    let source = open(write(root.path().join("t.parquet"), table(vec![("image", column)], None))).unwrap();
    for i in (0..40).rev().chain([0, 39, 1]) {
        assert_eq!(source.read(i).unwrap(), images[i]);
    }
    let Store::Parquet(tables) = &source.store else { panic!("opened as Parquet") };
    assert!(tables.bytes_kept() <= crate::source::parquet::CACHE_BYTES, "{} bytes are kept", tables.bytes_kept());
}

#[test]
fn a_missing_image_is_a_bad_record_and_its_neighbors_are_not() {
    let root = scratch();
    let column = image_column(vec![Some(b"a"), None, Some(b"c")]);
    let source = open(write(root.path().join("t.parquet"), table(vec![("image", column)], None))).unwrap();
    assert_eq!(source.read(0).unwrap(), b"a");
    match source.read(1) {
        Err(e @ SourceError::NoBytes { row: 1, .. }) => {
            assert!(e.is_bad_record() && e.to_string().contains("t.parquet, row 1"))
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(source.read(2).unwrap(), b"c");
    assert_eq!(labels(&source), [None; 3]);
}

#[test]
fn labels_missing_secret_and_impossible() {
    let root = scratch();
    let images = some_images(3);
    let with = |labels: Vec<Option<i64>>| open(write(root.path().join("t.parquet"), usual(&images, labels)));
    assert_eq!(labels(&with(vec![Some(1), None, Some(-1)]).unwrap()), [Some(1), None, None]);
    for bad in [-2, i64::from(i32::MAX) + 1] {
        match with(vec![Some(0), Some(0), Some(bad)]) {
            Err(e @ SourceError::BadLabel { .. }) => {
                assert!(e.to_string().contains(&format!("t.parquet, row 2: label `{bad}`")), "{e}")
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_columns_are_found_by_name_and_by_note() {
    let root = scratch();
    let images = || image_column(vec![Some(b"a")]);
    let number = |n: i64| label_column(vec![Some(n)]);
    let open_with = |columns, note| open(write(root.path().join("t.parquet"), table(columns, note))).unwrap();

    let source =
        open_with(vec![("mask", image_column(vec![Some(b"mask")])), ("image", images()), ("id", number(9))], None);
    assert_eq!((source.read(0).unwrap(), source.label(0)), (b"a".to_vec(), None));
    let source = open_with(vec![("x", images()), ("coarse_label", number(1)), ("fine_label", number(2))], None);
    assert_eq!(source.label(0), Some(2));
    let small: ArrayRef = Arc::new(Int8Array::from(vec![5]));
    assert_eq!(open_with(vec![("x", images()), ("label", small)], None).label(0), Some(5));
    let note = r#"{"info": {"features": {"breed": {"names": ["pug"], "_type": "ClassLabel"}}}}"#;
    let source = open_with(vec![("x", images()), ("id", number(9)), ("breed", number(0))], Some(note));
    assert_eq!((source.label(0), source.label_names()), (Some(0), ["pug".to_owned()].as_slice()));
    // An unreadable note is ignored.
    assert!(open_with(vec![("x", images()), ("label", number(0))], Some("{")).label_names().is_empty());
}

#[test]
fn files_without_images_or_unlike_each_other_are_refused() {
    let root = scratch();
    let columns = |path: &Path| match open(path) {
        Err(SourceError::ParquetColumns { detail, .. }) => detail,
        other => panic!("{other:?}"),
    };
    let none = write(root.path().join("n.parquet"), table(vec![("label", label_column(vec![Some(1)]))], None));
    assert!(columns(&none).starts_with("no column of images"));
    let two = vec![("left", image_column(vec![Some(b"a")])), ("right", image_column(vec![Some(b"b")]))];
    let two = write(root.path().join("2.parquet"), table(two, None));
    assert!(columns(&two).starts_with("several columns of images"));
    write(root.path().join("a1.parquet"), usual(&some_images(1), vec![Some(0)]));
    write(root.path().join("a2.parquet"), table(vec![("image", image_column(vec![Some(b"a")]))], None));
    assert!(
        columns(&root.path().join("a?.parquet"))
            .contains("images `img`, labels `label` with 2 names there, images `image`")
    );
    let empty = write(root.path().join("e.parquet"), usual(&[], vec![]));
    assert!(matches!(open(&empty), Err(SourceError::NoImages { .. })));
}

/// Cut anywhere or with any byte changed: an error, or other bytes, and never a panic.
#[test]
fn damaged_files_are_refused_and_never_panic() {
    let root = scratch();
    let whole = usual(&some_images(25), vec![Some(1); 25]);
    for end in (0..whole.len()).step_by(97) {
        match open(write(root.path().join("cut.parquet"), &whole[..end])) {
            Err(e @ SourceError::CorruptParquet { .. }) => {
                assert!(e.to_string().contains("cut.parquet"), "{e}")
            }
            other => panic!("cut to {end}: {other:?}"),
        }
    }
    let mut refused = 0;
    for at in (0..whole.len()).step_by(13) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x55;
        match open(write(root.path().join("damaged.parquet"), damaged)) {
            Ok(source) => refused += (0..source.len()).filter(|&i| source.read(i).is_err()).count().min(1),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 20, "only {refused} of the damaged files were noticed");
}
