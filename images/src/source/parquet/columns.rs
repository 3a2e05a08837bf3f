//! Finds the columns of images and labels.

use std::collections::HashMap;
use std::path::Path;

use parquet::basic::{ConvertedType, LogicalType, Type};
use parquet::file::metadata::ParquetMetaData;
use parquet::schema::types::ColumnDescriptor;
use serde_json::Value;

use crate::SourceError;
use crate::source::labels::is_like_a_label;

/// Names of image columns in order of preference, if there are several.
const IMAGE_NAMES: [&str; 2] = ["image", "img"];

/// Names of label columns in order of preference, in upper or lower case.
const LABEL_NAMES: [&str; 14] = [
    "label",
    "fine_label",
    "labels",
    "class",
    "cls",
    "target",
    "coarse_label",
    "class_label",
    "class_id",
    "label_id",
    "category_id",
    "category",
    "class_name",
    "label_name",
];

/// The number of names at the start of the list that need a column of an integer type.
const INTEGER_NAMES: usize = 7;

/// The columns of a file that matter. `leaf` numbers count the file's leaf columns.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Columns {
    pub(super) image_leaf: usize,
    pub(super) label: Option<LabelColumn>,
    pub(super) label_names: Vec<String>,
    /// Columns with a label's name that cannot be labels, and their type.
    pub(super) unread_labels: Vec<(String, &'static str)>,
    /// Further columns of images.
    pub(super) other_images: Vec<String>,
    /// Columns that could be the labels and are not read: those with a label's name or noted as classes, and, if no column is read as labels,
    /// all whose type fits, the most likely first.
    pub(super) like_labels: Vec<String>,
    /// Other columns.
    pub(super) others: Vec<String>,
    image: String,
}

/// The column of labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LabelColumn {
    pub(super) leaf: usize,
    pub(super) name: String,
    pub(super) kind: LabelKind,
}

/// Types of columns that can hold classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LabelKind {
    Integer,
    Unsigned,
    Boolean,
    Float,
    /// Digits after the point.
    Decimal(u32),
    Text,
}

