//! The other families under other names: the golden case of Hugging Face is renamed here apart from the library's tables.

use std::fs;
use std::path::Path;

use models::precision::Precision;
use models::teacher::{Layer, Teacher};
use models::weights;
use tch::Tensor;

use crate::support::*;

/// `tensors` with each name's parts replaced, in turn.
fn renamed(tensors: &Tensors, rules: &[(&str, &str)]) -> Tensors {
    let rename = |name: &str| {
        rules
            .iter()
            .fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
    };
    tensors
        .iter()
        .map(|(name, tensor)| (rename(name), tensor.shallow_clone()))
        .collect()
}

/// `tensors` with those whose names contain `parts[0]`, `parts[1]`, .. stacked into one, whose name has `whole` there.
fn stacked(mut tensors: Tensors, parts: &[&str], whole: &str) -> Tensors {
    let firsts: Vec<String> = tensors
        .keys()
        .filter(|name| name.contains(parts[0]))
        .cloned()
        .collect();
    for first in firsts {
        let each: Vec<Tensor> = parts
            .iter()
            .map(|part| tensors.remove(&first.replace(parts[0], part)).unwrap())
            .collect();
        tensors.insert(first.replace(parts[0], whole), Tensor::cat(&each, 0));
    }
    tensors
}

fn prefixed(tensors: &Tensors, prefix: &str) -> Tensors {
    tensors
        .iter()
        .map(|(name, tensor)| (format!("{prefix}{name}"), tensor.shallow_clone()))
        .collect()
}

fn with(mut tensors: Tensors, more: &[(&str, Tensor)]) -> Tensors {
    for (name, tensor) in more {
        tensors.insert((*name).to_owned(), tensor.shallow_clone());
    }
    tensors
}

fn random(shape: &[i64]) -> Tensor {
    models::init::Init::Normal { std: 1.0 }.tensor(shape, 7, "random")
}

