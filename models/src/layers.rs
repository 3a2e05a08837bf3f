//! The layers of a vision transformer.
//!
//! Parameter names are those of timm's and MAE's ViT: `attn.qkv`, `attn.proj`, `mlp.fc1`, `mlp.fc2`, `norm1`, `norm2`. Every
//! LayerNorm takes its eps from the caller, because the towers differ (MAE and DINO 1e-6, CLIP 1e-5) and a wrong default is
//! silent. Under bf16 autocast linear layers and attention compute in bf16; norms, softmax and the residual stream stay f32.
//!
//! Shapes: `N` images, `T` tokens, `D` width, `H` heads, `d = D/H`, `p` patch size.

use tch::{Device, Kind, Tensor};
use torch_ext::linear;

use crate::init::Init;
use crate::params::Scope;

mod attention_pool;
mod mlp;
mod rotary;

pub use attention_pool::AttentionPool;
pub use mlp::{Activation, Mlp};
pub use rotary::Rotary;

/// `x Wᵀ + b`.
#[derive(Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// Parameters `weight [out_dim, in_dim]`, xavier-uniform, and, if `bias`, `bias [out_dim]`, zero.
    pub fn new(scope: &Scope, in_dim: i64, out_dim: i64, bias: bool) -> Self {
        Self::started(scope, in_dim, out_dim, bias, Init::XavierUniform)
    }

    /// [`Linear::new`] with another start of the weight.
    pub(crate) fn started(scope: &Scope, in_dim: i64, out_dim: i64, bias: bool, weight: Init) -> Self {
        Self {
            weight: scope.param("weight", &[out_dim, in_dim], weight),
            bias: bias.then(|| scope.param("bias", &[out_dim], Init::Zeros)),
        }
    }

    /// Another handle on the same parameters.
    pub(crate) fn shallow_clone(&self) -> Self {
        Self { weight: self.weight.shallow_clone(), bias: self.bias.as_ref().map(Tensor::shallow_clone) }
    }

    /// `[.., in_dim] → [.., out_dim]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        linear(x, &self.weight, self.bias.as_ref())
    }

    /// The outputs `start..start + len` only, without computing the others.
    fn forward_rows(&self, x: &Tensor, start: i64, len: i64) -> Tensor {
        let bias = self.bias.as_ref().map(|b| b.narrow(0, start, len));
        linear(x, &self.weight.narrow(0, start, len), bias.as_ref())
    }
}

/// eps of every norm of MAE's transformer blocks, where PyTorch's default would be 1e-5.
pub(crate) const NORM_EPS: f64 = 1e-6;

/// LayerNorm over the last axis with scale and shift, always in f32.
#[derive(Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// Parameters `weight [dim]`, one, and `bias [dim]`, zero.
    pub fn new(scope: &Scope, dim: i64, eps: f64) -> Self {
        Self { weight: scope.param("weight", &[dim], Init::Ones), bias: scope.param("bias", &[dim], Init::Zeros), eps }
    }

    /// Another handle on the same parameters.
    pub(crate) fn shallow_clone(&self) -> Self {
        Self { weight: self.weight.shallow_clone(), bias: self.bias.shallow_clone(), eps: self.eps }
    }

    /// `[.., dim] → [.., dim]`, f32.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let dim = self.weight.size();
        x.to_kind(Kind::Float).layer_norm(dim, Some(&self.weight), Some(&self.bias), self.eps, true)
    }
}

/// Non-overlapping patches, each projected to `D` numbers.
///
/// The parameter has the convolution's name and shape, `proj.weight [D, 3, p, p]`; it is computed as the matrix product it is,
/// which lets MAE embed the visible patches alone.
#[derive(Debug)]
pub struct PatchEmbed {
    weight: Tensor,
    bias: Option<Tensor>,
    patch_size: i64,
}

