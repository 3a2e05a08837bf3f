//! What distinguishes the families: their marks, defaults, options, and files that are wrong in a way of their own.

use super::*;

/// The tower `config` in OpenAI's names, with a projection to 5 numbers.
pub(super) fn openai_tensors(config: &VitConfig) -> Tensors {
    let mut tensors = Tensors::new();
    for (name, tensor) in timm_tensors(config) {
        let (name, tensor) = match name.as_str() {
            "cls_token" => ("class_embedding".to_owned(), tensor.view([-1])),
            "pos_embed" => ("positional_embedding".to_owned(), tensor.squeeze_dim(0)),
            _ => {
                let name = name
                    .replace("patch_embed.proj", "conv1")
                    .replace("norm_pre", "ln_pre")
                    .replace("blocks.", "transformer.resblocks.")
                    .replace("norm1", "ln_1")
                    .replace("norm2", "ln_2")
                    .replace("attn.qkv.", "attn.in_proj_")
                    .replace("attn.proj", "attn.out_proj")
                    .replace("mlp.fc1", "mlp.c_fc")
                    .replace("mlp.fc2", "mlp.c_proj")
                    .replace("norm.", "ln_post.");
                (name, tensor)
            }
        };
        tensors.insert(format!("visual.{name}"), tensor);
    }
    let proj = Init::Normal { std: 0.1 }.tensor(&[64, 5], 0, "proj");
    tensors.insert("visual.proj".to_owned(), proj);
    // As OpenAI's own archives have them, which have one normalization.
    for name in ["input_resolution", "context_length", "vocab_size"] {
        tensors.insert(name.to_owned(), Tensor::from_slice(&[24i64]));
    }
    tensors
}

pub(super) fn clip_config() -> VitConfig {
    VitConfig { norm_pre: true, patch_bias: false, mlp_dim: 256, ..timm_config() }
}

/// The original DINOv3 of one block: 2 heads of 32, 4 registers, a mask over the keys' bias.
pub(super) fn dinov3_tensors() -> Tensors {
    let config = VitConfig { registers: 4, positions: Positions::Rotary { base: 100.0 }, depth: 1, ..timm_config() };
    let mut tensors = timm_tensors(&config);
    let registers = tensors.remove("reg_token").unwrap();
    tensors.insert("storage_tokens".into(), registers);
    for scale in ["ls1", "ls2"] {
        tensors.insert(format!("blocks.0.{scale}.gamma"), ones(64));
    }
    let mask = Tensor::cat(&[&ones(64), &ones(64).zeros_like(), &ones(64)], 0);
    tensors.insert("blocks.0.attn.qkv.bias_mask".into(), mask);
    let periods: Vec<f32> = (0..8).map(|k| 100f32.powf(k as f32 / 8.0)).collect();
    tensors.insert("rope_embed.periods".into(), Tensor::from_slice(&periods));
    tensors
}

fn ones(n: i64) -> Tensor {
    Tensor::ones([n], (Kind::Float, Device::Cpu))
}

