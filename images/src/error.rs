//! Errors, with a variant for everything that a user would fix differently.

use std::io;
use std::path::PathBuf;

use schemas::CropBox;

/// Why a file's bytes are not a usable image. A bad image does not stop a program: record it and go on.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The first bytes do not belong to a supported format.
    #[error(
        "not an image of a known format: it starts with {start}; JPEG, PNG, WebP, GIF, BMP, TIFF and PNM (PPM, PGM, PBM) are read"
    )]
    UnknownFormat {
        /// The first bytes, in hexadecimal.
        start: String,
    },
    /// More bytes than an image may have.
    #[error("{bytes} bytes are more than the {limit} that an image file may have; re-encode it")]
    FileTooLarge {
        /// Length of the file.
        bytes: u64,
        /// [`MAX_FILE_BYTES`](crate::decode::MAX_FILE_BYTES).
        limit: u64,
    },
    /// The header declares more pixels than an image may have.
    #[error(
        "{width} x {height} pixels are more than the {limit} that an image may have; scale it down or cut it into tiles"
    )]
    TooManyPixels {
        /// Columns, as the header says.
        width: u32,
        /// Rows, as the header says.
        height: u32,
        /// [`MAX_PIXELS`](crate::decode::MAX_PIXELS).
        limit: u64,
    },
    /// The file ends before the image does. What is missing is never filled in.
    #[error("{format} file is truncated: {detail}")]
    Truncated {
        /// Name of the format.
        format: &'static str,
        /// The decoder's words.
        detail: String,
    },
    /// The file breaks the rules of its format.
    #[error("{format} file is corrupt: {detail}")]
    Corrupt {
        /// Name of the format.
        format: &'static str,
        /// The decoder's words.
        detail: String,
    },
    /// A valid file of a kind that the color policy or the decoders do not support.
    #[error("{format} file of an unsupported kind: {detail}; convert it to 8-bit RGB")]
    Unsupported {
        /// Name of the format.
        format: &'static str,
        /// The unsupported kind.
        detail: String,
    },
    /// The decoder panicked on a malformed file.
    #[error("the {format} decoder gave up on this file: {detail}")]
    DecoderPanic {
        /// Name of the format.
        format: &'static str,
        /// The panic's message.
        detail: String,
    },
}

impl DecodeError {
    /// A word for counting: `unknown-format`, `file-too-large`, `too-many-pixels`, `truncated`, `corrupt`, `unsupported` or
    /// `decoder-panic`. These do not change; the message may.
    pub fn reason(&self) -> &'static str {
        match self {
            DecodeError::UnknownFormat { .. } => "unknown-format",
            DecodeError::FileTooLarge { .. } => "file-too-large",
            DecodeError::TooManyPixels { .. } => "too-many-pixels",
            DecodeError::Truncated { .. } => "truncated",
            DecodeError::Corrupt { .. } => "corrupt",
            DecodeError::Unsupported { .. } => "unsupported",
            DecodeError::DecoderPanic { .. } => "decoder-panic",
        }
    }
}

/// A crop that cannot be cut or resampled. Boxes drawn by [`draw_view`](crate::draw_view) for the image's size never cause one.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CropError {
    /// The box is empty or reaches past the image: it was drawn for another image, or for one that was oriented differently.
    #[error(
        "crop of {w} x {h} pixels at ({x}, {y}) is not inside the image of {width} x {height}; it belongs to another image",
        w = crop.w, h = crop.h, x = crop.x, y = crop.y
    )]
    Outside {
        /// The box.
        crop: CropBox,
        /// Columns of the image.
        width: u32,
        /// Rows of the image.
        height: u32,
    },
    /// The output has no pixels.
    #[error("cannot resample to {width} x {height} pixels; both sides are at least 1")]
    EmptyOutput {
        /// Columns asked for.
        width: u32,
        /// Rows asked for.
        height: u32,
    },
}

/// Why a file does not hold class numbers of pixels.
#[derive(Debug, thiserror::Error)]
pub enum MaskError {
    /// Another format, in which class numbers are not kept exactly or not at all.
    #[error("not a PNG; save the mask as a PNG with one channel whose values are class numbers")]
    NotPng,
    /// Colors instead of class numbers.
    #[error(
        "{found}, but a mask has one channel whose values are class numbers (gray of 1 to 16 bits, or a palette); convert its colors to \
         class numbers"
    )]
    Channels {
        /// The kind of pixels.
        found: &'static str,
    },
    /// A damaged file, or one over the limits.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

