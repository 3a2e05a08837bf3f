//! A tower that is trained begins as the frozen one: every family's features, at its own size and at another.

use super::families::dinov3_tensors;
use super::*;
use crate::blocks::ForwardOptions;
use crate::classifier::{Classifier, Pool, start_from};
use crate::drop_path::DropPath;
use crate::encoder::EncoderConfig;

/// Relative L2. The same operations in the same order but for the attention of CLS, which the frozen tower computes beside the last
/// block's.
const TOLERANCE: f64 = 1e-6;

fn relative_l2(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.size(), expected.size());
    let norm = |x: &Tensor| x.to_kind(Kind::Double).norm().double_value(&[]);
    norm(&(found - expected)) / norm(expected)
}

/// Families by what is theirs alone: the norm before the blocks and quick_gelu, registers with rotary positions, LayerScale, a gate.
pub(super) fn families() -> Vec<(&'static str, TempDir)> {
    let half = json!({"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]});
    let clip = json!({"hidden_act": "quick_gelu", "num_attention_heads": 2, "pretrained_cfg": half});
    let mut scaled = timm_tensors(&VitConfig { registers: 2, gated_mlp: true, ..timm_config() });
    for name in ["ls1", "ls2"] {
        for block in 0..2 {
            let scale = Tensor::full([64], 0.5, (Kind::Float, Device::Cpu));
            scaled.insert(format!("blocks.{block}.{name}.gamma"), scale);
        }
    }
    vec![
        ("vit", folder(&timm_tensors(&timm_config()), &[])),
        ("clip", folder(&clip_tensors(), &config(clip))),
        ("dinov3", folder(&dinov3_tensors(), &config(json!({"num_attention_heads": 2, "image_size": 24})))),
        ("dinov2", folder(&scaled, &[])),
    ]
}

/// `pixels` as the network takes them: `[N, 3, H, W]` f32, normalized.
fn normalized(pixels: &Tensor, config: &EncoderConfig) -> Tensor {
    let (mean, std) = config.normalization();
    let channels = |v: [f64; 3]| Tensor::from_slice(&v.map(|v| v as f32)).view([1, 3, 1, 1]);
    (pixels.to_kind(Kind::Float) / 255.0 - channels(mean)) / channels(std)
}

#[test]
fn training_begins_with_the_frozen_towers_features() {
    for (family, folder) in families() {
        let teacher = Teacher::load(folder.path(), Device::Cpu).unwrap();
        let read = TowerWeights::read(folder.path()).unwrap();
        assert_eq!(read.config.arch(), teacher.info().arch, "{family}");
        assert_eq!(read.sha256, teacher.info().weights_sha256);
        let native = EncoderConfig::Vit(read.config);
        for (img_size, pool) in [(24, Pool::Cls), (24, Pool::Mean), (40, Pool::Cls)] {
            let config = native.at_size(img_size).unwrap();
            let random = Init::Normal { std: 1.0 }.tensor(&[2, 3, img_size, img_size], 7, "pixels");
            let pixels = (random.sigmoid() * 256.0).to_kind(Kind::Uint8);
            let params = ParamStore::new(Device::Cpu, 0);
            let classifier = Classifier::new(&params, &config, pool, 3).unwrap();
            start_from(&params, &config, "a tower", &read.tensors).unwrap();
            config.check(&params.tensors()).unwrap();
            let imgs = normalized(&pixels, &config);
            let found = classifier.forward_features(&imgs);
            let expected = teacher.image_features(&pixels, Precision::F32).unwrap();
            match pool {
                Pool::Cls => {
                    let cls = relative_l2(&found.cls.unwrap(), &expected.cls.unwrap());
                    let mean = relative_l2(&found.mean, &expected.mean);
                    println!("{family} at {img_size}: CLS differs by {cls:.1e}, the mean by {mean:.1e}");
                    assert!(cls.max(mean) < TOLERANCE, "{family} at {img_size}");
                }
                Pool::Mean => {
                    // Its own norm starts at 1 and 0; the tower's has no part in it.
                    let raw = teacher.forward(&pixels, Precision::F32).unwrap().tokens;
                    let mean = raw.mean_dim(1, false, Kind::Float);
                    let normed = mean.layer_norm([64], None::<Tensor>, None::<Tensor>, teacher.info().norm_eps, true);
                    assert!(found.cls.is_none());
                    assert!(relative_l2(&found.mean, &normed) < TOLERANCE, "{family}");
                }
            }

            // Every parameter is trained, but the keys' biases, which move all scores of a row alike.
            let scores = classifier.forward(&imgs, &ForwardOptions::default());
            (scores.square().sum(Kind::Float) * 1e6).backward();
            for (name, param) in params.trainable() {
                let grad = param.grad();
                assert!(grad.defined(), "{family}: {name} has no gradient");
                assert!(grad.abs().max().double_value(&[]) > 0.0, "{family}: {name}");
            }
            assert_eq!(params.trainable().len(), params.tensors().len());

            // Branches are dropped and blocks computed again as in an encoder of pretraining.
            let branches = 2 * config.num_blocks();
            let dropped = |grad_checkpointing| {
                let uniform = Tensor::zeros([2, branches], (Kind::Float, Device::Cpu));
                let rates = Tensor::full([branches], 0.5, (Kind::Float, Device::Cpu));
                let drop = DropPath::new(&uniform, &rates);
                classifier.forward(&imgs, &ForwardOptions { drop_path: Some(&drop), grad_checkpointing })
            };
            assert_ne!(dropped(false), scores);
            assert_eq!(dropped(true), dropped(false), "{family}");
        }
    }
}

#[test]
fn a_recorded_tower_is_read_again_and_checked() {
    let (_, folder) = families().remove(1);
    let read = TowerWeights::read(folder.path()).unwrap();
    let config = EncoderConfig::Vit(read.config);
    let text = serde_json::to_string(&config).unwrap();
    assert_eq!(serde_json::from_str::<EncoderConfig>(&text).unwrap(), config);
    // What a damaged record says is compared before any of it is made.
    for (from, to) in [
        ("\"width\":64", "\"width\":60000"),
        ("\"depth\":2", "\"depth\":60000"),
        ("\"mlp_dim\":32", "\"mlp_dim\":65536"),
        ("\"num_heads\":2", "\"num_heads\":3"),
        ("\"grid\":3", "\"grid\":0"),
    ] {
        assert!(text.contains(from), "{text}");
        let damaged: EncoderConfig = serde_json::from_str(&text.replace(from, to)).unwrap();
        assert!(damaged.check(&read.tensors).is_err(), "{to}");
    }
    assert!(config.at_size(20).is_err());
}
