//! What a run folder holds, as far as it can be read.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::metrics::{METRICS, NONFINITE};
use crate::{reconstruct, run_folder};

/// More of a file than this is not a run's.
const MOST_BYTES: u64 = 1 << 30;

/// One run.
#[derive(Debug, Default)]
pub(super) struct RunData {
    /// The folder's name, or its path where that says nothing.
    pub(super) name: String,
    /// The recipe's text.
    pub(super) recipe: Option<String>,
    /// The recipe as dotted names and values.
    pub(super) settings: BTreeMap<String, String>,
    /// By quantity, (step, value) in order.
    pub(super) series: BTreeMap<String, Vec<(f64, f64)>>,
    /// Steps that were skipped because something was not finite.
    pub(super) skipped: usize,
    /// `eval/*.json` by file name.
    pub(super) evaluations: BTreeMap<String, Value>,
    /// The newest sheet of pictures: its name and bytes.
    pub(super) picture: Option<(String, Vec<u8>)>,
    /// What could not be read.
    pub(super) problems: Vec<String>,
}

impl RunData {
    /// Reads what is there.
    pub(super) fn read(path: &Path) -> RunData {
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned());
        let mut run = RunData {
            name: name.unwrap_or_else(|| path.display().to_string()),
            ..RunData::default()
        };
        if !path.is_dir() {
            run.problems
                .push(format!("{} is no folder", path.display()));
            return run;
        }
        if let Some(text) = run.text(&path.join(run_folder::RECIPE), true) {
            match toml::from_str::<toml::Value>(&text) {
                Ok(value) => flatten("", &value, &mut run.settings),
                Err(e) => run
                    .problems
                    .push(format!("{}: {}", run_folder::RECIPE, e.message())),
            }
            run.recipe = Some(text);
        }
        if let Some(text) = run.text(&path.join(METRICS), true) {
            run.read_metrics(&text);
        }
        if let Some(text) = run.text(&path.join(NONFINITE), false) {
            run.skipped = text.lines().count();
        }
        run.read_evaluations(&path.join("eval"));
        match reconstruct::sheets(path) {
            Ok(sheets) => {
                if let Some(newest) = sheets.last() {
                    let name = newest.file_stem().unwrap_or_default().to_string_lossy();
                    match fs::read(newest) {
                        Ok(png) => run.picture = Some((name.into_owned(), png)),
                        Err(e) => run.problems.push(format!("{}: {e}", newest.display())),
                    }
                }
            }
            Err(e) => run.problems.push(format!("{e:#}")),
        }
        run
    }

    /// Whether nothing of a run was found.
    pub(super) fn is_empty(&self) -> bool {
        self.recipe.is_none() && self.series.is_empty() && self.evaluations.is_empty()
    }

    /// The last value of a quantity.
    pub(super) fn last(&self, name: &str) -> Option<f64> {
        self.series.get(name)?.last().map(|&(_, value)| value)
    }

    /// A file's text; a problem where it is unreadable, or not there and `wanted`.
    fn text(&mut self, path: &Path, wanted: bool) -> Option<String> {
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let size = fs::metadata(path).map(|metadata| metadata.len());
        let text = match size {
            Ok(size) if size > MOST_BYTES => {
                self.problems
                    .push(format!("{name}: has {size} bytes, more than a run writes"));
                return None;
            }
            Ok(_) => fs::read_to_string(path),
            Err(e) => Err(e),
        };
        match text {
            Ok(text) => Some(text),
            Err(e) => {
                if wanted || e.kind() != std::io::ErrorKind::NotFound {
                    self.problems.push(format!("{name}: {e}"));
                }
                None
            }
        }
    }

    fn read_metrics(&mut self, text: &str) {
        let mut bad = 0;
        for line in text.lines() {
            let Ok(Value::Object(fields)) = serde_json::from_str::<Value>(line) else {
                bad += 1;
                continue;
            };
            let Some(step) = fields.get("step").and_then(Value::as_f64) else {
                bad += 1;
                continue;
            };
            for (name, value) in fields.iter().filter(|(name, _)| *name != "step") {
                if let Some(value) = value.as_f64() {
                    let series = self.series.entry(name.clone()).or_default();
                    series.push((step, value));
                }
            }
        }
        if bad > 0 {
            let lines = if bad == 1 { "line is" } else { "lines are" };
            self.problems
                .push(format!("{METRICS}: {bad} {lines} damaged and left out"));
        }
    }

    fn read_evaluations(&mut self, folder: &Path) {
        let Ok(entries) = fs::read_dir(folder) else {
            return;
        };
        let mut paths: Vec<_> = entries.filter_map(Result::ok).map(|e| e.path()).collect();
        paths.retain(|path| {
            path.extension()
                .is_some_and(|extension| extension == "json")
        });
        paths.sort();
        for path in paths {
            let Some(text) = self.text(&path, true) else {
                continue;
            };
            let name = path
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            match serde_json::from_str(&text) {
                Ok(value) => {
                    self.evaluations.insert(name, value);
                }
                Err(e) => self.problems.push(format!("eval/{name}.json: {e}")),
            }
        }
    }
}

/// The leaves of a TOML value by dotted name.
fn flatten(prefix: &str, value: &toml::Value, out: &mut BTreeMap<String, String>) {
    match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                let name = match prefix.is_empty() {
                    true => key.clone(),
                    false => format!("{prefix}.{key}"),
                };
                flatten(&name, value, out);
            }
        }
        leaf => {
            out.insert(prefix.to_owned(), leaf.to_string());
        }
    }
}
