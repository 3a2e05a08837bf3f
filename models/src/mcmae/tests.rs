use std::collections::BTreeSet;

use tch::{Device, Kind};

use super::*;
use crate::decoder::DecoderConfig;
use crate::drop_path::DropPath;
use crate::encoder::EncoderConfig;
use crate::mae::{Mae, MaeConfig};
use crate::masking::random_masking;
use crate::params::ParamStore;
use crate::precision::Precision;
use crate::tokens::{gather_rows, unpatchify};

const F32: (Kind, Device) = (Kind::Float, Device::Cpu);

const SMALL: McmaeEncoderConfig = McmaeEncoderConfig {
    img_size: [32, 48],
    embed_dims: [8, 12, 16],
    depths: [1, 2, 2],
    num_heads: 2,
    mlp_ratios: [2, 3, 2],
    cls_token: false,
    fusion: true,
};

fn small(config: &McmaeEncoderConfig) -> (ParamStore, McmaeEncoder) {
    let store = ParamStore::new(Device::Cpu, 0);
    let encoder = McmaeEncoder::new(&store.root(), config).unwrap();
    (store, encoder)
}

fn random(shape: &[i64], name: &str) -> Tensor {
    Init::Normal { std: 1.0 }.tensor(shape, 11, name)
}

fn imgs(n: i64, config: &McmaeEncoderConfig) -> Tensor {
    let [height, width] = config.img_size;
    random(&[n, 3, height, width], "imgs")
}

fn masking(n: i64, config: &McmaeEncoderConfig, keep: i64) -> Masking {
    random_masking(&random(&[n, config.num_patches()], "noise"), keep)
}

fn sparse(encoder: &McmaeEncoder, imgs: &Tensor, masking: &Masking) -> Tensor {
    encoder.forward_encoder(imgs, masking, &ForwardOptions::default())
}

fn difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a - b).abs().max().double_value(&[])
}

/// Latents have deviation 1; f32 in another order of summation makes 1e-6.
fn assert_same(a: &Tensor, b: &Tensor, what: &str) {
    let difference = difference(a, b);
    assert!(difference < 1e-5, "{what}: {difference:e}");
}

#[test]
fn sparse_is_dense_at_every_grid_and_number_of_tokens() {
    for grid in [[1, 1], [1, 5], [4, 1], [2, 3], [5, 4]] {
        let num_patches = grid[0] * grid[1];
        let keeps: BTreeSet<i64> =
            [1, num_patches / 4, num_patches / 2, num_patches].into_iter().filter(|keep| *keep > 0).collect();
        for keep in keeps {
            for (cls_token, fusion) in [(false, true), (true, true), (true, false)] {
                let config =
                    McmaeEncoderConfig { img_size: grid.map(|tokens| 16 * tokens), cls_token, fusion, ..SMALL };
                let (store, encoder) = small(&config);
                let (imgs, masking) = (imgs(3, &config), masking(3, &config, keep));
                let what = format!("{keep} tokens of {grid:?}, CLS {cls_token}, fusion {fusion}");
                let weight = random(&[3, keep + i64::from(cls_token), 16], "weight");
                let grads = |latent: &Tensor| {
                    (latent * &weight).sum(None).backward();
                    let params = store.trainable();
                    params
                        .into_iter()
                        .map(|(name, mut param)| {
                            let grad = param.grad().copy();
                            param.zero_grad();
                            (name, grad)
                        })
                        .collect::<Vec<_>>()
                };
                let found = sparse(&encoder, &imgs, &masking);
                let expected = encoder.forward_encoder_dense(&imgs, &masking, &ForwardOptions::default());
                assert_same(&found, &expected, &what);
                for ((name, found), (_, expected)) in grads(&found).into_iter().zip(grads(&expected)) {
                    let scale = 1.0 + expected.abs().max().double_value(&[]);
                    let difference = difference(&found, &expected) / scale;
                    assert!(difference < 1e-5, "{what}, {name}: {difference:e}");
                }
            }
        }
    }
}

