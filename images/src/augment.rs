//! Augmentations of fine-tuning besides crop and flip: RandAugment on bytes, random erasing on normalized pixels.
//!
//! Drawing is separate from applying: [`RandAugment::draw`] and [`RandomErasing::draw`] take a keyed [`Rng`](crate::rng::Rng), and pure
//! functions apply their results. The operations give Pillow's bytes, the distributions are those of timm 1.0
//! (`timm/data/auto_augment.py`, `timm/data/random_erasing.py`), which MAE's fine-tuning uses.

mod affine;
mod color;
mod erasing;
mod rand_augment;

pub use affine::Interpolation;
pub use erasing::{EraseBox, RandomErasing};
pub use rand_augment::{Op, OpKind, PolicyError, RandAugment};
