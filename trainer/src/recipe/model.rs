//! `[model]`: which autoencoder, with the defaults that depend on the kind of encoder.

use models::decoder::DecoderConfig;
use models::encoder::EncoderConfig;
use models::mae::MaeConfig;
use models::mcmae::McmaeEncoderConfig;
use models::vit::VitConfig;
use serde::{Deserialize, Serialize};

use super::Recipe;
use super::spec::Spec;
use program::range::at_least_one;
use program::recipe::{Error, invalid, require};

/// `[model]`: the autoencoder. The defaults are those of ViT-B/16 or of MCMAE-B, with MAE's decoder (He et al. 2022, table 1 and
/// appendix; Gao et al. 2022).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Model {
    /// The kind of encoder.
    pub encoder: EncoderKind,
    /// Side of the square input, in pixels.
    pub img_size: u32,
    /// Side of a patch, in pixels; divides `img_size`. For `mcmae` it is 16.
    pub patch_size: u32,
    /// Encoder width, for `vit`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embed_dim: Option<u32>,
    /// Encoder blocks, for `vit`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depth: Option<u32>,
    /// Hidden width of an MLP as a multiple of its block's width, for `vit`; the decoder's too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mlp_ratio: Option<u32>,
    /// Widths of the three stages, for `mcmae`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embed_dims: Option<[u32; 3]>,
    /// Blocks of the three stages, for `mcmae`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depths: Option<[u32; 3]>,
    /// Hidden widths of the MLPs of the three stages as multiples of their widths, for `mcmae`; the decoder uses the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mlp_ratios: Option<[u32; 3]>,
    /// For `mcmae`: whether there is a CLS token. Not in the published code, but in the weights that MR-MAE's authors published later,
    /// and needed for `loss.w_cls`. A `vit` always has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cls_token: Option<bool>,
    /// Attention heads of the transformer blocks.
    pub num_heads: u32,
    /// Multi-layer fusion, for `vit`: encoder blocks (from 0, before the last) whose outputs are added to the last one's, for both
    /// losses; fine-tuning does not use them. The paper does not say which: with 12 blocks `[3, 7]`, every fourth, is a reasonable reading.
    /// Empty = none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fusion: Vec<u32>,
    /// Multi-layer fusion, for `mcmae`: whether projections of the two convolution stages are added to the last stage's output, as in the
    /// published code. Default: true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stage_fusion: Option<bool>,
    /// Stochastic depth: the rate of the encoder's last block, falling linearly to 0 at its first. MaskAlign pretrains with 0.1; MAE and
    /// the paper's text have none.
    pub drop_path: f64,
    /// Decoder width. MR-MAE does not state it; the default is MAE's.
    pub decoder_embed_dim: u32,
    /// Decoder blocks.
    pub decoder_depth: u32,
    /// Decoder attention heads.
    pub decoder_num_heads: u32,
    /// Reconstruct each patch normalized by its own mean and std. It is MAE's better setting; MR-MAE does not state it.
    pub norm_pix_loss: bool,
    /// Start from this student: a run folder, a file or folder of weights that [`models::interop::import()`] reads, or the id of one on
    /// the hub; `ema:RUN` is the moving average of a run that keeps one. The encoder is loaded, and the decoder if there is one; heads are
    /// newly initialized. Absent = everything is initialized from the seed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<String>,
}

impl Default for Model {
    fn default() -> Self {
        Model {
            encoder: EncoderKind::Vit,
            img_size: 224,
            patch_size: 16,
            embed_dim: None,
            depth: None,
            mlp_ratio: None,
            embed_dims: None,
            depths: None,
            mlp_ratios: None,
            cls_token: None,
            num_heads: 12,
            fusion: vec![],
            stage_fusion: None,
            drop_path: 0.0,
            decoder_embed_dim: 512,
            decoder_depth: 8,
            decoder_num_heads: 16,
            norm_pix_loss: true,
            init: None,
        }
    }
}

/// The kind of encoder.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum EncoderKind {
    /// MAE's ViT.
    #[default]
    Vit,
    /// MCMAE (ConvMAE): two stages of masked convolution, then a transformer.
    Mcmae,
}

/// Hidden width of an MLP as a multiple of its block's width, as in every published ViT.
const MLP_RATIO: i64 = 4;

impl Recipe {
    /// The autoencoder.
    pub(crate) fn mae_config(&self) -> MaeConfig {
        let m = &self.model;
        let img_size = [i64::from(m.img_size); 2];
        let (encoder, mlp_ratio) = match m.encoder {
            EncoderKind::Vit => {
                let base = VitConfig::BASE_PATCH16;
                let embed_dim = m.embed_dim.map_or(base.embed_dim, i64::from);
                let depth = m.depth.map_or(base.depth, i64::from);
                let mlp_ratio = m.mlp_ratio.map_or(MLP_RATIO, u32::into);
                let config = VitConfig {
                    img_size,
                    mlp_dim: mlp_ratio * embed_dim,
                    fusion: m.fusion.iter().map(|&block| block.into()).collect(),
                    ..VitConfig::mae(m.patch_size.into(), embed_dim, depth, m.num_heads.into())
                };
                (EncoderConfig::Vit(config), mlp_ratio)
            }
            EncoderKind::Mcmae => {
                let base = McmaeEncoderConfig::BASE;
                let three =
                    |given: Option<[u32; 3]>, default: [i64; 3]| given.map_or(default, |given| given.map(i64::from));
                let config = McmaeEncoderConfig {
                    img_size,
                    embed_dims: three(m.embed_dims, base.embed_dims),
                    depths: three(m.depths, base.depths),
                    num_heads: m.num_heads.into(),
                    mlp_ratios: three(m.mlp_ratios, base.mlp_ratios),
                    cls_token: m.cls_token.unwrap_or(base.cls_token),
                    fusion: m.stage_fusion.unwrap_or(base.fusion),
                };
                (EncoderConfig::Mcmae(config), config.mlp_ratios[2])
            }
        };
        MaeConfig {
            encoder,
            decoder: DecoderConfig {
                embed_dim: m.decoder_embed_dim.into(),
                depth: m.decoder_depth.into(),
                num_heads: m.decoder_num_heads.into(),
                mlp_ratio,
            },
            norm_pix_loss: m.norm_pix_loss,
        }
    }

