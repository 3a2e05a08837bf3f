//! Files that are read: names, encoders found out, networks that take what came.

use super::*;
use crate::error::Mismatch;

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
    let read = |tensors: &Tensors| import(&file(tensors)).unwrap().encoder_config(Path::new("nowhere/x"));
    let message = read(&own).unwrap_err().to_string();
    assert!(message.contains("a width of 32 does not tell it"), "{message}");
    // A multiple of 64 is not a published width: a student of 128 with 4 heads is not one with 2.
    for (width, heads) in [(128, None), (192, Some(3)), (1280, Some(16))] {
        for name in ["patch_embed.proj.weight", "blocks.0.mlp.fc1.weight", "pos_embed"] {
            let mut size = own[name].size();
            match name {
                "pos_embed" => size[2] = width,
                "blocks.0.mlp.fc1.weight" => size = vec![4 * width, width],
                _ => size[0] = width,
            }
            own.insert(name.to_owned(), Tensor::zeros(size, (Kind::Float, Device::Cpu)));
        }
        let Some(heads) = heads else {
            let message = read(&own).unwrap_err().to_string();
            assert!(message.contains("width of 128 does not"), "{message}");
            continue;
        };
        let EncoderConfig::Vit(found) = read(&own).unwrap() else { panic!("a ViT") };
        assert_eq!((found.embed_dim, found.num_heads, found.img_size), (width, heads, [32, 32]));
    }
    let message = read(&part(&student([16, 40]), false)).unwrap_err().to_string();
    assert!(message.contains("no 10 patches of 8 pixels"), "{message}");
    own.insert("blocks.0.mlp.fc1.weight".into(), Tensor::zeros([100, 1280], (Kind::Float, Device::Cpu)));
    assert!(read(&own).unwrap_err().to_string().contains("100 / 1280"));
    own.remove("blocks.0.mlp.fc1.weight");
    assert!(matches!(read(&own), Err(Error::WeightsMismatch { .. })));
}

#[test]
fn names_of_transformers_five_and_wrappers_are_read() {
    let own = student([32, 32]);
    let old = export(&own, &facts([32, 32]), Format::HfMae, true).unwrap().tensors;
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
        tensors.iter().map(|(name, t)| (change(name), t.shallow_clone())).collect()
    };
    let five = with(&renamed, &old);
    assert!(five.contains_key("decoder.decoder_layers.0.attention.q_proj.bias"));
    assert_same(&import(&file(&five)).unwrap().tensors, &part(&own, true), "transformers 5");

    let one = Tensor::ones([2], (Kind::Float, Device::Cpu));
    for (tensors, prefix) in [(&old, "model."), (&own, "model.module."), (&old, "state_dict.")] {
        let mut wrapped = with(&|name| format!("{prefix}{name}"), tensors);
        let beside = ["optimizer.param_groups", "args.x", "epoch"];
        let heads = ["head.weight", "pooler.dense.weight"].map(|head| format!("{prefix}{head}"));
        for name in beside.map(str::to_owned).iter().chain(&heads) {
            wrapped.insert(name.clone(), one.shallow_clone());
        }
        let imported = import(&file(&wrapped)).unwrap();
        assert_same(&imported.tensors, &part(&own, true), prefix);
        let ignored = imported.ignored.len();
        assert_eq!(ignored, 5 + usize::from(prefix == "model.module."), "{:?}", imported.ignored);
    }
}

