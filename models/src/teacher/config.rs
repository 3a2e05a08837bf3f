//! What tensors cannot tell about a teacher, from the files beside them: `config.json` (Hugging Face's or timm's) and
//! `preprocessor_config.json`.
//!
//! A fact that no file states is taken from what its publishers' code would do (the defaults of transformers' configuration
//! classes, of timm's and DINO's code), and only where that is one answer; where people's files differ (CLIP's activation, the
//! normalisation of a Hugging Face ViT, the heads of a wide tower) it is asked for. A wrong guess would give features that
//! look right and are not.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::layout::{Family, Layout};
use super::tower::TowerConfig;
use crate::error::{Error, Result};
use crate::vit::Activation;
use crate::weights::Weights;

/// Mean and standard deviation of each channel, for pixels in 0..1.
pub(super) type Normalisation = ([f64; 3], [f64; 3]);

const IMAGENET: Normalisation = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
const OPENAI_CLIP: Normalisation = (
    [0.48145466, 0.4578275, 0.40821073],
    [0.26862954, 0.26130258, 0.27577711],
);

/// Configurations are a few kilobytes; more is some other file.
const MAX_JSON_BYTES: u64 = 1 << 20;

/// The published ViTs up to this width (S, B, L) have heads of 64 numbers; wider ones do not.
const MAX_WIDTH_WITH_HEADS_OF_64: i64 = 1024;

/// The files beside the weights, read but not interpreted.
pub(super) struct Config {
    config: Json,
    preprocessor: Json,
}

/// A tower's configuration with its pixels' normalisation.
pub(super) struct Resolved {
    pub(super) tower: TowerConfig,
    pub(super) normalisation: Normalisation,
}

impl Config {
    /// Reads what there is in the folder of `weights`.
    pub(super) fn read_beside(weights: &Path) -> Result<Config> {
        let folder = weights.parent().unwrap_or(Path::new(""));
        let mut config = Json::read(folder.join("config.json"))?;
        // A whole CLIP keeps its vision tower's configuration one level down.
        if let Some(vision) = config.value.get_mut("vision_config").map(Value::take) {
            config.value = vision;
        }
        let mut preprocessor = Json::read(folder.join("preprocessor_config.json"))?;
        if !preprocessor.exists {
            // transformers 5 may keep it within the processor of text and images.
            let mut processor = Json::read(folder.join("processor_config.json"))?;
            if let Some(image) = processor.value.get_mut("image_processor").map(Value::take) {
                preprocessor = Json {
                    value: image,
                    ..processor
                };
            }
        }
        Ok(Config {
            config,
            preprocessor,
        })
    }

    /// Puts the files' words, the shapes and the defaults together.
    pub(super) fn resolve(&self, weights: &Weights, layout: &Layout) -> Result<Resolved> {
        let sizes = layout.sizes(weights);
        let known = |written: Option<i64>, shape: Option<i64>| {
            written.or(shape).ok_or_else(|| layout.broken(weights))
        };
        let width = known(self.config.size("hidden_size")?, sizes.width)?;
        let depth = known(self.config.size("num_hidden_layers")?, sizes.depth)?;
        let mlp_dim = known(self.config.size("intermediate_size")?, sizes.mlp_dim)?;
        let patch_size = known(self.config.size("patch_size")?, sizes.patch_size)?;
        let grid = match self.config.size("image_size")? {
            Some(image_size) => image_size / patch_size.max(1),
            None => (known(None, sizes.positions)? - 1).max(0).isqrt(),
        };
        for (what, size) in [
            ("width", width),
            ("depth", depth),
            ("MLP width", mlp_dim),
            ("patch size", patch_size),
            ("grid", grid),
        ] {
            if !(1..=MAX_SIZE).contains(&size) {
                return Err(self.config.wrong(format!(
                    "the tower's {what} would be {size}, which must be in 1..={MAX_SIZE}"
                )));
            }
        }
        let num_heads = self.num_heads(layout, width)?;
        if width % num_heads != 0 {
            return Err(self.config.wrong(format!(
                "{num_heads} attention heads do not divide a width of {width}"
            )));
        }
        let tower = TowerConfig {
            width,
            depth,
            num_heads,
            mlp_dim,
            patch_size,
            grid,
            norm_pre: layout.family == Family::Clip,
            patch_bias: layout.patch_bias,
            norm_eps: self.norm_eps(layout)?,
            activation: self.activation(layout)?,
        };
        Ok(Resolved {
            tower,
            normalisation: self.normalisation(layout)?,
        })
    }

