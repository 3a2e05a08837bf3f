//! Affine maps of an image onto its own size, as Pillow's `Image.transform(size, AFFINE, …)` computes them.
//!
//! The filters are those of Pillow's `Geometry.c`, not of its resampler: 2 x 2 or 4 x 4 pixels at every scale, in f64, and the
//! result is truncated, not rounded, to 8 bits. The order of the operations is Pillow's too, because the last bit can decide the result.

use crate::RgbImage;

/// Interpolation between pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interpolation {
    /// Over 2 x 2 pixels.
    Bilinear,
    /// Cubic convolution with a = -1 over 4 x 4 pixels.
    Bicubic,
}

/// Pixel (x, y) of the result is the source at `(a x + b y + c, d x + e y + f)`, with `matrix` = `[a, b, c, d, e, f]` and pixel
/// centers at halves; `fill` where that lies outside.
pub(super) fn affine(img: &RgbImage, matrix: [f64; 6], interpolation: Interpolation, fill: [u8; 3]) -> RgbImage {
    let [a, b, c, d, e, f] = matrix;
    let (width, height) = (img.width as usize, img.height as usize);
    let mut out = img.clone();
    let rows = out.data.chunks_exact_mut(width * 3);
    for (y, row) in rows.enumerate() {
        let y_out = y as f64 + 0.5;
        for (x, pixel) in row.as_chunks_mut::<3>().0.iter_mut().enumerate() {
            let x_out = x as f64 + 0.5;
            let x_in = a * x_out + b * y_out + c;
            let y_in = d * x_out + e * y_out + f;
            // Written so that a NaN is outside.
            let inside = x_in >= 0.0 && x_in < width as f64 && y_in >= 0.0 && y_in < height as f64;
            *pixel = match interpolation {
                _ if !inside => fill,
                Interpolation::Bilinear => bilinear(img, x_in - 0.5, y_in - 0.5),
                Interpolation::Bicubic => bicubic(img, x_in - 0.5, y_in - 0.5),
            };
        }
    }
    out
}

/// Turns by `degrees` counter-clockwise about the center: Pillow's `img.rotate(degrees, resample, fillcolor=fill)` for angles within
/// 90 degrees either way. (Quarter turns, which Pillow makes by copying, are interpolated here.)
pub(super) fn rotate(img: &RgbImage, degrees: f64, interpolation: Interpolation, fill: [u8; 3]) -> RgbImage {
    let degrees = degrees.rem_euclid(360.0);
    if degrees == 0.0 {
        return img.clone();
    }
    let angle = -degrees.to_radians();
    let (cos, sin, minus_sin) = (to_15_places(angle.cos()), to_15_places(angle.sin()), to_15_places(-angle.sin()));
    let (x, y) = (f64::from(img.width) / 2.0, f64::from(img.height) / 2.0);
    let c = cos * -x + sin * -y + x;
    let f = minus_sin * -x + cos * -y + y;
    affine(img, [cos, sin, c, minus_sin, cos, f], interpolation, fill)
}

/// Python's `round(x, 15)`, which is exact about the decimal digits.
fn to_15_places(x: f64) -> f64 {
    format!("{x:.15}").parse().unwrap_or(x)
}

/// Index of the pixel at or before `x`, and the distance of `x` from it.
fn split(x: f64) -> (i64, f64) {
    let floor = x.floor();
    (floor as i64, x - floor)
}

fn clamped(i: i64, len: u32) -> usize {
    i.clamp(0, i64::from(len) - 1) as usize
}

fn bilinear(img: &RgbImage, x: f64, y: f64) -> [u8; 3] {
    let ((x, dx), (y, dy)) = (split(x), split(y));
    let columns = [x, x + 1].map(|x| clamped(x, img.width) * 3);
    let rows = [y, y + 1].map(|y| clamped(y, img.height) * img.width as usize * 3);
    std::array::from_fn(|channel| {
        let [top, bottom] = rows.map(|row| {
            let [left, right] = columns.map(|column| f64::from(img.data[row + column + channel]));
            linear(left, right, dx)
        });
        linear(top, bottom, dy) as u8
    })
}

fn bicubic(img: &RgbImage, x: f64, y: f64) -> [u8; 3] {
    let ((x, dx), (y, dy)) = (split(x), split(y));
    let columns = [x - 1, x, x + 1, x + 2].map(|x| clamped(x, img.width) * 3);
    let rows = [y - 1, y, y + 1, y + 2].map(|y| clamped(y, img.height) * img.width as usize * 3);
    std::array::from_fn(|channel| {
        let lines = rows.map(|row| cubic(columns.map(|column| f64::from(img.data[row + column + channel])), dx));
        // The conversion drops the fraction and clamps to 0..=255.
        cubic(lines, dy) as u8
    })
}

fn linear(a: f64, b: f64, at: f64) -> f64 {
    a + (b - a) * at
}

fn cubic([a, b, c, d]: [f64; 4], at: f64) -> f64 {
    let first = -a + c;
    let second = 2.0 * (a - b) + c - d;
    let third = -a + b - c + d;
    b + at * (first + at * (second + at * third))
}
