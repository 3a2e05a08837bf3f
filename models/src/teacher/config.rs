//! What tensors cannot tell about a teacher, from the files beside them: `config.json` (Hugging Face's or timm's),
//! `open_clip_config.json` and `preprocessor_config.json`.
//!
//! A fact that no file states is taken from what its publishers' code would do (the defaults of transformers' configuration
//! classes, of timm's, open_clip's and DINO's code), and only where that is one answer; where people's files differ (CLIP's
//! activation and normalization, the normalization of a ViT with a classifier, the heads of a wide tower) it is asked for. A wrong
//! guess would give features that look right and are not. What is taken without being stated is listed as [`Assumed`].

use std::path::Path;

use serde_json::Value;

use super::layout::{Family, Layout};
use super::options::{Assumed, Layer, TeacherOptions};
use crate::error::{Error, Result};
use crate::json::Json;
use crate::validate::MAX_SIZE;
use crate::vit::{Pooling, Positions, Projection, VitConfig};
use crate::weights::Weights;

mod activation;
mod normalization;
mod open_clip;

/// Widths of published towers of every family and their heads: ViT-Ti, S, B and L, the small CLIPs of TinyCLIP and open_clip (256, 512, 640),
/// and timm's test_vit (64). At another width a count of heads would be a guess, and a wrong one gives features that look like features.
const PUBLISHED_HEADS: [(i64, i64); 8] =
    [(64, 2), (192, 3), (256, 4), (384, 6), (512, 8), (640, 10), (768, 12), (1024, 16)];

/// Wide towers of one family each, as (family, width, heads): DINOv2's giant, DINOv3's huge-plus and 7B, SigLIP's so400m.
const WIDE_HEADS: [(Family, i64, i64); 4] =
    [(Family::Siglip, 1152, 16), (Family::Dinov2, 1536, 24), (Family::Dinov3, 1280, 20), (Family::Dinov3, 4096, 32)];

/// DINOv3's base of rotary positions.
const ROTARY_BASE: f64 = 100.0;

/// The input side of a tower without a position table, where no file names one: what every family is evaluated at.
const USUAL_INPUT: i64 = 224;

/// The files beside the weights, read but not interpreted.
pub(super) struct Config {
    config: Json,
    preprocessor: Json,
    open_clip: Json,
}

/// A tower's configuration.
pub(super) struct Resolved {
    pub(super) config: VitConfig,
    /// What nothing stated.
    pub(super) assumed: Vec<Assumed>,
}

