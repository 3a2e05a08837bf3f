//! `open_clip_config.json`: `{"model_cfg": {"vision_cfg": {..}, "quick_gelu": ..}, "preprocess_cfg": {"mean": .., "std": ..}}`.
//!
//! Keys and defaults are those of open_clip's `CLIPVisionCfg` and `CLIP`.

use serde_json::{Value, json};

use super::json::Json;
use crate::error::Result;
use crate::layers::Activation;

impl Json {
    /// A part of this file, for errors that name the file.
    pub(super) fn part(&self, pointer: &str) -> Json {
        let value = self.value.pointer(pointer);
        Json { path: self.path.clone(), exists: value.is_some(), value: value.cloned().unwrap_or(Value::Null) }
    }

    /// The activation that open_clip would use, with the words that say so; `None` without such a file, and where the tower is
    /// one of timm's, which go by their own name.
    pub(super) fn activation(&self) -> Result<Option<(Activation, String)>> {
        let model = self.part("/model_cfg");
        let vision = model.part("/vision_cfg");
        if !vision.exists || vision.text("timm_model_name")?.is_some() {
            return Ok(None);
        }
        if model.flag("quick_gelu")? == Some(true) {
            return Ok(Some((Activation::QuickGelu, "says quick_gelu true".to_owned())));
        }
        let approximate = vision.part("/act_kwargs");
        if approximate.text("approximate")? == Some("tanh") {
            return Ok(Some((Activation::GeluTanh, "says act_kwargs approximate tanh".to_owned())));
        }
        Ok(Some((Activation::Gelu, "does not say quick_gelu true, so gelu".to_owned())))
    }

    /// The vision tower in the words of transformers' configuration, `None` without such a file.
    pub(super) fn vision_tower(&self) -> Result<Option<Json>> {
        let vision = self.part("/model_cfg/vision_cfg");
        if !vision.exists || vision.text("timm_model_name")?.is_some() {
            return Ok(None);
        }
        if vision.value.get("layers").is_some_and(Value::is_array) {
            return Err(vision.wrong(
                "vision_cfg.layers is a list, so the vision tower is a ResNet; only ViTs can be teachers".to_owned(),
            ));
        }
        let width = vision.size("width")?.unwrap_or(768);
        let head_width = vision.size("head_width")?.unwrap_or(64);
        if head_width < 1 || width % head_width != 0 {
            return Err(vision.wrong(format!("vision_cfg.head_width {head_width} does not divide the width {width}")));
        }
        let mlp_ratio = vision.number("mlp_ratio")?.unwrap_or(4.0);
        Ok(Some(Json {
            value: json!({
                "hidden_size": width,
                "num_hidden_layers": vision.size("layers")?.unwrap_or(12),
                "num_attention_heads": width / head_width,
                // open_clip truncates.
                "intermediate_size": (width as f64 * mlp_ratio) as i64,
                "patch_size": vision.size("patch_size")?.unwrap_or(16),
                "image_size": vision.size("image_size")?.unwrap_or(224),
                "layer_norm_eps": vision.part("/norm_kwargs").number("eps")?,
            }),
            ..vision
        }))
    }
}