    /// Whether the config was written by transformers: it may then leave out what equals its class's defaults.
    fn by_transformers(&self, layout: &Layout) -> bool {
        layout.is_hugging_face() && self.config.value.get("model_type").is_some()
    }

    fn activation(&self, layout: &Layout) -> Result<Activation> {
        if let Some(name) = self.config.text("hidden_act")? {
            return match name {
                "gelu" => Ok(Activation::Gelu),
                "quick_gelu" => Ok(Activation::QuickGelu),
                other => Err(self.config.wrong(format!(
                    "hidden_act {other:?} is not known here; gelu and quick_gelu are"
                ))),
            };
        }
        // timm's way of saying it.
        if self
            .config
            .text("architecture")?
            .is_some_and(|name| name.contains("quickgelu"))
        {
            return Ok(Activation::QuickGelu);
        }
        match layout.family {
            Family::Vit => Ok(Activation::Gelu),
            Family::Clip if self.by_transformers(layout) => Ok(Activation::QuickGelu),
            Family::Clip => Err(self.config.missing(
                "the activation of this CLIP tower (hidden_act)",
                "Put a config.json with {\"hidden_act\": \"quick_gelu\"} (OpenAI, MetaCLIP and DFN weights) or \"gelu\" (LAION and \
                 DataComp weights) beside the weights: both run, and the wrong one gives plausible, wrong features",
            )),
        }
    }

    fn norm_eps(&self, layout: &Layout) -> Result<f64> {
        if let Some(eps) = self.config.number("layer_norm_eps")? {
            if eps > 0.0 && eps < 1.0 {
                return Ok(eps);
            }
            return Err(self
                .config
                .wrong(format!("layer_norm_eps {eps} is not between 0 and 1")));
        }
        match layout.family {
            Family::Clip => Ok(1e-5),
            Family::Vit if !layout.is_hugging_face() => Ok(1e-6),
            // The default of transformers' ViTConfig.
            Family::Vit if self.by_transformers(layout) => Ok(1e-12),
            Family::Vit => Err(self.config.missing(
                "layer_norm_eps",
                "Copy the config.json that was published with the weights beside them",
            )),
        }
    }

    fn num_heads(&self, layout: &Layout, width: i64) -> Result<i64> {
        if let Some(heads) = self.config.size("num_attention_heads")? {
            if !(1..=MAX_SIZE).contains(&heads) {
                return Err(self.config.wrong(format!(
                    "num_attention_heads {heads} must be in 1..={MAX_SIZE}"
                )));
            }
            return Ok(heads);
        }
        if self.by_transformers(layout) {
            // The default of both CLIPVisionConfig and ViTConfig.
            return Ok(12);
        }
        if width <= MAX_WIDTH_WITH_HEADS_OF_64 && width % 64 == 0 {
            return Ok(width / 64);
        }
        Err(self.config.missing(
            "the number of attention heads",
            &format!("Put a config.json with \"num_attention_heads\" beside the weights: a width of {width} does not tell it"),
        ))
    }

