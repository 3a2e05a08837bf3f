//! The same source on a disk and in a bucket: the same images, keys, labels, order and identity.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests make files of their own, and unwrap")]

use std::fs;
use std::path::Path;
use std::sync::Arc;

use arrow_array::{ArrayRef, BinaryArray, Int64Array, RecordBatch, StructArray};
use arrow_schema::{DataType, Field, Fields};
use images::{ImageSource, SourceError};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;

/// Bytes that begin like a bitmap, each of its own length.
fn picture(i: usize) -> Vec<u8> {
    let mut bytes = b"BM".to_vec();
    bytes.extend((0..300 + 17 * i).map(|at| (at * 31 + i * 7) as u8));
    bytes
}

fn write_folder(root: &Path) {
    for i in 0..12 {
        let class = root.join(["cat", "dog", "eel/deep"][i % 3]);
        fs::create_dir_all(&class).unwrap();
        fs::write(class.join(format!("{i:02}.bmp")), picture(i)).unwrap();
    }
    fs::create_dir_all(root.join(".hidden")).unwrap();
    fs::write(root.join(".hidden/x.bmp"), picture(0)).unwrap();
    fs::write(root.join("cat/readme.txt"), "not an image").unwrap();
    fs::write(root.join("dog.txt"), "beside its folder").unwrap();
}

fn write_tars(root: &Path) {
    for shard in 0..3 {
        let mut tar = tar::Builder::new(Vec::new());
        for i in 0..8 {
            let mut add = |name: String, bytes: &[u8]| {
                let mut header = tar::Header::new_ustar();
                header.set_size(bytes.len() as u64);
                header.set_mode(0o644);
                tar.append_data(&mut header, name, bytes).unwrap();
            };
            add(format!("{i:03}.cls"), (i % 4).to_string().as_bytes());
            add(format!("{i:03}.bmp"), &picture(10 * shard + i));
        }
        fs::write(root.join(format!("shard-{shard}.tar")), tar.into_inner().unwrap()).unwrap();
    }
}

/// Row groups of several pages.
fn write_tables(root: &Path) {
    for file in 0..2 {
        let bytes = BinaryArray::from_iter_values((0..23).map(|i| picture(30 * file + i)));
        let fields = Fields::from(vec![Field::new("bytes", DataType::Binary, true)]);
        let column: ArrayRef = Arc::new(StructArray::new(fields, vec![Arc::new(bytes)], None));
        let labels: ArrayRef = Arc::new(Int64Array::from_iter_values((0..23).map(|i| i % 5)));
        let batch = RecordBatch::try_from_iter([("image", column), ("label", labels)]).unwrap();
        let properties = WriterProperties::builder()
            .set_dictionary_enabled(file == 1)
            .set_data_page_row_count_limit(2)
            .set_write_batch_size(1)
            .set_max_row_group_row_count(Some(9))
            .build();
        let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).unwrap();
        writer.write(&batch).unwrap();
        fs::write(root.join(format!("file-{file}.parquet")), writer.into_inner().unwrap()).unwrap();
    }
}

fn upload(folder: &Path, url: &str) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = format!("{url}/{}", path.file_name().unwrap().to_str().unwrap());
        match path.is_dir() {
            true => upload(&path, &name),
            false => storage::put(Path::new(&name), &fs::read(&path).unwrap()).unwrap(),
        }
    }
}

#[test]
fn a_source_in_a_bucket_is_the_one_on_a_disk() {
    type Write = fn(&Path);
    let kinds: [(Write, &[&str]); 3] = [
        (write_folder, &["", "::*/0*.bmp"]),
        (
            write_tars,
            &["", "/shard-*.tar", "/shard-{0..2}.tar", "/{shard-2,shard-0}.tar", "/shard-[12].tar", "/shard-1.tar"],
        ),
        (write_tables, &["", "/*.parquet", "/file-{0,1}.parquet", "/file-1.parquet"]),
    ];
    for (write, endings) in kinds {
        let (dir, bucket) = (tempfile::tempdir().unwrap(), storage::new_bucket());
        write(dir.path());
        upload(dir.path(), &format!("{bucket}/data/set"));
        for ending in endings {
            let local = ImageSource::open(&format!("{}{ending}", dir.path().display())).unwrap();
            let remote = ImageSource::open(&format!("{bucket}/data/set{ending}")).unwrap();
            assert_eq!(remote.identity(), local.identity(), "{ending}");
            assert_eq!((remote.label_names(), remote.is_remote()), (local.label_names(), true));
            assert!(!local.is_remote() && !local.forget(0) && remote.forget(0));
            // From the last to the first, and twice, so that pages are found without those before them, and asked for ahead.
            for index in (0..local.len()).rev().chain(0..local.len()) {
                assert_eq!(
                    (remote.key(index), remote.label(index)),
                    (local.key(index), local.label(index)),
                    "{ending}"
                );
                remote.prefetch(index);
                remote.prefetch((index + 5) % local.len());
                assert!(remote.read(index).unwrap() == local.read(index).unwrap(), "{ending}, {index}");
                assert!(remote.forget(index) && remote.read(index).unwrap() == local.read(index).unwrap());
            }
        }
    }
}

#[test]
fn what_is_not_in_a_bucket_is_said() {
    let bucket = storage::new_bucket();
    storage::put(Path::new(&format!("{bucket}/set/a.tar")), b"not a tar").unwrap();
    let refused = |spec: &str| match ImageSource::open(&format!("{bucket}{spec}")) {
        Err(error) => error,
        Ok(source) => panic!("{spec}: {source:?}"),
    };
    assert!(matches!(refused("/nothing"), SourceError::NotFound { .. }));
    assert!(matches!(refused("/set/b*.tar"), SourceError::NotFound { .. }));
    assert!(matches!(refused("/set/b.tar"), SourceError::Io { .. }));
    assert!(matches!(refused("/set/a.tar"), SourceError::CorruptTar { .. } | SourceError::TruncatedTar { .. }));
    assert!(matches!(refused("/set/{a"), SourceError::BadPattern { .. }));
    assert!(matches!(refused("//a.tar"), SourceError::Io { .. }));
}
