//! The color policy's arithmetic: samples of any kind to RGB8.

use image::ColorType;
use schemas::DepthWindow;

/// The meaning of a buffer's alpha channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Alpha {
    /// There is no alpha: a fourth channel means something else and is dropped.
    Opaque,
    /// The colors are those of the opaque picture.
    Unassociated,
    /// The colors are multiplied by alpha already.
    Associated,
}

/// Samples as the `image` crate lays them out (interleaved, 16-bit ones in the machine's byte order) to RGB8. `None` for kinds that
/// have no place in the policy.
pub(super) fn to_rgb8(color: ColorType, samples: Vec<u8>, alpha: Alpha, window: DepthWindow) -> Option<Vec<u8>> {
    let (channels, is_deep) = match color {
        ColorType::L8 => (1, false),
        ColorType::La8 => (2, false),
        ColorType::Rgb8 => (3, false),
        ColorType::Rgba8 => (4, false),
        ColorType::L16 => (1, true),
        ColorType::La16 => (2, true),
        ColorType::Rgb16 => (3, true),
        ColorType::Rgba16 => (4, true),
        _ => return None,
    };
    let has_alpha = channels % 2 == 0;
    let mut samples = match (is_deep, window) {
        (false, _) => samples,
        (true, DepthWindow::HighByte) => high_bytes(&samples),
        (true, window) => {
            let mut deep = deep_samples(&samples);
            if has_alpha && alpha == Alpha::Associated {
                divide_by_alpha(&mut deep, channels);
            }
            through(window, &deep, channels)
        }
    };
    let is_divided = is_deep && !window.is_high_byte();
    if has_alpha && alpha == Alpha::Associated && !is_divided {
        divide_by_alpha_8(&mut samples, channels);
    }
    if has_alpha && alpha == Alpha::Opaque {
        for pixel in samples.chunks_exact_mut(channels) {
            pixel[channels - 1] = 255;
        }
    }
    Some(match channels {
        1 => gray_to_rgb(&samples),
        2 => gray_alpha_over_white(&samples),
        3 => samples,
        _ => rgba_over_white(&samples),
    })
}

/// The smallest and the largest color sample of an image of 16 bits; `None` for other kinds.
pub(super) fn range(color: ColorType, samples: &[u8]) -> Option<(u16, u16)> {
    let channels = match color {
        ColorType::L16 => 1,
        ColorType::La16 => 2,
        ColorType::Rgb16 => 3,
        ColorType::Rgba16 => 4,
        _ => return None,
    };
    let colors = channels - usize::from(channels % 2 == 0);
    let (mut least, mut greatest) = (u16::MAX, 0);
    for pixel in samples.as_chunks::<2>().0.chunks_exact(channels) {
        for &pair in &pixel[..colors] {
            let sample = u16::from_ne_bytes(pair);
            least = least.min(sample);
            greatest = greatest.max(sample);
        }
    }
    Some((least, greatest))
}

fn deep_samples(samples: &[u8]) -> Vec<u16> {
    samples.as_chunks::<2>().0.iter().map(|&pair| u16::from_ne_bytes(pair)).collect()
}

/// Samples of 16 bits through a window other than `high-byte`; the last of an even number of channels is alpha and keeps its high
/// byte. An image of one level has no window of its own and keeps its high byte.
fn through(window: DepthWindow, samples: &[u16], channels: usize) -> Vec<u8> {
    let colors = channels - usize::from(channels.is_multiple_of(2));
    let levels = match window {
        DepthWindow::HighByte => None,
        DepthWindow::FullRange => percentiles(samples, channels, colors, 0.0, 100.0),
        DepthWindow::Percentile(low, high) => percentiles(samples, channels, colors, low, high),
        DepthWindow::Levels(min, max) => Some((min, max)),
    };
    let high_byte = |sample: u16| (sample >> 8) as u8;
    let color = |sample: u16| match levels {
        Some((min, max)) if min < max => {
            let (above, span) = (sample.clamp(min, max) - min, max - min);
            let (above, span) = (u32::from(above), u32::from(span));
            ((2 * 255 * above + span) / (2 * span)) as u8
        }
        _ => high_byte(sample),
    };
    let pixel = |pixel: &[u16]| -> Vec<u8> {
        let (colors, alpha) = pixel.split_at(colors);
        let colors = colors.iter().map(|&sample| color(sample));
        colors.chain(alpha.iter().map(|&a| high_byte(a))).collect()
    };
    samples.chunks_exact(channels).flat_map(pixel).collect()
}