#[test]
fn removed_pixels_are_not_read() {
    let (_, encoder) = small(&SMALL);
    let imgs = imgs(2, &SMALL);
    let masking = masking(2, &SMALL, 2);
    let removed = masking.mask.unsqueeze(-1).expand([-1, -1, 768], false);
    let removed = unpatchify(&removed, 16, SMALL.grid()).to_kind(Kind::Bool);
    let others = imgs.masked_fill(&removed, f64::NAN);
    let latent = sparse(&encoder, &imgs, &masking);
    assert_eq!(latent, sparse(&encoder, &others, &masking));
    assert!(bool::try_from(latent.isfinite().all()).unwrap());
    // The dense computation reads them, and what it makes of them reaches no visible token.
    let others = &imgs + removed.to_kind(Kind::Float) * 3.0;
    let dense = |imgs| encoder.forward_encoder_dense(imgs, &masking, &ForwardOptions::default());
    assert_eq!(dense(&imgs), dense(&others));
    // And the test would see it if one did.
    let all = random_masking(&random(&[2, 6], "noise"), 6);
    assert_ne!(sparse(&encoder, &imgs, &all), sparse(&encoder, &others, &all));
}

/// What a visible token sees of its neighbors is there: the convolution crosses the borders of tokens, and not those of images.
#[test]
fn visible_neighbors_are_seen() {
    let (_, encoder) = small(&SMALL);
    let masking = masking(2, &SMALL, 4);
    let stage2 = |imgs: &Tensor| {
        let mut stage2 = None;
        let pass = ForwardOptions::default();
        let _ = encoder.observe_encoder(imgs, &masking, &pass, &mut |name, x| {
            if name == "blocks2" {
                stage2 = Some(x.reshape([2, 4, -1]));
            }
        });
        stage2.unwrap()
    };
    let imgs = imgs(2, &SMALL);
    let before = stage2(&imgs);
    for changed in 0..4 {
        let token = masking.ids_keep.int64_value(&[0, changed]);
        let others = imgs.copy();
        let (row, column) = (token / 3 * 16, token % 3 * 16);
        let _ = others.get(0).narrow(1, row, 16).narrow(2, column, 16).fill_(1.0);
        let after = stage2(&others);
        for other in 0..4 {
            let place = masking.ids_keep.int64_value(&[0, other]);
            let near = (place / 3 - token / 3).abs() <= 1 && (place % 3 - token % 3).abs() <= 1;
            let moved = after.get(0).get(other) != before.get(0).get(other);
            assert!(moved || !near, "token {place} does not see token {token}");
        }
        assert_eq!(after.get(1), before.get(1), "another image has moved");
    }
}

#[test]
fn seeing_everything_in_order_is_the_feature_path() {
    for (cls_token, fusion) in [(false, true), (true, false), (true, true)] {
        let config = McmaeEncoderConfig { cls_token, fusion, ..SMALL };
        let (_, encoder) = small(&config);
        let imgs = imgs(2, &config);
        let order = Tensor::arange(6, F32).unsqueeze(0).expand([2, 6], false);
        let all = random_masking(&order, 6);
        let fused = encoder.forward_features(&imgs, true);
        assert_same(&sparse(&encoder, &imgs, &all), &fused, "visible");
        let dense = encoder.forward_encoder_dense(&imgs, &all, &ForwardOptions::default());
        assert_same(&dense, &fused, "dense");
        let plain = encoder.forward_features(&imgs, false);
        assert_eq!(fusion, difference(&plain, &fused) > 1e-2);
        let blocks = encoder.forward_blocks(&imgs, &ForwardOptions::default());
        assert_eq!(encoder.forward_norm(&blocks), plain);
    }
}

