use super::*;
use crate::init::Init;
use crate::losses::MimicLoss;

fn tokens() -> Tensor {
    let sizes = Tensor::from_slice(&[20f32, 1.0, 0.1, 3.0, 0.5, 2.0]);
    Init::Normal { std: 1.0 }.tensor(&[50, 6], 3, "cls") * sizes + 4.0
}

fn refusal(how: (TargetNorm, ClsLoss), stats: Option<&ClsStats>) -> (&'static str, String) {
    match ClsTarget::new(&ParamStore::frozen(Device::Cpu).root(), "clip", how, 6, stats) {
        Err(Error::Config { field, reason, .. }) => (field, reason),
        other => panic!("{other:?}"),
    }
}

/// Means and variances are those of CLS tokens; and the dispersion is that of what is compared, after the normalization.
#[test]
fn statistics_are_of_the_normalized_tokens() {
    let tokens = tokens();
    let raw = ClsStats::measure("clip", &tokens, TargetNorm::None).unwrap();
    assert!((raw.dispersion - angular_dispersion(&tokens)).abs() < 1e-9);
    let standardized = ClsStats::measure("clip", &tokens, TargetNorm::Standardize).unwrap();
    assert_eq!(standardized.channels, raw.channels);
    // Around no direction: the angle to any is a right one on average, where the raw tokens lie along their mean.
    assert!(
        standardized.dispersion > 2.0 && raw.dispersion < 1.5,
        "{} and {}",
        standardized.dispersion,
        raw.dispersion
    );

    let store = ParamStore::new(Device::Cpu, 0);
    let how = (TargetNorm::Standardize, ClsLoss::Mimic(MimicLoss::L2));
    let target = ClsTarget::new(&store.root(), "clip", how, 6, Some(&standardized)).unwrap();
    // A standardized channel's mean square is 1.
    let loss = target.loss(&tokens.zeros_like(), &tokens).double_value(&[]);
    assert!((loss - 1.0).abs() < 1e-5, "{loss}");
    let names: Vec<_> = store.tensors().into_keys().collect();
    assert_eq!(names, ["mimic_cls_targets.clip.mean", "mimic_cls_targets.clip.scale"]);
    assert!(store.trainable().is_empty());
}

/// A teacher whose CLS tokens spread over the mean squared angle has, for a student that always says the mean direction, a loss of 1: what
/// makes teachers comparable.
#[test]
fn the_mean_direction_has_a_loss_of_one() {
    let tokens = tokens();
    for norm in [TargetNorm::None, TargetNorm::Ln, TargetNorm::L2] {
        let stats = ClsStats::measure("clip", &tokens, norm).unwrap();
        let store = ParamStore::new(Device::Cpu, 0);
        let target = ClsTarget::new(&store.root(), "clip", (norm, ClsLoss::Angle), 6, Some(&stats)).unwrap();
        let mean = norm.per_token(&tokens).mean_dim(0, true, Kind::Float).expand_as(&tokens) * 7.0;
        let loss = target.loss(&mean, &tokens).double_value(&[]);
        assert!((loss - 1.0).abs() < 1e-5, "{norm:?}: {loss}");
        assert_eq!(target.loss_per_image(&mean, &tokens).size(), [50]);
        assert_eq!(store.get("mimic_cls_targets.clip.dispersion").unwrap().size(), [1]);
    }
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let l2 = ClsLoss::Mimic(MimicLoss::L2);
    assert_eq!(refusal((TargetNorm::PhiS, l2), None).0, "cls_norm");
    assert!(refusal((TargetNorm::Standardize, l2), None).1.contains("needs statistics"));
    assert_eq!(refusal((TargetNorm::None, ClsLoss::Angle), None).0, "cls_loss");
    let same = Tensor::ones([9, 6], (Kind::Float, Device::Cpu));
    assert!(ClsStats::measure("clip", &same, TargetNorm::Standardize).is_err());
    let one_direction = ClsStats::measure("clip", &same, TargetNorm::None).unwrap();
    let (field, reason) = refusal((TargetNorm::None, ClsLoss::Angle), Some(&one_direction));
    assert!(field == "cls_loss" && reason.contains("one direction"), "{reason}");
}
