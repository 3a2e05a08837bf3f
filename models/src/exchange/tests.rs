#![allow(
    clippy::unwrap_used,
    reason = "a test states what it expects by unwrapping"
)]
#![allow(clippy::disallowed_methods, reason = "tests write throw-away files")]

use std::path::Path;

use tch::{Device, Kind};

use super::*;
use crate::decoder::DecoderConfig;
use crate::encoder::{Encoder, EncoderConfig, VitConfig};
use crate::error::Mismatch;
use crate::mae::{Mae, MaeConfig};
use crate::mcmae::McmaeEncoderConfig;
use crate::params::ParamStore;
use crate::weights::{self, Weights};

fn config(img_size: [i64; 2]) -> MaeConfig {
    MaeConfig {
        encoder: EncoderConfig::Vit(VitConfig {
            img_size,
            patch_size: 8,
            embed_dim: 32,
            depth: 2,
            num_heads: 4,
            mlp_ratio: 3,
            fusion: Vec::new(),
        }),
        decoder: DecoderConfig {
            embed_dim: 16,
            depth: 1,
            num_heads: 2,
            mlp_ratio: 4,
        },
        norm_pix_loss: true,
    }
}

fn facts(img_size: [i64; 2]) -> Facts {
    Facts {
        img_size,
        num_heads: 4,
        decoder_num_heads: 2,
        norm_pix_loss: true,
        mask_ratio: 0.75,
        fusion: false,
    }
}

/// A student on a store, every trained number of it random, with a mimic head that no format holds.
fn store(img_size: [i64; 2], seed: u64) -> ParamStore {
    let params = ParamStore::new(Device::Cpu, seed);
    Mae::new(&params.root(), &config(img_size)).unwrap();
    let head = params.root().sub("mimic_heads").sub("clip");
    let _weight = head.param("weight", &[5, 32], crate::init::Init::XavierUniform);
    params
}

fn student(img_size: [i64; 2]) -> Tensors {
    let mut tensors = store(img_size, 1).tensors();
    for (i, tensor) in tensors.values_mut().enumerate() {
        let numbers = Tensor::arange(tensor.numel() as i64, (Kind::Float, Device::Cpu));
        *tensor = (numbers * 0.7 + i as f64).sin().reshape(tensor.size());
    }
    tensors
}

/// A small MCMAE, random; sides of 16 and 48 pixels, with CLS or without.
fn mcmae(cls_token: bool) -> (McmaeEncoderConfig, ParamStore, Mae) {
    let encoder = McmaeEncoderConfig {
        img_size: [16, 48],
        embed_dims: [8, 12, 32],
        depths: [1, 2, 2],
        num_heads: 4,
        mlp_ratios: [2, 3, 4],
        cls_token,
        fusion: true,
    };
    let config = MaeConfig {
        encoder: EncoderConfig::Mcmae(encoder),
        ..config([32, 32])
    };
    let params = ParamStore::new(Device::Cpu, 3);
    let mae = Mae::new(&params.root(), &config).unwrap();
    let head = params.root().sub("mimic_heads").sub("clip");
    let _weight = head.param("weight", &[5, 32], crate::init::Init::XavierUniform);
    (encoder, params, mae)
}

fn convolutional() -> Tensors {
    mcmae(false).1.tensors()
}

fn part(tensors: &Tensors, decoder: bool) -> Tensors {
    tensors
        .iter()
        .filter(|(name, _)| match Part::of(name) {
            Part::Encoder => true,
            Part::Mimic => false,
            Part::Decoder | Part::Other(_) => decoder,
        })
        .map(|(name, tensor)| (name.clone(), tensor.shallow_clone()))
        .collect()
}

/// Writes tensors and reads them as a file from outside.
fn file(tensors: &Tensors) -> Weights {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    std::fs::write(&path, weights::to_bytes(tensors, None).unwrap()).unwrap();
    Weights::read(&path).unwrap()
}

fn assert_same(found: &Tensors, expected: &Tensors, what: &str) {
    assert!(
        found.keys().eq(expected.keys()),
        "{what}: {:?}",
        found.keys()
    );
    for (name, tensor) in found {
        assert_eq!(*tensor, expected[name], "{what}: {name}");
    }
}