/// The value, or nothing where it is a question to be asked with others.
fn answer<T>(outcome: Result<T>, questions: &mut Vec<Error>) -> Result<Option<T>> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(question @ Error::MissingFact { .. }) => {
            questions.push(question);
            Ok(None)
        }
        Err(other) => Err(other),
    }
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
        // Within the processor of text and images: under the name of transformers 5, or the older one.
        let nested = |file: &mut Json| {
            let key = ["image_processor", "feature_extractor"]
                .into_iter()
                .find(|key| file.value.get(key).is_some_and(Value::is_object))?;
            file.value.get_mut(key).map(Value::take)
        };
        if let Some(image) = nested(&mut preprocessor) {
            preprocessor.value = image;
        }
        if !preprocessor.exists {
            let mut processor = Json::read(folder.join("processor_config.json"))?;
            if let Some(image) = nested(&mut processor) {
                preprocessor = Json { value: image, ..processor };
            }
        }
        Ok(Config { config, preprocessor, open_clip: Json::read(folder.join("open_clip_config.json"))? })
    }

    /// Refuses the configuration of another kind of network than the tensors are of: its activation, eps and sizes would be taken
    /// for this one's. A kind that is not known here says nothing.
    fn check_model_type(&self, layout: &Layout) -> Result<()> {
        let Some(model_type) = self.config.value.get("model_type").and_then(Value::as_str) else {
            return Ok(());
        };
        let family = match model_type {
            "clip" | "clip_vision_model" => Family::Clip,
            "vit" | "deit" | "vit_mae" => Family::Vit,
            "dinov2" | "dinov2_with_registers" => Family::Dinov2,
            "dinov3_vit" => Family::Dinov3,
            "siglip" | "siglip_vision_model" => Family::Siglip,
            _ => return Ok(()),
        };
        // Other layouts may carry whatever configuration their converter left: only transformers' own pairs the two.
        if family == layout.family || !layout.is_hugging_face() {
            return Ok(());
        }
        Err(self.config.wrong(format!(
            "model_type is {model_type:?}, and the tensors beside it are those of {}: this file belongs to another model. Put the \
             right one there",
            layout.title()
        )))
    }

    /// Combines what the files say with the shapes, the options and the defaults.
    pub(super) fn resolve(mut self, weights: &Weights, layout: &Layout, options: &TeacherOptions) -> Result<Resolved> {
        self.check_model_type(layout)?;
        let (mut questions, mut assumed) = (Vec::new(), Vec::new());
        assumed.extend(layout.choice().map(|text| Assumed {
            settings: "the file of one network",
            text,
            doubtful: false,
        }));
        let activation = answer(self.activation(layout, options.activation, &mut assumed), &mut questions)?;
        if layout.is_openai()
            && let Some(tower) = self.open_clip.vision_tower()?
        {
            self.config = tower;
        }
        let sizes = layout.sizes(weights);
        let known = |written: Option<i64>, shape: Option<i64>| written.or(shape).ok_or_else(|| layout.broken(weights));
        let width = known(self.config.size("hidden_size")?, sizes.width)?;
        let depth = known(self.config.size("num_hidden_layers")?, sizes.depth)?;
        let mlp_dim = known(self.config.size("intermediate_size")?, sizes.mlp_dim)?;
        let patch_size = known(self.config.size("patch_size")?, sizes.patch_size)?;
        let grid = match self.image_size(layout)? {
            Some(image_size) => image_size / patch_size.max(1),
            None => known(None, sizes.grid)?,
        };
        let registers = match self.config.size("num_register_tokens")? {
            Some(registers) if layout.has_registers() => registers,
            _ => sizes.registers,
        };
        for (what, size, least) in [
            ("width", width, 1),
            ("depth", depth, 1),
            ("MLP width", mlp_dim, 1),
            ("patch size", patch_size, 1),
            ("grid", grid, 1),
            ("number of registers", registers, 0),
        ] {
            if !(least..=MAX_SIZE).contains(&size) {
                return Err(self
                    .config
                    .wrong(format!("the tower's {what} would be {size}, which must be in {least}..={MAX_SIZE}")));
            }
        }
        let num_heads = answer(self.num_heads(layout, width, options, &mut assumed), &mut questions)?;
        let norm_eps = answer(self.norm_eps(layout, options, &mut assumed), &mut questions)?;
        let normalization = answer(self.normalization(weights, layout, width, options, &mut assumed), &mut questions)?;
        let (Some(activation), Some(num_heads), Some(norm_eps), Some(normalization)) =
            (activation, num_heads, norm_eps, normalization)
        else {
            return Err(match <[Error; 1]>::try_from(questions) {
                Ok([only]) => only,
                Err(several) => Error::MissingFacts(several),
            });
        };
        if width % num_heads != 0 {
            return Err(self.config.wrong(format!("{num_heads} attention heads do not divide a width of {width}")));
        }
        let positions = if layout.is_rotary() {
            if width / num_heads % 4 != 0 {
                return Err(self.config.wrong(format!(
                    "rotary positions need heads of a width that 4 divides, not {width} / {num_heads}"
                )));
            }
            Positions::Rotary { base: self.rotary_base(weights)? }
        } else {
            Positions::Learned
        };
        if layout.pooling() == Pooling::Mean && options.layer != Layer::Last {
            return Err(Error::Config {
                field: "layer",
                value: options.layer.to_string(),
                reason: "this network pools the mean of its patches before the norm (fc_norm), so that a patch has no features after a norm; \
                         use layer last"
                    .to_owned(),
            });
        }
        let projection = match options.layer {
            Layer::Last | Layer::LastNorm => None,
            Layer::Proj => {
                let (out_dim, bias) = layout.projection(weights)?;
                Some(Projection { out_dim, bias })
            }
        };
        let (mean, std) = normalization;
        let config = VitConfig {
            img_size: [grid * patch_size; 2],
            patch_size,
            embed_dim: width,
            depth,
            num_heads,
            mlp_dim,
            pooling: layout.pooling(),
            registers,
            positions,
            norm_pre: layout.family == Family::Clip,
            patch_bias: layout.patch_bias,
            layer_scale: layout.layer_scale,
            gated_mlp: layout.gated_mlp,
            norm_eps,
            activation,
            projection,
            fusion: Vec::new(),
            mean,
            std,
        };
        Ok(Resolved { config, assumed })
    }

    /// Whether the config was written by transformers: it may then leave out what equals its class's defaults.
    fn by_transformers(&self, layout: &Layout) -> bool {
        layout.is_hugging_face() && self.config.value.get("model_type").is_some()
    }

    /// The input side that a file names, where the tower has no table that shows it or the file is Hugging Face's.
    fn image_size(&self, layout: &Layout) -> Result<Option<i64>> {
        if let Some(size) = self.config.size("image_size")? {
            return Ok(Some(size));
        }
        if !layout.is_rotary() {
            return Ok(None);
        }
        // timm's way of saying it: channels, height, width.
        let input_size = self.config.value.pointer("/pretrained_cfg/input_size/2");
        Ok(Some(input_size.and_then(Value::as_i64).unwrap_or(USUAL_INPUT)))
    }

    fn rotary_base(&self, weights: &Weights) -> Result<f64> {
        // All eva towers of timm have these names; the others turn by other angles.
        if let Some(architecture) = self.config.text("architecture")?
            && !architecture.contains("dinov3")
        {
            return Err(self.config.wrong(format!(
                "architecture {architecture:?} is not one of timm's dinov3 towers, the only ones with rotary positions that are \
                 known here (the weights are {:?})",
                weights.path()
            )));
        }
        let base = self.config.number("rope_theta")?.unwrap_or(ROTARY_BASE);
        if base > 1.0 && base < 1e9 {
            return Ok(base);
        }
        Err(self.config.wrong(format!("rope_theta {base} is not between 1 and 1e9")))
    }

    fn norm_eps(&self, layout: &Layout, options: &TeacherOptions, assumed: &mut Vec<Assumed>) -> Result<f64> {
        if let Some(eps) = self.config.number("layer_norm_eps")? {
            if !(eps > 0.0 && eps < 1.0) {
                return Err(self.config.wrong(format!("layer_norm_eps {eps} is not between 0 and 1")));
            }
            return match options.norm_eps.filter(|asked| *asked != eps) {
                None => Ok(eps),
                Some(asked) => Err(self.config.wrong(format!(
                    "says layer_norm_eps {eps:e}, but the eps asked for is {asked:e}. Correct the one that is wrong"
                ))),
            };
        }
        if let Some(eps) = options.norm_eps {
            return Ok(eps);
        }
        let (eps, reason) = match layout.family {
            Family::Clip => (1e-5, "as CLIP towers have"),
            Family::Dinov3 => (1e-5, "as DINOv3 has"),
            Family::Dinov2 => (1e-6, "as DINOv2 has"),
            Family::Siglip => (1e-6, "as SigLIP has"),
            Family::Vit if !layout.is_hugging_face() => (1e-6, "as ViTs in this layout have"),
            Family::Vit if self.by_transformers(layout) => (1e-12, "the default of transformers' ViTConfig"),
            Family::Vit => {
                return Err(self.config.missing(
                    "layer_norm_eps",
                    "ViTs in this layout are published with 1e-12 and with 1e-6. Copy the config.json that was published with the weights \
                     beside them, or name it with the teacher (in pipeline: --eps, or eps under [teachers.ID] in a recipe)",
                ));
            }
        };
        assumed.push(Assumed {
            settings: "eps",
            text: format!("eps {eps:e} of the layer norms, {reason}"),
            doubtful: false,
        });
        Ok(eps)
    }

    fn num_heads(
        &self,
        layout: &Layout,
        width: i64,
        options: &TeacherOptions,
        assumed: &mut Vec<Assumed>,
    ) -> Result<i64> {
        let asked = options.num_heads.map(i64::from);
        // timm's folders say what differs from the architecture they name.
        let model_args = self.config.part("/model_args");
        for (file, key) in [(&self.config, "num_attention_heads"), (&model_args, "num_heads")] {
            let Some(heads) = file.size(key)? else {
                continue;
            };
            if !(1..=MAX_SIZE).contains(&heads) {
                return Err(file.wrong(format!("{key} {heads} must be in 1..={MAX_SIZE}")));
            }
            return match asked.filter(|asked| *asked != heads) {
                None => Ok(heads),
                Some(asked) => Err(file.wrong(format!(
                    "says {key} {heads}, but the number of heads asked for is {asked}. Correct the one that is wrong"
                ))),
            };
        }
        if let Some(heads) = asked {
            if !(1..=MAX_SIZE).contains(&heads) || width % heads != 0 {
                return Err(self
                    .config
                    .wrong(format!("the {heads} attention heads asked for do not divide a width of {width}")));
            }
            return Ok(heads);
        }
        let published = (PUBLISHED_HEADS.iter()).find(|(of_width, _)| *of_width == width).map(|(_, heads)| *heads);
        let of_family = WIDE_HEADS.iter().find(|(family, of_width, _)| (*family, *of_width) == (layout.family, width));
        let (heads, reason) = if self.by_transformers(layout) {
            let default = if layout.family == Family::Dinov3 { 6 } else { 12 };
            (default, "the default of transformers' configuration class".to_owned())
        } else if layout.is_openai() && width % 64 == 0 {
            (width / 64, "as OpenAI's loader takes one for 64 channels".to_owned())
        } else if let Some(heads) = published {
            (heads, format!("as published towers of width {width} have"))
        } else if let Some((_, _, heads)) = of_family {
            (*heads, format!("as published towers of this family and width {width} have"))
        } else {
            return Err(self.config.missing(
                "the number of attention heads",
                &format!(
                    "A width of {width} does not tell it. Put a config.json with \"num_attention_heads\" beside the weights, or name it with \
                     the teacher (in pipeline: --heads, or heads under [teachers.ID] in a recipe)"
                ),
            ));
        };
        let plural = if heads == 1 { "" } else { "s" };
        assumed.push(Assumed {
            settings: "heads",
            text: format!("{heads} attention head{plural}, {reason}"),
            doubtful: false,
        });
        Ok(heads)
    }
}
