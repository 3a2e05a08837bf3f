//! The three squares of a teacher.

use image::{Pixel, Rgb, RgbImage};
use images::rng::{Purpose, Rng};
use models::masking::{MaskKind, focused_noise, len_keep, random_masking};
use tch::Tensor;

use super::mix;
use crate::inspect::pca::COMPONENTS;

/// Share of the patches that a mask removes, as in the paper.
const MASK_RATIO: f64 = 0.75;

/// Color of a masked patch, and how much of the crop's brightness shines through.
const MASKED: Rgb<u8> = Rgb([206, 208, 214]);
const SHINE: f64 = 0.12;

/// The patch that a pixel of a square of `side` pixels belongs to, in a grid of `grid` patches a side.
fn patch(x: u32, y: u32, side: u32, grid: usize) -> usize {
    let at = |v: u32| (v as usize * grid / side as usize).min(grid - 1);
    at(y) * grid + at(x)
}

/// One flat square per patch, in its color.
pub(super) fn components(colors: &[[f32; COMPONENTS]], grid: usize, side: u32) -> RgbImage {
    RgbImage::from_fn(side, side, |x, y| Rgb(colors[patch(x, y, side, grid)].map(|v| (v * 255.0).round() as u8)))
}

/// Color of a share of the largest attention, from black (0) through violet and orange to light yellow (1). A square root stretches the
/// low end: attention often lies on a few patches, and the eye could not tell the others apart.
pub(super) fn heat(share: f64) -> Rgb<u8> {
    // A NaN becomes 0.
    Rgb(colorous::INFERNO.eval_continuous(share.max(0.0).sqrt()).as_array())
}

/// Heat over the gray crop, from 0 to the view's largest value, which is returned: exact at the centers of patches, smooth between them.
pub(super) fn attention(attention: &[f32], grid: usize, crop: &RgbImage) -> (RgbImage, f32) {
    let highest = attention.iter().copied().fold(0.0, f32::max);
    let scale = if highest > 0.0 { f64::from(highest).recip() } else { 0.0 };
    // The patches beside each column of pixels and their weights; they serve for rows too.
    let around: Vec<_> = (0..crop.width())
        .map(|v| around((f64::from(v) + 0.5) * grid as f64 / f64::from(crop.width()) - 0.5, grid))
        .collect();
    let img = RgbImage::from_fn(crop.width(), crop.height(), |x, y| {
        let (columns, rows) = (&around[x as usize], &around[y as usize]);
        let at = |row: usize, column: usize| f64::from(attention[row * grid + column]);
        let line = |row| -> f64 { columns.iter().map(|(i, weight)| weight * at(row, *i)).sum() };
        let value: f64 = rows.iter().map(|(i, weight)| weight * line(*i)).sum();
        let value = value * scale;
        let gray = mix(Rgb([0; 3]), crop.get_pixel(x, y).to_luma().to_rgb(), 0.75);
        mix(gray, heat(value), 0.45 + 0.4 * value.clamp(0.0, 1.0))
    });
    (img, highest)
}

/// The two cells on either side of a place, on a line of `n` cells with centers 0, 1, ..., and their weights: flat at the centers and
/// never negative, so that a peak gets no dark ring.
fn around(place: f64, n: usize) -> [(usize, f64); 2] {
    let place = place.clamp(0.0, (n - 1) as f64);
    let first = place.floor() as usize;
    let t = place - place.floor();
    let second = t * t * (3.0 - 2.0 * t);
    [(first, 1.0 - second), ((first + 1).min(n - 1), second)]
}

/// The crop with the patches grayed that focused masking removes, and the number of visible ones. The mask is the one that training draws
/// with seed 0 in the first epoch that shows this view (view `v` in epoch `v`, counted from 0) when this teacher focuses.
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
    // A grid of one patch keeps it, since nothing would be visible otherwise.
    let keep = len_keep(patches, MASK_RATIO).max(1);
    let mask = random_masking(&noise, keep).mask;
    let seen: Vec<bool> = (0..patches).map(|i| mask.double_value(&[0, i]) == 0.0).collect();
    let count = seen.iter().filter(|seen| **seen).count();
    let img = RgbImage::from_fn(crop.width(), crop.height(), |x, y| {
        let color = *crop.get_pixel(x, y);
        if seen[patch(x, y, crop.width(), grid)] { color } else { mix(MASKED, color.to_luma().to_rgb(), SHINE) }
    });
    (img, count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flat(side: u32, color: [u8; 3]) -> RgbImage {
        RgbImage::from_pixel(side, side, Rgb(color))
    }

    /// Grids that do not divide the panel leave no patch out and none over.
    #[test]
    fn any_grid_fits_any_panel() {
        for (grid, side) in [(1, 64), (3, 64), (7, 224), (14, 224), (37, 224), (300, 224)] {
            let colors: Vec<[f32; 3]> =
                (0..grid * grid).map(|i| [(i % 2) as f32, (i / grid) as f32 / grid as f32, 0.25]).collect();
            let drawn = components(&colors, grid, side);
            assert_eq!(drawn.dimensions(), (side, side));
            assert_eq!(drawn.get_pixel(0, 0).0, colors[0].map(|v| (v * 255.0).round() as u8));
            let last = colors[grid * grid - 1].map(|v| (v * 255.0).round() as u8);
            if grid <= side as usize {
                assert_eq!(drawn.get_pixel(side - 1, side - 1).0, last, "{grid}");
            }
            let weights = vec![1.0 / (grid * grid) as f32; grid * grid];
            let crop = flat(side, [200, 20, 20]);
            let (even, highest) = attention(&weights, grid, &crop);
            assert_eq!(highest, weights[0]);
            assert!(even.pixels().all(|p| p == even.get_pixel(0, 0)), "{grid}");
            let (_, seen) = focused_mask(&weights, grid, (3, 0), &crop);
            assert_eq!(seen, (grid * grid / 4).max(1), "{grid}");
        }
    }

    /// Exact at the centers, smooth between them, and nothing where there is nothing.
    #[test]
    fn heat_is_that_of_the_weights() {
        let crop = flat(90, [0; 3]);
        let mut weights = vec![0.0; 9];
        (weights[4], weights[5]) = (0.4, 0.1);
        let (drawn, highest) = attention(&weights, 3, &crop);
        assert_eq!(highest, 0.4);
        let expected = |share: f64| mix(Rgb([0; 3]), heat(share), 0.45 + 0.4 * share);
        for (x, y, share) in [(15, 15, 0.0), (45, 45, 1.0), (75, 45, 0.25), (0, 89, 0.0)] {
            let found = *drawn.get_pixel(x, y);
            // A pixel's center is half a pixel from the patch's, where the curve is flat.
            let near = found.0.iter().zip(expected(share).0).all(|(a, b)| a.abs_diff(b) <= 2);
            assert!(near, "({x}, {y}): {found:?}, expected {:?}", expected(share));
        }
        let (cold, highest) = attention(&[0.0; 9], 3, &crop);
        assert_eq!((highest, *cold.get_pixel(45, 45)), (0.0, expected(0.0)));
    }

    #[test]
    fn heat_brightens_with_every_step() {
        let lumas: Vec<u8> = (0..=16).map(|i| heat((f64::from(i) / 16.0).powi(2)).to_luma()[0]).collect();
        assert!(lumas.windows(2).all(|pair| pair[0] + 4 < pair[1]), "{lumas:?}");
        assert!(lumas[0] < 25 && lumas[16] > 225, "{lumas:?}");
        assert_eq!((heat(-3.0), heat(7.0), heat(f64::NAN)), (heat(0.0), heat(1.0), heat(0.0)));
    }
}