/// The samples at two percentiles of all color samples: the nearest rank, so that each is a sample of the image.
fn percentiles(samples: &[u16], channels: usize, colors: usize, low: f64, high: f64) -> Option<(u16, u16)> {
    let mut counts = vec![0u64; 1 << 16];
    for pixel in samples.chunks_exact(channels) {
        for &sample in &pixel[..colors] {
            counts[usize::from(sample)] += 1;
        }
    }
    let total: u64 = counts.iter().sum();
    let at = |percent: f64| {
        let rank = (percent / 100.0 * (total.checked_sub(1)?) as f64).round() as u64;
        let mut below = 0;
        let level = counts.iter().position(|&count| {
            below += count;
            below > rank
        });
        level.map(|level| level as u16)
    };
    Some((at(low)?, at(high)?))
}

/// Undoes the multiplication by alpha, as Pillow does: values that rounding or a careless writer made brighter than white become white.
fn divide_by_alpha_8(samples: &mut [u8], channels: usize) {
    for pixel in samples.chunks_exact_mut(channels) {
        let (alpha, colors) = pixel.split_last_mut().expect("a pixel has channels");
        for color in colors {
            let divided = (u32::from(*color) * 255).checked_div(u32::from(*alpha));
            *color = divided.unwrap_or(0).min(255) as u8;
        }
    }
}

fn divide_by_alpha(samples: &mut [u16], channels: usize) {
    for pixel in samples.chunks_exact_mut(channels) {
        let (alpha, colors) = pixel.split_last_mut().expect("a pixel has channels");
        for color in colors {
            let divided = (u64::from(*color) * 65535).checked_div(u64::from(*alpha));
            *color = divided.unwrap_or(0).min(65535) as u16;
        }
    }
}

/// CMYK as Adobe's programs store it in JPEG, with every channel inverted, to RGB8.
pub(super) fn inverted_cmyk_to_rgb(samples: &[u8]) -> Vec<u8> {
    let to_rgb = |&[c, m, y, k]: &[u8; 4]| [c, m, y].map(|ink| k - mul_div_255(255 - ink, k));
    samples.as_chunks::<4>().0.iter().flat_map(to_rgb).collect()
}

fn high_bytes(samples: &[u8]) -> Vec<u8> {
    samples.as_chunks::<2>().0.iter().map(|&pair| (u16::from_ne_bytes(pair) >> 8) as u8).collect()
}

fn gray_to_rgb(samples: &[u8]) -> Vec<u8> {
    samples.iter().flat_map(|&gray| [gray; 3]).collect()
}

fn gray_alpha_over_white(samples: &[u8]) -> Vec<u8> {
    samples.as_chunks::<2>().0.iter().flat_map(|&[gray, alpha]| [over_white(gray, alpha); 3]).collect()
}

fn rgba_over_white(samples: &[u8]) -> Vec<u8> {
    samples
        .as_chunks::<4>()
        .0
        .iter()
        .flat_map(|&[r, g, b, alpha]| [r, g, b].map(|channel| over_white(channel, alpha)))
        .collect()
}

/// `alpha * channel + (1 - alpha) * white`, rounded to nearest.
fn over_white(channel: u8, alpha: u8) -> u8 {
    255 - mul_div_255(255 - channel, alpha)
}

