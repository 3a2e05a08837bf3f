//! Teachers against transformers, on the golden files of `tests/golden/teachers` (see the README there), every stage compared.

#![allow(
    clippy::unwrap_used,
    reason = "a test states what it expects by unwrapping"
)]
#![allow(clippy::disallowed_methods, reason = "tests write throw-away folders")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use models::precision::Precision;
use models::teacher::{Pool, Teacher};
use models::weights::{self, Weights};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

/// Relative L2. Both sides compute in f32 with other kernels and other orders of summation; what is met is 10 times smaller.
const TOLERANCE: f64 = 1e-5;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn golden() -> PathBuf {
    root().join("tests/golden/teachers")
}

/// The native golden files, one per case, as (folder, file).
const NATIVE: [(&str, &str); 4] = [
    ("clip-quickgelu", "expected-32x32"),
    ("clip-gelu", "expected-48x48"),
    ("vit", "expected-32x32"),
    ("dino", "expected-48x48"),
];
const NON_NATIVE: [(&str, &str); 2] = [
    ("clip-quickgelu", "expected-48x40"),
    ("vit", "expected-24x40"),
];

fn teacher(folder: &Path) -> Teacher {
    Teacher::load(folder, Device::Cpu).unwrap()
}

fn case(folder: &str, file: &str) -> (Teacher, BTreeMap<String, Tensor>) {
    let folder = golden().join(folder);
    let expected = Weights::read(&folder.join(file).with_extension("safetensors")).unwrap();
    (teacher(&folder), shallow(expected.tensors()))
}

fn shallow(tensors: &BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    tensors
        .iter()
        .map(|(name, tensor)| (name.clone(), tensor.shallow_clone()))
        .collect()
}

fn relative_l2(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.size(), expected.size());
    let norm = |x: &Tensor| x.to_kind(Kind::Double).norm().double_value(&[]);
    norm(&(found.to_kind(Kind::Double) - expected.to_kind(Kind::Double))) / norm(expected)
}

/// The largest difference of each thing compared.
fn compare(
    teacher: &Teacher,
    expected: &BTreeMap<String, Tensor>,
    precision: Precision,
) -> BTreeMap<&'static str, f64> {
    let pixels = &expected["pixels"];
    let stages = teacher.hidden_states(pixels, precision).unwrap();
    assert!(!expected.contains_key(&format!("hidden_states.{}", stages.len())));
    let last = &expected[&format!("hidden_states.{}", stages.len() - 1)];
    let blocks = (1..stages.len())
        .map(|i| relative_l2(&stages[i], &expected[&format!("hidden_states.{i}")]));
    let output = teacher.forward(pixels, precision).unwrap();
    let normed = teacher.final_norm(&stages[stages.len() - 1]);
    for tensor in [&output.tokens, &output.cls, &output.cls_attn] {
        assert_eq!(tensor.kind(), Kind::Float);
        assert!(!tensor.requires_grad());
    }
    BTreeMap::from([
        (
            "embeddings",
            relative_l2(&stages[0], &expected["hidden_states.0"]),
        ),
        ("blocks", blocks.fold(0.0, f64::max)),
        (
            "tokens",
            relative_l2(&output.tokens, &last.narrow(1, 1, last.size()[1] - 1)),
        ),
        ("cls", relative_l2(&output.cls, &last.select(1, 0))),
        (
            "cls_attn",
            relative_l2(&output.cls_attn, &expected["cls_attn"]),
        ),
        ("normed", relative_l2(&normed, &expected["normed"])),
    ])
}

fn largest(differences: &BTreeMap<&'static str, f64>) -> f64 {
    differences.values().copied().fold(0.0, f64::max)
}

fn show(differences: &BTreeMap<&'static str, f64>) -> String {
    let each: Vec<String> = differences
        .iter()
        .map(|(what, value)| format!("{what} {value:.1e}"))
        .collect();
    each.join(", ")
}

#[test]
fn every_stage_equals_transformers() {
    for (folder, file) in NATIVE.into_iter().chain(NON_NATIVE) {
        let (teacher, expected) = case(folder, file);
        let differences = compare(&teacher, &expected, Precision::F32);
        println!("{folder} {file}: {}", show(&differences));
        assert!(
            largest(&differences) < TOLERANCE,
            "{folder} {file}: {differences:?}"
        );
    }
}

#[test]
fn bf16_is_near_and_not_f32() {
    for (folder, file) in NATIVE {
        let (teacher, expected) = case(folder, file);
        let differences = compare(&teacher, &expected, Precision::Bf16);
        println!("{folder} {file}: {}", show(&differences));
        // bf16 keeps 8 bits, 0.4 % of a value; a few layers of rounding stay within a few times that.
        assert!(
            largest(&differences) < 0.03,
            "{folder} {file}: {differences:?}"
        );
        assert!(
            differences["tokens"] > 1e-4,
            "{folder} {file}: bf16 was not used"
        );
    }
}

