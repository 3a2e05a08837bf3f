//! What the files beside the weights say, do not say, and say wrongly.

use super::*;

#[test]
fn the_files_decide_and_defaults_fill_in() {
    let info = load(&timm_tensors(&timm_config()), &[]).unwrap().info().clone();
    assert_eq!(info.arch, "vit-w64-d2-h2-m32-p8");
    assert_eq!((info.layout, info.norm_eps, info.activation), ("timm", 1e-6, Activation::Gelu));
    assert_eq!((info.mean, info.std), ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]));

    let written = json!({"num_attention_heads": 2, "layer_norm_eps": 1e-4, "hidden_act": "quick_gelu", "image_size": [24, 24],
        "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}});
    let info = load(&timm_tensors(&timm_config()), &config(written)).unwrap().info().clone();
    assert_eq!((info.heads, info.norm_eps, info.activation), (2, 1e-4, Activation::QuickGelu));
    assert_eq!((info.mean, info.std, info.input_size), ([0.5; 3], [0.25; 3], 24));

    let preprocessor = json!({"image_processor": {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1]}});
    let info = load(&timm_tensors(&timm_config()), &[("processor_config.json", preprocessor)]).unwrap().info().clone();
    assert_eq!((info.mean, info.std), ([0.1, 0.2, 0.3], [1.0; 3]));

    let not_normalised = json!({"do_normalize": false, "image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1]});
    let files = [("preprocessor_config.json", not_normalised)];
    let info = load(&timm_tensors(&timm_config()), &files).unwrap().info().clone();
    assert_eq!((info.mean, info.std), ([0.0; 3], [1.0; 3]));

    let by_name = json!({"architecture": "vit_base_patch16_clip_quickgelu_224", "pretrained_cfg": {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}});
    let info = load(&clip_tensors(), &config(by_name)).unwrap().info().clone();
    assert_eq!((info.activation, info.norm_eps), (Activation::QuickGelu, 1e-5));
    assert_eq!(info.mean, [0.48145466, 0.4578275, 0.40821073]);
    assert!(info.arch.starts_with("clip-vit-"));

    // transformers may leave out what equals its class's default: eps 1e-12 and 12 heads.
    let mut whole = [
        ("config.json", json!({"model_type": "vit", "num_attention_heads": 4})),
        ("preprocessor_config.json", json!({"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]})),
    ];
    let info = load(&hf_vit_tensors(), &whole).unwrap().info().clone();
    assert_eq!((info.norm_eps, info.heads, info.layout), (1e-12, 4, "Hugging Face ViT"));
    whole[0].1 = json!({"model_type": "vit"});
    let error = load(&hf_vit_tensors(), &whole).unwrap_err().to_string();
    assert!(error.contains("12 attention heads do not divide a width of 64"), "{error}");
}

/// Another model's file would lend its activation, eps and sizes to these tensors without a word.
#[test]
fn the_configuration_of_another_kind_of_network_is_refused() {
    let with = |model_type: &str| {
        let files = [
            ("config.json", json!({"model_type": model_type, "num_attention_heads": 4})),
            ("preprocessor_config.json", json!({"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]})),
        ];
        load(&hf_vit_tensors(), &files)
    };
    for foreign in ["clip", "dinov2", "dinov3_vit", "siglip_vision_model"] {
        match with(foreign) {
            Err(Error::TeacherConfig { reason, .. }) => {
                assert!(reason.contains(foreign) && reason.contains("belongs to another model"), "{reason}")
            }
            other => panic!("{foreign}: {other:?}"),
        }
    }
    // What is not known here says nothing.
    with("vit").unwrap();
    with("my-vit").unwrap();
}

/// A CLIP file without a config, whose width is not a multiple of 64: every missing fact is asked for in one error.
#[test]
fn all_questions_are_asked_at_once() {
    let small = VitConfig { embed_dim: 48, num_heads: 1, norm_pre: true, patch_bias: false, ..timm_config() };
    let error = load(&timm_tensors(&small), &[]).unwrap_err().to_string();
    for part in
        ["3 things", "--mean R,G,B", "there is no", "config.json", "hidden_act", "--activation", "num_attention_heads"]
    {
        assert!(error.contains(part), "{part}: {error}");
    }
    let heads = config(json!({"num_attention_heads": 1, "pretrained_cfg": {"mean": 0.5, "std": 0.5}}));
    let error = load(&timm_tensors(&small), &heads).unwrap_err().to_string();
    assert!(error.contains("config.json\" does not say the activation") && !error.contains("heads"), "{error}");
}

#[test]
fn weights_that_are_no_numbers_are_refused_by_tensor() {
    for value in [f64::NAN, f64::INFINITY] {
        let mut tensors = timm_tensors(&timm_config());
        let bias = Tensor::full([64], value, (Kind::Float, Device::Cpu));
        tensors.insert("blocks.1.mlp.fc2.bias".into(), bias);
        match load(&tensors, &[]) {
            Err(Error::WeightsFile(hub::weights::Error::NotFinite { tensor, others, .. })) => {
                assert_eq!((tensor.as_str(), others), ("blocks.1.mlp.fc2.bias", 0));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_must_not_be_guessed_is_asked_for() {
    let check = |tensors: &Tensors, files: &[(&str, Value)], wanted: &str| {
        let error = load(tensors, files).unwrap_err();
        let questions = match &error {
            Error::MissingFacts(several) => several,
            one => std::slice::from_ref(one),
        };
        let asks = |question: &Error| match question {
            Error::MissingFact { fact, next_step, .. } => fact.contains(wanted) && next_step.contains(".json"),
            other => panic!("expected a question about {wanted}, got {other:?}"),
        };
        assert_eq!(questions.iter().filter(|q| asks(q)).count(), 1, "{error}");
    };
    check(&clip_tensors(), &[], "activation");
    check(&clip_tensors(), &config(json!({"architecture": "vit_base_patch16_clip_224"})), "activation");
    check(&hf_vit_tensors(), &[], "layer_norm_eps");
    let vit = json!({"model_type": "vit", "num_attention_heads": 1});
    check(&hf_vit_tensors(), &config(vit), "image_mean");
    let small = VitConfig { depth: 1, embed_dim: 48, num_heads: 1, ..timm_config() };
    check(&timm_tensors(&small), &[], "heads");
    let wide = VitConfig { depth: 1, embed_dim: 1280, num_heads: 16, mlp_dim: 8, ..timm_config() };
    check(&timm_tensors(&wide), &[], "heads");
    // 64 divides it, but nobody has published it.
    let unknown = VitConfig { depth: 1, embed_dim: 128, num_heads: 4, mlp_dim: 8, ..timm_config() };
    check(&timm_tensors(&unknown), &[], "heads");
}

#[test]
fn unusable_configurations_are_refused() {
    let check = |files: &[(&str, Value)], part: &str| match load(&timm_tensors(&timm_config()), files) {
        Err(Error::TeacherConfig { reason, .. }) => assert!(reason.contains(part), "{reason}"),
        other => panic!("expected a refusal because of {part}, got {other:?}"),
    };
    check(&config(json!([1])), "no JSON object");
    check(&config(json!({"hidden_act": "gelu_new"})), "gelu_new");
    check(&config(json!({"hidden_act": 3})), "a string");
    check(&config(json!({"layer_norm_eps": -1.0})), "layer_norm_eps");
    check(&config(json!({"layer_norm_eps": "small"})), "a number");
    check(&config(json!({"num_attention_heads": 0})), "num_attention_heads");
    check(&config(json!({"num_attention_heads": 5})), "do not divide");
    check(&config(json!({"hidden_size": 1.5})), "an integer");
    check(&config(json!({"hidden_size": -64})), "width");
    check(&config(json!({"num_hidden_layers": 1_000_000_000_000_i64})), "depth");
    check(&config(json!({"patch_size": 0})), "patch size");
    check(&config(json!({"image_size": [224, 112]})), "twice the same");
    let preprocessor = |value: Value| [("preprocessor_config.json", value)];
    check(&preprocessor(json!({"image_mean": [0, 0], "image_std": [1, 1]})), "three numbers");
    check(&preprocessor(json!({"image_mean": [0, 0, 0], "image_std": [1, 0, 1]})), "above 0");
    check(&preprocessor(json!({"rescale_factor": 0.5})), "divided by 255");
    check(&preprocessor(json!({"do_rescale": false})), "divided by 255");

    let folder = folder(&timm_tensors(&timm_config()), &[]);
    fs::write(folder.path().join("config.json"), "{").unwrap();
    let error = Teacher::load(folder.path(), Device::Cpu);
    assert!(matches!(error, Err(Error::TeacherConfig { reason, .. }) if reason.contains("no JSON")));
}
