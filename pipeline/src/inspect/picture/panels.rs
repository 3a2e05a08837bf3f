//! The three squares of a teacher.

use images::RgbImage;
use images::rng::{Purpose, Rng};
use models::masking::{MaskKind, focused_noise, len_keep, random_masking};
use tch::Tensor;

use crate::inspect::colour::{heat, luma, mix};
use crate::inspect::pca::COMPONENTS;

/// Share of the patches that a mask removes: the recipe's of the paper.
const MASK_RATIO: f64 = 0.75;

/// What stands where patches are masked, and how much of the crop's brightness shines through.
const MASKED: [u8; 3] = [206, 208, 214];
const SHINE: f64 = 0.12;

/// The patch that a pixel of a square of `side` pixels belongs to, in a grid of `grid` patches a side.
fn patch(x: u32, y: u32, side: u32, grid: usize) -> usize {
    let at = |v: u32| (v as usize * grid / side as usize).min(grid - 1);
    at(y) * grid + at(x)
}

fn square(side: u32, pixel: impl Fn(u32, u32) -> [u8; 3]) -> RgbImage {
    let data = (0..side).flat_map(|y| (0..side).map(move |x| (x, y))).flat_map(|(x, y)| pixel(x, y)).collect();
    RgbImage { width: side, height: side, data }
}

fn pixel(img: &RgbImage, x: u32, y: u32) -> [u8; 3] {
    let at = 3 * (y as usize * img.width as usize + x as usize);
    [img.data[at], img.data[at + 1], img.data[at + 2]]
}

/// One flat square per patch, in its colour.
pub(super) fn components(colours: &[[f32; COMPONENTS]], grid: usize, side: u32) -> RgbImage {
    square(side, |x, y| colours[patch(x, y, side, grid)].map(|v| (v * 255.0).round() as u8))
}

/// The colour of a share of the largest attention. A root stretches the low end: attention often lies on a few patches, and
/// what the others get would be told apart by no eye.
pub(super) fn heat_of(share: f64) -> [u8; 3] {
    heat(share.max(0.0).sqrt())
}

/// Heat over the gray crop, from 0 to the view's largest value, which is returned: exact at the patches' centres, smooth between.
pub(super) fn attention(attention: &[f32], grid: usize, crop: &RgbImage) -> (RgbImage, f32) {
    let highest = attention.iter().copied().fold(0.0, f32::max);
    let scale = if highest > 0.0 { f64::from(highest).recip() } else { 0.0 };
    // The patches beside each column of pixels and their weights; rows are alike.
    let around: Vec<_> = (0..crop.width)
        .map(|v| around((f64::from(v) + 0.5) * grid as f64 / f64::from(crop.width) - 0.5, grid))
        .collect();
    let img = square(crop.width, |x, y| {
        let (columns, rows) = (&around[x as usize], &around[y as usize]);
        let at = |row: usize, column: usize| f64::from(attention[row * grid + column]);
        let line = |row| -> f64 { columns.iter().map(|(i, weight)| weight * at(row, *i)).sum() };
        let value: f64 = rows.iter().map(|(i, weight)| weight * line(*i)).sum();
        let value = value * scale;
        let gray = (luma(pixel(crop, x, y)) * 0.75).round() as u8;
        mix([gray; 3], heat_of(value), 0.45 + 0.4 * value.clamp(0.0, 1.0))
    });
    (img, highest)
}

/// The two cells between whose centres a place lies, on a line of `n` cells with centres 0, 1, ..., and their weights: even at the
/// centres and never negative, so that a peak gets no dark ring.
fn around(place: f64, n: usize) -> [(usize, f64); 2] {
    let place = place.clamp(0.0, (n - 1) as f64);
    let first = place.floor() as usize;
    let t = place - place.floor();
    let second = t * t * (3.0 - 2.0 * t);
    [(first, 1.0 - second), ((first + 1).min(n - 1), second)]
}

