//! The one network behind every teacher: a pre-norm ViT with a CLS token and learned positions.

use tch::Tensor;

use crate::init::Init;
use crate::params::Scope;
use crate::pos_interpolate::interpolate;
use crate::vit::{Activation, Block, BlockConfig, LayerNorm, PatchEmbed};

/// Everything that distinguishes one tower from another.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct TowerConfig {
    pub(super) width: i64,
    pub(super) depth: i64,
    pub(super) num_heads: i64,
    pub(super) mlp_dim: i64,
    pub(super) patch_size: i64,
    /// Side of the native grid, in patches.
    pub(super) grid: i64,
    /// CLIP normalises once more, before the first block.
    pub(super) norm_pre: bool,
    /// CLIP's patch projection has no bias.
    pub(super) patch_bias: bool,
    pub(super) norm_eps: f64,
    pub(super) activation: Activation,
}

/// Name and shape of one tensor of a tower.
pub(super) struct TensorSpec {
    pub(super) name: String,
    pub(super) shape: Vec<i64>,
}

impl TowerConfig {
    /// Every tensor that [`VitTower::new`] asks its scope for.
    pub(super) fn tensors(&self) -> Vec<TensorSpec> {
        let (d, m, p) = (self.width, self.mlp_dim, self.patch_size);
        let mut specs = Vec::new();
        let mut add = |name: String, shape: &[i64]| {
            specs.push(TensorSpec {
                name,
                shape: shape.to_vec(),
            })
        };
        add("cls_token".to_owned(), &[1, 1, d]);
        add("pos_embed".to_owned(), &[1, 1 + self.grid * self.grid, d]);
        add("patch_embed.proj.weight".to_owned(), &[d, 3, p, p]);
        if self.patch_bias {
            add("patch_embed.proj.bias".to_owned(), &[d]);
        }
        let mut norms = vec!["norm".to_owned()];
        if self.norm_pre {
            norms.push("norm_pre".to_owned());
        }
        for i in 0..self.depth {
            norms.push(format!("blocks.{i}.norm1"));
            norms.push(format!("blocks.{i}.norm2"));
            for (linear, out_dim, in_dim) in [
                ("attn.qkv", 3 * d, d),
                ("attn.proj", d, d),
                ("mlp.fc1", m, d),
                ("mlp.fc2", d, m),
            ] {
                add(format!("blocks.{i}.{linear}.weight"), &[out_dim, in_dim]);
                add(format!("blocks.{i}.{linear}.bias"), &[out_dim]);
            }
        }
        for norm in norms {
            add(format!("{norm}.weight"), &[d]);
            add(format!("{norm}.bias"), &[d]);
        }
        specs
    }
}

/// The tower.
#[derive(Debug)]
pub(super) struct VitTower {
    patch_embed: PatchEmbed,
    cls_token: Tensor,
    pos_embed: Tensor,
    norm_pre: Option<LayerNorm>,
    blocks: Vec<Block>,
    norm: LayerNorm,
}

impl VitTower {
    pub(super) fn new(scope: &Scope, config: &TowerConfig) -> Self {
        let block = BlockConfig {
            dim: config.width,
            num_heads: config.num_heads,
            mlp_dim: config.mlp_dim,
            qkv_bias: true,
            norm_eps: config.norm_eps,
            activation: config.activation,
        };
        let norm = |name: &str| LayerNorm::new(&scope.sub(name), config.width, config.norm_eps);
        let positions = 1 + config.grid * config.grid;
        Self {
            patch_embed: PatchEmbed::new(
                &scope.sub("patch_embed"),
                config.patch_size,
                config.width,
                config.patch_bias,
            ),
            cls_token: scope.param("cls_token", &[1, 1, config.width], Init::Zeros),
            pos_embed: scope.param("pos_embed", &[1, positions, config.width], Init::Zeros),
            norm_pre: config.norm_pre.then(|| norm("norm_pre")),
            blocks: (0..config.depth)
                .map(|i| Block::new(&scope.sub("blocks").sub(i), &block))
                .collect(),
            norm: norm("norm"),
        }
    }

    /// Cuts images into patches: `[N, 3, H, W] → [N, L, 3p²]`, any kind of number.
    pub(super) fn unfold(&self, imgs: &Tensor) -> Tensor {
        self.patch_embed.unfold(imgs)
    }

    /// `patches [N, h·w, 3p²]` on the grid `(h, w)` → the residual stream after the last block `[N, 1 + L, D]` and the last
    /// block's attention of the CLS query `[N, H, 1 + L]`. `visit` sees the residual stream before the first block and after
    /// each one.
    pub(super) fn forward(
        &self,
        patches: &Tensor,
        grid: (i64, i64),
        mut visit: impl FnMut(&Tensor),
    ) -> (Tensor, Tensor) {
        let n = patches.size()[0];
        let patches = self.patch_embed.project(patches).to_kind(tch::Kind::Float); // [N, L, D]
        let cls = self.cls_token.expand([n, -1, -1], false);
        let mut x = Tensor::cat(&[cls, patches], 1) + interpolate(&self.pos_embed, grid); // [N, 1 + L, D]
        if let Some(norm_pre) = &self.norm_pre {
            x = norm_pre.forward(&x);
        }
        visit(&x);
        let (last, before) = self
            .blocks
            .split_last()
            .expect("a tower has at least one block");
        for block in before {
            x = block.forward(&x);
            visit(&x);
        }
        let (x, cls_attn) = last.forward_with_cls_attention(&x);
        visit(&x);
        (x, cls_attn)
    }

    /// The final norm, `[.., D] → [.., D]`.
    pub(super) fn norm(&self, x: &Tensor) -> Tensor {
        self.norm.forward(x)
    }
}
