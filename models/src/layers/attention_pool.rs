//! SigLIP's head: a learned query attends to the patches (Zhai et al. 2023; `MAPHead` of big_vision).

use tch::{Kind, Tensor};

use super::{Attention, BlockConfig, LayerNorm, Mlp};
use crate::init::Init;
use crate::params::Scope;

/// `y = attention(probe, x)`, then `y + mlp(norm(y))`: the query itself is not added.
#[derive(Debug)]
pub struct AttentionPool {
    probe: Tensor,
    attn: Attention,
    norm: LayerNorm,
    mlp: Mlp,
}

impl AttentionPool {
    /// Parameters `probe [1, 1, D]`, `attn.*`, `norm.*` and `mlp.*`, in the sizes of a block of the tower.
    pub fn new(scope: &Scope, config: &BlockConfig) -> Self {
        Self {
            probe: scope.param("probe", &[1, 1, config.dim], Init::Zeros),
            attn: Attention::new(&scope.sub("attn"), config.dim, config.num_heads, true),
            norm: LayerNorm::new(&scope.sub("norm"), config.dim, config.norm_eps),
            mlp: Mlp::new(&scope.sub("mlp"), config.dim, config.mlp_dim, config.activation),
        }
    }

    /// Patches after the final norm `[N, L, D]` → the image's vector `[N, D]`, and the attention it was made with `[N, H, L]`.
    pub fn forward(&self, x: &Tensor) -> (Tensor, Tensor) {
        let (y, attn) = self.attn.pool(&self.probe, x);
        let y = y.to_kind(Kind::Float);
        let y = &y + self.mlp.forward(&self.norm.forward(&y)); // [N, 1, D]
        (y.squeeze_dim(1), attn)
    }
}
