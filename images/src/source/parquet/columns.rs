//! Which columns are the images and the labels.

use std::path::Path;

use parquet::basic::{ConvertedType, Type};
use parquet::file::metadata::ParquetMetaData;
use parquet::schema::types::ColumnDescriptor;
use serde_json::Value;

use crate::SourceError;

/// Names that an image column goes by when there are several, the most telling first.
const IMAGE_NAMES: [&str; 2] = ["image", "img"];

/// Names that a label column goes by, the most telling first.
const LABEL_NAMES: [&str; 7] = [
    "label",
    "fine_label",
    "labels",
    "class",
    "cls",
    "target",
    "coarse_label",
];

/// The columns of a file that concern us. `leaf` numbers count the file's leaf columns.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Columns {
    pub(super) image_leaf: usize,
    pub(super) label_leaf: Option<usize>,
    pub(super) label_names: Vec<String>,
    image: String,
    label: Option<String>,
}

impl Columns {
    /// Images: the struct column with a binary field `bytes`; if there are several, the one called `image` or `img`. Labels: an
    /// integer column by one of [`LABEL_NAMES`], or else the only one that the metadata calls a `ClassLabel`.
    pub(super) fn find(path: &Path, metadata: &ParquetMetaData) -> Result<Self, SourceError> {
        let leaves = metadata.file_metadata().schema_descr().columns();
        let features = Features::read(metadata);

        let images: Vec<(usize, &str)> = leaves
            .iter()
            .enumerate()
            .filter_map(|(i, leaf)| Some((i, image_column(leaf)?)))
            .collect();
        let problem = |detail: &str| SourceError::ParquetColumns {
            path: path.to_path_buf(),
            detail: detail.to_owned(),
            columns: leaves
                .iter()
                .map(|leaf| leaf.path().string())
                .collect::<Vec<_>>()
                .join(", "),
        };
        let (image_leaf, image) = match images.as_slice() {
            [] => {
                return Err(problem(
                    "no column of images; expected a struct with a binary field `bytes`, as Hugging Face writes it",
                ));
            }
            [only] => *only,
            several => *by_name(several, &IMAGE_NAMES).ok_or_else(|| {
                problem("several columns of images, and none of them is called `image` or `img`")
            })?,
        };

        let integers: Vec<(usize, &str)> = leaves
            .iter()
            .enumerate()
            .filter_map(|(i, leaf)| Some((i, integer_column(leaf)?)))
            .collect();
        let class_labels: Vec<(usize, &str)> = integers
            .iter()
            .filter(|(_, name)| features.label_names(name).is_some())
            .copied()
            .collect();
        let label = by_name(&integers, &LABEL_NAMES).or(match class_labels.as_slice() {
            [only] => Some(only),
            _ => None,
        });
        Ok(Self {
            image_leaf,
            label_leaf: label.map(|(leaf, _)| *leaf),
            label_names: label
                .and_then(|(_, name)| features.label_names(name))
                .unwrap_or_default(),
            image: image.to_owned(),
            label: label.map(|(_, name)| (*name).to_owned()),
        })
    }

    /// Refuses a file whose columns or label names are not those of the first.
    pub(super) fn check_same(&self, first: &Self, path: &Path) -> Result<(), SourceError> {
        if self == first {
            return Ok(());
        }
        let describe = |c: &Self| {
            let label = c.label.as_deref().unwrap_or("none");
            format!(
                "images `{}`, labels `{label}` with {} names",
                c.image,
                c.label_names.len()
            )
        };
        let detail = format!(
            "columns or label names differ from the first file's ({} there, {} here)",
            describe(first),
            describe(self)
        );
        let columns = [Some(self.image.as_str()), self.label.as_deref()]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join(", ");
        Err(SourceError::ParquetColumns {
            path: path.to_path_buf(),
            detail,
            columns,
        })
    }
}

/// The first of `columns` to have one of `names`, going by the order of the names.
fn by_name<'a, 'b>(
    columns: &'a [(usize, &'b str)],
    names: &[&str],
) -> Option<&'a (usize, &'b str)> {
    names
        .iter()
        .find_map(|name| columns.iter().find(|(_, column)| column == name))
}

/// The name of the struct around a leaf called `bytes`.
fn image_column(leaf: &ColumnDescriptor) -> Option<&str> {
    match leaf.path().parts() {
        [column, field]
            if field == "bytes"
                && leaf.physical_type() == Type::BYTE_ARRAY
                && leaf.max_rep_level() == 0 =>
        {
            Some(column)
        }
        _ => None,
    }
}

/// The name of a top-level column of signed or unsigned whole numbers.
fn integer_column(leaf: &ColumnDescriptor) -> Option<&str> {
    use ConvertedType::{INT_8, INT_16, INT_32, INT_64, NONE, UINT_8, UINT_16, UINT_32};
    let is_number = matches!(
        leaf.converted_type(),
        NONE | INT_8 | INT_16 | INT_32 | INT_64 | UINT_8 | UINT_16 | UINT_32
    );
    match leaf.path().parts() {
        [column]
            if matches!(leaf.physical_type(), Type::INT32 | Type::INT64)
                && is_number
                && leaf.max_rep_level() == 0 =>
        {
            Some(column)
        }
        _ => None,
    }
}

/// What the `datasets` library notes about the columns: JSON under the metadata key `huggingface`.
struct Features(Value);

impl Features {
    /// Metadata that is missing or not as expected names no labels: it is a help, and no part of the data.
    fn read(metadata: &ParquetMetaData) -> Self {
        let notes = metadata
            .file_metadata()
            .key_value_metadata()
            .into_iter()
            .flatten();
        let text = notes
            .filter(|note| note.key == "huggingface")
            .find_map(|note| note.value.as_deref());
        Self(
            text.and_then(|text| serde_json::from_str(text).ok())
                .unwrap_or(Value::Null),
        )
    }

    /// The names of a `ClassLabel` column.
    fn label_names(&self, column: &str) -> Option<Vec<String>> {
        let feature = &self.0["info"]["features"][column];
        if feature["_type"] != "ClassLabel" {
            return None;
        }
        feature["names"]
            .as_array()?
            .iter()
            .map(|name| name.as_str().map(str::to_owned))
            .collect()
    }
}
