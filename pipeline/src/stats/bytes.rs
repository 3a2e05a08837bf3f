//! Size of features on disk.

use std::collections::BTreeMap;

use schemas::{TeacherIdentity, TeacherPart};
use serde::Serialize;

/// Size of a teacher's complete parts in bytes.
#[derive(Debug, Default, Serialize)]
pub(super) struct Bytes {
    /// Size of the files, with footers.
    files: u64,
    /// Size of the files with footers, per image with all its views.
    pub(super) per_image: f64,
    /// Size of the values as uncompressed f32, per image.
    pub(super) f32_per_image: f64,
    pub(super) columns: BTreeMap<String, ColumnBytes>,
}

/// Bytes per image with all its views.
#[derive(Debug, Default, Serialize)]
pub(super) struct ColumnBytes {
    pub(super) per_image: f64,
    /// Encoded, before compression; absent for columns without values.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) encoded_per_image: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) f32_per_image: Option<f64>,
}

impl Bytes {
    pub(super) fn add(&mut self, part: &TeacherPart) {
        self.files += part.commit().file.bytes;
        for (column, bytes) in part.column_bytes() {
            self.columns.entry(column).or_default().per_image += bytes as f64;
        }
    }

    /// Turns sums over `rows` rows into bytes per image of `views` rows.
    pub(super) fn finish(&mut self, teacher: &TeacherIdentity, rows: u64, views: u16) {
        let views = f64::from(views);
        let images = (rows as f64 / views).max(1.0);
        self.per_image = self.files as f64 / images;
        let (patches, width) = (teacher.n_tokens(), teacher.width as usize);
        for (name, encoded, values) in [
            ("tokens", teacher.tokens_bytes(), patches * width),
            ("cls", teacher.cls_bytes(), width),
            ("cls_attn", teacher.cls_attn_bytes(), patches),
        ] {
            let column = self.columns.entry(name.to_owned()).or_default();
            column.encoded_per_image = Some(encoded as f64 * views);
            column.f32_per_image = Some(4.0 * values as f64 * views);
            self.f32_per_image += 4.0 * values as f64 * views;
        }
        for column in self.columns.values_mut() {
            column.per_image /= images;
        }
    }
}
