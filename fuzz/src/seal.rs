//! Checksums of the cache format, computed from its text (`schemas/cache-v1.md`) and not by the code under test.

use schemas::{RowKey, SampleRow, hex};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use xxhash_rust::xxh3::Xxh3;

pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

const DIGEST: &[u8] = b"  \"digest\":";

/// A record whose digest holds for whatever comes before it; an old digest line is replaced.
pub fn record(body: &[u8]) -> Vec<u8> {
    let end = body.windows(DIGEST.len()).rposition(|found| found == DIGEST).unwrap_or(body.len());
    let body = &body[..end];
    let mut sealed = body.to_vec();
    sealed.extend(format!("  \"digest\": \"{}\"\n}}\n", sha256(body)).into_bytes());
    sealed
}

/// A record of these fields.
pub fn record_of(fields: &Map<String, Value>) -> Vec<u8> {
    let mut text = "{\n".to_owned();
    for (key, value) in fields {
        if key != "digest" {
            text += &format!("  {}: {value},\n", Value::from(key.as_str()));
        }
    }
    record(text.as_bytes())
}

/// Changes fields of a record and seals it again; one that is not a JSON object stays as it is.
pub fn with_fields(bytes: &[u8], change: impl FnOnce(&mut Map<String, Value>)) -> Vec<u8> {
    match serde_json::from_slice::<Value>(bytes) {
        Ok(Value::Object(mut fields)) => {
            change(&mut fields);
            record_of(&fields)
        }
        _ => bytes.to_vec(),
    }
}

/// Lines of JSON objects, each with the checksum that its other fields call for. Other lines stay.
pub fn lines(text: &[u8], domain: &str) -> Vec<u8> {
    let mut sealed = Vec::new();
    for line in text.split_inclusive(|&byte| byte == b'\n') {
        let (body, end) = line.strip_suffix(b"\n").map_or((line, &b""[..]), |body| (body, b"\n"));
        match serde_json::from_slice::<Value>(body) {
            Ok(Value::Object(mut fields)) => {
                fields.remove("checksum");
                let bare = Value::Object(fields.clone()).to_string();
                let mut hash = Hash::new(domain);
                hash.bytes(bare.as_bytes());
                fields.insert("checksum".to_owned(), format!("{:016x}", hash.0.digest()).into());
                sealed.extend(Value::Object(fields).to_string().into_bytes());
            }
            _ => sealed.extend(body),
        }
        sealed.extend(end);
    }
    sealed
}

/// XXH3-64 of numbers (8 bytes) and bytes (their length as a number, then themselves).
struct Hash(Xxh3);

impl Hash {
    fn new(domain: &str) -> Hash {
        let mut hash = Hash(Xxh3::new());
        hash.bytes(domain.as_bytes());
        hash
    }

    fn number(&mut self, value: u64) {
        self.0.update(&value.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.update(bytes);
    }

    fn optional(&mut self, bytes: Option<&[u8]>) {
        match bytes {
            Some(bytes) => self.bytes(bytes),
            None => self.number(u64::MAX),
        }
    }
}

/// Checksum of a samples row.
pub fn sample(row: &SampleRow) -> u64 {
    let mut hash = Hash::new("mr-mae samples row v1");
    hash.number(row.sample_id);
    hash.number(row.view.index.into());
    hash.bytes(row.key.as_bytes());
    hash.bytes(&row.content_hash.0);
    hash.optional(row.label.map(i32::to_le_bytes).as_ref().map(|label| &label[..]));
    let crop = row.view.crop;
    for value in [row.width, row.height, crop.x, crop.y, crop.w, crop.h] {
        hash.number(value.into());
    }
    hash.number(row.view.flip.into());
    hash.optional(row.image_hash.as_ref().map(|hash| &hash.0[..]));
    hash.0.digest()
}

/// Checksum of a teacher's row.
pub fn features(key: &RowKey, features: [&[u8]; 3]) -> u64 {
    let mut hash = Hash::new("mr-mae teacher row v1");
    hash.number(key.sample_id);
    hash.number(key.view.into());
    hash.bytes(&key.content_hash.0);
    features.into_iter().for_each(|bytes| hash.bytes(bytes));
    hash.0.digest()
}
