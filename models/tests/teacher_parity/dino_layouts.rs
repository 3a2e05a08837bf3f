//! The same DINOv2 and DINOv3 under the names of every layout.

use std::fs;

use models::weights;
use tch::Tensor;

use crate::renaming::*;
use crate::support::*;

/// Hugging Face's DINOv2 or DINOv3 in the names that the original code and timm share, registers apart.
fn dino_as_original(tensors: &Tensors) -> Tensors {
    let mut renamed = renamed(
        tensors,
        &[
            ("embeddings.cls_token", "cls_token"),
            ("embeddings.mask_token", "mask_token"),
            ("embeddings.register_tokens", "register_tokens"),
            ("embeddings.position_embeddings", "pos_embed"),
            ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
            ("embeddings.patch_embeddings", "patch_embed.proj"),
            ("encoder.layer.", "blocks."),
            ("attention.attention.query", "q"),
            ("attention.attention.key", "k"),
            ("attention.attention.value", "v"),
            ("attention.output.dense", "attn.proj"),
            ("attention.q_proj", "q"),
            ("attention.k_proj", "k"),
            ("attention.v_proj", "v"),
            ("attention.o_proj", "attn.proj"),
            ("layer_scale1.lambda1", "ls1.gamma"),
            ("layer_scale2.lambda1", "ls2.gamma"),
            ("mlp.weights_in", "mlp.w12"),
            ("mlp.weights_out", "mlp.w3"),
            ("mlp.up_proj", "mlp.fc1"),
            ("mlp.down_proj", "mlp.fc2"),
            ("layernorm.", "norm."),
        ],
    );
    // DINOv3's blocks have no name in front of `layer`.
    for name in renamed.keys().cloned().collect::<Vec<_>>() {
        if let Some(rest) = name.strip_prefix("layer.") {
            let tensor = renamed.remove(&name).unwrap();
            renamed.insert(format!("blocks.{rest}"), tensor);
        }
    }
    stacked(renamed, &[".q.weight", ".k.weight", ".v.weight"], ".attn.qkv.weight")
}

/// DINOv2's names of transformers 5.
const DINOV2_5: [(&str, &str); 4] = [
    ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"),
    ("attention.attention.value", "attention.v_proj"),
    ("attention.output.dense", "attention.o_proj"),
];
const BIASES: [&str; 3] = [".q.bias", ".k.bias", ".v.bias"];

#[test]
fn dinov2_is_the_same_in_every_layout() {
    for (case, registers) in [("dinov2", false), ("dinov2-registers", true)] {
        let folder = golden().join(case);
        let hugging_face = read(&folder, "model");
        let file = "expected-40x24";
        let check = |tensors: &Tensors, layout: &str| {
            same_bits(&folder, file, tensors, layout, &WITHOUT_PROJ);
        };
        check(&renamed(&hugging_face, &DINOV2_5), "Hugging Face DINOv2 (transformers 5 names)");
        check(&prefixed(&hugging_face, "dinov2."), "Hugging Face DINOv2");
        let original = stacked(dino_as_original(&hugging_face), &BIASES, ".attn.qkv.bias");
        check(&original, "original DINOv2");
        // A training checkpoint: both networks with their heads.
        let mut checkpoint = prefixed(&original, "teacher.backbone.");
        for (name, tensor) in &original {
            let other = tensor.ones_like();
            checkpoint.insert(format!("student.module.backbone.{name}"), other);
        }
        checkpoint.insert("teacher.dino_head.mlp.0.weight".into(), random(&[3, 48]));
        checkpoint.insert("student.module.dino_head.mlp.0.weight".into(), random(&[3, 48]));
        check(&checkpoint, "original DINOv2");

        let mut timm = original;
        timm.remove("mask_token");
        if registers {
            let registers = timm.remove("register_tokens").unwrap();
            timm.insert("reg_token".into(), registers);
            // timm adds the position of CLS to the token.
            let table = timm["pos_embed"].to_kind(tch::Kind::Float);
            let cls = timm["cls_token"].to_kind(tch::Kind::Float) + table.narrow(1, 0, 1);
            timm.insert("cls_token".into(), cls);
            timm.insert("pos_embed".into(), table.narrow(1, 1, 16).contiguous());
        }
        check(&timm, "timm");
        check(&prefixed(&timm, "module.backbone."), "timm");
    }
}