/// Why an image cannot be packed.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// A side is longer than a JPEG allows.
    #[error("{width} x {height} pixels are more than the 65500 per side that a JPEG may have; cut it into tiles")]
    TooLong {
        /// Columns, after scaling.
        width: u32,
        /// Rows, after scaling.
        height: u32,
    },
    /// The image's data does not match its size.
    #[error(transparent)]
    Scale(#[from] CropError),
    /// The encoder's words.
    #[error("the JPEG encoder refused: {0}")]
    Jpeg(String),
}

/// Why images cannot be found or read in a source.
///
/// [`is_bad_record`](SourceError::is_bad_record) distinguishes an unusable record, which is recorded and skipped, from a source that
/// cannot be read at all.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The operating system reports an error: a file is missing or may not be read, or the disk or the network failed.
    #[error("{path}: cannot be read", path = path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A malformed pattern of file names.
    #[error("image source `{spec}`: {detail}")]
    BadPattern {
        /// What was asked for.
        spec: String,
        /// What is wrong with it.
        detail: String,
    },
    /// No file or folder has this name.
    #[error("image source `{spec}`: no such file or folder; give a folder of class folders, *.tar or *.parquet")]
    NotFound {
        /// What was asked for.
        spec: String,
    },
    /// A file that is neither a tar nor a Parquet file, going by its name, or a mixture of the two.
    #[error("image source `{spec}`: {path} is not {expected}; give a folder, .tar files or .parquet files", path = path.display())]
    UnknownKind {
        /// What was asked for.
        spec: String,
        /// The file.
        path: PathBuf,
        /// What was expected of it.
        expected: &'static str,
    },
    /// The source is readable and holds no image.
    #[error("image source `{spec}` holds no images; files ending in {extensions} count{found}")]
    NoImages {
        /// What was asked for.
        spec: String,
        /// The list of extensions.
        extensions: String,
        /// What it holds instead and how to give that; may be empty.
        found: String,
    },
    /// Training and test images in one place, and no split was chosen.
    #[error(
        "{place} holds several splits of a data set: {splits}. Give one of them (`{choices}`), or `{all}` for all of them as one data set"
    )]
    Splits {
        /// The folder.
        place: String,
        /// The splits, with the number of their files or folders.
        splits: String,
        /// What to give for each of them.
        choices: String,
        /// What to give for all of them.
        all: String,
    },
    /// A sample of a tar file with several images of one name.
    #[error(
        "{path}: `{first}` and `{second}` are two images of one sample. Say which images are meant: `{spec}::*.{extension}` takes those of one \
         kind, `{spec}::*` all, each with its extension in its key", path = path.display(), spec = path.display()
    )]
    SeveralImages {
        /// The tar file.
        path: PathBuf,
        /// Name of one member.
        first: String,
        /// Name of the other.
        second: String,
        /// Extension of the first.
        extension: String,
    },
    /// Some labels are numbers and some are names.
    #[error("some labels are numbers and some are names: {number} and {name}; label all images in one way")]
    MixedLabels {
        /// An image with a number.
        number: String,
        /// An image with a name.
        name: String,
    },
    /// Entries of a folder that are neither images nor readable folders. The error covers all of them.
    #[error(
        "{root}: {} cannot be used; mend, rename or remove {}{}",
        if *.count == 1 { "1 entry".to_owned() } else { format!("{count} entries") },
        if *.count == 1 { "it" } else { "them" },
        list(.first, *.count),
        root = root.display()
    )]
    BadEntries {
        /// The source's folder.
        root: PathBuf,
        /// How many.
        count: usize,
        /// What is wrong with the first of them.
        first: Vec<SourceError>,
    },
    /// Two images with one name.
    #[error("two images have the key `{key}`: {first} and {second}; rename or remove one of them")]
    DuplicateKey {
        /// The name.
        key: String,
        /// Where the first is.
        first: String,
        /// Where the second is.
        second: String,
    },
    /// An image of a cache that its source does not have any more.
    #[error("image `{key}` is not in the source any more; put it back, or give a source that has it")]
    Gone {
        /// Its key.
        key: String,
    },
    /// A file name that is not UTF-8, as a key must be.
    #[error("{path}: the name is not valid UTF-8; rename the file", path = path.display())]
    NotUtf8 {
        /// The file, with the offending bytes replaced.
        path: PathBuf,
    },
    /// A link that leads to a folder around itself.
    #[error("{path}: this link leads back to a folder that contains it; remove it", path = path.display())]
    LinkLoop {
        /// The link.
        path: PathBuf,
    },
    /// A tar file that ends too early.
    #[error("{path} is truncated: {detail}; copy or download it again", path = path.display())]
    TruncatedTar {
        /// The tar file.
        path: PathBuf,
        /// Where it ends and where it should.
        detail: String,
    },
    /// A tar file that breaks the format.
    #[error("{path} is not a readable tar file: {detail}", path = path.display())]
    CorruptTar {
        /// The tar file.
        path: PathBuf,
        /// What is wrong and where.
        detail: String,
    },
    /// A label that is neither a whole number of 32 bits nor, in a tar file, a name.
    #[error("{path}, {member}: label `{found}` is not a class: a whole number from 0 to 2147483647, or a name in one line", path = path.display())]
    BadLabel {
        /// The tar or Parquet file.
        path: PathBuf,
        /// The member or row.
        member: String,
        /// The content.
        found: String,
    },
    /// A label field that was asked for and that no image has.
    #[error(
        "{path}: no image has a label in a member called `.{field}`; members that could be labels: {instead}. Correct `::label={field}`, or \
         leave it out", path = path.display()
    )]
    NoLabelMember {
        /// The first shard.
        path: PathBuf,
        /// The field.
        field: String,
        /// Fields that hold what could be a label.
        instead: String,
    },
    /// A label outside of the file's own list of class names.
    #[error(
        "{path}, row {row}: column `{column}` holds class {value}, but the file names {names} classes, 0 to {}; correct the value, or the names \
         in the file's metadata", names.saturating_sub(1), path = path.display()
    )]
    UnnamedLabel {
        /// The Parquet file.
        path: PathBuf,
        /// Row in the file, from 0.
        row: u64,
        /// The column of labels.
        column: String,
        /// The label.
        value: i32,
        /// How many names there are.
        names: usize,
    },
    /// A Parquet file that cannot be parsed.
    #[error("{path} is not a readable Parquet file: {detail}; if it was copied or downloaded, do so again", path = path.display())]
    CorruptParquet {
        /// The Parquet file.
        path: PathBuf,
        /// The reader's words.
        detail: String,
    },
    /// A Parquet file without a column of images, or with several.
    #[error("{path}: {detail}; columns found: {columns}", path = path.display())]
    ParquetColumns {
        /// The Parquet file.
        path: PathBuf,
        /// What is missing or ambiguous.
        detail: String,
        /// Names of all columns.
        columns: String,
    },
    /// A row whose image is null.
    #[error("{path}, row {row}: the image has no bytes", path = path.display())]
    NoBytes {
        /// The Parquet file.
        path: PathBuf,
        /// Row in the file, from 0.
        row: u64,
    },
    /// A record that is too long to be an image.
    #[error("{path}, {member}: {bytes} bytes are more than the {limit} that an image file may have", path = path.display())]
    RecordTooLarge {
        /// The file.
        path: PathBuf,
        /// Member or row, or the file itself.
        member: String,
        /// Its length.
        bytes: u64,
        /// [`MAX_FILE_BYTES`](crate::decode::MAX_FILE_BYTES).
        limit: u64,
    },
}

impl SourceError {
    /// Whether only this record is bad. If not, the disk, the network or the whole file is at fault, and going on with the next record
    /// would turn a temporary failure into rejects.
    pub fn is_bad_record(&self) -> bool {
        matches!(self, SourceError::NoBytes { .. } | SourceError::RecordTooLarge { .. })
    }
}

/// The first errors, a line each, with their causes.
fn list(first: &[SourceError], count: usize) -> String {
    let mut text = String::new();
    for error in first {
        text += &format!("\n  {error}");
        let mut cause = std::error::Error::source(error);
        while let Some(error) = cause {
            text += &format!(": {error}");
            cause = error.source();
        }
    }
    if count > first.len() {
        text += &format!("\n  and {} more", count - first.len());
    }
    text
}
