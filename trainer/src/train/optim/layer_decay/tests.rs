use std::path::Path;

use tch::{Device, Kind};

use super::*;
use crate::dist::World;
use crate::recipe::Experiment;
use crate::recipe::finetune::FinetuneRecipe;
use crate::train::optim::Optimizer;

fn ones(shape: &[i64]) -> Tensor {
    Tensor::ones(shape, (Kind::Float, Device::Cpu)).set_requires_grad(true)
}

/// The shape of a parameter matters only by its number of axes.
fn like(name: &str) -> Tensor {
    match name {
        "cls_token" | "pos_embed" => ones(&[1, 1, 2]),
        "patch_embed.proj.weight" => ones(&[2, 3, 1, 1]),
        _ if name.ends_with("bias") || name.contains("norm") => ones(&[2]),
        _ => ones(&[2, 2]),
    }
}

/// How far a step with a gradient of zero and one with a large gradient move each parameter from 1: decay alone, and rate alone.
fn moves(names: &[&str]) -> BTreeMap<String, (f64, f64)> {
    let mut found = BTreeMap::new();
    for (grad, decay) in [(0.0, 0.5), (1e3, 0.0)] {
        let params: BTreeMap<String, Tensor> = names.iter().map(|name| (name.to_string(), like(name))).collect();
        let handles = params.iter().map(|(n, t)| (n.clone(), t.shallow_clone())).collect();
        let settings = ["optim.layer_decay=0.65".to_owned(), format!("optim.weight_decay={decay}")];
        let recipe =
            FinetuneRecipe::parse("[optim]\nbatch_size = 1\n[schedule]\nepochs = 1\n", "test", &settings).unwrap();
        let mut optim = Optimizer::for_finetuning(handles, &recipe.optim, &World::alone());
        optim.set_lr(0.1);
        for param in params.values() {
            (param * grad).sum(Kind::Float).backward();
        }
        optim.step_if(&Tensor::from(true)).unwrap();
        for (name, param) in params {
            let moved = 1.0 - param.max().double_value(&[]);
            let both: &mut (f64, f64) = found.entry(name).or_default();
            if grad == 0.0 {
                both.0 = moved;
            } else {
                both.1 = moved;
            }
        }
    }
    found
}

/// See `tests/golden/finetune/README.md`.
#[test]
fn groups_of_a_vit_are_those_of_timm() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/finetune/layer_decay.json");
    let expected: BTreeMap<String, (f64, f64)> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!(expected.len(), 4 + 2 * 12 + 4);
    let names: Vec<&str> = expected.keys().map(String::as_str).collect();
    let moves = moves(&names);
    for (name, (scale, decay)) in expected {
        let own = lr_scale(layer_id(&name, 2), 2, 0.65);
        assert!((own - scale).abs() < 1e-12, "{name}: {own}, timm has {scale}");
        assert_eq!(is_exempt(&name, &like(&name)), decay == 0.0, "{name}");
        // And that is what the optimizer does.
        let (by_decay, by_rate) = moves[&name];
        let expected_decay = if decay == 0.0 { 0.0 } else { 0.1 * scale * 0.5 };
        assert!((by_decay - expected_decay).abs() < 1e-6, "{name}: {by_decay}");
        assert!((by_rate - 0.1 * scale).abs() < 1e-6, "{name}: {by_rate}");
    }
}

/// ConvMAE's fine-tuning code: 12 layers for 11 transformer blocks.
#[test]
fn layers_of_a_convvit_are_those_of_convmae() {
    for (name, layer) in [
        ("patch_embed1.proj.weight", 0),
        ("patch_embed2.norm.bias", 0),
        ("patch_embed4.weight", 0),
        ("pos_embed", 0),
        ("cls_token", 0),
        ("blocks1.1.conv1.weight", 0),
        ("blocks2.0.attn.bias", 0),
        ("blocks3.0.attn.qkv.weight", 1),
        ("blocks3.10.mlp.fc2.bias", 11),
        ("fc_norm.weight", 12),
        ("norm.bias", 12),
        ("head.weight", 12),
    ] {
        assert_eq!(layer_id(name, 11), layer, "{name}");
    }
    let names = ["blocks1.1.conv1.weight", "blocks3.10.mlp.fc2.bias", "blocks3.9.norm1.bias"];
    assert_eq!(depth(names), 11);
}

/// CLIP's norm before its first block and registers stand where the patches do; the last norm does not.
#[test]
fn what_comes_before_the_blocks_of_a_tower_learns_as_the_patches_do() {
    let layers = ["norm_pre.weight", "reg_token", "cls_token", "patch_embed.proj.weight"];
    assert_eq!(layers.map(|name| layer_id(name, 12)), [0; 4]);
    assert_eq!(layer_id("norm.weight", 12), 13);
    assert!(is_exempt("reg_token", &ones(&[1, 4, 2])));
}
