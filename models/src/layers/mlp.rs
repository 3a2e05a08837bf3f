//! The MLP of a block and its non-linearities.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::Linear;
use crate::params::Scope;

/// The non-linearity of the MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x Φ(x)`, with erf, not its tanh approximation.
    Gelu,
    /// The tanh approximation of GELU, what JAX calls `gelu` (SigLIP, CLIPA).
    GeluTanh,
    /// `x σ(1.702 x)`, what OpenAI's CLIP was trained with.
    QuickGelu,
    /// `x σ(x)`, the gate of gated MLPs.
    Silu,
}

impl Activation {
    /// All of them.
    pub const ALL: [Activation; 4] = [Activation::Gelu, Activation::GeluTanh, Activation::QuickGelu, Activation::Silu];

    /// Elementwise.
    pub fn forward(self, x: &Tensor) -> Tensor {
        match self {
            Activation::Gelu => x.gelu("none"),
            Activation::GeluTanh => x.gelu("tanh"),
            Activation::QuickGelu => x * (x * 1.702).sigmoid(),
            Activation::Silu => x.silu(),
        }
    }

    /// The name in recipes, on command lines and in cache identities.
    pub fn name(self) -> &'static str {
        match self {
            Activation::Gelu => "gelu",
            Activation::GeluTanh => "gelu_tanh",
            Activation::QuickGelu => "quick_gelu",
            Activation::Silu => "silu",
        }
    }
}

impl fmt::Display for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Activation {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Activation::ALL.into_iter().find(|activation| activation.name() == name).ok_or_else(|| {
            format!("unknown activation {name:?}; there are {}", Activation::ALL.map(Activation::name).join(", "))
        })
    }
}

/// `fc2(act(fc1(x)))`, or gated, `fc2(act(gate) · up)` with `[gate, up] = fc1(x)`.
#[derive(Debug)]
pub struct Mlp {
    fc1: Linear,
    fc2: Linear,
    activation: Activation,
    gated: bool,
}

impl Mlp {
    /// Parameters `fc1 [hidden_dim, dim]` and `fc2 [dim, hidden_dim]`, with biases.
    pub fn new(scope: &Scope, dim: i64, hidden_dim: i64, activation: Activation) -> Self {
        Self {
            fc1: Linear::new(&scope.sub("fc1"), dim, hidden_dim, true),
            fc2: Linear::new(&scope.sub("fc2"), hidden_dim, dim, true),
            activation,
            gated: false,
        }
    }

    /// Parameters `fc1 [2 hidden_dim, dim]`, the gate's rows first, and `fc2 [dim, hidden_dim]`, with biases (Shazeer 2020,
    /// "GLU Variants Improve Transformer"; the order of DINOv2's `w12`).
    pub fn gated(scope: &Scope, dim: i64, hidden_dim: i64, activation: Activation) -> Self {
        Self {
            fc1: Linear::new(&scope.sub("fc1"), dim, 2 * hidden_dim, true),
            fc2: Linear::new(&scope.sub("fc2"), hidden_dim, dim, true),
            activation,
            gated: true,
        }
    }

    /// Another handle on the same parameters.
    pub(crate) fn shallow_clone(&self) -> Self {
        Self { fc1: self.fc1.shallow_clone(), fc2: self.fc2.shallow_clone(), ..*self }
    }

    /// `[.., D] → [.., D]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let x = self.fc1.forward(x);
        if !self.gated {
            return self.fc2.forward(&self.activation.forward(&x));
        }
        let half = x.size().last().expect("tokens have a width") / 2;
        let gate = self.activation.forward(&x.narrow(-1, 0, half));
        self.fc2.forward(&(gate * x.narrow(-1, half, half)))
    }
}