/// The files of a golden teacher in a folder of their own, to be changed.
fn changed_copy(folder: &str, change: impl FnOnce(&mut Value, &mut Value)) -> tempfile::TempDir {
    let temp = tempfile::tempdir().unwrap();
    let read = |name: &str| {
        serde_json::from_slice(&fs::read(golden().join(folder).join(name)).unwrap()).unwrap()
    };
    let (mut config, mut preprocessor) = (read("config.json"), read("preprocessor_config.json"));
    change(&mut config, &mut preprocessor);
    fs::write(temp.path().join("config.json"), config.to_string()).unwrap();
    fs::write(
        temp.path().join("preprocessor_config.json"),
        preprocessor.to_string(),
    )
    .unwrap();
    fs::copy(
        golden().join(folder).join("model.safetensors"),
        temp.path().join("model.safetensors"),
    )
    .unwrap();
    temp
}

#[test]
fn a_wrong_fact_is_visible_to_these_files() {
    let check = |folder: &str, file: &str, what: &str, change: &dyn Fn(&mut Value, &mut Value)| {
        let temp = changed_copy(folder, change);
        let (_, expected) = case(folder, file);
        let differences = compare(&teacher(temp.path()), &expected, Precision::F32);
        assert!(
            largest(&differences) > 10.0 * TOLERANCE,
            "{folder}: {what}: {differences:?}"
        );
    };
    check(
        "clip-quickgelu",
        "expected-32x32",
        "activation",
        &|config, _| config["vision_config"]["hidden_act"] = json!("gelu"),
    );
    check("clip-quickgelu", "expected-32x32", "eps", &|config, _| {
        config["vision_config"]["layer_norm_eps"] = json!(1e-6)
    });
    check("clip-quickgelu", "expected-32x32", "heads", &|config, _| {
        config["vision_config"]["num_attention_heads"] = json!(6)
    });
    check("clip-gelu", "expected-48x48", "activation", &|config, _| {
        config["hidden_act"] = json!("quick_gelu")
    });
    check("vit", "expected-32x32", "eps", &|config, _| {
        config["layer_norm_eps"] = json!(1e-6)
    });
    check("vit", "expected-32x32", "std", &|_, preprocessor| {
        preprocessor["image_std"] = json!([0.5, 0.5, 0.51])
    });
    check("dino", "expected-48x48", "eps", &|config, _| {
        config["layer_norm_eps"] = json!(1e-5)
    });
    check("dino", "expected-48x48", "mean", &|_, preprocessor| {
        preprocessor["image_mean"] = json!([0.456, 0.485, 0.406])
    });
}

/// The golden ViT under timm's names, written out here apart from the library's tables.
fn vit_as_timm() -> BTreeMap<String, Tensor> {
    let weights = Weights::read(&golden().join("vit")).unwrap();
    let get = |name: String| weights.get(&name).unwrap().shallow_clone();
    let mut timm = BTreeMap::new();
    timm.insert("cls_token".to_owned(), get("embeddings.cls_token".into()));
    timm.insert(
        "pos_embed".to_owned(),
        get("embeddings.position_embeddings".into()),
    );
    for end in ["weight", "bias"] {
        timm.insert(
            format!("patch_embed.proj.{end}"),
            get(format!("embeddings.patch_embeddings.projection.{end}")),
        );
        timm.insert(format!("norm.{end}"), get(format!("layernorm.{end}")));
        for i in 0..3 {
            let layer = format!("encoder.layer.{i}");
            let qkv = ["query", "key", "value"]
                .map(|part| get(format!("{layer}.attention.attention.{part}.{end}")));
            timm.insert(format!("blocks.{i}.attn.qkv.{end}"), Tensor::cat(&qkv, 0));
            for (to, from) in [
                ("norm1", "layernorm_before"),
                ("attn.proj", "attention.output.dense"),
                ("norm2", "layernorm_after"),
                ("mlp.fc1", "intermediate.dense"),
                ("mlp.fc2", "output.dense"),
            ] {
                timm.insert(
                    format!("blocks.{i}.{to}.{end}"),
                    get(format!("{layer}.{from}.{end}")),
                );
            }
        }
    }
    timm
}

