//! Sources of every kind over the same images, for tests of what happens when these change places. Compiled into the tests of both
//! programs.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use arrow_array::{ArrayRef, BinaryArray, RecordBatch, StructArray};
use arrow_schema::{DataType, Field, Fields};
use images::rng::{Purpose, Rng};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;

/// Images of a source.
pub(crate) const IMAGES: usize = 24;

/// Every kind of source.
pub(crate) const KINDS: [Kind; 3] = [Kind::Folder, Kind::Tar, Kind::Parquet];

/// A layout that images come in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    Folder,
    Tar,
    Parquet,
}

/// Bitmaps, all of one length: nothing but their content tells them apart.
pub(crate) fn pictures() -> Vec<Vec<u8>> {
    let picture = |i: usize| {
        let mut rng = Rng::new(5, Purpose::Select, &[i as u64]);
        let pixels = image::RgbImage::from_fn(12, 12, |_, _| image::Rgb([(); 3].map(|()| rng.range(256) as u8)));
        let mut bytes = std::io::Cursor::new(Vec::new());
        pixels.write_to(&mut bytes, image::ImageFormat::Bmp).unwrap();
        bytes.into_inner()
    };
    (0..IMAGES).map(picture).collect()
}

/// Writes a source of two halves, and of what is beyond them, the `i`-th image at the `i`-th place, under names that do not depend on the images. All have
/// the same names, or row numbers, in them.
pub(crate) fn write(kind: Kind, root: &Path, images: &[Vec<u8>]) {
    let _ = fs::remove_dir_all(root);
    fs::create_dir_all(root).unwrap();
    for (half, images) in images.chunks(IMAGES / 2).enumerate() {
        match kind {
            Kind::Folder => {
                let class = root.join(["a", "b", "c"][half]);
                fs::create_dir(&class).unwrap();
                for (i, image) in images.iter().enumerate() {
                    fs::write(class.join(format!("{i:03}.bmp")), image).unwrap();
                }
            }
            Kind::Tar => {
                let mut tar = tar::Builder::new(Vec::new());
                for (i, image) in images.iter().enumerate() {
                    let mut header = tar::Header::new_ustar();
                    header.set_size(image.len() as u64);
                    header.set_mode(0o644);
                    tar.append_data(&mut header, format!("{i:03}.bmp"), &image[..]).unwrap();
                }
                fs::write(root.join(format!("shard-{half}.tar")), tar.into_inner().unwrap()).unwrap();
            }
            Kind::Parquet => {
                let bytes = BinaryArray::from_iter_values(images);
                let fields = Fields::from(vec![Field::new("bytes", DataType::Binary, true)]);
                let column: ArrayRef = Arc::new(StructArray::new(fields, vec![Arc::new(bytes)], None));
                let batch = RecordBatch::try_from_iter([("image", column)]).unwrap();
                let properties = WriterProperties::builder()
                    .set_dictionary_enabled(false)
                    .set_max_row_group_row_count(Some(5))
                    .build();
                let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).unwrap();
                writer.write(&batch).unwrap();
                fs::write(root.join(format!("file-{half}.parquet")), writer.into_inner().unwrap()).unwrap();
            }
        }
    }
}
