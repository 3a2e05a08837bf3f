//! Facts that no tensor shows: stated by a file, stated by an option, taken where a family has one answer, else asked for.

use super::families::{clip_config, dinov3_tensors, openai_tensors};
use super::*;

const IMAGENET: ([f64; 3], [f64; 3]) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
const HALF: ([f64; 3], [f64; 3]) = ([0.5; 3], [0.5; 3]);

fn half() -> TeacherOptions {
    TeacherOptions { mean: Some(HALF.0), std: Some(HALF.1), ..TeacherOptions::default() }
}

fn load_with(tensors: &Tensors, files: &[(&str, Value)], options: &TeacherOptions) -> Result<Teacher> {
    Teacher::load_with(folder(tensors, files).path(), options, Device::Cpu)
}

fn with_head(mut tensors: Tensors) -> Tensors {
    let head = Init::Normal { std: 0.1 }.tensor(&[10, 64], 0, "head");
    tensors.insert("head.weight".into(), head);
    tensors
}

pub(super) fn without_buffers(mut tensors: Tensors) -> Tensors {
    tensors.retain(|name, _| name.starts_with("visual."));
    tensors
}

fn asks_for_pixels(outcome: Result<Teacher>, what: &str) {
    let error = match outcome {
        Err(error @ Error::MissingFact { .. }) => error.to_string(),
        other => panic!("{what}: {other:?}"),
    };
    for part in ["image_mean", "(in pipeline: --mean", "--std", "[teachers.ID]", "preprocessor_config.json", "0.5"] {
        assert!(error.contains(part), "{what}: {part}: {error}");
    }
}

/// Layouts whose publishers differ are asked about, and the options answer.
#[test]
fn normalization_is_asked_for_where_publishers_differ() {
    let gelu = || config(json!({"hidden_act": "gelu", "layer_norm_eps": 1e-5, "num_attention_heads": 2}));
    let vit = || config(json!({"model_type": "vit", "num_attention_heads": 2}));
    for (what, tensors, files) in [
        ("open_clip", without_buffers(openai_tensors(&clip_config())), gelu()),
        ("timm CLIP", clip_tensors(), gelu()),
        ("timm with a classifier", with_head(timm_tensors(&timm_config())), gelu()),
        ("Hugging Face ViT", hf_vit_tensors(), vit()),
    ] {
        asks_for_pixels(load(&tensors, &files), what);
        let teacher = load_with(&tensors, &files, &half()).unwrap();
        let info = teacher.info();
        assert_eq!((info.mean, info.std), HALF, "{what}");
        assert!(!info.assumed.iter().any(|a| a.settings.contains("mean")), "{what}");
        // One of the two says nothing.
        let lone = TeacherOptions { std: None, ..half() };
        let error = load_with(&tensors, &files, &lone).unwrap_err().to_string();
        assert!(error.contains("the std that belongs"), "{error}");
    }
    // A config of open_clip that describes the model alone.
    let vision = json!({"width": 64, "layers": 2, "patch_size": 8, "image_size": 24});
    let silent = [("open_clip_config.json", json!({"model_cfg": {"vision_cfg": vision}}))];
    asks_for_pixels(load(&without_buffers(openai_tensors(&clip_config())), &silent), "open_clip_config");
    // A preprocessor that leaves it out.
    let silent = [("preprocessor_config.json", json!({"do_normalize": true, "size": 224}))];
    asks_for_pixels(load(&with_head(timm_tensors(&timm_config())), &silent), "preprocessor");
}

/// Everything that was taken without being stated is listed, and is doubtful only where publishers differ.
#[test]
fn what_is_taken_is_listed() {
    let check =
        |what: &str, tensors: &Tensors, files: &[(&str, Value)], pixels, settings: &[&str], doubtful: &[&str]| {
            let teacher = load(tensors, files).unwrap();
            let info = teacher.info();
            assert_eq!((info.mean, info.std), pixels, "{what}");
            let mut found: Vec<_> = info.assumed.iter().map(|a| a.settings).collect();
            found.sort_unstable();
            assert_eq!(found, settings, "{what}: {:?}", info.assumed);
            let in_doubt = info.assumed.iter().filter(|a| a.doubtful).map(|a| a.settings);
            assert_eq!(in_doubt.collect::<Vec<_>>(), doubtful, "{what}");
        };
    let all = &["activation", "eps", "heads", "mean and std"][..];
    check("bare ViT", &timm_tensors(&timm_config()), &[], IMAGENET, all, &["mean and std"]);
    let stated = config(json!({"hidden_act": "gelu", "layer_norm_eps": 1e-6, "num_attention_heads": 2,
        "pretrained_cfg": {"mean": 0.5, "std": [0.5]}}));
    check("all stated", &timm_tensors(&timm_config()), &stated, HALF, &[], &[]);
    let mut mae = timm_tensors(&timm_config());
    for (name, shape) in [("decoder_embed.weight", &[8, 64][..]), ("decoder_pos_embed", &[1, 10, 8])] {
        mae.insert(name.into(), Init::Normal { std: 0.1 }.tensor(shape, 0, name));
    }
    check("MAE", &mae, &[], IMAGENET, all, &[]);
    let heads = config(json!({"num_attention_heads": 2}));
    let three = &["activation", "eps", "mean and std"][..];
    check("DINOv3", &dinov3_tensors(), &heads, IMAGENET, three, &[]);
    let openai = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]);
    let quick = config(json!({"hidden_act": "quick_gelu"}));
    let three = &["eps", "heads", "mean and std"][..];
    check("OpenAI's archive", &openai_tensors(&clip_config()), &quick, openai, three, &[]);
}

