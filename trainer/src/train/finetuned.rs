//! The names of the classes that a fine-tuned network tells apart, in its run folder.

use std::path::Path;

use anyhow::{Context, ensure};
use sha2::{Digest, Sha256};

/// The names of the classes in a run folder, in the order of the classifier's scores.
pub(crate) const CLASSES: &str = "classes.json";

/// The names of the classes of a run, in the order of its classifier's outputs; `None` if the folder has no such file.
pub(crate) fn classes(run: &Path) -> anyhow::Result<Option<Vec<String>>> {
    /// A larger file cannot be a list of class names.
    const MAX_BYTES: u64 = 1 << 28;
    let file = run.join(CLASSES);
    if !file.is_file() {
        return Ok(None);
    }
    let cannot = || format!("{file:?}: cannot be read");
    let size = std::fs::metadata(&file).with_context(cannot)?.len();
    ensure!(size <= MAX_BYTES, "{file:?}: has {size} bytes, too many for a list of class names");
    let text = std::fs::read(&file).with_context(cannot)?;
    let names = serde_json::from_slice(&text);
    Ok(Some(names.with_context(|| format!("{file:?}: is not a list of names"))?))
}

/// The names of the classes of a run folder, or of the run folder that a file lies in (`best/`, `checkpoints/step-.../`).
pub(crate) fn classes_near(path: &Path) -> anyhow::Result<Option<Vec<String>>> {
    let depth = if path.is_dir() { 1 } else { 4 };
    for folder in path.ancestors().take(depth) {
        if let Some(names) = classes(folder)? {
            return Ok(Some(names));
        }
    }
    Ok(None)
}

/// SHA-256 of the names, each followed by a line feed.
pub(crate) fn digest(names: &[String]) -> String {
    let mut digest = Sha256::new();
    for name in names {
        digest.update(name);
        digest.update("\n");
    }
    let hex: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("SHA-256 {hex}")
}
