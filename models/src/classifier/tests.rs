use std::path::Path;

use tch::Device;

use super::*;
use crate::drop_path::DropPath;
use crate::mcmae::McmaeEncoderConfig;
use crate::vit::VitConfig;
use crate::weights::Weights;

/// Both sides compute in f32 and sum in another order; an eps of 1e-5 in the norms instead of 1e-6 makes more.
const TOLERANCE: f64 = 2e-6;
const GRAD_TOLERANCE: f64 = 1e-5;

fn config(img_size: i64) -> EncoderConfig {
    EncoderConfig::Vit(VitConfig { img_size: [img_size; 2], ..VitConfig::mae(8, 24, 2, 3) })
}

/// See `tests/golden/finetune/README.md`.
fn golden(case: &str) -> Weights {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/finetune");
    Weights::read(&folder.join(case).with_extension("safetensors")).unwrap()
}

fn under(weights: &Weights, prefix: &str) -> BTreeMap<String, Tensor> {
    let named = |(name, t): (&String, &Tensor)| Some((name.strip_prefix(prefix)?.to_owned(), t.shallow_clone()));
    weights.tensors().iter().filter_map(named).collect()
}

fn relative_l2(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.size(), expected.size());
    let norm = |x: &Tensor| x.to_kind(Kind::Double).norm().double_value(&[]);
    norm(&(found.to_kind(Kind::Double) - expected.to_kind(Kind::Double))) / norm(expected)
}

#[test]
fn agrees_with_timm() {
    for (case, pool) in [("mean", Pool::Mean), ("cls", Pool::Cls)] {
        let weights = golden(case);
        let params = ParamStore::new(Device::Cpu, 0);
        let classifier = Classifier::new(&params, &config(32), pool, 7).unwrap();
        params.load(case, &under(&weights, "param/")).unwrap();
        let expected = weights.tensors();
        let scores = classifier.forward(&expected["imgs"], &Pass::default());
        let loss = soft_target_cross_entropy(&scores, &expected["targets"]);
        for (what, found) in [("logits", &scores), ("loss", &loss.reshape([1]))] {
            let difference = relative_l2(found, &expected[what]);
            assert!(difference < TOLERANCE, "{case}: {what} differs by {difference:e}");
        }
        loss.backward();
        let grads = under(&weights, "grad/");
        assert!(params.trainable().keys().eq(grads.keys()), "{case}: other parameters are trained");
        for (name, param) in params.trainable() {
            // The key third of this gradient is zero but for rounding: softmax does not see a constant added to a row's scores.
            let parts = |t: &Tensor| match name.ends_with("attn.qkv.bias") {
                true => Tensor::cat(&[t.narrow(0, 0, 24), t.narrow(0, 48, 24)], 0),
                false => t.shallow_clone(),
            };
            let difference = relative_l2(&parts(&param.grad()), &parts(&grads[&name]));
            assert!(difference < GRAD_TOLERANCE, "{case}: the gradient of {name} differs by {difference:e}");
        }
    }
}

/// Label smoothing in these terms is what PyTorch's cross entropy does with `label_smoothing`.
#[test]
fn label_smoothing_is_a_soft_target() {
    let scores = golden("mean").tensors()["logits"].shallow_clone();
    let labels = Tensor::from_slice(&[1i64, 0, 6]);
    let smoothed = labels.one_hot(7).to_kind(Kind::Float) * 0.9 + 0.1 / 7.0;
    let expected = scores.cross_entropy_loss(&labels, None::<Tensor>, tch::Reduction::Mean, -100, 0.1);
    let found = soft_target_cross_entropy(&scores, &smoothed);
    assert!(relative_l2(&found, &expected) < TOLERANCE);
}

#[test]
fn a_dropped_branch_of_every_block_leaves_the_patches_alone() {
    let params = ParamStore::new(Device::Cpu, 0);
    let classifier = Classifier::new(&params, &config(32), Pool::Mean, 7).unwrap();
    params.load("mean", &under(&golden("mean"), "param/")).unwrap();
    let imgs = golden("mean").tensors()["imgs"].shallow_clone();
    let scores = |uniform: [f32; 4]| {
        let uniform = Tensor::from_slice(&uniform).view([1, 4]).repeat([3, 1]);
        let drop = DropPath::new(&uniform, &Tensor::from_slice(&[0.5f32; 4]));
        let pass = Pass { drop_path: Some(&drop), ..Pass::default() };
        classifier.forward(&imgs, &pass)
    };
    let none_kept = scores([0.0; 4]);
    // Without blocks, what is classified is the mean of embedded patches and positions, whatever CLS is.
    let _ = tch::no_grad(|| params.get("cls_token").unwrap().fill_(3.0));
    assert_eq!(none_kept, scores([0.0; 4]));
    assert_ne!(none_kept, scores([0.0, 0.0, 0.9, 0.0]));
}

