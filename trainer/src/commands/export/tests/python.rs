//! Exported folders loaded strictly by the packages they are for, which compute what the student does; and files that Python
//! saved, read here.

use std::process::Command;

use models::masking::{len_keep, random_masking};

use super::*;

/// Relative L2. Both sides compute in f32 with other kernels and other orders of summation (one product for q, k and v here, three
/// in transformers), which makes about 5e-7.
const TOLERANCE: f64 = 1e-5;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The Python that has timm and transformers, where scripts/python-env has made it.
fn python() -> Option<String> {
    let found = Command::new(root().join("scripts/python-env")).arg("--if-present").output().ok()?;
    let present = found.status.success();
    if !present {
        println!("skipped: scripts/python-env has not been run, so no package was asked");
    }
    present.then(|| String::from_utf8_lossy(&found.stdout).trim().to_owned())
}

fn checked(command: &mut Command) {
    let output = command.env("HF_HUB_OFFLINE", "1").output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
}

/// What goes into both sides, and what the student makes of it.
fn computed(mae: &Mae, mask_ratio: f64) -> (Tensors, Tensors) {
    let _no_grad = tch::no_grad_guard();
    let random = |shape: &[i64], name| Init::Normal { std: 1.0 }.tensor(shape, 11, name);
    let [height, width] = Facts::of(mae.config(), mask_ratio).img_size;
    let imgs = random(&[2, 3, height, width], "imgs");
    let patches = mae.config().num_patches();
    // A permutation a row, so that no order of equal numbers is asked for.
    let order = random(&[2, patches], "noise").argsort(1, false);
    let noise = order.to_kind(Kind::Float) / patches as f64;
    let masking = random_masking(&noise, len_keep(patches, mask_ratio));
    let latent = mae.forward_encoder(&imgs, &masking);
    let pred = mae.forward_decoder(&latent, &masking.ids_restore);
    let loss = mae.forward_loss(&imgs, &pred, &masking.mask).reshape([1]);
    let named = |list: Vec<(&str, Tensor)>| list.into_iter().map(|(n, t)| (n.to_owned(), t)).collect();
    let tokens = mae.forward_features(&imgs);
    let mask = masking.mask;
    (
        named(vec![("imgs", imgs), ("noise", noise)]),
        named(vec![("tokens", tokens), ("latent", latent), ("pred", pred), ("loss", loss), ("mask", mask)]),
    )
}

/// Has a package load `folder` and compares what it computes; `count` things must be compared.
fn compare(python: &str, format: Format, folder: &Path, mae: &Mae, mask_ratio: f64, count: usize) {
    let temp = tempfile::tempdir().unwrap();
    let (inputs, out) = (temp.path().join("in.safetensors"), temp.path().join("out.safetensors"));
    let (given, expected) = computed(mae, mask_ratio);
    fs::write(&inputs, weights::to_bytes(&given, None).unwrap()).unwrap();
    checked(
        Command::new(python)
            .arg(root().join("scripts/golden/students.py"))
            .args(["--load", format.name(), "--folder"])
            .arg(folder)
            .arg("--inputs")
            .arg(&inputs)
            .arg("--out")
            .arg(&out),
    );
    let found = Weights::read(&out).unwrap();
    assert_eq!(found.len(), count, "{format}");
    for (name, tensor) in found.tensors() {
        let difference = relative_l2(tensor, &expected[name]);
        println!("{format} {}: {name} differs by {difference:.1e}", folder.display());
        assert!(difference < TOLERANCE, "{format}: {name} differs by {difference:e}");
    }
}

#[test]
fn packages_load_a_student_strictly_and_compute_the_same() {
    let Some(python) = python() else { return };
    let temp = tempfile::tempdir().unwrap();
    // Wider than the default in everything that a configuration has to say: heads of 8, MLPs of 3 widths, raw pixels.
    let settings =
        ["model.num_heads=4", "model.mlp_ratio=3", "model.depth=3", "model.norm_pix_loss=false", "mask.ratio=0.5"];
    for (case, settings, mask_ratio) in [("plain", &[][..], 0.75), ("other", &settings[..], 0.5)] {
        let (file, mae) = student(temp.path(), settings);
        for (format, more, count) in [
            (Format::Timm, None, 1),
            (Format::HfVit, None, 1),
            (Format::HfMae, None, 5),
            (Format::HfMae, Some("--encoder-only"), 1),
        ] {
            let out = temp.path().join(format!("{case}-{format}{}", more.unwrap_or_default()));
            export(&file, format.name(), &out, more.as_slice()).unwrap();
            compare(&python, format, &out, &mae, mask_ratio, count);
        }
    }
}

