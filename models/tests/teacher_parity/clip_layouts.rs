//! The same CLIP and SigLIP under the names of every layout.

use models::teacher::Layer;
use tch::Tensor;

use crate::renaming::*;
use crate::support::*;

/// Hugging Face's CLIP, names without prefix, in OpenAI's.
fn clip_as_openai(vision: &Tensors) -> Tensors {
    let renamed = renamed(
        vision,
        &[
            ("embeddings.class_embedding", "class_embedding"),
            ("embeddings.position_embedding.weight", "positional_embedding"),
            ("embeddings.patch_embedding", "conv1"),
            ("pre_layrnorm", "ln_pre"),
            ("post_layernorm", "ln_post"),
            ("encoder.layers", "transformer.resblocks"),
            ("layer_norm1", "ln_1"),
            ("layer_norm2", "ln_2"),
            ("self_attn.out_proj", "attn.out_proj"),
            ("mlp.fc1", "mlp.c_fc"),
            ("mlp.fc2", "mlp.c_proj"),
        ],
    );
    let parts = ["self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj."];
    stacked(renamed, &parts, "attn.in_proj_")
}

#[test]
fn clip_is_the_same_in_openai_names() {
    let folder = golden().join("clip-gelu");
    let openai = clip_as_openai(&read(&folder, "model"));
    for prefix in ["", "visual.", "module.visual."] {
        let mut file = prefixed(&openai, prefix);
        if !prefix.is_empty() {
            // The text tower has some of the names that the vision tower has.
            let outer = prefix.strip_suffix("visual.").unwrap();
            let text = [
                ("positional_embedding", random(&[4, 8])),
                ("transformer.resblocks.0.ln_1.weight", random(&[8])),
                ("text_projection", random(&[8, 8])),
                ("logit_scale", random(&[])),
            ];
            for (name, tensor) in text {
                file.insert(format!("{outer}{name}"), tensor);
            }
        }
        same_bits(&folder, "expected-48x48", &file, "OpenAI CLIP", &WITHOUT_PROJ);
    }
}

/// The whole CLIP: the projection is transposed in OpenAI's file and called the head in timm's.
#[test]
fn the_projection_is_the_same_in_every_layout() {
    let folder = golden().join("clip-quickgelu");
    let whole = read(&folder, "model");
    let inside = |name: &str| name.strip_prefix("vision_model.").map(str::to_owned);
    let vision: Tensors =
        whole.iter().filter_map(|(name, tensor)| Some((inside(name)?, tensor.shallow_clone()))).collect();
    let projection = &whole["visual_projection.weight"];
    let openai = with(clip_as_openai(&vision), &[("proj", projection.tr().contiguous())]);
    let file = "expected-48x40";
    same_bits(&folder, file, &prefixed(&openai, "visual."), "OpenAI CLIP", &Layer::ALL);
    let head = [("visual_projection.weight", projection.shallow_clone())];
    same_bits(&folder, file, &with(vision, &head), "Hugging Face CLIP", &Layer::ALL);
    let to_timm = [
        ("class_embedding", "cls_token"),
        ("positional_embedding", "pos_embed"),
        ("conv1", "patch_embed.proj"),
        ("ln_pre", "norm_pre"),
        ("ln_post", "norm"),
        ("transformer.resblocks", "blocks"),
        ("ln_1", "norm1"),
        ("ln_2", "norm2"),
        ("attn.in_proj_", "attn.qkv."),
        ("attn.out_proj", "attn.proj"),
        ("mlp.c_fc", "mlp.fc1"),
        ("mlp.c_proj", "mlp.fc2"),
    ];
    let mut timm = renamed(&openai, &to_timm);
    timm.remove("proj");
    let timm = with(
        timm,
        &[
            ("cls_token", vision_token(&whole, "class_embedding").view([1, 1, 48])),
            ("pos_embed", vision_token(&whole, "position_embedding.weight").unsqueeze(0)),
            ("head.weight", projection.shallow_clone()),
            ("head.bias", projection.select(1, 0).zeros_like()),
        ],
    );
    for prefix in ["", "model."] {
        same_bits(&folder, file, &prefixed(&timm, prefix), "timm", &Layer::ALL);
    }
    // open_clip's models with one of timm's towers.
    let mut trunk = prefixed(&timm, "visual.trunk.");
    trunk.insert("visual.head.proj.weight".into(), projection.shallow_clone());
    trunk.insert("text.transformer.ln.weight".into(), random(&[3]));
    same_bits(&folder, file, &trunk, "timm", &WITHOUT_PROJ);
}

fn vision_token(whole: &Tensors, name: &str) -> Tensor {
    whole[&format!("vision_model.embeddings.{name}")].shallow_clone()
}

#[test]
fn siglip_is_the_same_in_every_layout() {
    let folder = golden().join("siglip");
    let mut whole = prefixed(&read(&folder, "model"), "vision_model.");
    whole.insert("text_model.final_layer_norm.weight".into(), random(&[4]));
    whole.insert("logit_bias".into(), random(&[1]));
    same_bits(&folder, "expected-40x24", &whole, "Hugging Face SigLIP", &WITHOUT_PROJ);
    let parts = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"];
    let mut timm = stacked(
        renamed(
            &read(&folder, "model"),
            &[
                ("head.attention.out_proj", "attn_pool.proj"),
                ("head.probe", "attn_pool.latent"),
                ("head.mlp", "attn_pool.mlp"),
                ("head.layernorm", "attn_pool.norm"),
                ("embeddings.patch_embedding", "patch_embed.proj"),
                ("embeddings.position_embedding.weight", "pos_embed"),
                ("post_layernorm", "norm"),
                ("encoder.layers", "blocks"),
                ("layer_norm", "norm"),
                ("self_attn.out_proj", "attn.proj"),
            ],
        ),
        &parts,
        "attn.qkv",
    );
    let table = timm.remove("pos_embed").unwrap();
    timm.insert("pos_embed".into(), table.unsqueeze(0));
    for end in ["weight", "bias"] {
        let qkv = timm.remove(&format!("head.attention.in_proj_{end}"));
        let qkv = qkv.unwrap();
        let (q, kv) = (qkv.narrow(0, 0, 48), qkv.narrow(0, 48, 96));
        timm.insert(format!("attn_pool.q.{end}"), q.contiguous());
        timm.insert(format!("attn_pool.kv.{end}"), kv.contiguous());
    }
    same_bits(&folder, "expected-40x24", &timm, "timm SigLIP", &WITHOUT_PROJ);
}
