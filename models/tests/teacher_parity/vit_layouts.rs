//! The same ViT and CLIP under the names of transformers 4, transformers 5 and timm, with the prefixes of training code.

use std::fs;

use models::precision::Precision;
use models::weights::{self, Weights};
use tch::Tensor;

use crate::support::*;

/// The golden ViT under timm's names, written out here apart from the library's tables.
fn vit_as_timm() -> Tensors {
    let weights = Weights::read(&golden().join("vit")).unwrap();
    let get = |name: String| weights.get(&name).unwrap().shallow_clone();
    let mut timm = Tensors::new();
    timm.insert("cls_token".to_owned(), get("embeddings.cls_token".into()));
    timm.insert("pos_embed".to_owned(), get("embeddings.position_embeddings".into()));
    for end in ["weight", "bias"] {
        timm.insert(format!("patch_embed.proj.{end}"), get(format!("embeddings.patch_embeddings.projection.{end}")));
        timm.insert(format!("norm.{end}"), get(format!("layernorm.{end}")));
        for i in 0..3 {
            let layer = format!("encoder.layer.{i}");
            let qkv = ["query", "key", "value"].map(|part| get(format!("{layer}.attention.attention.{part}.{end}")));
            timm.insert(format!("blocks.{i}.attn.qkv.{end}"), Tensor::cat(&qkv, 0));
            for (to, from) in [
                ("norm1", "layernorm_before"),
                ("attn.proj", "attention.output.dense"),
                ("norm2", "layernorm_after"),
                ("mlp.fc1", "intermediate.dense"),
                ("mlp.fc2", "output.dense"),
            ] {
                timm.insert(format!("blocks.{i}.{to}.{end}"), get(format!("{layer}.{from}.{end}")));
            }
        }
    }
    timm
}

/// The golden CLIP under timm's names, likewise.
fn clip_as_timm() -> Tensors {
    let weights = Weights::read(&golden().join("clip-gelu")).unwrap();
    let get = |name: String| weights.get(&name).unwrap().shallow_clone();
    let mut timm = Tensors::new();
    timm.insert("cls_token".to_owned(), get("embeddings.class_embedding".into()).view([1, 1, 64]));
    timm.insert("pos_embed".to_owned(), get("embeddings.position_embedding.weight".into()).unsqueeze(0));
    timm.insert("patch_embed.proj.weight".to_owned(), get("embeddings.patch_embedding.weight".into()));
    for end in ["weight", "bias"] {
        timm.insert(format!("norm_pre.{end}"), get(format!("pre_layrnorm.{end}")));
        timm.insert(format!("norm.{end}"), get(format!("post_layernorm.{end}")));
        for i in 0..2 {
            let layer = format!("encoder.layers.{i}");
            let qkv = ["q_proj", "k_proj", "v_proj"].map(|part| get(format!("{layer}.self_attn.{part}.{end}")));
            timm.insert(format!("blocks.{i}.attn.qkv.{end}"), Tensor::cat(&qkv, 0));
            for (to, from) in [
                ("norm1", "layer_norm1"),
                ("attn.proj", "self_attn.out_proj"),
                ("norm2", "layer_norm2"),
                ("mlp.fc1", "mlp.fc1"),
                ("mlp.fc2", "mlp.fc2"),
            ] {
                timm.insert(format!("blocks.{i}.{to}.{end}"), get(format!("{layer}.{from}.{end}")));
            }
        }
    }
    timm
}

#[test]
fn the_same_weights_in_every_layout_give_the_same_bits() {
    let check = |case_name: &str, file: &str, layout: &str, prefix: &str, tensors: Tensors| {
        let (reference, expected) = case(case_name, file);
        let reference = reference.forward(&expected["pixels"], Precision::F32).unwrap();
        let temp = changed_copy(case_name, |_, _| ());
        let prefixed = tensors.into_iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor));
        let bytes = weights::to_bytes(&prefixed.collect(), None).unwrap();
        fs::write(temp.path().join("model.safetensors"), bytes).unwrap();
        let teacher = teacher(temp.path());
        assert_eq!(teacher.info().layout, layout, "{prefix}");
        let output = teacher.forward(&expected["pixels"], Precision::F32).unwrap();
        assert_eq!(output.tokens, reference.tokens, "{layout} {prefix}");
        assert_eq!(output.cls, reference.cls, "{layout} {prefix}");
        assert_eq!(output.cls_attn, reference.cls_attn, "{layout} {prefix}");
    };
    let hugging_face = |folder: &str| shallow(Weights::read(&golden().join(folder)).unwrap().tensors());
    let renamed = hugging_face("vit").into_iter().map(|(name, tensor)| {
        let name = name.replace("encoder.layer.", "layers.").replace("attention.output.dense", "attention.o_proj");
        let name = name.replace("intermediate.dense", "mlp.fc1").replace("output.dense", "mlp.fc2");
        let name = name.replace("attention.attention.query", "attention.q_proj");
        let name = name.replace("attention.attention.key", "attention.k_proj");
        (name.replace("attention.attention.value", "attention.v_proj"), tensor)
    });
    check("vit", "expected-24x40", "Hugging Face ViT (transformers 5 names)", "", renamed.collect());
    check("vit", "expected-24x40", "Hugging Face ViT", "vit.", hugging_face("vit"));
    check("clip-gelu", "expected-48x48", "Hugging Face CLIP", "vision_model.", hugging_face("clip-gelu"));
    for prefix in ["", "module.", "backbone.", "module.backbone."] {
        check("vit", "expected-24x40", "timm", prefix, vit_as_timm());
        check("clip-gelu", "expected-48x48", "timm", prefix, clip_as_timm());
    }
}