#[test]
fn visible_tokens_stay_in_the_order_of_ids_keep() {
    let (_, encoder) = small(&SMALL);
    let imgs = imgs(1, &SMALL);
    let keep = |ids: [i64; 3]| {
        let noise = Tensor::ones([6], F32);
        let places = Tensor::arange(3, F32) / 10.0;
        let noise = noise.index_copy(0, &Tensor::from_slice(&ids), &places);
        sparse(&encoder, &imgs, &random_masking(&noise.unsqueeze(0), 3))
    };
    let sorted = keep([0, 1, 5]);
    let shuffled = keep([5, 0, 1]);
    let order = Tensor::from_slice(&[2i64, 0, 1]).unsqueeze(0);
    assert_same(&gather_rows(&sorted, &order), &shuffled, "shuffled");
}

#[test]
fn dropped_branches_are_left_out_in_both_computations() {
    let (_, encoder) = small(&SMALL);
    let (imgs, masking) = (imgs(2, &SMALL), masking(2, &SMALL, 3));
    let plain = sparse(&encoder, &imgs, &masking);
    let branches = 2 * SMALL.num_blocks();
    for branch in 0..branches {
        // Of the second image alone.
        let uniform = Tensor::ones([2, branches], F32) * 0.9;
        let _ = uniform.get(1).narrow(0, branch, 1).fill_(0.1);
        let rates = Tensor::zeros([branches], F32);
        let _ = rates.narrow(0, branch, 1).fill_(0.5);
        let drop = DropPath::new(&uniform, &rates);
        let pass = ForwardOptions { drop_path: Some(&drop), ..ForwardOptions::default() };
        let found = encoder.forward_encoder(&imgs, &masking, &pass);
        let expected = encoder.forward_encoder_dense(&imgs, &masking, &pass);
        assert_same(&found, &expected, &format!("branch {branch}"));
        for image in 0..2 {
            let moved = difference(&found.get(image), &plain.get(image));
            assert!(moved > 1e-4, "branch {branch}, image {image}: {moved:e}");
        }
    }
}

/// In both convolution stages and the transformer.
#[test]
fn checkpointed_stages_have_the_same_gradients_to_the_bit() {
    for precision in [Precision::F32, Precision::Bf16] {
        let gradients = |grad_checkpointing| {
            let (store, encoder) = small(&SMALL);
            let (imgs, masking) = (imgs(2, &SMALL), masking(2, &SMALL, 3));
            let pass = ForwardOptions { grad_checkpointing, ..ForwardOptions::default() };
            let latent = {
                let _scope = precision.guard(Device::Cpu);
                encoder.forward_encoder(&imgs, &masking, &pass)
            };
            let weight = random(&latent.size(), "weight");
            (latent * weight).sum(Kind::Float).backward();
            let grads = store.trainable().into_iter();
            let grads = grads.map(|(name, param)| (name, param.grad()));
            grads.collect::<std::collections::BTreeMap<_, _>>()
        };
        let (plain, checkpointed) = (gradients(false), gradients(true));
        assert!(plain.keys().eq(checkpointed.keys()));
        for (name, grad) in &plain {
            assert!(grad.defined() && *grad == checkpointed[name], "{precision}: {name}");
        }
    }
}

#[test]
fn bf16_is_near_f32_and_keeps_the_residual_stream() {
    let config = McmaeEncoderConfig { cls_token: true, ..SMALL };
    let (store, encoder) = small(&config);
    let (imgs, masking) = (imgs(2, &config), masking(2, &config, 3));
    let expected = sparse(&encoder, &imgs, &masking);
    let weight = random(&expected.size(), "weight");
    for dense in [false, true] {
        let latent = {
            let _bf16 = Precision::Bf16.guard(Device::Cpu);
            let pass = ForwardOptions::default();
            if dense {
                encoder.forward_encoder_dense(&imgs, &masking, &pass)
            } else {
                encoder.observe_encoder(&imgs, &masking, &pass, &mut |name, x| {
                    let kind = match name {
                        "patch_embed4" => Kind::BFloat16,
                        _ => Kind::Float,
                    };
                    assert_eq!(x.kind(), kind, "{name}");
                })
            }
        };
        assert_eq!(latent.kind(), Kind::Float);
        let moved = difference(&latent, &expected);
        assert!(0.0 < moved && moved < 0.1, "{moved}");
        (latent * &weight).sum(None).backward();
        for (name, mut param) in store.trainable() {
            let grad = param.grad();
            assert_eq!(grad.kind(), Kind::Float, "{name}");
            assert!(bool::try_from(grad.isfinite().all()).unwrap(), "{name}");
            assert!(grad.abs().max().double_value(&[]) > 0.0, "{name}");
            param.zero_grad();
        }
    }
}

