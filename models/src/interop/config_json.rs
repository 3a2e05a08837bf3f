//! What `config.json` beside a student's weights says that shapes do not.

use std::path::Path;

use serde_json::Value;

use crate::error::Result;
use crate::json::Json;

/// Widths of the published students and their heads, in MAE, ConvMAE and timm's plain ViTs. At any other width a count of heads would be a
/// guess, and a wrong one gives features that look like features.
const PUBLISHED: [(i64, i64); 5] = [(192, 3), (384, 6), (768, 12), (1024, 16), (1280, 16)];

/// A `config.json` with the keys of transformers or with `model_args`; empty where there is none.
pub(super) struct ConfigJson(Json);

impl ConfigJson {
    /// Reads the file in the folder of `weights`.
    pub(super) fn read(weights: &Path) -> Result<ConfigJson> {
        Ok(ConfigJson(Json::read(weights.parent().unwrap_or(Path::new("")).join("config.json"))?))
    }

    fn number(&self, keys: [&str; 2]) -> Option<i64> {
        let mut found = keys.into_iter().filter_map(|key| self.0.value.pointer(key)?.as_i64());
        found.next()
    }

    /// Attention heads of the encoder, as written.
    fn written_heads(&self) -> Option<i64> {
        self.number(["/num_attention_heads", "/model_args/num_heads"])
    }

    /// Attention heads of an encoder of `width`: as written, else those of the published sizes.
    pub(super) fn num_heads(&self, width: i64) -> Result<i64> {
        if let Some(heads) = self.written_heads() {
            return Ok(heads);
        }
        if let Some((_, heads)) = PUBLISHED.iter().find(|(of, _)| *of == width) {
            return Ok(*heads);
        }
        Err(self.0.wrong(format!(
            "the number of attention heads is not written, and a width of {width} does not tell it. Put a config.json with \
             \"num_attention_heads\" beside the weights"
        )))
    }

    /// Height and width of an image of `num_patches` patches of `patch_size` pixels: as written, else those of a square.
    pub(super) fn img_size(&self, num_patches: i64, patch_size: i64) -> Result<[i64; 2]> {
        let sides = |value: &Value| match value.as_array().map(Vec::as_slice) {
            Some([height, width]) => Some([height.as_i64()?, width.as_i64()?]),
            _ => Some([value.as_i64()?; 2]),
        };
        // The reference's convolutional student lists one for each stage.
        let staged = self.0.value.pointer("/model_args/img_size/2").is_some();
        let keys =
            if staged { ["/image_size", "/model_args/img_size/0"] } else { ["/image_size", "/model_args/img_size"] };
        let written = keys.into_iter().find_map(|key| self.0.value.pointer(key).and_then(sides));
        let grid = num_patches.max(0).isqrt();
        let size = written.unwrap_or([grid.saturating_mul(patch_size); 2]);
        let cells = size.map(|side| if patch_size > 0 { side / patch_size } else { 0 });
        if cells[0].checked_mul(cells[1]) == Some(num_patches) && num_patches > 0 {
            return Ok(size);
        }
        Err(self.0.wrong(format!(
            "an image of {} x {} pixels has no {num_patches} patches of {patch_size} pixels, which is what the table of positions is \
             for",
            size[0], size[1]
        )))
    }

    /// Compares with the network that the weights go into.
    pub(super) fn check(&self, num_heads: i64, decoder_num_heads: Option<i64>) -> Result<()> {
        let decoder_written = self.number(["/decoder_num_attention_heads", "/model_args/decoder_num_heads"]);
        for (what, field, written, wanted) in [
            ("encoder", "num_heads", self.written_heads(), Some(num_heads)),
            ("decoder", "decoder_num_heads", decoder_written, decoder_num_heads),
        ] {
            if let (Some(written), Some(wanted)) = (written, wanted)
                && written != wanted
            {
                return Err(self.0.wrong(format!(
                    "the {what} has {written} attention heads, and model.{field} is {wanted}. Set it to {written}: the weights mean \
                     nothing else"
                )));
            }
        }
        self.check_activation()
    }

    /// Refuses an activation that students do not have.
    pub(super) fn check_activation(&self) -> Result<()> {
        match self.0.value.get("hidden_act").and_then(Value::as_str) {
            None | Some("gelu") => Ok(()),
            Some(other) => Err(self.0.wrong(format!("hidden_act is {other:?}, and a student's is gelu"))),
        }
    }
}
