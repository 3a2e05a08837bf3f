//! Rotary positions for a grid of patches (Su et al. 2021; in two dimensions as DINOv3 has them, Siméoni et al. 2025).

use std::f64::consts::TAU;

use tch::{Device, Tensor};

/// Angles by which queries and keys of each token are turned.
///
/// A patch's coordinates are those of its centre, each axis scaled to -1..1 on its own, so that every grid spans the same range.
/// A head of `d` numbers has `d/4` frequencies per axis, `base^(-4k/d)` turns per unit; the first half of the turned pairs
/// belongs to the row, the second to the column. Pairs are `(i, i + d/2)`, "rotate half", not neighbours. Source:
/// facebookresearch/dinov3, `RopePositionEmbedding`, which transformers and timm follow.
#[derive(Debug)]
pub struct Rotary {
    cos: Tensor,
    sin: Tensor,
}

impl Rotary {
    /// For `prefix` tokens that are not turned (CLS, registers), then the patches of the grid `(h, w)` row-major.
    ///
    /// # Panics
    /// Unless 4 divides `head_dim`.
    pub fn axial(base: f64, head_dim: i64, prefix: i64, (h, w): (i64, i64), device: Device) -> Rotary {
        assert!(head_dim % 4 == 0, "rotary positions need heads of a width that 4 divides, not {head_dim}");
        let quarter = head_dim / 4;
        let frequencies: Vec<f64> = (0..quarter).map(|k| TAU * base.powf(-(k as f64) / quarter as f64)).collect();
        let centre = |i: i64, n: i64| 2.0 * (i as f64 + 0.5) / n as f64 - 1.0;
        let mut angles = vec![0f64; (prefix * head_dim) as usize];
        for row in 0..h {
            for column in 0..w {
                // The second half of the head has the same angles as the first.
                for _ in 0..2 {
                    for coordinate in [centre(row, h), centre(column, w)] {
                        angles.extend(frequencies.iter().map(|f| coordinate * f));
                    }
                }
            }
        }
        let table = |function: fn(f64) -> f64| {
            let values: Vec<f32> = angles.iter().map(|&a| function(a) as f32).collect();
            Tensor::from_slice(&values).view([prefix + h * w, head_dim]).to_device(device)
        };
        Rotary { cos: table(f64::cos), sin: table(f64::sin) }
    }

    /// Another handle on the same angles.
    pub(crate) fn shallow_clone(&self) -> Rotary {
        Rotary { cos: self.cos.shallow_clone(), sin: self.sin.shallow_clone() }
    }

    /// Queries or keys `[N, H, T, d]` of all tokens, turned. Computed in f32, given back in the type of `x`.
    pub fn turn(&self, x: &Tensor) -> Tensor {
        let kind = x.kind();
        let half = x.size()[3] / 2;
        let swapped = Tensor::cat(&[-x.narrow(3, half, half), x.narrow(3, 0, half)], 3);
        (x * &self.cos + swapped * &self.sin).to_kind(kind)
    }
}
