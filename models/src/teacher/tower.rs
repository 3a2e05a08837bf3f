//! The one network behind every teacher: a pre-norm ViT, with CLS and registers or without, with learned or rotary positions.

use std::cell::RefCell;

use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use super::pool::AttentionPool;
use crate::blocks::Pass;
use crate::init::Init;
use crate::params::Scope;
use crate::pos_interpolate::interpolate;
use crate::vit::{Activation, Block, BlockConfig, LayerNorm, Linear, PatchEmbed, Rotary};

/// Everything that distinguishes one tower from another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TowerConfig {
    pub(super) width: i64,
    pub(super) depth: i64,
    pub(super) num_heads: i64,
    /// Width of the MLP's hidden layer; of a gated one, of the gate.
    pub(super) mlp_dim: i64,
    pub(super) patch_size: i64,
    /// Side of the native grid, in patches.
    pub(super) grid: i64,
    /// What the tower pools an image with.
    pub(super) pooling: Pooling,
    /// Register tokens, between CLS and the patches.
    pub(super) registers: i64,
    pub(super) positions: Positions,
    /// CLIP normalises once more, before the first block.
    pub(super) norm_pre: bool,
    /// CLIP's patch projection has no bias.
    pub(super) patch_bias: bool,
    /// Whether the file scales the branches of each block (LayerScale, Touvron et al. 2021). The scales are multiplied into the
    /// branches' last matrices when the file is read, so the tower has nothing to do for them.
    pub(super) layer_scale: bool,
    pub(super) gated_mlp: bool,
    pub(super) norm_eps: f64,
    pub(super) activation: Activation,
    /// The visual projection, where features of that layer are wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) projection: Option<Projection>,
}

/// Where the vector of a whole image comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Pooling {
    /// A CLS token.
    Cls,
    /// Attention of a learned query to all patches, after the final norm (SigLIP).
    Attention,
}

/// How patches know where they are.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Positions {
    /// A table, added before the first block and interpolated for other grids.
    Learned,
    /// Queries and keys of every block are turned; see [`Rotary`].
    Rotary { base: f64 },
}

/// The visual projection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Projection {
    pub(super) out_dim: i64,
    pub(super) bias: bool,
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
        let mut add = |name: String, shape: &[i64]| specs.push(TensorSpec { name, shape: shape.to_vec() });
        let mut linears = Vec::new();
        let mut norms = vec!["norm".to_owned()];
        match self.pooling {
            Pooling::Cls => add("cls_token".to_owned(), &[1, 1, d]),
            Pooling::Attention => {
                add("pool.probe".to_owned(), &[1, 1, d]);
                norms.push("pool.norm".to_owned());
                linears.push(("pool.attn.qkv".to_owned(), 3 * d, d));
                linears.push(("pool.attn.proj".to_owned(), d, d));
                linears.push(("pool.mlp.fc1".to_owned(), m, d));
                linears.push(("pool.mlp.fc2".to_owned(), d, m));
            }
        }
        if self.registers > 0 {
            add("reg_token".to_owned(), &[1, self.registers, d]);
        }
        if self.positions == Positions::Learned {
            add("pos_embed".to_owned(), &[1, self.grid * self.grid, d]);
        }
        add("patch_embed.proj.weight".to_owned(), &[d, 3, p, p]);
        if self.patch_bias {
            add("patch_embed.proj.bias".to_owned(), &[d]);
        }
        if self.norm_pre {
            norms.push("norm_pre".to_owned());
        }
        let fc1_rows = if self.gated_mlp { 2 * m } else { m };
        for i in 0..self.depth {
            norms.push(format!("blocks.{i}.norm1"));
            norms.push(format!("blocks.{i}.norm2"));
            linears.push((format!("blocks.{i}.attn.qkv"), 3 * d, d));
            linears.push((format!("blocks.{i}.attn.proj"), d, d));
            linears.push((format!("blocks.{i}.mlp.fc1"), fc1_rows, d));
            linears.push((format!("blocks.{i}.mlp.fc2"), d, m));
        }
        for (name, out_dim, in_dim) in linears {
            add(format!("{name}.weight"), &[out_dim, in_dim]);
            add(format!("{name}.bias"), &[out_dim]);
        }
        for norm in norms {
            add(format!("{norm}.weight"), &[d]);
            add(format!("{norm}.bias"), &[d]);
        }
        if let Some(Projection { out_dim, bias }) = self.projection {
            add("head.weight".to_owned(), &[out_dim, d]);
            if bias {
                add("head.bias".to_owned(), &[out_dim]);
            }
        }
        specs
    }

    /// Whether positions are antialiased where they are interpolated; see [`crate::pos_interpolate`].
    pub(super) fn antialias(&self) -> bool {
        self.registers > 0
    }

    /// Tokens before the patches.
    pub(super) fn prefix(&self) -> i64 {
        let cls = match self.pooling {
            Pooling::Cls => 1,
            Pooling::Attention => 0,
        };
        cls + self.registers
    }

    /// The base of rotary positions.
    pub(super) fn rotary_base(&self) -> Option<f64> {
        match self.positions {
            Positions::Learned => None,
            Positions::Rotary { base } => Some(base),
        }
    }

    /// The periods of rotary positions, one per pair of a quarter head.
    pub(super) fn rotary_periods(&self) -> Option<Vec<f64>> {
        let quarter = self.width / self.num_heads / 4;
        let base = self.rotary_base()?;
        let periods = (0..quarter).map(|k| base.powf(k as f64 / quarter as f64));
        Some(periods.collect())
    }

    /// What tells this architecture from every other one: `family-vit-w{width}-d{depth}-h{heads}-m{MLP width}-p{patch size}`,
    /// then `-ls` for LayerScale, `-glu` for a gated MLP, `-r4` for 4 registers, `-rope100` for rotary positions of that base.
    pub(super) fn arch(&self) -> String {
        let family = match (self.pooling, self.norm_pre) {
            (Pooling::Attention, _) => "siglip-vit",
            (Pooling::Cls, true) => "clip-vit",
            (Pooling::Cls, false) => "vit",
        };
        let mut arch = format!(
            "{family}-w{}-d{}-h{}-m{}-p{}",
            self.width, self.depth, self.num_heads, self.mlp_dim, self.patch_size
        );
        if self.layer_scale {
            arch.push_str("-ls");
        }
        if self.gated_mlp {
            arch.push_str("-glu");
        }
        if self.registers > 0 {
            arch.push_str(&format!("-r{}", self.registers));
        }
        if let Positions::Rotary { base } = self.positions {
            arch.push_str(&format!("-rope{base}"));
        }
        arch
    }
}