impl PatchEmbed {
    /// Parameters `proj.weight`, xavier-uniform on the flattened patch as in MAE, and, if `bias` (CLIP has none),
    /// `proj.bias [D]`, which MAE leaves at PyTorch's default for convolutions, uniform in ±1/√(3p²).
    pub fn new(scope: &Scope, patch_size: i64, dim: i64, bias: bool) -> Self {
        let proj = scope.sub("proj");
        let fan_in = 3 * patch_size * patch_size;
        let bias_init = Init::Uniform { bound: (fan_in as f64).sqrt().recip() };
        Self {
            weight: proj.param("weight", &[dim, 3, patch_size, patch_size], Init::XavierUniform),
            bias: bias.then(|| proj.param("bias", &[dim], bias_init)),
            patch_size,
        }
    }

    /// Cuts `imgs [N, 3, H, W]` into patches `[N, L, 3p²]`, row-major over the grid; within a patch channel, row, column, the
    /// order of `proj.weight` (not that of [`patchify`](crate::mae::patchify)).
    ///
    /// # Panics
    /// If `p` does not divide `H` and `W`.
    pub fn unfold(&self, imgs: &Tensor) -> Tensor {
        let p = self.patch_size;
        let (n, c, height, width) = imgs.size4().expect("imgs are [N, 3, H, W]");
        assert!(height % p == 0 && width % p == 0, "{height}x{width} is no whole number of {p}x{p} patches");
        let (h, w) = (height / p, width / p);
        let patches = imgs.reshape([n, c, h, p, w, p]).permute([0, 2, 4, 1, 3, 5]); // [N, h, w, c, p, p]
        patches.reshape([n, h * w, c * p * p])
    }

    /// Projects any patches cut by [`PatchEmbed::unfold`]: `[N, K, 3p²] → [N, K, D]`.
    pub fn project(&self, patches: &Tensor) -> Tensor {
        linear(patches, &self.weight.flatten(1, -1), self.bias.as_ref())
    }

    /// `[N, 3, H, W] → [N, L, D]`.
    pub fn forward(&self, imgs: &Tensor) -> Tensor {
        self.project(&self.unfold(imgs))
    }
}

/// Multi-head self-attention, scale `1/√d`.
#[derive(Debug)]
pub struct Attention {
    qkv: Linear,
    proj: Linear,
    num_heads: i64,
}

impl Attention {
    /// Parameters `qkv.weight [3D, D]` (q, k, v stacked in this order), `proj.weight [D, D]`, `proj.bias [D]`, and, if
    /// `qkv_bias`, `qkv.bias [3D]`.
    ///
    /// # Panics
    /// If `num_heads` does not divide `dim`.
    pub fn new(scope: &Scope, dim: i64, num_heads: i64, qkv_bias: bool) -> Self {
        assert!(dim % num_heads == 0, "{num_heads} heads do not divide a width of {dim}");
        Self {
            qkv: Linear::new(&scope.sub("qkv"), dim, 3 * dim, qkv_bias),
            proj: Linear::new(&scope.sub("proj"), dim, dim, true),
            num_heads,
        }
    }

    /// Another handle on the same parameters.
    pub(crate) fn shallow_clone(&self) -> Self {
        Self { qkv: self.qkv.shallow_clone(), proj: self.proj.shallow_clone(), num_heads: self.num_heads }
    }

