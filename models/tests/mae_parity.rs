//! The masked autoencoder against transformers' `ViTMAEForPreTraining`, on the golden files of `tests/golden/mae` (see the README
//! there): latent, prediction, mask, loss, and the gradient of every parameter.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test states what it expects and says what it found")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use models::decoder::DecoderConfig;
use models::encoder::EncoderConfig;
use models::mae::{Mae, MaeConfig};
use models::masking::{len_keep, random_masking};
use models::params::ParamStore;
use models::pos_embed::sincos_2d;
use models::vit::VitConfig;
use models::weights::Weights;
use serde_json::Value;
use tch::{Device, Kind, Tensor};

/// Relative L2 of what the network computes, and of its gradients. Both sides compute in f32 with other orders of summation
/// (one product for q, k and v here, three there), which makes 5e-7 and 1e-6; a norm's eps of 1e-5 instead of 1e-6 makes 7e-6.
const TOLERANCE: f64 = 2e-6;
const GRAD_TOLERANCE: f64 = 1e-5;

const CASES: [&str; 2] = ["img32-patch8", "img48-patch16"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn golden(case: &str) -> Weights {
    read(&root().join("tests/golden/mae"), case)
}

fn read(folder: &Path, case: &str) -> Weights {
    Weights::read(&folder.join(case).with_extension("safetensors")).unwrap()
}

fn under(weights: &Weights, prefix: &str) -> BTreeMap<String, Tensor> {
    let tensors = weights.tensors().iter();
    tensors.filter_map(|(name, t)| Some((name.strip_prefix(prefix)?.to_owned(), t.shallow_clone()))).collect()
}

/// The network of a case, and its mask ratio.
fn build(weights: &Weights) -> (ParamStore, Mae, f64) {
    let case: Value = serde_json::from_str(&weights.metadata()["case"]).unwrap();
    let mask_ratio = case["mask_ratio"].as_f64().unwrap();
    let number = |key: &str| case[key].as_i64().unwrap();
    let config = MaeConfig {
        encoder: EncoderConfig::Vit(VitConfig {
            img_size: [case["img_size"][0].as_i64().unwrap(), case["img_size"][1].as_i64().unwrap()],
            mlp_dim: number("mlp_ratio") * number("embed_dim"),
            ..VitConfig::mae(number("patch_size"), number("embed_dim"), number("depth"), number("num_heads"))
        }),
        decoder: DecoderConfig {
            embed_dim: number("decoder_embed_dim"),
            depth: number("decoder_depth"),
            num_heads: number("decoder_num_heads"),
            mlp_ratio: number("mlp_ratio"),
        },
        norm_pix_loss: case["norm_pix_loss"].as_bool().unwrap(),
    };
    let store = ParamStore::new(Device::Cpu, 0);
    let mae = Mae::new(&store.root(), &config).unwrap();
    (store, mae, mask_ratio)
}

fn relative_l2(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.size(), expected.size());
    let norm = |x: &Tensor| x.to_kind(Kind::Double).norm().double_value(&[]);
    norm(&(found.to_kind(Kind::Double) - expected.to_kind(Kind::Double))) / norm(expected)
}

fn compare(name: &str, weights: &Weights) {
    let (store, mae, mask_ratio) = build(weights);
    for positions in ["pos_embed", "decoder_pos_embed"] {
        same_positions(&store.get(positions).unwrap(), &weights.tensors()[&format!("param/{positions}")]);
    }
    store.load(name, &under(weights, "param/")).unwrap();

    let expected = weights.tensors();
    let masking = random_masking(&expected["noise"], len_keep(expected["noise"].size()[1], mask_ratio));
    assert_eq!(masking.mask, expected["mask"], "{name}");
    assert_eq!(masking.ids_restore, expected["ids_restore"], "{name}");
    let latent = mae.forward_encoder(&expected["imgs"], &masking);
    let pred = mae.forward_decoder(&latent, &masking.ids_restore);
    let loss = mae.forward_loss(&expected["imgs"], &pred, &masking.mask);
    for (what, found) in [("latent", &latent), ("pred", &pred), ("loss", &loss.reshape([1]))] {
        let difference = relative_l2(found, &expected[what]);
        println!("{name}: {what} differs by {difference:.1e}");
        assert!(difference < TOLERANCE, "{name}: {what} differs by {difference:e}");
    }

    loss.backward();
    let grads = under(weights, "grad/");
    let trainable = store.trainable();
    assert!(trainable.keys().eq(grads.keys()), "{name}: other parameters are trained");
    let mut worst = (0.0, String::new());
    for (param, tensor) in trainable {
        let difference = if param.ends_with("attn.qkv.bias") {
            qkv_bias_difference(&tensor.grad(), &grads[&param])
        } else {
            relative_l2(&tensor.grad(), &grads[&param])
        };
        assert!(difference < GRAD_TOLERANCE, "{name}: the gradient of {param} differs by {difference:e}");
        if difference > worst.0 {
            worst = (difference, param);
        }
    }
    println!("{name}: gradients differ by at most {:.1e}, at {}", worst.0, worst.1);
}

