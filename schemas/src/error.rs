//! Everything that can be wrong with a cache, one variant each.
//!
//! A variant says where (path, row, column or field), what was found, what was expected, and the next step. A reader and
//! [`verify`](crate::verify()) meet damage through the same code, so they say it in the same words.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::TeacherId;

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A field of an identity in which a request differs from what is there. The values are text, cut where they are long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldDifference {
    /// Dotted name, for example `views.seed`.
    pub field: String,
    /// What the cache holds.
    pub cached: String,
    /// What was asked for.
    pub requested: String,
}

impl fmt::Display for FieldDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FieldDifference { field, cached, requested } = self;
        if field == "dataset.digest" {
            // Nobody knows a digest by heart.
            return write!(
                f,
                "other images, by their names, order, sizes or labels ({field} = {cached}, now {requested})"
            );
        }
        if field == "label_names" {
            return write!(f, "other classes or another order of them ({cached}; now {requested})");
        }
        write!(f, "{field} = {cached}, but {field} = {requested} is asked for")
    }
}

/// A way in which a cache, or a request to one, can be wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    // ---- The machine ------------------------------------------------------------------------------------------------
    /// The operating system refused. Nothing is known about the data.
    #[error("could not {action} {path}")]
    Io {
        /// What was tried: "read", "create", "rename", ...
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// No space (or no quota) left. What was being written is removed; everything committed stays.
    #[error(
        "no space left to write {path}: free some, then run the same command again (what was finished before is kept)"
    )]
    DiskFull {
        /// The file that did not fit.
        path: PathBuf,
    },
    /// A finished folder is never overwritten.
    #[error("{path} already exists and is not overwritten: remove it or choose another place")]
    AlreadyExists {
        /// The folder in the way.
        path: PathBuf,
    },

    // ---- Identity ---------------------------------------------------------------------------------------------------
    /// The folder holds no `cache.json`.
    #[error("{path} is not a cache: it holds no cache.json (build one with `pipeline build-cache --out {path}`)")]
    NotACache {
        /// The folder.
        path: PathBuf,
    },
    /// A name that cannot be a folder of `teachers/`.
    #[error(
        "{id:?} cannot name a teacher: use 1 to 64 of a-z 0-9 . _ - with a letter or digit first, for example \"clip-b16\""
    )]
    TeacherName {
        /// The name asked for.
        id: String,
    },
    /// An identity that no builder can have meant.
    #[error("{path}: {field} is {found}, but must be {expected}")]
    IdentityValue {
        /// The record it is, or would be, written to.
        path: PathBuf,
        /// Dotted field name, as in the JSON record.
        field: String,
        /// The value.
        found: String,
        /// What is allowed.
        expected: String,
    },
    /// Resuming or extending with something that would change the cached bytes.
    #[error(
        "{path}: this cache was built with {}; build into another folder, or {}",
        list_differences(.differences),
        how_to_go_on(.differences)
    )]
    IdentityChanged {
        /// `cache.json` or `teacher.json`.
        path: PathBuf,
        /// Every field that differs, the one that others follow from first; never empty.
        differences: Vec<FieldDifference>,
    },
    /// Going on with an addition to the data set whose images have changed since.
    #[error(
        "{path}: this addition was begun with {expected} other images and has finished parts; {found} are new to the cache now. Give the images as they \
         were to finish it, and add the others after that"
    )]
    GenerationChanged {
        /// `generations/NNNNN.json`.
        path: PathBuf,
        /// Samples that are to be appended now.
        found: u64,
        /// Samples of the addition that was begun.
        expected: u64,
    },
    /// The cache has no teacher of that name.
    #[error("{path} has no teacher {id}; it has {}", list(.known))]
    NoSuchTeacher {
        /// The cache.
        path: PathBuf,
        /// The name asked for.
        id: TeacherId,
        /// The names there are.
        known: Vec<TeacherId>,
    },
    /// A part beyond the plan.
    #[error("{path} has parts 0 to {}, there is no part {part}", .parts.saturating_sub(1))]
    NoSuchPart {
        /// The cache.
        path: PathBuf,
        /// The part asked for.
        part: u32,
        /// How many the plan has.
        parts: u32,
    },
    /// A row beyond the part.
    #[error("{path} has {rows} rows, there is no row {row}")]
    NoSuchRow {
        /// The part file.
        path: PathBuf,
        /// The row asked for.
        row: usize,
        /// How many there are.
        rows: usize,
    },
    /// The part was never committed: the build has not come to it, or was interrupted in it.
    #[error("{path} is not there, so this part is not finished: run the command that builds it again ({})", builders(.path))]
    NotBuilt {
        /// The commit record that is missing.
        path: PathBuf,
    },

    // ---- JSON records -----------------------------------------------------------------------------------------------
    /// A record larger than any real one; it is not read into memory.
    #[error(
        "{path} has {found} bytes, more than the {limit} such a record can have: it is damaged or not ours; restore it from a copy"
    )]
    RecordSize {
        /// The record.
        path: PathBuf,
        /// Its size in bytes.
        found: u64,
        /// The largest accepted.
        limit: u64,
    },
    /// The record does not match the digest on its last line.
    #[error("{path} does not match the digest on its own last line: it is damaged or was edited by hand; {}", restore(.path))]
    RecordDigest {
        /// The record.
        path: PathBuf,
    },
    /// The record is intact but does not say what the format asks for.
    #[error("{path}: {detail}; {}", restore(.path))]
    Record {
        /// The record.
        path: PathBuf,
        /// What is wrong, with the field's name.
        detail: String,
    },
    /// Another version of the format.
    #[error(
        "{path} has format version {found}, this program reads version {supported}: use a program of that version, or rebuild the cache"
    )]
    Version {
        /// The record.
        path: PathBuf,
        /// Its version.
        found: u64,
        /// Ours.
        supported: u32,
    },
    /// A record, or a part file, that belongs to another cache, teacher or part.
    #[error("{path} belongs elsewhere: its {field} is {found}, here it must be {expected}; {}", restore(.path))]
    Misplaced {
        /// The file.
        path: PathBuf,
        /// Which of its properties gives it away.
        field: String,
        /// Its value.
        found: String,
        /// The value here.
        expected: String,
    },

    // ---- Part files as a whole --------------------------------------------------------------------------------------
    /// A commit record declares a file that is not there.
    #[error("{path} is missing although its commit record declares it; {}", restore(.path))]
    FileMissing {
        /// The missing file.
        path: PathBuf,
    },
    /// A file longer or shorter than its commit record says.
    #[error("{path} has {found} bytes, its commit record says {expected}: it was cut or appended to; {}", restore(.path))]
    FileSize {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        found: u64,
        /// The declared size.
        expected: u64,
    },
    /// Bytes after the last row (page index, footer) differ from what was written: no row can be located.
    #[error("{path}: the footer is damaged (it does not match the commit record); no row is named because none can be located; {}", restore(.path))]
    Footer {
        /// The file.
        path: PathBuf,
    },
    /// The file differs from what was written, but every row reads back as it was written.
    #[error("{path} does not match the sha256 in its commit record, although every row in it is intact: the damage lies in no row; {}", restore(.path))]
    FileHash {
        /// The file.
        path: PathBuf,
    },
    /// The file is what was written, but is not Parquet as this format uses it.
    #[error("{path} is not a Parquet file of this format: {detail}; {}", restore(.path))]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// A column is missing, unexpected, or of another type.
    #[error("{path}: column {column} is {found}, but must be {expected}; {}", restore(.path))]
    Column {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// What the file has.
        found: String,
        /// What the format says.
        expected: String,
    },
    /// The file has another number of rows than its commit record says.
    #[error("{path} has {found} rows, its commit record says {expected}; {}", restore(.path))]
    RowCount {
        /// The file.
        path: PathBuf,
        /// Rows in the file.
        found: u64,
        /// Rows declared.
        expected: u64,
    },

    // ---- Rows -------------------------------------------------------------------------------------------------------
    /// A row's bytes cannot be decoded.
    #[error("{path}, row {row}, column {column}: cannot be read ({detail}): the file is damaged here; {}", restore(.path))]
    RowUnreadable {
        /// The part file.
        path: PathBuf,
        /// The row, from 0 in this file.
        row: usize,
        /// The column.
        column: String,
        /// What the decoder met.
        detail: String,
    },
    /// A row decodes, but not to what was written.
    #[error("{path}, row {row}: the values have checksum {found:016x}, the row says {expected:016x}: the file is damaged here; {}", restore(.path))]
    RowChecksum {
        /// The part file.
        path: PathBuf,
        /// The row, from 0 in this file.
        row: usize,
        /// The checksum of the values that were read.
        found: u64,
        /// In the column `checksum`.
        expected: u64,
    },
    /// A row holds, or is given, a value outside its range.
    #[error("{path}, row {row}: {column} is {found}, but must be {expected}")]
    RowValue {
        /// The part file.
        path: PathBuf,
        /// The row, from 0 in this file.
        row: usize,
        /// The column.
        column: String,
        /// The value.
        found: String,
        /// What is allowed.
        expected: String,
    },
    /// Rows are sorted by (sample_id, view) without repetition; this one is not behind the one before it.
    #[error("{path}, row {row}: (sample {sample_id}, view {view}) does not come after the row before it, (sample {}, view {})", .before.0, .before.1)]
    RowOrder {
        /// The part file.
        path: PathBuf,
        /// The row, from 0 in this file.
        row: usize,
        /// Its sample.
        sample_id: u64,
        /// Its view.
        view: u16,
        /// Sample and view of the row before.
        before: (u64, u16),
    },
    /// A teacher's row does not belong to the samples row it should be joined with.
    #[error("{path}, row {row}: {column} is {found}, but the samples file has {expected}: features and image do not belong together; {}", restore(.path))]
    Join {
        /// The teacher's part file.
        path: PathBuf,
        /// The row, from 0 in this file.
        row: usize,
        /// `sample_id`, `view` or `content_hash`.
        column: String,
        /// The teacher's value.
        found: String,
        /// The samples file's value.
        expected: String,
    },
    /// A teacher's file has another number of rows than the samples file it should be joined with.
    #[error("{path} has {found} rows, but the samples file has {expected}: features and images do not belong together; {}", restore(.path))]
    JoinCount {
        /// The teacher's part file.
        path: PathBuf,
        /// Its rows.
        found: u64,
        /// The samples file's rows.
        expected: u64,
    },
    /// Samples and rejects of a part do not cover each of its samples exactly once.
    #[error("{path}: sample {sample_id} has {rows} rows and {rejects} rejects, but must have {views} rows or 1 reject")]
    Coverage {
        /// The samples file.
        path: PathBuf,
        /// The sample.
        sample_id: u64,
        /// Rows it has.
        rows: u64,
        /// Rejects it has.
        rejects: u64,
        /// Rows it must have if it is not rejected.
        views: u16,
    },
    /// A line of a rejects file that does not read back as it was written.
    #[error("{path}, line {line}: {detail}: the file is damaged here; {}", restore(.path))]
    RejectLine {
        /// The rejects file.
        path: PathBuf,
        /// The line, from 0, so that it counts like the rows of the other files.
        line: usize,
        /// What is wrong.
        detail: String,
    },
    /// The channel sums of a commit record are not those of the part's rows.
    #[error("{path}: {field} is {found}, but the part's rows give {expected}; {}", restore(.path))]
    ChannelSums {
        /// The commit record.
        path: PathBuf,
        /// `channels.count`, `channels.sum[i]` or `channels.sum_sq[i]`.
        field: String,
        /// The record's value.
        found: String,
        /// The value of the rows.
        expected: String,
    },

    /// The packed image of a row is not the one that its hash is of.
    #[error("{path}, row {row}: the packed image has hash {found}, the row says {expected}: the file is damaged here; {}", restore(.path))]
    ImageHash {
        /// The samples file.
        path: PathBuf,
        /// The row.
        row: usize,
        /// The hash of the bytes.
        found: String,
        /// In the row.
        expected: String,
    },

    // ---- Values -----------------------------------------------------------------------------------------------------
    /// A value that the codec cannot hold: not finite, or too large for it.
    #[error(
        "value {value} at position {position} cannot be stored as {codec}, which holds finite values only (f16 up to 65504): look at the teacher's output, or choose another codec"
    )]
    Unstorable {
        /// The codec.
        codec: &'static str,
        /// Position in the slice that was to be encoded.
        position: usize,
        /// The value.
        value: f32,
    },
    /// A row's features that cannot be stored.
    #[error("{column}")]
    Feature {
        /// `tokens`, `cls` or `cls_attn`.
        column: &'static str,
        /// What is wrong with it.
        #[source]
        source: Box<Error>,
    },
    /// Encoded bytes that do not decode to as many finite values as the caller expects.
    #[error("{found} bytes of {codec} cannot hold exactly {expected} values")]
    CodecLength {
        /// The codec.
        codec: &'static str,
        /// Bytes given.
        found: usize,
        /// Values expected.
        expected: usize,
    },
}

