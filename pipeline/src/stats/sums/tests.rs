use super::*;

fn teacher() -> Sums {
    // A grid of 2 x 2, 3 channels.
    Sums {
        count: vec![0; 3],
        sum: vec![0.0; 3],
        sum_sq: vec![0.0; 3],
        min: vec![f32::INFINITY; 3],
        max: vec![f32::NEG_INFINITY; 3],
        outliers: vec![0; 4],
        attention: vec![0.0; 4],
        rows: 0,
        tokens: 0,
        non_finite: NonFinite::default(),
        token_norm: Sketch::default(),
        cls_norm: Sketch::default(),
        entropy: Sketch::default(),
        peak: Sketch::default(),
        attention_sum: Sketch::default(),
        rows_without: 0,
    }
}

#[test]
fn what_is_not_finite_is_counted_and_left_out() {
    let mut sums = teacher();
    assert_eq!(sums.add_token(&[3.0, 0.0, -4.0]), 5.0);
    assert!(sums.add_token(&[f32::NAN, 2.0, f32::NEG_INFINITY]).is_nan());
    assert_eq!(sums.add_token(&[f32::MAX, 0.0, 0.0]), f64::from(f32::MAX));
    sums.rows = 1;
    sums.add_norms(&[5.0, f64::NAN, 5.0, 5.0], &mut Vec::new());
    sums.add_attention(&[0.5, f32::NAN, 0.25, f32::INFINITY]);
    let features = sums.finish().unwrap();
    assert_eq!(features.non_finite, NonFinite { tokens: 2, cls: 0, cls_attn: 2 });
    assert_eq!(features.channels.mean[1], 2.0 / 3.0);
    assert_eq!(features.channels.mean[2], -2.0);
    assert_eq!((features.channels.min[2], features.channels.max[2]), (-4.0, 0.0));
    assert_eq!(features.attention.mean, [0.5, 0.0, 0.25, 0.0]);
    assert_eq!(features.attention.peak.max, 0.5);
    assert_eq!(features.attention.sum.max, 0.75);
}

#[test]
fn outliers_are_told_from_the_median_of_their_row() {
    let mut sums = teacher();
    let mut sorted = Vec::new();
    sums.add_norms(&[1.0, 1.2, 3.7, 0.9], &mut sorted);
    sums.add_norms(&[100.0, 110.0, 90.0, 310.0], &mut sorted);
    // Exactly three times the median is none.
    sums.add_norms(&[1.0, 1.0, 3.0, 1.0], &mut sorted);
    assert_eq!(sums.outliers, [0, 0, 1, 1]);
}

#[test]
fn attention_of_nothing_and_of_everything() {
    let mut sums = teacher();
    sums.add_attention(&[0.0; 4]);
    sums.add_attention(&[0.25; 4]);
    sums.add_attention(&[0.0, 0.0, 0.5, 0.0]);
    sums.rows = 3;
    let attention = sums.finish().unwrap().attention;
    assert_eq!(attention.rows_without, 1);
    assert_eq!(attention.entropy_most, 2.0);
    assert_eq!((attention.entropy_bits.min, attention.entropy_bits.max), (0.0, 2.0));
    assert_eq!(attention.mean, [0.125, 0.125, 0.375, 0.125]);
}
