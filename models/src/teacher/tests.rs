//! Everything that can be wrong with a teacher's files. Numbers are compared in `tests/teacher_parity`.

#![allow(clippy::disallowed_methods, reason = "tests write throw-away folders")]

use std::fs;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::init::Init;
use crate::layers::Activation;
use crate::vit::{Pooling, Positions, Projection, TensorSpec};
use crate::weights;

mod bf16;
mod config;
mod facts;
mod families;
mod trained;
mod wrappers;

/// A ViT of one block in timm's names: width 64, patch 8, 3x3 patches.
fn timm_config() -> VitConfig {
    VitConfig { img_size: [24, 24], mlp_dim: 32, positions: Positions::Learned, ..VitConfig::mae(8, 64, 2, 2) }
}

type Tensors = BTreeMap<String, Tensor>;

fn timm_tensors(config: &VitConfig) -> Tensors {
    let draw = |TensorSpec { name, mut shape }| {
        // In a file the table begins with the position of CLS.
        if name == "pos_embed" {
            shape[1] += 1;
        }
        (name.clone(), Init::Normal { std: 0.1 }.tensor(&shape, 0, &name))
    };
    config.tensors().into_iter().map(draw).collect()
}

fn clip_tensors() -> Tensors {
    timm_tensors(&VitConfig { norm_pre: true, patch_bias: false, ..timm_config() })
}

/// The same in Hugging Face's ViT names, as many as these tests need: one block.
fn hf_vit_tensors() -> Tensors {
    let timm = timm_tensors(&VitConfig { depth: 1, ..timm_config() });
    let mut tensors = Tensors::new();
    for (name, tensor) in timm {
        let name = match name.as_str() {
            "cls_token" => "embeddings.cls_token".to_owned(),
            "pos_embed" => "embeddings.position_embeddings".to_owned(),
            _ => name
                .replace("patch_embed.proj", "embeddings.patch_embeddings.projection")
                .replace("blocks.", "encoder.layer.")
                .replace("norm1", "layernorm_before")
                .replace("norm2", "layernorm_after")
                .replace("attn.proj", "attention.output.dense")
                .replace("mlp.fc1", "intermediate.dense")
                .replace("mlp.fc2", "output.dense")
                .replace("norm.", "layernorm."),
        };
        if let Some((block, suffix)) = name.split_once(".attn.qkv.") {
            for (part, rows) in ["query", "key", "value"].into_iter().zip(tensor.chunk(3, 0)) {
                tensors.insert(format!("{block}.attention.attention.{part}.{suffix}"), rows);
            }
        } else {
            tensors.insert(name, tensor);
        }
    }
    tensors
}