impl Columns {
    /// The image column is the one called `wanted`, or the struct column with a binary field `bytes`; if there are several, the one called
    /// `image` or `img`. The label column is an integer column with one of the [`LABEL_NAMES`], else the only one that the metadata calls a
    /// `ClassLabel`, else a column of another type that can be a class, with one of the names.
    pub(super) fn find(
        path: &Path,
        metadata: &ParquetMetaData,
        wanted: Option<&str>,
        wanted_label: Option<&str>,
    ) -> Result<Self, SourceError> {
        let leaves = metadata.file_metadata().schema_descr().columns();
        let features = Features::read(metadata);

        let images: Vec<(usize, &str)> =
            leaves.iter().enumerate().filter_map(|(i, leaf)| Some((i, image_column(leaf)?))).collect();
        // Bytes outside of such a struct are images only if the user says so.
        let bare: Vec<(usize, &str)> =
            leaves.iter().enumerate().filter_map(|(i, leaf)| Some((i, column_of_bytes(leaf)?))).collect();
        let problem = |detail: &str| SourceError::ParquetColumns {
            path: path.to_path_buf(),
            detail: detail.to_owned(),
            columns: leaves.iter().map(|leaf| leaf.path().string()).collect::<Vec<_>>().join(", "),
        };
        let (image_leaf, image) = match (wanted, images.as_slice()) {
            (Some(wanted), images) => *images
                .iter()
                .chain(&bare)
                .find(|(_, name)| *name == wanted)
                .ok_or_else(|| problem(&format!("no column of images is called `{wanted}`")))?,
            (None, []) => {
                let expected = "no column of images; expected a struct with a binary field `bytes`, as Hugging Face writes it";
                return Err(problem(&match bare.first() {
                    None => expected.to_owned(),
                    Some((_, name)) => format!(
                        "{expected}. If the bytes of column `{name}` are whole image files, name it behind the source, as in `{}::{name}`",
                        path.display()
                    ),
                }));
            }
            (None, [only]) => *only,
            (None, several) => *by_name(several, &IMAGE_NAMES).ok_or_else(|| {
                problem(&format!(
                    "several columns of images, and none of them is called `image` or `img`; name one behind the source, as in `{}::{}`",
                    path.display(),
                    several[0].1
                ))
            })?,
        };

        let columns: Vec<(usize, &str, Result<LabelKind, &'static str>)> = leaves
            .iter()
            .enumerate()
            .filter_map(|(i, leaf)| Some((i, leaf.path().parts().first()?.as_str(), label_kind(leaf))))
            .collect();
        let integers: Vec<(usize, &str)> = columns
            .iter()
            .filter(|(_, _, kind)| *kind == Ok(LabelKind::Integer))
            .map(|(i, name, _)| (*i, *name))
            .collect();
        let class_labels: Vec<(usize, &str)> =
            integers.iter().filter(|(_, name)| features.label_names(name).is_some()).copied().collect();
        let mut unread_labels: Vec<(String, &'static str)> = Vec::new();
        let asked = match wanted_label {
            Some(wanted) => {
                let column = columns.iter().find(|(_, column, _)| *column == wanted);
                match column {
                    Some((leaf, column, Ok(kind))) if *column != image => Some((*leaf, *column, *kind)),
                    Some((_, _, Err(what))) => {
                        return Err(problem(&format!("column `{wanted}` is {what}, which cannot be a class")));
                    }
                    _ => {
                        return Err(problem(&format!("no column of labels is called `{wanted}`")));
                    }
                }
            }
            None => None,
        };
        let chosen = by_name(&integers, &LABEL_NAMES[..INTEGER_NAMES])
            .or(match class_labels.as_slice() {
                [only] => Some(only),
                _ => None,
            })
            .map(|(leaf, name)| (*leaf, *name, LabelKind::Integer));
        let of_name = |name: &str| -> Vec<_> {
            columns.iter().filter(|(_, column, _)| column.eq_ignore_ascii_case(name) && *column != image).collect()
        };
        let chosen = asked.or(chosen).or_else(|| {
            LABEL_NAMES.iter().find_map(|name| {
                of_name(name).iter().find_map(|(leaf, column, kind)| match kind {
                    Ok(kind) => Some((*leaf, *column, *kind)),
                    Err(what) => {
                        if !unread_labels.iter().any(|(other, _)| other == column) {
                            unread_labels.push(((*column).to_owned(), *what));
                        }
                        None
                    }
                })
            })
        });
        let label_name = chosen.map_or("", |(_, name, _)| name);
        let label_names = features.label_names(label_name).unwrap_or_default();
        let mut first_of = HashMap::new();
        for (class, name) in label_names.iter().enumerate() {
            if let Some(first) = first_of.insert(name, class) {
                return Err(problem(&format!(
                    "the `ClassLabel` of column `{label_name}` calls class {first} and class {class} both {name:?}; give one of them another \
                     name in the file's metadata"
                )));
            }
        }
        let mut others: Vec<String> = Vec::new();
        for (_, name, _) in &columns {
            let is_known = *name == image
                || *name == label_name
                || images.iter().any(|(_, other)| other == name)
                || others.iter().any(|other| other == name);
            if !is_known {
                others.push((*name).to_owned());
            }
        }
        let mut like_labels: Vec<String> = Vec::new();
        for (_, name, kind) in &columns {
            let is_like = is_like_a_label(name) || features.label_names(name).is_some();
            let is_free = kind.is_ok() && *name != image && *name != label_name;
            let is_candidate = is_like || chosen.is_none();
            if is_free && is_candidate && wanted_label.is_none() {
                match is_like {
                    true => like_labels.insert(0, (*name).to_owned()),
                    false => like_labels.push((*name).to_owned()),
                }
            }
        }
        Ok(Self {
            like_labels,
            image_leaf,
            label_names,
            label: chosen.map(|(leaf, name, kind)| LabelColumn { leaf, name: name.to_owned(), kind }),
            unread_labels,
            other_images: images
                .iter()
                .filter(|(_, name)| *name != image)
                .map(|(_, name)| (*name).to_owned())
                .collect(),
            others,
            image: image.to_owned(),
        })
    }

    /// Refuses a label without a name in the column's own list of names.
    pub(super) fn check_named(&self, path: &Path, row: usize, label: Option<i32>) -> Result<(), SourceError> {
        match (label, &self.label) {
            (Some(value), Some(column))
                if column.kind != LabelKind::Text
                    && !self.label_names.is_empty()
                    && value as usize >= self.label_names.len() =>
            {
                Err(SourceError::UnnamedLabel {
                    path: path.to_path_buf(),
                    row: row as u64,
                    column: column.name.clone(),
                    value,
                    names: self.label_names.len(),
                })
            }
            _ => Ok(()),
        }
    }

    /// Refuses a file whose columns or label names are not those of the first.
    pub(super) fn check_same(&self, first: &Self, path: &Path) -> Result<(), SourceError> {
        let what_counts = |c: &Self| {
            let label = c.label.as_ref().map(|label| (label.leaf, label.name.clone()));
            (c.image_leaf, c.image.clone(), label, c.label_names.clone())
        };
        if what_counts(self) == what_counts(first) {
            return Ok(());
        }
        let describe = |c: &Self| {
            let label = c.label.as_ref().map_or("none", |label| &label.name);
            format!("images `{}`, labels `{label}` with {} names", c.image, c.label_names.len())
        };
        let detail = format!(
            "columns or label names differ from the first file's ({} there, {} here)",
            describe(first),
            describe(self)
        );
        let label = self.label.as_ref().map(|label| label.name.as_str());
        let columns = [Some(self.image.as_str()), label].into_iter().flatten().collect::<Vec<_>>().join(", ");
        Err(SourceError::ParquetColumns { path: path.to_path_buf(), detail, columns })
    }
}

/// The column with the first of `names` that any column has.
fn by_name<'a, 'b>(columns: &'a [(usize, &'b str)], names: &[&str]) -> Option<&'a (usize, &'b str)> {
    names.iter().find_map(|name| columns.iter().find(|(_, column)| column == name))
}

