use std::collections::BTreeMap;

use models::init::Init;
use models::params::ParamStore;

use super::*;
use crate::optim;
use crate::pretrain::student_config;
use crate::testing::RECIPE;

fn recipe(settings: &[&str]) -> Recipe {
    let settings: Vec<String> = settings.iter().map(|s| s.to_string()).collect();
    Recipe::parse(RECIPE, "test", &settings).unwrap()
}

struct Rig {
    params: ParamStore,
    student: MrMae,
    optim: FusedAdamW,
    recipe: Recipe,
}

fn rig(settings: &[&str]) -> Rig {
    let recipe = recipe(settings);
    let params = ParamStore::new(Device::Cpu, 1);
    let widths = BTreeMap::from([("clip".to_owned(), 8)]);
    let student = MrMae::new(&params.root(), &student_config(&recipe, &widths, &BTreeMap::new())).unwrap();
    let mut optim = optim::adamw(params.trainable(), &recipe.optim);
    optim::set_lr(&mut optim, 1e-3);
    Rig { params, student, optim, recipe }
}

/// `n` images with their targets and noise, numbered from `first` so that two halves make the whole.
fn inputs(first: i64, n: i64) -> (Tensor, Tensor, Features) {
    let random = |shape: &[i64], name| Init::Normal { std: 1.0 }.tensor(shape, 3, name);
    let all = (random(&[8, 32, 32, 3], "imgs").sigmoid() * 256.0).to_kind(Kind::Uint8);
    let noise = random(&[8, 16], "noise").to_kind(Kind::Double).sigmoid();
    let tokens = random(&[8, 16, 8], "tokens");
    let part = |t: &Tensor| t.narrow(0, first, n);
    let features =
        Features { tokens: BTreeMap::from([("clip".to_owned(), part(&tokens))]), cls: BTreeMap::new(), cls_attn: None };
    (Normalise::imagenet(Device::Cpu).forward(&part(&all)), part(&noise), features)
}

fn gradient(rig: &mut Rig, halves: &[(i64, i64)]) -> Vec<Losses> {
    let mut losses = Vec::new();
    for &(first, n) in halves {
        let (imgs, noise, features) = inputs(first, n);
        let masks = masking(&rig.recipe, &noise, None);
        losses.push(accumulate(
            &rig.student,
            &imgs,
            &masks,
            &features,
            ForwardOptions::default(),
            Precision::F32,
            halves.len(),
        ));
    }
    losses
}

fn flat(params: &ParamStore) -> Vec<f32> {
    params.tensors().values().flat_map(|t| Vec::<f32>::try_from(t.detach().flatten(0, -1)).unwrap()).collect()
}

#[test]
fn two_half_batches_are_one_batch() {
    let (mut whole, mut halves) = (rig(&[]), rig(&[]));
    let losses_whole = gradient(&mut whole, &[(0, 8)]);
    let losses_halves = gradient(&mut halves, &[(0, 4), (4, 4)]);
    for (a, b) in whole.optim.grads().iter().zip(halves.optim.grads()) {
        let error = (a - b).norm().double_value(&[]) / a.norm().double_value(&[]).max(1e-6);
        // The same sums in another order.
        assert!(error < 1e-4, "relative error {error} of a gradient {:?}", a.size());
    }
    let (_, a) = update(&mut whole.optim, &losses_whole, None, None).unwrap().read().unwrap();
    let (_, b) = update(&mut halves.optim, &losses_halves, None, None).unwrap().read().unwrap();
    assert_eq!(a.keys().map(String::as_str).collect::<Vec<_>>(), ["grad_norm", "loss", "mimic.clip", "rec"]);
    for (name, value) in &a {
        assert!((value - b[name]).abs() < 1e-5 * value.abs().max(1.0), "{name}: {value} and {}", b[name]);
    }
    assert!((a["loss"] - 0.5 * a["rec"] - 0.5 * a["mimic.clip"]).abs() < 1e-6, "the terms are unweighted: {a:?}");
}

/// A step with a gradient that is not finite changes nothing, and the next good one is as if it had never been.
#[test]
fn a_step_that_is_not_finite_leaves_no_trace() {
    for clip in [None, Some(1.0)] {
        let (mut clean, mut hit) = (rig(&[]), rig(&[]));
        let before = flat(&hit.params);
        let (imgs, noise, features) = inputs(0, 4);
        let masks = masking(&hit.recipe, &noise, None);
        let poisoned = &imgs * f64::NAN;
        let losses =
            accumulate(&hit.student, &poisoned, &masks, &features, ForwardOptions::default(), Precision::F32, 1);
        let (done, values) = update(&mut hit.optim, &[losses], clip, None).unwrap().read().unwrap();
        assert!(!done && values["loss"].is_nan());
        assert_eq!(flat(&hit.params), before);

        for rig in [&mut clean, &mut hit] {
            rig.optim.zero_grad();
            let losses = gradient(rig, &[(0, 4)]);
            assert!(update(&mut rig.optim, &losses, clip, None).unwrap().read().unwrap().0);
        }
        assert_eq!(flat(&clean.params), flat(&hit.params), "clip {clip:?}");
    }
}

#[test]
fn clipping_bounds_the_gradient_and_reports_it_unclipped() {
    let mut rig = rig(&[]);
    let losses = gradient(&mut rig, &[(0, 8)]);
    let before = grad_norm(&rig.optim.grads()).unwrap().double_value(&[]);
    let (_, values) = update(&mut rig.optim, &losses, Some(before / 10.0), None).unwrap().read().unwrap();
    assert!((values["grad_norm"] - before).abs() < 1e-4 * before, "{values:?}, before {before}");
    let after = grad_norm(&rig.optim.grads()).unwrap().double_value(&[]);
    assert!((after - before / 10.0).abs() < 1e-3 * before, "clipped to {after}");
}

#[test]
fn pixels_are_normalised_per_channel() {
    let pixels = Tensor::from_slice(&[255u8, 0, 128]).view([1, 1, 1, 3]);
    let found = Vec::<f32>::try_from(Normalise::imagenet(Device::Cpu).forward(&pixels).flatten(0, -1)).unwrap();
    let expected = [(1.0 - 0.485) / 0.229, -0.456 / 0.224, (128.0 / 255.0 - 0.406) / 0.225];
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < 1e-6, "{found}, expected {expected}");
    }
}

#[test]
fn focused_masks_follow_the_attention() {
    // All attention on the last four of 16 patches: either rule must keep exactly those.
    let cls_attn = Tensor::cat(
        &[Tensor::zeros([2, 12], (Kind::Half, Device::Cpu)), Tensor::ones([2, 4], (Kind::Half, Device::Cpu))],
        1,
    );
    let noise = Init::Normal { std: 1.0 }.tensor(&[2, 16], 3, "noise").to_kind(Kind::Double).sigmoid();
    for mode in ["multinomial", "topk"] {
        let recipe = recipe(&["mask.kind=focused", "mask.teacher=clip", &format!("mask.mode={mode}")]);
        let masks = masking(&recipe, &noise, Some(&cls_attn));
        let expected = Tensor::cat(
            &[Tensor::ones([2, 12], (Kind::Float, Device::Cpu)), Tensor::zeros([2, 4], (Kind::Float, Device::Cpu))],
            1,
        );
        assert_eq!(masks.mask, expected, "{mode}");
    }
}