/// Recipes know squares alone; the conversion knows more.
#[test]
fn timm_loads_a_student_of_wide_images() {
    let Some(python) = python() else { return };
    let temp = tempfile::tempdir().unwrap();
    let recipe = Recipe::parse(WORLD_RECIPE, "a test", &[]).unwrap();
    let mut config = recipe.mae_config();
    if let EncoderConfig::Vit(vit) = &mut config.encoder {
        vit.img_size = [16, 40];
    }
    let params = ParamStore::new(Device::Cpu, 1);
    let mae = Mae::new(&params.root(), &config).unwrap();
    randomise(&params, 6);
    let facts = Facts::of(&config, 0.75);
    let exported = interop::export(&params.tensors(), &facts, Format::Timm, false).unwrap();
    let out = temp.path().join("wide");
    write(&out, &exported, DepthWindow::default(), "").unwrap();
    compare(&python, Format::Timm, &out, &mae, 0.75, 1);
}

/// What people have: the published file, the one with its decoder, and a training checkpoint with optimizer and arguments.
#[test]
fn files_that_training_code_saved_are_read() {
    let Some(python) = python() else { return };
    let temp = tempfile::tempdir().unwrap();
    let (file, _) = student(temp.path(), &[]);
    let folder = temp.path().join("mae");
    export(&file, "mae", &folder, &[]).unwrap();
    checked(
        Command::new(&python)
            .arg(root().join("scripts/golden/students.py"))
            .args(["--save", "--folder"])
            .arg(&folder)
            .arg("--out")
            .arg(temp.path()),
    );
    let own = Weights::read(&file).unwrap();
    for (name, decoder, tensors) in
        [("mae_pretrain_vit.pth", false, 30), ("mae_pretrain_vit_full.pth", true, 50), ("checkpoint-799.pth", true, 50)]
    {
        let imported = import(&Weights::read(&temp.path().join(name)).unwrap()).unwrap();
        assert_eq!((imported.has_decoder(), imported.tensors.len()), (decoder, tensors), "{name}");
        for (tensor_name, tensor) in &imported.tensors {
            assert_eq!(tensor, own.get(tensor_name).unwrap(), "{name}: {tensor_name}");
        }
    }
}

/// docs/export.md and the cards say how a folder is loaded; they are run as they stand there.
#[test]
fn the_docs_and_cards_load_what_they_are_about() {
    let Some(python) = python() else { return };
    let temp = tempfile::tempdir().unwrap();
    let (file, _) = student(temp.path(), &[]);
    let blocks = |text: &str| -> Vec<String> {
        let after_fence = text.split("```python\n").skip(1);
        let block = |rest: &str| rest.split_once("```").map(|(block, _)| block.to_owned());
        after_fence.filter_map(block).collect()
    };
    let page = fs::read_to_string(root().join("docs/export.md")).unwrap();
    let mut scripts = blocks(&page);
    // The folders of the page, and the commands that it says make them.
    for (folder, args) in [
        ("student-timm", &["timm"][..]),
        ("student-hf-mae", &["hf-mae"]),
        ("student-hf-vit", &["hf-vit"]),
        ("student-hf-encoder", &["hf-mae", "--encoder-only"]),
        ("student-mae", &["mae"]),
    ] {
        assert!(page.contains(&format!("--format {} --out {folder}", args.join(" "))), "{folder}");
        let out = temp.path().join(folder);
        export(&file, args[0], &out, &args[1..]).unwrap();
        let card = blocks(&fs::read_to_string(out.join(CARD)).unwrap());
        assert_eq!(card.len(), 1, "{folder}");
        scripts.extend(card);
    }
    assert_eq!(scripts.len(), 5 + 5);
    // One after the other in one process, since starting it takes longer than they do.
    let path = temp.path().join("docs.py");
    fs::write(&path, scripts.concat()).unwrap();
    checked(Command::new(&python).arg(&path).current_dir(temp.path()));
    // What the page makes of a folder in MAE's names is what its reference code saves, and is read here.
    let saved = import(&Weights::read(&temp.path().join("student.pth")).unwrap()).unwrap();
    assert!(saved.has_decoder());
}
