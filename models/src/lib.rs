//! Networks, losses and weight names: CLIP, DINO and SigLIP towers, the masked autoencoder, mimic heads.
//!
//! No data sets, no loops, no command line. The letters in shapes mean the same everywhere:
//!
//! | letter | meaning |
//! |---|---|
//! | `N` | images of a batch |
//! | `H`, `W` | pixels of an image, both multiples of `p` |
//! | `p` | side of a patch in pixels |
//! | `L` | patches of an image, `(H/p)·(W/p)`, row-major |
//! | `keep` | patches of an image that the student sees |
//! | `T` | tokens, patches and CLS and whatever else a tower has |
//! | `D` | width of a token |
//! | `K` | width of a teacher's token |
//!
//! A student, from the bottom: [`params`] (named tensors), [`init`], [`layers`], [`drop_path`], [`blocks`], [`pos_embed`],
//! [`masking`], [`vit`], [`mcmae`] (Gao et al. 2022, convolutions before the transformer), [`encoder`] (either), [`decoder`],
//! [`mae`] (He et al. 2022), [`mimic`] (heads for each teacher), [`targets`], [`cls_target`], [`losses`], [`teacher_drop`], [`mr_mae`]
//! (Gao et al. 2023, all of it together); in other packages' files: [`interop`]. Teachers: [`teacher`], loaded
//! through [`weights`].

pub mod blocks;
pub mod classifier;
pub mod cls_target;
pub mod decoder;
pub mod drop_path;
pub mod encoder;
pub mod error;
pub mod flops;
pub mod init;
pub mod interop;
mod json;
pub mod layers;
pub mod losses;
pub mod mae;
pub mod masking;
pub mod mcmae;
pub mod mimic;
pub mod mr_mae;
pub mod params;
pub mod pixels;
pub mod pos_embed;
pub mod pos_interpolate;
pub mod precision;
pub mod pretrained;
mod shapes;
pub mod targets;
pub mod teacher;
pub mod teacher_drop;
pub mod tokens;
mod validate;
pub mod vit;
pub mod weights;

pub use error::{Error, Mismatch, Misshaped, Result};
