//! The masked convolution autoencoder against an independent one in PyTorch, on the golden files of `tests/golden/mcmae` (see the
//! README there): every stage, latent, prediction, loss, and the gradient of every parameter, of the sparse computation and of the
//! dense one.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test states what it expects and says what it found")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use models::blocks::ForwardOptions;
use models::decoder::DecoderConfig;
use models::encoder::{Encoder, EncoderConfig};
use models::mae::{Mae, MaeConfig};
use models::masking::{Masking, len_keep, random_masking};
use models::mcmae::{McmaeEncoder, McmaeEncoderConfig};
use models::params::ParamStore;
use models::weights::Weights;
use serde_json::Value;
use tch::{Device, Kind, Tensor};

/// Relative L2 of what the network computes, and of its gradients, of f32 against f64.
const TOLERANCE: f64 = 2e-6;
const GRAD_TOLERANCE: f64 = 1e-5;

const CASES: [&str; 2] = ["grid3x4", "grid4x4-cls"];

/// The two ways to compute the same latent.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Sparse,
    Dense,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn golden(case: &str) -> Weights {
    read(&root().join("tests/golden/mcmae"), case)
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
    let number = |key: &str| case[key].as_i64().unwrap();
    let three = |key: &str| [0, 1, 2].map(|i| case[key][i].as_i64().unwrap());
    let config = MaeConfig {
        encoder: EncoderConfig::Mcmae(McmaeEncoderConfig {
            img_size: [0, 1].map(|i| case["img_size"][i].as_i64().unwrap()),
            embed_dims: three("embed_dims"),
            depths: three("depths"),
            num_heads: number("num_heads"),
            mlp_ratios: three("mlp_ratios"),
            cls_token: case["cls_token"].as_bool().unwrap(),
            fusion: case["fusion"].as_bool().unwrap(),
        }),
        decoder: DecoderConfig {
            embed_dim: number("decoder_embed_dim"),
            depth: number("decoder_depth"),
            num_heads: number("decoder_num_heads"),
            mlp_ratio: number("decoder_mlp_ratio"),
        },
        norm_pix_loss: case["norm_pix_loss"].as_bool().unwrap(),
    };
    let store = ParamStore::new(Device::Cpu, 0);
    let mae = Mae::new(&store.root(), &config).unwrap();
    (store, mae, case["mask_ratio"].as_f64().unwrap())
}

fn encoder(mae: &Mae) -> &McmaeEncoder {
    match mae.encoder() {
        Encoder::Mcmae(encoder) => encoder,
        other => panic!("{other:?}"),
    }
}

fn relative_l2(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.size(), expected.size());
    let norm = |x: &Tensor| x.to_kind(Kind::Double).norm().double_value(&[]);
    norm(&(found.to_kind(Kind::Double) - expected.to_kind(Kind::Double))) / norm(expected)
}

/// What the sparse computation has of an expected `map [N, C, h, w]` of `side × side` cells to a token: the visible tokens, each row
/// by row, `[N, keep·side², C]`.
fn visible_cells(map: &Tensor, side: i64, masking: &Masking) -> Tensor {
    let (n, dim, height, width) = map.size4().unwrap();
    let tokens = map.reshape([n, dim, height / side, side, width / side, side]).permute([0, 2, 4, 3, 5, 1]).reshape([
        n,
        -1,
        side * side * dim,
    ]);
    visible_tokens(&tokens, masking).reshape([n, -1, dim])
}

fn visible_tokens(tokens: &Tensor, masking: &Masking) -> Tensor {
    let ids = masking.ids_keep.unsqueeze(2);
    tokens.gather(1, &ids.expand([-1, -1, tokens.size()[2]], false), false)
}

fn compare(name: &str, weights: &Weights, way: Way) {
    let (store, mae, mask_ratio) = build(weights);
    for positions in ["pos_embed", "decoder_pos_embed"] {
        same_positions(&store.get(positions).unwrap(), &weights.tensors()[&format!("param/{positions}")]);
    }
    store.load(name, &under(weights, "param/")).unwrap();

    let expected = weights.tensors();
    let imgs = expected["imgs"].to_kind(Kind::Float);
    let masking = random_masking(&expected["noise"], len_keep(expected["noise"].size()[1], mask_ratio));
    assert_eq!(masking.mask, expected["mask"], "{name}");
    assert_eq!(masking.ids_restore, expected["ids_restore"], "{name}");

    let check = |what: &str, found: &Tensor, expected: &Tensor| {
        let difference = relative_l2(found, expected);
        println!("{name}, {way:?}: {what} differs by {difference:.1e}");
        assert!(difference < TOLERANCE, "{name}, {way:?}: {what} differs by {difference:e}");
    };
    let mut stages = 0;
    let mut observe = |what: &'static str, found: &Tensor| {
        stages += 1;
        let expected = &expected[what];
        let expected = match (way, what) {
            (Way::Dense, _) | (_, "blocks3") => expected.shallow_clone(),
            (_, "patch_embed1" | "blocks1") => visible_cells(expected, 4, &masking),
            (_, "patch_embed2" | "blocks2") => visible_cells(expected, 2, &masking),
            (_, "patch_embed3") => visible_cells(expected, 1, &masking),
            _ => visible_tokens(expected, &masking),
        };
        check(what, found, &expected);
    };
    let (encoder, pass) = (encoder(&mae), ForwardOptions::default());
    let latent = match way {
        Way::Sparse => encoder.observe_encoder(&imgs, &masking, &pass, &mut observe),
        Way::Dense => encoder.observe_encoder_dense(&imgs, &masking, &pass, &mut observe),
    };
    assert_eq!(stages, 7, "{name}: stages were left out");
    let pred = mae.forward_decoder(&latent, &masking.ids_restore);
    let loss = mae.forward_loss(&imgs, &pred, &masking.mask);
    check("latent", &latent, &expected["latent"]);
    check("pred", &pred, &expected["pred"]);
    check("loss", &loss.reshape([1]), &expected["loss"]);

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
        assert!(difference < GRAD_TOLERANCE, "{name}, {way:?}: the gradient of {param} differs by {difference:e}");
        if difference > worst.0 {
            worst = (difference, param);
        }
    }
    println!("{name}, {way:?}: gradients differ by at most {:.1e}, at {}", worst.0, worst.1);
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
fn the_sparse_computation_agrees_with_pytorch() {
    for case in CASES {
        compare(case, &golden(case), Way::Sparse);
    }
}

#[test]
fn the_dense_computation_agrees_with_pytorch() {
    for case in CASES {
        compare(case, &golden(case), Way::Dense);
    }
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
        .arg(root().join("scripts/golden/mcmae.py"))
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
            let found = &new.tensors()[name];
            if drawn && !name.ends_with("pos_embed") {
                assert_eq!(tensor, found, "{case}: {name}");
            } else if !name.ends_with("attn.qkv.bias") {
                assert!(relative_l2(found, tensor) < 1e-7, "{case}: {name}");
            }
        }
        compare(case, &new, Way::Sparse);
    }
}
