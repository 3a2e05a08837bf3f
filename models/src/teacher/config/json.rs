//! A JSON file beside the weights, read with types and with errors that name file and key.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use serde_json::Value;

use crate::error::{Error, Result};

/// Configurations are a few kilobytes; more is some other file.
const MAX_JSON_BYTES: u64 = 1 << 20;

/// A JSON file that may be absent, then `null`.
pub(super) struct Json {
    pub(super) path: PathBuf,
    pub(super) exists: bool,
    pub(super) value: Value,
}

impl Json {
    pub(super) fn read(path: PathBuf) -> Result<Json> {
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Ok(Json { path, exists: false, value: Value::Null });
            }
            Err(source) => return Err(Error::WeightsFile(hub::weights::Error::ReadWeights { path, source })),
        };
        let mut bytes = Vec::new();
        if let Err(source) = file.take(MAX_JSON_BYTES).read_to_end(&mut bytes) {
            return Err(Error::WeightsFile(hub::weights::Error::ReadWeights { path, source }));
        }
        match serde_json::from_slice::<Value>(&bytes) {
            Ok(value) if value.is_object() => Ok(Json { path, exists: true, value }),
            Ok(_) => Err(Error::TeacherConfig { path, reason: "is no JSON object".to_owned() }),
            Err(e) => Err(Error::TeacherConfig { path, reason: format!("is no JSON: {e}") }),
        }
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", Value::as_f64)
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a string", Value::as_str)
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    /// An integer, or a pair of equal ones (`[224, 224]`).
    pub(super) fn size(&self, key: &str) -> Result<Option<i64>> {
        self.typed(key, "an integer, or twice the same one", |value| match value.as_array().map(Vec::as_slice) {
            Some([a, b]) if a == b => a.as_i64(),
            _ => value.as_i64(),
        })
    }

    pub(super) fn channels(&self, key: &str) -> Result<Option<[f64; 3]>> {
        // One number, in a list or not, is for all channels: so timm and open_clip read it.
        self.typed(key, "a list of three numbers, or one number", |value| {
            if let Some(one) = value.as_f64() {
                return Some([one; 3]);
            }
            let values: Option<Vec<f64>> = value.as_array()?.iter().map(Value::as_f64).collect();
            match values?[..] {
                [one] => Some([one; 3]),
                [r, g, b] => Some([r, g, b]),
                _ => None,
            }
        })
    }

    fn typed<'a, T>(&'a self, key: &str, wanted: &str, convert: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        match self.value.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match convert(value) {
                Some(converted) => Ok(Some(converted)),
                None => Err(self.wrong(format!("{key} is {value} and must be {wanted}"))),
            },
        }
    }

    pub(super) fn wrong(&self, reason: String) -> Error {
        Error::TeacherConfig { path: self.path.clone(), reason }
    }

    pub(super) fn missing(&self, fact: &'static str, next_step: &str) -> Error {
        Error::MissingFact { path: self.path.clone(), exists: self.exists, fact, next_step: next_step.to_owned() }
    }
}
