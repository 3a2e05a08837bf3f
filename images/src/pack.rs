//! Re-encodes images to store them in a cache.

use turbojpeg::{Compressor, Image, PixelFormat, Subsamp};

use crate::resample::{Filter, resample};
use crate::{EncodeError, RgbImage};
use schemas::CropBox;

/// The longest side that the JPEG format and libjpeg allow.
const MAX_JPEG_SIDE: u32 = 65_500;

/// Encodes as JPEG, its short side scaled down to `short_side` pixels first (bicubically, never up; the other side in proportion,
/// rounded).
///
/// Chroma is halved in both directions, Huffman tables are the standard's: libjpeg's defaults and Pillow's. The bytes depend on the
/// only on the pixels and the version of libjpeg-turbo, not on its SIMD code.
///
/// # Errors
/// [`EncodeError`] for a side beyond what JPEG allows, in pixels.
pub fn to_jpeg(img: &RgbImage, short_side: u32, quality: u8) -> Result<Vec<u8>, EncodeError> {
    let (width, height) = scaled(img.width, img.height, short_side);
    if width.max(height) > MAX_JPEG_SIDE {
        return Err(EncodeError::TooLong { width, height });
    }
    let whole = CropBox { x: 0, y: 0, w: img.width, h: img.height };
    let small;
    let img = if (width, height) == (img.width, img.height) {
        img
    } else {
        small = resample(img, whole, width, height, Filter::Bicubic)?;
        &small
    };
    let encode = || {
        let mut compressor = Compressor::new()?;
        compressor.set_quality(quality.into())?;
        compressor.set_subsamp(Subsamp::Sub2x2)?;
        compressor.compress_to_vec(Image {
            pixels: &img.data[..],
            width: img.width as usize,
            pitch: img.width as usize * 3,
            height: img.height as usize,
            format: PixelFormat::RGB,
        })
    };
    encode().map_err(|e: turbojpeg::Error| EncodeError::Jpeg(e.to_string()))
}

/// The size after scaling the shorter side down to `short_side`.
fn scaled(width: u32, height: u32, short_side: u32) -> (u32, u32) {
    let short = width.min(height);
    if short <= short_side {
        return (width, height);
    }
    let scale = |side: u32| {
        let (side, short) = (u64::from(side), u64::from(short));
        // Rounded half up, in integers, so that all platforms agree.
        ((2 * side * u64::from(short_side) + short) / (2 * short)) as u32
    };
    (scale(width), scale(height))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gradient(width: u32, height: u32) -> RgbImage {
        let pixel = |i: u32| [(i % width) as u8, (i / width) as u8, 128];
        RgbImage { width, height, data: (0..width * height).flat_map(pixel).collect() }
    }

    #[test]
    fn the_short_side_is_scaled_down_and_never_up() {
        assert_eq!(scaled(500, 375, 256), (341, 256));
        assert_eq!(scaled(375, 500, 256), (256, 341));
        assert_eq!(scaled(200, 100, 256), (200, 100));
        assert_eq!(scaled(256, 1, 1), (256, 1));
        assert_eq!(scaled(3, 2, 1), (2, 1));
        assert_eq!(scaled(u32::MAX, u32::MAX, 7), (7, 7));
    }

    #[test]
    fn what_is_packed_is_decoded_to_nearly_the_same_pixels() {
        let img = gradient(120, 80);
        let bytes = to_jpeg(&img, 256, 95).unwrap();
        assert_eq!(bytes, to_jpeg(&img, 256, 95).unwrap());
        let back = crate::decode(&bytes).unwrap();
        assert_eq!((back.width, back.height), (120, 80));
        let difference = |(a, b): (&u8, &u8)| f64::from(a.abs_diff(*b));
        let mean = img.data.iter().zip(&back.data).map(difference).sum::<f64>() / img.data.len() as f64;
        assert!(mean < 1.5, "{mean}");
        assert!(to_jpeg(&img, 256, 20).unwrap().len() < bytes.len());
        let small = crate::decode(&to_jpeg(&img, 40, 95).unwrap()).unwrap();
        assert_eq!((small.width, small.height), (60, 40));
    }

    #[test]
    fn a_side_that_jpeg_does_not_allow_is_refused() {
        assert!(matches!(
            to_jpeg(&gradient(70_000, 1), 256, 90),
            Err(EncodeError::TooLong { width: 70_000, height: 1 })
        ));
    }
}
