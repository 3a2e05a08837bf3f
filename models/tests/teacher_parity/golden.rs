//! Every stage of the committed cases, and what a wrong fact does to them.

use models::layers::Activation;
use models::precision::Precision;
use models::teacher::{Layer, TeacherOptions};
use serde_json::{Value, json};
use tch::Device;

use crate::support::*;

#[test]
fn every_stage_equals_the_package_that_defines_it() {
    for (folder, file) in OLD_NATIVE.into_iter().chain(OLD_NON_NATIVE).chain(NATIVE).chain(NON_NATIVE) {
        let path = golden().join(folder);
        let differences = compare(&path, &read(&path, file), Precision::F32);
        println!("{folder} {file}: {}", show(&differences));
        assert!(largest(&differences) < TOLERANCE, "{folder} {file}: {differences:?}");
    }
}

#[test]
fn bf16_is_near_and_not_f32() {
    for (folder, file) in OLD_NATIVE.into_iter().chain(NATIVE) {
        let path = golden().join(folder);
        let differences = compare(&path, &read(&path, file), Precision::Bf16);
        println!("{folder} {file}: {}", show(&differences));
        // bf16 keeps 8 bits, 0.4 % of a value; a few layers of rounding stay within a few times that.
        assert!(largest(&differences) < 0.03, "{folder} {file}: {differences:?}");
        assert!(differences["tokens"] > 1e-4, "{folder} {file}: bf16 was not used");
    }
}

#[test]
fn a_wrong_fact_is_visible_to_these_files() {
    let check = |folder: &str, file: &str, changed: &str, change: &dyn Fn(&mut Value)| {
        let temp = changed_copy(folder, |name, value| {
            if name == changed {
                change(value);
            }
        });
        let expected = read(&golden().join(folder), file);
        let differences = compare(temp.path(), &expected, Precision::F32);
        assert!(largest(&differences) > 10.0 * TOLERANCE, "{folder}: {changed}: {differences:?}");
    };
    let (config, preprocessor) = ("config.json", "preprocessor_config.json");
    let file = "expected-32x32";
    check("clip-quickgelu", file, config, &|config| config["vision_config"]["hidden_act"] = json!("gelu"));
    check("clip-quickgelu", file, config, &|config| config["vision_config"]["layer_norm_eps"] = json!(1e-6));
    check("clip-quickgelu", file, config, &|config| config["vision_config"]["num_attention_heads"] = json!(6));
    check("clip-gelu", "expected-48x48", config, &|config| config["hidden_act"] = json!("quick_gelu"));
    check("vit", file, config, &|config| config["layer_norm_eps"] = json!(1e-6));
    check("vit", file, preprocessor, &|preprocessor| preprocessor["image_std"] = json!([0.5, 0.5, 0.51]));
    check("dino", "expected-48x48", config, &|config| config["layer_norm_eps"] = json!(1e-5));
    check("dino", "expected-48x48", preprocessor, &|preprocessor| {
        preprocessor["image_mean"] = json!([0.456, 0.485, 0.406])
    });
    let open_clip = "open_clip_config.json";
    check("openai-clip", file, open_clip, &|config| config["model_cfg"]["quick_gelu"] = json!(false));
    check("openai-clip", file, open_clip, &|config| config["model_cfg"]["vision_cfg"]["head_width"] = json!(8));
    check("openai-clip", file, open_clip, &|config| {
        config["model_cfg"]["vision_cfg"]["norm_kwargs"] = json!({"eps": 1e-6})
    });
    check("openai-clip", file, open_clip, &|config| config["preprocess_cfg"]["mean"] = json!([0.5, 0.5, 0.5]));
    check("dinov2", file, config, &|config| config["layer_norm_eps"] = json!(1e-5));
    check("dinov3", file, config, &|config| config["rope_theta"] = json!(101));
    check("dinov3", file, config, &|config| config["layer_norm_eps"] = json!(1e-6));
    check("siglip", file, config, &|config| config["hidden_act"] = json!("gelu"));
}

/// The two rules of DINOv2 differ by more than the tolerance, so a swap would show.
#[test]
fn interpolation_with_registers_is_another_one() {
    let table = models::init::Init::Normal { std: 1.0 }.tensor(&[1, 49, 8], 0, "table");
    let [plain, antialiased] =
        [false, true].map(|antialias| models::pos_interpolate::interpolate(&table, (5, 3), antialias));
    assert!(relative_l2(&plain, &antialiased) > 0.1);
    for antialias in [false, true] {
        let native = models::pos_interpolate::interpolate(&table, (7, 7), antialias);
        assert_eq!(native, table);
    }
}

