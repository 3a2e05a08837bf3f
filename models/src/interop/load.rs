//! Starting a network from an imported student.

use std::collections::BTreeSet;

use super::{Part, Tensors};
use crate::error::{Error, Mismatch, Result};
use crate::params::ParamStore;

/// Which of a network's tensors came from a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// Tensors that came from the file.
    pub taken: Vec<String>,
    /// Tensors of parts that the file lacks; they keep their values.
    pub fresh: Vec<String>,
}

impl Loaded {
    /// The modules of `names`, each with the number of its tensors: `decoder_blocks (96)`.
    pub fn modules(names: &[String]) -> Vec<(String, usize)> {
        let mut modules: Vec<(String, usize)> = Vec::new();
        for name in names {
            let first = name.split('.').next().unwrap_or_default();
            match modules.last_mut() {
                Some((module, count)) if module == first => *count += 1,
                _ => modules.push((first.to_owned(), 1)),
            }
        }
        modules
    }
}

/// Copies `tensors`, under a student's own names, over the values of the network on `params`, converted to f32.
///
/// A part of a student (the decoder, the projections of ConvMAE's stages) is taken whole, or not at all where `tensors` has
/// nothing of it; then it stays as it is. The encoder is always needed, and what belongs to the teachers of a run is never taken. Sine-cosine positions are the network's own where `tensors` has none.
///
/// # Errors
/// [`Error::WeightsMismatch`] with all that is missing, of another shape (both are named) or has no place; then nothing has been
/// changed.
pub fn load_into(params: &ParamStore, tensors: &Tensors, origin: &str) -> Result<Loaded> {
    let parts: BTreeSet<Part> = tensors.keys().map(|name| Part::of(name)).collect();
    let all = params.mismatch(tensors);
    let (mut missing, mut fresh) = (Vec::new(), Vec::new());
    for (name, shape) in all.missing {
        let part = Part::of(&name);
        let is_fixed = matches!(&name[..], "pos_embed" | "decoder_pos_embed");
        let is_whole_part = part != Part::Encoder && !parts.contains(&part);
        if is_fixed || is_whole_part || part == Part::Mimic {
            fresh.push(name);
        } else {
            missing.push((name, shape));
        }
    }
    let mismatch = Mismatch { missing, ..all };
    if !mismatch.is_empty() {
        return Err(Error::WeightsMismatch { origin: origin.to_owned(), mismatch });
    }
    let targets = params.tensors();
    tch::no_grad(|| {
        for (name, tensor) in tensors {
            targets[name].shallow_clone().copy_(tensor);
        }
    });
    Ok(Loaded { taken: tensors.keys().cloned().collect(), fresh })
}
