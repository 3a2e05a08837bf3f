//! A sheet of pictures: images, their masks, and predictions.

use image::{Rgb, RgbImage};

use super::set::IGNORED;

/// Side of a panel, in pixels.
pub(crate) const PANEL: u32 = 192;
/// Pixels between panels.
const GAP: u32 = 4;
/// Color of pixels without a class; that of PASCAL VOC's masks.
const NO_CLASS: [u8; 3] = [224, 224, 192];

/// Rows of panels: an image, its mask, and a prediction by each model. Panels are squares of [`PANEL`] pixels.
#[derive(Debug)]
pub(crate) struct Sheet {
    columns: u32,
    rows: Vec<Vec<RgbImage>>,
}

impl Sheet {
    /// An empty sheet with a column for each of `models`.
    pub(crate) fn new(models: usize) -> Sheet {
        Sheet { columns: 2 + models as u32, rows: Vec::new() }
    }

    /// Adds an image of [`PANEL`] pixels, and the classes of its square mask and of each prediction, which have the mask's size.
    pub(crate) fn add(&mut self, image: &images::RgbImage, classes: &[&[u16]]) {
        let image = RgbImage::from_fn(PANEL, PANEL, |x, y| {
            let at = 3 * (y * image.width + x) as usize;
            Rgb(std::array::from_fn(|channel| image.data.get(at + channel).copied().unwrap_or_default()))
        });
        let panels = classes.iter().map(|classes| panel(classes));
        self.rows.push(std::iter::once(image).chain(panels).collect());
    }

    /// The sheet as one image; `None` without a row.
    pub(crate) fn image(&self) -> Option<RgbImage> {
        let rows = u32::try_from(self.rows.len()).ok().filter(|&rows| rows > 0)?;
        let total = |panels: u32| panels * (PANEL + GAP) - GAP;
        let mut sheet = RgbImage::from_pixel(total(self.columns), total(rows), Rgb([255; 3]));
        for (row, panels) in (0..).zip(&self.rows) {
            for (column, panel) in (0..).zip(panels) {
                let [x, y] = [column, row].map(|at: i64| at * i64::from(PANEL + GAP));
                image::imageops::replace(&mut sheet, panel, x, y);
            }
        }
        Some(sheet)
    }
}

/// A square of classes in colors, by the nearest pixel.
fn panel(classes: &[u16]) -> RgbImage {
    let side = classes.len().isqrt();
    let nearest = |at: u32| (2 * at as usize + 1) * side / (2 * PANEL as usize);
    RgbImage::from_fn(PANEL, PANEL, |x, y| Rgb(color(classes[nearest(y) * side + nearest(x)])))
}

/// The color of a class in PASCAL VOC's palette: the bits of its number are dealt out to the high bits of red, green and blue.
fn color(class: u16) -> [u8; 3] {
    if class == IGNORED {
        return NO_CLASS;
    }
    let mut rgb = [0u8; 3];
    for level in 0..6 {
        for (channel, value) in (0..).zip(&mut rgb) {
            let bit = (u32::from(class) >> (3 * level + channel)) & 1;
            *value |= (bit << (7 - level)) as u8;
        }
    }
    rgb
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first colors of the VOC devkit's `VOClabelcolormap`.
    #[test]
    fn colors_are_those_of_pascal_voc() {
        let colors = [0, 1, 2, 3, 4, 7, 8, 20].map(color);
        let expected: [[u8; 3]; 8] = [
            [0, 0, 0],
            [128, 0, 0],
            [0, 128, 0],
            [128, 128, 0],
            [0, 0, 128],
            [128, 128, 128],
            [64, 0, 0],
            [0, 64, 128],
        ];
        assert_eq!(colors, expected);
        let distinct: std::collections::BTreeSet<_> = (0..4096).map(color).collect();
        assert_eq!(distinct.len(), 4096);
    }

    #[test]
    fn panels_stand_side_by_side() {
        let mut sheet = Sheet::new(1);
        assert!(sheet.image().is_none());
        let size = (PANEL * PANEL * 3) as usize;
        let image = images::RgbImage { width: PANEL, height: PANEL, data: vec![9; size] };
        sheet.add(&image, &[&[0, 1, 2, IGNORED], &[4; 9]]);
        let drawn = sheet.image().unwrap();
        assert_eq!(drawn.dimensions(), (3 * PANEL + 2 * GAP, PANEL));
        let at = |panel: u32, x: u32, y: u32| drawn.get_pixel(panel * (PANEL + GAP) + x, y).0;
        assert_eq!(at(0, 0, 0), [9; 3]);
        let (low, high) = (PANEL / 2 - 1, PANEL / 2);
        assert_eq!([at(1, low, low), at(1, high, low), at(1, low, high)], [0, 1, 2].map(color));
        assert_eq!(at(1, high, high), NO_CLASS);
        assert_eq!(at(2, 0, 0), color(4));
        assert_eq!(drawn.get_pixel(PANEL, 0).0, [255; 3]);
    }
}