    /// `[N, T, D] → [N, T, D]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        self.forward_rotated(x, None)
    }

    /// [`Attention::forward`] with queries and keys turned by `rotary`, which covers all `T` tokens.
    pub fn forward_rotated(&self, x: &Tensor, rotary: Option<&Rotary>) -> Tensor {
        let [q, k, v] = self.qkv_heads(x, rotary);
        self.attend(&q, &k, &v)
    }

    /// [`Attention::forward_rotated`] and [`Attention::cls_attention`] (of the turned queries and keys) from one projection.
    pub fn forward_with_cls_attention(&self, x: &Tensor, rotary: Option<&Rotary>) -> (Tensor, Tensor) {
        let [q, k, v] = self.qkv_heads(x, rotary);
        let row = cls_row(&q.narrow(2, 0, 1), &k);
        (self.attend(&q, &k, &v), row)
    }

    /// Attention of `query [1, 1, D]`, the same for every image, to the tokens `x [N, T, D]`: the result `[N, 1, D]` and the
    /// weights `[N, H, T]`, f32. The query is projected as any token is.
    pub fn pool(&self, query: &Tensor, x: &Tensor) -> (Tensor, Tensor) {
        let (n, _, dim) = x.size3().expect("tokens are [N, T, D]");
        let q = self.heads(&self.qkv.forward_rows(query, 0, dim)); // [1, H, 1, d]
        let mut kv = self.qkv.forward_rows(x, dim, 2 * dim).chunk(2, -1); // 2 × [N, T, D]
        let v = self.heads(&kv.pop().expect("chunk(2) gives two"));
        let k = self.heads(&kv.pop().expect("chunk(2) gives two"));
        let row = cls_row(&q, &k);
        (self.attend(&q.expand([n, -1, -1, -1], false), &k, &v), row)
    }

    /// How much the first token attends to each token: softmax of its query against all keys, `[N, T, D] → [N, H, T]`, f32.
    ///
    /// One row is computed, never the `[T, T]` matrix. `x` is what [`Attention::forward`] takes, so already normalised.
    pub fn cls_attention(&self, x: &Tensor) -> Tensor {
        let dim = x.size()[2];
        let q = self.heads(&self.qkv.forward_rows(&x.narrow(1, 0, 1), 0, dim)); // [N, H, 1, d]
        let k = self.heads(&self.qkv.forward_rows(x, dim, dim)); // [N, H, T, d]
        cls_row(&q, &k)
    }

    fn qkv_heads(&self, x: &Tensor, rotary: Option<&Rotary>) -> [Tensor; 3] {
        let mut parts = self.qkv.forward(x).chunk(3, -1); // 3 × [N, T, D]
        let v = parts.pop().expect("chunk(3) gives three");
        let k = parts.pop().expect("chunk(3) gives three");
        let q = parts.pop().expect("chunk(3) gives three");
        let [q, k, v] = [self.heads(&q), self.heads(&k), self.heads(&v)];
        match rotary {
            None => [q, k, v],
            Some(rotary) => [rotary.turn(&q), rotary.turn(&k), v],
        }
    }

    /// `[N, T, D] → [N, H, T, d]`.
    fn heads(&self, x: &Tensor) -> Tensor {
        let (n, t, dim) = x.size3().expect("tokens are [N, T, D]");
        x.reshape([n, t, self.num_heads, dim / self.num_heads]).transpose(1, 2)
    }

    fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
        let x = if q.kind() == Kind::BFloat16 && q.device() == Device::Cpu {
            // The fused CPU kernel of libtorch 2.11 takes bf16 no faster than f32. Plain products use the processor's bf16
            // units: ViT-B at 16 x 197 tokens 1.8 times as fast forward and 2.8 times with backward (one Zen 5 thread). The
            // softmax sums in f32 inside and rounds its result, as the fused kernel does before the second product.
            let scale = (q.size()[3] as f64).powf(-0.5);
            let scores = (q * scale).matmul(&k.transpose(-2, -1)); // [N, H, T, T]
            scores.softmax(-1, Kind::BFloat16).matmul(v)
        } else {
            let no_mask = None::<Tensor>;
            Tensor::scaled_dot_product_attention(q, k, v, no_mask, 0.0, false, None, false)
        }; // [N, H, T, d]
        self.proj.forward(&x.transpose(1, 2).flatten(2, 3))
    }
}

/// `q [N, H, 1, d]`, `k [N, H, T, d]` → `[N, H, T]`, the softmax in f32.
fn cls_row(q: &Tensor, k: &Tensor) -> Tensor {
    let head_dim = q.size()[3] as f64;
    let scores = (q * head_dim.powf(-0.5)).matmul(&k.transpose(-2, -1)); // [N, H, 1, T]
    scores.squeeze_dim(2).softmax(-1, Kind::Float)
}