    fn normalisation(&self, layout: &Layout) -> Result<Normalisation> {
        let preprocessor = &self.preprocessor;
        if preprocessor.exists {
            let rescaled = preprocessor
                .value
                .get("do_rescale")
                .and_then(Value::as_bool)
                .unwrap_or(true);
            let factor = preprocessor
                .number("rescale_factor")?
                .unwrap_or(1.0 / 255.0);
            if !rescaled || (factor * 255.0 - 1.0).abs() > 1e-6 {
                return Err(preprocessor.wrong(format!(
                    "pixels are scaled by {factor} (do_rescale {rescaled}); only towers that take pixels divided by 255 are supported"
                )));
            }
            if preprocessor
                .value
                .get("do_normalize")
                .and_then(Value::as_bool)
                == Some(false)
            {
                return Ok(([0.0; 3], [1.0; 3]));
            }
            if let (Some(mean), Some(std)) = (
                preprocessor.channels("image_mean")?,
                preprocessor.channels("image_std")?,
            ) {
                return self.checked(preprocessor, (mean, std));
            }
        }
        // timm's folders keep it in config.json.
        if let Some(pretrained) = self.config.value.get("pretrained_cfg") {
            let pretrained = Json {
                path: self.config.path.clone(),
                exists: true,
                value: pretrained.clone(),
            };
            if let (Some(mean), Some(std)) =
                (pretrained.channels("mean")?, pretrained.channels("std")?)
            {
                return self.checked(&pretrained, (mean, std));
            }
        }
        match layout.family {
            Family::Clip => Ok(OPENAI_CLIP),
            Family::Vit if !layout.is_hugging_face() => Ok(IMAGENET),
            Family::Vit => Err(preprocessor.missing(
                "image_mean and image_std",
                "Copy the preprocessor_config.json that was published with the weights beside them: ViTs are published with \
                 ImageNet's constants and with 0.5",
            )),
        }
    }

    fn checked(&self, origin: &Json, normalisation: Normalisation) -> Result<Normalisation> {
        let (mean, std) = normalisation;
        if std.iter().all(|&s| s > 0.0) {
            return Ok((mean, std));
        }
        Err(origin.wrong(format!("the standard deviations {std:?} must be above 0")))
    }
}

/// No published tower comes near; a larger number is damage.
const MAX_SIZE: i64 = 65_536;

/// A JSON file that may be absent, then `null`.
struct Json {
    path: PathBuf,
    exists: bool,
    value: Value,
}

impl Json {
    fn read(path: PathBuf) -> Result<Json> {
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Ok(Json {
                    path,
                    exists: false,
                    value: Value::Null,
                });
            }
            Err(source) => return Err(Error::ReadWeights { path, source }),
        };
        let mut bytes = Vec::new();
        if let Err(source) = file.take(MAX_JSON_BYTES).read_to_end(&mut bytes) {
            return Err(Error::ReadWeights { path, source });
        }
        match serde_json::from_slice::<Value>(&bytes) {
            Ok(value) if value.is_object() => Ok(Json {
                path,
                exists: true,
                value,
            }),
            Ok(_) => Err(Error::TeacherConfig {
                path,
                reason: "is no JSON object".to_owned(),
            }),
            Err(e) => Err(Error::TeacherConfig {
                path,
                reason: format!("is no JSON: {e}"),
            }),
        }
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", Value::as_f64)
    }

    fn text(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a string", Value::as_str)
    }

    /// An integer, or a pair of equal ones (`[224, 224]`).
    fn size(&self, key: &str) -> Result<Option<i64>> {
        self.typed(
            key,
            "an integer, or twice the same one",
            |value| match value.as_array().map(Vec::as_slice) {
                Some([a, b]) if a == b => a.as_i64(),
                _ => value.as_i64(),
            },
        )
    }

    fn channels(&self, key: &str) -> Result<Option<[f64; 3]>> {
        self.typed(key, "a list of three numbers", |value| {
            let values: Option<Vec<f64>> = value.as_array()?.iter().map(Value::as_f64).collect();
            values?.try_into().ok()
        })
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        wanted: &str,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        match self.value.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match convert(value) {
                Some(converted) => Ok(Some(converted)),
                None => Err(self.wrong(format!("{key} is {value} and must be {wanted}"))),
            },
        }
    }

    fn wrong(&self, reason: String) -> Error {
        Error::TeacherConfig {
            path: self.path.clone(),
            reason,
        }
    }

    fn missing(&self, fact: &'static str, next_step: &str) -> Error {
        Error::MissingFact {
            path: self.path.clone(),
            fact,
            next_step: next_step.to_owned(),
        }
    }
}
