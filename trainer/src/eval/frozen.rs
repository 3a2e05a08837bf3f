//! Frozen models and how they see images: what `knn`, `linprobe` and `segment` begin with, and the part of their results that says
//! so.

use std::collections::BTreeMap;

use anyhow::bail;
use hub::HubSettings;
use images::Decoder;
use models::precision::Precision;
use schemas::DepthWindow;
use serde::{Deserialize, Serialize};
use tch::Device;

use super::features::{Fusion, Model};
use crate::cli::NetworkArgs;
use crate::pretrained::depth_window;

/// Models to evaluate side by side: every image is read and decoded once for all of them.
pub(crate) struct Frozen {
    pub models: Vec<Model>,
    pub device: Device,
    /// Threads that read and decode.
    pub pool: rayon::ThreadPool,
    /// How images of more than 8 bits are seen, by all models alike.
    pub decoder: Decoder,
    /// Precision of the networks.
    pub precision: Precision,
}

impl Frozen {
    /// Loads `models`, as `--model` names them, to `device`, for one of `local_size` processes on this machine.
    ///
    /// # Errors
    /// If a model is given twice or cannot be loaded, if the device lacks the precision, and if the models were trained on images seen in
    /// different ways and `network` does not say in which.
    pub(crate) fn load(
        models: &[String],
        network: &NetworkArgs,
        hub: &HubSettings,
        device: Device,
        local_size: usize,
    ) -> anyhow::Result<Frozen> {
        refuse_repeated(models)?;
        network.precision.prepare(device)?;
        let loaded = models.iter().map(|spec| Model::load(spec, hub, device)).collect::<anyhow::Result<Vec<_>>>()?;
        let names: Vec<&str> = models.iter().map(String::as_str).collect();
        Ok(Frozen {
            models: loaded,
            device,
            pool: rayon::ThreadPoolBuilder::new()
                .num_threads(network.device.loader_threads(device, local_size))
                .build()?,
            decoder: depth_window::decoder(network.depth_window, &names)?,
            precision: network.precision,
        })
    }

    /// What the result of one of the models says of it.
    pub(crate) fn facts(&self, model: &Model) -> ModelFacts {
        ModelFacts {
            model: model.describe(),
            fusion: model.fusion(),
            depth_window: self.decoder.window(),
            precision: (self.precision != Precision::F32).then(|| self.precision.name().to_owned()),
        }
    }
}

/// Refuses a model that is given twice, however its path is written: its result would be written twice or overwrite itself.
fn refuse_repeated(models: &[String]) -> anyhow::Result<()> {
    let mut seen = BTreeMap::new();
    for model in models {
        let (prefix, path) = model.rsplit_once(':').unwrap_or(("", model));
        let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.into());
        if let Some(before) = seen.insert((prefix, path), model) {
            bail!(
                "--model {model} is given twice{}",
                match before == model {
                    true => String::new(),
                    false => format!(", first as {before}"),
                }
            );
        }
    }
    Ok(())
}

/// Which model was evaluated, and how it saw the images: fields of every result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ModelFacts {
    pub model: String,
    /// Whether a student of multi-layer fusion was evaluated with it. Absent for models without fusion, and in results of older versions,
    /// which evaluated every student without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fusion: Option<Fusion>,
    /// The window through which images of more than 8 bits per sample were seen; absent for `high-byte`.
    #[serde(default, skip_serializing_if = "DepthWindow::is_high_byte")]
    pub depth_window: DepthWindow,
    /// Precision of the network; absent for f32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precision: Option<String>,
}

impl ModelFacts {
    /// The fields that belong to the question: see [`record::save`](super::record::save).
    pub(crate) const QUESTION: [&str; 3] = ["fusion", "depth_window", "precision"];

    /// The depth window and precision for the head of a table, as far as they are not the defaults.
    pub(crate) fn unusual(&self) -> String {
        let window = (!self.depth_window.is_high_byte()).then(|| format!(", depth window {}", self.depth_window));
        let precision = self.precision.as_ref().map(|precision| format!(", in {precision}"));
        window.unwrap_or_default() + &precision.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A repeated model is refused however its path is written; a run and its moving average are two models.
    #[test]
    fn a_model_given_twice_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        std::fs::create_dir(&run).unwrap();
        let run = run.to_str().unwrap();
        let refused = |models: &[String]| refuse_repeated(models).map_err(|e| e.to_string());
        let spellings = [run.to_owned(), format!("{run}/"), format!("{run}/../run")];
        for other in &spellings {
            let refusal = refused(&[spellings[0].clone(), other.clone()]).unwrap_err();
            assert!(refusal.starts_with(&format!("--model {other} is given twice")), "{refusal}");
        }
        refused(&[run.to_owned(), format!("ema:{run}"), "pixels".into()]).unwrap();
        refused(&["pixels:32".into(), "pixels:64".into()]).unwrap();
        refused(&["pixels".into(), "pixels".into()]).unwrap_err();
    }
}