#[test]
fn dinov3_is_the_same_in_every_layout() {
    let folder = golden().join("dinov3");
    let hugging_face = read(&folder, "model");
    let file = "expected-40x24";
    let check = |tensors: &Tensors, layout: &str| {
        same_bits(&folder, file, tensors, layout, &WITHOUT_PROJ);
    };
    let in_memory = hugging_face.iter().map(|(name, tensor)| {
        let name = match name.strip_prefix("layer.") {
            Some(rest) => format!("model.layer.{rest}"),
            None => name.clone(),
        };
        (name, tensor.shallow_clone())
    });
    check(&in_memory.collect(), "Hugging Face DINOv3");

    // The original keeps a bias for the keys, and a mask that says it is none.
    let mut original = dino_as_original(&hugging_face);
    for i in 0..2 {
        original.insert(format!("blocks.{i}.k.bias"), random(&[48]).to_kind(tch::Kind::Half));
        let ones = random(&[48]).ones_like();
        let mask = Tensor::cat(&[&ones, &ones.zeros_like(), &ones], 0);
        original.insert(format!("blocks.{i}.attn.qkv.bias_mask"), mask);
    }
    let mut original = stacked(original, &BIASES, ".attn.qkv.bias");
    let storage = original.remove("register_tokens").unwrap();
    original.insert("storage_tokens".into(), storage);
    let periods: Vec<f32> = (0..4).map(|k| 100f32.powf(k as f32 / 4.0)).collect();
    original.insert("rope_embed.periods".into(), Tensor::from_slice(&periods).to_kind(tch::Kind::BFloat16));
    original.insert("local_cls_norm.weight".into(), random(&[48]));
    check(&original, "original DINOv3");
    check(&prefixed(&original, "teacher.backbone."), "original DINOv3");

    let timm = renamed(
        &dino_as_original(&hugging_face),
        &[
            ("ls1.gamma", "gamma_1"),
            ("ls2.gamma", "gamma_2"),
            (".q.bias", ".attn.q_bias"),
            (".v.bias", ".attn.v_bias"),
            ("register_tokens", "reg_token"),
        ],
    );
    let mut timm = timm;
    timm.remove("mask_token");
    check(&timm, "timm DINOv3");
    // timm's other variants leave the biases out, where they are zero.
    let zero = |mut tensors: Tensors, names: [&str; 2]| {
        for (name, tensor) in &mut tensors {
            if names.iter().any(|end| name.ends_with(end)) {
                *tensor = tensor.zeros_like();
            }
        }
        tensors
    };
    let with_zeros = zero(hugging_face, ["q_proj.bias", "v_proj.bias"]);
    let temp = changed_copy("dinov3", |_, _| ());
    let bytes = weights::to_bytes(&with_zeros, None).unwrap();
    fs::write(temp.path().join("model.safetensors"), bytes).unwrap();
    let name = "expected-40x24.safetensors";
    fs::copy(folder.join(name), temp.path().join(name)).unwrap();
    timm.retain(|name, _| !name.ends_with("q_bias") && !name.ends_with("v_bias"));
    same_bits(temp.path(), file, &timm, "timm DINOv3", &WITHOUT_PROJ);
}