/// `a * b / 255`, rounded to nearest.
fn mul_div_255(a: u8, b: u8) -> u8 {
    let product = u32::from(a) * u32::from(b) + 128;
    ((product + (product >> 8)) >> 8) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn division_by_255_rounds_to_nearest() {
        for a in 0..=255u8 {
            for b in 0..=255u8 {
                assert_eq!(mul_div_255(a, b), (f64::from(a) * f64::from(b) / 255.0).round() as u8);
            }
        }
    }

    #[test]
    fn transparent_is_white_and_opaque_is_itself() {
        for channel in 0..=255 {
            assert_eq!(over_white(channel, 0), 255);
            assert_eq!(over_white(channel, 255), channel);
        }
        assert_eq!(over_white(0, 128), 127);
    }

    #[test]
    fn inverted_inks() {
        // No ink; full black; full cyan; half magenta on half black.
        let stored = [255, 255, 255, 255, 255, 255, 255, 0, 0, 255, 255, 255, 255, 128, 255, 128];
        assert_eq!(inverted_cmyk_to_rgb(&stored), [255, 255, 255, 0, 0, 0, 0, 255, 255, 128, 64, 128]);
    }

    fn rgb8(color: ColorType, samples: &[u16], alpha: Alpha, window: &str) -> Vec<u8> {
        let samples = samples.iter().flat_map(|sample| sample.to_ne_bytes());
        to_rgb8(color, samples.collect(), alpha, window.parse().unwrap()).unwrap()
    }

    #[test]
    fn sixteen_bits_go_through_the_window() {
        let samples = [0x00FF, 0x0100, 0xFFFF];
        let through = |window| rgb8(ColorType::Rgb16, &samples, Alpha::Opaque, window);
        assert_eq!(through("high-byte"), [0, 1, 255]);
        assert_eq!(through("0,65535"), [1, 1, 255]);
        assert_eq!(through("255,256"), [0, 255, 255]);
        assert_eq!(through("full-range"), [0, 0, 255]);
        assert_eq!(through("percentile:0,50"), [0, 255, 255]);
    }

    #[test]
    fn twelve_bits_use_all_levels_of_their_window() {
        let samples: Vec<u16> = (0..4096).collect();
        let through = |window| rgb8(ColorType::L16, &samples, Alpha::Opaque, window);
        assert_eq!(*through("high-byte").iter().max().unwrap(), 15);
        let expected: Vec<u8> =
            samples.iter().flat_map(|&v| [(f64::from(v) * 255.0 / 4095.0).round() as u8; 3]).collect();
        assert_eq!(through("0,4095"), expected);
        assert_eq!(through("full-range"), expected);
        let clipped = through("percentile:10,90");
        let zeros = clipped.iter().filter(|&&v| v == 0).count() / 3;
        assert!((410..=420).contains(&zeros), "{zeros}");
    }

    #[test]
    fn alpha_has_no_window() {
        let samples = [1000, 0xFFFF, 2000, 0x8000];
        let out = rgb8(ColorType::La16, &samples, Alpha::Unassociated, "full-range");
        assert_eq!(out, [0, 0, 0, 255, 255, 255]);
        let out = rgb8(ColorType::La16, &samples, Alpha::Unassociated, "1000,3000");
        assert_eq!(out[3], over_white(128, 0x80));
    }

    #[test]
    fn an_image_of_one_level_keeps_its_high_byte() {
        for window in ["full-range", "percentile:1,99"] {
            let out = rgb8(ColorType::L16, &[0x1234; 4], Alpha::Opaque, window);
            assert_eq!(out, [0x12; 12], "{window}");
        }
    }

    #[test]
    fn associated_alpha_is_pixel_plus_what_white_shines_through() {
        for alpha in 0..=255u8 {
            for color in (0..=alpha).step_by(5) {
                let truth = i32::from(color) + 255 - i32::from(alpha);
                let pixel = vec![color, color, color, alpha];
                let eight = to_rgb8(ColorType::Rgba8, pixel, Alpha::Associated, DepthWindow::HighByte);
                let deep = [color, color, color, alpha].map(|v| u16::from(v) * 257);
                let sixteen = rgb8(ColorType::Rgba16, &deep, Alpha::Associated, "0,65535");
                for out in [eight.unwrap(), sixteen] {
                    assert!((i32::from(out[0]) - truth).abs() <= 1, "{color} {alpha} {out:?}");
                }
            }
        }
        // Brighter than its alpha allows: clipped, not wrapped.
        let bright = to_rgb8(ColorType::La8, vec![200, 100, 9, 0], Alpha::Associated, DepthWindow::HighByte);
        assert_eq!(bright.unwrap(), [255; 6]);
    }

    #[test]
    fn floating_point_has_no_place() {
        for (color, bytes) in [(ColorType::Rgb32F, 12), (ColorType::Rgba32F, 16)] {
            let samples = vec![0; bytes];
            assert_eq!(to_rgb8(color, samples, Alpha::Opaque, DepthWindow::HighByte), None);
        }
    }
}