#[test]
fn a_file_that_is_no_student_is_named() {
    let own = student([32, 32]);
    let mut old = export(&own, &facts([32, 32]), Format::HfMae, true).unwrap().tensors;
    let message = |tensors: &Tensors| import(&file(tensors)).unwrap_err().to_string();
    let one = || Tensor::ones([2], (Kind::Float, Device::Cpu));
    assert!(message(&[("a.b".to_owned(), one())].into()).contains("holds no student"));

    let key = old.remove("vit.encoder.layer.1.attention.attention.key.weight").unwrap();
    assert!(message(&old).contains("layer.1.attention.attention.key.weight [32, 32]"));
    old.insert("vit.encoder.layer.1.attention.attention.key.weight".into(), key.narrow(0, 0, 31));
    assert!(message(&old).contains("key.weight [31, 32]"));
    old.insert("vit.encoder.layer.1.attention.attention.key.weight".into(), key);
    let query = old.remove("decoder.decoder_layers.0.attention.attention.query.bias").unwrap();
    let text = message(&old);
    assert!(text.contains("missing (1)") && text.contains("query.bias [16]"), "{text}");
    old.insert("decoder.decoder_layers.0.attention.attention.query.bias".into(), query);
    // The same tensor under two names, and numbers that only look like one.
    old.insert("vit.layers.0.layernorm_before.bias".into(), one());
    old.insert("vit.encoder.layer.01.layernorm_before.bias".into(), one());
    assert!(message(&old).contains("unexpected (2)"), "{}", message(&old));
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
        let before: Tensors = params.tensors().iter().map(|(n, t)| (n.clone(), t.copy())).collect();
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
    given.insert("norm.weight".into(), Tensor::ones([31], (Kind::Float, Device::Cpu)));
    given.remove("blocks.1.mlp.fc2.bias");
    given.remove("decoder_norm.bias");
    given.insert("blocks.2.norm1.bias".into(), Tensor::ones([32], (Kind::Float, Device::Cpu)));
    let Err(Error::WeightsMismatch { mismatch, .. }) = load_into(&params, &given, "a test") else {
        panic!("it does not fit");
    };
    let Mismatch { missing, unexpected, misshaped, not_float } = mismatch;
    let first = |list: &[(String, Vec<i64>)]| list.iter().map(|(n, _)| n.clone()).collect::<Vec<_>>();
    assert_eq!(first(&missing), ["blocks.1.mlp.fc2.bias", "decoder_norm.bias"]);
    assert_eq!(first(&unexpected), ["blocks.2.norm1.bias"]);
    assert_eq!((misshaped[0].found.clone(), misshaped[0].expected.clone()), (vec![31], vec![32]));
    assert!(not_float.is_empty());
    assert_eq!(params.get("norm.weight").unwrap(), before, "nothing has been changed");
}

#[test]
fn a_configuration_of_other_heads_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let weights = folder.path().join("model.safetensors");
    check_beside(&weights, 4, Some(2)).unwrap();
    for (text, words) in [
        (r#"{"num_attention_heads": 4, "decoder_num_attention_heads": 2, "hidden_act": "gelu"}"#, None),
        (r#"{"num_attention_heads": 8}"#, Some("has 8 attention heads, and model.num_heads is 4")),
        (r#"{"model_args": {"num_heads": 4, "decoder_num_heads": 1}}"#, Some("model.decoder_num_heads is 2")),
        (r#"{"hidden_act": "quick_gelu"}"#, Some("quick_gelu")),
        ("[", Some("is not JSON")),
    ] {
        std::fs::write(folder.path().join("config.json"), text).unwrap();
        match (check_beside(&weights, 4, Some(2)), words) {
            (Ok(()), None) => {}
            (Err(e), Some(words)) => assert!(e.to_string().contains(words), "{e}"),
            other => panic!("{text}: {other:?}"),
        }
    }
    std::fs::write(folder.path().join("config.json"), r#"{"model_args": {"decoder_num_heads": 1}}"#).unwrap();
    check_beside(&weights, 4, None).unwrap();
}

#[test]
fn weights_that_are_no_numbers_are_refused_by_tensor() {
    let mut own = student([32, 32]);
    let spoilt = own["blocks.0.norm1.bias"].full_like(f64::NAN);
    own.insert("blocks.0.norm1.bias".to_owned(), spoilt);
    match import(&file(&own)) {
        Err(Error::WeightsFile(hub::weights::Error::NotFinite { tensor, others, .. })) => {
            assert_eq!((tensor.as_str(), others), ("blocks.0.norm1.bias", 0));
        }
        other => panic!("{other:?}"),
    }
}
