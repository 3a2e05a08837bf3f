//! The colour policy's arithmetic: samples of any kind to RGB8.

use image::ColorType;

/// Samples as the `image` crate lays them out (interleaved, 16-bit ones in the machine's byte order) to RGB8. `None` for kinds that
/// have no place in the policy.
pub(super) fn to_rgb8(color: ColorType, samples: Vec<u8>) -> Option<Vec<u8>> {
    Some(match color {
        ColorType::Rgb8 => samples,
        ColorType::L8 => gray_to_rgb(&samples),
        ColorType::La8 => gray_alpha_over_white(&samples),
        ColorType::Rgba8 => rgba_over_white(&samples),
        ColorType::L16 => gray_to_rgb(&high_bytes(&samples)),
        ColorType::La16 => gray_alpha_over_white(&high_bytes(&samples)),
        ColorType::Rgb16 => high_bytes(&samples),
        ColorType::Rgba16 => rgba_over_white(&high_bytes(&samples)),
        _ => return None,
    })
}

/// CMYK as Adobe's programs store it in JPEG, with every channel inverted, to RGB8.
pub(super) fn inverted_cmyk_to_rgb(samples: &[u8]) -> Vec<u8> {
    let to_rgb = |&[c, m, y, k]: &[u8; 4]| [c, m, y].map(|ink| k - mul_div_255(255 - ink, k));
    samples.as_chunks::<4>().0.iter().flat_map(to_rgb).collect()
}

fn high_bytes(samples: &[u8]) -> Vec<u8> {
    samples
        .as_chunks::<2>()
        .0
        .iter()
        .map(|&pair| (u16::from_ne_bytes(pair) >> 8) as u8)
        .collect()
}

fn gray_to_rgb(samples: &[u8]) -> Vec<u8> {
    samples.iter().flat_map(|&gray| [gray; 3]).collect()
}

fn gray_alpha_over_white(samples: &[u8]) -> Vec<u8> {
    samples
        .as_chunks::<2>()
        .0
        .iter()
        .flat_map(|&[gray, alpha]| [over_white(gray, alpha); 3])
        .collect()
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
                assert_eq!(
                    mul_div_255(a, b),
                    (f64::from(a) * f64::from(b) / 255.0).round() as u8
                );
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
        let stored = [
            255, 255, 255, 255, 255, 255, 255, 0, 0, 255, 255, 255, 255, 128, 255, 128,
        ];
        assert_eq!(
            inverted_cmyk_to_rgb(&stored),
            [255, 255, 255, 0, 0, 0, 0, 255, 255, 128, 64, 128]
        );
    }

    #[test]
    fn sixteen_bits_keep_the_high_byte() {
        let samples: Vec<u8> = [0x00FFu16, 0x0100, 0xFFFF]
            .into_iter()
            .flat_map(u16::to_ne_bytes)
            .collect();
        assert_eq!(to_rgb8(ColorType::Rgb16, samples), Some(vec![0, 1, 255]));
    }

    #[test]
    fn floating_point_has_no_place() {
        assert_eq!(to_rgb8(ColorType::Rgb32F, vec![0; 12]), None);
        assert_eq!(to_rgb8(ColorType::Rgba32F, vec![0; 16]), None);
    }
}
