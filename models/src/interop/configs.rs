//! The `config.json` that each package reads beside a student's tensors.
//!
//! Sources: transformers 5.23 `configuration_vit_mae.py`, `configuration_vit.py`; timm 1.0.31 `_hub.py` (`_parse_model_cfg`);
//! `facebookresearch/mae` `models_mae.py`; `Alpha-VL/ConvMAE` `models_convmae.py`, whose constructors' arguments are `model_args`.

use serde_json::{Map, Value, json};

use super::Facts;
use crate::layers::NORM_EPS;
use crate::pixels::{IMAGENET_MEAN, IMAGENET_STD};
use crate::shapes::{DecoderShapes, McmaeShapes, VitShapes};

/// Pillow's number for bicubic resampling, which transformers writes.
const PIL_BICUBIC: i64 = 3;

/// timm's names of plain ViTs: patch, width, depth, heads. Whatever else there is, `model_args` turns one of them into.
const TIMM: [(&str, i64, i64, i64, i64); 5] = [
    ("vit_tiny_patch16_224", 16, 192, 12, 3),
    ("vit_small_patch16_224", 16, 384, 12, 6),
    ("vit_base_patch16_224", 16, 768, 12, 12),
    ("vit_large_patch16_224", 16, 1024, 24, 16),
    ("vit_huge_patch14_224", 14, 1280, 32, 16),
];

/// One number for a square, height and width for another image.
fn side_or_sides([height, width]: [i64; 2]) -> Value {
    if height == width { json!(height) } else { json!([height, width]) }
}

/// An MLP's hidden width in widths: an integer where it is one.
fn ratio(mlp_dim: i64, dim: i64) -> Value {
    if dim > 0 && mlp_dim % dim == 0 { json!(mlp_dim / dim) } else { json!(mlp_dim as f64 / dim as f64) }
}

fn pretrained_cfg(facts: &Facts) -> Value {
    json!({
        "tag": "mr_mae",
        "custom_load": false,
        "input_size": [3, facts.img_size[0], facts.img_size[1]],
        "fixed_input_size": true,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "center",
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "num_classes": 0,
        "pool_size": null,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    })
}

/// timm's: an architecture, what to change about it, and the preprocessing.
pub(super) fn timm(shapes: &VitShapes, facts: &Facts) -> Value {
    let known = (shapes.patch_size, shapes.embed_dim, shapes.depth, facts.num_heads);
    let named = TIMM.iter().find(|(_, patch, width, depth, heads)| (*patch, *width, *depth, *heads) == known);
    json!({
        "architecture": named.map_or("vit_base_patch16_224", |(name, ..)| name),
        "num_classes": 0,
        "num_features": shapes.embed_dim,
        "global_pool": "token",
        "model_args": {
            "img_size": side_or_sides(facts.img_size),
            "patch_size": shapes.patch_size,
            "embed_dim": shapes.embed_dim,
            "depth": shapes.depth,
            "num_heads": facts.num_heads,
            "mlp_ratio": ratio(shapes.mlp_dim, shapes.embed_dim),
        },
        "pretrained_cfg": pretrained_cfg(facts),
    })
}

/// What both of transformers' ViTs have.
fn hf(shapes: &VitShapes, facts: &Facts, architecture: &str, model_type: &str) -> Map<String, Value> {
    let config = json!({
        "architectures": [architecture],
        "model_type": model_type,
        "image_size": facts.img_size[0],
        "patch_size": shapes.patch_size,
        "num_channels": 3,
        "hidden_size": shapes.embed_dim,
        "num_hidden_layers": shapes.depth,
        "num_attention_heads": facts.num_heads,
        "intermediate_size": shapes.mlp_dim,
        "hidden_act": "gelu",
        "layer_norm_eps": NORM_EPS,
        "qkv_bias": true,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "dtype": "float32",
    });
    match config {
        Value::Object(config) => config,
        _ => unreachable!("a JSON object was just written"),
    }
}

