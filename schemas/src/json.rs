//! JSON records that carry their own digest.
//!
//! A record is one JSON object in a canonical form: keys sorted, no spaces inside values, one top-level field per line. Its last
//! line is `"digest"`, the SHA-256 of every byte before that line, so that any changed byte is found without knowing the
//! fields. The same canonical form, without the lines, is what fingerprints are taken of.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{Error, FORMAT_VERSION, Result, atomic};

/// The largest record that is read. ImageNet-21k's class names take 0.6 MB, the channel sums of the widest towers 0.2 MB.
const MAX_BYTES: u64 = 64 << 20;

/// What the digest line starts with; 64 hexadecimal digits and [`DIGEST_END`] follow.
const DIGEST_START: &str = "  \"digest\": \"";
const DIGEST_END: &str = "\"\n}\n";

/// Replaces the record at `path`.
pub(crate) fn write<T: Serialize>(path: &Path, record: &T) -> Result<()> {
    atomic::write(path, seal(record).as_bytes())
}

/// Publishes the record unless one is there already; false if so.
pub(crate) fn write_new<T: Serialize>(path: &Path, record: &T) -> Result<bool> {
    let mut file = atomic::AtomicFile::create(path)?;
    std::io::Write::write_all(&mut file, seal(record).as_bytes()).map_err(|e| Error::io("write", path, e))?;
    file.publish_new()
}

/// Reads a record; `None` if there is none.
///
/// # Errors
/// In this order: [`Error::RecordSize`], [`Error::RecordDigest`], [`Error::Version`], [`Error::Record`].
pub(crate) fn read<T: Serialize + DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let Some(mut bytes) = read_file(path, MAX_BYTES)? else {
        return Ok(None);
    };
    let fail = |detail: String| Error::Record { path: path.to_path_buf(), detail };
    for _ in 0..storage::COPIES {
        if digest_holds(&bytes) || !storage::is_url(path) {
            break;
        }
        // The network may have damaged it.
        bytes = read_file(path, MAX_BYTES)?.unwrap_or_default();
    }
    if !digest_holds(&bytes) {
        return Err(Error::RecordDigest { path: path.to_path_buf() });
    }
    let mut value: Value = serde_json::from_slice(&bytes).map_err(|e| fail(e.to_string()))?;
    let fields = value.as_object_mut().ok_or_else(|| fail("it is not a JSON object".to_string()))?;
    fields.remove("digest");
    match fields.get("format_version").and_then(Value::as_u64) {
        Some(version) if version == u64::from(FORMAT_VERSION) => {}
        Some(found) => {
            return Err(Error::Version { path: path.to_path_buf(), found, supported: FORMAT_VERSION });
        }
        None => {
            return Err(fail("the field format_version is missing or not a number".to_string()));
        }
    }
    let record = T::deserialize(&value).map_err(|e| fail(e.to_string()))?;
    // Fields that this version does not know might change the meaning of those it does.
    match differences(&value, &to_value(&record)).into_iter().next() {
        Some(Difference { field, .. }) => {
            Err(fail(format!("the field {field} is unknown to this version of the format, or not in its form")))
        }
        None => Ok(Some(record)),
    }
}

/// The whole file, unless it is larger than `limit`; `None` if there is none.
pub(crate) fn read_file(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    let io = |e| Error::io("read", path, e);
    let too_large = |found| Error::RecordSize { path: path.to_path_buf(), found, limit };
    if storage::is_url(path) {
        // One request instead of two: what is asked for is nearly always there and small.
        return match storage::read(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            read => match read.map_err(io)? {
                bytes if bytes.len() as u64 > limit => Err(too_large(bytes.len() as u64)),
                bytes => Ok(Some(bytes)),
            },
        };
    }
    let file = match File::open(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        file => file.map_err(io)?,
    };
    let found = file.metadata().map_err(io)?.len();
    if found > limit {
        return Err(too_large(found));
    }
    let mut bytes = Vec::with_capacity(found as usize);
    file.take(limit).read_to_end(&mut bytes).map_err(io)?;
    Ok(Some(bytes))
}

