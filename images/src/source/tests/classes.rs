//! Every type of column that can be a class is read as one; what cannot is named.

use std::sync::Arc;

use ::parquet::arrow::ArrowWriter;
use arrow_array::types::{Decimal256Type, Float16Type, Int32Type, UInt8Type};
use arrow_array::*;
use arrow_schema::DataType;

use super::parquet::{image_column, table};
use super::*;

#[allow(non_camel_case_types, reason = "the name that its crate gives it")]
type i256 = <Decimal256Type as ArrowPrimitiveType>::Native;

fn opened(columns: Vec<(&str, ArrayRef)>) -> Result<ImageSource, SourceError> {
    let root = scratch();
    let images = image_column(vec![Some(b"a"); columns[0].1.len()]);
    let columns = [("image", images)].into_iter().chain(columns).collect();
    let source = open(write(root.path().join("t.parquet"), table(columns, None)));
    drop(root);
    source
}

fn label(column: ArrayRef) -> ImageSource {
    opened(vec![("label", column)]).unwrap()
}

#[test]
fn numbers_of_every_type() {
    let ints = [Some(0), Some(2), None, Some(1)];
    let decimal = |precision: u8, scale: i8| -> ArrayRef {
        let unit = 10i128.pow(scale as u32);
        let values = ints.map(|n| n.map(|n: i32| i128::from(n) * unit));
        let values = Decimal128Array::from(values.to_vec());
        Arc::new(values.with_precision_and_scale(precision, scale).unwrap())
    };
    macro_rules! array {
        ($array:ty, $number:ty) => {
            Arc::new(<$array>::from(ints.iter().map(|n| n.map(|n: i32| n as $number)).collect::<Vec<_>>())) as ArrayRef
        };
    }
    let half = PrimitiveArray::<Float16Type>::from_iter(ints.iter().map(|n| n.map(|n| half::f16::from_f32(n as f32))));
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("int8", array!(Int8Array, i8)),
        ("int16", array!(Int16Array, i16)),
        ("int32", array!(Int32Array, i32)),
        ("int64", array!(Int64Array, i64)),
        ("uint8", array!(UInt8Array, u8)),
        ("uint16", array!(UInt16Array, u16)),
        ("uint32", array!(UInt32Array, u32)),
        ("uint64", array!(UInt64Array, u64)),
        ("float16", Arc::new(half)),
        ("float32", array!(Float32Array, f32)),
        ("float64", array!(Float64Array, f64)),
        ("float64 with NaN", Arc::new(Float64Array::from(vec![0.0, 2.0, f64::NAN, 1.0]))),
        ("decimal(5, 0)", decimal(5, 0)),
        ("decimal(15, 1)", decimal(15, 1)),
        ("decimal(25, 2)", decimal(25, 2)),
        (
            "categorical of numbers",
            Arc::new(
                DictionaryArray::<UInt8Type>::try_new(
                    UInt8Array::from(vec![Some(1), Some(0), None, Some(2)]),
                    Arc::new(Int64Array::from(vec![2, 0, 1])),
                )
                .unwrap(),
            ),
        ),
    ];
    for (kind, column) in columns {
        let source = label(column);
        assert_eq!(labels(&source), ints, "{kind}");
        assert!(source.label_names().is_empty() && source.findings().notes.is_empty(), "{kind}");
    }
    let bools = label(Arc::new(BooleanArray::from(vec![Some(true), None, Some(false)])));
    assert_eq!(labels(&bools), [Some(1), None, Some(0)]);
}

#[test]
fn names_of_every_type() {
    let texts = vec![Some("dog"), Some("cat"), None, Some("dog"), Some("")];
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("text", Arc::new(StringArray::from(texts.clone()))),
        ("large text", Arc::new(LargeStringArray::from(texts.clone()))),
        ("text view", Arc::new(StringViewArray::from(texts.clone()))),
        ("categorical", Arc::new(texts.iter().copied().collect::<DictionaryArray<Int32Type>>())),
        ("binary", Arc::new(BinaryArray::from_iter(texts.iter().map(|t| t.map(str::as_bytes))))),
    ];
    for (kind, column) in columns {
        let source = label(column);
        assert_eq!(source.label_names(), ["cat", "dog"], "{kind}");
        assert_eq!(labels(&source), [Some(1), Some(0), None, Some(1), None], "{kind}");
    }
}

#[test]
fn labels_are_found_by_other_spellings() {
    let numbers = || -> ArrayRef { Arc::new(Int64Array::from(vec![3])) };
    let texts = || -> ArrayRef { Arc::new(StringArray::from(vec!["cat"])) };
    for name in ["Label", "LABELS", "class_id", "category", "Class_Name"] {
        assert_eq!(labels(&opened(vec![(name, numbers())]).unwrap()), [Some(3)], "{name}");
    }
    // In more bytes than any class needs.
    assert_eq!(labels(&label(wide(&[7, 0]))), [Some(7), Some(0)]);
    assert_eq!(labels(&label(wide(&[-1, 3]))), [None, Some(3)]);
    // Integers as they always were, before texts of a more telling name.
    let source = opened(vec![("label", texts()), ("coarse_label", numbers())]).unwrap();
    assert_eq!((labels(&source), source.label_names().len()), (vec![Some(3)], 0));
    // What is read is said by what is not.
    let source = opened(vec![("caption", texts()), ("id", numbers())]).unwrap();
    assert_eq!(labels(&source), [None]);
    assert_eq!(source.findings().others_line(), "1 column `caption`, 1 column `id`");
}