impl Error {
    /// The file or folder that it is about.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Error::Io { path, .. }
            | Error::DiskFull { path, .. }
            | Error::AlreadyExists { path, .. }
            | Error::NotACache { path, .. }
            | Error::IdentityValue { path, .. }
            | Error::IdentityChanged { path, .. }
            | Error::GenerationChanged { path, .. }
            | Error::NoSuchTeacher { path, .. }
            | Error::NoSuchPart { path, .. }
            | Error::NoSuchRow { path, .. }
            | Error::NotBuilt { path, .. }
            | Error::RecordSize { path, .. }
            | Error::RecordDigest { path, .. }
            | Error::Record { path, .. }
            | Error::Version { path, .. }
            | Error::Misplaced { path, .. }
            | Error::FileMissing { path, .. }
            | Error::FileSize { path, .. }
            | Error::Footer { path, .. }
            | Error::FileHash { path, .. }
            | Error::Parquet { path, .. }
            | Error::Column { path, .. }
            | Error::RowCount { path, .. }
            | Error::RowUnreadable { path, .. }
            | Error::RowChecksum { path, .. }
            | Error::RowValue { path, .. }
            | Error::RowOrder { path, .. }
            | Error::Join { path, .. }
            | Error::JoinCount { path, .. }
            | Error::Coverage { path, .. }
            | Error::RejectLine { path, .. }
            | Error::ChannelSums { path, .. }
            | Error::ImageHash { path, .. } => Some(path),
            Error::Feature { source, .. } => source.path(),
            _ => None,
        }
    }

    pub(crate) fn of_feature(self, column: &'static str) -> Error {
        Error::Feature { column, source: Box::new(self) }
    }

    /// Whether features are at fault that no codec holds, or not this one ([`Error::Unstorable`]).
    pub fn is_unstorable(&self) -> bool {
        match self {
            Error::Unstorable { .. } => true,
            Error::Feature { source, .. } => source.is_unstorable(),
            _ => false,
        }
    }

    /// Whether the operating system refused (unreachable disk, permissions, no space), so that nothing is known about the
    /// data: the difference between exit status 2, "could not", and 1, "the data has problems".
    pub(crate) fn is_io(&self) -> bool {
        matches!(self, Error::Io { .. } | Error::DiskFull { .. })
    }

    /// Whether files of a cache are not what was written. A wrong path or setting, a program of another version and a refusal of the operating system are not
    /// damage.
    pub fn is_damage(&self) -> bool {
        match self {
            Error::RecordSize { .. }
            | Error::RecordDigest { .. }
            | Error::Record { .. }
            | Error::Misplaced { .. }
            | Error::FileMissing { .. }
            | Error::FileSize { .. }
            | Error::Footer { .. }
            | Error::FileHash { .. }
            | Error::Parquet { .. }
            | Error::Column { .. }
            | Error::RowCount { .. }
            | Error::RowUnreadable { .. }
            | Error::RowChecksum { .. }
            | Error::RowValue { .. }
            | Error::RowOrder { .. }
            | Error::Join { .. }
            | Error::JoinCount { .. }
            | Error::Coverage { .. }
            | Error::RejectLine { .. }
            | Error::ChannelSums { .. }
            | Error::ImageHash { .. } => true,
            Error::Feature { source, .. } => source.is_damage(),
            _ => false,
        }
    }

    /// An error of the Parquet library on `path`. The operating system's errors inside it are told apart.
    pub(crate) fn parquet(action: &'static str, path: &Path, error: parquet::errors::ParquetError) -> Error {
        let detail = match error {
            parquet::errors::ParquetError::External(inner) => match inner.downcast::<std::io::Error>() {
                Ok(source) => return Error::io(action, path, *source),
                Err(other) => other.to_string(),
            },
            other => other.to_string(),
        };
        Error::Parquet { path: path.to_path_buf(), detail }
    }

    /// An I/O error on `path`, with a full disk told apart.
    pub fn io(action: &'static str, path: &Path, source: std::io::Error) -> Error {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        match source.kind() {
            StorageFull | QuotaExceeded => Error::DiskFull { path: path.to_path_buf() },
            _ => Error::Io { action, path: path.to_path_buf(), source },
        }
    }
}

