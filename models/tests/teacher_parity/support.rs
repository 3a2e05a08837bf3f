//! Golden cases, and how they are compared.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use models::precision::Precision;
use models::teacher::{Layer, Teacher, TeacherOptions};
use models::weights::Weights;
use serde_json::Value;
use tch::{Device, Kind, Tensor};

/// Relative L2. Both sides compute in f32 with other kernels and other orders of summation; what is met is 10 times smaller.
pub(crate) const TOLERANCE: f64 = 1e-5;

pub(crate) type Tensors = BTreeMap<String, Tensor>;

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

pub(crate) fn golden() -> PathBuf {
    root().join("tests/golden/teachers")
}

/// The cases of `teachers.py`, at their native input, as (folder, file).
pub(crate) const OLD_NATIVE: [(&str, &str); 4] = [
    ("clip-quickgelu", "expected-32x32"),
    ("clip-gelu", "expected-48x48"),
    ("vit", "expected-32x32"),
    ("dino", "expected-48x48"),
];
/// The cases of `teachers.py` at other inputs.
pub(crate) const OLD_NON_NATIVE: [(&str, &str); 2] = [("clip-quickgelu", "expected-48x40"), ("vit", "expected-24x40")];
/// The cases of `teachers_families.py`, likewise.
pub(crate) const NATIVE: [(&str, &str); 5] = [
    ("openai-clip", "expected-32x32"),
    ("dinov2", "expected-32x32"),
    ("dinov2-registers", "expected-32x32"),
    ("dinov3", "expected-32x32"),
    ("siglip", "expected-32x32"),
];
pub(crate) const NON_NATIVE: [(&str, &str); 4] = [
    ("dinov2", "expected-40x24"),
    ("dinov2-registers", "expected-40x24"),
    ("dinov3", "expected-40x24"),
    ("siglip", "expected-40x24"),
];

pub(crate) fn teacher(folder: &Path) -> Teacher {
    Teacher::load(folder, Device::Cpu).unwrap()
}

pub(crate) fn teacher_of(folder: &Path, layer: Layer) -> Teacher {
    let options = TeacherOptions { layer, ..TeacherOptions::default() };
    Teacher::load_with(folder, &options, Device::Cpu).unwrap()
}

pub(crate) fn read(folder: &Path, file: &str) -> Tensors {
    let weights = Weights::read(&folder.join(file).with_extension("safetensors")).unwrap();
    shallow(weights.tensors())
}

pub(crate) fn case(folder: &str, file: &str) -> (Teacher, Tensors) {
    let folder = golden().join(folder);
    (teacher(&folder), read(&folder, file))
}

pub(crate) fn shallow(tensors: &Tensors) -> Tensors {
    tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect()
}

pub(crate) fn relative_l2(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.size(), expected.size());
    let norm = |x: &Tensor| x.to_kind(Kind::Double).norm().double_value(&[]);
    norm(&(found.to_kind(Kind::Double) - expected.to_kind(Kind::Double))) / norm(expected)
}

/// The largest difference of each thing compared, for the teacher in `folder`: all stages, and the features of each layer that
/// the case has.
pub(crate) fn compare(folder: &Path, expected: &Tensors, precision: Precision) -> BTreeMap<&'static str, f64> {
    let pixels = &expected["pixels"];
    let teacher = teacher(folder);
    let stages = teacher.hidden_states(pixels, precision).unwrap();
    assert!(!expected.contains_key(&format!("hidden_states.{}", stages.len())));
    let last = &expected[&format!("hidden_states.{}", stages.len() - 1)];
    let blocks = (1..stages.len()).map(|i| relative_l2(&stages[i], &expected[&format!("hidden_states.{i}")]));
    let normed = teacher.final_norm(&stages[stages.len() - 1]);
    let mut differences = BTreeMap::from([
        ("embeddings", relative_l2(&stages[0], &expected["hidden_states.0"])),
        ("blocks", blocks.fold(0.0, f64::max)),
        ("normed", relative_l2(&normed, &expected["normed"])),
    ]);
    let mut layers = vec![
        (Layer::Last, "tokens", "cls", last),
        (Layer::LastNorm, "tokens normed", "cls normed", &expected["normed"]),
    ];
    if let Some(projected) = expected.get("projected") {
        layers.push((Layer::Proj, "tokens projected", "cls projected", projected));
    }
    for (layer, tokens, cls, expected_tokens) in layers {
        let teacher = teacher_of(folder, layer);
        let output = teacher.forward(pixels, precision).unwrap();
        for tensor in [&output.tokens, &output.cls, &output.cls_attn] {
            assert_eq!(tensor.kind(), Kind::Float);
            assert!(!tensor.requires_grad());
        }
        // Patches come last, after CLS and registers.
        let l = expected["cls_attn"].size()[1];
        let prefix = expected_tokens.size()[1] - l;
        let expected_cls = match expected.get("pooled") {
            Some(pooled) => pooled.shallow_clone(),
            None => expected_tokens.select(1, 0),
        };
        assert_eq!(i64::from(teacher.info().width), expected_tokens.size()[2], "{layer}");
        differences.extend([
            (tokens, relative_l2(&output.tokens, &expected_tokens.narrow(1, prefix, l))),
            (cls, relative_l2(&output.cls, &expected_cls)),
            ("cls_attn", relative_l2(&output.cls_attn, &expected["cls_attn"])),
        ]);
    }
    differences
}

pub(crate) fn largest(differences: &BTreeMap<&'static str, f64>) -> f64 {
    differences.values().copied().fold(0.0, f64::max)
}

pub(crate) fn show(differences: &BTreeMap<&'static str, f64>) -> String {
    let each: Vec<String> = differences.iter().map(|(what, value)| format!("{what} {value:.1e}")).collect();
    each.join(", ")
}

/// The files of a golden teacher in a folder of their own, its JSON files changed: `change` gets each one's name and content.
pub(crate) fn changed_copy(folder: &str, change: impl Fn(&str, &mut Value)) -> tempfile::TempDir {
    let temp = tempfile::tempdir().unwrap();
    for entry in golden().join(folder).read_dir().unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if name.ends_with(".json") {
            let mut value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            change(name, &mut value);
            fs::write(temp.path().join(name), value.to_string()).unwrap();
        } else if name == "model.safetensors" {
            fs::copy(&path, temp.path().join(name)).unwrap();
        }
    }
    temp
}
