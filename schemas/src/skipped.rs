//! `rejects/skipped.jsonl`: the pictures that a source holds and that are no samples, one JSON line each, with its own checksum.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::columns::Hash;
use crate::files::remove;
use crate::{Error, Result, atomic, json, layout};

/// Most bytes of the file that are read: 1 GiB, some ten million lines.
const MAX_BYTES: u64 = 1 << 30;

/// Pictures of a source that are not taken: in no sample, and so in no part's rejects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Skipped {
    /// XXH3-64 of the line without this field, 16 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    checksum: Option<String>,
    /// How many pictures: the rows of a column, else 1.
    pub count: u64,
    /// The source's own name of the file, member or column.
    pub key: String,
    /// Why they are not taken.
    pub reason: String,
}

impl Skipped {
    /// `count` pictures named `key`, not taken for `reason`.
    pub fn new(key: impl Into<String>, reason: impl Into<String>, count: u64) -> Self {
        Self { checksum: None, count, key: key.into(), reason: reason.into() }
    }

    /// The line, without its line break.
    fn line(&self) -> String {
        let mut line = Self::new(&self.key, &self.reason, self.count);
        let mut hash = Hash::new(b"mr-mae skipped v1");
        hash.bytes(json::canonical(&json::to_value(&line)).as_bytes());
        line.checksum = Some(format!("{:016x}", hash.finish()));
        json::canonical(&json::to_value(&line))
    }
}

/// Notes in a cache what its source holds and the cache does not, in place of what was noted before. A file that says the same is left
/// alone, and none is written for nothing.
pub fn write_skipped(dir: &Path, skipped: &[Skipped]) -> Result<()> {
    let path = layout::skipped_file(dir);
    let text: String = skipped.iter().map(|skipped| skipped.line() + "\n").collect();
    match json::read_file(&path, MAX_BYTES)? {
        Some(bytes) if bytes == text.as_bytes() => Ok(()),
        None if skipped.is_empty() => Ok(()),
        Some(_) if skipped.is_empty() => remove(&path),
        _ => atomic::write(&path, text.as_bytes()),
    }
}

/// What was noted when the cache was last built; nothing for a cache without the file.
///
/// # Errors
/// [`Error::RejectLine`] for a line that was changed, I/O errors.
pub fn read_skipped(dir: &Path) -> Result<Vec<Skipped>> {
    let path = layout::skipped_file(dir);
    let Some(bytes) = json::read_file(&path, MAX_BYTES)? else {
        return Ok(Vec::new());
    };
    let mut skipped = Vec::new();
    for (line, text) in bytes.split_inclusive(|&byte| byte == b'\n').enumerate() {
        let bad = |detail: String| Error::RejectLine { path: path.clone(), line, detail };
        let text = text.strip_suffix(b"\n").ok_or_else(|| bad("it has no line break".to_owned()))?;
        let read: Skipped = serde_json::from_slice(text).map_err(|e| bad(e.to_string()))?;
        // There is one way to write a line, so any other byte shows.
        if read.line().as_bytes() != text {
            return Err(bad("it does not match its checksum".to_owned()));
        }
        skipped.push(Skipped { checksum: None, ..read });
    }
    Ok(skipped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_read_back_and_any_changed_byte_shows() {
        let dir = tempfile::tempdir().unwrap();
        let path = layout::skipped_file(dir.path());
        assert_eq!(read_skipped(dir.path()).unwrap(), []);
        write_skipped(dir.path(), &[]).unwrap();
        assert!(!path.exists());
        let skipped = [
            Skipped::new("a/\"b\"\n.heic", "HEIC is not supported", 1),
            Skipped::new("t.parquet/mask", "another column", 7),
        ];
        write_skipped(dir.path(), &skipped).unwrap();
        assert_eq!(read_skipped(dir.path()).unwrap(), skipped);
        let bytes = std::fs::read(&path).unwrap();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            atomic::write(&path, &damaged).unwrap();
            assert!(matches!(read_skipped(dir.path()), Err(Error::RejectLine { .. })), "byte {at}");
        }
        write_skipped(dir.path(), &[]).unwrap();
        assert!(!path.exists());
    }
}
