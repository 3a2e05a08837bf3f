use std::collections::BTreeSet;

use tch::{Device, Kind};

use super::*;
use crate::init::Init;
use crate::masking::random_masking;
use crate::params::ParamStore;
use crate::tokens::unpatchify;

const F32: (Kind, Device) = (Kind::Float, Device::Cpu);

fn small_vit() -> VitConfig {
    VitConfig { img_size: [16, 24], mlp_dim: 48, ..VitConfig::mae(4, 24, 2, 3) }
}

fn small_decoder() -> DecoderConfig {
    DecoderConfig { embed_dim: 16, depth: 1, num_heads: 2, mlp_ratio: 2 }
}

fn config(encoder: VitConfig, decoder: DecoderConfig) -> MaeConfig {
    MaeConfig { encoder: EncoderConfig::Vit(encoder), decoder, norm_pix_loss: true }
}

fn small() -> (ParamStore, Mae) {
    let store = ParamStore::new(Device::Cpu, 0);
    let mae = Mae::new(&store.root(), &config(small_vit(), small_decoder())).unwrap();
    (store, mae)
}

fn random(shape: &[i64], name: &str) -> Tensor {
    Init::Normal { std: 1.0 }.tensor(shape, 11, name)
}

#[test]
fn patches_go_back_to_where_they_were() {
    let imgs = random(&[2, 3, 16, 24], "imgs");
    let patches = patchify(&imgs, 4);
    assert_eq!(patches.size(), [2, 24, 48]);
    assert_eq!(unpatchify(&patches, 4, [4, 6]), imgs);
    // Patch 7 is row 1, column 1 of the grid; its number (row 2, column 3, channel 1).
    let number = patches.double_value(&[1, 7, (2 * 4 + 3) * 3 + 1]);
    assert_eq!(number, imgs.double_value(&[1, 1, 4 + 2, 4 + 3]));
}

#[test]
fn removed_pixels_are_not_read() {
    let (_, mae) = small();
    let masking = random_masking(&random(&[2, 24], "noise"), 6);
    let imgs = random(&[2, 3, 16, 24], "imgs");
    let removed = unpatchify(&masking.mask.unsqueeze(-1).expand([-1, -1, 48], false), 4, [4, 6]);
    let others = &imgs * (1.0 - &removed) + random(&[2, 3, 16, 24], "others") * &removed;
    assert_ne!(imgs, others);
    assert_eq!(mae.forward_encoder(&imgs, &masking), mae.forward_encoder(&others, &masking));
    // And the test would see it if they were.
    let all = random_masking(&random(&[2, 24], "noise"), 24);
    assert_ne!(mae.forward_encoder(&imgs, &all), mae.forward_encoder(&others, &all));
}

#[test]
fn seeing_everything_in_order_is_the_feature_path() {
    let (_, mae) = small();
    let imgs = random(&[2, 3, 16, 24], "imgs");
    let order = Tensor::arange(24, F32).unsqueeze(0).expand([2, 24], false);
    let latent = mae.forward_encoder(&imgs, &random_masking(&order, 24));
    let difference = (latent - mae.forward_features(&imgs)).abs().max().double_value(&[]);
    assert!(difference < 1e-5, "{difference:e}");
}

#[test]
fn the_order_of_visible_patches_does_not_matter() {
    let (_, mae) = small();
    let imgs = random(&[1, 3, 16, 24], "imgs");
    let pred = |ids: &[i64]| {
        let noise = Tensor::full([24], 1.0, F32);
        let places = Tensor::arange(ids.len() as i64, F32) / 100.0;
        let noise = noise.index_copy(0, &Tensor::from_slice(ids), &places).unsqueeze(0);
        let masking = random_masking(&noise, ids.len() as i64);
        mae.forward_decoder(&mae.forward_encoder(&imgs, &masking), &masking.ids_restore)
    };
    let difference = (pred(&[20, 3, 7, 11]) - pred(&[3, 7, 11, 20])).abs().max().double_value(&[]);
    assert!(difference < 1e-5, "{difference:e}");
}

#[test]
fn a_b16_has_the_parameters_of_the_reference() {
    let store = ParamStore::frozen(Device::Cpu);
    Mae::new(&store.root(), &MaeConfig::VIT_BASE_PATCH16).unwrap();
    let tensors = store.tensors();
    // Both counts are those of transformers' ViTMAEForPreTraining(ViTMAEConfig()).
    assert_eq!(tensors.values().map(Tensor::numel).sum::<usize>(), 111_907_840);
    let fixed = ["pos_embed", "decoder_pos_embed"].map(|name| tensors[name].numel());
    assert_eq!(111_907_840 - fixed[0] - fixed[1], 111_655_680);
    let shape = |name: &str| tensors[name].size();
    assert_eq!(shape("pos_embed"), [1, 197, 768]);
    assert_eq!(shape("decoder_pos_embed"), [1, 197, 512]);
    assert_eq!(shape("patch_embed.proj.weight"), [768, 3, 16, 16]);
    assert_eq!(shape("blocks.11.attn.qkv.weight"), [2304, 768]);
    assert_eq!(shape("decoder_blocks.7.mlp.fc1.bias"), [2048]);
    assert_eq!(shape("decoder_pred.weight"), [768, 512]);
    let outside: BTreeSet<&str> = tensors.keys().map(String::as_str).filter(|n| !n.contains("blocks.")).collect();
    let expected = [
        "cls_token",
        "decoder_embed.bias",
        "decoder_embed.weight",
        "decoder_norm.bias",
        "decoder_norm.weight",
        "decoder_pos_embed",
        "decoder_pred.bias",
        "decoder_pred.weight",
        "mask_token",
        "norm.bias",
        "norm.weight",
        "patch_embed.proj.bias",
        "patch_embed.proj.weight",
        "pos_embed",
    ];
    assert!(outside.into_iter().eq(expected));
}