/// The tower.
#[derive(Debug)]
pub(crate) struct VitTower {
    patch_embed: PatchEmbed,
    /// CLS and registers, each `[1, n, D]`, in the order of the tokens. Apart, since they are trained apart.
    prefix: Vec<Tensor>,
    pos_embed: Option<Tensor>,
    norm_pre: Option<LayerNorm>,
    blocks: Vec<Block>,
    norm: LayerNorm,
    pool: Option<AttentionPool>,
    projection: Option<Linear>,
    config: TowerConfig,
    device: Device,
    /// The rotary tables of the grid seen last. They are computed on the host, and a GPU would wait for their copy in every pass.
    rotary: RefCell<Option<((i64, i64), Rotary)>>,
}

/// What a tower computes for a batch.
pub(super) struct TowerOutput {
    /// The residual stream after the last block `[N, P + L, D]`.
    pub(super) x: Tensor,
    /// The attention by which images are pooled, mean over heads, patches only `[N, L]`.
    pub(super) attn: Tensor,
    /// The pooled vector `[N, D]` of a tower without CLS.
    pub(super) pooled: Option<Tensor>,
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
            gated_mlp: config.gated_mlp,
        };
        let norm = |name: &str| LayerNorm::new(&scope.sub(name), config.width, config.norm_eps);
        let token = |name: &str, n: i64| scope.param(name, &[1, n, config.width], Init::Zeros);
        let mut prefix = Vec::new();
        if config.pooling == Pooling::Cls {
            prefix.push(token("cls_token", 1));
        }
        if config.registers > 0 {
            prefix.push(token("reg_token", config.registers));
        }
        Self {
            patch_embed: PatchEmbed::new(&scope.sub("patch_embed"), config.patch_size, config.width, config.patch_bias),
            prefix,
            pos_embed: (config.positions == Positions::Learned).then(|| token("pos_embed", config.grid * config.grid)),
            norm_pre: config.norm_pre.then(|| norm("norm_pre")),
            blocks: (0..config.depth).map(|i| Block::new(&scope.sub("blocks").sub(i), &block)).collect(),
            norm: norm("norm"),
            pool: (config.pooling == Pooling::Attention).then(|| AttentionPool::new(&scope.sub("pool"), &block)),
            projection: config
                .projection
                .map(|Projection { out_dim, bias }| Linear::new(&scope.sub("head"), config.width, out_dim, bias)),
            config: config.clone(),
            device: scope.device(),
            rotary: RefCell::default(),
        }
    }

    /// Tokens before the patches.
    pub(crate) fn num_prefix(&self) -> i64 {
        self.config.prefix()
    }

    /// What the tower was made from.
    pub(super) fn config(&self) -> &TowerConfig {
        &self.config
    }

    /// Cuts images into patches: `[N, 3, H, W] → [N, L, 3p²]`, any kind of number.
    pub(super) fn unfold(&self, imgs: &Tensor) -> Tensor {
        self.patch_embed.unfold(imgs)
    }

    /// The residual stream `[N, P + L, D]` before the first block, of `patches [N, h·w, 3p²]` on the grid `(h, w)`.
    fn embed(&self, patches: &Tensor, grid: (i64, i64)) -> Tensor {
        let n = patches.size()[0];
        let mut x = self.patch_embed.project(patches).to_kind(tch::Kind::Float); // [N, L, D]
        if let Some(pos_embed) = &self.pos_embed {
            x += interpolate(pos_embed, grid, self.config.antialias());
        }
        if !self.prefix.is_empty() {
            let mut tokens: Vec<Tensor> = self.prefix.iter().map(|token| token.expand([n, -1, -1], false)).collect();
            tokens.push(x);
            x = Tensor::cat(&tokens, 1); // [N, P + L, D]
        }
        match &self.norm_pre {
            Some(norm_pre) => norm_pre.forward(&x),
            None => x,
        }
    }

    /// By what every block turns its queries and keys on the grid `(h, w)`.
    fn rotary(&self, grid: (i64, i64)) -> Option<Rotary> {
        let base = self.config.rotary_base()?;
        let head_dim = self.config.width / self.config.num_heads;
        let prefix = self.config.prefix();
        let mut kept = self.rotary.borrow_mut();
        if kept.as_ref().is_none_or(|(of, _)| *of != grid) {
            let rotary = Rotary::axial(base, head_dim, prefix, grid, self.device);
            *kept = Some((grid, rotary));
        }
        kept.as_ref().map(|(_, rotary)| rotary.shallow_clone())
    }

    /// As a network that is trained: `imgs [N, 3, H, W]`, normalised, → `[N, P + L, D]` before the last norm. The frozen tower's
    /// numbers, with gradients.
    pub(crate) fn forward_blocks(&self, imgs: &Tensor, pass: &Pass) -> Tensor {
        let (_, _, height, width) = imgs.size4().expect("imgs are [N, 3, H, W]");
        let patch = self.config.patch_size;
        let grid = (height / patch, width / patch);
        let mut x = self.embed(&self.unfold(imgs), grid);
        let rotary = self.rotary(grid);
        for (i, block) in self.blocks.iter().enumerate() {
            x = pass.block(i, block, &x, rotary.as_ref());
        }
        x
    }

    /// `patches [N, h·w, 3p²]` on the grid `(h, w)`, through all blocks. `visit` sees the residual stream before the first block
    /// and after each one.
    pub(super) fn forward(&self, patches: &Tensor, grid: (i64, i64), mut visit: impl FnMut(&Tensor)) -> TowerOutput {
        let mut x = self.embed(patches, grid);
        visit(&x);
        let num_prefix = self.config.prefix();
        let rotary = self.rotary(grid);
        let (last, before) = self.blocks.split_last().expect("a tower has at least one block");
        for block in before {
            x = block.forward_rotated(&x, rotary.as_ref());
            visit(&x);
        }
        let (x, attn, pooled) = match &self.pool {
            None => {
                let (x, attn) = last.forward_with_cls_attention(&x, rotary.as_ref());
                (x, attn, None)
            }
            Some(pool) => {
                let x = last.forward_rotated(&x, rotary.as_ref());
                let (pooled, attn) = pool.forward(&self.norm(&x));
                (x, attn, Some(pooled))
            }
        };
        visit(&x);
        let attn = attn.narrow(2, num_prefix, grid.0 * grid.1);
        TowerOutput { x, attn: attn.mean_dim(1, false, None), pooled }
    }

    /// The final norm, `[.., D] → [.., D]`.
    pub(crate) fn norm(&self, x: &Tensor) -> Tensor {
        self.norm.forward(x)
    }

    /// The visual projection, `[.., D] → [.., P]`.
    ///
    /// # Panics
    /// If the configuration has none.
    pub(super) fn project(&self, x: &Tensor) -> Tensor {
        let projection = self.projection.as_ref();
        projection.expect("a projection was asked for when the tower was made").forward(x)
    }
}
