#![allow(
    clippy::unwrap_used,
    reason = "a test states what it expects by unwrapping"
)]
#![allow(clippy::disallowed_methods, reason = "tests write throw-away files")]

use tch::{Device, Kind};

use super::*;
use crate::decoder::DecoderConfig;
use crate::encoder::{EncoderConfig, VitConfig};
use crate::error::Mismatch;
use crate::mae::{Mae, MaeConfig};
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

/// A student of MCMAE's names; sizes as small as the names allow.
fn convolutional() -> Tensors {
    let zeros = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
    let mut tensors = Tensors::new();
    let mut add = |name: &str, shape: &[i64]| tensors.insert(name.to_owned(), zeros(shape));
    for (stage, (dim, inner, patch)) in [(4, 3, 4), (6, 4, 2), (8, 6, 2)].into_iter().enumerate() {
        let stage = stage + 1;
        add(
            &format!("patch_embed{stage}.proj.weight"),
            &[dim, inner, patch, patch],
        );
        add(&format!("patch_embed{stage}.norm.weight"), &[dim]);
        for block in 0..=stage {
            let mlp: &[i64] = if stage == 3 {
                &[32, 8]
            } else {
                &[8 * dim, dim, 1, 1]
            };
            add(&format!("blocks{stage}.{block}.mlp.fc1.weight"), mlp);
        }
    }
    for (name, shape) in [
        ("patch_embed4.weight", &[8, 8][..]),
        ("pos_embed", &[1, 4, 8]),
        ("norm.weight", &[8]),
        ("stage1_output_decode.weight", &[8, 4, 4, 4]),
        ("stage2_output_decode.weight", &[8, 6, 2, 2]),
        ("mask_token", &[1, 1, 4]),
        ("decoder_pos_embed", &[1, 4, 4]),
        ("decoder_embed.weight", &[4, 8]),
        ("decoder_blocks.0.mlp.fc1.weight", &[16, 4]),
        ("decoder_norm.weight", &[4]),
        ("decoder_pred.weight", &[768, 4]),
        ("mimic_heads.clip.weight", &[5, 8]),
    ] {
        add(name, shape);
    }
    tensors
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
    let own = convolutional();
    for decoder in [false, true] {
        let exported = export(&own, &facts([32, 32]), Format::ConvMae, decoder).unwrap();
        let imported = import(&file(&exported.tensors)).unwrap();
        assert!(imported.is_convolutional());
        assert_same(&imported.tensors, &part(&own, decoder), "convmae");
        // The published form: neither decoder, nor mask token, nor projections.
        let beyond = imported
            .tensors
            .keys()
            .filter(|name| name.contains("decode") || *name == "mask_token");
        assert_eq!(beyond.count() > 0, decoder);
    }
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
    let conv = export(&convolutional(), &facts([64, 32]), Format::ConvMae, true).unwrap();
    let args = &conv.config["model_args"];
    assert_eq!(
        args["img_size"],
        serde_json::json!([[64, 32], [16, 8], [8, 4]])
    );
    assert_eq!(args["depth"], serde_json::json!([2, 3, 4]));
    assert_eq!(args["mlp_ratio"], serde_json::json!([8, 8, 4]));
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
