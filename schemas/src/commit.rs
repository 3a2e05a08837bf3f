//! Commit records: the word that a part is complete.

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{CacheIdentity, CodecError, Error, Result, TeacherId, TeacherIdentity, json, layout};

/// What a commit record says about a Parquet file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ChannelSums {
    /// Values added per channel: rows times tokens.
    pub count: u64,
    /// Sum per channel: of each row in token order, then of the rows in their order.
    pub sum: Vec<f64>,
    /// Sum of squares per channel, in the same order.
    pub sum_sq: Vec<f64>,
}

/// The contents of `samples/part-00000.commit.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
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
    /// What a lossy codec lost, if the builder measured it.
    pub codec_error: Option<CodecError>,
}

impl SamplesCommit {
    /// Reads the samples' commit record of a part and checks that it belongs there; `None` if there is none.
    pub(crate) fn read(cache: &Path, part: u32, identity: &CacheIdentity) -> Result<Option<SamplesCommit>> {
        let path = layout::samples_commit(cache, part);
        let Some(commit) = json::read::<SamplesCommit>(&path)? else {
            return Ok(None);
        };
        check_place(&path, "part", &commit.part, &part)?;
        check_place(&path, "cache fingerprint", &commit.cache, &identity.part_fingerprint(part))?;
        commit.file.check(&path)?;
        Ok(Some(commit))
    }
}

impl TeacherCommit {
    /// Reads a teacher's commit record of a part and checks that it belongs there; `None` if there is none.
    pub(crate) fn read(
        cache: &Path,
        part: u32,
        identity: &CacheIdentity,
        teacher: &TeacherIdentity,
    ) -> Result<Option<TeacherCommit>> {
        let path = layout::teacher_commit(cache, &teacher.id, part);
        let Some(commit) = json::read::<TeacherCommit>(&path)? else {
            return Ok(None);
        };
        check_place(&path, "part", &commit.part, &part)?;
        check_place(&path, "teacher", &commit.id, &teacher.id)?;
        check_place(&path, "cache fingerprint", &commit.cache, &identity.part_fingerprint(part))?;
        check_place(&path, "teacher fingerprint", &commit.teacher, &teacher.fingerprint())?;
        commit.file.check(&path)?;
        let width = teacher.width as usize;
        if commit.channels.sum.len() != width || commit.channels.sum_sq.len() != width {
            return Err(Error::Record { path, detail: format!("its channel sums are not of {width} channels") });
        }
        if let Some(detail) = commit.codec_error.as_ref().and_then(|error| error.problem(width)) {
            return Err(Error::Record { path, detail });
        }
        Ok(Some(commit))
    }
}

impl FileStamp {
    fn check(&self, path: &Path) -> Result<()> {
        if self.footer_bytes <= self.bytes {
            return Ok(());
        }
        Err(Error::Record { path: path.to_path_buf(), detail: "its footer_bytes are more than its bytes".to_string() })
    }
}

/// Refuses a file that was made for another place.
pub(crate) fn check_place<T: PartialEq + ToString>(path: &Path, field: &str, found: &T, expected: &T) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::Misplaced {
        path: path.to_path_buf(),
        field: field.to_string(),
        found: found.to_string(),
        expected: expected.to_string(),
    })
}

impl ChannelSums {
    /// Sums of nothing.
    pub(crate) fn new(width: usize) -> ChannelSums {
        ChannelSums { count: 0, sum: vec![0.0; width], sum_sq: vec![0.0; width] }
    }

    /// Adds the tokens `[L, D]` of one row.
    pub(crate) fn add_row(&mut self, tokens: &[f32]) {
        for token in tokens.chunks_exact(self.sum.len()) {
            self.count += 1;
            for ((sum, sum_sq), &value) in self.sum.iter_mut().zip(&mut self.sum_sq).zip(token) {
                let value = f64::from(value);
                *sum += value;
                *sum_sq += value * value;
            }
        }
    }

    /// Adds another part's sums of the same teacher.
    pub fn add(&mut self, other: &ChannelSums) {
        self.count += other.count;
        for (mine, others) in [(&mut self.sum, &other.sum), (&mut self.sum_sq, &other.sum_sq)] {
            if mine.is_empty() {
                mine.clone_from(others);
            } else {
                mine.iter_mut().zip(others).for_each(|(mine, other)| *mine += other);
            }
        }
    }

    /// Mean per channel.
    pub fn mean(&self) -> Vec<f64> {
        self.sum.iter().map(|sum| sum / self.count as f64).collect()
    }

    /// Variance per channel, over all tokens (not the unbiased one).
    pub fn variance(&self) -> Vec<f64> {
        let n = self.count as f64;
        self.sum.iter().zip(&self.sum_sq).map(|(sum, sum_sq)| (sum_sq / n - (sum / n).powi(2)).max(0.0)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_add_up_to_mean_and_variance() {
        let mut first = ChannelSums::new(2);
        first.add_row(&[1.0, -4.0, 3.0, 4.0]);
        let mut second = ChannelSums::new(2);
        second.add_row(&[8.0, 0.0]);
        let mut all = ChannelSums::default();
        all.add(&first);
        all.add(&second);
        assert_eq!(all, ChannelSums { count: 3, sum: vec![12.0, 0.0], sum_sq: vec![74.0, 32.0] });
        assert_eq!(all.mean(), [4.0, 0.0]);
        assert!((all.variance()[0] - 26.0 / 3.0).abs() < 1e-12 && (all.variance()[1] - 32.0 / 3.0).abs() < 1e-12);
    }
}
