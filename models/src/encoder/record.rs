//! How an encoder stands in recipes and checkpoints. Runs that exist are read by it, so no name here changes.

use serde::{Deserialize, Serialize};

use super::EncoderConfig;
use crate::layers::Activation;
use crate::mcmae::McmaeEncoderConfig;
use crate::vit::{Pooling, Positions, Projection, VitConfig};

/// An encoder with its `kind`.
#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub(super) enum Record {
    Vit(Mae),
    Mcmae(McmaeEncoderConfig),
    Tower(Tower),
}

/// MAE's ViT.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Mae {
    img_size: [i64; 2],
    patch_size: i64,
    embed_dim: i64,
    depth: i64,
    num_heads: i64,
    mlp_ratio: i64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    fusion: Vec<i64>,
}

/// The tower of a teacher.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tower {
    network: Network,
    mean: [f64; 3],
    std: [f64; 3],
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Network {
    width: i64,
    depth: i64,
    num_heads: i64,
    mlp_dim: i64,
    patch_size: i64,
    /// Patches along each side.
    grid: i64,
    pooling: Pooling,
    registers: i64,
    positions: Positions,
    norm_pre: bool,
    patch_bias: bool,
    layer_scale: bool,
    gated_mlp: bool,
    norm_eps: f64,
    activation: Activation,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    projection: Option<Projection>,
}

impl From<Record> for EncoderConfig {
    /// Numbers may be anything; [`EncoderConfig::validate`] looks at them.
    fn from(record: Record) -> EncoderConfig {
        match record {
            Record::Vit(mae) => EncoderConfig::Vit(VitConfig {
                img_size: mae.img_size,
                mlp_dim: mae.mlp_ratio.saturating_mul(mae.embed_dim),
                fusion: mae.fusion,
                ..VitConfig::mae(mae.patch_size, mae.embed_dim, mae.depth, mae.num_heads)
            }),
            Record::Mcmae(mcmae) => EncoderConfig::Mcmae(mcmae),
            Record::Tower(Tower { network: n, mean, std }) => EncoderConfig::Vit(VitConfig {
                img_size: [n.grid.saturating_mul(n.patch_size); 2],
                patch_size: n.patch_size,
                embed_dim: n.width,
                depth: n.depth,
                num_heads: n.num_heads,
                mlp_dim: n.mlp_dim,
                gated_mlp: n.gated_mlp,
                activation: n.activation,
                norm_eps: n.norm_eps,
                pooling: n.pooling,
                registers: n.registers,
                positions: n.positions,
                norm_pre: n.norm_pre,
                patch_bias: n.patch_bias,
                layer_scale: n.layer_scale,
                projection: n.projection,
                fusion: Vec::new(),
                mean,
                std,
            }),
        }
    }
}

impl From<EncoderConfig> for Record {
    fn from(config: EncoderConfig) -> Record {
        match config {
            EncoderConfig::Vit(vit) if vit.is_mae() => Record::Vit(Mae {
                img_size: vit.img_size,
                patch_size: vit.patch_size,
                embed_dim: vit.embed_dim,
                depth: vit.depth,
                num_heads: vit.num_heads,
                mlp_ratio: vit.mlp_dim / vit.embed_dim.max(1),
                fusion: vit.fusion,
            }),
            EncoderConfig::Vit(vit) => Record::Tower(Tower {
                network: Network {
                    width: vit.embed_dim,
                    depth: vit.depth,
                    num_heads: vit.num_heads,
                    mlp_dim: vit.mlp_dim,
                    patch_size: vit.patch_size,
                    grid: vit.grid()[0],
                    pooling: vit.pooling,
                    registers: vit.registers,
                    positions: vit.positions,
                    norm_pre: vit.norm_pre,
                    patch_bias: vit.patch_bias,
                    layer_scale: vit.layer_scale,
                    gated_mlp: vit.gated_mlp,
                    norm_eps: vit.norm_eps,
                    activation: vit.activation,
                    projection: vit.projection,
                },
                mean: vit.mean,
                std: vit.std,
            }),
            EncoderConfig::Mcmae(mcmae) => Record::Mcmae(mcmae),
        }
    }
}
