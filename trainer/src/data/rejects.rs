//! Training images that cannot be decoded: others take their places, and they are named in the run folder.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use schemas::atomic;
use serde::{Deserialize, Serialize};
use tracing::warn;

/// The file in a run folder, with a line for each image that could not be used so far.
pub(crate) const REJECTS: &str = "rejects.jsonl";

#[derive(Debug, Serialize, Deserialize)]
struct Reject {
    key: String,
    reason: String,
}

/// Reasons by the key of the image.
#[derive(Debug, Default)]
pub(crate) struct Rejects(Mutex<BTreeMap<String, String>>);

impl Rejects {
    /// Reads the images that a run has rejected so far.
    ///
    /// # Errors
    /// If the file cannot be read. A damaged line is dropped: its image is rejected again when it is read.
    pub(crate) fn read(run: &Path) -> anyhow::Result<Rejects> {
        let path = run.join(REJECTS);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(e).with_context(|| format!("{path:?}: cannot be read")),
        };
        let lines = text.lines().filter_map(|l| serde_json::from_str(l).ok());
        let reasons = lines.map(|Reject { key, reason }| (key, reason)).collect();
        Ok(Rejects(Mutex::new(reasons)))
    }

    /// Notes an image, with a warning the first time.
    pub(crate) fn add(&self, key: &str, reason: &str) {
        let mut reasons = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if reasons.insert(key.to_owned(), reason.to_owned()).is_none() {
            warn!("{key}: {reason}; the next image that can be used takes its place");
        }
    }

    /// All rejects so far, by key.
    pub(crate) fn reasons(&self) -> BTreeMap<String, String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes what other processes have rejected, without a warning, which they have given.
    pub(crate) fn extend(&self, others: impl IntoIterator<Item = BTreeMap<String, String>>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(others.into_iter().flatten());
    }

    /// Writes all rejects into the run folder, in the order of their keys; writes no file if there are none.
    pub(crate) fn write(&self, run: &Path) -> anyhow::Result<()> {
        let reasons = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if reasons.is_empty() {
            return Ok(());
        }
        let mut text = String::new();
        for (key, reason) in reasons.iter() {
            let (key, reason) = (key.clone(), reason.clone());
            text += &serde_json::to_string(&Reject { key, reason })?;
            text.push('\n');
        }
        Ok(atomic::write(&run.join(REJECTS), text.as_bytes())?)
    }
}
