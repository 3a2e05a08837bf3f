#![allow(clippy::disallowed_methods)] // Files are damaged and moved.

use arrow_array::Int32Array;

use super::*;

fn rows(from: usize, n: usize) -> RecordBatch {
    let keys: Vec<String> = (from..from + n).map(|i| format!("a \"b\", {i}.png")).collect();
    let labels: Vec<Option<i32>> = (from..from + n).map(|i| (i % 2 == 0).then_some(i as i32)).collect();
    let values = (3 * from..3 * (from + n)).map(|i| i as f32 / 2.0).collect();
    RecordBatch::try_from_iter_with_nullable([
        ("key", strings(keys.iter().map(String::as_str)), false),
        ("label", Arc::new(Int32Array::from(labels)) as _, true),
        ("mean", vectors(values, 3).unwrap(), false),
    ])
    .unwrap()
}

fn about(text: &str) -> BTreeMap<String, String> {
    BTreeMap::from([("model".to_owned(), text.to_owned())])
}

#[test]
fn chunks_become_one_file_in_every_format() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["t.parquet", "t.csv", "t.npy"] {
        let out = dir.path().join(name);
        let chunks = Chunks::open(&out, &about("m")).unwrap();
        chunks.write(1, &rows(5, 2)).unwrap();
        // One in which no image could be used.
        chunks.write(2, &rows(0, 0)).unwrap();
        drop(chunks);
        // The table of an attempt that was killed while it wrote it.
        let half = dir.path().join(format!(".{name}.0123456789abcdef.tmp"));
        fs::write(&half, "half").unwrap();
        let chunks = Chunks::open(&out, &about("m")).unwrap();
        assert!(!half.exists());
        assert!(!chunks.has(0) && chunks.has(1));
        chunks.write(0, &rows(0, 5)).unwrap();
        let format = Format::of(&out, &[Format::Parquet, Format::Csv, Format::Npy]).unwrap();
        assert_eq!(chunks.finish(3, format).unwrap(), 7);
        assert!(!dir.path().join(format!(".{name}.chunks")).exists());
        // It is not written over.
        assert!(Chunks::open(&out, &about("m")).is_err());
    }
    let csv = fs::read_to_string(dir.path().join("t.csv")).unwrap();
    assert_eq!(
        csv.lines().take(3).collect::<Vec<_>>(),
        ["key,label", "\"a \"\"b\"\", 0.png\",0", "\"a \"\"b\"\", 1.png\","]
    );
    assert_eq!(csv, fs::read_to_string(dir.path().join("t.npy.keys.csv")).unwrap());

    let npy = fs::read(dir.path().join("t.npy")).unwrap();
    let length = usize::from(u16::from_le_bytes([npy[8], npy[9]]));
    assert_eq!((10 + length) % 64, 0);
    let header = std::str::from_utf8(&npy[10..10 + length]).unwrap();
    assert!(header.starts_with("{'descr': '<f4', 'fortran_order': False, 'shape': (7, 3), }"), "{header}");
    let values: Vec<f32> =
        npy[10 + length..].chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    assert_eq!(values, (0..21).map(|i| i as f32 / 2.0).collect::<Vec<_>>());

    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(dir.path().join("t.parquet")).unwrap()).unwrap();
    let batches: Vec<RecordBatch> = reader.build().unwrap().map(Result::unwrap).collect();
    assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 7);
}

#[test]
fn chunks_of_something_else_and_damaged_ones_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("t.parquet");
    let chunks = Chunks::open(&out, &about("m")).unwrap();
    let error = format!("{:#}", Chunks::open(&out, &about("n")).unwrap_err());
    assert!(error.contains("other model (m, now n)"), "{error}");
    chunks.write(0, &rows(0, 4)).unwrap();
    let path = chunks.path(0);
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 9]).unwrap();
    let error = format!("{:#}", chunks.finish(1, Format::Parquet).unwrap_err());
    assert!(error.contains("is damaged") && !out.exists(), "{error}");
    assert!(Format::of(Path::new("x.txt"), &[Format::Csv]).unwrap_err().to_string().contains(".csv"));
}