#[test]
fn there_and_back_is_the_same_to_the_bit() {
    for img_size in [[32, 32], [16, 40]] {
        let own = student(img_size);
        for format in Format::ALL {
            for decoder in [false, true] {
                let what = format!("{format}, {img_size:?}, decoder {decoder}");
                let square = img_size[0] == img_size[1];
                let hugging_face = matches!(format, Format::HfMae | Format::HfVit);
                let fits = format != Format::ConvMae
                    && (square || !hugging_face)
                    && (format.holds_decoder() || !decoder);
                let exported = match export(&own, &facts(img_size), format, decoder) {
                    Ok(exported) if fits => exported,
                    Err(Error::CannotExport { .. }) if !fits => continue,
                    other => panic!("{what}: {other:?}"),
                };
                assert_eq!(exported.decoder, decoder);
                let imported = import(&file(&exported.tensors)).unwrap();
                assert_same(&imported.tensors, &part(&own, decoder), &what);
                assert_eq!(imported.has_decoder(), decoder, "{what}");
                assert!(imported.ignored.is_empty(), "{what}");
            }
        }
    }
    for cls_token in [false, true] {
        let (config, params, mae) = mcmae(cls_token);
        let own = params.tensors();
        let facts = Facts::of(mae.config(), 0.75);
        for decoder in [false, true] {
            let exported = export(&own, &facts, Format::ConvMae, decoder).unwrap();
            assert_eq!(exported.config["cls_token"], cls_token);
            let imported = import(&file(&exported.tensors)).unwrap();
            assert!(imported.is_convolutional());
            assert_same(&imported.tensors, &part(&own, decoder), "convmae");
            // The published form: neither decoder, nor mask token, nor projections.
            let is_beyond = |name: &&String| name.contains("decode") || *name == "mask_token";
            let beyond = imported.tensors.keys().filter(is_beyond).count();
            assert_eq!(beyond > 0, decoder);
            let expected = McmaeEncoderConfig {
                fusion: false,
                ..config
            };
            same_features(&exported, EncoderConfig::Mcmae(expected), &mae);
        }
    }
}

/// The encoder that `exported` is said to be is `expected`, and computes what `mae` does.
fn same_features(exported: &Exported, expected: EncoderConfig, mae: &Mae) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    std::fs::write(&path, weights::to_bytes(&exported.tensors, None).unwrap()).unwrap();
    std::fs::write(
        folder.path().join("config.json"),
        exported.config.to_string(),
    )
    .unwrap();
    let imported = import(&Weights::read(&path).unwrap()).unwrap();
    let config = imported.encoder_config(&path).unwrap();
    assert_eq!(config, expected);
    let params = ParamStore::frozen(Device::Cpu);
    let encoder = Encoder::new(&params.root(), &config).unwrap();
    let loaded = load_into(&params, &imported.encoder_tensors(), "a test").unwrap();
    assert!(loaded.fresh.is_empty());
    let [height, width] = Facts::of(mae.config(), 0.75).img_size;
    let imgs = Tensor::randn([2, 3, height, width], (Kind::Float, Device::Cpu));
    assert_eq!(encoder.forward_features(&imgs), mae.forward_features(&imgs));
}

