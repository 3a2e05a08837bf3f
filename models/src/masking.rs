//! Which patches the student sees.
//!
//! A mask is made from one number per patch: the patches with the smallest numbers are kept. Uniform numbers give MAE's random
//! masking, [`block_noise`] BEiT's blocks, and [`focused_noise`] turns a teacher's attention and uniform numbers into MR-MAE's
//! focused masking. The numbers come from the caller's keyed generator, so that a sample's mask depends on nothing else in the batch.

use tch::{Kind, Tensor};

/// A mask for each image of a batch. Indices are int64, on the device of the noise.
#[derive(Debug)]
pub struct Masking {
    /// `[N, keep]`: the patches that are seen, in the order of their noise, not of their position (as in MAE).
    pub ids_keep: Tensor,
    /// `[N, L - keep]`: the others, in the order of their noise.
    pub ids_removed: Tensor,
    /// `[N, L]`: for each position its place in the shuffled order; places below `keep` are seen.
    pub ids_restore: Tensor,
    /// `[N, L]`, f32: 0 where seen, 1 where removed.
    pub mask: Tensor,
}

/// Patches kept of `num_patches`: `⌊L (1 - mask_ratio)⌋`, 49 of 196 at 0.75.
pub fn len_keep(num_patches: i64, mask_ratio: f64) -> i64 {
    (num_patches as f64 * (1.0 - mask_ratio)) as i64
}

/// Keeps the `len_keep` patches with the smallest `noise [N, L]`; equal numbers in the order of position.
///
/// Agrees with MAE's `random_masking` given its noise (whose sort is not stable: its ties are in any order).
///
/// # Panics
/// Unless `0 < len_keep <= L`.
pub fn random_masking(noise: &Tensor, len_keep: i64) -> Masking {
    masking_of_order(&noise.argsort_stable(true, 1, false), len_keep)
}

/// Keeps the first `len_keep` patches of an order: `ids_shuffle [N, L]`, int64, has every patch of an image once.
///
/// # Panics
/// Unless `0 < len_keep <= L`.
pub fn masking_of_order(ids_shuffle: &Tensor, len_keep: i64) -> Masking {
    let num_patches = ids_shuffle.size()[1];
    assert!(0 < len_keep && len_keep <= num_patches, "cannot keep {len_keep} of {num_patches} patches");
    let ids_restore = ids_shuffle.argsort_stable(true, 1, false); // a permutation's inverse is its argsort
    let mask = ids_restore.ge(len_keep).to_kind(Kind::Float);
    Masking {
        ids_keep: ids_shuffle.narrow(1, 0, len_keep).contiguous(),
        ids_removed: ids_shuffle.narrow(1, len_keep, num_patches - len_keep),
        ids_restore,
        mask,
    }
}

/// How attention chooses the visible patches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FocusKind {
    /// Drawn one by one without replacement, with probability in proportion to attention: what MILAN and MaskAlign do.
    Multinomial,
    /// The patches with the most attention: the letter of the MR-MAE paper. A view then always has the same mask.
    TopK,
}

/// Noise for [`random_masking`] under which salient patches are kept: `[N, L]`, f64.
///
/// `cls_attn [N, L]`: attention of the teacher's CLS token to each patch, mean over heads; only ratios matter. A weight that is
/// zero, negative or not finite is never chosen before one that is positive, and such patches are equally likely among
/// themselves (in order of position for [`FocusKind::TopK`]): a teacher with no opinion gives random masking.
/// `uniform [N, L]`: numbers in [0, 1), f64 for preference; not looked at by [`FocusKind::TopK`].
///
/// The draw is a race: patch i finishes after `-ln(u_i) / w_i`, an exponential time of rate `w_i`, and the order of finishing is
/// a draw without replacement (Efraimidis and Spirakis 2006). The logarithm of the time is returned, which no weight overflows.
pub fn focused_noise(cls_attn: &Tensor, uniform: &Tensor, kind: FocusKind) -> Tensor {
    let weight = cls_attn.to_kind(Kind::Double);
    let positive = weight.isfinite().logical_and(&weight.gt(0.0));
    match kind {
        FocusKind::Multinomial => {
            let uniform = uniform.to_kind(Kind::Double).clamp(f64::MIN_POSITIVE, 1.0 - f64::EPSILON);
            let log_time = (-uniform.log()).log() - weight.log();
            // Log times lie within ±1500: weights and uniforms are positive doubles.
            log_time.where_self(&positive, &(uniform + 1e4))
        }
        FocusKind::TopK => (-&weight).where_self(&positive, &weight.zeros_like()),
    }
}

