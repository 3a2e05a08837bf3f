//! A ViT student's sizes, read off its tensors.

use super::{Tensors, names};
use crate::error::{Error, Mismatch, Result};

/// What the shapes of a ViT student's tensors tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VitShapes {
    /// Side of a patch in pixels.
    pub patch_size: i64,
    /// Width of the encoder.
    pub embed_dim: i64,
    /// Blocks of the encoder.
    pub depth: i64,
    /// Hidden width of an encoder block's MLP.
    pub mlp_dim: i64,
    /// Patches of an image, where there is a table of positions.
    pub num_patches: Option<i64>,
    /// The decoder's, where there is one.
    pub decoder: Option<DecoderShapes>,
}

/// What the shapes of a decoder's tensors tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecoderShapes {
    /// Width of the decoder.
    pub embed_dim: i64,
    /// Blocks of the decoder.
    pub depth: i64,
    /// Hidden width of a decoder block's MLP.
    pub mlp_dim: i64,
}

impl VitShapes {
    /// The sizes of a student under its own names.
    ///
    /// # Errors
    /// [`Error::WeightsMismatch`] with the tensors that everything else is measured by, where they are missing or have another
    /// number of axes.
    pub fn of(tensors: &Tensors) -> Result<VitShapes> {
        let mut sizes = Sizes {
            tensors,
            mismatch: Mismatch::default(),
        };
        let patch = sizes.get("patch_embed.proj.weight", 4);
        let mlp = sizes.get("blocks.0.mlp.fc1.weight", 2);
        let decoder = tensors.contains_key("decoder_embed.weight").then(|| {
            let width = sizes.get("decoder_embed.weight", 2);
            let mlp = sizes.get("decoder_blocks.0.mlp.fc1.weight", 2);
            DecoderShapes {
                embed_dim: width[0],
                depth: count(tensors, "decoder_blocks."),
                mlp_dim: mlp[0],
            }
        });
        let positions = tensors.get("pos_embed").map(|_| sizes.get("pos_embed", 3));
        sizes.finish()?;
        let cls = i64::from(tensors.contains_key("cls_token"));
        Ok(VitShapes {
            patch_size: patch[2],
            embed_dim: patch[0],
            depth: count(tensors, "blocks."),
            mlp_dim: mlp[0],
            num_patches: positions.map(|shape| (shape[1] - cls).max(0)),
            decoder,
        })
    }
}

/// Looks up shapes and remembers every one that is not there.
pub(super) struct Sizes<'a> {
    pub(super) tensors: &'a Tensors,
    pub(super) mismatch: Mismatch,
}

impl Sizes<'_> {
    /// The shape of `name`, which has `axes` axes; where it has not, ones, and the difference is kept.
    pub(super) fn get(&mut self, name: &str, axes: usize) -> Vec<i64> {
        match self.tensors.get(name).map(tch::Tensor::size) {
            Some(shape) if shape.len() == axes => shape,
            found => {
                let expected = vec![-1; axes];
                match found {
                    None => self.mismatch.missing.push((name.to_owned(), expected)),
                    Some(found) => self.mismatch.misshaped.push(crate::error::Misshaped {
                        name: name.to_owned(),
                        found,
                        expected,
                    }),
                }
                vec![1; axes]
            }
        }
    }

    pub(super) fn finish(self) -> Result<()> {
        if self.mismatch.is_empty() {
            return Ok(());
        }
        Err(Error::WeightsMismatch {
            origin: "the student".to_owned(),
            mismatch: self.mismatch,
        })
    }
}

/// Blocks whose names begin with `prefix`: one more than the largest number, or 0. A map cannot hold more blocks than tensors, so
/// larger numbers are damage.
pub(super) fn count(tensors: &Tensors, prefix: &str) -> i64 {
    let numbers = tensors
        .keys()
        .filter_map(|name| Some(names::numbered(name, prefix)?.0))
        .filter(|&number| number < tensors.len() as i64);
    numbers.max().map_or(0, |last| last + 1)
}
