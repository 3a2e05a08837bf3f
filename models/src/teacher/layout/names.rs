//! What each layout calls the tower's tensors.
//!
//! Order matters: a layout comes before those whose marks its files have too.

use super::Found;

/// The kinds of towers, which differ in their defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    /// A norm before the first block, no patch bias.
    Clip,
    /// DINO and supervised ViTs.
    Vit,
    /// LayerScale; with registers or without.
    Dinov2,
    /// LayerScale, registers, rotary positions.
    Dinov3,
    /// No CLS token; a learned query pools the patches.
    Siglip,
}

/// How one layout names things.
///
/// A module's name and `weight` or `bias` are joined by a dot, unless the name ends with an underscore. Modules are listed as
/// (tower's name, file's names); several names are stacked along the rows.
pub(super) struct Names {
    pub(super) title: &'static str,
    /// `None`: told by the tensors.
    pub(super) family: Option<Family>,
    /// Whether `config.json` is one that transformers wrote.
    pub(super) hugging_face: bool,
    /// The CLS token, or the query of a tower without one.
    pub(super) anchor: &'static str,
    /// Whether a CLS token and the position table come without their leading axes of size 1.
    pub(super) flat: bool,
    pub(super) pos_embed: Option<&'static str>,
    pub(super) registers: Option<&'static str>,
    /// Modules outside the blocks.
    pub(super) modules: &'static [(&'static str, &'static str)],
    /// What may come before a block's number.
    pub(super) blocks: &'static [&'static str],
    /// Modules of a block.
    pub(super) block: &'static [(&'static str, &'static [&'static str])],
    pub(super) qkv_bias: QkvBias,
    /// The pooling query's projection and that of the keys and values, where they are apart.
    pub(super) pool_qkv: Option<[&'static str; 2]>,
    /// A gated MLP's names, where they differ from those of a plain one: gate and up, or both stacked; and down.
    pub(super) gated: Option<(&'static [&'static str], &'static str)>,
    /// The scales of the attention's and the MLP's branch.
    pub(super) layer_scale: Option<[&'static str; 2]>,
    pub(super) projection: ProjectionName,
    /// Names, or prefixes of names when they end with a dot, that belong to other uses of the tower.
    pub(super) ignored: &'static [&'static str],
    /// What, besides the anchor and the blocks, shows that a file has this layout.
    pub(super) marks: fn(&Found) -> bool,
}