/// The record's text with its digest line.
pub(crate) fn seal<T: Serialize>(record: &T) -> String {
    let value = to_value(record);
    let mut text = String::from("{\n");
    for (key, value) in sorted(value.as_object().expect("records are structs")) {
        text.push_str(&format!("  {}: ", Value::from(key.as_str())));
        push_canonical(value, &mut text);
        text.push_str(",\n");
    }
    let digest = sha256_hex(text.as_bytes());
    text + DIGEST_START + &digest + DIGEST_END
}

fn digest_holds(bytes: &[u8]) -> bool {
    let tail_len = DIGEST_START.len() + 64 + DIGEST_END.len();
    let Some((body, tail)) = bytes.split_at_checked(bytes.len().saturating_sub(tail_len)) else {
        return false;
    };
    let expected = DIGEST_START.to_string() + &sha256_hex(body) + DIGEST_END;
    tail == expected.as_bytes()
}

/// The canonical form in one line: keys sorted, no spaces.
pub(crate) fn canonical(value: &Value) -> String {
    let mut text = String::new();
    push_canonical(value, &mut text);
    text
}

/// Keys are sorted here and not by serde_json, whose order depends on a feature that any crate of a build can switch on.
fn push_canonical(value: &Value, text: &mut String) {
    match value {
        Value::Object(fields) => {
            text.push('{');
            for (i, (key, value)) in sorted(fields).into_iter().enumerate() {
                if i > 0 {
                    text.push(',');
                }
                text.push_str(&Value::from(key.as_str()).to_string());
                text.push(':');
                push_canonical(value, text);
            }
            text.push('}');
        }
        Value::Array(values) => {
            text.push('[');
            for (i, value) in values.iter().enumerate() {
                if i > 0 {
                    text.push(',');
                }
                push_canonical(value, text);
            }
            text.push(']');
        }
        scalar => text.push_str(&scalar.to_string()),
    }
}

fn sorted(fields: &serde_json::Map<String, Value>) -> Vec<(&String, &Value)> {
    let mut fields: Vec<_> = fields.iter().collect();
    fields.sort_by_key(|(key, _)| *key);
    fields
}

/// A record as a JSON value.
pub(crate) fn to_value<T: Serialize>(record: &T) -> Value {
    serde_json::to_value(record).expect("records hold only strings, numbers, lists and structs")
}

/// A leaf in which two values differ; `None` where one of them has nothing there.
#[derive(Debug, PartialEq)]
pub(crate) struct Difference {
    /// Dotted name, list positions in brackets: `views.scale[0]`.
    pub(crate) field: String,
    pub(crate) left: Option<Value>,
    pub(crate) right: Option<Value>,
}

/// All leaves in which two values differ. Those that both have come first: a changed `views.policy` explains that
/// `views.scale` is gone, not the other way round.
pub(crate) fn differences(left: &Value, right: &Value) -> Vec<Difference> {
    let mut found = Vec::new();
    compare("", Some(left), Some(right), &mut found);
    found.sort_by_key(|difference| difference.left.is_none() || difference.right.is_none());
    found
}

fn compare(field: &str, left: Option<&Value>, right: Option<&Value>, found: &mut Vec<Difference>) {
    match (left, right) {
        (Some(Value::Object(left)), Some(Value::Object(right))) => {
            let keys: std::collections::BTreeSet<_> = left.keys().chain(right.keys()).collect();
            for key in keys {
                let field = if field.is_empty() { key.clone() } else { format!("{field}.{key}") };
                compare(&field, left.get(key), right.get(key), found);
            }
        }
        (Some(Value::Array(left)), Some(Value::Array(right))) => {
            for i in 0..left.len().max(right.len()) {
                compare(&format!("{field}[{i}]"), left.get(i), right.get(i), found);
            }
        }
        (left, right) if left == right => {}
        (left, right) => {
            found.push(Difference { field: field.to_string(), left: left.cloned(), right: right.cloned() });
        }
    }
}

/// SHA-256 as 64 lower-case hexadecimal digits.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Fills `out` from exactly twice as many lower-case hexadecimal digits.
pub(crate) fn parse_hex(hex: &str, out: &mut [u8]) -> Option<()> {
    let digit = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        _ => None,
    };
    if hex.len() != 2 * out.len() {
        return None;
    }
    for (byte, pair) in out.iter_mut().zip(hex.as_bytes().as_chunks::<2>().0) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(())
}

#[cfg(test)]
mod tests;
