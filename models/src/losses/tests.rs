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

fn random(name: &str) -> Tensor {
    crate::init::Init::Normal { std: 1.0 }.tensor(&[3, 4, 8], 2, name)
}

#[test]
fn the_mean_over_images_is_the_loss_of_the_batch() {
    let (pred, target) = (random("pred"), random("target").to_kind(Kind::Half));
    for loss in
        [MimicLoss::L2, MimicLoss::SmoothL1 { beta: 0.7 }, MimicLoss::Cosine, MimicLoss::CosineSmoothL1 { beta: 0.7 }]
    {
        let each = loss.per_image(&pred, &target);
        assert_eq!((each.kind(), each.size()), (Kind::Float, vec![3]), "{loss:?}");
        assert_values(&each.mean(Kind::Float).reshape([1]), &values(&loss.forward(&pred, &target).reshape([1])));
        for i in 0..3 {
            let alone = loss.forward(&pred.narrow(0, i, 1), &target.narrow(0, i, 1));
            assert_values(&each.narrow(0, i, 1), &values(&alone.reshape([1])));
        }
    }
}

/// Where an arc cosine in f32 has lost every digit, and at both ends, where its derivative is infinite.
#[test]
fn angles_are_exact_and_have_gradients_everywhere() {
    let at = |radians: f64| Tensor::from_slice(&[3.0 * radians.cos(), 3.0 * radians.sin()]).to_kind(Kind::Float);
    for radians in [0.0, 1e-5, 1e-3, 0.5, 1.5, 3.0, std::f64::consts::PI] {
        let pred = at(radians).unsqueeze(0).set_requires_grad(true);
        let found = angle(&pred, &at(0.0).unsqueeze(0));
        let difference = (found.double_value(&[0]) - radians).abs();
        assert!(difference < 1e-6 * radians.max(1e-3), "{radians} is off by {difference:e}");
        found.square().sum(Kind::Float).backward();
        let grad = values(&pred.grad());
        // The angle grows with the second channel by 1 / length, across the vector.
        let expected = if radians == 0.0 || radians > 3.1 { 0.0 } else { 2.0 * radians / 3.0 };
        let length = grad.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
        assert!(radians > 3.1 || (length - expected).abs() < 1e-5 + 1e-3 * expected, "{radians}: {grad:?}");
        assert!(grad.iter().all(|g| g.is_finite()), "{radians}: {grad:?}");
    }
}

#[test]
fn the_dispersion_is_the_mean_squared_angle_to_the_mean() {
    // A right angle between them, so an eighth of a turn from the mean for each, when they are equally long.
    let quarter = std::f64::consts::FRAC_PI_4;
    let two = Tensor::from_slice(&[2f32, 0.0, 0.0, 2.0]).reshape([2, 2]);
    assert!((angular_dispersion(&two) - quarter.powi(2)).abs() < 1e-12);
    // The longer one pulls the mean towards it.
    let longer = Tensor::from_slice(&[6f32, 0.0, 0.0, 2.0]).reshape([2, 2]);
    let (near, far) = ((1f64 / 3.0).atan(), 3f64.atan());
    assert!((angular_dispersion(&longer) - (near.powi(2) + far.powi(2)) / 2.0).abs() < 1e-12);
    let same = Tensor::from_slice(&[1f32, 2.0, 2.0, 4.0]).reshape([2, 2]);
    assert!(angular_dispersion(&same) < 1e-12);
}

/// Inside a bf16 scope and from bf16 predictions: the squared angle between equal vectors is 0, where one rounded to bf16 would be off by up to
/// 2^-8 in its cosine.
#[test]
fn losses_of_class_tokens_are_f32_inside_a_bf16_scope() {
    let token = random("token").select(1, 0).to_kind(Kind::BFloat16);
    let dispersion = Tensor::from_slice(&[0.5f32]);
    let _bf16 = torch_ext::Autocast::bf16(tch::Device::Cpu);
    for loss in
        [ClsLoss::Angle, ClsLoss::Mimic(MimicLoss::Cosine), ClsLoss::Mimic(MimicLoss::CosineSmoothL1 { beta: 1.0 })]
    {
        let (mean, each) =
            (loss.forward(&token, &token, Some(&dispersion)), loss.per_image(&token, &token, Some(&dispersion)));
        assert_eq!((mean.kind(), each.kind(), each.size()), (Kind::Float, Kind::Float, vec![3]), "{loss:?}");
        assert!(mean.abs().double_value(&[]) < 1e-6, "{loss:?}: {mean}");
    }
}
