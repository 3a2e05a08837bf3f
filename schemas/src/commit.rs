//! Commit records: the word that a part is complete.

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{CacheIdentity, CodecError, Error, Result, TeacherId, TeacherIdentity, json, layout};

/// The most bytes of a file that a commit record may declare: 8 TiB. Programs add up these numbers over the parts of a cache, of which there
/// are at most [`Plan::MAX_PARTS`](crate::Plan::MAX_PARTS), and no sum may overflow because one record lies.
const MAX_FILE_BYTES: u64 = 1 << 43;

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
        check_size(&path, "rejects", commit.rejects.rows, commit.rejects.bytes)?;
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
        let tokens = commit.file.rows.checked_mul(teacher.n_tokens() as u64);
        if tokens != Some(commit.channels.count) {
            let (rows, count, each) = (commit.file.rows, commit.channels.count, teacher.n_tokens());
            let detail = format!("its channel sums are of {count} tokens, its {rows} rows have {each} each");
            return Err(Error::Record { path, detail });
        }
        if let Some(detail) = commit.codec_error.as_ref().and_then(|error| error.problem(width)) {
            return Err(Error::Record { path, detail });
        }
        Ok(Some(commit))
    }
}

impl FileStamp {
    fn check(&self, path: &Path) -> Result<()> {
        if self.footer_bytes > self.bytes {
            let detail = "its footer_bytes are more than its bytes".to_string();
            return Err(Error::Record { path: path.to_path_buf(), detail });
        }
        check_size(path, "file", self.rows, self.bytes)
    }
}

/// Refuses numbers of rows and bytes that no file has: every row, and every line, takes at least a byte.
fn check_size(path: &Path, of: &str, rows: u64, bytes: u64) -> Result<()> {
    if bytes > MAX_FILE_BYTES || rows > bytes {
        let detail = format!("its {of} of {rows} rows in {bytes} bytes cannot exist");
        return Err(Error::Record { path: path.to_path_buf(), detail });
    }
    Ok(())
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
        // Of records that are checked, only those of absurd caches reach the end of the numbers.
        self.count = self.count.saturating_add(other.count);
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
    use crate::testing::Tiny;
    use crate::{Cache, verify};

    /// A record may hold any number. Readers add them up, so those that no file can have stop at the record.
    #[test]
    fn numbers_that_no_file_has_are_refused() {
        let (dir, tiny) = (tempfile::tempdir().unwrap(), Tiny::usual());
        tiny.build(dir.path());
        let id = &tiny.teachers[0].id;
        let (samples, features) = (layout::samples_commit(dir.path(), 1), layout::teacher_commit(dir.path(), id, 1));
        for (path, field, number, expected) in [
            (&samples, "/file/bytes", u64::MAX, "cannot exist"),
            (&samples, "/file/rows", 1 << 40, "cannot exist"),
            (&samples, "/rejects/bytes", u64::MAX, "cannot exist"),
            (&samples, "/rejects/rows", u64::MAX, "cannot exist"),
            (&features, "/file/bytes", MAX_FILE_BYTES + 1, "cannot exist"),
            (&features, "/file/rows", 5, "5 rows have 9 each"),
            (&features, "/channels/count", u64::MAX, "sums are of 18446744073709551615 tokens"),
        ] {
            let sound = std::fs::read(path).unwrap();
            let mut record: serde_json::Value = serde_json::from_slice(&sound).unwrap();
            record.as_object_mut().unwrap().remove("digest");
            *record.pointer_mut(field).unwrap() = number.into();
            json::write(path, &record).unwrap();
            let problems = verify(dir.path(), &mut |_| {}).unwrap().problems;
            let state = Cache::open(dir.path()).unwrap().part_state(1);
            assert_eq!((problems.len(), state.is_err()), (1, true), "{field}");
            for error in problems.into_iter().chain(state.err()) {
                assert!(
                    matches!(&error, Error::Record { path: found, detail } if found == path && detail.contains(expected)),
                    "{field}: {error}"
                );
            }
            crate::atomic::write(path, &sound).unwrap();
        }
        assert!(verify(dir.path(), &mut |_| {}).unwrap().problems.is_empty());
    }

    #[test]
    fn sums_of_absurd_counts_do_not_overflow() {
        let mut all = ChannelSums { count: u64::MAX, sum: vec![1.0], sum_sq: vec![1.0] };
        all.add(&all.clone());
        assert_eq!(all.count, u64::MAX);
        let mut lost = CodecError { tokens: u64::MAX, ..CodecError::default() };
        lost.add(&lost.clone());
        assert_eq!(lost.tokens, u64::MAX);
    }

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
