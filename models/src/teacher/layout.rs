//! The layouts in which towers are published, as tables from the tower's tensor names (timm's) to the file's.
//!
//! Errors speak the file's names: the table is applied to what the tower needs, and the result compared with what the file has.

use std::collections::BTreeMap;

use tch::Tensor;

use super::tower::{TensorSpec, TowerConfig};
use crate::error::{Error, Mismatch, Misshaped, Result};
use crate::weights::Weights;

/// The two kinds of towers, which differ in their defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    /// A norm before the first block, no patch bias.
    Clip,
    /// DINO and supervised ViTs.
    Vit,
}

/// How one layout names things. Modules are listed as (tower's name, file's names); several names are stacked along the rows.
struct Names {
    title: &'static str,
    /// Prefixes under which the tower may lie.
    prefixes: &'static [&'static str],
    cls_token: &'static str,
    pos_embed: &'static str,
    /// Modules outside the blocks.
    modules: &'static [(&'static str, &'static str)],
    /// What comes before a block's number.
    blocks: &'static str,
    /// Modules of a block.
    block: &'static [(&'static str, &'static [&'static str])],
    /// Names, or prefixes of names when they end with a dot, that belong to other parts of the model.
    ignored: &'static [&'static str],
}

const HF_CLIP: Names = Names {
    title: "Hugging Face CLIP",
    prefixes: &["vision_model.", ""],
    cls_token: "embeddings.class_embedding",
    pos_embed: "embeddings.position_embedding.weight",
    modules: &[
        ("patch_embed.proj", "embeddings.patch_embedding"),
        // The missing letter is in the published files.
        ("norm_pre", "pre_layrnorm"),
        ("norm", "post_layernorm"),
    ],
    blocks: "encoder.layers.",
    block: &[
        ("norm1", &["layer_norm1"]),
        (
            "attn.qkv",
            &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        ),
        ("attn.proj", &["self_attn.out_proj"]),
        ("norm2", &["layer_norm2"]),
        ("mlp.fc1", &["mlp.fc1"]),
        ("mlp.fc2", &["mlp.fc2"]),
    ],
    ignored: &[
        "text_model.",
        "text_projection.",
        "visual_projection.",
        "logit_scale",
        "embeddings.position_ids",
    ],
};

const HF_VIT: Names = Names {
    title: "Hugging Face ViT",
    prefixes: &["", "vit."],
    cls_token: "embeddings.cls_token",
    pos_embed: "embeddings.position_embeddings",
    modules: &[
        ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
        ("norm", "layernorm"),
    ],
    blocks: "encoder.layer.",
    block: &[
        ("norm1", &["layernorm_before"]),
        (
            "attn.qkv",
            &[
                "attention.attention.query",
                "attention.attention.key",
                "attention.attention.value",
            ],
        ),
        ("attn.proj", &["attention.output.dense"]),
        ("norm2", &["layernorm_after"]),
        ("mlp.fc1", &["intermediate.dense"]),
        ("mlp.fc2", &["output.dense"]),
    ],
    ignored: &["pooler.", "classifier.", "embeddings.mask_token"],
};

/// What transformers 5 calls the same tensors in memory, met in files saved from a state dict.
const HF_VIT_5: Names = Names {
    title: "Hugging Face ViT (transformers 5 names)",
    blocks: "layers.",
    block: &[
        ("norm1", &["layernorm_before"]),
        (
            "attn.qkv",
            &["attention.q_proj", "attention.k_proj", "attention.v_proj"],
        ),
        ("attn.proj", &["attention.o_proj"]),
        ("norm2", &["layernorm_after"]),
        ("mlp.fc1", &["mlp.fc1"]),
        ("mlp.fc2", &["mlp.fc2"]),
    ],
    ..HF_VIT
};

const TIMM: Names = Names {
    title: "timm",
    prefixes: &["", "module.", "backbone.", "module.backbone."],
    cls_token: "cls_token",
    pos_embed: "pos_embed",
    modules: &[
        ("patch_embed.proj", "patch_embed.proj"),
        ("norm_pre", "norm_pre"),
        ("norm", "norm"),
    ],
    blocks: "blocks.",
    block: &[
        ("norm1", &["norm1"]),
        ("attn.qkv", &["attn.qkv"]),
        ("attn.proj", &["attn.proj"]),
        ("norm2", &["norm2"]),
        ("mlp.fc1", &["mlp.fc1"]),
        ("mlp.fc2", &["mlp.fc2"]),
    ],
    ignored: &["head."],
};

