//! The window through which images of more than 8 bits per sample are seen when a trained model is evaluated or trained on: that of the
//! cache it was trained on, so that it sees what it knows.

use std::path::Path;

use anyhow::ensure;
use images::Decoder;
use schemas::DepthWindow;
use tracing::{info, warn};

use super::trained::is_run;
use crate::recipe::spec::Spec;
use crate::train::checkpoint::{self, MODEL, STATE};

/// The name of the configuration in an exported folder.
pub(crate) const CONFIG: &str = "config.json";
/// The name of the fact in a run's state. Runs without it were trained with `high-byte`.
pub(crate) const FACT: &str = "depth_window";

/// What decodes the images for `models` (run folders, files, ids on a hub, with or without a prefix like `ema:`): by the flag, else as
/// their runs were trained, else by the default.
///
/// # Errors
/// If there is no flag and the runs were trained with different windows.
pub(crate) fn decoder(flag: Option<DepthWindow>, models: &[&str]) -> anyhow::Result<Decoder> {
    if let Some(window) = flag {
        for model in models {
            if let Some(trained) = window_of(model)?.filter(|trained| *trained != window) {
                warn!("{model} was trained with depth window {trained}, and --depth-window is {window}");
            }
        }
        return Ok(Decoder::new(window));
    }
    let mut found: Option<(&str, DepthWindow)> = None;
    for &model in models {
        let Some(window) = window_of(model)? else {
            continue;
        };
        let (first, same) = *found.get_or_insert((model, window));
        ensure!(
            same == window,
            "{first} was trained with depth window {same}, {model} with {window}, and all models see the same pixels: give --depth-window"
        );
    }
    let window = found.map(|(_, window)| window).unwrap_or_default();
    if !window.is_high_byte() {
        info!("depth window {window}, as in training");
    }
    Ok(Decoder::new(window))
}

/// The window of a run, of the checkpoint that a model file lies in, or of an export. `None` for models of other origin.
pub(crate) fn window_of(model: &str) -> anyhow::Result<Option<DepthWindow>> {
    let path = Spec::parse(model).path();
    let folder = if is_run(path) {
        checkpoint::newest(path)?
    } else if path.join(STATE).is_file() {
        Some(path.to_path_buf())
    } else {
        let is_model = path.file_name().is_some_and(|name| name == MODEL);
        path.parent().filter(|folder| is_model && folder.join(STATE).is_file()).map(Path::to_path_buf)
    };
    let Some(folder) = folder else {
        return of_export(path);
    };
    let state = checkpoint::read_state(&folder)?;
    let window = state.data.get(FACT).map(|text| text.parse::<DepthWindow>()).transpose()?;
    Ok(Some(window.unwrap_or_default()))
}

/// The window that the `config.json` of an exported folder, or beside an exported file, names.
fn of_export(path: &Path) -> anyhow::Result<Option<DepthWindow>> {
    let folder = if path.is_dir() { Some(path) } else { path.parent().filter(|_| path.is_file()) };
    // A config.json that is not valid JSON is refused later, when the network is read.
    let config = folder.and_then(|folder| std::fs::read(folder.join(CONFIG)).ok());
    let config: Option<serde_json::Value> = config.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let window = config.and_then(|config| Some(config.get(FACT)?.as_str()?.to_owned()));
    Ok(window.map(|text| text.parse()).transpose()?)
}
