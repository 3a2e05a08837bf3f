//! The vision transformer of students and teachers: a pre-norm ViT, with CLS and registers or without, with fixed, learned or
//! rotary positions.
//!
//! It agrees with `facebookresearch/mae` as a student and with each teacher's own code as a teacher; parameter names are timm's.
//! There are three ways through it: [`VisionTransformer::forward_encoder`] over the visible patches (MAE),
//! [`VisionTransformer::forward_features`] over whole images, and [`VisionTransformer::forward_with_attention`], which also gives
//! the attention that images are pooled with.

use std::cell::RefCell;

use tch::{Device, Kind, Tensor};

use crate::blocks::{Blocks, Pass};
use crate::error::Result;
use crate::init::Init;
use crate::layers::{AttentionPool, LayerNorm, Linear, PatchEmbed, Rotary};
use crate::masking::Masking;
use crate::params::Scope;
use crate::pos_embed::sincos_2d;
use crate::pos_interpolate::interpolate;
use crate::tokens::gather_rows;

mod arch;
mod config;

pub use config::{Pooling, Positions, Projection, TensorSpec, VitConfig};

/// The network.
#[derive(Debug)]
pub struct VisionTransformer {
    config: VitConfig,
    patch_embed: PatchEmbed,
    /// `[1, 1, D]`.
    cls_token: Option<Tensor>,
    /// `[1, R, D]`. Apart from CLS, since they are trained apart.
    reg_token: Option<Tensor>,
    pos_embed: Option<Tensor>,
    norm_pre: Option<LayerNorm>,
    blocks: Blocks,
    norm: LayerNorm,
    pool: Option<AttentionPool>,
    projection: Option<Linear>,
    device: Device,
    /// The rotary tables of the grid seen last. They are computed on the host, and a GPU would wait for their copy in every pass.
    rotary: RefCell<Option<((i64, i64), Rotary)>>,
}

/// What [`VisionTransformer::forward_with_attention`] gives.
#[derive(Debug)]
pub struct Attended {
    /// The residual stream after the last block `[N, P + L, D]`.
    pub x: Tensor,
    /// The attention by which images are pooled, mean over heads, patches only `[N, L]`.
    pub attn: Tensor,
    /// The pooled vector `[N, D]` of a network without CLS.
    pub pooled: Option<Tensor>,
}

impl VisionTransformer {
    /// Parameters under timm's names directly under `scope`. With sine-cosine positions they start as MAE's
    /// `initialize_weights` does: linear layers and the flattened patch projection xavier-uniform with zero biases (the patch
    /// projection's own bias keeps PyTorch's default), norms 1 and 0, CLS N(0, 0.02²). The tokens and the table of a network
    /// with other positions, which comes from a file, start as zeros.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) if there is no such network.
    pub fn new(scope: &Scope, config: &VitConfig) -> Result<Self> {
        config.validate()?;
        let (dim, [rows, columns]) = (config.embed_dim, config.grid());
        let start = if config.positions == Positions::SinCos { Init::Normal { std: 0.02 } } else { Init::Zeros };
        let norm = |name: &str| LayerNorm::new(&scope.sub(name), dim, config.norm_eps);
        let pos_embed = || match config.positions {
            Positions::SinCos => {
                Some(scope.buffer("pos_embed", &sincos_2d(dim, rows, columns, config.table_prefix() > 0)))
            }
            Positions::Learned => Some(scope.param("pos_embed", &[1, rows * columns, dim], Init::Zeros)),
            Positions::Rotary { .. } => None,
        };
        let head = |Projection { out_dim, bias }| Linear::new(&scope.sub("head"), dim, out_dim, bias);
        let block = config.block();
        Ok(Self {
            patch_embed: PatchEmbed::new(&scope.sub("patch_embed"), config.patch_size, dim, config.patch_bias),
            cls_token: config.cls_token().then(|| scope.param("cls_token", &[1, 1, dim], start)),
            reg_token: (config.registers > 0).then(|| scope.param("reg_token", &[1, config.registers, dim], start)),
            pos_embed: pos_embed(),
            norm_pre: config.norm_pre.then(|| norm("norm_pre")),
            blocks: Blocks::new(scope, "blocks", config.depth, &block, 0),
            norm: norm("norm"),
            pool: (config.pooling == Pooling::Attention).then(|| AttentionPool::new(&scope.sub("pool"), &block)),
            projection: config.projection.map(head),
            config: config.clone(),
            device: scope.device(),
            rotary: RefCell::default(),
        })
    }

    /// What it is made of.
    pub fn config(&self) -> &VitConfig {
        &self.config
    }

    /// Cuts images into patches: `[N, 3, H, W] → [N, L, 3p²]`, any kind of number.
    pub(crate) fn unfold(&self, imgs: &Tensor) -> Tensor {
        self.patch_embed.unfold(imgs)
    }

    /// Encodes the visible patches: `imgs [N, 3, H, W]`, normalized, → latent `[N, P + keep, D]` after the last norm, the patches in
    /// the order of `ids_keep`. With fusion, if the configuration has it.
    ///
    /// One thing is done in another order than in the reference, which embeds all patches and drops three quarters of them: here the
    /// visible ones are cut out first and only they are embedded. Each output is the same sum of products; a masked pixel is not even
    /// read.
    ///
    /// # Panics
    /// With rotary positions, which [`MaeConfig::validate`](crate::mae::MaeConfig::validate) refuses.
    pub fn forward_encoder(&self, imgs: &Tensor, masking: &Masking, pass: &Pass) -> Tensor {
        let patches = gather_rows(&self.unfold(imgs), &masking.ids_keep); // [N, keep, 3p²]
        let positions = self.patch_positions(self.grid_of(imgs)).expect("masked patches have a table of positions");
        let (n, keep) = masking.ids_keep.size2().expect("ids_keep is [N, keep]");
        let positions = positions.get(0).index_select(0, &masking.ids_keep.flatten(0, 1)).reshape([n, keep, -1]);
        let x = self.embed(&patches, Some(&positions)); // [N, P + keep, D]
        self.norm.forward(&self.blocks.forward_fused(&x, &self.config.fusion, None, pass))
    }

