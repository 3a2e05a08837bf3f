#![allow(clippy::unwrap_used, reason = "a test states what it expects by unwrapping")]
#![allow(clippy::disallowed_methods, reason = "tests write throw-away files")]

use std::path::Path;

use tch::{Device, Kind, Tensor};

use super::*;
use crate::decoder::DecoderConfig;
use crate::encoder::{Encoder, EncoderConfig};
use crate::mae::{Mae, MaeConfig};
use crate::mcmae::McmaeEncoderConfig;
use crate::params::ParamStore;
use crate::vit::VitConfig;
use crate::weights::{self, Weights};

mod reading;

fn config(img_size: [i64; 2]) -> MaeConfig {
    MaeConfig {
        encoder: EncoderConfig::Vit(VitConfig { img_size, mlp_dim: 96, ..VitConfig::mae(8, 32, 2, 4) }),
        decoder: DecoderConfig { embed_dim: 16, depth: 1, num_heads: 2, mlp_ratio: 4 },
        norm_pix_loss: true,
    }
}

fn facts(img_size: [i64; 2]) -> Facts {
    Facts { img_size, num_heads: 4, decoder_num_heads: 2, norm_pix_loss: true, mask_ratio: 0.75, fusion: false }
}

/// A student on a store, every trained number of it random, with a mimic head that no format holds.
fn store(img_size: [i64; 2], seed: u64) -> ParamStore {
    let params = ParamStore::new(Device::Cpu, seed);
    Mae::new(&params.root(), &config(img_size)).unwrap();
    let head = params.root().sub("mimic_heads").sub("clip");
    let _weight = head.param("weight", &[5, 32], crate::init::Init::XavierUniform);
    params
}

fn student(img_size: [i64; 2]) -> Tensors {
    let mut tensors = store(img_size, 1).tensors();
    for (i, tensor) in tensors.values_mut().enumerate() {
        let numbers = Tensor::arange(tensor.numel() as i64, (Kind::Float, Device::Cpu));
        *tensor = (numbers * 0.7 + i as f64).sin().reshape(tensor.size());
    }
    tensors
}

/// A small MCMAE, random; sides of 16 and 48 pixels, with CLS or without.
fn mcmae(cls_token: bool) -> (McmaeEncoderConfig, ParamStore, Mae) {
    let encoder = McmaeEncoderConfig {
        img_size: [16, 48],
        embed_dims: [8, 12, 32],
        depths: [1, 2, 2],
        num_heads: 4,
        mlp_ratios: [2, 3, 4],
        cls_token,
        fusion: true,
    };
    let config = MaeConfig { encoder: EncoderConfig::Mcmae(encoder), ..config([32, 32]) };
    let params = ParamStore::new(Device::Cpu, 3);
    let mae = Mae::new(&params.root(), &config).unwrap();
    let head = params.root().sub("mimic_heads").sub("clip");
    let _weight = head.param("weight", &[5, 32], crate::init::Init::XavierUniform);
    (encoder, params, mae)
}

fn convolutional() -> Tensors {
    mcmae(false).1.tensors()
}

fn part(tensors: &Tensors, decoder: bool) -> Tensors {
    tensors
        .iter()
        .filter(|(name, _)| match Part::of(name) {
            Part::Encoder => true,
            Part::Mimic => false,
            Part::Decoder | Part::Other(_) => decoder,
        })
        .map(|(name, tensor)| (name.clone(), tensor.shallow_clone()))
        .collect()
}

/// Writes tensors and reads them as a file from outside.
fn file(tensors: &Tensors) -> Weights {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    std::fs::write(&path, weights::to_bytes(tensors, None).unwrap()).unwrap();
    Weights::read(&path).unwrap()
}

fn assert_same(found: &Tensors, expected: &Tensors, what: &str) {
    assert!(found.keys().eq(expected.keys()), "{what}: {:?}", found.keys());
    for (name, tensor) in found {
        assert_eq!(*tensor, expected[name], "{what}: {name}");
    }
}