/// Where the bias of q, k and v is.
#[derive(Debug, Clone, Copy)]
pub(super) enum QkvBias {
    /// Beside the weights, in the same number of parts.
    AsWeights,
    /// Likewise, but the keys may have none.
    KeysOptional,
    /// Beside the weights, to be multiplied by the tensor of this name where the file has it.
    Masked(&'static str),
    /// One tensor for the queries, none for the keys, one for the values; or none at all.
    QueriesValues(&'static str, &'static str),
}

/// Where the visual projection is.
#[derive(Debug, Clone, Copy)]
pub(super) enum ProjectionName {
    /// The family has none.
    Absent,
    /// A matrix `[P, D]` in the tower, of this module.
    Module(&'static str),
    /// A matrix `[D, P]` in the tower.
    Transposed(&'static str),
    /// A matrix `[P, D]` beside the tower, under what precedes the layout's last prefix.
    Beside(&'static str),
}

/// In front of the tower there may be any number of these, of [`SAVED`], [`AVERAGES`] and [`OTHERS`].
pub(super) const PREFIXES: &[&str] = &[
    "_orig_mod",
    "module",
    "backbone",
    "encoder",
    "net",
    "network",
    "image_encoder",
    "img_encoder",
    "vision_encoder",
    "visual_encoder",
    "vision",
    "vision_model",
    "vision_tower",
    "base_model",
    "base_encoder",
    "encoder_q",
    "vit",
    "clip",
    "clip_model",
    "dinov2",
    "dinov2_with_registers",
    "dinov3_vit",
    "visual",
    "trunk",
];

/// Keys under which training code saves a network. What is saved beside it does not belong to it.
pub(super) const SAVED: &[&str] =
    &["model", "model_state", "model_state_dict", "state_dict", "weights", "params", "checkpoint"];

/// Likewise, of the network that is evaluated: DINO's teacher, averages of weights. It is taken where there is another.
pub(super) const AVERAGES: &[&str] = &[
    "teacher",
    "teacher_model",
    "teacher_backbone",
    "ema",
    "ema_model",
    "model_ema",
    "net_ema",
    "params_ema",
    "ema_state_dict",
    "state_dict_ema",
    "model_state_dict_ema",
    "averaged_model",
    "avg_model",
    "swa_model",
    "shadow",
    "target_encoder",
];

/// Likewise, of the one that is not: DINO's student, the slow copy of contrastive training.
pub(super) const OTHERS: &[&str] = &["student", "student_model", "student_backbone", "momentum_encoder", "encoder_k"];

/// What training code leaves at any level, beside a network or among its tensors: none of it is a part of the network.
pub(super) const TRAINING: &[&str] = &[
    "optimizer.",
    "optimizers.",
    "optimizer_state.",
    "optimizer_states.",
    "optimizer_state_dict.",
    "lr_scheduler.",
    "lr_schedulers.",
    "scheduler.",
    "scaler.",
    "amp_scaler.",
    "grad_scaler.",
    "loss_scaler.",
    "fp16_scaler.",
    "native_amp_scaling_state.",
    "callbacks.",
    "loops.",
    "hyper_parameters.",
    "config.",
    "args.",
    "meta.",
    "criterion.",
    "metrics.",
    "train_metrics.",
    "val_metrics.",
    "test_metrics.",
    "dino_loss.",
    "ibot_patch_loss.",
    "rng_state",
    "cuda_rng_state",
    "torch_rng_state",
    "epoch",
    "step",
    "global_step",
    "iter",
    "iteration",
    "n_averaged",
    "num_updates",
    "decay",
    "initted",
    "loss",
    "best_acc",
    "best_metric",
];

/// Parts of a file that lie beside the tower, in names that do not begin with its prefix: text towers and heads.
pub(super) const BESIDE: &[&str] = &[
    "text_model.",
    "text_projection",
    "text_projection.",
    "text.",
    "transformer.",
    "token_embedding.",
    "positional_embedding",
    "ln_final.",
    "attn_mask",
    "logit_scale",
    "logit_bias",
    "input_resolution",
    "context_length",
    "vocab_size",
    "visual_projection.",
    "head.",
    "classifier.",
    "decoder.",
    "dino_head.",
    "ibot_head.",
];

pub(super) const LAYOUTS: &[&Names] = &[
    &HF_CLIP,
    &HF_SIGLIP,
    &HF_VIT,
    &HF_VIT_5,
    &HF_DINOV2,
    &HF_DINOV2_5,
    &HF_DINOV3,
    &OPENAI_CLIP,
    &DINOV3,
    &TIMM_DINOV3,
    &TIMM_SIGLIP,
    &DINOV2,
    &MAE,
    &TIMM,
];

const HF_CLIP: Names = Names {
    title: "Hugging Face CLIP",
    family: Some(Family::Clip),
    hugging_face: true,
    anchor: "embeddings.class_embedding",
    flat: true,
    pos_embed: Some("embeddings.position_embedding.weight"),
    registers: None,
    modules: &[
        ("patch_embed.proj", "embeddings.patch_embedding"),
        // The missing letter is in the published files.
        ("norm_pre", "pre_layrnorm"),
        ("norm", "post_layernorm"),
    ],
    blocks: &["encoder.layers."],
    block: &[
        ("norm1", &["layer_norm1"]),
        ("attn.qkv", &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
        ("attn.proj", &["self_attn.out_proj"]),
        ("norm2", &["layer_norm2"]),
        ("mlp.fc1", &["mlp.fc1"]),
        ("mlp.fc2", &["mlp.fc2"]),
    ],
    qkv_bias: QkvBias::AsWeights,
    pool_qkv: None,
    gated: None,
    layer_scale: None,
    projection: ProjectionName::Beside("visual_projection"),
    ignored: &["text_model.", "text_projection.", "visual_projection.", "logit_scale", "embeddings.position_ids"],
    marks: |_| true,
};

const HF_SIGLIP: Names = Names {
    title: "Hugging Face SigLIP",
    family: Some(Family::Siglip),
    anchor: "head.probe",
    modules: &[
        ("patch_embed.proj", "embeddings.patch_embedding"),
        ("norm", "post_layernorm"),
        ("pool.attn.qkv", "head.attention.in_proj_"),
        ("pool.attn.proj", "head.attention.out_proj"),
        ("pool.norm", "head.layernorm"),
        ("pool.mlp.fc1", "head.mlp.fc1"),
        ("pool.mlp.fc2", "head.mlp.fc2"),
    ],
    projection: ProjectionName::Absent,
    ignored: &["text_model.", "logit_scale", "logit_bias", "classifier.", "embeddings.position_ids"],
    ..HF_CLIP
};

const HF_VIT: Names = Names {
    title: "Hugging Face ViT",
    family: Some(Family::Vit),
    hugging_face: true,
    anchor: "embeddings.cls_token",
    flat: false,
    pos_embed: Some("embeddings.position_embeddings"),
    registers: None,
    modules: &[("patch_embed.proj", "embeddings.patch_embeddings.projection"), ("norm", "layernorm")],
    blocks: &["encoder.layer."],
    block: &[
        ("norm1", &["layernorm_before"]),
        ("attn.qkv", &["attention.attention.query", "attention.attention.key", "attention.attention.value"]),
        ("attn.proj", &["attention.output.dense"]),
        ("norm2", &["layernorm_after"]),
        ("mlp.fc1", &["intermediate.dense"]),
        ("mlp.fc2", &["output.dense"]),
    ],
    qkv_bias: QkvBias::AsWeights,
    pool_qkv: None,
    gated: None,
    layer_scale: None,
    projection: ProjectionName::Absent,
    ignored: &["pooler.", "classifier.", "embeddings.mask_token"],
    // DINOv2's blocks have the same prefix.
    marks: |found| found.in_a_block("layernorm_before.weight") || !found.in_a_block("norm1.weight"),
};

/// What transformers 5 calls the same tensors in memory, met in files saved from a state dict.
const HF_VIT_5: Names = Names {
    title: "Hugging Face ViT (transformers 5 names)",
    blocks: &["layers."],
    block: &[
        ("norm1", &["layernorm_before"]),
        ("attn.qkv", &["attention.q_proj", "attention.k_proj", "attention.v_proj"]),
        ("attn.proj", &["attention.o_proj"]),
        ("norm2", &["layernorm_after"]),
        ("mlp.fc1", &["mlp.fc1"]),
        ("mlp.fc2", &["mlp.fc2"]),
    ],
    ..HF_VIT
};

const HF_DINOV2: Names = Names {
    title: "Hugging Face DINOv2",
    family: Some(Family::Dinov2),
    registers: Some("embeddings.register_tokens"),
    block: &[
        ("norm1", &["norm1"]),
        ("attn.qkv", &["attention.attention.query", "attention.attention.key", "attention.attention.value"]),
        ("attn.proj", &["attention.output.dense"]),
        ("norm2", &["norm2"]),
        ("mlp.fc1", &["mlp.fc1"]),
        ("mlp.fc2", &["mlp.fc2"]),
    ],
    gated: Some((&["mlp.weights_in"], "mlp.weights_out")),
    layer_scale: Some(["layer_scale1.lambda1", "layer_scale2.lambda1"]),
    marks: |found| !found.in_a_block("attention.q_proj.weight"),
    ..HF_VIT
};

/// What transformers 5 calls the same tensors in memory.
const HF_DINOV2_5: Names = Names {
    title: "Hugging Face DINOv2 (transformers 5 names)",
    block: &[
        ("norm1", &["norm1"]),
        ("attn.qkv", &["attention.q_proj", "attention.k_proj", "attention.v_proj"]),
        ("attn.proj", &["attention.o_proj"]),
        ("norm2", &["norm2"]),
        ("mlp.fc1", &["mlp.fc1"]),
        ("mlp.fc2", &["mlp.fc2"]),
    ],
    gated: Some((&["mlp.gate_proj", "mlp.up_proj"], "mlp.down_proj")),
    marks: |_| true,
    ..HF_DINOV2
};

const HF_DINOV3: Names = Names {
    title: "Hugging Face DINOv3",
    family: Some(Family::Dinov3),
    pos_embed: None,
    modules: &[("patch_embed.proj", "embeddings.patch_embeddings"), ("norm", "norm")],
    // transformers 5 puts `model.` in front in memory.
    blocks: &["layer.", "model.layer."],
    block: &[
        ("norm1", &["norm1"]),
        ("attn.qkv", &["attention.q_proj", "attention.k_proj", "attention.v_proj"]),
        ("attn.proj", &["attention.o_proj"]),
        ("norm2", &["norm2"]),
        ("mlp.fc1", &["mlp.up_proj"]),
        ("mlp.fc2", &["mlp.down_proj"]),
    ],
    qkv_bias: QkvBias::KeysOptional,
    gated: Some((&["mlp.gate_proj", "mlp.up_proj"], "mlp.down_proj")),
    ignored: &["embeddings.mask_token", "classifier.", "rope_embeddings.inv_freq"],
    ..HF_DINOV2_5
};

/// OpenAI's own names, which open_clip keeps.
const OPENAI_CLIP: Names = Names {
    title: "OpenAI CLIP",
    family: Some(Family::Clip),
    hugging_face: false,
    anchor: "class_embedding",
    flat: true,
    pos_embed: Some("positional_embedding"),
    registers: None,
    modules: &[("patch_embed.proj", "conv1"), ("norm_pre", "ln_pre"), ("norm", "ln_post")],
    blocks: &["transformer.resblocks."],
    block: &[
        ("norm1", &["ln_1"]),
        ("attn.qkv", &["attn.in_proj_"]),
        ("attn.proj", &["attn.out_proj"]),
        ("norm2", &["ln_2"]),
        ("mlp.fc1", &["mlp.c_fc"]),
        ("mlp.fc2", &["mlp.c_proj"]),
    ],
    qkv_bias: QkvBias::AsWeights,
    pool_qkv: None,
    gated: None,
    layer_scale: Some(["ls_1.gamma", "ls_2.gamma"]),
    projection: ProjectionName::Transposed("proj"),
    ignored: &["proj"],
    marks: |_| true,
};

/// timm's names, which are those of the original DINO and, without registers, of the original DINOv2.
const TIMM: Names = Names {
    title: "timm",
    family: None,
    hugging_face: false,
    anchor: "cls_token",
    flat: false,
    pos_embed: Some("pos_embed"),
    registers: Some("reg_token"),
    modules: &[("patch_embed.proj", "patch_embed.proj"), ("norm_pre", "norm_pre"), ("norm", "norm")],
    blocks: &["blocks."],
    block: &[
        ("norm1", &["norm1"]),
        ("attn.qkv", &["attn.qkv"]),
        ("attn.proj", &["attn.proj"]),
        ("norm2", &["norm2"]),
        ("mlp.fc1", &["mlp.fc1"]),
        ("mlp.fc2", &["mlp.fc2"]),
    ],
    qkv_bias: QkvBias::AsWeights,
    pool_qkv: None,
    // Packed, under the names of a plain MLP; told by the shapes.
    gated: None,
    layer_scale: Some(["ls1.gamma", "ls2.gamma"]),
    projection: ProjectionName::Module("head"),
    ignored: &["head.", "dino_head.", "ibot_head."],
    marks: |_| true,
};

/// A masked autoencoder with its decoder, or a student of this project; without either it looks like any other ViT.
pub(super) const MAE: Names = Names {
    title: "MAE",
    family: Some(Family::Vit),
    registers: None,
    projection: ProjectionName::Absent,
    ignored: &[
        "mask_token",
        "decoder_embed.",
        "decoder_pos_embed",
        "decoder_blocks.",
        "decoder_norm.",
        "decoder_pred.",
        "mimic_heads.",
        "mimic_cls_heads.",
        "mimic_targets.",
        "mimic_cls_targets.",
        "head.",
    ],
    marks: |found| found.has("decoder_embed.weight") && found.has("decoder_pos_embed"),
    ..TIMM
};

/// DINOv2's own files, where they differ from timm's.
const DINOV2: Names = Names {
    title: "original DINOv2",
    family: Some(Family::Dinov2),
    registers: Some("register_tokens"),
    gated: Some((&["mlp.w12"], "mlp.w3")),
    projection: ProjectionName::Absent,
    ignored: &["mask_token", "head.", "dino_head.", "ibot_head."],
    marks: |found| found.has("register_tokens") || (found.has("mask_token") && found.in_a_block("ls1.gamma")),
    ..TIMM
};

const DINOV3: Names = Names {
    title: "original DINOv3",
    family: Some(Family::Dinov3),
    pos_embed: None,
    registers: Some("storage_tokens"),
    qkv_bias: QkvBias::Masked("attn.qkv.bias_mask"),
    gated: Some((&["mlp.w1", "mlp.w2"], "mlp.w3")),
    projection: ProjectionName::Absent,
    // The second norm is for the small crops of pretraining.
    ignored: &["mask_token", "rope_embed.periods", "local_cls_norm.", "head.", "dino_head.", "ibot_head."],
    marks: |found| found.has("storage_tokens") || found.has("rope_embed.periods"),
    ..TIMM
};

const TIMM_DINOV3: Names = Names {
    title: "timm DINOv3",
    family: Some(Family::Dinov3),
    pos_embed: None,
    qkv_bias: QkvBias::QueriesValues("attn.q_bias", "attn.v_bias"),
    gated: Some((&["mlp.fc1_g", "mlp.fc1_x"], "mlp.fc2")),
    layer_scale: Some(["gamma_1", "gamma_2"]),
    projection: ProjectionName::Absent,
    marks: |found| found.has("reg_token") && !found.has("pos_embed") && found.in_a_block("gamma_1"),
    ..TIMM
};

const TIMM_SIGLIP: Names = Names {
    title: "timm SigLIP",
    family: Some(Family::Siglip),
    anchor: "attn_pool.latent",
    registers: None,
    modules: &[
        ("patch_embed.proj", "patch_embed.proj"),
        ("norm", "norm"),
        ("pool.attn.proj", "attn_pool.proj"),
        ("pool.norm", "attn_pool.norm"),
        ("pool.mlp.fc1", "attn_pool.mlp.fc1"),
        ("pool.mlp.fc2", "attn_pool.mlp.fc2"),
    ],
    pool_qkv: Some(["attn_pool.q", "attn_pool.kv"]),
    layer_scale: None,
    projection: ProjectionName::Absent,
    ..TIMM
};