#[test]
fn the_depthwise_convolution_is_f32_under_autocast() {
    let store = ParamStore::new(Device::Cpu, 0);
    let conv = super::conv::DepthwiseConv::new(&store.root(), 4);
    let x = random(&[2, 4, 6, 6], "x");
    let expected = conv.forward(&x, 2);
    let _bf16 = Precision::Bf16.guard(Device::Cpu);
    assert_eq!(conv.forward(&conv.prepare(&x), 2), expected);
    assert_eq!(conv.forward_map(&x).kind(), Kind::BFloat16);
}

#[test]
fn the_base_size_has_the_tensors_of_the_reference() {
    let store = ParamStore::frozen(Device::Cpu);
    let config = MaeConfig {
        encoder: EncoderConfig::Mcmae(McmaeEncoderConfig::BASE),
        decoder: DecoderConfig::PUBLISHED,
        norm_pix_loss: true,
    };
    Mae::new(&store.root(), &config).unwrap();
    let tensors = store.tensors();
    assert_eq!(tensors.len(), 313);
    let numel = |tensors: Vec<&Tensor>| tensors.into_iter().map(Tensor::numel).sum::<usize>();
    assert_eq!(numel(tensors.values().collect()), 115_041_408);
    let fixed = ["pos_embed", "decoder_pos_embed"].map(|name| &tensors[name]);
    assert_eq!(115_041_408 - numel(fixed.to_vec()), 114_790_528);

    let mut expected = BTreeSet::new();
    let mut add = |name: String, shape: &[i64]| {
        assert_eq!(tensors[&name].size(), shape, "{name}");
        expected.insert(name);
    };
    let mut both = |name: String, weight: &[i64]| {
        add(format!("{name}.weight"), weight);
        add(format!("{name}.bias"), &weight[..1]);
    };
    let conv_blocks = [("blocks1", 256, 1024), ("blocks2", 384, 1536)];
    for (stage, dim, hidden) in conv_blocks {
        for i in 0..2 {
            let name = |part: &str| format!("{stage}.{i}.{part}");
            both(name("norm1"), &[dim]);
            both(name("conv1"), &[dim, dim, 1, 1]);
            both(name("attn"), &[dim, 1, 5, 5]);
            both(name("conv2"), &[dim, dim, 1, 1]);
            both(name("norm2"), &[dim]);
            both(name("mlp.fc1"), &[hidden, dim, 1, 1]);
            both(name("mlp.fc2"), &[dim, hidden, 1, 1]);
        }
    }
    for (stack, depth, dim) in [("blocks3", 11, 768), ("decoder_blocks", 8, 512)] {
        for i in 0..depth {
            let name = |part: &str| format!("{stack}.{i}.{part}");
            both(name("norm1"), &[dim]);
            both(name("attn.qkv"), &[3 * dim, dim]);
            both(name("attn.proj"), &[dim, dim]);
            both(name("norm2"), &[dim]);
            both(name("mlp.fc1"), &[4 * dim, dim]);
            both(name("mlp.fc2"), &[dim, 4 * dim]);
        }
    }
    for (name, shape) in [
        ("patch_embed1.proj", [256, 3, 4, 4].as_slice()),
        ("patch_embed1.norm", &[256]),
        ("patch_embed2.proj", &[384, 256, 2, 2]),
        ("patch_embed2.norm", &[384]),
        ("patch_embed3.proj", &[768, 384, 2, 2]),
        ("patch_embed3.norm", &[768]),
        ("patch_embed4", &[768, 768]),
        ("stage1_output_decode", &[768, 256, 4, 4]),
        ("stage2_output_decode", &[768, 384, 2, 2]),
        ("norm", &[768]),
        ("decoder_embed", &[512, 768]),
        ("decoder_norm", &[512]),
        ("decoder_pred", &[768, 512]),
    ] {
        both(name.to_owned(), shape);
    }
    add("pos_embed".to_owned(), &[1, 196, 768]);
    add("mask_token".to_owned(), &[1, 1, 512]);
    add("decoder_pos_embed".to_owned(), &[1, 196, 512]);
    assert!(tensors.keys().eq(&expected));
}