#[test]
fn there_and_back_is_the_same_to_the_bit() {
    for img_size in [[32, 32], [16, 40]] {
        let own = student(img_size);
        for format in Format::ALL {
            for decoder in [false, true] {
                let what = format!("{format}, {img_size:?}, decoder {decoder}");
                let square = img_size[0] == img_size[1];
                let hugging_face = matches!(format, Format::HfMae | Format::HfVit);
                let fits =
                    format != Format::ConvMae && (square || !hugging_face) && (format.holds_decoder() || !decoder);
                let exported = match export(&own, &facts(img_size), format, decoder) {
                    Ok(exported) if fits => exported,
                    Err(Error::CannotExport { .. }) if !fits => continue,
                    other => panic!("{what}: {other:?}"),
                };
                assert_eq!(exported.decoder, decoder);
                let imported = import(&file(&exported.tensors)).unwrap();
                assert_same(&imported.tensors, &part(&own, decoder), &what);
                assert_eq!(imported.has_decoder(), decoder, "{what}");
                assert!(imported.ignored.is_empty(), "{what}");
            }
        }
    }
    for cls_token in [false, true] {
        let (config, params, mae) = mcmae(cls_token);
        let own = params.tensors();
        let facts = Facts::of(mae.config(), 0.75);
        for decoder in [false, true] {
            let exported = export(&own, &facts, Format::ConvMae, decoder).unwrap();
            assert_eq!(exported.config["cls_token"], cls_token);
            let imported = import(&file(&exported.tensors)).unwrap();
            assert!(imported.is_convolutional());
            assert_same(&imported.tensors, &part(&own, decoder), "convmae");
            // The published form: neither decoder, nor mask token, nor projections.
            let is_beyond = |name: &&String| name.contains("decode") || *name == "mask_token";
            let beyond = imported.tensors.keys().filter(is_beyond).count();
            assert_eq!(beyond > 0, decoder);
            let expected = McmaeEncoderConfig { fusion: false, ..config };
            same_features(&exported, EncoderConfig::Mcmae(expected), &mae);
        }
    }
}

/// The encoder that `exported` is said to be is `expected`, and computes what `mae` does.
fn same_features(exported: &Exported, expected: EncoderConfig, mae: &Mae) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    std::fs::write(&path, weights::to_bytes(&exported.tensors, None).unwrap()).unwrap();
    std::fs::write(folder.path().join("config.json"), exported.config.to_string()).unwrap();
    let imported = import(&Weights::read(&path).unwrap()).unwrap();
    let config = imported.encoder_config(&path).unwrap();
    assert_eq!(config, expected);
    let params = ParamStore::frozen(Device::Cpu);
    let encoder = Encoder::new(&params.root(), &config).unwrap();
    let loaded = load_into(&params, &imported.encoder_tensors(), "a test").unwrap();
    assert!(loaded.fresh.is_empty());
    let [height, width] = Facts::of(mae.config(), 0.75).img_size;
    let imgs = crate::init::Init::Normal { std: 1.0 }.tensor(&[2, 3, height, width], 1, "imgs");
    assert_eq!(encoder.forward_features(&imgs, false), mae.forward_features(&imgs));
}

#[test]
fn what_a_format_cannot_hold_is_refused() {
    let refused = |tensors: &Tensors, facts: &Facts, format, decoder, words: &str| {
        let message = export(tensors, facts, format, decoder).unwrap_err().to_string();
        assert!(message.contains(words), "{message}");
    };
    let (own, square) = (student([32, 32]), facts([32, 32]));
    refused(&own, &square, Format::Timm, true, "no place for a decoder");
    refused(&own, &square, Format::HfVit, true, "no place for a decoder");
    refused(&own, &square, Format::ConvMae, true, "is a ViT");
    refused(&convolutional(), &square, Format::HfMae, true, "convolution stages");
    refused(&convolutional(), &square, Format::Timm, false, "convolution stages");
    let wide = facts([16, 40]);
    refused(&student([16, 40]), &wide, Format::HfVit, false, "16 x 40 pixels");
    let encoder = part(&own, false);
    refused(&encoder, &square, Format::Mae, true, "has no decoder");
    let fused = Facts { fusion: true, ..square };
    refused(&own, &fused, Format::HfMae, true, "model.fusion");
    let plain = Facts { fusion: false, ..fused.clone() };
    refused(&convolutional(), &plain, Format::ConvMae, true, "projections of the first stages");
    assert!(export(&own, &fused, Format::HfMae, false).is_ok());
}

#[test]
fn configurations_say_what_the_tensors_are() {
    let own = student([32, 32]);
    let hf = export(&own, &facts([32, 32]), Format::HfMae, true).unwrap();
    assert_eq!(hf.config["intermediate_size"], 96);
    assert_eq!(hf.config["decoder_intermediate_size"], 64);
    assert_eq!(hf.config["layer_norm_eps"], 1e-6);
    assert_eq!(hf.preprocessor.unwrap()["resample"], 3);
    let timm = export(&student([16, 40]), &facts([16, 40]), Format::Timm, false).unwrap();
    assert_eq!(timm.config["model_args"]["img_size"], serde_json::json!([16, 40]));
    assert_eq!(timm.config["model_args"]["mlp_ratio"], 3);
    let (_, params, mae) = mcmae(false);
    let facts = Facts::of(mae.config(), 0.75);
    let conv = export(&params.tensors(), &facts, Format::ConvMae, true).unwrap();
    let args = &conv.config["model_args"];
    assert_eq!(args["img_size"], serde_json::json!([[16, 48], [4, 12], [2, 6]]));
    assert_eq!(args["patch_size"], serde_json::json!([4, 2, 2]));
    assert_eq!(args["depth"], serde_json::json!([1, 2, 2]));
    assert_eq!(args["mlp_ratio"], serde_json::json!([2, 3, 4]));
}