/// transformers' `ViTMAEConfig`.
pub(super) fn hf_mae(shapes: &VitShapes, facts: &Facts, decoder: bool) -> Value {
    let architecture = if decoder { "ViTMAEForPreTraining" } else { "ViTMAEModel" };
    let mut config = hf(shapes, facts, architecture, "vit_mae");
    config.insert("mask_ratio".to_owned(), json!(facts.mask_ratio));
    config.insert("norm_pix_loss".to_owned(), json!(facts.norm_pix_loss));
    if let Some(decoder) = &shapes.decoder {
        for (key, value) in [
            ("decoder_hidden_size", decoder.embed_dim),
            ("decoder_num_hidden_layers", decoder.depth),
            ("decoder_num_attention_heads", facts.decoder_num_heads),
            ("decoder_intermediate_size", decoder.mlp_dim),
        ] {
            config.insert(key.to_owned(), json!(value));
        }
    }
    Value::Object(config)
}

/// transformers' `ViTConfig`.
pub(super) fn hf_vit(shapes: &VitShapes, facts: &Facts) -> Value {
    let mut config = hf(shapes, facts, "ViTModel", "vit");
    config.insert("encoder_stride".to_owned(), json!(shapes.patch_size));
    Value::Object(config)
}

/// transformers' `ViTImageProcessor`: the whole image, resized to a square.
pub(super) fn hf_preprocessor(facts: &Facts) -> Value {
    let [height, width] = facts.img_size;
    json!({
        "image_processor_type": "ViTImageProcessor",
        "do_resize": true,
        "size": { "height": height, "width": width },
        "resample": PIL_BICUBIC,
        "do_rescale": true,
        "rescale_factor": 1.0 / 255.0,
        "do_normalize": true,
        "image_mean": IMAGENET_MEAN,
        "image_std": IMAGENET_STD,
    })
}

/// The arguments of MAE's `MaskedAutoencoderViT`, which takes its norm's eps as a function.
pub(super) fn mae(shapes: &VitShapes, facts: &Facts) -> Value {
    let mut args = json!({
        "img_size": side_or_sides(facts.img_size),
        "patch_size": shapes.patch_size,
        "embed_dim": shapes.embed_dim,
        "depth": shapes.depth,
        "num_heads": facts.num_heads,
        "mlp_ratio": ratio(shapes.mlp_dim, shapes.embed_dim),
    });
    add_decoder(&mut args, shapes.decoder.as_ref(), facts);
    json!({
        "architecture": "MaskedAutoencoderViT",
        "model_args": args,
        "norm_eps": NORM_EPS,
        "mask_ratio": facts.mask_ratio,
        "pretrained_cfg": pretrained_cfg(facts),
    })
}

/// The arguments of ConvMAE's `MaskedAutoencoderConvViT`: three stages, of which the last is a ViT. `cls_token` is not one of
/// them: the published code has none, the weights of its second version do.
pub(super) fn convmae(shapes: &McmaeShapes, facts: &Facts, cls_token: bool) -> Value {
    // The side of each stage's input.
    let mut sides = facts.img_size;
    let inputs = shapes.patch_sizes.map(|patch| {
        let input = side_or_sides(sides);
        sides = sides.map(|side| side / patch.max(1));
        input
    });
    let ratios = [0, 1, 2].map(|i| ratio(shapes.mlp_dims[i], shapes.embed_dims[i]));
    let mut args = json!({
        "img_size": inputs,
        "patch_size": shapes.patch_sizes,
        "embed_dim": shapes.embed_dims,
        "depth": shapes.depths,
        "num_heads": facts.num_heads,
        "mlp_ratio": ratios,
    });
    add_decoder(&mut args, shapes.decoder.as_ref(), facts);
    let mut config = json!({
        "architecture": "MaskedAutoencoderConvViT",
        "model_args": args,
        "cls_token": cls_token,
        "mask_ratio": facts.mask_ratio,
        "pretrained_cfg": pretrained_cfg(facts),
    });
    config["pretrained_cfg"]["first_conv"] = json!("patch_embed1.proj");
    config
}

fn add_decoder(args: &mut Value, decoder: Option<&DecoderShapes>, facts: &Facts) {
    if let Some(decoder) = decoder {
        args["decoder_embed_dim"] = json!(decoder.embed_dim);
        args["decoder_depth"] = json!(decoder.depth);
        args["decoder_num_heads"] = json!(facts.decoder_num_heads);
        args["norm_pix_loss"] = json!(facts.norm_pix_loss);
    }
}