/// A layout as found in one file.
pub(super) struct Layout {
    names: &'static Names,
    prefix: &'static str,
    /// The kind of tower in the file.
    pub(super) family: Family,
    /// Whether the patch projection has a bias.
    pub(super) patch_bias: bool,
}

/// Sizes as the shapes in a file tell them; what cannot be read off is `None`.
#[derive(Debug, Default)]
pub(super) struct Sizes {
    pub(super) width: Option<i64>,
    pub(super) depth: Option<i64>,
    pub(super) mlp_dim: Option<i64>,
    pub(super) patch_size: Option<i64>,
    /// Positions, the CLS token's included.
    pub(super) positions: Option<i64>,
}

impl Layout {
    /// Finds the layout whose CLS token and blocks the file has.
    pub(super) fn recognise(weights: &Weights) -> Result<Layout> {
        for names in [&HF_CLIP, &HF_VIT, &HF_VIT_5, &TIMM] {
            for prefix in names.prefixes {
                let cls_token = weights.get(&format!("{prefix}{}", names.cls_token));
                let blocks = format!("{prefix}{}", names.blocks);
                if cls_token.is_none() || !weights.names().any(|name| name.starts_with(&blocks)) {
                    continue;
                }
                let has = |module: &str, suffix: &str| {
                    let mut modules = names
                        .modules
                        .iter()
                        .filter(|(internal, _)| *internal == module);
                    modules
                        .any(|(_, file)| weights.get(&format!("{prefix}{file}.{suffix}")).is_some())
                };
                // Either half of the norm will do: that the other is missing is then reported as such.
                let norm_pre = names.title == HF_CLIP.title
                    || has("norm_pre", "weight")
                    || has("norm_pre", "bias");
                // The original and all Hugging Face layouts fix the bias; timm's CLIP has none and its ViTs have one.
                let patch_bias = has("patch_embed.proj", "bias") || !norm_pre;
                let family = if norm_pre { Family::Clip } else { Family::Vit };
                return Ok(Layout {
                    names,
                    prefix,
                    family,
                    patch_bias,
                });
            }
        }
        Err(Error::UnknownLayout {
            path: weights.path().to_path_buf(),
            count: weights.len(),
            first: weights.names().take(4).map(str::to_owned).collect(),
        })
    }

