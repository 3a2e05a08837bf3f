//! Rejects files: one JSON line per image that could not be used, each with its own checksum.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::columns::Hash;
use crate::{ContentHash, Error, Reject, RejectsStamp, Result, json};

/// A line as it is written, keys in this (alphabetical) order.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    /// XXH3-64 of the line without this field, 16 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    checksum: Option<String>,
    content_hash: Option<ContentHash>,
    key: String,
    reason: String,
    sample_id: u64,
}

/// The line of a reject, without its line break.
pub(crate) fn to_line(reject: &Reject) -> String {
    let Reject { sample_id, key, reason, content_hash } = reject.clone();
    let mut line = Line { checksum: None, content_hash, key, reason, sample_id };
    let mut hash = Hash::new(b"mr-mae reject v1");
    hash.bytes(json::canonical(&json::to_value(&line)).as_bytes());
    line.checksum = Some(format!("{:016x}", hash.finish()));
    json::canonical(&json::to_value(&line))
}

/// The reject of a line.
pub(crate) fn from_line(line: &[u8]) -> std::result::Result<Reject, String> {
    let Line { content_hash, key, reason, sample_id, .. } = serde_json::from_slice(line).map_err(|e| e.to_string())?;
    let reject = Reject { sample_id, key, reason, content_hash };
    // There is one way to write a reject, so any other byte shows.
    if to_line(&reject).as_bytes() == line { Ok(reject) } else { Err("it does not match its checksum".to_string()) }
}

/// Reads a rejects file: its lines, and what is wrong with it.
///
/// # Errors
/// What prevents reading it at all: [`Error::FileMissing`], [`Error::FileSize`], I/O errors.
pub(crate) fn read(path: &Path, stamp: &RejectsStamp) -> Result<(Vec<Reject>, Vec<Error>)> {
    let mut read = read_once(path, stamp)?;
    for _ in 0..storage::COPIES {
        if read.1.is_empty() || !storage::is_url(path) {
            break;
        }
        // The network may have damaged it.
        read = read_once(path, stamp)?;
    }
    Ok(read)
}

fn read_once(path: &Path, stamp: &RejectsStamp) -> Result<(Vec<Reject>, Vec<Error>)> {
    let bytes = json::read_file(path, stamp.bytes).map_err(|e| match e {
        Error::RecordSize { path, found, .. } => Error::FileSize { path, found, expected: stamp.bytes },
        other => other,
    })?;
    let bytes = bytes.ok_or_else(|| Error::FileMissing { path: path.to_path_buf() })?;
    let found = bytes.len() as u64;
    if found != stamp.bytes {
        return Err(Error::FileSize { path: path.to_path_buf(), found, expected: stamp.bytes });
    }
    let (mut rejects, mut problems) = (Vec::<Reject>::new(), Vec::new());
    for (line, text) in bytes.split_inclusive(|&byte| byte == b'\n').enumerate() {
        let ended = text.strip_suffix(b"\n").ok_or("it has no line break".to_string());
        let read = ended.and_then(from_line).and_then(|reject| match rejects.last() {
            Some(before) if before.sample_id >= reject.sample_id => {
                Err("it does not come after the line before it".to_string())
            }
            _ => Ok(reject),
        });
        match read {
            Ok(reject) => rejects.push(reject),
            Err(detail) => problems.push(Error::RejectLine { path: path.to_path_buf(), line, detail }),
        }
    }
    if problems.is_empty() && rejects.len() as u64 != stamp.rows {
        problems.push(Error::RowCount { path: path.to_path_buf(), found: rejects.len() as u64, expected: stamp.rows });
    }
    if problems.is_empty() && json::sha256_hex(&bytes) != stamp.sha256 {
        problems.push(Error::FileHash { path: path.to_path_buf() });
    }
    Ok((rejects, problems))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_read_back_and_any_changed_byte_shows() {
        let hash = ContentHash::of(b"x");
        for content_hash in [None, Some(hash)] {
            let reject = Reject {
                sample_id: 7,
                key: "a/\"b\"\n.png".to_string(),
                reason: "truncated: é".to_string(),
                content_hash,
            };
            let line = to_line(&reject).into_bytes();
            assert_eq!(from_line(&line), Ok(reject));
            assert!(!line.contains(&b'\n'));
            for at in 0..line.len() {
                for bit in 0..8 {
                    let mut damaged = line.clone();
                    damaged[at] ^= 1 << bit;
                    assert!(from_line(&damaged).is_err(), "bit {bit} of byte {at}");
                }
            }
        }
    }
}