#[test]
fn an_activation_is_taken_where_the_files_are_silent() {
    let silent = changed_copy("clip-gelu", |_, config| {
        let config = config.as_object_mut().unwrap();
        // Without a model_type nothing stands for transformers' defaults either.
        config.remove("hidden_act");
        config.remove("model_type");
    });
    let load = |activation: Option<Activation>| {
        let options = TeacherOptions { activation, ..TeacherOptions::default() };
        models::teacher::Teacher::load_with(silent.path(), &options, Device::Cpu)
    };
    let question = load(None).unwrap_err().to_string();
    assert!(question.contains("activation"), "{question}");
    let pixels = &read(&golden().join("clip-gelu"), "expected-48x48")["pixels"];
    let spoken = teacher(&golden().join("clip-gelu"));
    let expected = spoken.forward(pixels, Precision::F32).unwrap();
    let of = |activation| load(Some(activation)).unwrap();
    let found = of(Activation::Gelu);
    assert_eq!(found.forward(pixels, Precision::F32).unwrap().tokens, expected.tokens);
    let other = of(Activation::QuickGelu).forward(pixels, Precision::F32).unwrap();
    assert!(relative_l2(&other.tokens, &expected.tokens) > 10.0 * TOLERANCE);
}

#[test]
fn a_dino_file_may_stand_alone() {
    // Width 64 is the smallest from which heads can be told: 64 / 64 = 1.
    let store = |name: &str, shape: &[i64]| models::init::Init::TruncNormal { std: 0.2 }.tensor(shape, 0, name);
    let mut tensors = Tensors::new();
    let mut add = |name: String, shape: &[i64]| {
        let tensor = store(&name, shape);
        tensors.insert(name, tensor);
    };
    add("cls_token".into(), &[1, 1, 64]);
    add("pos_embed".into(), &[1, 10, 64]);
    add("patch_embed.proj.weight".into(), &[64, 3, 8, 8]);
    // DINO's own head; a linear classifier would leave the normalization open.
    add("head.last_layer.weight_g".into(), &[5, 1]);
    for (name, shape) in [
        ("patch_embed.proj.bias", &[64][..]),
        ("norm.weight", &[64]),
        ("norm.bias", &[64]),
        ("blocks.0.norm1.weight", &[64]),
        ("blocks.0.norm1.bias", &[64]),
        ("blocks.0.norm2.weight", &[64]),
        ("blocks.0.norm2.bias", &[64]),
        ("blocks.0.attn.qkv.weight", &[192, 64]),
        ("blocks.0.attn.qkv.bias", &[192]),
        ("blocks.0.attn.proj.weight", &[64, 64]),
        ("blocks.0.attn.proj.bias", &[64]),
        ("blocks.0.mlp.fc1.weight", &[100, 64]),
        ("blocks.0.mlp.fc1.bias", &[100]),
        ("blocks.0.mlp.fc2.weight", &[64, 100]),
        ("blocks.0.mlp.fc2.bias", &[64]),
    ] {
        add(name.into(), shape);
    }
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("dino.safetensors");
    std::fs::write(&file, models::weights::to_bytes(&tensors, None).unwrap()).unwrap();
    for path in [temp.path(), &file] {
        let teacher = teacher(path);
        let info = teacher.info();
        assert_eq!(info.arch, "vit-w64-d1-h2-m100-p8");
        assert_eq!((info.norm_eps, info.input_size), (1e-6, 24));
        assert_eq!((info.mean, info.std), ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]));
        assert_eq!(info.activation, Activation::Gelu);
    }
}

#[test]
fn an_image_does_not_see_its_batch_and_threads_share_a_teacher() {
    for (folder, file) in [("dino", "expected-48x48"), ("siglip", "expected-32x32")] {
        let (teacher, expected) = case(folder, file);
        let both = teacher.forward(&expected["pixels"], Precision::F32).unwrap();
        let clone = teacher.shallow_clone();
        let second = expected["pixels"].narrow(0, 1, 1).contiguous();
        let alone = std::thread::spawn(move || clone.forward(&second, Precision::F32).unwrap()).join().unwrap();
        assert!(relative_l2(&alone.tokens, &both.tokens.narrow(0, 1, 1)) < 1e-6);
        assert!(relative_l2(&alone.cls, &both.cls.narrow(0, 1, 1)) < 1e-6);
        assert!(relative_l2(&alone.cls_attn, &both.cls_attn.narrow(0, 1, 1)) < 1e-6);
    }
}

#[test]
fn features_are_the_pooled_final_norm_whatever_the_layer() {
    let folder = golden().join("openai-clip");
    let expected = read(&folder, "expected-32x32");
    for layer in Layer::ALL {
        let teacher = teacher_of(&folder, layer);
        let features = teacher.image_features(&expected["pixels"], Precision::F32).unwrap();
        assert!(relative_l2(&features.cls.unwrap(), &expected["normed"].select(1, 0)) < TOLERANCE);
        let patches = expected["normed"].narrow(1, 1, 16);
        let mean = patches.mean_dim(1, false, None);
        assert!(relative_l2(&features.mean, &mean) < TOLERANCE);
    }
    let (siglip, expected) = case("siglip", "expected-32x32");
    let features = siglip.image_features(&expected["pixels"], Precision::F32).unwrap();
    assert!(relative_l2(&features.cls.unwrap(), &expected["pooled"]) < TOLERANCE);
}