    /// Encodes whole images: `imgs [N, 3, H, W]`, normalized, → `[N, P + L, D]`, patches in order, before the last norm and without
    /// fusion: what fine-tuning stands on.
    pub fn forward_blocks(&self, imgs: &Tensor, pass: &Pass) -> Tensor {
        self.whole(imgs, &[], pass)
    }

    /// Encodes whole images: `imgs [N, 3, H, W]`, normalized, → `[N, P + L, D]`, patches in order, after the last norm.
    ///
    /// With `fused` as in pretraining, if the configuration has fusion: the norm's parameters belong to the sum. Without, the last
    /// block alone goes through it, as in packages that know no fusion.
    pub fn forward_features(&self, imgs: &Tensor, fused: bool) -> Tensor {
        let fusion = if fused { &self.config.fusion[..] } else { &[] };
        self.norm.forward(&self.whole(imgs, fusion, &Pass::default()))
    }

    fn whole(&self, imgs: &Tensor, fusion: &[i64], pass: &Pass) -> Tensor {
        let grid = self.grid_of(imgs);
        let x = self.embed(&self.unfold(imgs), self.patch_positions(grid).as_ref());
        self.blocks.forward_fused(&x, fusion, self.rotary(grid).as_ref(), pass)
    }

    /// `patches [N, h·w, 3p²]`, cut by [`PatchEmbed::unfold`] and normalized, on the grid `(h, w)`, through all blocks, with the
    /// attention by which images are pooled. `visit` sees the residual stream before the first block and after each one.
    pub fn forward_with_attention(
        &self,
        patches: &Tensor,
        grid: (i64, i64),
        mut visit: impl FnMut(&Tensor),
    ) -> Attended {
        let mut x = self.embed(patches, self.patch_positions(grid).as_ref());
        visit(&x);
        let rotary = self.rotary(grid);
        let (last, before) = self.blocks.split_last();
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
                let (pooled, attn) = pool.forward(&self.forward_norm(&x));
                (x, attn, Some(pooled))
            }
        };
        visit(&x);
        let attn = attn.narrow(2, self.config.prefix(), grid.0 * grid.1);
        Attended { x, attn: attn.mean_dim(1, false, None), pooled }
    }

    /// The last norm: `[.., D] → [.., D]`.
    pub fn forward_norm(&self, x: &Tensor) -> Tensor {
        self.norm.forward(x)
    }

    /// The visual projection, `[.., D] → [.., out_dim]`.
    ///
    /// # Panics
    /// If the configuration has none.
    pub(crate) fn project(&self, x: &Tensor) -> Tensor {
        let projection = self.projection.as_ref();
        projection.expect("a projection was asked for when the network was made").forward(x)
    }

    /// Rows and columns of patches of `imgs [N, 3, H, W]`.
    fn grid_of(&self, imgs: &Tensor) -> (i64, i64) {
        let (_, _, height, width) = imgs.size4().expect("imgs are [N, 3, H, W]");
        (height / self.config.patch_size, width / self.config.patch_size)
    }

    /// The tokens before the first block: `patches [N, K, 3p²]` and their `positions [1 or N, K, D]` → `[N, P + K, D]`, f32.
    fn embed(&self, patches: &Tensor, positions: Option<&Tensor>) -> Tensor {
        let n = patches.size()[0];
        let mut x = self.patch_embed.project(patches).to_kind(Kind::Float); // [N, K, D]
        if let Some(positions) = positions {
            x += positions;
        }
        let mut tokens: Vec<Tensor> = Vec::new();
        if let Some(cls_token) = &self.cls_token {
            let cls = match &self.pos_embed {
                Some(table) if self.config.table_prefix() > 0 => cls_token + table.narrow(1, 0, 1),
                _ => cls_token.shallow_clone(),
            };
            tokens.push(cls.expand([n, -1, -1], false));
        }
        tokens.extend(self.reg_token.as_ref().map(|token| token.expand([n, -1, -1], false)));
        if !tokens.is_empty() {
            tokens.push(x);
            x = Tensor::cat(&tokens, 1); // [N, P + K, D]
        }
        match &self.norm_pre {
            Some(norm_pre) => norm_pre.forward(&x),
            None => x,
        }
    }

    /// The table of positions of the patches of the grid `(h, w)`, `[1, L, D]`.
    fn patch_positions(&self, grid: (i64, i64)) -> Option<Tensor> {
        let table = self.pos_embed.as_ref()?;
        if self.config.positions == Positions::Learned {
            return Some(interpolate(table, grid, self.config.antialias()));
        }
        let prefix = self.config.table_prefix();
        Some(table.narrow(1, prefix, table.size()[1] - prefix))
    }

    /// What every block turns its queries and keys by on the grid `(h, w)`.
    fn rotary(&self, grid: (i64, i64)) -> Option<Rotary> {
        let base = self.config.rotary_base()?;
        let head_dim = self.config.embed_dim / self.config.num_heads;
        let mut kept = self.rotary.borrow_mut();
        if kept.as_ref().is_none_or(|(of, _)| *of != grid) {
            let rotary = Rotary::axial(base, head_dim, self.config.prefix(), grid, self.device);
            *kept = Some((grid, rotary));
        }
        kept.as_ref().map(|(_, rotary)| rotary.shallow_clone())
    }
}
