//! Saves results in a run folder.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use schemas::atomic;
use serde::Serialize;
use serde_json::Value;
use tracing::info;

use super::features::{Fusion, Model};

/// The folder of results in a run.
pub(crate) const FOLDER: &str = "eval";

/// Saves a result of a run's model in the run's folder, as `eval/KIND.json`, `KIND-untrained.json` or `KIND-ema.json`, with `-unfused`
/// appended for a student of multi-layer fusion that is evaluated without it. Results of other models are not saved.
///
/// A result replaces an earlier one of the same question, in which all fields named in `question` are equal, since the run may have
/// continued. For a field written `name{}`, the keys are compared and not the values. A result of another question (other images, another
/// `k`) stays, and the new one becomes `KIND-2.json` and so on.
pub(crate) fn save(model: &Model, kind: &str, question: &[&str], result: &impl Serialize) -> anyhow::Result<()> {
    let Some(run) = model.run_folder() else {
        return Ok(());
    };
    let stem = match (model.untrained(), model.ema()) {
        (true, _) => format!("{kind}-untrained"),
        (false, true) => format!("{kind}-ema"),
        (false, false) => kind.to_owned(),
    };
    let stem = match model.fusion() {
        Some(Fusion::Unfused) => format!("{stem}-unfused"),
        Some(Fusion::Fused) | None => stem,
    };
    let result = serde_json::to_value(result)?;
    let path = place(&run.join(FOLDER), &stem, question, &result)?;
    atomic::write(&path, serde_json::to_string_pretty(&result)?.as_bytes())?;
    info!("written to {}", path.display());
    Ok(())
}

/// The first file that does not exist or answers the same question.
fn place(folder: &Path, stem: &str, question: &[&str], result: &Value) -> anyhow::Result<PathBuf> {
    for number in 1u32.. {
        let path = folder.join(match number {
            1 => format!("{stem}.json"),
            _ => format!("{stem}-{number}.json"),
        });
        if !path.try_exists().with_context(|| format!("{path:?}"))? {
            return Ok(path);
        }
        let text = fs::read(&path).with_context(|| format!("{path:?}: cannot be read"))?;
        // A damaged file matches no question, and stays.
        let before: Value = serde_json::from_slice(&text).unwrap_or_default();
        if question.iter().all(|field| same(field, &before, result)) {
            return Ok(path);
        }
    }
    unreachable!("a folder does not hold 2^32 files")
}

/// Whether two results agree in a field of the question.
fn same(field: &str, before: &Value, result: &Value) -> bool {
    match field.strip_suffix("{}") {
        None => before.get(field) == result.get(field),
        Some(field) => {
            let keys = |value: &Value| -> Option<Vec<String>> {
                Some(value.get(field)?.as_object()?.keys().cloned().collect())
            };
            keys(before) == keys(result)
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn another_question_does_not_cost_the_first_answer() {
        let folder = tempfile::tempdir().unwrap();
        let mut written = Vec::new();
        for (k, top1) in [(20, 0.5), (5, 0.4), (20, 0.6), (1, 0.3), (5, 0.45)] {
            let result = json!({"k": k, "top1": top1});
            let path = place(folder.path(), "knn", &["k"], &result).unwrap();
            atomic::write(&path, result.to_string().as_bytes()).unwrap();
            written.push(path.file_name().unwrap().to_str().unwrap().to_owned());
        }
        assert_eq!(written, ["knn.json", "knn-2.json", "knn.json", "knn-3.json", "knn-2.json"]);
        // The keys of an object belong to the question, its values to the answer.
        let place = |features: Value| {
            let result = json!({"features": features});
            let path = place(folder.path(), "linprobe", &["features{}"], &result).unwrap();
            atomic::write(&path, result.to_string().as_bytes()).unwrap();
            path.file_name().unwrap().to_str().unwrap().to_owned()
        };
        assert_eq!(place(json!({"cls": 0.5, "mean": 0.6})), "linprobe.json");
        assert_eq!(place(json!({"cls": 0.4})), "linprobe-2.json");
        assert_eq!(place(json!({"cls": 0.7, "mean": 0.8})), "linprobe.json");
        // A damaged file stays where it is.
        atomic::write(&folder.path().join("knn.json"), b"{").unwrap();
        let path = super::place(folder.path(), "knn", &["k"], &json!({"k": 20})).unwrap();
        assert!(path.ends_with("knn-4.json"), "{path:?}");
    }
}