/// `views.seed = 7, but views.seed = 8 is asked for; ...`, cut where nobody would read on.
fn list_differences(differences: &[FieldDifference]) -> String {
    const SHOWN: usize = 20;
    let mut said: Vec<String> = differences.iter().take(SHOWN).map(|d| d.to_string()).collect();
    if differences.len() > SHOWN {
        said.push(format!("and {} more", differences.len() - SHOWN));
    }
    said.join("; ")
}

/// What to do about differences: of images, which the source decides; of the program's version; of settings.
fn how_to_go_on(differences: &[FieldDifference]) -> &'static str {
    let is_of_images =
        |d: &FieldDifference| d.field == "label_names" || d.field == "plan.samples" || d.field.starts_with("dataset.");
    let of_images = differences.iter().filter(|d| is_of_images(d)).count();
    if differences.iter().any(|d| d.field == "batches") {
        return "finish it with the version of the program that began it, which cut forward passes by usable rows: this one cuts them by samples, \
                and the features would differ in their last bits";
    }
    match (of_images, differences.len() - of_images) {
        (0, 1) => "ask for the cached value",
        (0, _) => "ask for the cached values",
        (_, 0) => "give the images as they were (the same files, labels and --limit)",
        _ => "give the images as they were (the same files, labels and --limit) and ask for the other cached values",
    }
}

