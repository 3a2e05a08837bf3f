//! Principal components of tokens as colors.

use anyhow::{Context, ensure};
use tch::{Kind, Tensor};

/// Number of components: one each for red, green and blue.
pub(super) const COMPONENTS: usize = 3;

/// Largest number of tokens that the components are fitted to, evenly spaced; more would make no visible difference.
const MAX_FIT: usize = 16_384;

/// Largest number of channels: the covariance has its square, 2 GiB at this width.
const MAX_WIDTH: usize = 16_384;

/// Share of the values outside of a color's range at each end.
const TAIL: f64 = 0.01;

/// Colors of the tokens of one teacher that can be compared between views.
#[derive(Debug)]
pub(super) struct Pca {
    /// `[N, 3]`, in 0..1: 0 at the 1st percentile of a component over all tokens, 1 at the 99th; 0.5 for a component that does
    /// not exist.
    pub(super) colors: Vec<[f32; COMPONENTS]>,
    /// Share of the variance that each component explains.
    pub(super) explained: [f64; COMPONENTS],
}

/// The first three principal components of `tokens [N, width]` (`N` at least 1), all finite. The sign of a component is that in
/// which its largest coefficient (the first of equals) is positive.
pub(super) fn pca(tokens: &[f32], width: usize) -> anyhow::Result<Pca> {
    ensure!(
        width <= MAX_WIDTH,
        "tokens of {width} channels are too wide for principal components; the most are {MAX_WIDTH}"
    );
    let n = tokens.len() / width;
    let step = n.div_ceil(MAX_FIT).max(1);
    let fitted: Vec<f32> = tokens.chunks_exact(width).step_by(step).flatten().copied().collect();
    let (mean, axes, explained) = components(&fitted, width)?;
    let mut scores: Vec<[f32; COMPONENTS]> = tokens
        .chunks_exact(width)
        .map(|token| {
            std::array::from_fn(|k| match axes.get(k) {
                Some(axis) => project(token, &mean, axis) as f32,
                None => 0.0,
            })
        })
        .collect();
    for k in 0..COMPONENTS {
        let mut values: Vec<f32> = scores.iter().map(|score| score[k]).collect();
        values.sort_by(f32::total_cmp);
        let at = |share: f64| values[((values.len() - 1) as f64 * share).round() as usize];
        let (low, high) = (at(TAIL), at(1.0 - TAIL));
        for score in &mut scores {
            score[k] = if high > low { ((score[k] - low) / (high - low)).clamp(0.0, 1.0) } else { 0.5 };
        }
    }
    Ok(Pca { colors: scores, explained })
}

fn project(token: &[f32], mean: &[f64], axis: &[f64]) -> f64 {
    let centered = token.iter().zip(mean).map(|(&v, m)| f64::from(v) - m);
    centered.zip(axis).map(|(v, a)| v * a).sum()
}

type Components = (Vec<f64>, Vec<Vec<f64>>, [f64; COMPONENTS]);