/// The teacher made of `tensors` must give the bits of the golden case, in layout `layout`, with the golden case's configuration.
fn same_bits(reference: &Path, file: &str, tensors: &Tensors, layout: &str, layers: &[Layer]) {
    let pixels = &read(reference, file)["pixels"];
    let temp = tempfile::tempdir().unwrap();
    for entry in reference.read_dir().unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "json") {
            fs::copy(&path, temp.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    let bytes = weights::to_bytes(tensors, None).unwrap();
    fs::write(temp.path().join("model.safetensors"), bytes).unwrap();
    for &layer in layers {
        let (expected, found) = (teacher_of(reference, layer), teacher_of(temp.path(), layer));
        assert_eq!(found.info().layout, layout);
        assert_eq!(found.info().arch, expected.info().arch, "{layout}");
        let run = |teacher: &Teacher| teacher.forward(pixels, Precision::F32).unwrap();
        let (expected, found) = (run(&expected), run(&found));
        assert_eq!(found.tokens, expected.tokens, "{layout} {layer}");
        assert_eq!(found.cls, expected.cls, "{layout} {layer}");
        assert_eq!(found.cls_attn, expected.cls_attn, "{layout} {layer}");
    }
}

const WITHOUT_PROJ: [Layer; 2] = [Layer::Last, Layer::LastNorm];

/// Hugging Face's CLIP, names without prefix, in OpenAI's.
fn clip_as_openai(vision: &Tensors) -> Tensors {
    let renamed = renamed(
        vision,
        &[
            ("embeddings.class_embedding", "class_embedding"),
            (
                "embeddings.position_embedding.weight",
                "positional_embedding",
            ),
            ("embeddings.patch_embedding", "conv1"),
            ("pre_layrnorm", "ln_pre"),
            ("post_layernorm", "ln_post"),
            ("encoder.layers", "transformer.resblocks"),
            ("layer_norm1", "ln_1"),
            ("layer_norm2", "ln_2"),
            ("self_attn.out_proj", "attn.out_proj"),
            ("mlp.fc1", "mlp.c_fc"),
            ("mlp.fc2", "mlp.c_proj"),
        ],
    );
    let parts = [
        "self_attn.q_proj.",
        "self_attn.k_proj.",
        "self_attn.v_proj.",
    ];
    stacked(renamed, &parts, "attn.in_proj_")
}

#[test]
fn clip_is_the_same_in_openai_names() {
    let folder = golden().join("clip-gelu");
    let openai = clip_as_openai(&read(&folder, "model"));
    for prefix in ["", "visual.", "module.visual."] {
        let mut file = prefixed(&openai, prefix);
        if !prefix.is_empty() {
            // The text tower has some of the names that the vision tower has.
            let outer = prefix.strip_suffix("visual.").unwrap();
            let text = [
                ("positional_embedding", random(&[4, 8])),
                ("transformer.resblocks.0.ln_1.weight", random(&[8])),
                ("text_projection", random(&[8, 8])),
                ("logit_scale", random(&[])),
            ];
            for (name, tensor) in text {
                file.insert(format!("{outer}{name}"), tensor);
            }
        }
        same_bits(
            &folder,
            "expected-48x48",
            &file,
            "OpenAI CLIP",
            &WITHOUT_PROJ,
        );
    }
}

/// The whole CLIP: the projection is transposed in OpenAI's file and called the head in timm's.
#[test]
fn the_projection_is_the_same_in_every_layout() {
    let folder = golden().join("clip-quickgelu");
    let whole = read(&folder, "model");
    let inside = |name: &str| name.strip_prefix("vision_model.").map(str::to_owned);
    let vision: Tensors = whole
        .iter()
        .filter_map(|(name, tensor)| Some((inside(name)?, tensor.shallow_clone())))
        .collect();
    let projection = &whole["visual_projection.weight"];
    let openai = with(
        clip_as_openai(&vision),
        &[("proj", projection.tr().contiguous())],
    );
    let file = "expected-48x40";
    same_bits(
        &folder,
        file,
        &prefixed(&openai, "visual."),
        "OpenAI CLIP",
        &Layer::ALL,
    );
    let head = [("visual_projection.weight", projection.shallow_clone())];
    same_bits(
        &folder,
        file,
        &with(vision, &head),
        "Hugging Face CLIP",
        &Layer::ALL,
    );
    let to_timm = [
        ("class_embedding", "cls_token"),
        ("positional_embedding", "pos_embed"),
        ("conv1", "patch_embed.proj"),
        ("ln_pre", "norm_pre"),
        ("ln_post", "norm"),
        ("transformer.resblocks", "blocks"),
        ("ln_1", "norm1"),
        ("ln_2", "norm2"),
        ("attn.in_proj_", "attn.qkv."),
        ("attn.out_proj", "attn.proj"),
        ("mlp.c_fc", "mlp.fc1"),
        ("mlp.c_proj", "mlp.fc2"),
    ];
    let mut timm = renamed(&openai, &to_timm);
    timm.remove("proj");
    let timm = with(
        timm,
        &[
            (
                "cls_token",
                vision_token(&whole, "class_embedding").view([1, 1, 48]),
            ),
            (
                "pos_embed",
                vision_token(&whole, "position_embedding.weight").unsqueeze(0),
            ),
            ("head.weight", projection.shallow_clone()),
            ("head.bias", projection.select(1, 0).zeros_like()),
        ],
    );
    for prefix in ["", "model."] {
        same_bits(&folder, file, &prefixed(&timm, prefix), "timm", &Layer::ALL);
    }
    // open_clip's models with one of timm's towers.
    let mut trunk = prefixed(&timm, "visual.trunk.");
    trunk.insert("visual.head.proj.weight".into(), projection.shallow_clone());
    trunk.insert("text.transformer.ln.weight".into(), random(&[3]));
    same_bits(&folder, file, &trunk, "timm", &WITHOUT_PROJ);
}

fn vision_token(whole: &Tensors, name: &str) -> Tensor {
    whole[&format!("vision_model.embeddings.{name}")].shallow_clone()
}

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
    stacked(
        renamed,
        &[".q.weight", ".k.weight", ".v.weight"],
        ".attn.qkv.weight",
    )
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
        check(
            &renamed(&hugging_face, &DINOV2_5),
            "Hugging Face DINOv2 (transformers 5 names)",
        );
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
        checkpoint.insert(
            "student.module.dino_head.mlp.0.weight".into(),
            random(&[3, 48]),
        );
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
        original.insert(
            format!("blocks.{i}.k.bias"),
            random(&[48]).to_kind(tch::Kind::Half),
        );
        let ones = random(&[48]).ones_like();
        let mask = Tensor::cat(&[&ones, &ones.zeros_like(), &ones], 0);
        original.insert(format!("blocks.{i}.attn.qkv.bias_mask"), mask);
    }
    let mut original = stacked(original, &BIASES, ".attn.qkv.bias");
    let storage = original.remove("register_tokens").unwrap();
    original.insert("storage_tokens".into(), storage);
    let periods: Vec<f32> = (0..4).map(|k| 100f32.powf(k as f32 / 4.0)).collect();
    original.insert(
        "rope_embed.periods".into(),
        Tensor::from_slice(&periods).to_kind(tch::Kind::BFloat16),
    );
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
        &stacked(
            hugging_face,
            &["mlp.gate_proj", "mlp.up_proj"],
            "mlp.weights_in",
        ),
        &[("mlp.down_proj", "mlp.weights_out")],
    );
    let bytes = weights::to_bytes(&packed, None).unwrap();
    fs::write(reference.path().join("model.safetensors"), bytes).unwrap();
    let check = |tensors: &Tensors, layout: &str| {
        same_bits(reference.path(), file, tensors, layout, &WITHOUT_PROJ);
    };
    let (_, hugging_face) = gated("dinov2", 40);
    check(
        &renamed(&hugging_face, &DINOV2_5),
        "Hugging Face DINOv2 (transformers 5 names)",
    );
    let original = stacked(dino_as_original(&packed), &BIASES, ".attn.qkv.bias");
    check(&original, "original DINOv2");
    let mut timm = renamed(&original, &[("mlp.w12", "mlp.fc1"), ("mlp.w3", "mlp.fc2")]);
    timm.remove("mask_token");
    check(&timm, "timm");

    let (reference, hugging_face) = gated("dinov3", 40);
    let bytes = weights::to_bytes(&hugging_face, None).unwrap();
    fs::write(reference.path().join("model.safetensors"), bytes).unwrap();
    let common = renamed(
        &hugging_face,
        &[("mlp.up_proj", "mlp.w2"), ("mlp.down_proj", "mlp.w3")],
    );
    let common = dino_as_original(&common);
    let original = renamed(
        &common,
        &[
            ("mlp.gate_proj", "mlp.w1"),
            ("register_tokens", "storage_tokens"),
        ],
    );
    let mut zero_keys = original;
    for i in 0..2 {
        let like = &zero_keys[&format!("blocks.{i}.q.bias")];
        let zeros = like.zeros_like();
        zero_keys.insert(format!("blocks.{i}.k.bias"), zeros);
    }
    let original = stacked(zero_keys, &BIASES, ".attn.qkv.bias");
    same_bits(
        reference.path(),
        file,
        &original,
        "original DINOv3",
        &WITHOUT_PROJ,
    );
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