#[test]
fn cls_and_fusion_are_parameters_only_where_configured() {
    let names = |cls_token, fusion| {
        let config = McmaeEncoderConfig { cls_token, fusion, ..SMALL };
        let (store, _) = small(&config);
        let tensors = store.tensors();
        let positions = tensors["pos_embed"].shallow_clone();
        (tensors.into_keys().collect::<BTreeSet<_>>(), positions)
    };
    let (plain, positions) = names(false, false);
    assert_eq!(positions.size(), [1, 6, 16]);
    let added = |names: BTreeSet<String>| names.difference(&plain).cloned().collect::<Vec<_>>();
    let (with_cls, positions) = names(true, false);
    assert_eq!(added(with_cls), ["cls_token"]);
    assert_eq!(positions.size(), [1, 7, 16]);
    assert_eq!(positions.get(0).get(0), Tensor::zeros([16], F32));
    assert_eq!(
        added(names(false, true).0),
        [
            "stage1_output_decode.bias",
            "stage1_output_decode.weight",
            "stage2_output_decode.bias",
            "stage2_output_decode.weight",
        ]
    );
}

/// Deviation of each kind of parameter in the start that the reference gives.
#[test]
fn parameters_start_as_in_the_reference() {
    let config = McmaeEncoderConfig { embed_dims: [64, 96, 128], cls_token: true, ..SMALL };
    let (store, _) = small(&config);
    let xavier = |fan_in: f64, fan_out: f64| (2.0 / (fan_in + fan_out)).sqrt();
    let conv = |fan_in: f64| (3.0 * fan_in).sqrt().recip();
    for (name, expected) in [
        ("patch_embed1.proj.weight", conv(48.0)),
        ("patch_embed1.proj.bias", conv(48.0)),
        ("patch_embed2.proj.weight", conv(256.0)),
        ("patch_embed3.proj.weight", xavier(384.0, 128.0)),
        ("patch_embed3.proj.bias", conv(384.0)),
        ("patch_embed4.weight", xavier(128.0, 128.0)),
        ("blocks1.0.conv1.weight", conv(64.0)),
        ("blocks1.0.attn.weight", conv(25.0)),
        ("blocks1.0.attn.bias", conv(25.0)),
        ("blocks1.0.mlp.fc1.weight", conv(64.0)),
        ("blocks2.1.mlp.fc2.weight", conv(288.0)),
        ("blocks2.1.mlp.fc2.bias", conv(288.0)),
        ("blocks3.0.attn.qkv.weight", xavier(128.0, 384.0)),
        ("stage1_output_decode.weight", conv(1024.0)),
        ("stage2_output_decode.bias", conv(384.0)),
        ("cls_token", 0.02),
    ] {
        let param = store.get(name).unwrap();
        let tolerance = 4.0 / (param.numel() as f64).sqrt();
        let found = param.square().mean(None).sqrt().double_value(&[]);
        assert!((found / expected - 1.0).abs() < tolerance, "{name}: {found}, not {expected}");
    }
    for (name, tensor) in store.trainable() {
        let zero =
            ["patch_embed4.bias"].contains(&name.as_str()) || name.starts_with("blocks3.") && name.ends_with("bias");
        if name.contains("norm") {
            let expected = if name.ends_with("weight") { 1.0 } else { 0.0 };
            assert_eq!(tensor, Tensor::full(tensor.size(), expected, F32), "{name}");
        } else {
            assert_eq!(tensor == tensor.zeros_like(), zero, "{name}");
        }
    }
}