    /// The layout's name, for people.
    pub(super) fn title(&self) -> &'static str {
        self.names.title
    }

    /// Whether the file is in one of Hugging Face's layouts, whose facts are in `config.json`.
    pub(super) fn is_hugging_face(&self) -> bool {
        self.names.title != TIMM.title
    }

    /// The file's name of the position embeddings.
    pub(super) fn pos_embed(&self) -> String {
        format!("{}{}", self.prefix, self.names.pos_embed)
    }

    /// Reads the sizes off the shapes.
    pub(super) fn sizes(&self, weights: &Weights) -> Sizes {
        let shape = |internal: &str| {
            let sources = self.sources(internal);
            sources
                .first()
                .and_then(|name| weights.get(name))
                .map(Tensor::size)
        };
        let patch = shape("patch_embed.proj.weight");
        let fc1 = shape("blocks.0.mlp.fc1.weight");
        let pos_embed = shape("pos_embed");
        let blocks = format!("{}{}", self.prefix, self.names.blocks);
        let number = |name: &str| {
            name.strip_prefix(&blocks)?
                .split_once('.')?
                .0
                .parse::<i64>()
                .ok()
        };
        // A file cannot hold more blocks than tensors: larger numbers are damage, and shall not become a long list.
        let depth = weights
            .names()
            .filter_map(number)
            .filter(|&n| n < weights.len() as i64)
            .max();
        Sizes {
            width: shape("cls_token").and_then(|shape| shape.last().copied()),
            depth: depth.map(|last| last + 1),
            mlp_dim: fc1.and_then(|shape| shape.first().copied()),
            patch_size: patch.and_then(|shape| {
                if shape.len() == 4 {
                    Some(shape[2])
                } else {
                    None
                }
            }),
            positions: pos_embed.and_then(|shape| shape.len().checked_sub(2).map(|i| shape[i])),
        }
    }

    /// The tensors of the tower `config`, f32, under the tower's names.
    ///
    /// # Errors
    /// [`Error::WeightsMismatch`] with every tensor that is missing, misshaped or of no use, under the file's names.
    pub(super) fn convert(
        &self,
        weights: &Weights,
        config: &TowerConfig,
    ) -> Result<BTreeMap<String, Tensor>> {
        let specs = config.tensors();
        let mut expected = BTreeMap::new();
        for TensorSpec { name, shape } in &specs {
            let sources = self.sources(name);
            let mut shape = shape.clone();
            // CLIP's class embedding and position table come without the axes of size 1.
            if self.names.title == HF_CLIP.title && (name == "cls_token" || name == "pos_embed") {
                shape = if name == "cls_token" {
                    vec![shape[2]]
                } else {
                    shape[1..].to_vec()
                };
            }
            shape[0] /= sources.len() as i64;
            expected.extend(sources.into_iter().map(|source| (source, shape.clone())));
        }
        weights.require(&expected, |name| self.ignores(name))?;

        let mut tensors = BTreeMap::new();
        for TensorSpec { name, shape } in specs {
            let sources = self.sources(&name);
            let parts: Vec<Tensor> = sources
                .iter()
                .filter_map(|source| weights.get(source))
                .map(Tensor::shallow_clone)
                .collect();
            let tensor = if parts.len() == 1 {
                parts[0].shallow_clone()
            } else {
                Tensor::cat(&parts, 0)
            };
            tensors.insert(name, tensor.to_kind(tch::Kind::Float).reshape(&shape));
        }
        Ok(tensors)
    }

    /// The file's names for the tower's tensor `internal`: one, or the parts to stack.
    fn sources(&self, internal: &str) -> Vec<String> {
        let prefix = self.prefix;
        match internal {
            "cls_token" => return vec![format!("{prefix}{}", self.names.cls_token)],
            "pos_embed" => return vec![self.pos_embed()],
            _ => {}
        }
        let (module, suffix) = internal
            .rsplit_once('.')
            .expect("the tower's names are module.weight or module.bias");
        if let Some((number, module)) = module
            .strip_prefix("blocks.")
            .and_then(|rest| rest.split_once('.'))
        {
            let (_, files) = self
                .names
                .block
                .iter()
                .find(|(name, _)| *name == module)
                .expect("every layout lists every module");
            let blocks = self.names.blocks;
            return files
                .iter()
                .map(|file| format!("{prefix}{blocks}{number}.{file}.{suffix}"))
                .collect();
        }
        let (_, file) = self
            .names
            .modules
            .iter()
            .find(|(name, _)| *name == module)
            .expect("every layout lists every module");
        vec![format!("{prefix}{file}.{suffix}")]
    }

    /// Whether `name` is a known part of such files that the tower does not use.
    fn ignores(&self, name: &str) -> bool {
        // A head may lie beside the backbone (`module.head.`) or, without prefixes, at the top.
        let levels = [0]
            .into_iter()
            .chain(self.prefix.match_indices('.').map(|(i, _)| i + 1));
        let mut bare = levels.filter_map(|level| name.strip_prefix(&self.prefix[..level]));
        bare.any(|bare| {
            let listed = |pattern: &&str| {
                if pattern.ends_with('.') {
                    bare.starts_with(*pattern)
                } else {
                    bare == *pattern
                }
            };
            self.names.ignored.iter().any(listed)
        })
    }

    /// The error for sizes that neither a config nor the shapes tell: tensors that everything else is measured by are broken.
    pub(super) fn broken(&self, weights: &Weights) -> Error {
        let mut mismatch = Mismatch::default();
        let key_tensors = [
            ("cls_token", 1),
            ("pos_embed", 2),
            ("patch_embed.proj.weight", 4),
            ("blocks.0.mlp.fc1.weight", 2),
        ];
        for (internal, axes) in key_tensors {
            for name in self.sources(internal) {
                match weights.get(&name).map(Tensor::size) {
                    None => mismatch.missing.push((name, vec![-1; axes])),
                    Some(found) if found.len() < axes => mismatch.misshaped.push(Misshaped {
                        name,
                        found,
                        expected: vec![-1; axes],
                    }),
                    Some(_) => {}
                }
            }
        }
        Error::WeightsMismatch {
            origin: weights.path().display().to_string(),
            mismatch,
        }
    }
}