    /// Patches along one side.
    pub(crate) fn grid(&self) -> u32 {
        self.model.img_size / self.model.patch_size
    }

    /// Number of residual branches for which stochastic depth draws a number; 0 without it.
    pub(crate) fn drop_path_branches(&self) -> usize {
        match self.model.drop_path > 0.0 {
            true => 2 * usize::try_from(self.mae_config().encoder.num_blocks()).unwrap_or_default(),
            false => 0,
        }
    }

    /// Fills in the defaults that depend on the kind of encoder, and refuses the settings of the other kind.
    pub(super) fn resolve_encoder(&mut self) -> Result<(), Error> {
        let m = &mut self.model;
        let narrow = |value: i64| u32::try_from(value).expect("a published size");
        let kind = m.encoder;
        let of_other_kind = match kind {
            EncoderKind::Vit => {
                let base = VitConfig::BASE_PATCH16;
                m.embed_dim.get_or_insert(narrow(base.embed_dim));
                m.depth.get_or_insert(narrow(base.depth));
                m.mlp_ratio.get_or_insert(narrow(MLP_RATIO));
                vec![
                    ("model.embed_dims", m.embed_dims.is_some()),
                    ("model.depths", m.depths.is_some()),
                    ("model.mlp_ratios", m.mlp_ratios.is_some()),
                    ("model.cls_token", m.cls_token.is_some()),
                    ("model.stage_fusion", m.stage_fusion.is_some()),
                ]
            }
            EncoderKind::Mcmae => {
                let base = McmaeEncoderConfig::BASE;
                m.embed_dims.get_or_insert(base.embed_dims.map(narrow));
                m.depths.get_or_insert(base.depths.map(narrow));
                m.mlp_ratios.get_or_insert(base.mlp_ratios.map(narrow));
                m.cls_token.get_or_insert(base.cls_token);
                m.stage_fusion.get_or_insert(base.fusion);
                if m.patch_size != 16 {
                    return Err(invalid(
                        "model.patch_size",
                        m.patch_size,
                        "must be 16 with model.encoder = \"mcmae\": 4 x 2 x 2 pixels",
                    ));
                }
                vec![
                    ("model.embed_dim", m.embed_dim.is_some()),
                    ("model.depth", m.depth.is_some()),
                    ("model.mlp_ratio", m.mlp_ratio.is_some()),
                    ("model.fusion", !m.fusion.is_empty()),
                ]
            }
        };
        match of_other_kind.into_iter().find(|(_, given)| *given) {
            Some((field, _)) => Err(invalid(
                field,
                "given",
                match kind {
                    EncoderKind::Vit => "is a setting of model.encoder = \"mcmae\"",
                    EncoderKind::Mcmae => {
                        "is a setting of model.encoder = \"vit\"; mcmae has embed_dims, depths, mlp_ratios and stage_fusion"
                    }
                },
            )),
            None => Ok(()),
        }
    }

    pub(super) fn check_model(&self) -> Result<(), Error> {
        let m = &self.model;
        if let Some(init) = &m.init {
            let spec = Spec::parse(init);
            let takes = "a run, ema:RUN, a file or an id";
            let given = format!("{init:?}");
            require(
                !spec.name.is_empty(),
                "model.init",
                &given,
                &format!("nothing is named; give {takes}, or leave it out"),
            )?;
            let other = [("untrained", spec.untrained), ("unfused", spec.unfused), ("teacher", spec.teacher)];
            if let Some((prefix, _)) = other.into_iter().find(|(_, has)| *has) {
                return Err(invalid("model.init", given, format!("takes {takes}; leave out `{prefix}:`")));
            }
        }
        require(
            m.img_size >= 1 && m.img_size.is_multiple_of(m.patch_size),
            "model.img_size",
            m.img_size,
            "must be a positive multiple of model.patch_size",
        )?;
        // The limits are far beyond any published network, and low enough for sizes to be multiplied without overflow.
        let largest = |sizes: Option<[u32; 3]>| sizes.into_iter().flatten().max().unwrap_or_default();
        for (field, size, limit) in [
            ("model.embed_dim", m.embed_dim.unwrap_or_default(), 16384),
            ("model.embed_dims", largest(m.embed_dims), 16384),
            ("model.depth", m.depth.unwrap_or_default(), 512),
            ("model.depths", largest(m.depths), 512),
            ("model.decoder_embed_dim", m.decoder_embed_dim, 16384),
            ("model.decoder_depth", m.decoder_depth, 512),
            ("model.mlp_ratio", m.mlp_ratio.unwrap_or_default(), 64),
            ("model.mlp_ratios", largest(m.mlp_ratios), 64),
        ] {
            require(size <= limit, field, size, &format!("must be at most {limit}"))?;
        }
        // The network knows the product alone.
        at_least_one("model.mlp_ratio", m.mlp_ratio.map(u64::from))?;
        self.mae_config().validate().map_err(model_error)?;
        require((0.0..1.0).contains(&m.drop_path), "model.drop_path", m.drop_path, "must be in [0, 1)")
    }
}

/// The error of a network that cannot be built.
pub(super) fn model_error(error: models::Error) -> Error {
    Error::Section { section: "model", problem: error.to_string() }
}
