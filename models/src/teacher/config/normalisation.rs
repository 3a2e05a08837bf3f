//! How pixels are normalised, from the preprocessor's file or the family's constants.

use serde_json::Value;

use super::Config;
use super::json::Json;
use crate::error::Result;
use crate::teacher::layout::{Family, Layout};

/// Mean and standard deviation of each channel, for pixels in 0..1.
pub(in crate::teacher) type Normalisation = ([f64; 3], [f64; 3]);

const IMAGENET: Normalisation = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
const OPENAI_CLIP: Normalisation = (
    [0.48145466, 0.4578275, 0.40821073],
    [0.26862954, 0.26130258, 0.27577711],
);
const HALF: Normalisation = ([0.5; 3], [0.5; 3]);

/// The widths of DINOv3 (L and 7B) that are published twice, for photos and for satellite images, with other constants.
const DINOV3_WIDTHS_WITH_TWO: [i64; 2] = [1024, 4096];

impl Config {
    /// The normalisation of a tower of `width`.
    pub(super) fn normalisation(&self, layout: &Layout, width: i64) -> Result<Normalisation> {
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
        }
        // timm's folders keep it in config.json, open_clip's in a file of their own.
        for (file, mean, std) in [
            (preprocessor, "image_mean", "image_std"),
            (&self.config.part("/pretrained_cfg"), "mean", "std"),
            (&self.open_clip.part("/preprocess_cfg"), "mean", "std"),
        ] {
            if let (Some(mean), Some(std)) = (file.channels(mean)?, file.channels(std)?) {
                return checked(file, (mean, std));
            }
        }
        let ask = |fact: &str| {
            Err(preprocessor.missing(
                "image_mean and image_std",
                &format!("Copy the preprocessor_config.json that was published with the weights beside them: {fact}"),
            ))
        };
        match layout.family {
            Family::Clip => Ok(OPENAI_CLIP),
            Family::Siglip => Ok(HALF),
            _ if layout.is_hugging_face() => {
                ask("ViTs are published with ImageNet's constants and with 0.5")
            }
            Family::Dinov3 if DINOV3_WIDTHS_WITH_TWO.contains(&width) => ask(
                "this size is published for photos, with ImageNet's constants, and for satellite images, with others",
            ),
            Family::Vit | Family::Dinov2 | Family::Dinov3 => Ok(IMAGENET),
        }
    }
}

fn checked(origin: &Json, normalisation: Normalisation) -> Result<Normalisation> {
    let (mean, std) = normalisation;
    if std.iter().all(|&s| s > 0.0) {
        return Ok((mean, std));
    }
    Err(origin.wrong(format!("the standard deviations {std:?} must be above 0")))
}
