//! Heads that predict teachers' tokens from the student's.

use std::collections::BTreeMap;

use tch::Tensor;

use crate::layers::Linear;
use crate::params::Scope;

/// One linear layer per teacher, as in the paper: no norm, no hidden layer. Used in pretraining alone.
#[derive(Debug)]
pub struct MimicHeads {
    heads: BTreeMap<String, Linear>,
}

impl MimicHeads {
    /// Parameters `<teacher>.{weight [K, D], bias [K]}` under `scope` for each (teacher, `K`), over tokens of width `dim`.
    pub fn new<'a>(scope: &Scope, dim: i64, teachers: impl IntoIterator<Item = (&'a str, i64)>) -> Self {
        let head = |(id, width): (&str, i64)| (id.to_owned(), Linear::new(&scope.sub(id), dim, width, true));
        Self { heads: teachers.into_iter().map(head).collect() }
    }

    /// The teachers there is a head for.
    pub fn teachers(&self) -> impl Iterator<Item = &str> {
        self.heads.keys().map(String::as_str)
    }

    /// What the head of `teacher` makes of the student's tokens: `[.., D] → [.., K]`.
    ///
    /// # Panics
    /// If there is no such head.
    pub fn forward(&self, teacher: &str, tokens: &Tensor) -> Tensor {
        self.heads.get(teacher).unwrap_or_else(|| panic!("no mimic head for {teacher}")).forward(tokens)
    }
}
