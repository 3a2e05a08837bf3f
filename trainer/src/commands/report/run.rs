//! Reads the content of a run folder as far as possible.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::eval::record;
use crate::eval::test_set::EVALUATIONS;
use crate::train::metrics::{METRICS, NONFINITE};
use crate::train::{checkpoint, image_grid, run_folder};

/// Largest file that is read; a run writes none as large.
const MAX_BYTES: u64 = 1 << 30;
/// Largest sheet of pictures; those of a run have a few MB.
const MAX_PICTURE_BYTES: u64 = 64 << 20;

#[derive(Debug, Default)]
pub(super) struct RunData {
    /// The path as given.
    pub(super) path: PathBuf,
    /// A name that differs from the other runs', see [`name_apart`](super::names::name_apart).
    pub(super) name: String,
    /// Step of the newest whole checkpoint; of the newest one while the run goes on.
    pub(super) saved: Option<u64>,
    /// Whether a process is training in it.
    pub(super) running: bool,
    /// What it trains on, by fact, as recorded in that checkpoint.
    pub(super) data: BTreeMap<String, String>,
    pub(super) recipe: Option<String>,
    /// The recipe's settings by dotted name.
    pub(super) settings: BTreeMap<String, String>,
    /// (step, value) in order, by quantity.
    pub(super) series: BTreeMap<String, Vec<(f64, f64)>>,
    /// Number of steps that were skipped because of a non-finite value.
    pub(super) skipped: usize,
    /// `eval/*.json` by file name.
    pub(super) evaluations: BTreeMap<String, Value>,
    /// The newest sheet of pictures.
    pub(super) picture: Option<Picture>,
    /// Messages about missing and damaged files.
    pub(super) problems: Vec<String>,
}

#[derive(Debug)]
pub(super) struct Picture {
    /// The file's name without its extension.
    pub(super) name: String,
    png: Vec<u8>,
}

impl Picture {
    pub(super) fn base64(&self) -> String {
        STANDARD.encode(&self.png)
    }
}

impl RunData {
    /// Reads the files that exist; the others become problems.
    pub(super) fn read(path: &Path) -> RunData {
        let mut run = RunData { path: path.into(), ..RunData::default() };
        if !path.is_dir() {
            run.problems.push(format!("{} is not a folder", path.display()));
            return run;
        }
        if let Some(text) = run.text(&path.join(run_folder::RECIPE), true) {
            match toml::from_str::<toml::Value>(&text) {
                Ok(value) => flatten("", &value, &mut run.settings),
                Err(e) => run.problems.push(format!("{}: {}", run_folder::RECIPE, e.message())),
            }
            run.recipe = Some(text);
        }
        if let Some(text) = run.text(&path.join(METRICS), true) {
            run.read_log(METRICS, &text, |name| Some(name.to_owned()));
        }
        if let Some(text) = run.text(&path.join(EVALUATIONS), false) {
            let counts = ["epoch", "train_images", "test_images", "images", "skipped"];
            run.read_log(EVALUATIONS, &text, |name| (!counts.contains(&name)).then(|| format!("eval/{name}")));
        }
        if let Some(text) = run.text(&path.join(NONFINITE), false) {
            run.skipped = text.lines().count();
        }
        run.running = run_folder::in_use(path);
        let state = match run.running {
            // Not hashed: training may replace it meanwhile.
            true => checkpoint::newest(path)
                .and_then(|newest| newest.map(|folder| checkpoint::read_state(&folder)).transpose()),
            false => checkpoint::check_last(path, &mut |damage| run.problems.push(damage)),
        };
        match state {
            Ok(Some(state)) => {
                run.saved = Some(state.step);
                run.data = state.data;
            }
            Ok(None) => {}
            Err(e) => run.problems.push(format!("{e:#}")),
        }
        run.read_evaluations(&path.join(record::FOLDER));
        match image_grid::pictures(path) {
            Ok(sheets) => {
                if let Some(newest) = sheets.last() {
                    let name = newest.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                    match picture(newest) {
                        Ok(png) => run.picture = Some(Picture { name, png }),
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

    pub(super) fn has_problems(&self) -> bool {
        !self.problems.is_empty()
    }

    pub(super) fn has_picture(&self) -> bool {
        self.picture.is_some()
    }

    pub(super) fn has_recipe(&self) -> bool {
        self.recipe.is_some()
    }

    /// The last value of a quantity.
    pub(super) fn last(&self, name: &str) -> Option<f64> {
        self.series.get(name)?.last().map(|&(_, value)| value)
    }

    /// The run's state in words, with the step it has reached.
    pub(super) fn state(&self) -> String {
        let epochs = self.settings.get("schedule.epochs");
        let all = epochs.and_then(|epochs| epochs.parse::<f64>().ok());
        // The folder does not say how many steps an epoch has, but every line of the metrics has a step and an epoch.
        let per_epoch = self
            .series
            .get("epoch")
            .and_then(|points| points.last())
            .filter(|(_, epoch)| *epoch > 0.0)
            .map(|(step, epoch)| step / epoch);
        let total = all.zip(per_epoch).map(|(all, per)| (all * per).round());
        match (self.running, self.saved, total) {
            (true, ..) => "running".to_owned(),
            (false, Some(saved), Some(total)) if saved as f64 >= total => "finished".to_owned(),
            (false, Some(saved), Some(total)) => format!("stopped at {saved} of {total}"),
            (false, Some(saved), None) => format!("stopped at {saved}"),
            (false, None, _) => "no checkpoint".to_owned(),
        }
    }

    /// A file's text. Adds a problem if it is unreadable, or if it is `wanted` and missing.
    fn text(&mut self, path: &Path, wanted: bool) -> Option<String> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let size = fs::metadata(path).map(|metadata| metadata.len());
        let text = match size {
            Ok(size) if size > MAX_BYTES => {
                self.problems.push(format!("{name}: has {size} bytes, more than a run writes"));
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

    /// Reads the lines `text` of a log of steps. `series` names the quantity that a field belongs to.
    fn read_log(&mut self, file: &str, text: &str, series: impl Fn(&str) -> Option<String>) {
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
                if let Some((value, name)) = value.as_f64().zip(series(name)) {
                    self.series.entry(name).or_default().push((step, value));
                }
            }
        }
        if bad > 0 {
            let lines = if bad == 1 { "line is" } else { "lines are" };
            self.problems.push(format!("{file}: {bad} {lines} damaged and left out"));
        }
    }

    fn read_evaluations(&mut self, folder: &Path) {
        let Ok(entries) = fs::read_dir(folder) else {
            return;
        };
        let mut paths: Vec<_> = entries.filter_map(Result::ok).map(|e| e.path()).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
        paths.sort();
        for path in paths {
            let Some(text) = self.text(&path, true) else {
                continue;
            };
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            match serde_json::from_str(&text) {
                Ok(value) => {
                    self.evaluations.insert(name, value);
                }
                Err(e) => self.problems.push(format!("eval/{name}.json: {e}")),
            }
        }
    }
}

/// The bytes of a PNG that a browser can show.
fn picture(path: &Path) -> Result<Vec<u8>, String> {
    let size = fs::metadata(path).map_err(|e| e.to_string())?.len();
    if size > MAX_PICTURE_BYTES {
        return Err(format!("has {size} bytes, more than a sheet of pictures"));
    }
    let bytes = fs::read(path).map_err(|e| e.to_string())?;
    if !bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
        return Err("not a PNG".to_owned());
    }
    // This also limits its size.
    images::decode(&bytes).map_err(|e| e.to_string())?;
    Ok(bytes)
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