#[test]
fn the_encoder_of_a_file_is_found_out() {
    for img_size in [[32, 32], [16, 40]] {
        let params = ParamStore::new(Device::Cpu, 1);
        let mae = Mae::new(&params.root(), &config(img_size)).unwrap();
        for format in [Format::Timm, Format::HfVit, Format::HfMae, Format::Mae] {
            if let Ok(exported) = export(&params.tensors(), &facts(img_size), format, false) {
                same_features(&exported, config(img_size).encoder, &mae);
            }
        }
    }

    // Without a file beside it: heads of the published sizes, and squares.
    let mut own = student([32, 32]);
    let read = |tensors: &Tensors| {
        import(&file(tensors))
            .unwrap()
            .encoder_config(Path::new("nowhere/x"))
    };
    let message = read(&own).unwrap_err().to_string();
    assert!(
        message.contains("a width of 32 does not tell it"),
        "{message}"
    );
    for (width, heads) in [(64, 1), (1280, 16)] {
        for name in [
            "patch_embed.proj.weight",
            "blocks.0.mlp.fc1.weight",
            "pos_embed",
        ] {
            let mut size = own[name].size();
            match name {
                "pos_embed" => size[2] = width,
                "blocks.0.mlp.fc1.weight" => size = vec![4 * width, width],
                _ => size[0] = width,
            }
            own.insert(
                name.to_owned(),
                Tensor::zeros(size, (Kind::Float, Device::Cpu)),
            );
        }
        let EncoderConfig::Vit(found) = read(&own).unwrap() else {
            panic!("a ViT")
        };
        assert_eq!(
            (found.embed_dim, found.num_heads, found.img_size),
            (width, heads, [32, 32])
        );
    }
    let message = read(&part(&student([16, 40]), false))
        .unwrap_err()
        .to_string();
    assert!(message.contains("no 10 patches of 8 pixels"), "{message}");
    own.insert(
        "blocks.0.mlp.fc1.weight".into(),
        Tensor::zeros([100, 1280], (Kind::Float, Device::Cpu)),
    );
    assert!(read(&own).unwrap_err().to_string().contains("100 / 1280"));
    own.remove("blocks.0.mlp.fc1.weight");
    assert!(matches!(read(&own), Err(Error::WeightsMismatch { .. })));
}

#[test]
fn what_a_format_cannot_hold_is_refused() {
    let refused = |tensors: &Tensors, facts: &Facts, format, decoder, words: &str| {
        let message = export(tensors, facts, format, decoder)
            .unwrap_err()
            .to_string();
        assert!(message.contains(words), "{message}");
    };
    let (own, square) = (student([32, 32]), facts([32, 32]));
    refused(&own, &square, Format::Timm, true, "no place for a decoder");
    refused(&own, &square, Format::HfVit, true, "no place for a decoder");
    refused(&own, &square, Format::ConvMae, true, "is a ViT");
    refused(
        &convolutional(),
        &square,
        Format::HfMae,
        true,
        "convolution stages",
    );
    refused(
        &convolutional(),
        &square,
        Format::Timm,
        false,
        "convolution stages",
    );
    let wide = facts([16, 40]);
    refused(
        &student([16, 40]),
        &wide,
        Format::HfVit,
        false,
        "16 x 40 pixels",
    );
    let encoder = part(&own, false);
    refused(&encoder, &square, Format::Mae, true, "has no decoder");
    let fused = Facts {
        fusion: true,
        ..square
    };
    refused(&own, &fused, Format::HfMae, true, "model.fusion");
    let plain = Facts {
        fusion: false,
        ..fused.clone()
    };
    refused(
        &convolutional(),
        &plain,
        Format::ConvMae,
        true,
        "projections of the first stages",
    );
    assert!(export(&own, &fused, Format::HfMae, false).is_ok());
}

#[test]
fn configurations_say_what_the_tensors_are() {
    let own = student([32, 32]);
    let hf = export(&own, &facts([32, 32]), Format::HfMae, true).unwrap();
    assert_eq!(hf.config["intermediate_size"], 96);
    assert_eq!(hf.config["decoder_intermediate_size"], 64);
    assert_eq!(hf.config["layer_norm_eps"], 1e-6);
    assert_eq!(hf.preprocessor.unwrap()["resample"], 3);
    let timm = export(&student([16, 40]), &facts([16, 40]), Format::Timm, false).unwrap();
    assert_eq!(
        timm.config["model_args"]["img_size"],
        serde_json::json!([16, 40])
    );
    assert_eq!(timm.config["model_args"]["mlp_ratio"], 3);
    let (_, params, mae) = mcmae(false);
    let facts = Facts::of(mae.config(), 0.75);
    let conv = export(&params.tensors(), &facts, Format::ConvMae, true).unwrap();
    let args = &conv.config["model_args"];
    assert_eq!(
        args["img_size"],
        serde_json::json!([[16, 48], [4, 12], [2, 6]])
    );
    assert_eq!(args["patch_size"], serde_json::json!([4, 2, 2]));
    assert_eq!(args["depth"], serde_json::json!([1, 2, 2]));
    assert_eq!(args["mlp_ratio"], serde_json::json!([2, 3, 4]));
}

