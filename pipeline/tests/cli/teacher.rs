//! A teacher small enough for tests.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use models::init::Init;

/// A random ViT as a Hugging Face folder: 2 blocks of width 32, 4 x 4 patches of `patch` pixels.
pub(crate) fn write_teacher(dir: &Path, patch: i64, seed: u64) {
    const WIDTH: i64 = 32;
    const GRID: i64 = 4;
    fs::create_dir_all(dir).unwrap();
    let mut shapes: BTreeMap<String, Vec<i64>> = BTreeMap::from([
        ("embeddings.cls_token".to_owned(), vec![1, 1, WIDTH]),
        ("embeddings.position_embeddings".to_owned(), vec![1, GRID * GRID + 1, WIDTH]),
        ("embeddings.patch_embeddings.projection.weight".to_owned(), vec![WIDTH, 3, patch, patch]),
        ("embeddings.patch_embeddings.projection.bias".to_owned(), vec![WIDTH]),
    ]);
    let mut module = |name: String, rows: i64, columns: Option<i64>| {
        shapes.insert(format!("{name}.bias"), vec![rows]);
        shapes.insert(format!("{name}.weight"), [Some(rows), columns].into_iter().flatten().collect());
    };
    module("layernorm".to_owned(), WIDTH, None);
    for block in 0..2 {
        let name = |rest: &str| format!("encoder.layer.{block}.{rest}");
        for part in [
            "attention.attention.query",
            "attention.attention.key",
            "attention.attention.value",
            "attention.output.dense",
        ] {
            module(name(part), WIDTH, Some(WIDTH));
        }
        module(name("intermediate.dense"), 2 * WIDTH, Some(WIDTH));
        module(name("output.dense"), WIDTH, Some(2 * WIDTH));
        module(name("layernorm_before"), WIDTH, None);
        module(name("layernorm_after"), WIDTH, None);
    }
    let draw = |(name, shape): (String, Vec<i64>)| {
        let tensor = Init::Normal { std: 0.2 }.tensor(&shape, seed, &name);
        (name, tensor)
    };
    let tensors = shapes.into_iter().map(draw).collect();
    fs::write(dir.join("model.safetensors"), models::weights::to_bytes(&tensors, None).unwrap()).unwrap();
    let config = serde_json::json!({
        "model_type": "vit", "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 2 * WIDTH,
        "patch_size": patch, "image_size": GRID * patch, "hidden_act": "gelu", "layer_norm_eps": 1e-6,
    });
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let preprocessor = serde_json::json!({"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]});
    fs::write(dir.join("preprocessor_config.json"), preprocessor.to_string()).unwrap();
}
