//! Heads that predict teachers' tokens from the student's.

use std::collections::BTreeMap;

use tch::Tensor;

use crate::layers::{Activation, LayerNorm, Linear};
use crate::params::Scope;

/// eps of the norm in [`HeadKind::Mlp`]: PyTorch's default, which NVIDIA TAO's heads have; EUPE does not state it.
const NORM_EPS: f64 = 1e-5;

/// What a mimic head is made of. Heads are used in pretraining alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HeadKind {
    /// One linear layer, as in the paper: no norm, no hidden layer.
    #[default]
    Linear,
    /// Linear without bias, LayerNorm, GELU, linear without bias: the adapter head of EUPE (arXiv 2603.22387, section 4.1) for each teacher
    /// and kind of token.
    Mlp {
        /// Width of the hidden layer.
        hidden: i64,
    },
}

/// A head for the tokens of one teacher.
#[derive(Debug)]
pub struct MimicHead(Layers);

#[derive(Debug)]
enum Layers {
    Linear(Linear),
    Mlp { fc1: Linear, norm: LayerNorm, fc2: Linear },
}

impl MimicHead {
    /// From tokens of width `dim` to those of width `width` (`K`). Parameters directly under `scope`: `weight [K, D]` and `bias [K]` of a
    /// linear head; `fc1.weight [hidden, D]`, `norm.{weight, bias} [hidden]` and `fc2.weight [K, hidden]` of an MLP.
    pub fn new(scope: &Scope, kind: HeadKind, dim: i64, width: i64) -> Self {
        Self(match kind {
            HeadKind::Linear => Layers::Linear(Linear::new(scope, dim, width, true)),
            HeadKind::Mlp { hidden } => Layers::Mlp {
                fc1: Linear::new(&scope.sub("fc1"), dim, hidden, false),
                norm: LayerNorm::new(&scope.sub("norm"), hidden, NORM_EPS),
                fc2: Linear::new(&scope.sub("fc2"), hidden, width, false),
            },
        })
    }

    /// What the head makes of the student's tokens: `[.., D] → [.., K]`.
    pub fn forward(&self, tokens: &Tensor) -> Tensor {
        match &self.0 {
            Layers::Linear(linear) => linear.forward(tokens),
            Layers::Mlp { fc1, norm, fc2 } => {
                fc2.forward(&Activation::Gelu.forward(&norm.forward(&fc1.forward(tokens))))
            }
        }
    }
}

/// A head for each teacher.
#[derive(Debug)]
pub(crate) struct MimicHeads {
    heads: BTreeMap<String, MimicHead>,
}

impl MimicHeads {
    /// Heads under `scope`, each in the scope of its teacher's id, for each (teacher, kind, `K`), over tokens of width `dim`.
    pub(crate) fn new<'a>(
        scope: &Scope,
        dim: i64,
        teachers: impl IntoIterator<Item = (&'a str, HeadKind, i64)>,
    ) -> Self {
        let head = |(id, kind, width): (&str, HeadKind, i64)| {
            (id.to_owned(), MimicHead::new(&scope.sub(id), kind, dim, width))
        };
        Self { heads: teachers.into_iter().map(head).collect() }
    }

    /// What the head of `teacher` makes of the student's tokens: `[.., D] → [.., K]`.
    ///
    /// # Panics
    /// If there is no such head.
    pub(crate) fn forward(&self, teacher: &str, tokens: &Tensor) -> Tensor {
        self.heads.get(teacher).unwrap_or_else(|| panic!("no mimic head for {teacher}")).forward(tokens)
    }
}