/// The MLPs of the golden DINOv2 or DINOv3 replaced by gated ones: `fc1` is the gate over the rest, both of `hidden` rows.
fn gated(case: &str, hidden: i64) -> (tempfile::TempDir, Tensors) {
    let folder = golden().join(case);
    let tensors = read(&folder, "model");
    let mut gated = Tensors::new();
    for (name, tensor) in tensors {
        if !name.contains(".mlp.") {
            gated.insert(name, tensor);
        } else if name.ends_with("fc1.weight") || name.ends_with("up_proj.weight") {
            let block = name.split(".mlp.").next().unwrap().to_owned();
            for (part, shape) in [
                ("gate_proj.weight", &[hidden, 48][..]),
                ("gate_proj.bias", &[hidden]),
                ("up_proj.weight", &[hidden, 48]),
                ("up_proj.bias", &[hidden]),
                ("down_proj.weight", &[48, hidden]),
                ("down_proj.bias", &[48]),
            ] {
                let name = format!("{block}.mlp.{part}");
                let tensor = models::init::Init::Normal { std: 0.2 }.tensor(shape, 0, &name);
                gated.insert(name, tensor);
            }
        }
    }
    let temp = changed_copy(case, |name, config| {
        if name == "config.json" {
            config["intermediate_size"] = hidden.into();
            config["hidden_act"] = "silu".into();
        }
    });
    let name = "expected-32x32.safetensors";
    fs::copy(folder.join(name), temp.path().join(name)).unwrap();
    (temp, gated)
}

#[test]
fn gated_mlps_are_the_same_in_every_layout() {
    let file = "expected-32x32";
    let (reference, hugging_face) = gated("dinov2", 40);
    let packed = renamed(
        &stacked(hugging_face, &["mlp.gate_proj", "mlp.up_proj"], "mlp.weights_in"),
        &[("mlp.down_proj", "mlp.weights_out")],
    );
    let bytes = weights::to_bytes(&packed, None).unwrap();
    fs::write(reference.path().join("model.safetensors"), bytes).unwrap();
    let check = |tensors: &Tensors, layout: &str| {
        same_bits(reference.path(), file, tensors, layout, &WITHOUT_PROJ);
    };
    let (_, hugging_face) = gated("dinov2", 40);
    check(&renamed(&hugging_face, &DINOV2_5), "Hugging Face DINOv2 (transformers 5 names)");
    let original = stacked(dino_as_original(&packed), &BIASES, ".attn.qkv.bias");
    check(&original, "original DINOv2");
    let mut timm = renamed(&original, &[("mlp.w12", "mlp.fc1"), ("mlp.w3", "mlp.fc2")]);
    timm.remove("mask_token");
    check(&timm, "timm");

    let (reference, hugging_face) = gated("dinov3", 40);
    let bytes = weights::to_bytes(&hugging_face, None).unwrap();
    fs::write(reference.path().join("model.safetensors"), bytes).unwrap();
    let common = renamed(&hugging_face, &[("mlp.up_proj", "mlp.w2"), ("mlp.down_proj", "mlp.w3")]);
    let common = dino_as_original(&common);
    let original = renamed(&common, &[("mlp.gate_proj", "mlp.w1"), ("register_tokens", "storage_tokens")]);
    let mut zero_keys = original;
    for i in 0..2 {
        let like = &zero_keys[&format!("blocks.{i}.q.bias")];
        let zeros = like.zeros_like();
        zero_keys.insert(format!("blocks.{i}.k.bias"), zeros);
    }
    let original = stacked(zero_keys, &BIASES, ".attn.qkv.bias");
    same_bits(reference.path(), file, &original, "original DINOv3", &WITHOUT_PROJ);
    let mut timm = renamed(
        &common,
        &[
            ("mlp.gate_proj", "mlp.fc1_g"),
            ("mlp.w2", "mlp.fc1_x"),
            ("mlp.w3", "mlp.fc2"),
            ("ls1.gamma", "gamma_1"),
            ("ls2.gamma", "gamma_2"),
            (".q.bias", ".attn.q_bias"),
            (".v.bias", ".attn.v_bias"),
            ("register_tokens", "reg_token"),
        ],
    );
    timm.remove("mask_token");
    same_bits(reference.path(), file, &timm, "timm DINOv3", &WITHOUT_PROJ);
}
