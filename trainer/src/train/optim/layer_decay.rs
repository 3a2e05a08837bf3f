//! Layer-wise learning rates for fine-tuning: the nearer a layer is to the pixels, the slower it learns.

use std::collections::BTreeMap;

use tch::Tensor;

#[cfg(test)]
mod tests;

/// The layer a parameter belongs to in a network of `depth` transformer blocks, from 0 (patches, positions, CLS, registers, the norm
/// before the first block, and the convolution stages of a ConvViT) over `i + 1` for block `i` to `depth + 1` for all that follows.
///
/// The layers are those of MAE's `lr_decay.py` for ViT and of ConvMAE's for ConvViT, whose transformer blocks are called `blocks3`.
fn layer_id(name: &str, depth: usize) -> usize {
    let mut parts = name.split('.');
    match parts.next().unwrap_or_default() {
        "cls_token" | "reg_token" | "pos_embed" | "blocks1" | "blocks2" => 0,
        // CLIP's norm before the first block.
        "norm_pre" => 0,
        first if first.starts_with("patch_embed") => 0,
        "blocks" | "blocks3" => {
            parts.next().and_then(|i| i.parse::<usize>().ok()).map_or(depth + 1, |i| (i + 1).min(depth))
        }
        _ => depth + 1,
    }
}

/// The number of transformer blocks among the parameters of a network.
fn depth<'a>(names: impl IntoIterator<Item = &'a str>) -> usize {
    let block = |name: &str| {
        let rest = name.strip_prefix("blocks.").or_else(|| name.strip_prefix("blocks3."))?;
        rest.split('.').next()?.parse::<usize>().ok()
    };
    names.into_iter().filter_map(block).map(|i| i + 1).max().unwrap_or(0)
}

/// The factor on the learning rate of a layer: `layer_decay` to the power of its distance from the last.
fn lr_scale(layer_id: usize, depth: usize, layer_decay: f64) -> f64 {
    // No network has more layers than fit into an i32.
    layer_decay.powi((depth + 1 - layer_id) as i32)
}

/// Whether weight decay leaves a parameter alone: biases, norms, positions, CLS and registers, as in MAE's fine-tuning.
///
/// Pretraining decays the CLS token: MAE's two programs differ in this.
fn is_exempt(name: &str, param: &Tensor) -> bool {
    param.dim() <= 1 || matches!(name, "cls_token" | "reg_token" | "pos_embed")
}

/// Parameters of one layer that learn at one rate and decay alike.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) params: Vec<(String, Tensor)>,
    /// Whether weight decay applies.
    pub(super) decays: bool,
    /// The layer's learning rate as a factor of the last layer's.
    pub(super) lr_scale: f64,
}

/// Groups the parameters of a network, layer by layer. `layer_decay` 1 is one rate for all.
pub(super) fn groups(params: BTreeMap<String, Tensor>, layer_decay: f64) -> Vec<Group> {
    let depth = depth(params.keys().map(String::as_str));
    let mut groups: BTreeMap<(usize, bool), Vec<(String, Tensor)>> = BTreeMap::new();
    for (name, param) in params {
        let group = (layer_id(&name, depth), is_exempt(&name, &param));
        groups.entry(group).or_default().push((name, param));
    }
    groups
        .into_iter()
        .map(|((layer, exempt), params)| Group {
            params,
            decays: !exempt,
            lr_scale: lr_scale(layer, depth, layer_decay),
        })
        .collect()
}