fn heads(n: i64) -> [(&'static str, Value); 1] {
    config(json!({"num_attention_heads": n}))
}

fn open_clip(model: Value) -> [(&'static str, Value); 1] {
    [("open_clip_config.json", json!({"model_cfg": model}))]
}

fn load_with(
    tensors: &Tensors,
    files: &[(&str, Value)],
    layer: Layer,
    activation: Option<Activation>,
) -> Result<Teacher> {
    let options = TeacherOptions { layer, activation, ..TeacherOptions::default() };
    Teacher::load_with(folder(tensors, files).path(), &options, Device::Cpu)
}

#[test]
fn open_clips_config_is_read() {
    let tensors = openai_tensors(&clip_config());
    let vision = json!({"width": 64, "layers": 2, "patch_size": 8, "image_size": 24, "head_width": 32});
    let load_cfg = |model: Value| load(&tensors, &open_clip(model));
    let info = load_cfg(json!({"vision_cfg": vision, "quick_gelu": true})).unwrap().info().clone();
    assert_eq!(info.arch, "clip-vit-w64-d2-h2-m256-p8");
    assert_eq!((info.activation, info.norm_eps, info.layout), (Activation::QuickGelu, 1e-5, "OpenAI CLIP"));
    assert_eq!((info.mean, info.input_size), ([0.48145466, 0.4578275, 0.40821073], 24));

    // What is not said is open_clip's default: gelu, heads of 64, a ratio of 4.
    let plain = json!({"width": 64, "layers": 2, "patch_size": 8, "image_size": [24, 24]});
    let mut files = open_clip(json!({"vision_cfg": plain}));
    files[0].1["preprocess_cfg"] = json!({"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]});
    let info = load(&tensors, &files).unwrap().info().clone();
    assert_eq!((info.heads, info.activation), (1, Activation::Gelu));
    assert_eq!((info.mean, info.std), ([0.1, 0.2, 0.3], [1.0; 3]));

    let refused = |vision: Value, part: &str| match load_cfg(json!({"vision_cfg": vision})) {
        Err(Error::ConfigJson { path, reason }) => {
            assert!(path.ends_with("open_clip_config.json"), "{path:?}");
            assert!(reason.contains(part), "{reason}");
        }
        other => panic!("expected a refusal because of {part}, got {other:?}"),
    };
    refused(json!({"width": 64, "head_width": 24}), "head_width 24");
    refused(json!({"width": 64, "head_width": 0}), "head_width 0");
    refused(json!({"layers": [3, 4, 6, 3]}), "ResNet");
    refused(json!({"width": "wide"}), "an integer");
    refused(json!({"width": 64, "mlp_ratio": 1e300}), "MLP width");
    // Another model's config is told by the shapes.
    let other = json!({"vision_cfg": {"width": 128, "layers": 2, "patch_size": 8, "image_size": 24}});
    let Err(Error::WeightsMismatch { mismatch, .. }) = load_cfg(other) else {
        panic!("a config of another width was taken");
    };
    let conv1 = mismatch.misshaped.iter().find(|m| m.name == "visual.conv1.weight");
    assert_eq!(conv1.map(|m| (m.found.clone(), m.expected.clone())), Some((vec![64, 3, 8, 8], vec![128, 3, 8, 8])));
    assert!(!mismatch.misshaped.iter().any(|m| m.name == "visual.proj"));
}

#[test]
fn an_openai_file_may_stand_alone_but_for_its_activation() {
    let tensors = openai_tensors(&clip_config());
    let Err(Error::MissingFact { next_step, .. }) = load(&tensors, &[]) else {
        panic!("the activation was guessed");
    };
    assert!(next_step.contains("hidden_act"), "{next_step}");
    assert!(next_step.contains("--activation quick_gelu"), "{next_step}");
    for activation in [Activation::QuickGelu, Activation::Gelu] {
        let teacher = load_with(&tensors, &[], Layer::Last, Some(activation)).unwrap();
        assert_eq!(teacher.info().activation, activation);
        assert_eq!(teacher.info().heads, 1);
    }
}

#[test]
fn an_activation_against_the_files_is_refused() {
    let openai = openai_tensors(&clip_config());
    let quick = json!({"hidden_act": "quick_gelu"});
    let cfg = json!({"vision_cfg": {"width": 64, "layers": 2, "patch_size": 8, "image_size": 24}});
    let check = |files: &[(&str, Value)], asked: Option<Activation>, parts: [&str; 2]| match load_with(
        &openai,
        files,
        Layer::Last,
        asked,
    ) {
        Err(Error::ConfigJson { reason, .. }) => {
            assert!(parts.iter().all(|part| reason.contains(part)), "{reason}");
        }
        other => panic!("expected {parts:?} to be named, got {other:?}"),
    };
    check(&config(quick.clone()), Some(Activation::Gelu), ["hidden_act quick_gelu", "asked for is gelu"]);
    check(&open_clip(cfg.clone()), Some(Activation::QuickGelu), ["so gelu", "asked for is quick_gelu"]);
    let both = [("config.json", quick.clone()), ("open_clip_config.json", json!({"model_cfg": cfg}))];
    check(&both, None, ["hidden_act quick_gelu", "so gelu"]);
    // Stating the same value again is not a contradiction.
    load_with(&openai, &config(quick), Layer::Last, Some(Activation::QuickGelu)).unwrap();
    // What transformers leaves out is said too.
    let default = json!({"model_type": "vit", "num_attention_heads": 1, "layer_norm_eps": 1e-6});
    let half = json!({"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]});
    let files = [("config.json", default), ("preprocessor_config.json", half)];
    let tensors = hf_vit_tensors();
    let refused = load_with(&tensors, &files, Layer::Last, Some(Activation::QuickGelu));
    assert!(matches!(refused, Err(Error::ConfigJson { reason, .. }) if reason.contains("default, gelu")));
    // DINO alone says nothing, and takes what is asked for.
    let timm = timm_tensors(&timm_config());
    let teacher = load_with(&timm, &[], Layer::Last, Some(Activation::QuickGelu)).unwrap();
    assert_eq!(teacher.info().activation, Activation::QuickGelu);
}

/// timm's `global_pool = "avg"` has no norm of tokens: `fc_norm` is that of the patches' mean.
#[test]
fn a_norm_of_the_mean_is_not_taken_for_one_of_patches() {
    let with_norm = timm_tensors(&timm_config());
    let mut pooled: Tensors = with_norm.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect();
    for part in ["weight", "bias"] {
        let norm = pooled.remove(&format!("norm.{part}")).unwrap();
        pooled.insert(format!("fc_norm.{part}"), norm);
    }
    let [of_cls, of_mean] = [&with_norm, &pooled].map(|t| load_with(t, &[], Layer::Last, None).unwrap());
    let pixels = Tensor::arange(2 * 3 * 24 * 24, (Kind::Int64, Device::Cpu)).remainder(251);
    let pixels = pixels.to_kind(Kind::Uint8).view([2, 3, 24, 24]);
    let tokens = of_mean.forward(&pixels, Precision::F32).unwrap().tokens;
    assert_eq!(tokens, of_cls.forward(&pixels, Precision::F32).unwrap().tokens);
    let features = of_mean.image_features(&pixels, Precision::F32).unwrap();
    assert!(features.cls.is_none() && !of_mean.pools_cls() && of_cls.pools_cls());
    assert_eq!(features.mean, of_cls.final_norm(&tokens.mean_dim(1, false, None)));
    assert!(of_mean.info().arch.ends_with("-avg") && !of_cls.info().arch.ends_with("-avg"));
    for layer in [Layer::LastNorm, Layer::Proj] {
        let refused = load_with(&pooled, &[], layer, None).unwrap_err().to_string();
        assert!(refused.starts_with(&format!("layer = {layer}: ")) && refused.contains("use layer last"), "{refused}");
    }
    // Without either it is said what every file of the layout has.
    pooled.retain(|name, _| !name.starts_with("fc_norm."));
    assert!(mismatch(&pooled, &[]).missing.iter().any(|(name, _)| name == "norm.weight"));
}

#[test]
fn layers_have_their_widths_and_only_clip_projects() {
    let openai = openai_tensors(&clip_config());
    let files = config(json!({"hidden_act": "gelu", "pretrained_cfg": {"mean": [0.5], "std": 0.5}}));
    let pixels = Tensor::zeros([2, 3, 16, 24], (Kind::Uint8, Device::Cpu));
    for (layer, width) in [(Layer::Last, 64), (Layer::LastNorm, 64), (Layer::Proj, 5)] {
        let teacher = load_with(&openai, &files, layer, None).unwrap();
        let info = teacher.info();
        assert_eq!((info.layer, info.width, info.hidden), (layer, width, 64));
        for precision in [Precision::F32, Precision::Bf16] {
            let output = teacher.forward(&pixels, precision).unwrap();
            assert_eq!(output.tokens.size(), [2, 6, i64::from(width)]);
            assert_eq!(output.cls.size(), [2, i64::from(width)]);
            assert_eq!(output.tokens.kind(), Kind::Float);
            assert_eq!(output.cls.kind(), Kind::Float);
        }
        let features = teacher.image_features(&pixels, Precision::F32).unwrap().mean;
        assert_eq!(features.size(), [2, 64]);
    }
    let absent = |tensors: &Tensors, part: &str| match load_with(tensors, &files, Layer::Proj, None) {
        Err(Error::NoProjection { reason, .. }) => assert!(reason.contains(part), "{reason}"),
        other => panic!("expected no projection because of {part}, got {other:?}"),
    };
    absent(&timm_tensors(&timm_config()), "timm layout has no visual projection");
    let mut without = openai;
    without.remove("visual.proj");
    absent(&without, "no tensor visual.proj");
    let mut classifier = timm_tensors(&clip_config());
    let head = Tensor::zeros([1000, 64], (Kind::Float, Device::Cpu));
    classifier.insert("head.weight".into(), head);
    absent(&classifier, "classifier of 1000 classes");
    load_with(&classifier, &files, Layer::Last, None).unwrap();
    // One that does not fit is compared as any tensor is.
    let mut misshaped = timm_tensors(&clip_config());
    misshaped.insert("head.weight".into(), Tensor::zeros([5, 63], (Kind::Float, Device::Cpu)));
    let Err(Error::WeightsMismatch { mismatch, .. }) = load_with(&misshaped, &files, Layer::Proj, None) else {
        panic!("a projection of another width was taken");
    };
    assert_eq!(mismatch.misshaped[0].expected, [5, 64]);

    assert_eq!("last_norm".parse(), Ok(Layer::LastNorm));
    assert!("first".parse::<Layer>().unwrap_err().contains("proj"));
    assert_eq!("gelu_tanh".parse(), Ok(Activation::GeluTanh));
    assert!("relu".parse::<Activation>().unwrap_err().contains("quick_gelu"));
}

#[test]
fn dinov3_is_recognized_and_checked() {
    let info = load(&dinov3_tensors(), &heads(2)).unwrap().info().clone();
    assert_eq!(info.arch, "vit-w64-d1-h2-m32-p8-ls-r4-rope100");
    assert_eq!((info.layout, info.norm_eps), ("original DINOv3", 1e-5));
    assert_eq!(info.input_size, 224);

    let refused = |change: &dyn Fn(&mut Tensors), files: &[(&str, Value)], part: &str| {
        let mut tensors = dinov3_tensors();
        change(&mut tensors);
        match load(&tensors, files) {
            Err(Error::ConfigJson { reason, .. }) => assert!(reason.contains(part), "{reason}"),
            other => panic!("expected a refusal because of {part}, got {other:?}"),
        }
    };
    let nothing = |_: &mut Tensors| ();
    refused(&nothing, &heads(32), "that 4 divides");
    refused(&nothing, &config(json!({"num_attention_heads": 2, "rope_theta": 0})), "rope_theta");
    refused(&nothing, &config(json!({"num_attention_heads": 2, "rope_theta": 1000})), "rope_theta");
    refused(&nothing, &heads(4), "heads of this tower have [4] periods");
    let vit = json!({"architecture": "vit_base_patch16_rope_reg1_gap_256", "num_attention_heads": 2});
    refused(&nothing, &config(vit), "dinov3 towers");
    let unfilled = |tensors: &mut Tensors| {
        let mask = Tensor::full([192], f64::NAN, (Kind::Float, Device::Cpu));
        tensors.insert("blocks.0.attn.qkv.bias_mask".into(), mask);
    };
    refused(&unfilled, &heads(2), "not finite");

    // Half a mask, missing scales and registers are told by name.
    let mut tensors = dinov3_tensors();
    tensors.insert("blocks.0.attn.qkv.bias_mask".into(), ones(64));
    tensors.remove("blocks.0.ls2.gamma");
    tensors.remove("storage_tokens");
    let found = mismatch(&tensors, &config(json!({"num_attention_heads": 2, "num_register_tokens": 4})));
    assert_eq!(
        found.missing,
        [("blocks.0.ls2.gamma".to_owned(), vec![64]), ("storage_tokens".to_owned(), vec![1, 4, 64])]
    );
    assert_eq!(found.misshaped[0].expected, [192]);

    // L and 7B are published with two normalizations.
    let large = VitConfig {
        embed_dim: 1024,
        num_heads: 16,
        mlp_dim: 8,
        patch_size: 1,
        img_size: [3, 3],
        registers: 1,
        depth: 1,
        positions: Positions::Rotary { base: 100.0 },
        ..timm_config()
    };
    let mut large = timm_tensors(&large);
    let registers = large.remove("reg_token").unwrap();
    large.insert("storage_tokens".into(), registers);
    for scale in ["ls1", "ls2"] {
        large.insert(format!("blocks.0.{scale}.gamma"), ones(1024));
    }
    assert!(matches!(load(&large, &[]), Err(Error::MissingFact { fact: "image_mean and image_std", .. })));
}

#[test]
fn hostile_counts_are_refused() {
    let refused = |tensors: &Tensors, value: Value, part: &str| match load(tensors, &config(value)) {
        Err(Error::ConfigJson { reason, .. }) => assert!(reason.contains(part), "{reason}"),
        other => panic!("expected a refusal because of {part}, got {other:?}"),
    };
    let registers = json!({"num_register_tokens": 1_000_000_000_000_i64, "num_attention_heads": 2});
    refused(&dinov3_tensors(), registers, "number of registers");
    let negative = json!({"num_register_tokens": -1, "num_attention_heads": 2});
    refused(&dinov3_tensors(), negative, "number of registers");
    // A layout without registers has none, whatever a config says.
    let half = json!({"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]});
    let vit = json!({"model_type": "vit", "num_attention_heads": 1, "num_register_tokens": 4});
    let files = [("config.json", vit), ("preprocessor_config.json", half)];
    load(&hf_vit_tensors(), &files).unwrap();
}

#[test]
fn registers_and_scales_show_in_the_architecture() {
    let arch = |config: VitConfig, more: &[(&str, Tensor)]| {
        let mut tensors = timm_tensors(&config);
        tensors.extend(more.iter().map(|(name, t)| ((*name).to_owned(), t.shallow_clone())));
        load(&tensors, &[]).unwrap().info().arch.clone()
    };
    let one = || VitConfig { depth: 1, ..timm_config() };
    let scales = [("blocks.0.ls1.gamma", ones(64)), ("blocks.0.ls2.gamma", ones(64))];
    assert_eq!(arch(one(), &[]), "vit-w64-d1-h2-m32-p8");
    assert_eq!(arch(one(), &scales), "vit-w64-d1-h2-m32-p8-ls");
    let registers = VitConfig { registers: 2, ..one() };
    assert_eq!(arch(registers, &scales), "vit-w64-d1-h2-m32-p8-ls-r2");
    let gated = VitConfig { gated_mlp: true, ..one() };
    assert_eq!(arch(gated, &scales), "vit-w64-d1-h2-m32-p8-ls-glu");

    // A gated MLP's activation is silu, and no other can be asked for.
    let gated = timm_tensors(&VitConfig { gated_mlp: true, ..one() });
    let silu = load_with(&gated, &[], Layer::Last, Some(Activation::Silu)).unwrap();
    assert_eq!(silu.info().activation, Activation::Silu);
    let gelu = load_with(&gated, &[], Layer::Last, Some(Activation::Gelu));
    assert!(matches!(gelu, Err(Error::ConfigJson { reason, .. }) if reason.contains("silu")));
}

#[test]
fn the_teacher_of_a_training_run_is_read() {
    let network = timm_tensors(&timm_config());
    let prefixed = |prefix: &str, value: f64| -> Tensors {
        let rename = |(name, tensor): (&String, &Tensor)| {
            let tensor = if name == "cls_token" { tensor * 0.0 + value } else { tensor.shallow_clone() };
            (format!("{prefix}{name}"), tensor)
        };
        network.iter().map(rename).collect()
    };
    let pixels = Tensor::zeros([1, 3, 24, 24], (Kind::Uint8, Device::Cpu));
    let first = |tensors: &Tensors| {
        let stages = load(tensors, &[]).unwrap().hidden_states(&pixels, Precision::F32);
        stages.unwrap()[0].select(1, 0)
    };
    let teacher = prefixed("teacher.backbone.", 1.0);
    let student = prefixed("student.module.backbone.", 2.0);
    let mut both = prefixed("teacher.backbone.", 1.0);
    both.extend(prefixed("student.module.backbone.", 2.0));
    both.insert("student.module.head.last_layer.weight_g".into(), ones(3));
    both.insert("teacher.head.last_layer.weight_g".into(), ones(3));
    both.insert("dino_loss.center".into(), ones(3));
    assert_eq!(first(&both), first(&teacher));
    assert_ne!(first(&teacher), first(&student));
    // Parts that nobody knows are not passed over.
    both.insert("teacher.predictor.weight".into(), ones(3));
    let unexpected = mismatch(&both, &[]).unexpected;
    assert_eq!(unexpected[0].0, "teacher.predictor.weight");
}
