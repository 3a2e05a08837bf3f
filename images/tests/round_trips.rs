//! Sources that other libraries write, with any contents: every image comes back as it was written.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests unwrap, and write throw-away files")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::{ArrayRef, BinaryArray, Int64Array, RecordBatch, StructArray};
use arrow_schema::{DataType, Field, Fields};
use images::ImageSource;
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::{WriterProperties, WriterVersion};
use proptest::prelude::*;
use tempfile::TempDir;

fn write(name: &str, bytes: &[u8]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    (folder, path)
}

/// The source, whose images are these, with these labels.
fn check(path: &Path, images: &[Option<Vec<u8>>], labels: &[Option<i32>]) -> Result<(), TestCaseError> {
    let source = ImageSource::open(path.to_str().unwrap()).unwrap();
    prop_assert_eq!(source.len(), images.len());
    // Backward, so that no page is simply the next.
    for (i, image) in images.iter().enumerate().rev() {
        prop_assert_eq!(source.read(i).ok(), image.clone(), "image {}", i);
        prop_assert_eq!(source.label(i), labels[i]);
        prop_assert_eq!(source.find(source.key(i)), Some(i));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Names of any length and letters, in the formats of both kinds of tar.
    #[test]
    fn any_tar_survives(
        members in prop::collection::btree_map("[a-zé0-9 _-]{1,8}(/[a-z0-9]{1,60}){0,4}", (prop::collection::vec(any::<u8>(), 0..1500), prop::option::of(0i32..1000)), 1..8),
        gnu in any::<bool>(),
    ) {
        let mut tar = tar::Builder::new(Vec::new());
        let mut append = |name: String, data: &[u8]| {
            let mut header = if gnu { tar::Header::new_gnu() } else { tar::Header::new_ustar() };
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, &name, data).unwrap();
        };
        let (mut images, mut labels) = (Vec::new(), Vec::new());
        for (name, (image, label)) in &members {
            // The older kind has no room for longer names.
            if !gnu && name.len() > 90 {
                continue;
            }
            append(format!("{name}.jpg"), image);
            if let Some(label) = label {
                append(format!("{name}.cls"), label.to_string().as_bytes());
            }
            images.push(Some(image.clone()));
            labels.push(*label);
        }
        prop_assume!(!images.is_empty());
        let (_folder, path) = write("shard.tar", &tar.into_inner().unwrap());
        check(&path, &images, &labels)?;
    }

    /// Any pages, row groups, codec and version of the format.
    #[test]
    fn any_table_survives(
        rows in prop::collection::vec((prop::option::weighted(0.9, prop::collection::vec(any::<u8>(), 0..300)), prop::option::weighted(0.9, 0i64..5)), 1..60),
        codec in 0usize..7,
        (second_version, dictionary) in any::<(bool, bool)>(),
        (group_rows, page_rows, batch) in (1usize..40, 1usize..20, 1usize..8),
    ) {
        let codecs = [
            Compression::UNCOMPRESSED,
            Compression::SNAPPY,
            Compression::GZIP(Default::default()),
            Compression::BROTLI(Default::default()),
            Compression::LZ4,
            Compression::LZ4_RAW,
            Compression::ZSTD(Default::default()),
        ];
        let version = if second_version { WriterVersion::PARQUET_2_0 } else { WriterVersion::PARQUET_1_0 };
        let properties = WriterProperties::builder()
            .set_compression(codecs[codec])
            .set_writer_version(version)
            .set_dictionary_enabled(dictionary)
            .set_max_row_group_row_count(Some(group_rows))
            .set_data_page_row_count_limit(page_rows)
            .set_write_batch_size(batch)
            .build();
        let images = BinaryArray::from_iter(rows.iter().map(|(image, _)| image.as_deref()));
        let fields = Fields::from(vec![Field::new("bytes", DataType::Binary, true)]);
        let images: ArrayRef = Arc::new(StructArray::new(fields, vec![Arc::new(images)], None));
        let labels: ArrayRef = Arc::new(Int64Array::from_iter(rows.iter().map(|(_, label)| *label)));
        let columns = [("image", images, true), ("label", labels, true)];
        let batch = RecordBatch::try_from_iter_with_nullable(columns).unwrap();
        let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).unwrap();
        writer.write(&batch).unwrap();
        let (_folder, path) = write("t.parquet", &writer.into_inner().unwrap());
        let images: Vec<_> = rows.iter().map(|(image, _)| image.clone()).collect();
        let labels: Vec<_> = rows.iter().map(|(_, label)| label.map(|label| label as i32)).collect();
        check(&path, &images, &labels)?;
    }
}
