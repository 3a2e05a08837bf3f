//! Text on the sheet, in DejaVu Sans.

use std::sync::LazyLock;

use ab_glyph::{Font, FontRef, PxScaleFont, ScaleFont, point};
use image::{Rgb, RgbImage};

use super::mix;

/// Pixels from the top of a capital to the baseline.
pub(super) const CAPITAL: u32 = 12;
/// Pixels between words that are apart.
pub(super) const SPACE: u32 = 12;
/// Pixels from the highest ascender to the lowest descender at this height of capitals, which are 1493 of the font's 2384 units.
const LINE: f32 = CAPITAL as f32 * 2384.0 / 1493.0;

static FONT: LazyLock<PxScaleFont<FontRef>> = LazyLock::new(|| {
    let font = FontRef::try_from_slice(dejavu::sans::regular()).expect("the font is part of the program");
    font.into_scaled(LINE)
});

/// Draws one line with the top of its capitals at `y`. What lies outside of the image is cut off.
pub(super) fn draw(img: &mut RgbImage, x: u32, y: u32, text: &str, color: Rgb<u8>) {
    let mut left = x as f32;
    for c in text.chars() {
        let glyph = FONT.glyph_id(c);
        let width = FONT.h_advance(glyph);
        let placed = glyph.with_scale_and_position(FONT.scale(), point(left, (y + CAPITAL) as f32));
        if let Some(outline) = FONT.outline_glyph(placed) {
            let corner = outline.px_bounds().min;
            outline.draw(|dx, dy, coverage| {
                let (x, y) = (corner.x as i64 + i64::from(dx), corner.y as i64 + i64::from(dy));
                if let (Ok(x), Ok(y)) = (u32::try_from(x), u32::try_from(y))
                    && let Some(pixel) = img.get_pixel_mut_checked(x, y)
                {
                    *pixel = mix(*pixel, color, coverage.into());
                }
            });
        }
        left += width;
    }
}

/// Width of a line in pixels.
pub(super) fn width(text: &str) -> u32 {
    text.chars().map(|c| FONT.h_advance(FONT.glyph_id(c))).sum::<f32>().ceil() as u32
}

/// The text if it fits in `room` pixels, else its beginning and end with an ellipsis between: both ends of a path matter.
pub(super) fn shorten(text: &str, room: u32) -> String {
    if width(text) <= room {
        return text.to_owned();
    }
    let chars: Vec<char> = text.chars().collect();
    let ends = |kept: usize| {
        let head = kept / 3;
        let (first, last) = (&chars[..head], &chars[chars.len() - (kept - head)..]);
        first.iter().chain(&['…']).chain(last).collect::<String>()
    };
    (0..chars.len()).rev().map(ends).find(|text| width(text) <= room).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_as_wide_as_it_says_and_is_cut_at_the_edge() {
        let mut img = RgbImage::from_pixel(40, 20, Rgb([255; 3]));
        draw(&mut img, 0, 0, "HHHHHHH", Rgb([0; 3]));
        let inked = |img: &RgbImage, x: u32| (0..20).any(|y| img.get_pixel(x, y)[0] < 128);
        assert!((0..40).any(|x| inked(&img, x)) && (0..20).filter(|&y| img.get_pixel(2, y)[0] < 250).count() >= 11);
        let mut img = RgbImage::from_pixel(200, 20, Rgb([255; 3]));
        draw(&mut img, 0, 0, "HH", Rgb([0; 3]));
        let last = (0..200).filter(|&x| inked(&img, x)).max().unwrap();
        assert!((width("HH") - 4..width("HH")).contains(&last), "{last} of {}", width("HH"));
        draw(&mut img, 0, u32::MAX - 30, "below", Rgb([0; 3]));
    }

    #[test]
    fn long_text_keeps_both_ends() {
        assert_eq!(shorten("short", 100), "short");
        let path = "animals/mammals/cats/tabby-0001.png";
        let short = shorten(path, width(path) / 2);
        let (head, tail) = short.split_once('…').unwrap();
        assert!(path.starts_with(head) && path.ends_with(tail) && head.len() > 3 && tail.len() > head.len(), "{short}");
        assert!(width(&short) <= width(path) / 2);
        assert_eq!(shorten("long text", width("…")), "…");
        assert_eq!(shorten("long text", 0), "");
    }
}