/// Decimals of 32 bytes without digits after the point.
fn wide(values: &[i128]) -> ArrayRef {
    let values: Vec<i256> = values.iter().map(|&n| i256::from_i128(n)).collect();
    Arc::new(Decimal256Array::from(values).with_precision_and_scale(60, 0).unwrap())
}

#[test]
fn columns_that_cannot_be_classes_are_named() {
    let list = ListArray::from_iter_primitive::<Int32Type, _, _>(vec![Some(vec![Some(1)]), None]);
    let fields = vec![(
        Arc::new(arrow_schema::Field::new("id", DataType::Int64, true)),
        Arc::new(Int64Array::from(vec![1, 2])) as ArrayRef,
    )];
    let named: Vec<(ArrayRef, &str)> = vec![
        (Arc::new(list), "`label` is a list"),
        (Arc::new(StructArray::from(fields)), "`label` is a struct"),
        (Arc::new(Date32Array::from(vec![1, 2])), "`label` is a time or date"),
        (Arc::new(TimestampNanosecondArray::from(vec![1, 2])), "`label` is a time or date"),
        (Arc::new(arrow_array::NullArray::new(2)), "`label` is a column of nulls"),
        (wide(&[1 << 40, 3]), "1099511627776 is not a whole number"),
        (
            Arc::new(
                Decimal256Array::from(vec![i256::from_i128(i128::MAX).wrapping_mul(i256::from_i128(4)), i256::ONE])
                    .with_precision_and_scale(76, 0)
                    .unwrap(),
            ),
            "a decimal of more than 38 digits is not a whole number",
        ),
        (
            Arc::new(Decimal128Array::from(vec![-50, 100]).with_precision_and_scale(5, 2).unwrap()),
            "-0.50 is not a whole number",
        ),
        (Arc::new(FixedSizeBinaryArray::try_from_iter([b"ab", b"cd"].into_iter()).unwrap()), "is of another type"),
        (Arc::new(Float32Array::from(vec![1.0, 0.5])), "0.5 is not a whole number from 0 to 2147483647 ("),
        (Arc::new(Float64Array::from(vec![f64::INFINITY, 0.0])), "inf is not a whole number"),
        (Arc::new(UInt64Array::from(vec![0, u64::MAX])), "18446744073709551615 is not"),
        (Arc::new(Float64Array::from(vec![-3.0, 0.0])), "-3 is not"),
        (
            Arc::new(Decimal128Array::from(vec![100, 150]).with_precision_and_scale(5, 2).unwrap()),
            "1.50 is not a whole number",
        ),
        (Arc::new(BinaryArray::from(vec![&b"\xff"[..], b"a"])), "not UTF-8"),
    ];
    for (column, expected) in named {
        let source = label(column);
        assert_eq!(labels(&source), [None; 2], "{expected}");
        assert!(source.label_names().is_empty());
        let warning = source.findings().warnings("t.parquet").join("\n");
        assert!(warning.contains(expected), "{warning}");
    }
    // A column of another name and of a type that can be a class is taken instead, and the first one still named.
    let list = ListArray::from_iter_primitive::<Int32Type, _, _>(vec![Some(vec![Some(1)])]);
    let source = opened(vec![("labels", Arc::new(list)), ("target", Arc::new(StringArray::from(vec!["x"])))]).unwrap();
    assert_eq!((labels(&source), source.findings().notes.len()), (vec![Some(0)], 1));
    // Text that differs in nearly every row is not a class.
    let texts: ArrayRef = Arc::new(StringArray::from_iter_values((0..70_000).map(|i| i.to_string())));
    let batch =
        RecordBatch::try_from_iter([("image", image_column(vec![Some(b"a"); 70_000])), ("label", texts)]).unwrap();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    let root = scratch();
    let many = write(root.path().join("t.parquet"), writer.into_inner().unwrap());
    let many = open(many).unwrap();
    assert!(many.findings().notes[0].contains("more than 65536 different texts"));
    assert!(many.label_names().is_empty());
}

#[test]
fn numbers_and_names_in_two_files_are_refused() {
    let root = scratch();
    for (name, column) in [
        ("a.parquet", Arc::new(Float32Array::from(vec![1.0])) as ArrayRef),
        ("b.parquet", Arc::new(StringArray::from(vec!["cat"]))),
    ] {
        let columns = vec![("image", image_column(vec![Some(b"a")])), ("label", column)];
        write(root.path().join(name), table(columns, None));
    }
    match open(root.path()) {
        Err(SourceError::MixedLabels { number, name }) => {
            assert!(number.contains("a.parquet, row 0") && name.contains("b.parquet, row 0"))
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn further_columns_of_images_are_counted_and_can_be_chosen() {
    let root = scratch();
    let columns =
        || vec![("mask", image_column(vec![Some(b"mask"); 3])), ("image", image_column(vec![Some(b"image"); 3]))];
    let path = write(root.path().join("t.parquet"), table(columns(), None));
    let source = open(&path).unwrap();
    assert_eq!(source.read(0).unwrap(), b"image");
    let findings = source.findings();
    assert_eq!(findings.skipped_line(), "3: 3 in another column of images, `mask`");
    assert_eq!(findings.skipped[0].key, "t.parquet/mask");
    let chosen = open(root.path().join("t.parquet::mask")).unwrap();
    assert_eq!(chosen.read(2).unwrap(), b"mask");
    match open(root.path().join("t.parquet::photo")) {
        Err(SourceError::ParquetColumns { detail, .. }) => {
            assert_eq!(detail, "no column of images is called `photo`")
        }
        other => panic!("{other:?}"),
    }
}