/// A pretrained file brings its encoder; the head starts near zero, and other grids' positions are interpolated.
#[test]
fn starts_from_a_pretrained_encoder() {
    let mut pretrained = under(&golden("cls"), "param/");
    pretrained.insert("mask_token".into(), Tensor::ones([1, 1, 4], (Kind::Float, Device::Cpu)));
    pretrained.insert("decoder_pred.bias".into(), Tensor::ones([4], (Kind::Float, Device::Cpu)));
    for (pool, norm) in [(Pool::Mean, "fc_norm.weight"), (Pool::Cls, "norm.weight")] {
        let params = ParamStore::new(Device::Cpu, 0);
        Classifier::new(&params, &config(32), pool, 5).unwrap();
        start_from(&params, &config(32), "a file", &pretrained).unwrap();
        let own = params.tensors();
        assert_eq!(own["blocks.1.mlp.fc1.weight"], pretrained["blocks.1.mlp.fc1.weight"].to_kind(Kind::Float));
        assert_eq!(own["pos_embed"], pretrained["pos_embed"].to_kind(Kind::Float));
        let std = own["head.weight"].std(true).double_value(&[]);
        assert!((1e-5..3e-5).contains(&std), "{std}");
        assert_eq!(own["head.weight"].size(), [5, 24]);
        let is_fresh = own[norm].eq_tensor(&own[norm].ones_like()).all().int64_value(&[]) == 1;
        assert_eq!(is_fresh, pool == Pool::Mean, "{norm}");
    }

    let params = ParamStore::new(Device::Cpu, 0);
    let classifier = Classifier::new(&params, &config(48), Pool::Mean, 5).unwrap();
    start_from(&params, &config(48), "a file", &pretrained).unwrap();
    let positions = params.get("pos_embed").unwrap();
    assert_eq!(positions.size(), [1, 1 + 36, 24]);
    assert_eq!(positions.get(0).get(0), pretrained["pos_embed"].get(0).get(0).to_kind(Kind::Float));
    let imgs = Tensor::zeros([1, 3, 48, 48], (Kind::Float, Device::Cpu));
    assert_eq!(classifier.forward(&imgs, &Pass::default()).size(), [1, 5]);
}

#[test]
fn weights_of_another_network_are_refused_by_name() {
    let pretrained = under(&golden("cls"), "param/");
    let params = ParamStore::new(Device::Cpu, 0);
    Classifier::new(&params, &config(32), Pool::Cls, 5).unwrap();
    let refused = |change: &dyn Fn(&mut BTreeMap<String, Tensor>)| {
        let mut tensors = under(&golden("cls"), "param/");
        change(&mut tensors);
        start_from(&params, &config(32), "a file", &tensors).unwrap_err().to_string()
    };
    assert!(refused(&|t| drop(t.remove("norm.bias"))).contains("norm.bias"));
    assert!(
        refused(&|t| drop(t.insert("blocks.7.norm1.bias".into(), pretrained["norm.bias"].shallow_clone())))
            .contains("blocks.7")
    );
    let odd = || Tensor::zeros([1, 6, 24], (Kind::Float, Device::Cpu));
    assert!(refused(&|t| drop(t.insert("pos_embed".into(), odd()))).contains("pos_embed"));
}

/// ConvMAE's `convvit_base_patch16` with 1000 classes, counted in PyTorch; and MAE's `vit_base_patch16`, which is timm's.
#[test]
fn base_sizes_have_as_many_numbers_as_the_references() {
    let vit = EncoderConfig::Vit(VitConfig::BASE_PATCH16);
    let convvit = EncoderConfig::Mcmae(McmaeEncoderConfig::BASE).without_fusion();
    for (config, expected) in [(vit, 86_567_656), (convvit, 85_374_824)] {
        let params = ParamStore::frozen(Device::Cpu);
        Classifier::new(&params, &config, Pool::Mean, 1000).unwrap();
        let numbers: usize = params.tensors().values().map(Tensor::numel).sum();
        assert_eq!(numbers, expected, "{config:?}");
    }
}

/// A ConvViT starts from what pretraining with fusion leaves, is trained in every parameter, and has no CLS token to pool.
#[test]
fn a_convvit_is_a_classifier_too() {
    let mcmae = McmaeEncoderConfig {
        img_size: [32; 2],
        embed_dims: [8, 12, 16],
        depths: [1, 1, 2],
        num_heads: 2,
        ..McmaeEncoderConfig::BASE
    };
    let pretraining = EncoderConfig::Mcmae(mcmae);
    let pretrained = ParamStore::new(Device::Cpu, 1);
    Encoder::new(&pretrained.root(), &pretraining).unwrap();
    let config = pretraining.without_fusion();
    let params = ParamStore::new(Device::Cpu, 0);
    let classifier = Classifier::new(&params, &config, Pool::Mean, 3).unwrap();
    start_from(&params, &config, "a run", &pretrained.tensors()).unwrap();
    assert_eq!(params.get("blocks2.0.attn.weight"), pretrained.get("blocks2.0.attn.weight"));
    let imgs = (Tensor::arange(2 * 3 * 32 * 32, (Kind::Float, Device::Cpu)) * 0.37).sin();
    let imgs = imgs.view([2, 3, 32, 32]);
    let scores = classifier.forward(&imgs, &Pass::default());
    let targets = Tensor::ones([2, 3], (Kind::Float, Device::Cpu)) / 3.0;
    soft_target_cross_entropy(&(scores * 1e3), &targets).backward();
    for (name, param) in params.trainable() {
        assert!(param.grad().defined(), "{name} gets no gradient");
    }
    let refused = Classifier::new(&ParamStore::new(Device::Cpu, 0), &config, Pool::Cls, 3);
    assert!(matches!(refused, Err(Error::Config { field: "pool", .. })));
}
