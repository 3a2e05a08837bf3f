//! Position embeddings for a grid that a tower was not trained on.
//!
//! All rules in use resample the square grid of patch positions bicubically, corners not aligned; the positions of CLS and
//! registers stay. They differ in two points, and give other numbers:
//!
//! | code | sampled to | antialias |
//! |---|---|---|
//! | transformers: CLIP, ViT and DINO, DINOv2, SigLIP | the size asked for | no |
//! | transformers and original: DINOv2 with registers | the size asked for | yes |
//! | original DINO, original DINOv2 without registers | a scale of `(grid + 0.1) / native` | no |
//! | timm, open_clip | the size asked for | yes |
//!
//! The rule here depends on the tower and not on the layout of its file, since the same weights must give the same features
//! whatever they are called: it is what transformers 5 does, so with antialiasing for a tower with registers and without for the
//! others. For towers with registers all three codes agree, and for DINOv3 there is nothing to interpolate. Without registers, the
//! offset of 0.1 guards the original code against rounding the output size; it moves the last of 16 sampling points on a native
//! grid of 37 by 0.22 patches, and transformers dropped it. timm antialiases always, and the antialiasing kernel is another cubic
//! even where the grid grows. All of this concerns other grids than the native one only.

use tch::Tensor;

/// `pos_embed [1, g², D]` for a square grid → `[1, h·w, D]` for the grid `(h, w)`.
///
/// The native grid returns the same tensor, so that nothing is resampled by accident.
pub fn interpolate(pos_embed: &Tensor, (h, w): (i64, i64), antialias: bool) -> Tensor {
    let (_, positions, dim) = pos_embed.size3().expect("pos_embed is [1, g², D]");
    let native = positions.isqrt();
    if (h, w) == (native, native) {
        return pos_embed.shallow_clone();
    }
    let grid = pos_embed.reshape([1, native, native, dim]).permute([0, 3, 1, 2]); // [1, D, g, g]
    let grid = if antialias {
        grid.internal_upsample_bicubic2d_aa([h, w], false, None, None)
    } else {
        grid.upsample_bicubic2d([h, w], false, None, None)
    }; // [1, D, h, w]
    grid.permute([0, 2, 3, 1]).reshape([1, h * w, dim])
}