/// Every form in which a file states it, old and new.
#[test]
fn every_form_of_a_statement_is_read() {
    let tensors = with_head(timm_tensors(&timm_config()));
    let three = json!([0.5, 0.5, 0.5]);
    for (file, value) in [
        ("preprocessor_config.json", json!({"image_mean": three, "image_std": three})),
        ("preprocessor_config.json", json!({"image_mean": [0.5], "image_std": 0.5})),
        (
            "preprocessor_config.json",
            json!({"image_mean": three, "image_std": three, "do_rescale": true,
            "rescale_factor": 0.00392156862745098, "do_normalize": true}),
        ),
        (
            "preprocessor_config.json",
            json!({"feature_extractor_type": "ViTFeatureExtractor", "image_mean": three, "image_std": three}),
        ),
        ("preprocessor_config.json", json!({"image_processor": {"image_mean": three, "image_std": three}})),
        ("processor_config.json", json!({"image_processor": {"image_mean": three, "image_std": three}})),
        ("processor_config.json", json!({"feature_extractor": {"image_mean": three, "image_std": three}})),
        (
            "config.json",
            json!({"architecture": "vit_small_patch16_224", "pretrained_cfg": {"mean": three, "std": three}}),
        ),
        ("config.json", json!({"architecture": "vit_small_patch16_224", "mean": three, "std": three})),
        ("open_clip_config.json", json!({"preprocess_cfg": {"mean": three, "std": 0.5}})),
    ] {
        let files = [(file, value.clone())];
        let teacher = load(&tensors, &files).unwrap_or_else(|e| panic!("{file} {value}: {e}"));
        assert_eq!((teacher.info().mean, teacher.info().std), HALF, "{file} {value}");
        // Stating the same value twice is accepted; a different value is refused.
        load_with(&tensors, &files, &half()).unwrap();
        let other = TeacherOptions { mean: Some(IMAGENET.0), ..half() };
        match load_with(&tensors, &files, &other) {
            Err(Error::ConfigJson { path, reason }) => {
                assert!(path.ends_with(file) && reason.contains("asked for is [0.485"), "{path:?} {reason}")
            }
            other => panic!("{file}: {other:?}"),
        }
    }
}

#[test]
fn statements_that_contradict_each_other_are_refused() {
    let tensors = timm_tensors(&timm_config());
    let refused =
        |files: &[(&str, Value)], options: &TeacherOptions, parts: &[&str]| match load_with(&tensors, files, options) {
            Err(Error::ConfigJson { reason, .. }) => {
                assert!(parts.iter().all(|part| reason.contains(part)), "{reason}")
            }
            other => panic!("{parts:?}: {other:?}"),
        };
    let pixels = |mean: f64| json!({"image_mean": [mean, mean, mean], "image_std": 0.5});
    let timm = json!({"pretrained_cfg": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}});
    let none = TeacherOptions::default();
    let both = [("preprocessor_config.json", pixels(0.5)), ("config.json", timm.clone())];
    refused(&both, &none, &["[0.5, 0.5, 0.5]", "config.json", "[0.485"]);
    // Digits that were rounded away are none.
    let rounded = json!({"image_mean": [0.485, 0.456, 0.4061], "image_std": [0.229, 0.224, 0.225]});
    let both = [("preprocessor_config.json", rounded), ("config.json", timm)];
    load(&tensors, &both).unwrap();
    refused(&[("preprocessor_config.json", json!({"image_mean": 0.5}))], &none, &["image_mean", "not image_std"]);
    refused(&config(json!({"pretrained_cfg": {"std": 0.5}})), &none, &["std", "not mean"]);
    let plain = [("preprocessor_config.json", json!({"do_normalize": false}))];
    refused(&plain, &half(), &["[0.0, 0.0, 0.0]", "asked for"]);

    let eps = |eps| TeacherOptions { norm_eps: Some(eps), ..TeacherOptions::default() };
    let heads = |heads| TeacherOptions { num_heads: Some(heads), ..TeacherOptions::default() };
    let files = config(json!({"layer_norm_eps": 1e-6, "num_attention_heads": 2}));
    refused(&files, &eps(1e-12), &["layer_norm_eps 1e-6", "asked for is 1e-12"]);
    refused(&files, &heads(4), &["num_attention_heads 2", "asked for is 4"]);
    load_with(&tensors, &files, &eps(1e-6)).unwrap();
    load_with(&tensors, &files, &heads(2)).unwrap();
    let info = load_with(&tensors, &[], &TeacherOptions { norm_eps: Some(1e-3), ..heads(4) }).unwrap().info().clone();
    assert_eq!((info.norm_eps, info.heads), (1e-3, 4));
    refused(&[], &heads(3), &["3 attention heads asked for do not divide"]);
    // What only Hugging Face's files leave open is answered likewise.
    let options = TeacherOptions { norm_eps: Some(1e-12), num_heads: Some(4), ..half() };
    let info = load_with(&hf_vit_tensors(), &[], &options).unwrap().info().clone();
    assert_eq!((info.norm_eps, info.heads), (1e-12, 4));
}

