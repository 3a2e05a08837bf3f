//! Letters of 5 x 9 dots, drawn for this project: seven rows above the baseline, two below.

use std::sync::LazyLock;

/// Columns of a letter.
pub(super) const WIDTH: usize = 5;
/// Rows of a letter.
pub(super) const HEIGHT: usize = 9;
/// Rows above the baseline.
pub(super) const ASCENT: usize = 7;

/// Space to `~` in the order of ASCII, eight in a row, then the box that stands for every other character.
const ART: &str = include_str!("font.txt");
const PER_ROW: usize = 8;
const FIRST: u32 = ' ' as u32;
const COUNT: usize = 96;

/// A letter's dots, true where there is ink.
pub(super) type Glyph = [[bool; WIDTH]; HEIGHT];

static GLYPHS: LazyLock<Vec<Glyph>> = LazyLock::new(|| {
    let lines: Vec<&str> = ART.lines().filter(|line| !line.is_empty()).collect();
    let glyph = |number: usize| {
        let (band, column) = (number / PER_ROW, number % PER_ROW);
        std::array::from_fn(|y| {
            let line = lines[band * HEIGHT + y].as_bytes();
            std::array::from_fn(|x| line[column * (WIDTH + 1) + x] == b'#')
        })
    };
    (0..COUNT).map(glyph).collect()
});

/// The dots of a character; a box for what is not printable ASCII.
pub(super) fn glyph(c: char) -> &'static Glyph {
    let number = (c as u32).checked_sub(FIRST).map_or(COUNT - 1, |number| number as usize);
    &GLYPHS[number.min(COUNT - 1)]
}

/// The dots twice as large, with the steps of diagonals filled (the rule of EPX and Scale2x: a quarter takes the colour of the
/// two neighbours at its corner where these agree and the opposite ones do not).
pub(super) fn doubled(glyph: &Glyph) -> [[bool; 2 * WIDTH]; 2 * HEIGHT] {
    let at = |x: Option<usize>, y: Option<usize>| match (x, y) {
        (Some(x), Some(y)) if x < WIDTH && y < HEIGHT => glyph[y][x],
        _ => false,
    };
    std::array::from_fn(|row| {
        std::array::from_fn(|column| {
            let (x, y) = (column / 2, row / 2);
            let (up, down) = (at(Some(x), y.checked_sub(1)), at(Some(x), Some(y + 1)));
            let (left, right) = (at(x.checked_sub(1), Some(y)), at(Some(x + 1), Some(y)));
            let (vertical, other_vertical) = if row % 2 == 0 { (up, down) } else { (down, up) };
            let (horizontal, other_horizontal) = if column % 2 == 0 { (left, right) } else { (right, left) };
            if vertical == horizontal && vertical != other_horizontal && horizontal != other_vertical {
                vertical
            } else {
                glyph[y][x]
            }
        })
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_art_holds_96_letters_that_all_differ() {
        let lines: Vec<&str> = ART.lines().filter(|line| !line.is_empty()).collect();
        assert_eq!(lines.len(), COUNT / PER_ROW * HEIGHT);
        for line in lines {
            assert_eq!(line.len(), PER_ROW * (WIDTH + 1) - 1, "{line}");
            assert!(line.bytes().all(|b| matches!(b, b'.' | b'#' | b' ')));
        }
        let distinct: BTreeSet<_> = (' '..='\u{7f}').map(glyph).collect();
        assert_eq!(distinct.len(), COUNT);
        assert!(glyph(' ').iter().flatten().all(|ink| !ink));
        assert_eq!(glyph('é'), glyph('\u{7f}'));
        assert_eq!(glyph('\n'), glyph('\u{7f}'));
        assert_eq!(glyph('T')[0], [true; 5]);
    }

    /// Straight strokes stay as they are; a diagonal gets its corners.
    #[test]
    fn doubling_keeps_strokes_and_fills_diagonals() {
        let big = doubled(glyph('-'));
        assert_eq!(big.iter().flatten().filter(|ink| **ink).count(), 4 * 5);
        assert!(big[6].iter().all(|ink| *ink) && big[7].iter().all(|ink| *ink));
        let plain = glyph('/').iter().flatten().filter(|ink| **ink).count();
        let big = doubled(glyph('/'));
        assert!(big.iter().flatten().filter(|ink| **ink).count() > 4 * plain - 4);
    }
}
