//! A student's sizes, read off its tensors.

use crate::error::{Error, Mismatch, Misshaped, Result};
use crate::params::Tensors;

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
        let mut sizes = Sizes::of(tensors);
        let patch = sizes.get("patch_embed.proj.weight", 4);
        let mlp = sizes.get("blocks.0.mlp.fc1.weight", 2);
        let decoder = sizes.decoder();
        let num_patches = sizes.num_patches();
        sizes.finish()?;
        Ok(VitShapes {
            patch_size: patch[2],
            embed_dim: patch[0],
            depth: num_blocks(tensors, "blocks."),
            mlp_dim: mlp[0],
            num_patches,
            decoder,
        })
    }
}

/// What the shapes of an MCMAE student's tensors tell, for its three stages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct McmaeShapes {
    /// Sides of the cells that each stage puts together.
    pub patch_sizes: [i64; 3],
    /// Widths.
    pub embed_dims: [i64; 3],
    /// Blocks.
    pub depths: [i64; 3],
    /// Hidden widths of the blocks' MLPs.
    pub mlp_dims: [i64; 3],
    /// Patches of an image, where there is a table of positions.
    pub num_patches: Option<i64>,
    /// The decoder's, where there is one.
    pub decoder: Option<DecoderShapes>,
}

impl McmaeShapes {
    /// The sizes of a student under its own names.
    ///
    /// # Errors
    /// As [`VitShapes::of`].
    pub fn of(tensors: &Tensors) -> Result<McmaeShapes> {
        let mut sizes = Sizes::of(tensors);
        let proj = [1, 2, 3].map(|stage| sizes.get(&format!("patch_embed{stage}.proj.weight"), 4));
        let mlp = [(1, 4), (2, 4), (3, 2)]
            .map(|(stage, axes)| sizes.get(&format!("blocks{stage}.0.mlp.fc1.weight"), axes)[0]);
        let num_patches = sizes.num_patches();
        let decoder = sizes.decoder();
        sizes.finish()?;
        Ok(McmaeShapes {
            patch_sizes: [0, 1, 2].map(|stage| proj[stage][2]),
            embed_dims: [0, 1, 2].map(|stage| proj[stage][0]),
            depths: [1, 2, 3].map(|stage| num_blocks(tensors, &format!("blocks{stage}."))),
            mlp_dims: mlp,
            num_patches,
            decoder,
        })
    }
}

/// Looks up shapes and remembers every one that is not there.
struct Sizes<'a> {
    tensors: &'a Tensors,
    mismatch: Mismatch,
}

impl Sizes<'_> {
    fn of(tensors: &Tensors) -> Sizes<'_> {
        Sizes { tensors, mismatch: Mismatch::default() }
    }

    fn decoder(&mut self) -> Option<DecoderShapes> {
        self.tensors.contains_key("decoder_embed.weight").then(|| DecoderShapes {
            embed_dim: self.get("decoder_embed.weight", 2)[0],
            depth: num_blocks(self.tensors, "decoder_blocks."),
            mlp_dim: self.get("decoder_blocks.0.mlp.fc1.weight", 2)[0],
        })
    }

    /// Rows of the table of positions, without that of CLS.
    fn num_patches(&mut self) -> Option<i64> {
        let cls = i64::from(self.tensors.contains_key("cls_token"));
        let table = self.tensors.contains_key("pos_embed").then(|| self.get("pos_embed", 3));
        table.map(|shape| (shape[1] - cls).max(0))
    }

    /// The shape of `name`, which has `axes` axes; where it has not, ones, and the difference is kept.
    fn get(&mut self, name: &str, axes: usize) -> Vec<i64> {
        match self.tensors.get(name).map(tch::Tensor::size) {
            Some(shape) if shape.len() == axes => shape,
            found => {
                let expected = vec![-1; axes];
                match found {
                    None => self.mismatch.missing.push((name.to_owned(), expected)),
                    Some(found) => self.mismatch.misshaped.push(Misshaped { name: name.to_owned(), found, expected }),
                }
                vec![1; axes]
            }
        }
    }

    fn finish(self) -> Result<()> {
        if self.mismatch.is_empty() {
            return Ok(());
        }
        Err(Error::WeightsMismatch { origin: "the student".to_owned(), mismatch: self.mismatch })
    }
}

/// Blocks whose names begin with `prefix`: one more than the largest number, or 0. A map cannot hold more blocks than tensors, so
/// larger numbers are damage.
pub(crate) fn num_blocks(tensors: &Tensors, prefix: &str) -> i64 {
    let numbers = tensors
        .keys()
        .filter_map(|name| Some(numbered(name, prefix)?.0))
        .filter(|&number| number < tensors.len() as i64);
    numbers.max().map_or(0, |last| last + 1)
}

/// A name that begins with `prefix` and a block's number: the number and what follows it.
pub(crate) fn numbered<'n>(name: &'n str, prefix: &str) -> Option<(i64, &'n str)> {
    let (number, rest) = name.strip_prefix(prefix)?.split_once('.')?;
    // Digits alone: "+1" and "01" would be read as 1, and two names would be one.
    let plain = number.bytes().all(|b| b.is_ascii_digit()) && (number == "0" || !number.starts_with('0'));
    Some((number.parse().ok().filter(|_| plain)?, rest))
}