/// Constants that pixels in 0..1 cannot have, from every place that can state them; and the outermost that they can.
#[test]
fn constants_of_other_pixels_are_refused() {
    let tensors = timm_tensors(&timm_config());
    let bytes = "divide mean and std by 255";
    let cases = [
        (json!([123.675, 116.28, 103.53]), json!([58.395, 57.12, 57.375]), "mean", bytes),
        (json!([0.485, 0.456, 0.406]), json!([58.395, 57.12, 57.375]), "std", bytes),
        (json!([123.675, 116.28, 103.53]), json!([0.229, 0.224, 0.225]), "mean", bytes),
        (json!(127.5), json!(127.5), "mean", bytes),
        (json!(0), json!(255), "std", bytes),
        (json!([0.5, 0.5, 116.28]), json!(0.5), "mean", bytes),
        (json!([0.0, 0.0, 0.0]), json!([1.0, 1.0, 1.5]), "std", bytes),
        (json!(-0.5), json!(0.5), "mean", "from 0 to 1"),
        (json!(31611), json!(0.5), "mean", "from 0 to 1"),
        (json!(0.5), json!(0), "std", "above 0 and at most 1"),
        (json!(0.5), json!([0.2, -0.2, 0.2]), "std", "above 0 and at most 1"),
        (json!(0.0019), json!([0.0009, 0.00088, 0.00088]), "std", "divided by 255 twice"),
    ];
    let files = |mean: &Value, std: &Value| {
        let named = json!({"mean": mean, "std": std});
        let transformers = json!({"image_mean": mean, "image_std": std});
        [
            ("preprocessor_config.json", transformers.clone(), "image_"),
            ("preprocessor_config.json", json!({"image_processor": transformers}), "image_"),
            ("processor_config.json", json!({"image_processor": transformers}), "image_"),
            ("config.json", json!({"pretrained_cfg": named}), ""),
            ("config.json", json!({"architecture": "vit", "mean": mean, "std": std}), ""),
            ("open_clip_config.json", json!({"preprocess_cfg": named}), ""),
        ]
    };
    let channels = |value: &Value| match value.as_array() {
        Some(list) => [0, 1, 2].map(|i| list[i].as_f64().unwrap()),
        None => [value.as_f64().unwrap(); 3],
    };
    for (mean, std, wrong, problem) in &cases {
        for (file, content, prefix) in files(mean, std) {
            match load(&tensors, &[(file, content)]) {
                Err(Error::ConfigJson { path, reason }) => {
                    assert!(path.ends_with(file), "{path:?}");
                    let values = match *wrong {
                        "mean" => channels(mean),
                        _ => channels(std),
                    };
                    let begin = format!("{prefix}{wrong} {values:?}");
                    assert!(reason.starts_with(&begin) && reason.contains(problem), "{reason}");
                }
                other => panic!("{file}: {mean} {std}: {other:?}"),
            }
        }
        let asked =
            TeacherOptions { mean: Some(channels(mean)), std: Some(channels(std)), ..TeacherOptions::default() };
        let error = load_with(&tensors, &[], &asked).unwrap_err().to_string();
        assert!(error.contains(&format!("the {wrong} asked for")) && error.contains(problem), "{error}");
    }
    for (mean, std) in
        [(json!(0), json!(1)), (json!(1), json!(1)), (json!(0), json!(1.0 / 255.0)), (json!(0.5), json!(0.5))]
    {
        for (file, content, _) in files(&mean, &std) {
            load(&tensors, &[(file, content)]).unwrap();
        }
    }
}