/// The key third of the gradient is zero but for rounding, since softmax does not see a constant added to all scores of a row.
/// It is left out of the relative difference, and held to be negligible beside the whole instead.
fn qkv_bias_difference(found: &Tensor, expected: &Tensor) -> f64 {
    let norm = |x: &Tensor| x.norm().double_value(&[]);
    let [found_parts, expected_parts] = [found, expected].map(|x| x.chunk(3, 0));
    assert!(norm(&found_parts[1]) < 1e-5 * norm(found));
    let query = relative_l2(&found_parts[0], &expected_parts[0]);
    query.max(relative_l2(&found_parts[2], &expected_parts[2]))
}

/// The same formula in f64 on both sides, then rounded to f32: at most the last bit of a sine can differ.
fn same_positions(found: &Tensor, expected: &Tensor) {
    let difference = (found - expected).abs().max().double_value(&[]);
    assert!(difference <= f64::from(f32::EPSILON) / 2.0, "positions differ by {difference:e}");
}

#[test]
fn positions_of_a_grid_that_is_not_square_agree() {
    let expected = &golden("positions").tensors()["3x5"].unsqueeze(0);
    same_positions(&sincos_2d(16, 3, 5, true), expected);
    same_positions(&sincos_2d(16, 3, 5, false), &expected.narrow(1, 1, 15));
}

#[test]
fn agrees_with_transformers() {
    for case in CASES {
        compare(case, &golden(case));
    }
}

#[test]
fn a_missing_renamed_or_misshaped_tensor_is_named() {
    let weights = golden(CASES[0]);
    let (store, ..) = build(&weights);
    let mut params = under(&weights, "param/");
    let qkv = params.remove("blocks.1.attn.qkv.weight").unwrap();
    params.insert("blocks.1.attn.in_proj.weight".to_owned(), qkv);
    params.insert("norm.weight".to_owned(), Tensor::ones([47], (Kind::Float, Device::Cpu)));
    let message = store.load("some.safetensors", &params).unwrap_err().to_string();
    let lines: Vec<&str> = message.lines().map(str::trim).collect();
    let expected = [
        "some.safetensors: the weights do not fit the network",
        "missing (1):",
        "blocks.1.attn.qkv.weight [144, 48]",
        "unexpected (1):",
        "blocks.1.attn.in_proj.weight [144, 48]",
        "misshaped (1):",
        "norm.weight: found [47], the network has [48]",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn the_golden_script_still_makes_these_files() {
    let python = Command::new(root().join("scripts/python-env")).arg("--if-present").output().unwrap();
    if !python.status.success() {
        println!("skipped: the Python environment is not installed (scripts/python-env installs it)");
        return;
    }
    let python = String::from_utf8(python.stdout).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let made = Command::new(python.trim())
        .arg(root().join("scripts/golden/mae.py"))
        .args(["--out".as_ref(), folder.path()])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    for case in CASES {
        let (kept, new) = (golden(case), read(folder.path(), case));
        assert!(kept.names().eq(new.names()), "{case}");
        assert_eq!(kept.metadata(), new.metadata());
        for (name, tensor) in kept.tensors() {
            // Drawn, not computed: the same on every machine. The rest may differ in rounding between processors.
            let drawn = name.starts_with("param/") || ["imgs", "noise", "mask", "ids_restore"].contains(&name.as_str());
            if drawn {
                assert_eq!(*tensor, new.tensors()[name], "{case}: {name}");
            } else if !name.ends_with("attn.qkv.bias") {
                assert!(relative_l2(&new.tensors()[name], tensor) < TOLERANCE, "{case}: {name}");
            }
        }
        compare(case, &new);
    }
}