/// The golden CLIP under timm's names, likewise.
fn clip_as_timm() -> BTreeMap<String, Tensor> {
    let weights = Weights::read(&golden().join("clip-gelu")).unwrap();
    let get = |name: String| weights.get(&name).unwrap().shallow_clone();
    let mut timm = BTreeMap::new();
    timm.insert(
        "cls_token".to_owned(),
        get("embeddings.class_embedding".into()).view([1, 1, 64]),
    );
    timm.insert(
        "pos_embed".to_owned(),
        get("embeddings.position_embedding.weight".into()).unsqueeze(0),
    );
    timm.insert(
        "patch_embed.proj.weight".to_owned(),
        get("embeddings.patch_embedding.weight".into()),
    );
    for end in ["weight", "bias"] {
        timm.insert(
            format!("norm_pre.{end}"),
            get(format!("pre_layrnorm.{end}")),
        );
        timm.insert(format!("norm.{end}"), get(format!("post_layernorm.{end}")));
        for i in 0..2 {
            let layer = format!("encoder.layers.{i}");
            let qkv = ["q_proj", "k_proj", "v_proj"]
                .map(|part| get(format!("{layer}.self_attn.{part}.{end}")));
            timm.insert(format!("blocks.{i}.attn.qkv.{end}"), Tensor::cat(&qkv, 0));
            for (to, from) in [
                ("norm1", "layer_norm1"),
                ("attn.proj", "self_attn.out_proj"),
                ("norm2", "layer_norm2"),
                ("mlp.fc1", "mlp.fc1"),
                ("mlp.fc2", "mlp.fc2"),
            ] {
                timm.insert(
                    format!("blocks.{i}.{to}.{end}"),
                    get(format!("{layer}.{from}.{end}")),
                );
            }
        }
    }
    timm
}

#[test]
fn the_same_weights_in_every_layout_give_the_same_bits() {
    let check = |case_name: &str,
                 file: &str,
                 layout: &str,
                 prefix: &str,
                 tensors: BTreeMap<String, Tensor>| {
        let (reference, expected) = case(case_name, file);
        let reference = reference
            .forward(&expected["pixels"], Precision::F32)
            .unwrap();
        let temp = changed_copy(case_name, |_, _| {});
        let prefixed = tensors
            .into_iter()
            .map(|(name, tensor)| (format!("{prefix}{name}"), tensor));
        let bytes = weights::to_bytes(&prefixed.collect(), None).unwrap();
        fs::write(temp.path().join("model.safetensors"), bytes).unwrap();
        let teacher = teacher(temp.path());
        assert_eq!(teacher.info().layout, layout, "{prefix}");
        let output = teacher
            .forward(&expected["pixels"], Precision::F32)
            .unwrap();
        assert_eq!(output.tokens, reference.tokens, "{layout} {prefix}");
        assert_eq!(output.cls, reference.cls, "{layout} {prefix}");
        assert_eq!(output.cls_attn, reference.cls_attn, "{layout} {prefix}");
    };
    let hugging_face =
        |folder: &str| shallow(Weights::read(&golden().join(folder)).unwrap().tensors());
    let renamed = hugging_face("vit").into_iter().map(|(name, tensor)| {
        let name = name
            .replace("encoder.layer.", "layers.")
            .replace("attention.output.dense", "attention.o_proj");
        let name = name
            .replace("intermediate.dense", "mlp.fc1")
            .replace("output.dense", "mlp.fc2");
        let name = name.replace("attention.attention.query", "attention.q_proj");
        let name = name.replace("attention.attention.key", "attention.k_proj");
        (
            name.replace("attention.attention.value", "attention.v_proj"),
            tensor,
        )
    });
    check(
        "vit",
        "expected-24x40",
        "Hugging Face ViT (transformers 5 names)",
        "",
        renamed.collect(),
    );
    check(
        "vit",
        "expected-24x40",
        "Hugging Face ViT",
        "vit.",
        hugging_face("vit"),
    );
    check(
        "clip-gelu",
        "expected-48x48",
        "Hugging Face CLIP",
        "vision_model.",
        hugging_face("clip-gelu"),
    );
    for prefix in ["", "module.", "backbone.", "module.backbone."] {
        check("vit", "expected-24x40", "timm", prefix, vit_as_timm());
        check(
            "clip-gelu",
            "expected-48x48",
            "timm",
            prefix,
            clip_as_timm(),
        );
    }
}

#[test]
fn a_dino_file_may_stand_alone() {
    // Width 64 is the smallest from which heads can be told: 64 / 64 = 1.
    let store = |name: &str, shape: &[i64]| {
        models::init::Init::TruncNormal { std: 0.2 }.tensor(shape, 0, name)
    };
    let mut tensors = BTreeMap::new();
    let mut add = |name: String, shape: &[i64]| {
        let tensor = store(&name, shape);
        tensors.insert(name, tensor);
    };
    add("cls_token".into(), &[1, 1, 64]);
    add("pos_embed".into(), &[1, 10, 64]);
    add("patch_embed.proj.weight".into(), &[64, 3, 8, 8]);
    add("head.weight".into(), &[5, 64]);
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
    fs::write(&file, weights::to_bytes(&tensors, None).unwrap()).unwrap();
    for path in [temp.path(), &file] {
        let teacher = teacher(path);
        let info = teacher.info();
        assert_eq!(info.arch, "vit-w64-d1-h1-m100-p8");
        assert_eq!((info.norm_eps, info.input_size), (1e-6, 24));
        assert_eq!(
            (info.mean, info.std),
            ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        );
        assert_eq!(info.activation, models::vit::Activation::Gelu);
    }
}