#[test]
fn names_of_transformers_five_and_wrappers_are_read() {
    let own = student([32, 32]);
    let old = export(&own, &facts([32, 32]), Format::HfMae, true)
        .unwrap()
        .tensors;
    let renamed = |name: &str| {
        let mut name = name.replace("vit.encoder.layer.", "vit.layers.");
        for (from, to) in [
            ("attention.attention.query", "attention.q_proj"),
            ("attention.attention.key", "attention.k_proj"),
            ("attention.attention.value", "attention.v_proj"),
            ("attention.output.dense", "attention.o_proj"),
            ("intermediate.dense", "mlp.fc1"),
            ("output.dense", "mlp.fc2"),
        ] {
            name = name.replace(from, to);
        }
        name
    };
    let with = |change: &dyn Fn(&str) -> String, tensors: &Tensors| -> Tensors {
        tensors
            .iter()
            .map(|(name, t)| (change(name), t.shallow_clone()))
            .collect()
    };
    let five = with(&renamed, &old);
    assert!(five.contains_key("decoder.decoder_layers.0.attention.q_proj.bias"));
    assert_same(
        &import(&file(&five)).unwrap().tensors,
        &part(&own, true),
        "transformers 5",
    );

    let one = Tensor::ones([2], (Kind::Float, Device::Cpu));
    for (tensors, prefix) in [
        (&old, "model."),
        (&own, "model.module."),
        (&old, "state_dict."),
    ] {
        let mut wrapped = with(&|name| format!("{prefix}{name}"), tensors);
        let beside = ["optimizer.param_groups", "args.x", "epoch"];
        let heads = ["head.weight", "pooler.dense.weight"].map(|head| format!("{prefix}{head}"));
        for name in beside.map(str::to_owned).iter().chain(&heads) {
            wrapped.insert(name.clone(), one.shallow_clone());
        }
        let imported = import(&file(&wrapped)).unwrap();
        assert_same(&imported.tensors, &part(&own, true), prefix);
        let ignored = imported.ignored.len();
        assert_eq!(
            ignored,
            5 + usize::from(prefix == "model.module."),
            "{:?}",
            imported.ignored
        );
    }
}

#[test]
fn a_file_that_is_no_student_is_named() {
    let own = student([32, 32]);
    let mut old = export(&own, &facts([32, 32]), Format::HfMae, true)
        .unwrap()
        .tensors;
    let message = |tensors: &Tensors| import(&file(tensors)).unwrap_err().to_string();
    let one = || Tensor::ones([2], (Kind::Float, Device::Cpu));
    assert!(message(&[("a.b".to_owned(), one())].into()).contains("holds no student"));

    let key = old
        .remove("vit.encoder.layer.1.attention.attention.key.weight")
        .unwrap();
    assert!(message(&old).contains("layer.1.attention.attention.key.weight [32, 32]"));
    old.insert(
        "vit.encoder.layer.1.attention.attention.key.weight".into(),
        key.narrow(0, 0, 31),
    );
    assert!(message(&old).contains("key.weight [31, 32]"));
    old.insert(
        "vit.encoder.layer.1.attention.attention.key.weight".into(),
        key,
    );
    let query = old
        .remove("decoder.decoder_layers.0.attention.attention.query.bias")
        .unwrap();
    let text = message(&old);
    assert!(
        text.contains("missing (1)") && text.contains("query.bias [16]"),
        "{text}"
    );
    old.insert(
        "decoder.decoder_layers.0.attention.attention.query.bias".into(),
        query,
    );
    // The same tensor under two names, and numbers that only look like one.
    old.insert("vit.layers.0.layernorm_before.bias".into(), one());
    old.insert("vit.encoder.layer.01.layernorm_before.bias".into(), one());
    assert!(
        message(&old).contains("unexpected (2)"),
        "{}",
        message(&old)
    );
    let mut beside = own;
    beside.insert("text.weight".into(), one());
    let wrapped = beside.iter().map(|(name, t)| {
        let prefix = if name == "text.weight" { "" } else { "model." };
        (format!("{prefix}{name}"), t.shallow_clone())
    });
    assert!(message(&wrapped.collect()).contains("text.weight [2]"));
}

