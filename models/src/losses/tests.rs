use super::*;

fn values(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor.flatten(0, -1)).unwrap()
}

fn assert_values(found: &Tensor, expected: &[f32]) {
    let found = values(found);
    assert_eq!(found.len(), expected.len());
    assert!(
        found
            .iter()
            .zip(expected)
            .all(|(a, b)| (a - b).abs() < 1e-5),
        "{found:?}, not {expected:?}"
    );
}

#[test]
fn only_removed_patches_count() {
    let pred = Tensor::from_slice(&[1f32, 1.0, 5.0, 5.0, 0.0, 2.0]).reshape([1, 3, 2]);
    let target = Tensor::zeros([1, 3, 2], (Kind::Float, tch::Device::Cpu));
    let loss = |mask: &[f32; 3]| {
        masked_patch_loss(&pred, &target, &Tensor::from_slice(mask).unsqueeze(0)).double_value(&[])
    };
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
    assert_values(
        &norm_pix(&patch),
        &[-2.0 / deviation, -1.0 / deviation, 0.0, 3.0 / deviation],
    );
    assert_values(
        &norm_pix(&Tensor::full(
            [1, 1, 4],
            0.7,
            (Kind::Float, tch::Device::Cpu),
        )),
        &[0.0; 4],
    );
}

#[test]
fn target_norms() {
    let token = Tensor::from_slice(&[3f32, 0.0, 0.0, -4.0])
        .reshape([1, 1, 4])
        .to_kind(Kind::Half);
    assert_values(&TargetNorm::None.forward(&token), &[3.0, 0.0, 0.0, -4.0]);
    assert_values(&TargetNorm::L2.forward(&token), &[1.2, 0.0, 0.0, -1.6]);
    // Mean -1/4, biased variance 99/16.
    let deviation = (99f32 / 16.0).sqrt();
    let expected = [3.25, 0.25, 0.25, -3.75].map(|v: f32| v / deviation);
    assert_values(&TargetNorm::Ln.forward(&token), &expected);
    for norm in [TargetNorm::None, TargetNorm::Ln, TargetNorm::L2] {
        assert_eq!(norm.forward(&token).kind(), Kind::Float);
        assert_values(&norm.forward(&token.zeros_like()), &[0.0; 4]);
    }
}

#[test]
fn target_norms_are_spelt_as_in_a_recipe() {
    for (norm, word) in [
        (TargetNorm::None, "\"none\""),
        (TargetNorm::Ln, "\"ln\""),
        (TargetNorm::L2, "\"l2\""),
    ] {
        assert_eq!(serde_json::to_string(&norm).unwrap(), word);
        assert_eq!(serde_json::from_str::<TargetNorm>(word).unwrap(), norm);
    }
    assert_eq!(TargetNorm::default(), TargetNorm::Ln);
}

#[test]
fn the_mimic_loss_is_the_mean_square_in_f32() {
    let pred = Tensor::from_slice(&[256f32, 1.0])
        .reshape([1, 1, 2])
        .to_kind(Kind::BFloat16);
    let target = Tensor::from_slice(&[0f32, 0.0]).reshape([1, 1, 2]);
    let loss = mimic_loss(&pred, &target);
    assert_eq!((loss.kind(), loss.dim()), (Kind::Float, 0));
    assert_eq!(loss.double_value(&[]), (65536.0 + 1.0) / 2.0);
}