fn folder(tensors: &Tensors, files: &[(&str, Value)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let bytes = weights::to_bytes(tensors, None).unwrap();
    fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    for (name, value) in files {
        fs::write(folder.path().join(name), value.to_string()).unwrap();
    }
    folder
}

fn load(tensors: &Tensors, files: &[(&str, Value)]) -> Result<Teacher> {
    Teacher::load(folder(tensors, files).path(), Device::Cpu)
}

fn config(value: Value) -> [(&'static str, Value); 1] {
    [("config.json", value)]
}

#[test]
fn the_list_of_tensors_is_what_the_tower_asks_for() {
    let projection = Some(Projection { out_dim: 5, bias: true });
    let rotary = Positions::Rotary { base: 100.0 };
    for (norm_pre, registers, positions, gated_mlp, pooling, projection) in [
        (false, 0, Positions::Learned, false, Pooling::Cls, None),
        (true, 0, Positions::Learned, false, Pooling::Cls, projection),
        (false, 4, Positions::Learned, true, Pooling::Cls, None),
        (false, 2, rotary, false, Pooling::Cls, None),
        (false, 0, Positions::Learned, false, Pooling::Attention, None),
    ] {
        let config = VitConfig {
            norm_pre,
            patch_bias: !norm_pre,
            registers,
            positions,
            gated_mlp,
            pooling,
            projection,
            ..timm_config()
        };
        let store = ParamStore::frozen(Device::Cpu);
        VisionTransformer::new(&store.root(), &config).unwrap();
        let asked: BTreeMap<_, _> = store.tensors().into_iter().map(|(name, tensor)| (name, tensor.size())).collect();
        let listed = config.tensors().into_iter().map(|TensorSpec { name, shape }| (name, shape)).collect();
        assert_eq!(asked, listed);
    }
}

fn mismatch(tensors: &Tensors, files: &[(&str, Value)]) -> crate::Mismatch {
    match load(tensors, files) {
        Err(Error::WeightsMismatch { mismatch, .. }) => mismatch,
        other => panic!("expected a mismatch, got {other:?}"),
    }
}

#[test]
fn a_wrong_or_half_file_is_told_by_the_files_own_names() {
    let names = |list: &[(String, Vec<i64>)]| list.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    let files = [
        ("config.json", json!({"model_type": "vit", "num_attention_heads": 1})),
        ("preprocessor_config.json", json!({"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]})),
    ];
    let mut tensors = hf_vit_tensors();
    tensors.remove("encoder.layer.0.attention.attention.key.weight");
    tensors.insert("encoder.layer.0.layer_scale1.lambda1".into(), Tensor::from_slice(&[1f32]));
    tensors.insert("layernorm.bias".into(), Tensor::from_slice(&[1f32; 3]));
    let found = mismatch(&tensors, &files);
    assert_eq!(found.missing, [("encoder.layer.0.attention.attention.key.weight".to_owned(), vec![64, 64])]);
    assert_eq!(names(&found.unexpected), ["encoder.layer.0.layer_scale1.lambda1"]);
    assert_eq!((found.misshaped[0].name.as_str(), &found.misshaped[0].expected[..]), ("layernorm.bias", &[64][..]));

    // Half a file: the config knows of blocks that the file lacks, and without a config a hole is seen.
    let mut half = timm_tensors(&timm_config());
    half.retain(|name, _| !name.starts_with("blocks.1."));
    assert_eq!(mismatch(&half, &config(json!({"num_hidden_layers": 2, "hidden_size": 64}))).missing.len(), 12);
    let mut hole = timm_tensors(&timm_config());
    hole.retain(|name, _| !name.starts_with("blocks.0."));
    assert_eq!(names(&mismatch(&hole, &[]).missing), ["blocks.0.mlp.fc1.weight"]);
    let hole = mismatch(&hole, &config(json!({"intermediate_size": 32})));
    assert_eq!(hole.missing.len(), 12);

    // Without the tensors that sizes are read off, and with damaged ones.
    let mut blind = timm_tensors(&timm_config());
    blind.remove("patch_embed.proj.weight");
    blind.insert("pos_embed".into(), Tensor::from_slice(&[1f32]));
    let blind = mismatch(&blind, &[]);
    assert_eq!(blind.missing[0].0, "patch_embed.proj.weight");
    assert_eq!(blind.misshaped[0].name, "pos_embed");
    let mut uneven = timm_tensors(&timm_config());
    uneven.insert("pos_embed".into(), Tensor::zeros([1, 11, 64], (Kind::Float, Device::Cpu)));
    assert_eq!(mismatch(&uneven, &[]).misshaped[0].name, "pos_embed");
    let mut far = timm_tensors(&timm_config());
    far.insert("blocks.99999999999999.norm1.weight".into(), Tensor::from_slice(&[1f32; 64]));
    assert_eq!(names(&mismatch(&far, &[]).unexpected), ["blocks.99999999999999.norm1.weight"]);

    let other = BTreeMap::from([("conv1.weight".to_owned(), Tensor::from_slice(&[1f32]))]);
    assert!(matches!(load(&other, &[]), Err(Error::UnknownLayout { first, .. }) if first == ["conv1.weight"]));
}

#[test]
fn parts_for_other_uses_are_passed_over() {
    let mut tensors = hf_vit_tensors();
    for name in ["pooler.dense.weight", "classifier.bias", "embeddings.mask_token"] {
        tensors.insert(name.into(), Tensor::from_slice(&[1f32]));
    }
    let files = [
        ("config.json", json!({"model_type": "vit", "num_attention_heads": 1})),
        ("preprocessor_config.json", json!({"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]})),
    ];
    load(&tensors, &files).unwrap();

    let prefixed =
        timm_tensors(&timm_config()).into_iter().map(|(name, tensor)| (format!("module.backbone.{name}"), tensor));
    let mut prefixed: Tensors = prefixed.collect();
    prefixed.insert("module.head.mlp.0.weight".into(), Tensor::from_slice(&[1f32]));
    load(&prefixed, &[]).unwrap();
    prefixed.insert("module.predictor.weight".into(), Tensor::from_slice(&[1f32]));
    assert_eq!(mismatch(&prefixed, &[]).unexpected[0].0, "module.predictor.weight");
}

#[test]
fn input_that_is_no_whole_number_of_patches_is_refused() {
    let teacher = load(&timm_tensors(&timm_config()), &[]).unwrap();
    let check = |shape: &[i64], kind: Kind| {
        let pixels = Tensor::zeros(shape, (kind, Device::Cpu));
        assert!(
            matches!(teacher.forward(&pixels, Precision::F32), Err(Error::TeacherInput { .. })),
            "{shape:?} {kind:?}"
        );
    };
    check(&[1, 3, 24, 20], Kind::Uint8);
    check(&[1, 3, 0, 24], Kind::Uint8);
    check(&[1, 1, 24, 24], Kind::Uint8);
    check(&[3, 24, 24], Kind::Uint8);
    check(&[1, 3, 24, 24], Kind::Float);
    let output = teacher.forward(&Tensor::zeros([2, 3, 16, 40], (Kind::Uint8, Device::Cpu)), Precision::F32).unwrap();
    assert_eq!(output.tokens.size(), [2, 10, 64]);
    assert_eq!(output.cls.size(), [2, 64]);
    assert_eq!(output.cls_attn.size(), [2, 10]);
    let none = teacher.forward(&Tensor::zeros([0, 3, 24, 24], (Kind::Uint8, Device::Cpu)), Precision::F32).unwrap();
    assert_eq!(none.tokens.size(), [0, 9, 64]);
}