/// The crop with the patches grayed that focused masking removes, and how many are left: the mask that training draws for this
/// view in the first epoch that shows it (view `v` in epoch `v`, counted from 0) under seed 0, with this teacher as the one that
/// focuses.
pub(super) fn focused_mask(
    attention: &[f32],
    grid: usize,
    (sample_id, view): (u64, u16),
    crop: &RgbImage,
) -> (RgbImage, usize) {
    let patches = attention.len() as i64;
    let mut rng = Rng::new(0, Purpose::Mask, &[view.into(), sample_id]);
    let uniform: Vec<f64> = attention.iter().map(|_| rng.uniform_f64()).collect();
    let row = |tensor: Tensor| tensor.view([1, patches]);
    let noise =
        focused_noise(&row(Tensor::from_slice(attention)), &row(Tensor::from_slice(&uniform)), MaskKind::Multinomial);
    // A grid of one patch keeps it: nothing would be seen of the view otherwise.
    let keep = len_keep(patches, MASK_RATIO).max(1);
    let mask = random_masking(&noise, keep).mask;
    let seen: Vec<bool> = (0..patches).map(|i| mask.double_value(&[0, i]) == 0.0).collect();
    let count = seen.iter().filter(|seen| **seen).count();
    let img = square(crop.width, |x, y| {
        let colour = pixel(crop, x, y);
        if seen[patch(x, y, crop.width, grid)] { colour } else { mix(MASKED, [luma(colour).round() as u8; 3], SHINE) }
    });
    (img, count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flat(side: u32, colour: [u8; 3]) -> RgbImage {
        square(side, |_, _| colour)
    }

    /// Grids that do not divide the panel leave no patch out and none over.
    #[test]
    fn any_grid_fits_any_panel() {
        for (grid, side) in [(1, 64), (3, 64), (7, 224), (14, 224), (37, 224), (300, 224)] {
            let colours: Vec<[f32; 3]> =
                (0..grid * grid).map(|i| [(i % 2) as f32, (i / grid) as f32 / grid as f32, 0.25]).collect();
            let drawn = components(&colours, grid, side);
            assert_eq!((drawn.width, drawn.data.len()), (side, 3 * (side * side) as usize));
            assert_eq!(pixel(&drawn, 0, 0), colours[0].map(|v| (v * 255.0).round() as u8));
            let last = colours[grid * grid - 1].map(|v| (v * 255.0).round() as u8);
            if grid <= side as usize {
                assert_eq!(pixel(&drawn, side - 1, side - 1), last, "{grid}");
            }
            let weights = vec![1.0 / (grid * grid) as f32; grid * grid];
            let crop = flat(side, [200, 20, 20]);
            let (even, highest) = attention(&weights, grid, &crop);
            assert_eq!(highest, weights[0]);
            let colour = pixel(&even, 0, 0);
            assert!(even.data.chunks(3).all(|p| p == colour), "{grid}");
            let (_, seen) = focused_mask(&weights, grid, (3, 0), &crop);
            assert_eq!(seen, (grid * grid / 4).max(1), "{grid}");
        }
    }

    /// Exact at the centres, in between between them, and nothing where there is nothing.
    #[test]
    fn heat_is_that_of_the_weights() {
        let crop = flat(90, [0; 3]);
        let mut weights = vec![0.0; 9];
        (weights[4], weights[5]) = (0.4, 0.1);
        let (drawn, highest) = attention(&weights, 3, &crop);
        assert_eq!(highest, 0.4);
        let expected = |share: f64| mix([0; 3], heat_of(share), 0.45 + 0.4 * share);
        for (x, y, share) in [(15, 15, 0.0), (45, 45, 1.0), (75, 45, 0.25), (0, 89, 0.0)] {
            let found = pixel(&drawn, x, y);
            // A pixel's centre is half a pixel from the patch's, where the curve is flat.
            let near = found.iter().zip(expected(share)).all(|(a, b)| a.abs_diff(b) <= 2);
            assert!(near, "({x}, {y}): {found:?}, expected {:?}", expected(share));
        }
        let (cold, highest) = attention(&[0.0; 9], 3, &crop);
        assert_eq!((highest, pixel(&cold, 45, 45)), (0.0, expected(0.0)));
    }
}
