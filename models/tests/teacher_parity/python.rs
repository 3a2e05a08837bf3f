//! What needs Python: making the golden files again, the larger cases, the demo's teachers.

use std::path::Path;
use std::process::Command;

use models::precision::Precision;
use tch::Kind;

use crate::renaming::random;
use crate::support::*;

/// The Python that has transformers, timm and open_clip, where scripts/python-env has made it.
fn python() -> Option<String> {
    let output = Command::new(root().join("scripts/python-env")).arg("--if-present").output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn run_script(python: &str, script: &str, arguments: &[&Path]) {
    let output = Command::new(python).arg(root().join("scripts/golden").join(script)).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn make_again(python: &str, script: &str, native: &[(&str, &str)], non_native: &[(&str, &str)]) {
    let temp = tempfile::tempdir().unwrap();
    run_script(python, script, &[Path::new("--out"), temp.path()]);
    let files =
        native.iter().flat_map(|&(folder, file)| [(folder, file), (folder, "model")]).chain(non_native.iter().copied());
    for (folder, file) in files {
        let made = read(&temp.path().join(folder), file);
        let committed = read(&golden().join(folder), file);
        assert!(made.keys().eq(committed.keys()), "{folder} {file}");
        for (name, tensor) in &made {
            let expected = &committed[name];
            // The weights and pixels are drawn and must be the same; what was computed may differ with the processor.
            if file == "model" || name == "pixels" {
                assert_eq!(tensor, expected, "{folder} {file} {name}");
            } else {
                assert!(relative_l2(tensor, expected) < TOLERANCE, "{folder} {file} {name}");
            }
        }
    }
}

#[test]
fn the_golden_scripts_still_make_these_files() {
    let Some(python) = python() else {
        println!("skipped: scripts/python-env has not been run, so the golden files were not made again");
        return;
    };
    make_again(&python, "teachers.py", &OLD_NATIVE, &OLD_NON_NATIVE);
    make_again(&python, "teachers_families.py", &NATIVE, &NON_NATIVE);
}

/// The architecture that each of the larger cases must be recognized as, by the layout in which it must be.
const LIVE: [(&str, &str, &str); 19] = [
    ("openai-clip-l14", "OpenAI CLIP", "clip-vit-w1024-d1-h16-m4096-p14"),
    ("openai-clip-h14", "OpenAI CLIP", "clip-vit-w1280-d1-h16-m5120-p14"),
    ("timm-siglip", "timm SigLIP", "siglip-vit-w384-d2-h6-m1536-p14"),
    ("timm-siglip-tanh", "timm SigLIP", "siglip-vit-w384-d2-h6-m1536-p14"),
    ("openai-clip-p32", "OpenAI CLIP", "clip-vit-w384-d2-h6-m1536-p32"),
    ("openai-clip-tanh", "OpenAI CLIP", "clip-vit-w96-d2-h3-m418-p14-ls"),
    ("timm-clip", "timm", "clip-vit-w384-d2-h6-m1536-p14"),
    ("timm-clip-quickgelu", "timm", "clip-vit-w384-d2-h6-m1536-p14"),
    ("dinov2-p14", "Hugging Face DINOv2", "vit-w384-d2-h6-m1536-p14-ls"),
    ("dinov2-swiglu", "Hugging Face DINOv2", "vit-w384-d2-h6-m1024-p14-ls-glu"),
    ("dinov2-registers-p14", "Hugging Face DINOv2", "vit-w384-d2-h6-m1536-p14-ls-r4"),
    ("timm-dinov2", "timm", "vit-w384-d2-h6-m1536-p14-ls"),
    ("timm-dinov2-swiglu", "timm", "vit-w384-d2-h6-m1024-p14-ls-glu"),
    ("timm-dinov2-registers", "timm", "vit-w384-d2-h6-m1536-p14-ls-r4"),
    ("dinov3-p16", "Hugging Face DINOv3", "vit-w384-d2-h6-m1536-p16-ls-r4-rope100"),
    ("dinov3-gated", "Hugging Face DINOv3", "vit-w384-d2-h6-m512-p16-ls-glu-r4-rope100"),
    ("timm-dinov3", "timm DINOv3", "vit-w384-d2-h6-m1536-p16-ls-r4-rope100"),
    ("timm-dinov3-gated", "timm DINOv3", "vit-w384-d2-h6-m1536-p16-ls-glu-r4-rope100"),
    ("siglip-p14", "Hugging Face SigLIP", "siglip-vit-w384-d2-h6-m1000-p14"),
];

#[test]
fn larger_towers_equal_the_package_that_defines_them() {
    let Some(python) = python() else {
        println!("skipped: scripts/python-env has not been run, so no larger towers were compared");
        return;
    };
    let temp = tempfile::tempdir().unwrap();
    let arguments = [Path::new("--live"), Path::new("--out"), temp.path()];
    run_script(&python, "teachers_families.py", &arguments);
    let mut made: Vec<_> =
        temp.path().read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    made.sort();
    let mut listed = LIVE.map(|(name, ..)| name);
    listed.sort();
    assert_eq!(made, listed);
    for (name, layout, arch) in LIVE {
        let folder = temp.path().join(name);
        let info = teacher(&folder).info().clone();
        assert_eq!((info.layout, info.arch.as_str()), (layout, arch), "{name}");
        let mut compared = 0;
        for entry in folder.read_dir().unwrap() {
            let file = entry.unwrap().file_name().into_string().unwrap();
            if !file.starts_with("expected-") {
                continue;
            }
            let differences = compare(&folder, &read(&folder, &file), Precision::F32);
            println!("{name} {file}: {}", show(&differences));
            assert!(largest(&differences) < TOLERANCE, "{name} {file}: {differences:?}");
            compared += 1;
        }
        assert!(compared > 0, "{name}");
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
        teacher(&folder);
        let Some(python) = python() else {
            println!("skipped: scripts/python-env has not been run, so {name} was loaded but not compared");
            continue;
        };
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("expected.safetensors");
        let arguments = [Path::new("--folder"), &folder, Path::new("--out"), &file];
        run_script(&python, "teachers.py", &arguments);
        let all = read(temp.path(), "expected");
        for size in ["native", "taller"] {
            let prefix = format!("{size}/");
            let expected = all
                .iter()
                .filter_map(|(name, tensor)| Some((name.strip_prefix(&prefix)?.to_owned(), tensor.shallow_clone())));
            let differences = compare(&folder, &expected.collect(), Precision::F32);
            println!("{name} {size}: {}", show(&differences));
            assert!(largest(&differences) < TOLERANCE, "{name} {size}: {differences:?}");
        }
    }
}

/// The same weights by way of torch.save give the same bits, from the folder that holds them as from the file itself.
#[test]
fn a_teacher_saved_by_torch_is_the_same() {
    let Some(python) = python() else {
        println!("skipped: scripts/python-env has not been run, so no torch.save was asked");
        return;
    };
    for name in ["clip-tiny", "dino-tiny"] {
        let folder = root().join("assets/teachers").join(name);
        let temp = tempfile::tempdir().unwrap();
        let arguments = [Path::new("--teacher"), &folder, Path::new("--out"), temp.path()];
        run_script(&python, "weights.py", &arguments);
        assert!(!temp.path().join("model.safetensors").exists());
        let pixels = (random(&[2, 3, 64, 64]).sigmoid() * 256.0).to_kind(Kind::Uint8);
        let features = |path: &Path| teacher(path).forward(&pixels, Precision::F32).unwrap();
        let expected = features(&folder);
        for path in [temp.path().to_path_buf(), temp.path().join("pytorch_model.bin")] {
            let found = features(&path);
            assert_eq!(found.tokens, expected.tokens, "{name}");
            assert_eq!(found.cls, expected.cls, "{name}");
            assert_eq!(found.cls_attn, expected.cls_attn, "{name}");
        }
    }
}
