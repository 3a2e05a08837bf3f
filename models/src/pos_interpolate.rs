//! Position embeddings for a grid that a tower was not trained on.
//!
//! The rule is that of transformers (`interpolate_pos_encoding=True`, CLIP, ViT and DINO alike): bicubic over the square grid of
//! patch positions, to the *size* asked for, corners not aligned, no antialiasing; the CLS position stays. Two other rules are in
//! use and give other numbers. The original DINO and DINOv2 code scales by `(grid + 0.1) / native`, a guard against rounding the
//! output size that moves every sampling point a little; timm antialiases. We follow transformers because its folders are what
//! people have, because size-based sampling is exact, and because one rule then serves every family.

use tch::Tensor;

/// `pos_embed [1, 1 + g², D]` for a square grid → `[1, 1 + h·w, D]` for the grid `(h, w)`.
///
/// The native grid returns the same tensor, so that nothing is resampled by accident.
pub fn interpolate(pos_embed: &Tensor, (h, w): (i64, i64)) -> Tensor {
    let (_, positions, dim) = pos_embed.size3().expect("pos_embed is [1, 1 + L, D]");
    let native = (positions - 1).isqrt();
    if (h, w) == (native, native) {
        return pos_embed.shallow_clone();
    }
    let cls = pos_embed.narrow(1, 0, 1);
    let grid = pos_embed
        .narrow(1, 1, positions - 1)
        .reshape([1, native, native, dim])
        .permute([0, 3, 1, 2]); // [1, D, g, g]
    let grid = grid.upsample_bicubic2d([h, w], false, None, None); // [1, D, h, w]
    let grid = grid.permute([0, 2, 3, 1]).reshape([1, h * w, dim]);
    Tensor::cat(&[cls, grid], 1)
}