#[test]
fn an_image_does_not_see_its_batch_and_threads_share_a_teacher() {
    let (teacher, expected) = case("dino", "expected-48x48");
    let both = teacher
        .forward(&expected["pixels"], Precision::F32)
        .unwrap();
    let clone = teacher.shallow_clone();
    let second = expected["pixels"].narrow(0, 1, 1).contiguous();
    let alone = std::thread::spawn(move || clone.forward(&second, Precision::F32).unwrap())
        .join()
        .unwrap();
    assert!(relative_l2(&alone.tokens, &both.tokens.narrow(0, 1, 1)) < 1e-6);
    assert!(relative_l2(&alone.cls_attn, &both.cls_attn.narrow(0, 1, 1)) < 1e-6);
}

#[test]
fn features_are_the_pooled_final_norm() {
    let (teacher, expected) = case("clip-gelu", "expected-48x48");
    let cls = teacher
        .features(&expected["pixels"], Precision::F32, Pool::Cls)
        .unwrap();
    assert!(relative_l2(&cls, &expected["normed"].select(1, 0)) < TOLERANCE);
    let mean = teacher
        .features(&expected["pixels"], Precision::F32, Pool::Mean)
        .unwrap();
    let patches = expected["normed"].narrow(1, 1, 9);
    assert!(relative_l2(&mean, &patches.mean_dim(1, false, None)) < TOLERANCE);
}

/// The Python that has transformers, where scripts/python-env has made it.
fn python() -> Option<String> {
    let output = Command::new(root().join("scripts/python-env"))
        .arg("--if-present")
        .output()
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn run_script(python: &str, arguments: &[&Path]) {
    let script = root().join("scripts/golden/teachers.py");
    let output = Command::new(python)
        .arg(script)
        .args(arguments)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn the_golden_script_still_makes_these_files() {
    let Some(python) = python() else {
        println!(
            "skipped: scripts/python-env has not been run, so the golden files were not made again"
        );
        return;
    };
    let temp = tempfile::tempdir().unwrap();
    run_script(&python, &[Path::new("--out"), temp.path()]);
    let files = NATIVE
        .into_iter()
        .flat_map(|(folder, file)| [(folder, file), (folder, "model")])
        .chain(NON_NATIVE);
    for (folder, file) in files {
        let read = |root: &Path| {
            Weights::read(&root.join(folder).join(file).with_extension("safetensors")).unwrap()
        };
        let (made, committed) = (read(temp.path()), read(&golden()));
        assert!(made.names().eq(committed.names()), "{folder} {file}");
        for (name, tensor) in made.tensors() {
            let expected = &committed.tensors()[name];
            // The weights and pixels are drawn and must be the same; what was computed may differ with the processor.
            if file == "model" || name == "pixels" {
                assert_eq!(tensor, expected, "{folder} {file} {name}");
            } else {
                assert!(
                    relative_l2(tensor, expected) < TOLERANCE,
                    "{folder} {file} {name}"
                );
            }
        }
    }
}

#[test]
fn the_demo_teachers_equal_transformers() {
    for name in ["clip-tiny", "dino-tiny"] {
        let folder = root().join("assets/teachers").join(name);
        if !folder.is_dir() {
            println!("skipped: no {}", folder.display());
            continue;
        }
        let teacher = teacher(&folder);
        let Some(python) = python() else {
            println!(
                "skipped: scripts/python-env has not been run, so {name} was loaded but not compared"
            );
            continue;
        };
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("expected.safetensors");
        run_script(
            &python,
            &[Path::new("--folder"), &folder, Path::new("--out"), &file],
        );
        let all = Weights::read(&file).unwrap();
        for size in ["native", "taller"] {
            let prefix = format!("{size}/");
            let expected = all.tensors().iter().filter_map(|(name, tensor)| {
                Some((
                    name.strip_prefix(&prefix)?.to_owned(),
                    tensor.shallow_clone(),
                ))
            });
            let differences = compare(&teacher, &expected.collect(), Precision::F32);
            println!("{name} {size}: {}", show(&differences));
            assert!(
                largest(&differences) < TOLERANCE,
                "{name} {size}: {differences:?}"
            );
        }
    }
}