/// Deviation of each kind of parameter in the start that the reference's `initialize_weights` gives.
#[test]
fn parameters_start_as_in_the_reference() {
    let encoder = VitConfig { embed_dim: 192, patch_size: 16, img_size: [32, 32], mlp_dim: 384, ..small_vit() };
    let decoder = DecoderConfig { embed_dim: 128, ..small_decoder() };
    let config = config(encoder, decoder);
    let store = ParamStore::new(Device::Cpu, 3);
    Mae::new(&store.root(), &config).unwrap();
    let xavier = |fan_in: f64, fan_out: f64| (2.0 / (fan_in + fan_out)).sqrt();
    let std_of = |name: &str| store.get(name).unwrap().square().mean(None).sqrt().double_value(&[]);
    for (name, expected) in [
        ("patch_embed.proj.weight", xavier(768.0, 192.0)),
        ("patch_embed.proj.bias", 1.0 / (3.0 * 768.0f64).sqrt()),
        ("cls_token", 0.02),
        ("mask_token", 0.02),
        ("blocks.0.attn.qkv.weight", xavier(192.0, 576.0)),
        ("blocks.1.attn.proj.weight", xavier(192.0, 192.0)),
        ("blocks.0.mlp.fc1.weight", xavier(192.0, 384.0)),
        ("decoder_embed.weight", xavier(192.0, 128.0)),
        ("decoder_pred.weight", xavier(128.0, 768.0)),
    ] {
        let tolerance = 4.0 / (store.get(name).unwrap().numel() as f64).sqrt();
        let found = std_of(name);
        assert!((found / expected - 1.0).abs() < tolerance, "{name}: {found}, not {expected}");
    }
    for (name, tensor) in store.trainable() {
        if name.contains("norm") {
            let expected = if name.ends_with("weight") { 1.0 } else { 0.0 };
            assert_eq!(tensor, Tensor::full(tensor.size(), expected, F32), "{name}");
        } else if name.ends_with("bias") && name != "patch_embed.proj.bias" {
            assert_eq!(tensor, tensor.zeros_like(), "{name}");
        }
    }
}

#[test]
fn configurations_of_no_network_are_refused_by_field() {
    let check = |field: &str, encoder: VitConfig, decoder: DecoderConfig| {
        let refused = Mae::new(&ParamStore::frozen(Device::Cpu).root(), &config(encoder, decoder));
        let Err(Error::Config { field: found, .. }) = refused else { panic!("{field}: {refused:?}") };
        assert_eq!(found, field);
    };
    let vit = |change: fn(&mut VitConfig)| {
        let mut config = small_vit();
        change(&mut config);
        config
    };
    for (field, encoder) in [
        ("img_size", vit(|c| c.img_size = [16, 26])),
        ("img_size", vit(|c| c.img_size = [0, 16])),
        ("patch_size", vit(|c| c.patch_size = 0)),
        ("embed_dim", vit(|c| c.embed_dim = 26)),
        ("embed_dim", vit(|c| c.num_heads = 5)),
        ("depth", vit(|c| c.depth = 0)),
        ("mlp_dim", vit(|c| c.mlp_dim = 0)),
        ("fusion", vit(|c| c.fusion = vec![1])),
        ("fusion", vit(|c| c.fusion = vec![-1])),
        ("fusion", vit(|c| c.fusion = vec![0, 0])),
    ] {
        check(field, encoder, small_decoder());
    }
    let decoder = DecoderConfig { num_heads: 3, ..small_decoder() };
    check("decoder_embed_dim", small_vit(), decoder);
}

#[test]
fn published_sizes_are_networks() {
    let sizes = [
        (VitConfig::TINY_PATCH16, 196),
        (VitConfig::SMALL_PATCH16, 196),
        (VitConfig::BASE_PATCH16, 196),
        (VitConfig::LARGE_PATCH16, 196),
        (VitConfig::HUGE_PATCH14, 256),
    ];
    for (encoder, num_patches) in sizes {
        let config = config(encoder, DecoderConfig::PUBLISHED);
        config.validate().unwrap();
        assert_eq!(config.num_patches(), num_patches);
    }
}

#[test]
fn fused_features_are_those_that_the_losses_see() {
    let build = |fusion: Vec<i64>| {
        let store = ParamStore::new(Device::Cpu, 0);
        let encoder = VitConfig { fusion, ..small_vit() };
        Mae::new(&store.root(), &config(encoder, small_decoder())).unwrap()
    };
    let (plain, fused) = (build(vec![]), build(vec![0]));
    let imgs = random(&[2, 3, 16, 24], "imgs");
    let masking = random_masking(&random(&[2, 24], "noise"), 6);
    assert_ne!(fused.forward_encoder(&imgs, &masking), plain.forward_encoder(&imgs, &masking));
    // All patches in order: the latent of pretraining is what evaluation sees. The same weights without the sum are another student.
    let order = Tensor::arange(24, F32).unsqueeze(0).expand([2, 24], false);
    let everything = random_masking(&order, 24);
    for (mae, other) in [(&fused, &plain), (&plain, &fused)] {
        let latent = mae.forward_encoder(&imgs, &everything);
        let difference = |tokens: Tensor| (&latent - tokens).abs().max().double_value(&[]);
        assert!(difference(mae.encoder().forward_features(&imgs, true)) < 1e-5);
        assert!(difference(other.encoder().forward_features(&imgs, true)) > 1e-2);
    }
    assert_eq!(fused.forward_features(&imgs), plain.forward_features(&imgs));
}