/// What a [`Block`] is made of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BlockConfig {
    /// Width `D`.
    pub dim: i64,
    /// Attention heads; divides `dim`.
    pub num_heads: i64,
    /// Width of the MLP's hidden layer, `4 D` in every published tower.
    pub mlp_dim: i64,
    /// Whether q, k and v have biases.
    pub qkv_bias: bool,
    /// eps of both norms.
    pub norm_eps: f64,
    /// The MLP's non-linearity.
    pub activation: Activation,
    /// Whether the MLP is gated; see [`Mlp::gated`].
    pub gated_mlp: bool,
}

/// A pre-norm transformer block: `x + attn(norm1(x))`, then `x + mlp(norm2(x))`.
#[derive(Debug)]
pub struct Block {
    norm1: LayerNorm,
    attn: Attention,
    norm2: LayerNorm,
    mlp: Mlp,
}

impl Block {
    /// Parameters `norm1.*`, `attn.*`, `norm2.*`, `mlp.*`.
    pub fn new(scope: &Scope, config: &BlockConfig) -> Self {
        Self {
            norm1: LayerNorm::new(&scope.sub("norm1"), config.dim, config.norm_eps),
            attn: Attention::new(&scope.sub("attn"), config.dim, config.num_heads, config.qkv_bias),
            norm2: LayerNorm::new(&scope.sub("norm2"), config.dim, config.norm_eps),
            mlp: if config.gated_mlp {
                Mlp::gated(&scope.sub("mlp"), config.dim, config.mlp_dim, config.activation)
            } else {
                Mlp::new(&scope.sub("mlp"), config.dim, config.mlp_dim, config.activation)
            },
        }
    }

    /// Another handle on the same parameters.
    pub(crate) fn shallow_clone(&self) -> Self {
        Self {
            norm1: self.norm1.shallow_clone(),
            attn: self.attn.shallow_clone(),
            norm2: self.norm2.shallow_clone(),
            mlp: self.mlp.shallow_clone(),
        }
    }

    /// `[N, T, D] → [N, T, D]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        self.forward_rotated(x, None)
    }

    /// [`Block::forward`] with attention turned by `rotary`.
    pub fn forward_rotated(&self, x: &Tensor, rotary: Option<&Rotary>) -> Tensor {
        let x = x + self.attn.forward_rotated(&self.norm1.forward(x), rotary);
        &x + self.mlp.forward(&self.norm2.forward(&x))
    }

    /// [`Block::forward_rotated`] in training, the two branches scaled by `drop` (each `[N, 1, 1]`, see
    /// [`DropPath`](crate::drop_path::DropPath)).
    pub fn forward_dropped(&self, x: &Tensor, rotary: Option<&Rotary>, drop: Option<&[Tensor; 2]>) -> Tensor {
        let Some([attn, mlp]) = drop else {
            return self.forward_rotated(x, rotary);
        };
        let x = x + self.attn.forward_rotated(&self.norm1.forward(x), rotary) * attn;
        &x + self.mlp.forward(&self.norm2.forward(&x)) * mlp
    }

    /// [`Block::forward_rotated`], and how much the first token attends to each token `[N, H, T]`.
    pub fn forward_with_cls_attention(&self, x: &Tensor, rotary: Option<&Rotary>) -> (Tensor, Tensor) {
        let (y, row) = self.attn.forward_with_cls_attention(&self.norm1.forward(x), rotary);
        let x = x + y;
        (&x + self.mlp.forward(&self.norm2.forward(&x)), row)
    }

    /// This block's [`Attention::cls_attention`] `[N, H, T]` for the block's input `x [N, T, D]`, without the block's output.
    pub fn cls_attention(&self, x: &Tensor) -> Tensor {
        self.attn.cls_attention(&self.norm1.forward(x))
    }
}

#[cfg(test)]
mod tests;
