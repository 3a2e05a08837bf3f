//! What training code puts around a network and beside it: each file gives the bare file's features, or a question.

use super::facts::without_buffers;
use super::families::{clip_config, dinov3_tensors, openai_tensors};
use super::*;

type Files = Vec<(&'static str, Value)>;

/// Layouts of timm, DINO and DINOv3, open_clip and Hugging Face, each with the files it needs.
fn layouts() -> Vec<(&'static str, Tensors, Files)> {
    let facts = |more: Value| {
        let mut facts = json!({"hidden_act": "gelu", "layer_norm_eps": 1e-6, "num_attention_heads": 2,
            "pretrained_cfg": {"mean": 0.5, "std": 0.5}});
        if let (Some(facts), Some(more)) = (facts.as_object_mut(), more.as_object()) {
            facts.extend(more.clone());
        }
        vec![("config.json", facts)]
    };
    vec![
        ("timm", timm_tensors(&timm_config()), facts(json!({}))),
        ("DINOv3", dinov3_tensors(), facts(json!({"image_size": 24}))),
        ("open_clip", without_buffers(openai_tensors(&clip_config())), facts(json!({}))),
        ("Hugging Face ViT", hf_vit_tensors(), facts(json!({"model_type": "vit"}))),
    ]
}

fn tokens(tensors: &Tensors, files: &[(&str, Value)], what: &str) -> Tensor {
    let pixels = Tensor::arange(3 * 24 * 24, (Kind::Int64, Device::Cpu)).remainder(251);
    let pixels = pixels.to_kind(Kind::Uint8).view([1, 3, 24, 24]);
    let teacher = load(tensors, files).unwrap_or_else(|e| panic!("{what}: {e}"));
    teacher.forward(&pixels, Precision::F32).unwrap().tokens
}

/// The tensors under `prefix`, each plus `offset`.
fn under(tensors: &Tensors, prefix: &str, offset: f64) -> Tensors {
    let rename = |(name, tensor): (&String, &Tensor)| {
        let moved = if tensor.is_floating_point() && offset != 0.0 { tensor + offset } else { tensor.shallow_clone() };
        (format!("{prefix}{name}"), moved)
    };
    tensors.iter().map(rename).collect()
}

/// What training code saves beside a network.
fn leftovers() -> Tensors {
    let tensor = || Tensor::from_slice(&[1f32]);
    [
        "optimizer.state.exp_avg",
        "optimizer_states.0",
        "lr_scheduler.last_lr",
        "lr_schedulers.x",
        "scaler.scale",
        "callbacks.EarlyStopping.best_score",
        "callbacks.EMA.weights.blocks.0.norm1.weight",
        "loops.fit_loop.x",
        "hyper_parameters.mean",
        "rng_state",
        "epoch",
        "global_step",
        "n_averaged",
        "criterion.weight",
    ]
    .into_iter()
    .map(|name| (name.to_owned(), tensor()))
    .collect()
}

const WRAPPERS: [&str; 12] = [
    "module.",
    "_orig_mod.",
    "model.",
    "state_dict.",
    "backbone.",
    "encoder.",
    "net.",
    "teacher.",
    "student.",
    "model_ema.",
    "state_dict_ema.",
    "averaged_model.",
];

#[test]
fn every_wrapper_around_every_layout_gives_the_bare_features() {
    for (layout, bare, files) in layouts() {
        let expected = tokens(&bare, &files, layout);
        for outer in WRAPPERS {
            // Alone; and around each other in any order, for one layout that is bare and one that brings a prefix and a text tower.
            let pairs = matches!(layout, "timm" | "open_clip");
            let inner = WRAPPERS.into_iter().filter(|inner| pairs && *inner != outer);
            for inner in [""].into_iter().chain(inner) {
                let prefix = format!("{outer}{inner}");
                let mut wrapped = under(&bare, &prefix, 0.0);
                // On every level.
                wrapped.extend(leftovers());
                wrapped.extend(under(&leftovers(), outer, 0.0));
                let what = format!("{layout} under {prefix}");
                assert_eq!(tokens(&wrapped, &files, &what), expected, "{what}");
            }
        }
        let mut beside = under(&bare, "", 0.0);
        beside.extend(leftovers());
        assert_eq!(tokens(&beside, &files, layout), expected, "{layout} and leftovers");
        for deep in ["checkpoint.state_dict.model.module.backbone.", "state_dict.teacher.module._orig_mod.encoder."] {
            assert_eq!(tokens(&under(&bare, deep, 0.0), &files, deep), expected, "{layout} {deep}");
        }
    }
}

/// If there are two networks, the average or the teacher is taken, whatever the other has around it; two of one rank are a question.
#[test]
fn of_two_networks_one_is_taken_by_rule_or_asked_for() {
    for (layout, bare, files) in layouts() {
        let expected = tokens(&bare, &files, layout);
        for (taken, other) in [
            ("teacher.backbone.", "student.module.backbone."),
            ("module.teacher.", "module.student."),
            ("state_dict_ema.", "state_dict."),
            ("model_ema.module.", "model."),
            ("ema.", "model."),
            ("averaged_model.module.", "model.module."),
            ("state_dict.ema_model.", "state_dict.model."),
            ("target_encoder.module.", "encoder.module."),
            ("encoder_q.", "encoder_k."),
            ("base_encoder.", "momentum_encoder."),
        ] {
            let mut both = under(&bare, taken, 0.0);
            both.extend(under(&bare, other, 1.0));
            both.extend(leftovers());
            let container = other.split_inclusive('.').next().unwrap();
            if !taken.starts_with(container) {
                both.insert(format!("{container}head.last_layer.weight_g"), Tensor::from_slice(&[1f32]));
            }
            let what = format!("{layout}: {taken} and {other}");
            assert_eq!(tokens(&both, &files, &what), expected, "{what}");
            let info = load(&both, &files).unwrap().info().clone();
            let said = info.assumed.iter().any(|a| a.text.contains(taken.trim_end_matches('.')));
            assert!(said, "{what}: {:?}", info.assumed);
        }
        for (one, two) in [("model.", "net."), ("teacher.", "model_ema."), ("encoder.", "backbone.")] {
            let mut both = under(&bare, one, 0.0);
            both.extend(under(&bare, two, 1.0));
            match load(&both, &files) {
                Err(error @ Error::SeveralNetworks { .. }) => {
                    let text = error.to_string();
                    assert!(text.contains(one) && text.contains(two) && text.contains("torch.save"), "{text}");
                }
                other => panic!("{layout}: {one} and {two}: {other:?}"),
            }
            // One network under two names is not a question.
            let mut same = under(&bare, one, 0.0);
            same.extend(under(&bare, two, 0.0));
            assert_eq!(tokens(&same, &files, layout), expected);
        }
    }
}
