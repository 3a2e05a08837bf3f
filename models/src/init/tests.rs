use tch::Kind;

use super::*;

const N: i64 = 400_000;

fn sample(init: Init, shape: &[i64]) -> Vec<f64> {
    let tensor = init.tensor(shape, 7, "weight");
    assert_eq!(tensor.size(), shape);
    assert_eq!(tensor.kind(), Kind::Float);
    Vec::<f64>::try_from(tensor.flatten(0, -1).to_kind(Kind::Double)).unwrap()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn std(values: &[f64]) -> f64 {
    (values.iter().map(|v| v * v).sum::<f64>() / values.len() as f64).sqrt()
}

/// Mean 0 and the given deviation within five standard errors, for a symmetric distribution of kurtosis at most 3.
fn check_moments(values: &[f64], expected_std: f64) {
    let error = 5.0 / (values.len() as f64).sqrt();
    assert!(mean(values).abs() < error * expected_std, "mean {}", mean(values));
    assert!((std(values) / expected_std - 1.0).abs() < error, "std {}, not {expected_std}", std(values));
}

#[test]
fn xavier_uniform_has_glorot_s_bound() {
    let values = sample(Init::XavierUniform, &[400, 1000]);
    let bound = (6.0f64 / 1400.0).sqrt();
    check_moments(&values, bound / 3f64.sqrt());
    let largest = values.iter().fold(0.0, |a: f64, v| a.max(v.abs()));
    assert!(largest <= bound * (1.0 + 1e-6) && largest > bound * 0.9999, "{largest}, bound {bound}");
}

#[test]
fn a_patch_projection_counts_as_a_linear_layer() {
    let bound = |shape: &[i64]| sample(Init::XavierUniform, shape).iter().fold(0.0, |a: f64, v| a.max(v.abs()));
    let flattened = (6.0f64 / (768.0 + 384.0)).sqrt();
    assert!((bound(&[384, 3, 16, 16]) / flattened - 1.0).abs() < 1e-3);
}

#[test]
fn normal_and_truncated_normal_have_their_deviation() {
    check_moments(&sample(Init::Normal { std: 0.02 }, &[N]), 0.02);
    check_moments(&sample(Init::TruncNormal { std: 0.02 }, &[N]), 0.02);
    let within_one = sample(Init::Normal { std: 1.0 }, &[N]).iter().filter(|v| v.abs() < 1.0).count();
    assert!((within_one as f64 / N as f64 - 0.682_689).abs() < 0.004);
}

#[test]
fn truncation_is_at_two_not_at_two_deviations() {
    let wide = sample(Init::TruncNormal { std: 2.0 }, &[N]);
    assert!(wide.iter().all(|v| v.abs() <= 2.0));
    // The deviation of N(0, 1) cut at ±1 is √(1 - 2 φ(1) / (2 Φ(1) - 1)).
    check_moments(&wide, 2.0 * 0.539_56);
    assert!(sample(Init::TruncNormal { std: 0.02 }, &[N]).iter().any(|v| v.abs() > 0.06));
}

#[test]
fn constants_and_bounds() {
    assert_eq!(sample(Init::Zeros, &[2, 2]), [0.0; 4]);
    assert_eq!(sample(Init::Ones, &[3]), [1.0; 3]);
    let values = sample(Init::Uniform { bound: 0.25 }, &[N]);
    check_moments(&values, 0.25 / 3f64.sqrt());
    assert!(values.iter().all(|v| v.abs() <= 0.25));
}

#[test]
fn streams_of_other_names_are_unrelated() {
    let normal = Init::Normal { std: 1.0 };
    let draw = |name| normal.tensor(&[N], 7, name).to_kind(Kind::Double);
    let correlation =
        (draw("blocks.0.attn.qkv.weight") * draw("blocks.1.attn.qkv.weight")).mean(None).double_value(&[]);
    assert!(correlation.abs() < 5.0 / (N as f64).sqrt(), "{correlation}");
}
