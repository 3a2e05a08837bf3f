use super::*;
use crate::init::Init;
use crate::params::ParamStore;

fn values(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor.flatten(0, -1)).unwrap()
}

fn assert_values(found: &Tensor, expected: &[f32]) {
    let found = values(found);
    assert_eq!(found.len(), expected.len());
    assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5), "{found:?}, not {expected:?}");
}

#[test]
fn norms_of_a_token_alone() {
    let token = Tensor::from_slice(&[3f32, 0.0, 0.0, -4.0]).reshape([1, 1, 4]).to_kind(Kind::Half);
    assert_values(&TargetNorm::None.per_token(&token), &[3.0, 0.0, 0.0, -4.0]);
    assert_values(&TargetNorm::L2.per_token(&token), &[1.2, 0.0, 0.0, -1.6]);
    // Mean -1/4, biased variance 99/16.
    let deviation = (99f32 / 16.0).sqrt();
    let expected = [3.25, 0.25, 0.25, -3.75].map(|v: f32| v / deviation);
    assert_values(&TargetNorm::Ln.per_token(&token), &expected);
    for norm in [TargetNorm::None, TargetNorm::Ln, TargetNorm::L2] {
        assert_eq!(norm.per_token(&token).kind(), Kind::Float);
        assert_values(&norm.per_token(&token.zeros_like()), &[0.0; 4]);
    }
}

#[test]
fn norms_are_spelt_as_in_a_recipe() {
    for (norm, word) in [
        (TargetNorm::None, "\"none\""),
        (TargetNorm::Ln, "\"ln\""),
        (TargetNorm::L2, "\"l2\""),
        (TargetNorm::Standardize, "\"standardize\""),
        (TargetNorm::PhiS, "\"phi_s\""),
    ] {
        assert_eq!(serde_json::to_string(&norm).unwrap(), word);
        assert_eq!(serde_json::from_str::<TargetNorm>(word).unwrap(), norm);
    }
    assert_eq!(TargetNorm::default(), TargetNorm::Ln);
}

/// 400 tokens of 12 correlated channels of very different size, and their statistics.
fn features() -> (Tensor, TargetStats) {
    let random = |shape: &[i64], name: &str| Init::Normal { std: 1.0 }.tensor(shape, 5, name).to_kind(Kind::Double);
    let mixing = random(&[12, 12], "mixing")
        * Tensor::from_slice(&[30.0, 3.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.1, 0.1, 0.1, 0.1, 0.01]);
    let tokens = random(&[400, 12], "tokens").matmul(&mixing) + random(&[12], "mean") * 5.0;
    let mean = tokens.mean_dim(0, false, Kind::Double);
    let centered = &tokens - &mean;
    let covariance = centered.tr().matmul(&centered) / 400.0;
    let vector = |t: &Tensor| Vec::<f64>::try_from(t.contiguous().flatten(0, -1)).unwrap();
    let stats = TargetStats {
        mean: vector(&mean),
        variance: vector(&covariance.diag(0)),
        covariance: Some(vector(&covariance)),
    };
    (tokens, stats)
}

fn target(norm: TargetNorm, stats: &TargetStats) -> (ParamStore, Target) {
    let store = ParamStore::new(Device::Cpu, 0);
    let target = Target::new(&store.root(), "clip", norm, 12, Some(stats)).unwrap();
    (store, target)
}

/// Mean 0 and variance 1 in every channel.
fn assert_standard(found: &Tensor) {
    let found = found.to_kind(Kind::Double);
    let mean = found.mean_dim(0, false, Kind::Double).abs().max();
    let variance = found.var_dim(0, false, false);
    assert!(mean.double_value(&[]) < 1e-4, "mean {mean}");
    let off = (variance - 1.0).abs().max().double_value(&[]);
    assert!(off < 1e-3, "variances differ from 1 by {off}");
}

#[test]
fn standardised_channels_have_mean_0_and_variance_1() {
    let (tokens, stats) = features();
    let (store, target) = target(TargetNorm::Standardize, &stats);
    assert_standard(&target.forward(&tokens));
    assert_eq!(store.get("mimic_targets.clip.scale").unwrap().size(), [12]);
    assert!(store.trainable().is_empty());
}

#[test]
fn phi_s_gives_every_channel_variance_1_and_keeps_the_ratios_of_distances() {
    let (tokens, stats) = features();
    let (store, target) = target(TargetNorm::PhiS, &stats);
    let found = target.forward(&tokens);
    assert_standard(&found);
    let distances = |x: &Tensor| {
        let x = x.to_kind(Kind::Double);
        (x.narrow(0, 0, 399) - x.narrow(0, 1, 399)).square().sum_dim_intlist(-1, false, Kind::Double).sqrt()
    };
    let ratio = distances(&found) / distances(&tokens);
    let spread = (ratio.max() / ratio.min()).double_value(&[]);
    assert!((spread - 1.0).abs() < 1e-4, "ratios spread by {spread}");
    assert_eq!(store.get("mimic_targets.clip.scale").unwrap().size(), [12, 12]);
}

#[test]
fn targets_stay_f32_inside_a_bf16_scope() {
    let (tokens, stats) = features();
    for norm in [TargetNorm::Ln, TargetNorm::Standardize, TargetNorm::PhiS] {
        let (_store, target) = target(norm, &stats);
        let expected = target.forward(&tokens);
        let _bf16 = Autocast::bf16(Device::Cpu);
        assert_eq!(target.forward(&tokens), expected, "{norm:?}");
    }
}

#[test]
fn statistics_that_cannot_be_are_refused() {
    let (_, stats) = features();
    let refused = |norm, width, stats: Option<&TargetStats>| {
        let store = ParamStore::new(Device::Cpu, 0);
        match Target::new(&store.root(), "clip", norm, width, stats) {
            Err(Error::Config { reason, .. }) => reason,
            other => panic!("{other:?}"),
        }
    };
    assert!(refused(TargetNorm::PhiS, 12, None).contains("needs statistics"));
    assert!(refused(TargetNorm::Standardize, 13, Some(&stats)).contains("12 channels for 13"));
    let flat = TargetStats { variance: vec![0.0; 12], ..stats.clone() };
    assert!(refused(TargetNorm::Standardize, 12, Some(&flat)).contains("do not vary"));
    let narrow = TargetStats { covariance: None, ..stats };
    assert!(refused(TargetNorm::PhiS, 12, Some(&narrow)).contains("covariance"));
    let odd = TargetStats::standard(10);
    assert!(refused(TargetNorm::PhiS, 10, Some(&odd)).contains("Hadamard"));
}

#[test]
fn a_channel_that_never_changes_is_nothing() {
    let stats = TargetStats { mean: vec![2.0, 0.0], variance: vec![0.0, 1.0], covariance: None };
    let store = ParamStore::new(Device::Cpu, 0);
    let target = Target::new(&store.root(), "a", TargetNorm::Standardize, 2, Some(&stats)).unwrap();
    // Off by what f16 rounds away at 2.
    let token = Tensor::from_slice(&[2.0f32 + 0.0009, 1.0]).reshape([1, 2]);
    let found = values(&target.forward(&token));
    assert!(found[0].abs() < 2.0 && (found[1] - 1.0).abs() < 1e-3, "{found:?}");
}
