//! Operations on levels: Pillow's `ImageOps` and `ImageEnhance`, byte for byte.

use crate::RgbImage;

/// One table of 256 levels for each channel.
type Tables = [[u8; 256]; 3];

fn look_up(img: &RgbImage, tables: &Tables) -> RgbImage {
    let mut out = img.clone();
    for pixel in out.data.as_chunks_mut::<3>().0 {
        for (level, table) in pixel.iter_mut().zip(tables) {
            *level = table[usize::from(*level)];
        }
    }
    out
}

/// Every level through one function.
pub(super) fn map(img: &RgbImage, level: impl Fn(u8) -> u8) -> RgbImage {
    let table = std::array::from_fn(|i| level(i as u8));
    look_up(img, &[table; 3])
}

fn histograms(img: &RgbImage) -> [[u64; 256]; 3] {
    let mut counts = [[0; 256]; 3];
    for pixel in img.data.as_chunks::<3>().0 {
        for (counts, &level) in counts.iter_mut().zip(pixel) {
            counts[usize::from(level)] += 1;
        }
    }
    counts
}

const IDENTITY: fn(usize) -> u8 = |i| i as u8;

/// `ImageOps.autocontrast(img)`: the levels of each channel are stretched to 0..=255.
pub(super) fn auto_contrast(img: &RgbImage) -> RgbImage {
    let tables = histograms(img).map(|counts| {
        let low = counts.iter().position(|&n| n > 0).unwrap_or(0);
        let high = counts.iter().rposition(|&n| n > 0).unwrap_or(0);
        if high <= low {
            return std::array::from_fn(IDENTITY);
        }
        let scale = 255.0 / (high - low) as f64;
        let offset = -(low as f64) * scale;
        // The conversion drops the fraction and clamps, as Pillow does.
        std::array::from_fn(|i| (i as f64 * scale + offset) as u8)
    });
    look_up(img, &tables)
}

/// `ImageOps.equalize(img)`: each channel's histogram becomes as flat as whole levels allow.
pub(super) fn equalize(img: &RgbImage) -> RgbImage {
    let tables = histograms(img).map(|counts| {
        let total: u64 = counts.iter().sum();
        let brightest = counts.iter().rfind(|&&n| n > 0).copied().unwrap_or(0);
        let step = (total - brightest) / 255;
        if step == 0 {
            return std::array::from_fn(IDENTITY);
        }
        let mut n = step / 2;
        counts.map(|count| {
            let level = n / step;
            n += count;
            level.min(255) as u8
        })
    });
    look_up(img, &tables)
}

/// `Image.blend(from, to, factor)`: in f32, truncated to 8 bits; outside of [0, 1] it extrapolates and clamps.
fn blend(from: impl Iterator<Item = u8>, to: &RgbImage, factor: f64) -> RgbImage {
    let alpha = factor as f32;
    let mut out = to.clone();
    if alpha == 1.0 {
        return out;
    }
    for (to, from) in out.data.iter_mut().zip(from) {
        let difference = f32::from(i16::from(*to) - i16::from(from));
        *to = (f32::from(from) + alpha * difference) as u8;
    }
    out
}

/// ITU-R 601-2 luma in 16-bit fixed point, as Pillow's `convert("L")`.
fn luma(&[r, g, b]: &[u8; 3]) -> u8 {
    ((u32::from(r) * 19595 + u32::from(g) * 38470 + u32::from(b) * 7471 + 0x8000) >> 16) as u8
}

/// `ImageEnhance.Color(img).enhance(factor)`: away from gray.
pub(super) fn color(img: &RgbImage, factor: f64) -> RgbImage {
    let gray = img.data.as_chunks::<3>().0.iter().flat_map(|p| [luma(p); 3]);
    blend(gray, img, factor)
}

/// `ImageEnhance.Contrast(img).enhance(factor)`: away from the mean luma.
pub(super) fn contrast(img: &RgbImage, factor: f64) -> RgbImage {
    let pixels = img.data.as_chunks::<3>().0;
    let sum: u64 = pixels.iter().map(|p| u64::from(luma(p))).sum();
    let mean = (sum as f64 / pixels.len().max(1) as f64 + 0.5) as u8;
    blend(std::iter::repeat(mean), img, factor)
}

/// `ImageEnhance.Brightness(img).enhance(factor)`: away from black.
pub(super) fn brightness(img: &RgbImage, factor: f64) -> RgbImage {
    blend(std::iter::repeat(0), img, factor)
}

/// `ImageEnhance.Sharpness(img).enhance(factor)`: away from the smoothed image.
pub(super) fn sharpness(img: &RgbImage, factor: f64) -> RgbImage {
    blend(smooth(img).data.into_iter(), img, factor)
}

/// `img.filter(ImageFilter.SMOOTH)`: (1 1 1, 1 5 1, 1 1 1) / 13 in f32; the border stays as it is.
fn smooth(img: &RgbImage) -> RgbImage {
    const EDGE: f32 = 1.0 / 13.0;
    const CENTER: f32 = 5.0 / 13.0;
    let mut out = img.clone();
    let (width, height) = (img.width as usize, img.height as usize);
    if width < 3 || height < 3 {
        return out;
    }
    let stride = width * 3;
    for y in 1..height - 1 {
        for i in y * stride + 3..(y + 1) * stride - 3 {
            let row = |at: usize, center: f32| {
                let level = |at: usize| f32::from(img.data[at]);
                level(at - 3) * EDGE + level(at) * center + level(at + 3) * EDGE
            };
            // Pillow sums from the row below to the row above, and the rounding depends on this order.
            let sum = 0.5 + row(i + stride, EDGE) + row(i, CENTER) + row(i - stride, EDGE);
            out.data[i] = sum as u8;
        }
    }
    out
}
