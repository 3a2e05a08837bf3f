//! An estimate of what a run holds in the device's memory.

use std::collections::BTreeMap;

use models::encoder::EncoderConfig;
use models::mimic::HeadKind;
use models::precision::Precision;

use crate::recipe::finetune::FinetuneRecipe;
use crate::recipe::{MimicTokens, Mimicked, Recipe};

/// Bytes of a trained parameter: its value, its gradient, and AdamW's two moments, all f32.
const BYTES_PER_PARAM: f64 = 16.0;
/// Bytes of a parameter that is not trained, f32.
const BYTES_PER_UNTRAINED: f64 = 4.0;
/// Bytes of a trained parameter's moving average, f32.
const BYTES_PER_AVERAGE: f64 = 4.0;

/// Bytes that the MLP heads of a recipe keep for the backward pass of one image: the hidden layer before the norm and before GELU in f32, and
/// after GELU as the input of a matmul. Linear heads keep none of their own.
fn head_bytes(recipe: &Recipe, patches: i64) -> f64 {
    let of_teacher = |id: &String| {
        let Mimicked { share, head, .. } = recipe.mimic_of(id);
        let HeadKind::Mlp { hidden } = head else { return 0.0 };
        let tokens = [(recipe.loss.w_mimic, patches), (recipe.loss.w_cls, 1)];
        let tokens: i64 = tokens.iter().filter(|(weight, _)| share * weight > 0.0).map(|(_, tokens)| tokens).sum();
        (tokens * hidden) as f64 * (8.0 + recipe.run.precision.bytes() as f64)
    };
    recipe.mimic.teachers.iter().map(of_teacher).sum()
}

/// Transformer blocks of one width, as the backward pass sees them.
#[derive(Debug, Clone, Copy)]
struct Stack {
    tokens: i64,
    dim: i64,
    depth: i64,
    /// Hidden width of an MLP as a multiple of `dim`.
    mlp_ratio: f64,
}

impl Stack {
    /// Bytes that one block keeps for the backward pass of one image.
    ///
    /// Per token and channel these are the inputs of both norms in f32, and in the precision of matmuls the outputs of both norms, q, k, v,
    /// the attention's output, and twice the MLP's hidden layer.
    fn block_bytes(&self, precision: Precision) -> f64 {
        let size = precision.bytes() as f64;
        (self.tokens * self.dim) as f64 * (8.0 + size * (6.0 + 2.0 * self.mlp_ratio))
    }

    /// Bytes of one block's input for one image, f32.
    fn input_bytes(&self) -> f64 {
        4.0 * (self.tokens * self.dim) as f64
    }
}

/// Bytes that a forward pass of `stacks` keeps for the backward pass of one image. With checkpointing each block keeps its input, and the
/// activations of the largest block are counted once, for when it is recomputed.
fn activation_bytes(stacks: &[Stack], precision: Precision, grad_checkpointing: bool) -> f64 {
    let of_blocks = |bytes: &dyn Fn(&Stack) -> f64| -> f64 { stacks.iter().map(|s| s.depth as f64 * bytes(s)).sum() };
    match grad_checkpointing {
        false => of_blocks(&|s| s.block_bytes(precision)),
        true => {
            let largest = stacks.iter().map(|s| s.block_bytes(precision)).fold(0.0, f64::max);
            of_blocks(&Stack::input_bytes) + largest
        }
    }
}

fn memory(trained: f64, ema: bool, activations: f64) -> BTreeMap<String, f64> {
    let mut memory =
        BTreeMap::from([("params".to_owned(), BYTES_PER_PARAM * trained), ("activations".to_owned(), activations)]);
    if ema {
        memory.insert("ema".to_owned(), BYTES_PER_AVERAGE * trained);
    }
    memory
}

/// Bytes of a pretraining with `trained` parameters, and `untrained` ones of a decoder that no loss needs (allocated, never run).
pub(super) fn of_pretraining(recipe: &Recipe, trained: f64, untrained: f64) -> BTreeMap<String, f64> {
    let config = recipe.mae_config();
    let mut stacks = encoder(&config.encoder, recipe.len_keep());
    if untrained == 0.0 {
        let decoder = &config.decoder;
        stacks.push(Stack {
            tokens: 1 + config.num_patches(),
            dim: decoder.embed_dim,
            depth: decoder.depth,
            mlp_ratio: decoder.mlp_ratio as f64,
        });
    }
    let mimicking = match recipe.mimic.tokens {
        MimicTokens::Visible | MimicTokens::DecoderVisible => recipe.len_keep(),
        MimicTokens::DecoderRemoved => config.num_patches() - recipe.len_keep(),
        MimicTokens::DecoderAll => config.num_patches(),
    };
    let of_image =
        activation_bytes(&stacks, recipe.run.precision, recipe.run.grad_checkpointing) + head_bytes(recipe, mimicking);
    let mut memory = memory(trained, recipe.optim.ema_decay.is_some(), recipe.optim.batch_size as f64 * of_image);
    *memory.entry("params".to_owned()).or_default() += BYTES_PER_UNTRAINED * untrained;
    memory
}

/// Bytes of a fine-tuning of `backbone` with `trained` parameters.
pub(super) fn of_finetuning(recipe: &FinetuneRecipe, backbone: &EncoderConfig, trained: f64) -> BTreeMap<String, f64> {
    let stacks = encoder(backbone, backbone.num_patches());
    let of_image = activation_bytes(&stacks, recipe.run.precision, recipe.run.grad_checkpointing);
    memory(trained, recipe.optim.ema_decay.is_some(), recipe.optim.batch_size as f64 * of_image)
}

/// The blocks of an encoder that sees `keep` patches.
fn encoder(config: &EncoderConfig, keep: i64) -> Vec<Stack> {
    match config {
        EncoderConfig::Vit(vit) => {
            let tokens = vit.prefix() + keep;
            vec![Stack { tokens, dim: vit.embed_dim, depth: vit.depth, mlp_ratio: vit.mlp_ratio() }]
        }
        EncoderConfig::Mcmae(mcmae) => [16, 4, 1]
            .into_iter()
            .enumerate()
            .map(|(stage, cells)| Stack {
                tokens: cells * keep,
                dim: mcmae.embed_dims[stage],
                depth: mcmae.depths[stage],
                mlp_ratio: mcmae.mlp_ratios[stage] as f64,
            })
            .collect(),
    }
}
