//! Commit records: the word that a part is complete.

use serde::{Deserialize, Serialize};

use crate::TeacherId;

/// What a commit record says about a Parquet file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStamp {
    /// Rows.
    pub rows: u64,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 of the file, lower-case hexadecimal.
    pub sha256: String,
    /// Bytes after the last row group: page index and footer.
    pub footer_bytes: u64,
    /// SHA-256 of those.
    pub footer_sha256: String,
}

/// What a commit record says about a rejects file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectsStamp {
    /// Lines.
    pub rows: u64,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 of the file, lower-case hexadecimal.
    pub sha256: String,
}

/// Sums over every token of a part, per channel, of the values as stored. Added over parts they give the channel statistics
/// of the whole cache: mean = sum / count, variance = sum_sq / count - mean².
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ChannelSums {
    /// Values added per channel: rows times tokens.
    pub count: u64,
    /// Sum per channel, added in row order, then token order.
    pub sum: Vec<f64>,
    /// Sum of squares per channel, in the same order.
    pub sum_sq: Vec<f64>,
}

/// The contents of `samples/part-00000.commit.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SamplesCommit {
    /// [`FORMAT_VERSION`](crate::FORMAT_VERSION).
    pub format_version: u32,
    /// The part.
    pub part: u32,
    /// [`CacheIdentity::fingerprint`](crate::CacheIdentity::fingerprint).
    pub cache: String,
    /// The samples file.
    pub file: FileStamp,
    /// The rejects file.
    pub rejects: RejectsStamp,
}

/// The contents of `teachers/<id>/part-00000.commit.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TeacherCommit {
    /// [`FORMAT_VERSION`](crate::FORMAT_VERSION).
    pub format_version: u32,
    /// The teacher.
    pub id: TeacherId,
    /// The part.
    pub part: u32,
    /// [`CacheIdentity::fingerprint`](crate::CacheIdentity::fingerprint).
    pub cache: String,
    /// [`TeacherIdentity::fingerprint`](crate::TeacherIdentity::fingerprint).
    pub teacher: String,
    /// The features file.
    pub file: FileStamp,
    /// Statistics of its tokens.
    pub channels: ChannelSums,
}
