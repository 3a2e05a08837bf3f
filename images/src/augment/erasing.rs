//! Random erasing (Zhong et al. 2017) in timm's `pixel` mode: a box of every image becomes noise.

use crate::rng::Rng;

/// Attempts to draw a box before the image is left unchanged, as in timm.
const TRIES: usize = 10;

/// Whether and where an image is erased. The noise is standard normal, because the pixels are normalized by then.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RandomErasing {
    /// Probability that an image is erased. 0.25 in MAE's fine-tuning.
    pub prob: f64,
    /// Smallest and largest share of the image's area.
    pub area: [f64; 2],
    /// Smallest and largest height over width; log-uniform between them.
    pub aspect: [f64; 2],
}

impl RandomErasing {
    /// timm's box (2 % to a third of the area, height over width from 0.3 to 1 / 0.3) with a probability.
    pub fn with_prob(prob: f64) -> Self {
        Self { prob, area: [0.02, 1.0 / 3.0], aspect: [0.3, 1.0 / 0.3] }
    }

    /// The box of one image of `width` x `height`, if it is erased. Draw the noise from the same stream afterwards.
    pub fn draw(&self, rng: &mut Rng, width: u32, height: u32) -> Option<EraseBox> {
        if rng.uniform_f64() >= self.prob {
            return None;
        }
        let mut uniform = |[low, high]: [f64; 2]| low + rng.uniform_f64() * (high - low);
        let area = f64::from(width) * f64::from(height);
        for _ in 0..TRIES {
            let target = uniform(self.area) * area;
            let aspect = uniform(self.aspect.map(f64::ln)).exp();
            // Python's round, which timm uses, rounds halves to even. A NaN becomes an empty box.
            let h = (target * aspect).sqrt().round_ties_even() as u32;
            let w = (target / aspect).sqrt().round_ties_even() as u32;
            if w < width && h < height {
                let y = rng.range(u64::from(height - h) + 1) as u32;
                let x = rng.range(u64::from(width - w) + 1) as u32;
                return Some(EraseBox { x, y, w, h });
            }
        }
        None
    }
}

/// A box inside an image. It may be empty in a tiny image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EraseBox {
    /// First column.
    pub x: u32,
    /// First row.
    pub y: u32,
    /// Columns.
    pub w: u32,
    /// Rows.
    pub h: u32,
}

impl EraseBox {
    /// Overwrites the box with standard normal noise, one number for each pixel and channel. `img` is `[3, H, W]`, normalized, `width`
    /// = W; rows and columns outside of it are skipped.
    pub fn erase(&self, rng: &mut Rng, img: &mut [f32], width: u32) {
        let (width, height) = (width as usize, img.len() / 3 / (width as usize).max(1));
        let (x, y) = (self.x as usize, self.y as usize);
        let columns = x.min(width)..(x + self.w as usize).min(width);
        let rows = y.min(height)..(y + self.h as usize).min(height);
        let mut spare = None;
        for channel in 0..3 {
            for row in rows.clone() {
                let start = (channel * height + row) * width;
                for value in &mut img[start + columns.start..start + columns.end] {
                    let normal = spare.take().unwrap_or_else(|| {
                        let [first, second] = rng.normal_pair();
                        spare = Some(second);
                        first
                    });
                    *value = normal as f32;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