#[test]
fn a_network_takes_whole_parts() {
    let own = student([32, 32]);
    let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
    for decoder in [true, false] {
        let params = store([32, 32], 9);
        let before: Tensors = params
            .tensors()
            .iter()
            .map(|(n, t)| (n.clone(), t.copy()))
            .collect();
        let mut given = part(&own, decoder);
        if !decoder {
            given.remove("pos_embed");
        }
        let loaded = load_into(&params, &given, "a test").unwrap();
        assert_eq!(loaded.taken, given.keys().cloned().collect::<Vec<_>>());
        let head = names(&["mimic_heads.clip.weight"]);
        if decoder {
            assert_eq!(loaded.fresh, head);
        } else {
            assert!(loaded.fresh.contains(&"pos_embed".to_owned()));
            assert!(loaded.fresh.contains(&"mask_token".to_owned()));
        }
        for (name, tensor) in params.tensors() {
            let expected = given.get(&name).unwrap_or(&before[&name]);
            assert_eq!(tensor, *expected, "{name}");
        }
    }
    assert_eq!(
        Loaded::modules(&names(&["blocks.0.a", "blocks.1.a", "norm.bias"])),
        [("blocks".to_owned(), 2), ("norm".to_owned(), 1)]
    );

    let params = store([32, 32], 9);
    let before = params.get("norm.weight").unwrap().copy();
    let mut given = part(&own, true);
    given.insert(
        "norm.weight".into(),
        Tensor::ones([31], (Kind::Float, Device::Cpu)),
    );
    given.remove("blocks.1.mlp.fc2.bias");
    given.remove("decoder_norm.bias");
    given.insert(
        "blocks.2.norm1.bias".into(),
        Tensor::ones([32], (Kind::Float, Device::Cpu)),
    );
    let Err(Error::WeightsMismatch { mismatch, .. }) = load_into(&params, &given, "a test") else {
        panic!("it does not fit");
    };
    let Mismatch {
        missing,
        unexpected,
        misshaped,
        not_float,
    } = mismatch;
    let first =
        |list: &[(String, Vec<i64>)]| list.iter().map(|(n, _)| n.clone()).collect::<Vec<_>>();
    assert_eq!(
        first(&missing),
        ["blocks.1.mlp.fc2.bias", "decoder_norm.bias"]
    );
    assert_eq!(first(&unexpected), ["blocks.2.norm1.bias"]);
    assert_eq!(
        (misshaped[0].found.clone(), misshaped[0].expected.clone()),
        (vec![31], vec![32])
    );
    assert!(not_float.is_empty());
    assert_eq!(
        params.get("norm.weight").unwrap(),
        before,
        "nothing has been changed"
    );
}

#[test]
fn a_configuration_of_other_heads_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let weights = folder.path().join("model.safetensors");
    check_beside(&weights, 4, Some(2)).unwrap();
    for (text, words) in [
        (
            r#"{"num_attention_heads": 4, "decoder_num_attention_heads": 2, "hidden_act": "gelu"}"#,
            None,
        ),
        (
            r#"{"num_attention_heads": 8}"#,
            Some("has 8 attention heads, and model.num_heads is 4"),
        ),
        (
            r#"{"model_args": {"num_heads": 4, "decoder_num_heads": 1}}"#,
            Some("model.decoder_num_heads is 2"),
        ),
        (r#"{"hidden_act": "quick_gelu"}"#, Some("quick_gelu")),
        ("[", Some("is no JSON")),
    ] {
        std::fs::write(folder.path().join("config.json"), text).unwrap();
        match (check_beside(&weights, 4, Some(2)), words) {
            (Ok(()), None) => {}
            (Err(e), Some(words)) => assert!(e.to_string().contains(words), "{e}"),
            other => panic!("{text}: {other:?}"),
        }
    }
    std::fs::write(
        folder.path().join("config.json"),
        r#"{"model_args": {"decoder_num_heads": 1}}"#,
    )
    .unwrap();
    check_beside(&weights, 4, None).unwrap();
}
