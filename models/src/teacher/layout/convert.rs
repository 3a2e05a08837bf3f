//! The tower's tensors from a file's.
//!
//! Errors speak the file's names: what the tower needs is put in the layout's words first, and compared with what the file has.

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

use super::names::{ProjectionName, QkvBias};
use super::{Layout, MEAN_NORM};
use crate::error::{Error, Result};
use crate::vit::{VisionTransformer, VitConfig};
use crate::weights::{Weights, require_finite};

/// How one tensor of the tower is made: the parts stacked along the rows.
struct Recipe {
    parts: Vec<Part>,
    transposed: bool,
}

fn is_finite(tensor: &Tensor) -> bool {
    tensor.isfinite().all().int64_value(&[]) == 1
}

/// One tensor of a file, or zeros where the layout leaves out what the tower has.
struct Part {
    name: Option<String>,
    shape: Vec<i64>,
    /// A tensor of the same shape to multiply by.
    mask: Option<String>,
}

impl Layout {
    /// The tensors of the tower `config`, f32, under the tower's names.
    ///
    /// Positions of CLS are added to the CLS token and LayerScale to the matrices before it, so that all layouts of the same
    /// weights end up with the same tensors.
    ///
    /// # Errors
    /// [`Error::WeightsMismatch`] with every tensor that is missing, misshaped or of no use, under the file's names.
    pub(in crate::teacher) fn convert(
        &self,
        weights: &Weights,
        config: &VitConfig,
    ) -> Result<BTreeMap<String, Tensor>> {
        let mut expected = BTreeMap::new();
        let mut recipes = Vec::new();
        for (name, shape) in VisionTransformer::shapes(config)? {
            let recipe = self.recipe(weights, &name, &shape);
            for part in &recipe.parts {
                let names = part.name.iter().chain(&part.mask);
                expected.extend(names.map(|name| (name.clone(), part.shape.clone())));
            }
            recipes.push((name, shape, recipe));
        }
        let scales = self.scales(config);
        for (_, scale) in &scales {
            expected.insert(scale.clone(), vec![config.embed_dim]);
        }
        // transformers writes the registers of a tower without any as an empty tensor.
        let empty = |name: &str| weights.get(name).is_some_and(|t| t.numel() == 0);
        // Integers and booleans are buffers: positions, masks, counters.
        let buffer = |name: &str| weights.get(name).is_some_and(|t| !t.is_floating_point());
        weights.require(&expected, |name| self.ignores(name) || empty(name) || buffer(name))?;

        let get = |name: &str| {
            let tensor = weights.get(name).expect("every name was just required");
            tensor.to_kind(Kind::Float)
        };
        let mut tensors = BTreeMap::new();
        for (name, shape, recipe) in recipes {
            let parts = recipe.parts.iter().map(|part| {
                let tensor = match &part.name {
                    Some(name) => get(name),
                    None => Tensor::zeros(&part.shape, (Kind::Float, Device::Cpu)),
                };
                match &part.mask {
                    Some(mask) => tensor * get(mask),
                    None => tensor,
                }
            });
            let mut parts: Vec<Tensor> = parts.collect();
            let mut tensor = if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(&parts, 0) };
            if recipe.transposed {
                tensor = tensor.tr().contiguous();
            }
            if name == "pos_embed" && self.cls_position {
                tensor = tensor.reshape([1, -1, config.embed_dim]);
                let rest = tensor.size()[1] - 1;
                let cls = tensor.narrow(1, 0, 1);
                tensor = tensor.narrow(1, 1, rest).contiguous();
                // CLS comes before the table in the order of names.
                if let Some(token) = tensors.get_mut("cls_token") {
                    *token = &*token + cls;
                }
            }
            tensors.insert(name, tensor.reshape(&shape));
        }
        for (linear, scale) in &scales {
            let scale = get(scale);
            if let Some(weight) = tensors.get_mut(&format!("{linear}.weight")) {
                *weight = &*weight * scale.unsqueeze(1);
            }
            if let Some(bias) = tensors.get_mut(&format!("{linear}.bias")) {
                *bias = &*bias * scale;
            }
        }
        self.check_values(weights, &tensors, config)?;
        // The file's tensors, since their names are what a user can look for.
        let read: Vec<(&str, Tensor)> = expected.keys().map(|n| (n.as_str(), get(n))).collect();
        require_finite(weights.path(), read.iter().map(|(name, tensor)| (*name, tensor)))?;
        Ok(tensors)
    }

    /// The linear layers that LayerScale scales, with the file's names of the scales.
    fn scales(&self, config: &VitConfig) -> Vec<(String, String)> {
        let Some([attn, mlp]) = self.names.layer_scale.filter(|_| config.layer_scale) else {
            return Vec::new();
        };
        let of_block = |i: i64| {
            [("attn.proj", attn), ("mlp.fc2", mlp)]
                .map(|(linear, scale)| (format!("blocks.{i}.{linear}"), format!("{}{i}.{scale}", self.blocks)))
        };
        (0..config.depth).flat_map(of_block).collect()
    }

    fn recipe(&self, weights: &Weights, internal: &str, shape: &[i64]) -> Recipe {
        let mut shape = shape.to_vec();
        match internal {
            "cls_token" if self.names.flat => shape = vec![shape[2]],
            "pos_embed" => {
                shape[1] += i64::from(self.cls_position);
                if self.names.flat {
                    shape.remove(0);
                }
            }
            "head.weight" if matches!(self.names.projection, ProjectionName::Transposed(_)) => {
                shape.reverse();
                return Recipe { parts: vec![self.part(internal, shape)], transposed: true };
            }
            name if name.ends_with(".attn.qkv.bias") && name.starts_with("blocks.") => {
                if let Some(recipe) = self.qkv_bias(weights, name, shape[0]) {
                    return recipe;
                }
            }
            _ => {}
        }
        let sources = self.sources(internal);
        // All parts have the same number of rows, except a pooling query beside stacked keys and values.
        let rows = shape[0];
        let rows_of = |i: usize| match (sources.len(), self.pools_apart(internal)) {
            (2, true) => rows / 3 * (1 + i as i64),
            (n, _) => rows / n as i64,
        };
        let shapes = (0..sources.len()).map(|i| {
            let mut shape = shape.clone();
            shape[0] = rows_of(i);
            shape
        });
        let shapes: Vec<Vec<i64>> = shapes.collect();
        let parts = sources.into_iter().zip(shapes).map(|(name, shape)| Part { name: Some(name), shape, mask: None });
        Recipe { parts: parts.collect(), transposed: false }
    }

    fn part(&self, internal: &str, shape: Vec<i64>) -> Part {
        Part { name: Some(self.file_name(internal)), shape, mask: None }
    }

    /// The bias of q, k and v in layouts where it is not simply beside the weights.
    fn qkv_bias(&self, weights: &Weights, internal: &str, rows: i64) -> Option<Recipe> {
        let block = internal.strip_prefix("blocks.").and_then(|rest| rest.split_once('.'));
        let (number, _) = block.expect("the tower's names of blocks are blocks.N.");
        let in_block = |name: &str| format!("{}{number}.{name}", self.blocks);
        let part = |name: Option<String>| Part { name, shape: vec![rows / 3], mask: None };
        let parts = match self.names.qkv_bias {
            QkvBias::AsWeights => return None,
            QkvBias::KeysOptional => {
                let mut parts: Vec<Part> = self.sources(internal).into_iter().map(|name| part(Some(name))).collect();
                let key = &mut parts[1].name;
                *key = key.take().filter(|name| weights.get(name).is_some());
                parts
            }
            QkvBias::Masked(mask) => {
                let mask = Some(in_block(mask)).filter(|name| weights.get(name).is_some());
                vec![Part { name: Some(self.file_name(internal)), shape: vec![rows], mask }]
            }
            QkvBias::QueriesValues(q, v) => {
                let [q, v] = [q, v].map(in_block);
                let any = weights.get(&q).is_some() || weights.get(&v).is_some();
                vec![part(any.then_some(q)), part(None), part(any.then_some(v))]
            }
        };
        Some(Recipe { parts, transposed: false })
    }

    /// What shapes cannot show: a mask that was never filled, rotary frequencies of another base.
    fn check_values(&self, weights: &Weights, tensors: &BTreeMap<String, Tensor>, config: &VitConfig) -> Result<()> {
        let wrong = |reason: String| Error::ConfigJson { path: weights.path().to_path_buf(), reason };
        if let QkvBias::Masked(mask) = self.names.qkv_bias {
            for i in 0..config.depth {
                let bias = &tensors[&format!("blocks.{i}.attn.qkv.bias")];
                if !is_finite(bias) {
                    return Err(wrong(format!(
                        "the biases of {}{i}.attn.qkv times {mask} are not finite; the file is from a model that was never loaded",
                        self.blocks
                    )));
                }
            }
        }
        let periods = format!("{}rope_embed.periods", self.prefix);
        let (Some(found), Some(expected)) = (weights.get(&periods), config.rotary_periods()) else {
            return Ok(());
        };
        let expected = Tensor::from_slice(&expected);
        if found.size() != expected.size() {
            return Err(wrong(format!(
                "{periods} has the shape {:?}; heads of this tower have {:?} periods",
                found.size(),
                expected.size()
            )));
        }
        let ratio = (found.to_kind(Kind::Double) / expected - 1.0).abs().max();
        // Published files keep them in bf16, which is 0.4 % coarse.
        if ratio.double_value(&[]) < 0.01 {
            return Ok(());
        }
        Err(wrong(format!(
            "{periods} are not those of base {}: say the base as rope_theta in a config.json",
            config.rotary_base().unwrap_or_default()
        )))
    }

    /// Whether the tower's `internal` is the pooling attention's q, k and v, of which the file has q apart.
    fn pools_apart(&self, internal: &str) -> bool {
        internal.starts_with("pool.attn.qkv.") && self.names.pool_qkv.is_some()
    }

    /// The file's names for the tower's tensor `internal`: one, or the parts to stack.
    pub(super) fn sources(&self, internal: &str) -> Vec<String> {
        let prefix = &self.prefix;
        let names = self.names;
        let plain = match internal {
            "cls_token" | "pool.probe" => Some(names.anchor),
            "pos_embed" => names.pos_embed,
            "reg_token" => names.registers,
            _ => None,
        };
        if let Some(name) = plain {
            return vec![format!("{prefix}{name}")];
        }
        let (module, suffix) = internal.rsplit_once('.').expect("the tower's names are module.weight or module.bias");
        let join = |module: &str| {
            if module.ends_with('_') { format!("{module}{suffix}") } else { format!("{module}.{suffix}") }
        };
        if let Some(parts) = names.pool_qkv.filter(|_| self.pools_apart(internal)) {
            return parts.map(|part| format!("{prefix}{}", join(part))).into();
        }
        if module == "head" {
            return vec![match names.projection {
                ProjectionName::Module(name) => format!("{prefix}{}", join(name)),
                ProjectionName::Transposed(name) => format!("{prefix}{name}"),
                ProjectionName::Beside(name) => {
                    let outer = prefix.strip_suffix("vision_model.").unwrap_or(prefix);
                    format!("{outer}{}", join(name))
                }
                ProjectionName::Absent => unreachable!("a tower without projection has no head"),
            }];
        }
        if let Some((number, module)) = module.strip_prefix("blocks.").and_then(|rest| rest.split_once('.')) {
            let of_block = |file: &&str| format!("{}{number}.{}", self.blocks, join(file));
            if let Some((fc1, fc2)) = names.gated.filter(|_| self.gated_mlp) {
                match module {
                    "mlp.fc1" => return fc1.iter().map(of_block).collect(),
                    "mlp.fc2" => return vec![of_block(&fc2)],
                    _ => {}
                }
            }
            let (_, files) =
                names.block.iter().find(|(name, _)| *name == module).expect("every layout lists every module");
            return files.iter().map(of_block).collect();
        }
        if module == "norm" && self.mean_pooled {
            return vec![format!("{prefix}{}", join(MEAN_NORM))];
        }
        let (_, file) =
            names.modules.iter().find(|(name, _)| *name == module).expect("every layout lists every module");
        vec![format!("{prefix}{}", join(file))]
    }
}