/// Mean, axes of unit length by falling variance (fewer than three where the variance is used up), and explained shares.
fn components(tokens: &[f32], width: usize) -> anyhow::Result<Components> {
    let context = "cannot find the principal components";
    let (rows, columns) = (i64::try_from(tokens.len() / width)?, i64::try_from(width)?);
    let decompose = || -> Result<_, tch::TchError> {
        let x = Tensor::f_from_slice(tokens)?.f_view([rows, columns])?.f_to_kind(Kind::Double)?;
        let mean = x.f_mean_dim(&[0i64][..], true, Kind::Double)?;
        let x = x.f_sub(&mean)?;
        let covariance = x.f_tr()?.f_matmul(&x)?.f_div_scalar(rows as f64)?;
        let (values, vectors) = covariance.f_linalg_eigh("L")?;
        let flat = |t: &Tensor| Vec::<f64>::try_from(t.f_contiguous()?.f_view([-1])?);
        Ok((flat(&mean)?, flat(&values)?, flat(&vectors.f_tr()?)?))
    };
    // Eigenvalues ascend.
    let (mean, variances, vectors) = decompose().context(context)?;
    let total: f64 = variances.iter().map(|v| v.max(0.0)).sum();
    let mut axes = Vec::new();
    let mut explained = [0.0; COMPONENTS];
    for (k, explained) in explained.iter_mut().enumerate().take(width) {
        let at = width - 1 - k;
        // Without variance, rounding errors are not a component.
        if variances[at] <= total * 1e-12 || !variances[at].is_finite() {
            break;
        }
        *explained = variances[at] / total;
        let axis = &vectors[at * width..(at + 1) * width];
        let largest = axis.iter().copied().fold(0.0, |best: f64, v| if v.abs() > best.abs() { v } else { best });
        axes.push(axis.iter().map(|v| v * largest.signum()).collect());
    }
    Ok((mean, axes, explained))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Points on known orthogonal axes: 3 e2 wide, 2 (e0 + e1) / sqrt 2, 1 e3, about a mean far from zero.
    #[test]
    fn known_axes_come_back_in_order_with_their_sign() {
        let (a, b, c) = (3.0, 2.0, 1.0);
        let r = std::f64::consts::FRAC_1_SQRT_2;
        let mean = [100.0, -50.0, 7.0, 0.0, 20.0];
        let mut tokens = Vec::new();
        let mut amounts = Vec::new();
        for i in 0..8 {
            let sign = |bit: usize| if i >> bit & 1 == 1 { 1.0 } else { -1.0 };
            let (x, y, z) = (a * sign(0), b * sign(1), c * sign(2));
            // The second axis is given pointing backwards: its first coefficient must become positive.
            let point = [-r * y, -r * y, x, z, 0.0];
            tokens.extend((0..5).map(|d| (mean[d] + point[d]) as f32));
            amounts.push([x > 0.0, y < 0.0, z > 0.0]);
        }
        let (found_mean, axes, explained) = components(&tokens, 5).unwrap();
        for (found, expected) in found_mean.iter().zip(mean) {
            assert!((found - expected).abs() < 1e-5);
        }
        let expected = [[0.0, 0.0, 1.0, 0.0, 0.0], [r, r, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0, 0.0]];
        for (axis, expected) in axes.iter().zip(expected) {
            for (found, expected) in axis.iter().zip(expected) {
                // Tokens are f32: 100 plus a fraction is known to 4e-6.
                assert!((found - expected).abs() < 1e-5, "{axes:?}");
            }
        }
        for (found, expected) in explained.iter().zip([9.0, 4.0, 1.0]) {
            assert!((found - expected / 14.0).abs() < 1e-5, "{explained:?}");
        }
        let pca = pca(&tokens, 5).unwrap();
        for (color, amount) in pca.colors.iter().zip(amounts) {
            let bits = color.map(|v| v > 0.5);
            assert_eq!(bits, amount, "{:?}", pca.colors);
        }
    }

    /// One far token takes a hundredth of the range at most, and cannot wash out the others.
    #[test]
    fn outliers_do_not_set_the_range() {
        let mut tokens: Vec<f32> = (0..1000).flat_map(|i| [i as f32 / 1000.0, 0.0]).collect();
        tokens[1] = 1.0e-3;
        tokens[2 * 999] = 50.0;
        let pca = pca(&tokens, 2).unwrap();
        assert_eq!(pca.colors[999][0], 1.0);
        assert!((pca.colors[500][0] - 0.5).abs() < 0.02);
        assert_eq!(pca.colors[0][2], 0.5, "two channels have two components");
    }

    #[test]
    fn what_does_not_vary_is_gray() {
        for n in [1, 5] {
            let pca = pca(&[2.5, -1.0, 4.0, 3.0].repeat(n), 4).unwrap();
            assert_eq!(pca.colors, vec![[0.5; 3]; n]);
            assert_eq!(pca.explained, [0.0; 3]);
        }
    }
}
