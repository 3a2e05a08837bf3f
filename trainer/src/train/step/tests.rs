use std::collections::BTreeMap;

use models::blocks::ForwardOptions;
use models::init::Init;
use models::masking::{Masking, random_masking};
use models::mr_mae::MrMae;
use models::params::ParamStore;
use models::teacher_drop::mean_kept;

use tch::Device;

use super::*;
use crate::data::batch::Patches;
use crate::data::normalize::Normalize;
use crate::data::teachers::Features;
use crate::dist::World;
use crate::recipe::{Experiment, Recipe};
use crate::testing::RECIPE;
use crate::train::optim::Optimizer;
use crate::train::train_state::TrainState;
use torch_ext::grad_norm;

fn recipe(settings: &[&str]) -> Recipe {
    let settings: Vec<String> = settings.iter().map(|s| s.to_string()).collect();
    Recipe::parse(RECIPE, "test", &settings).unwrap()
}

struct Rig {
    state: TrainState,
    student: MrMae,
    recipe: Recipe,
}

fn rig(settings: &[&str]) -> Rig {
    let recipe = recipe(settings);
    let params = ParamStore::new(Device::Cpu, 1);
    let widths = recipe.mimic.teachers.iter().map(|id| (id.clone(), 8)).collect();
    let student = MrMae::new(&params.root(), &recipe.mr_mae_config(&widths, &BTreeMap::new())).unwrap();
    let mut optim = Optimizer::for_pretraining(params.trainable(), &recipe.optim, &World::alone());
    optim.set_lr(1e-3);
    Rig { state: TrainState::new(params, optim, false), student, recipe }
}

/// `n` images with their targets and noise, numbered from `first` so that two halves make the whole.
fn inputs(first: i64, n: i64) -> (Tensor, Tensor, Features) {
    let random = |shape: &[i64], name| Init::Normal { std: 1.0 }.tensor(shape, 3, name);
    let all = (random(&[8, 32, 32, 3], "imgs").sigmoid() * 256.0).to_kind(Kind::Uint8);
    let noise = random(&[8, 16], "noise").to_kind(Kind::Double).sigmoid();
    let tokens = random(&[8, 16, 8], "tokens");
    let part = |t: &Tensor| t.narrow(0, first, n);
    let uniform = random(&[8, 1], "uniform").to_kind(Kind::Double).sigmoid();
    let (dino, [clip_cls, dino_cls]) =
        (random(&[8, 16, 8], "dino"), ["clip cls", "dino cls"].map(|name| random(&[8, 8], name)));
    let of_teachers = |clip: &Tensor, dino: &Tensor| {
        BTreeMap::from([("clip".to_owned(), part(clip)), ("dino".to_owned(), part(dino))])
    };
    let features = Features {
        tokens: of_teachers(&tokens, &dino),
        at: Patches::All,
        cls: of_teachers(&clip_cls, &dino_cls),
        cls_attn: None,
        teacher_drop: Some((part(&uniform), mean_kept(&uniform, 0.5))),
    };
    (Normalize::imagenet(Device::Cpu).forward(&part(&all)), part(&noise), features)
}

/// Forward and backward of one part of `of_step`.
fn accumulate(student: &MrMae, imgs: &Tensor, masking: &Masking, features: &Features, of_step: usize) -> Losses {
    let batch = features.batch(imgs, masking, ForwardOptions::default());
    let losses = student.forward(&batch);
    (&losses.total / of_step as f64).backward();
    detach(&losses)
}

fn update(rig: &mut Rig, losses: &[Losses], clip_grad: Option<f64>) -> (bool, BTreeMap<String, f64>) {
    let mut values = rig.state.optimizer_step(mean_losses(losses), None, clip_grad, None).unwrap();
    let read = values.read(|| Ok(())).unwrap();
    assert_eq!(read.ranks, []);
    (read.finite, read.scalars)
}

fn gradient(rig: &mut Rig, halves: &[(i64, i64)]) -> Vec<Losses> {
    let mut losses = Vec::new();
    for &(first, n) in halves {
        let (imgs, noise, features) = inputs(first, n);
        let masks = random_masking(&noise, rig.recipe.len_keep());
        losses.push(accumulate(&rig.student, &imgs, &masks, &features, halves.len()));
    }
    losses
}

fn flat(params: &ParamStore) -> Vec<f32> {
    params.tensors().values().flat_map(|t| Vec::<f32>::try_from(t.detach().flatten(0, -1)).unwrap()).collect()
}

