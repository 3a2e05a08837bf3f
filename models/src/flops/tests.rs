use std::collections::BTreeMap;

use super::*;
use crate::decoder::DecoderConfig;
use crate::losses::{ClsLoss, MimicLoss};
use crate::mae::MaeConfig;
use crate::mcmae::McmaeEncoderConfig;
use crate::mr_mae::MimicConfig;
use crate::targets::TargetNorm;
use crate::vit::VitConfig;

fn config(encoder: EncoderConfig, rec_weight: f64, mimic_tokens: MimicTokens) -> MrMaeConfig {
    let clip = MimicConfig {
        width: 768,
        weight: 0.5,
        cls_weight: 0.0,
        head: HeadKind::Linear,
        target_norm: TargetNorm::Ln,
        loss: MimicLoss::L2,
        stats: None,
        cls_norm: TargetNorm::Ln,
        cls_loss: ClsLoss::Mimic(MimicLoss::L2),
        cls_stats: None,
    };
    MrMaeConfig {
        mae: MaeConfig { encoder, decoder: DecoderConfig::PUBLISHED, norm_pix_loss: true },
        rec_weight,
        mimic_tokens,
        teacher_drop: 0.0,
        teachers: BTreeMap::from([("clip".to_owned(), clip)]),
    }
}

fn gflop(flops: f64) -> f64 {
    (flops / 1e8).round() / 10.0
}

/// By hand for ViT-B/16: 50 tokens of 12 blocks of 12·768² weights, a multiply-add as two, are 8.49; attention 4·50²·768·12 is 0.09; the
/// patches 49·768² are 0.06. The decoder: 197 tokens of 8 blocks of 12·512² are 9.92, attention 0.64, pixels and embedding 0.19.
#[test]
fn a_vit_b_step_is_59_gflop() {
    let vit = EncoderConfig::Vit(VitConfig::BASE_PATCH16);
    let flops = Flops::of_pretraining(&config(vit.clone(), 0.5, MimicTokens::Encoder), 49);
    assert_eq!([flops.encoder, flops.decoder].map(gflop), [8.6, 10.7]);
    assert_eq!(flops.heads, 2.0 * 49.0 * 768.0 * 768.0);
    assert_eq!(gflop(flops.step()), 58.3);
    // All 197 tokens: the 35 GFLOP of a teacher.
    assert_eq!(gflop(vit.flops(196)), 35.1);
}

#[test]
fn an_mcmae_b_is_counted_where_it_is_visible() {
    let mcmae = EncoderConfig::Mcmae(McmaeEncoderConfig::BASE);
    let flops = Flops::of_pretraining(&config(mcmae.clone(), 0.5, MimicTokens::Encoder), 49);
    assert_eq!([flops.encoder, flops.decoder].map(gflop), [11.7, 10.7]);
    assert!(mcmae.without_fusion().flops(196) > 4.0 * (flops.encoder - 1e9));
}

#[test]
fn what_no_loss_needs_is_not_counted() {
    let vit = || EncoderConfig::Vit(VitConfig::BASE_PATCH16);
    let count = |weight, tokens| Flops::of_pretraining(&config(vit(), weight, tokens), 49);
    assert_eq!(count(0.0, MimicTokens::Encoder).decoder, 0.0);
    let at_decoder = count(0.0, MimicTokens::DecoderRemoved);
    assert!(at_decoder.decoder > 1e10);
    assert!(at_decoder.decoder < count(0.5, MimicTokens::DecoderRemoved).decoder);
    assert_eq!(at_decoder.heads, 2.0 * 147.0 * 512.0 * 768.0);
}

/// DINOv2-g/14, SigLIP so400m/14 and a ViT-S/14 with registers at 224 pixels (256 patches), by hand: a token and block has 4·D² weights and
/// 2·D·m in a plain MLP, 3·D·m in a gated one, and attention multiplies T·D twice.
#[test]
fn gated_mlps_registers_and_a_missing_cls_are_counted() {
    for (arch, expected) in [
        ("vit-w1536-d40-h24-m4096-p14-ls-glu", 598.8),
        ("siglip-vit-w1152-d27-h16-m4304-p14", 219.0),
        ("vit-w384-d12-h6-m1536-p14-ls-r4", 12.5),
    ] {
        assert_eq!(gflop(VitConfig::from_arch(arch).unwrap().flops(256)), expected, "{arch}");
    }
}

#[test]
fn an_mlp_head_has_two_products_for_each_token() {
    let mut config = config(EncoderConfig::Vit(VitConfig::BASE_PATCH16), 0.5, MimicTokens::Encoder);
    let clip = config.teachers.get_mut("clip").unwrap();
    (clip.head, clip.width, clip.cls_weight) = (HeadKind::Mlp { hidden: 3072 }, 1024, 0.5);
    let flops = Flops::of_pretraining(&config, 49);
    assert_eq!(flops.heads, 2.0 * 50.0 * 3072.0 * (768.0 + 1024.0));
}
