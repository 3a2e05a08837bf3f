//! Golden cases of Hugging Face under other names, apart from the library's tables.

use std::fs;
use std::path::Path;

use models::precision::Precision;
use models::teacher::{Layer, Teacher};
use models::weights;
use tch::Tensor;

use crate::support::*;

/// `tensors` with each name's parts replaced, in turn.
pub(crate) fn renamed(tensors: &Tensors, rules: &[(&str, &str)]) -> Tensors {
    let rename = |name: &str| rules.iter().fold(name.to_owned(), |name, (from, to)| name.replace(from, to));
    tensors.iter().map(|(name, tensor)| (rename(name), tensor.shallow_clone())).collect()
}

/// `tensors` with those whose names contain `parts[0]`, `parts[1]`, .. stacked into one, whose name has `whole` there.
pub(crate) fn stacked(mut tensors: Tensors, parts: &[&str], whole: &str) -> Tensors {
    let firsts: Vec<String> = tensors.keys().filter(|name| name.contains(parts[0])).cloned().collect();
    for first in firsts {
        let each: Vec<Tensor> =
            parts.iter().map(|part| tensors.remove(&first.replace(parts[0], part)).unwrap()).collect();
        tensors.insert(first.replace(parts[0], whole), Tensor::cat(&each, 0));
    }
    tensors
}

pub(crate) fn prefixed(tensors: &Tensors, prefix: &str) -> Tensors {
    tensors.iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor.shallow_clone())).collect()
}

pub(crate) fn with(mut tensors: Tensors, more: &[(&str, Tensor)]) -> Tensors {
    for (name, tensor) in more {
        tensors.insert((*name).to_owned(), tensor.shallow_clone());
    }
    tensors
}

pub(crate) fn random(shape: &[i64]) -> Tensor {
    models::init::Init::Normal { std: 1.0 }.tensor(shape, 7, "random")
}

/// The teacher made of `tensors` must give the bits of the golden case, in layout `layout`, with the golden case's configuration.
pub(crate) fn same_bits(reference: &Path, file: &str, tensors: &Tensors, layout: &str, layers: &[Layer]) {
    let pixels = &read(reference, file)["pixels"];
    let temp = tempfile::tempdir().unwrap();
    for entry in reference.read_dir().unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "json") {
            fs::copy(&path, temp.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    let bytes = weights::to_bytes(tensors, None).unwrap();
    fs::write(temp.path().join("model.safetensors"), bytes).unwrap();
    for &layer in layers {
        let (expected, found) = (teacher_of(reference, layer), teacher_of(temp.path(), layer));
        assert_eq!(found.info().layout, layout);
        assert_eq!(found.info().arch, expected.info().arch, "{layout}");
        let run = |teacher: &Teacher| teacher.forward(pixels, Precision::F32).unwrap();
        let (expected, found) = (run(&expected), run(&found));
        assert_eq!(found.tokens, expected.tokens, "{layout} {layer}");
        assert_eq!(found.cls, expected.cls, "{layout} {layer}");
        assert_eq!(found.cls_attn, expected.cls_attn, "{layout} {layer}");
    }
}

pub(crate) const WITHOUT_PROJ: [Layer; 2] = [Layer::Last, Layer::LastNorm];
