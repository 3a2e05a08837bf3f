//! Draws the crop of a view as a function of (seed, content, view index) alone.

use schemas::{ContentHash, CropBox, View, ViewPolicy};

use crate::rng::{Purpose, Rng};

/// Attempts to draw a box before the central fallback, as in torchvision.
const TRIES: usize = 10;

/// Draws view `index` of an image whose decoded, oriented size is `width` x `height`, each at least 1.
///
/// - `Rrc`: torchvision's `RandomResizedCrop.get_params`, then a horizontal flip with the policy's probability. The box has
///   `scale` times the image's area and a width over height that is log-uniform in `ratio`, both up to rounding to whole pixels.
/// - `Center`: the largest central square, never flipped.
/// - `Full`: everything, never flipped.
///
/// The box always lies inside the image and is never empty.
pub fn draw_view(policy: &ViewPolicy, seed: u64, hash: &ContentHash, index: u16, width: u32, height: u32) -> View {
    let content = u128::from_le_bytes(hash.0);
    let mut rng = Rng::new(seed, Purpose::View, &[content as u64, (content >> 64) as u64, u64::from(index)]);
    let (crop, flip) = draw_crop(policy, &mut rng, width, height);
    View { index, crop, flip }
}

/// Draws a crop box and whether it is mirrored by a policy, as [`draw_view`] does, from any stream of random numbers.
pub fn draw_crop(policy: &ViewPolicy, rng: &mut Rng, width: u32, height: u32) -> (CropBox, bool) {
    match *policy {
        ViewPolicy::Rrc { scale, ratio, flip } => {
            (random_resized_crop(rng, scale, ratio, width, height), rng.uniform_f64() < flip)
        }
        ViewPolicy::Center => {
            let side = width.min(height);
            (central(side, side, width, height), false)
        }
        ViewPolicy::Full => (CropBox { x: 0, y: 0, w: width, h: height }, false),
    }
}

fn random_resized_crop(rng: &mut Rng, scale: [f64; 2], ratio: [f64; 2], width: u32, height: u32) -> CropBox {
    let area = f64::from(width) * f64::from(height);
    for _ in 0..TRIES {
        let target_area = area * uniform(rng, scale);
        let aspect_ratio = uniform(rng, ratio.map(f64::ln)).exp();
        // Python's round, which torchvision uses, rounds halves to even. A NaN or a negative number becomes 0 and fits nowhere.
        let w = (target_area * aspect_ratio).sqrt().round_ties_even() as u32;
        let h = (target_area / aspect_ratio).sqrt().round_ties_even() as u32;
        if (1..=width).contains(&w) && (1..=height).contains(&h) {
            let y = rng.range(u64::from(height - h) + 1) as u32;
            let x = rng.range(u64::from(width - w) + 1) as u32;
            return CropBox { x, y, w, h };
        }
    }
    // The largest central box whose ratio is allowed.
    let in_ratio = f64::from(width) / f64::from(height);
    let (w, h) = if in_ratio < ratio[0] {
        (width, (f64::from(width) / ratio[0]).round_ties_even() as u32)
    } else if in_ratio > ratio[1] {
        ((f64::from(height) * ratio[1]).round_ties_even() as u32, height)
    } else {
        (width, height)
    };
    central(w.clamp(1, width), h.clamp(1, height), width, height)
}

fn uniform(rng: &mut Rng, [low, high]: [f64; 2]) -> f64 {
    low + rng.uniform_f64() * (high - low)
}

fn central(w: u32, h: u32, width: u32, height: u32) -> CropBox {
    CropBox { x: (width - w) / 2, y: (height - h) / 2, w, h }
}

#[cfg(test)]
mod tests;
