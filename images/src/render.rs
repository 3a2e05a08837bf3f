//! From an image and a view to a network's input, for teacher and student alike.

use schemas::View;

use crate::resample::{Filter, resample};
use crate::{CropError, RgbImage};

/// Crops, resamples bicubically to `size` x `size`, and flips. Fails when the view's box is not inside the image.
///
/// The flip comes last: mirroring commutes with the crop but not with the resampler's rounding, so the order decides the
/// pixels that a cache's features belong to.
pub fn render(img: &RgbImage, view: &View, size: u32) -> Result<RgbImage, CropError> {
    let mut out = resample(img, view.crop, size, size, Filter::Bicubic)?;
    if view.flip {
        mirror(&mut out);
    }
    Ok(out)
}

/// Reverses the pixels of every row.
fn mirror(img: &mut RgbImage) {
    for row in img.data.chunks_exact_mut(img.width as usize * 3) {
        row.as_chunks_mut::<3>().0.reverse();
    }
}

#[cfg(test)]
mod tests {
    use schemas::CropBox;

    use super::*;

    fn numbered(width: u32, height: u32) -> RgbImage {
        RgbImage { width, height, data: (0..width * height * 3).map(|i| i as u8).collect() }
    }

    #[test]
    fn the_flip_mirrors_rows_and_keeps_channels() {
        let img = numbered(3, 2);
        let view = View { index: 0, crop: CropBox { x: 1, y: 0, w: 2, h: 2 }, flip: true };
        let out = render(&img, &view, 2).unwrap();
        assert_eq!(out.data, [6, 7, 8, 3, 4, 5, 15, 16, 17, 12, 13, 14]);
    }

    #[test]
    fn flipping_twice_changes_nothing() {
        let img = numbered(37, 23);
        let view = |flip| View { index: 0, crop: CropBox { x: 3, y: 2, w: 30, h: 20 }, flip };
        let mut flipped = render(&img, &view(true), 16).unwrap();
        mirror(&mut flipped);
        assert_eq!(flipped, render(&img, &view(false), 16).unwrap());
    }

    #[test]
    fn a_box_outside_is_refused() {
        let view = View { index: 0, crop: CropBox { x: 1, y: 0, w: 3, h: 2 }, flip: false };
        assert!(matches!(render(&numbered(3, 2), &view, 2), Err(CropError::Outside { width: 3, height: 2, .. })));
    }
}