/// The name of the struct around a leaf called `bytes`.
fn image_column(leaf: &ColumnDescriptor) -> Option<&str> {
    match leaf.path().parts() {
        [column, field]
            if field == "bytes" && leaf.physical_type() == Type::BYTE_ARRAY && leaf.max_rep_level() == 0 =>
        {
            Some(column)
        }
        _ => None,
    }
}

/// The name of a column of bytes that are not text.
fn column_of_bytes(leaf: &ColumnDescriptor) -> Option<&str> {
    match leaf.path().parts() {
        [column]
            if leaf.physical_type() == Type::BYTE_ARRAY
                && leaf.max_rep_level() == 0
                && leaf.converted_type() == ConvertedType::NONE
                && leaf.logical_type_ref().is_none() =>
        {
            Some(column)
        }
        _ => None,
    }
}

/// How a column can hold classes, or why it cannot.
fn label_kind(leaf: &ColumnDescriptor) -> Result<LabelKind, &'static str> {
    use ConvertedType::{DECIMAL, ENUM, INT_8, INT_16, INT_32, INT_64, NONE, UINT_8, UINT_16, UINT_32, UINT_64, UTF8};
    if leaf.max_rep_level() > 0 {
        return Err("a list");
    }
    if leaf.path().parts().len() > 1 {
        return Err("a struct");
    }
    let logical = leaf.logical_type_ref();
    if matches!(logical, Some(LogicalType::Unknown)) {
        return Err("a column of nulls");
    }
    match (leaf.physical_type(), leaf.converted_type()) {
        (_, DECIMAL) => u32::try_from(leaf.type_scale())
            .ok()
            .filter(|&scale| scale <= 38)
            .map(LabelKind::Decimal)
            .ok_or("a decimal with more than 38 digits after the point, or with zeros before it"),
        (Type::BOOLEAN, _) => Ok(LabelKind::Boolean),
        (Type::FLOAT | Type::DOUBLE, _) => Ok(LabelKind::Float),
        (Type::INT32 | Type::INT64, INT_8 | INT_16 | INT_32 | INT_64) => Ok(LabelKind::Integer),
        (Type::INT32 | Type::INT64, UINT_8 | UINT_16) => Ok(LabelKind::Integer),
        // Their upper half is negative in the physical type.
        (Type::INT32, UINT_32) | (Type::INT64, UINT_64) => Ok(LabelKind::Unsigned),
        (Type::INT64, UINT_32) => Ok(LabelKind::Integer),
        (Type::INT32 | Type::INT64, NONE) if logical.is_none() => Ok(LabelKind::Integer),
        (Type::INT32 | Type::INT64 | Type::INT96, _) => Err("a time or date"),
        (Type::BYTE_ARRAY, UTF8 | ENUM) => Ok(LabelKind::Text),
        (Type::BYTE_ARRAY, NONE) if matches!(logical, None | Some(LogicalType::String | LogicalType::Enum)) => {
            Ok(LabelKind::Text)
        }
        (Type::FIXED_LEN_BYTE_ARRAY, NONE) if matches!(logical, Some(LogicalType::Float16)) => Ok(LabelKind::Float),
        _ => Err("of another type"),
    }
}

/// The notes of the `datasets` library about the columns: JSON under the metadata key `huggingface`.
struct Features(Value);

impl Features {
    /// Missing or unexpected metadata gives no label names: it is optional and not part of the data.
    fn read(metadata: &ParquetMetaData) -> Self {
        let notes = metadata.file_metadata().key_value_metadata().into_iter().flatten();
        let text = notes.filter(|note| note.key == "huggingface").find_map(|note| note.value.as_deref());
        Self(text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or(Value::Null))
    }

    /// The names of a `ClassLabel` column.
    fn label_names(&self, column: &str) -> Option<Vec<String>> {
        let feature = &self.0["info"]["features"][column];
        if feature["_type"] != "ClassLabel" {
            return None;
        }
        feature["names"].as_array()?.iter().map(|name| name.as_str().map(str::to_owned)).collect()
    }
}