#[test]
fn siglip_is_the_same_in_every_layout() {
    let folder = golden().join("siglip");
    let mut whole = prefixed(&read(&folder, "model"), "vision_model.");
    whole.insert("text_model.final_layer_norm.weight".into(), random(&[4]));
    whole.insert("logit_bias".into(), random(&[1]));
    same_bits(
        &folder,
        "expected-40x24",
        &whole,
        "Hugging Face SigLIP",
        &WITHOUT_PROJ,
    );
    let parts = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"];
    let mut timm = stacked(
        renamed(
            &read(&folder, "model"),
            &[
                ("head.attention.out_proj", "attn_pool.proj"),
                ("head.probe", "attn_pool.latent"),
                ("head.mlp", "attn_pool.mlp"),
                ("head.layernorm", "attn_pool.norm"),
                ("embeddings.patch_embedding", "patch_embed.proj"),
                ("embeddings.position_embedding.weight", "pos_embed"),
                ("post_layernorm", "norm"),
                ("encoder.layers", "blocks"),
                ("layer_norm", "norm"),
                ("self_attn.out_proj", "attn.proj"),
            ],
        ),
        &parts,
        "attn.qkv",
    );
    let table = timm.remove("pos_embed").unwrap();
    timm.insert("pos_embed".into(), table.unsqueeze(0));
    for end in ["weight", "bias"] {
        let qkv = timm.remove(&format!("head.attention.in_proj_{end}"));
        let qkv = qkv.unwrap();
        let (q, kv) = (qkv.narrow(0, 0, 48), qkv.narrow(0, 48, 96));
        timm.insert(format!("attn_pool.q.{end}"), q.contiguous());
        timm.insert(format!("attn_pool.kv.{end}"), kv.contiguous());
    }
    same_bits(
        &folder,
        "expected-40x24",
        &timm,
        "timm SigLIP",
        &WITHOUT_PROJ,
    );
}
