use super::*;

fn values(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor.flatten(0, -1)).unwrap()
}

fn assert_values(found: &Tensor, expected: &[f32]) {
    let found = values(found);
    assert_eq!(found.len(), expected.len());
    assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5), "{found:?}, not {expected:?}");
}

#[test]
fn only_removed_patches_count() {
    let pred = Tensor::from_slice(&[1f32, 1.0, 5.0, 5.0, 0.0, 2.0]).reshape([1, 3, 2]);
    let target = Tensor::zeros([1, 3, 2], (Kind::Float, tch::Device::Cpu));
    let loss =
        |mask: &[f32; 3]| masked_patch_loss(&pred, &target, &Tensor::from_slice(mask).unsqueeze(0)).double_value(&[]);
    assert_eq!(loss(&[1.0, 0.0, 0.0]), 1.0);
    assert_eq!(loss(&[1.0, 0.0, 1.0]), 1.5);
    assert_eq!(loss(&[0.0, 1.0, 1.0]), (25.0 + 2.0) / 2.0);
    assert!(loss(&[0.0; 3]).is_nan());
}

#[test]
fn the_pixel_target_has_unbiased_variance_one() {
    let patch = Tensor::from_slice(&[1f32, 2.0, 3.0, 6.0]).reshape([1, 1, 4]);
    // Mean 3, squared deviations 4 1 0 9: the unbiased variance is 14/3.
    let deviation = (14f32 / 3.0).sqrt();
    assert_values(&norm_pix(&patch), &[-2.0 / deviation, -1.0 / deviation, 0.0, 3.0 / deviation]);
    assert_values(&norm_pix(&Tensor::full([1, 1, 4], 0.7, (Kind::Float, tch::Device::Cpu))), &[0.0; 4]);
}

#[test]
fn the_squared_loss_is_a_mean_in_f32() {
    let pred = Tensor::from_slice(&[256f32, 1.0]).reshape([1, 1, 2]).to_kind(Kind::BFloat16);
    let target = Tensor::from_slice(&[0f32, 0.0]).reshape([1, 1, 2]);
    let loss = MimicLoss::L2.forward(&pred, &target);
    assert_eq!((loss.kind(), loss.dim()), (Kind::Float, 0));
    assert_eq!(loss.double_value(&[]), (65536.0 + 1.0) / 2.0);
}

#[test]
fn smooth_l1_is_a_square_up_to_beta_and_a_line_beyond() {
    let pred = Tensor::from_slice(&[1f32, -3.0]).reshape([1, 1, 2]);
    let target = Tensor::zeros([1, 1, 2], (Kind::Half, tch::Device::Cpu));
    let loss = |beta| MimicLoss::SmoothL1 { beta }.forward(&pred, &target).double_value(&[]);
    // 1²/4 and 3 - 1, at beta 2; 1 - 1/4 and 3 - 1/4, at beta 1/2.
    assert!((loss(2.0) - (0.25 + 2.0) / 2.0).abs() < 1e-6);
    assert!((loss(0.5) - (0.75 + 2.75) / 2.0).abs() < 1e-6);
}

#[test]
fn the_cosine_loss_sees_directions_alone() {
    let token = |values: &[f32]| Tensor::from_slice(values).reshape([1, 2, 2]);
    let pred = token(&[3.0, 0.0, 0.0, 2.0]);
    let loss = |target: &Tensor| MimicLoss::Cosine.forward(&pred, target).double_value(&[]);
    assert!(loss(&(&pred * 7.0)).abs() < 1e-6);
    // The first token the same, the second turned by 180 degrees: (0 + 2) / 2.
    assert!((loss(&token(&[1.0, 0.0, 0.0, -1.0])) - 1.0).abs() < 1e-6);
}