/// `"clip", "dino"`, or `none`.
fn list<T: fmt::Display>(names: &[T]) -> String {
    if names.is_empty() {
        return "none".to_string();
    }
    names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ")
}

/// The commands that can have built a part, by its commit record.
fn builders(commit: &Path) -> &'static str {
    match is_of_samples(commit) {
        true => "`pipeline build-cache`, or `add-images` for images added later",
        false => {
            "`pipeline build-cache`; `add-images` for images and `add-teacher` for a teacher added later; `recode` for a recoded teacher"
        }
    }
}

/// Whether a commit record is of samples, and not of a teacher's features.
fn is_of_samples(commit: &Path) -> bool {
    let folder = commit.parent().unwrap_or(commit);
    // A teacher may have this name.
    folder.ends_with("samples") && !folder.parent().is_some_and(|above| above.ends_with("teachers"))
}

/// What to do about a damaged file. Deleting a part's commit record makes the builder build that part again, to the same
/// bytes, and deleting a teacher's identity makes it write that again; of `cache.json` nothing else says what it said.
fn restore(path: &Path) -> String {
    match crate::layout::commit_of(path) {
        Some(commit) => {
            // What a network computes is not what a recoded teacher has.
            let except = if is_of_samples(&commit) { "" } else { ", unless the teacher was recoded" };
            format!(
                "restore it from a copy, or give the `pipeline build-cache` that built the cache --repair{except}; or delete {} and run the command that built \
                 this part again ({})",
                commit.display(),
                builders(&commit)
            )
        }
        // The same settings write the same record again, and the parts still belong to it.
        None if path.file_name().is_some_and(|name| name == "teacher.json") => {
            "restore it from a copy, or delete it and run the command that built this teacher again (`pipeline build-cache`, `add-teacher` for a teacher added \
             later, `recode` for a recoded one)"
                .to_string()
        }
        None if path.parent().is_some_and(|folder| folder.ends_with("generations")) => {
            "restore it from a copy, or delete it and run the `pipeline add-images` that wrote it again, with the images as they were".to_string()
        }
        None => "restore it from a copy, or rebuild the cache".to_string(),
    }
}

#[cfg(test)]
mod tests;
