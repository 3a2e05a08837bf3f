//! Fixed two-dimensional sine-cosine positions (MAE, after Chen et al. 2021, MoCo v3).
//!
//! The first half of the channels encodes the *column*, the second half the row: the reference builds its mesh grid with w
//! first, and published weights depend on it. Sines come before cosines in each half. Computed in f64, stored as f32.

use tch::Tensor;

/// Positions of a `grid_h` × `grid_w` grid, row-major: `[1, L, dim]`, or `[1, 1 + L, dim]` with a row of zeros first for CLS.
///
/// # Panics
/// Unless 4 divides `dim`.
pub fn sincos_2d(dim: i64, grid_h: i64, grid_w: i64, cls_token: bool) -> Tensor {
    assert!(dim % 4 == 0, "sine-cosine positions need a width that 4 divides, not {dim}");
    let quarter = dim / 4;
    let omega: Vec<f64> = (0..quarter).map(|k| 10000f64.powf(-(k as f64) / quarter as f64)).collect();
    let mut values: Vec<f32> = Vec::with_capacity(((grid_h * grid_w + 1) * dim) as usize);
    if cls_token {
        values.resize(dim as usize, 0.0);
    }
    for row in 0..grid_h {
        for column in 0..grid_w {
            for position in [column as f64, row as f64] {
                values.extend(omega.iter().map(|w| (position * w).sin() as f32));
                values.extend(omega.iter().map(|w| (position * w).cos() as f32));
            }
        }
    }
    Tensor::from_slice(&values).reshape([1, -1, dim])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_come_first_and_cls_has_no_position() {
        let pos = sincos_2d(8, 2, 3, true);
        assert_eq!(pos.size(), [1, 7, 8]);
        let row = |i: i64| Vec::<f32>::try_from(pos.get(0).get(i)).unwrap();
        assert_eq!(row(0), [0.0; 8]);
        let angle = |p: f64| [p.sin(), (p * 0.01).sin(), p.cos(), (p * 0.01).cos()].map(|v| v as f32);
        // Token 1 + 1·3 + 2 is row 1, column 2.
        assert_eq!(row(6), [angle(2.0), angle(1.0)].concat());
    }
}