/// Also where teachers are dropped: of the eight images here, the halves keep unequal numbers of teachers.
#[test]
fn two_half_batches_are_one_batch() {
    two_halves(&[], &["grad_norm", "loss", "mimic.clip", "rec"]);
    let joint = [
        "mimic.teachers=[\"clip\", \"dino\"]",
        "mimic.head=mlp",
        "mimic.loss=cosine_smooth_l1",
        "mimic.cls_loss=angle",
        "mimic.drop=0.5",
        "target.norm=standardize",
        "loss.w_cls=0.5",
    ];
    let terms = ["mimic.clip", "mimic.dino", "mimic_cls.clip", "mimic_cls.dino", "mimic_kept.clip", "mimic_kept.dino"];
    two_halves(&joint, &[&["grad_norm", "loss"], &terms[..], &["rec"]].concat());
}

fn two_halves(settings: &[&str], names: &[&str]) {
    let (mut whole, mut halves) = (rig(settings), rig(settings));
    let losses_whole = gradient(&mut whole, &[(0, 8)]);
    let losses_halves = gradient(&mut halves, &[(0, 4), (4, 4)]);
    for (a, b) in whole.state.optim.grads().iter().zip(halves.state.optim.grads()) {
        let error = (a - b).norm().double_value(&[]) / a.norm().double_value(&[]).max(1e-6);
        // The same sums in another order.
        assert!(error < 1e-4, "relative error {error} of a gradient {:?}", a.size());
    }
    let (_, a) = update(&mut whole, &losses_whole, None);
    let (_, b) = update(&mut halves, &losses_halves, None);
    assert_eq!(a.keys().map(String::as_str).collect::<Vec<_>>(), names);
    for (name, value) in &a {
        assert!((value - b[name]).abs() < 1e-5 * value.abs().max(1.0), "{name}: {value} and {}", b[name]);
    }
    if settings.is_empty() {
        assert!((a["loss"] - 0.5 * a["rec"] - 0.5 * a["mimic.clip"]).abs() < 1e-6, "the terms are unweighted: {a:?}");
        return;
    }
    let kept = [0, 4].map(|first| {
        let (uniform, _) = inputs(first, 4).2.teacher_drop.unwrap();
        mean_kept(&uniform, 0.5)
    });
    assert_ne!(kept[0], kept[1]);
    assert!(((a["mimic_kept.clip"] + a["mimic_kept.dino"]) - (kept[0] + kept[1]) / 2.0).abs() < 1e-6, "{a:?}");
}

/// A step with a gradient that is not finite changes nothing, and the next good one is as if it had never been.
#[test]
fn a_step_that_is_not_finite_leaves_no_trace() {
    for clip in [None, Some(1.0)] {
        let (mut clean, mut hit) = (rig(&[]), rig(&[]));
        let before = flat(&hit.state.params);
        let (imgs, noise, features) = inputs(0, 4);
        let masks = random_masking(&noise, hit.recipe.len_keep());
        let poisoned = &imgs * f64::NAN;
        let losses = accumulate(&hit.student, &poisoned, &masks, &features, 1);
        let (done, values) = update(&mut hit, &[losses], clip);
        assert!(!done && values["loss"].is_nan());
        assert_eq!(flat(&hit.state.params), before);

        for rig in [&mut clean, &mut hit] {
            rig.state.optim.zero_grad();
            let losses = gradient(rig, &[(0, 4)]);
            assert!(update(rig, &losses, clip).0);
        }
        assert_eq!(flat(&clean.state.params), flat(&hit.state.params), "clip {clip:?}");
    }
}

#[test]
fn clipping_bounds_the_gradient_and_reports_it_unclipped() {
    let mut rig = rig(&[]);
    let losses = gradient(&mut rig, &[(0, 8)]);
    let before = grad_norm(&rig.state.optim.grads()).unwrap().double_value(&[]);
    let (_, values) = update(&mut rig, &losses, Some(before / 10.0));
    assert!((values["grad_norm"] - before).abs() < 1e-4 * before, "{values:?}, before {before}");
    let after = grad_norm(&rig.state.optim.grads()).unwrap().double_value(&[]);
    assert!((after - before / 10.0).abs() < 1e-3 * before, "clipped to {after}");
}

#[test]
fn pixels_are_normalized_per_channel() {
    let pixels = Tensor::from_slice(&[255u8, 0, 128]).view([1, 1, 1, 3]);
    let found = Vec::<f32>::try_from(Normalize::imagenet(Device::Cpu).forward(&pixels).flatten(0, -1)).unwrap();
    let expected = [(1.0 - 0.485) / 0.229, -0.456 / 0.224, (128.0 / 255.0 - 0.406) / 0.225];
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < 1e-6, "{found}, expected {expected}");
    }
}
