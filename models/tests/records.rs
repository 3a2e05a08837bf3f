//! The form in which encoders stand in the recipes and checkpoints of runs that exist.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use models::encoder::EncoderConfig;
use models::mcmae::McmaeEncoderConfig;
use models::vit::{Pooling, Positions, VitConfig};
use serde_json::{Value, json};

/// Reads the record and writes it again.
fn check(record: Value, expected: EncoderConfig) {
    let read: EncoderConfig = serde_json::from_value(record.clone()).unwrap();
    assert_eq!(read, expected);
    assert_eq!(serde_json::to_value(&read).unwrap(), record);
}

#[test]
fn records_of_students_keep_their_form() {
    let base = json!({
        "kind": "vit", "img_size": [224, 224], "patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12, "mlp_ratio": 4
    });
    check(base.clone(), EncoderConfig::Vit(VitConfig::BASE_PATCH16));
    let mut fused = base.clone();
    fused["fusion"] = json!([3, 7]);
    check(fused, EncoderConfig::Vit(VitConfig { fusion: vec![3, 7], ..VitConfig::BASE_PATCH16 }));
    let mut unknown = base;
    unknown["registers"] = json!(4);
    assert!(serde_json::from_value::<EncoderConfig>(unknown).is_err());
    let mcmae = json!({
        "kind": "mcmae", "img_size": [224, 224], "embed_dims": [256, 384, 768], "depths": [2, 2, 11], "num_heads": 12,
        "mlp_ratios": [4, 4, 4], "cls_token": false, "fusion": true
    });
    check(mcmae, EncoderConfig::Mcmae(McmaeEncoderConfig::BASE));
}

#[test]
fn records_of_towers_keep_their_form() {
    let half = [0.5; 3];
    let tower = |pooling: Value, positions: Value| {
        json!({
            "kind": "tower",
            "network": {
                "width": 64, "depth": 2, "num_heads": 2, "mlp_dim": 100, "patch_size": 8, "grid": 3, "pooling": pooling,
                "registers": 4, "positions": positions, "norm_pre": true, "patch_bias": false, "layer_scale": true,
                "gated_mlp": true, "norm_eps": 1e-5, "activation": "quick_gelu"
            },
            "mean": half, "std": half
        })
    };
    let expected = |pooling, positions| {
        EncoderConfig::Vit(VitConfig {
            img_size: [24, 24],
            mlp_dim: 100,
            pooling,
            registers: 4,
            positions,
            norm_pre: true,
            patch_bias: false,
            layer_scale: true,
            gated_mlp: true,
            norm_eps: 1e-5,
            activation: "quick_gelu".parse().unwrap(),
            mean: half,
            std: half,
            ..VitConfig::mae(8, 64, 2, 2)
        })
    };
    check(tower(json!("cls"), json!("learned")), expected(Pooling::Cls, Positions::Learned));
    let rotary = json!({"rotary": {"base": 100.0}});
    check(tower(json!("attention"), rotary), expected(Pooling::Attention, Positions::Rotary { base: 100.0 }));
}