/// Blocks that BEiT tries to place before it gives up.
const BLOCK_TRIES: usize = 10;
/// BEiT's least area of a block, in patches of a 14 x 14 grid; other grids in proportion.
const BLOCK_MIN_AREA: f64 = 16.0 / 196.0;
/// BEiT's narrowest block, as height to width.
const BLOCK_MIN_ASPECT: f64 = 0.3;

/// Noise for [`random_masking`] under which exactly `num_removed` patches are removed in blocks: `[L]`, row-major, in [0, 2).
///
/// Blocks are placed as in BEiT (Bao et al. 2021, algorithm 1): area uniform between 16 patches (of 196) and what is left to remove,
/// the logarithm of height over width uniform in ±ln 0.3, place uniform; a block may lie over others and then counts for what it adds,
/// and one that would add nothing or too much is drawn again, at most ten times. What is then left, which BEiT leaves visible, is
/// removed patch by patch at random: every image has the same number of visible patches.
///
/// `uniform` gives numbers in [0, 1).
///
/// # Panics
/// Unless `num_removed <= L`.
pub fn block_noise([grid_h, grid_w]: [usize; 2], num_removed: usize, uniform: &mut impl FnMut() -> f64) -> Vec<f64> {
    let num_patches = grid_h * grid_w;
    assert!(num_removed <= num_patches, "{num_removed} of {num_patches}");
    let min_area = (num_patches as f64 * BLOCK_MIN_AREA).max(1.0);
    let mut removed = vec![false; num_patches];
    let mut left = num_removed;
    'blocks: while left > 0 {
        for _ in 0..BLOCK_TRIES {
            let most = (left as f64).max(min_area);
            let area = min_area + uniform() * (most - min_area);
            let log_aspect = (2.0 * uniform() - 1.0) * BLOCK_MIN_ASPECT.ln();
            let aspect = log_aspect.exp();
            let height = (area * aspect).sqrt().round() as usize;
            let width = (area / aspect).sqrt().round() as usize;
            let (at_y, at_x) = (uniform(), uniform());
            if height == 0 || width == 0 || height > grid_h || width > grid_w {
                continue;
            }
            let top = (at_y * (grid_h - height + 1) as f64) as usize;
            let start = (at_x * (grid_w - width + 1) as f64) as usize;
            let cells = (top..top + height).flat_map(|y| (start..start + width).map(move |x| y * grid_w + x));
            let added = cells.clone().filter(|&cell| !removed[cell]).count();
            if added == 0 || added > left {
                continue;
            }
            cells.for_each(|cell| removed[cell] = true);
            left -= added;
            continue 'blocks;
        }
        break;
    }
    let mut noise: Vec<f64> = (0..num_patches).map(|_| uniform()).collect();
    // Among the patches outside all blocks, those with the largest noise make up the number.
    let mut outside: Vec<usize> = (0..num_patches).filter(|&i| !removed[i]).collect();
    outside.sort_by(|&a, &b| noise[b].total_cmp(&noise[a]));
    outside[..left].iter().for_each(|&i| removed[i] = true);
    noise.iter_mut().zip(removed).for_each(|(value, removed)| *value += f64::from(u8::from(removed)));
    noise
}

#[cfg(test)]
mod tests;
