//! A sheet to put pictures and words on.

use images::RgbImage;

use super::font;

/// Red, green, blue.
pub(super) type Rgb = [u8; 3];

/// Pixels from one letter's left edge to the next one's.
pub(super) const ADVANCE: u32 = 2 * (font::WIDTH as u32 + 1);
/// Pixels from the top of a capital to the baseline.
pub(super) const CAPITAL: u32 = 2 * font::ASCENT as u32;

/// An image that is drawn on; what lies outside is cut off.
#[derive(Debug)]
pub(super) struct Canvas {
    pub(super) img: RgbImage,
}

impl Canvas {
    pub(super) fn new(width: u32, height: u32, colour: Rgb) -> Canvas {
        let pixels = width as usize * height as usize;
        Canvas { img: RgbImage { width, height, data: colour.repeat(pixels) } }
    }

    pub(super) fn set(&mut self, x: u32, y: u32, colour: Rgb) {
        if x < self.img.width && y < self.img.height {
            let at = 3 * (y as usize * self.img.width as usize + x as usize);
            self.img.data[at..at + 3].copy_from_slice(&colour);
        }
    }

    pub(super) fn fill(&mut self, [x, y, w, h]: [u32; 4], colour: Rgb) {
        for y in y..y.saturating_add(h).min(self.img.height) {
            for x in x..x.saturating_add(w).min(self.img.width) {
                self.set(x, y, colour);
            }
        }
    }

    pub(super) fn paste(&mut self, img: &RgbImage, x: u32, y: u32) {
        for (row, line) in img.data.chunks_exact(3 * img.width as usize).enumerate() {
            for (column, colour) in line.as_chunks::<3>().0.iter().enumerate() {
                self.set(x + column as u32, y + row as u32, *colour);
            }
        }
    }

    /// Writes a line with the top of its capitals at `y`.
    pub(super) fn text(&mut self, x: u32, y: u32, text: &str, colour: Rgb) {
        for (i, c) in text.chars().enumerate() {
            let left = x.saturating_add(ADVANCE.saturating_mul(i as u32));
            if left >= self.img.width {
                break;
            }
            for (row, dots) in font::doubled(font::glyph(c)).iter().enumerate() {
                for (column, _) in dots.iter().enumerate().filter(|(_, ink)| **ink) {
                    self.set(left + column as u32, y + row as u32, colour);
                }
            }
        }
    }
}

/// Width in pixels of a line of text.
pub(super) fn text_width(text: &str) -> u32 {
    (text.chars().count() as u32).saturating_mul(ADVANCE).saturating_sub(2)
}

/// The text if it fits in `width` pixels, else its beginning and end with dots between: of a path, both ends tell.
pub(super) fn shorten(text: &str, width: u32) -> String {
    let room = ((width + 2) / ADVANCE) as usize;
    let chars: Vec<char> = text.chars().collect();
    if chars.len() <= room {
        return text.to_owned();
    }
    let kept = room.saturating_sub(2);
    let (head, tail) = (kept / 3, kept - kept / 3);
    let dots = ".".repeat(room.min(2));
    let ends = |range: &[char]| range.iter().collect::<String>();
    format!("{}{dots}{}", ends(&chars[..head]), ends(&chars[chars.len() - tail..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_as_wide_as_it_says_and_is_cut_at_the_edge() {
        let mut canvas = Canvas::new(40, 20, [255; 3]);
        canvas.text(0, 0, "TTTTTTT", [0; 3]);
        let inked = |x: u32| (0..20).any(|y| canvas.img.data[3 * (y as usize * 40 + x as usize)] == 0);
        assert!(inked(0) && inked(text_width("TT") - 1) && !inked(10) && !inked(11));
        canvas.text(0, u32::MAX - 30, "below", [0; 3]);
        canvas.fill([30, 10, u32::MAX, u32::MAX], [1, 2, 3]);
        assert_eq!(canvas.img.data[canvas.img.data.len() - 3..], [1, 2, 3]);
    }

    #[test]
    fn long_text_keeps_both_ends() {
        assert_eq!(shorten("short", 100), "short");
        assert_eq!(shorten("animals/mammals/cats/tabby-0001.png", 20 * ADVANCE), "animal..bby-0001.png");
        assert_eq!(shorten("long text", ADVANCE), ".");
        assert_eq!(shorten("long text", 0), "");
    }
}
