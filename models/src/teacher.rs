//! Frozen vision towers whose features a student mimics, in the file layouts people have.
//!
//! | family | layouts | what only its files have |
//! |---|---|---|
//! | CLIP | Hugging Face, OpenAI and open_clip (`visual.*`, or the vision tower alone), timm | a norm before the first block |
//! | DINO, MAE, supervised ViT | original, Hugging Face (names of transformers 4 and 5), timm | none of the below |
//! | DINOv2 | original, Hugging Face (likewise), timm | LayerScale; registers or none; gated MLP (giant) or not |
//! | DINOv3 ViT | original, Hugging Face, timm | rotary positions, registers, no bias of the keys; gated MLP (S+, H+, 7B) or not |
//! | SigLIP | Hugging Face, timm | no CLS token; a learned query pools the patches |
//!
//! In front of the names there may be what training code puts there, in any order (`module.`, `backbone.`, `model.`, `state_dict.`,
//! `_orig_mod.`, `net.`, ...; `layout/names.rs` lists all), and beside the tower its heads, MAE's decoder, the text tower, optimizers
//! and callbacks. Where a file holds two networks, the teacher or the average of weights is read, which is what training code
//! evaluates; two of one rank are refused ([`Error::SeveralNetworks`]).
//!
//! [`Teacher::load`] recognizes the layout from the tensors' names (`layout.rs`), takes from `config.json`,
//! `open_clip_config.json` and `preprocessor_config.json` what shapes cannot tell (`config.rs`), converts to timm's names, and
//! builds the [`VisionTransformer`] that serves all families. A file must fit exactly; see
//! [`Error::WeightsMismatch`](crate::Error). The same weights in two layouts give the same bits, so what differs between the
//! packages that read them (how positions are interpolated, see [`crate::pos_interpolate`]; the activation of SigLIP) goes by the
//! family here.
//!
//! Towers with patches of 14 pixels see 14 x 14 patches at 196 x 196 pixels.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tch::{Device, Kind, Tensor};
use torch_ext::lay_out_weight;

use crate::error::{Error, Result};
use crate::layers::Activation;
use crate::params::ParamStore;
use crate::precision::Precision;
use crate::vit::{Pooling, VisionTransformer, VitConfig};
use crate::weights::Weights;

mod config;
mod layout;
mod options;

use config::{Config, Resolved};
use layout::Layout;
pub use options::{Assumed, Layer, TeacherOptions, mean_problem, std_problem};

#[cfg(test)]
mod tests;

/// What identifies a teacher's features, besides the pixels.
#[derive(Debug, Clone, PartialEq)]
pub struct TeacherInfo {
    /// Family and sizes, e.g. `clip-vit-w768-d12-h12-m3072-p16`: width, depth, heads, MLP width, patch size; then what else
    /// distinguishes the tower: `-ls` LayerScale, `-glu` gated MLP, `-r4` registers, `-rope100` rotary positions of that base,
    /// `-avg` a mean of patches in place of CLS.
    pub arch: String,
    /// The file layout that was recognized, for people; the same weights in two layouts give the same features.
    pub layout: &'static str,
    /// Side of a square patch, in pixels.
    pub patch_size: u32,
    /// The stage that the features are of.
    pub layer: Layer,
    /// Width K of the features: that of the projection for layer `proj`, else of the residual stream.
    pub width: u32,
    /// Width D of the residual stream.
    pub hidden: u32,
    /// Number of blocks.
    pub depth: u32,
    /// Attention heads of each block.
    pub heads: u32,
    /// The MLP's activation.
    pub activation: Activation,
    /// eps of every LayerNorm, as the files say it. Hugging Face's DINO folders say 1e-12 where the original code has 1e-6; what
    /// is written is what is used.
    pub norm_eps: f64,
    /// Native input side in pixels: the grid of the position embeddings times the patch size. Other sizes interpolate.
    pub input_size: u32,
    /// Mean of each channel (R, G, B) of pixels scaled to 0..1, subtracted.
    pub mean: [f64; 3],
    /// Standard deviation of each channel, divided by.
    pub std: [f64; 3],
    /// SHA-256 of the weights file or sharded set, see [`Weights::sha256`].
    pub weights_sha256: String,
    /// The facts that neither a file nor an option stated.
    pub assumed: Vec<Assumed>,
}

/// Features of a batch, all f32 on the teacher's device. N images, L patches row-major over the grid, width K
/// ([`TeacherInfo::width`]). CLS and registers are not among the patches.
#[derive(Debug)]
pub struct TeacherOutput {
    /// `[N, L, K]`: the patch tokens of the layer asked for, see [`Layer`].
    pub tokens: Tensor,
    /// `[N, K]`: the CLS token of the same layer. SigLIP has none: there it is the output of the pooling head, whose query
    /// attends to the patches after the final norm, for both of its layers.
    pub cls: Tensor,
    /// `[N, L]`: attention of the CLS query to the patches in the last block, mean over heads. The softmax runs over all tokens
    /// and the columns of CLS and registers are then dropped, so a row sums to a little less than 1. For SigLIP the attention
    /// of the pooling head's query, which sums to 1.
    pub cls_attn: Tensor,
}

/// One vector per image in two ways, `[N, D]`, and one per patch.
#[derive(Debug)]
pub struct ImageFeatures {
    /// The CLS token after the final norm, or what the pooling head gives: what the family uses for whole images, before any
    /// projection. None of a network that pools the mean of its patches.
    pub cls: Option<Tensor>,
    /// The mean of the patch tokens after the final norm; of a network that pools it, the final norm of the mean.
    pub mean: Tensor,
    /// Every patch token after the final norm, `[N, L, D]`, row by row from the top left; no CLS and no registers.
    pub patches: Tensor,
}

/// A frozen tower with its pixel normalization.
///
/// `Send` but not `Sync`, as tensors are: threads each get a [`Teacher::shallow_clone`].
#[derive(Debug)]
pub struct Teacher {
    info: TeacherInfo,
    device: Device,
    tensors: BTreeMap<String, Tensor>,
    // Boxed, so that a teacher is small enough to be a variant of an enum.
    tower: Box<VisionTransformer>,
    /// The tower with the weights of its products in bf16, from the first pass in that precision on.
    bf16_tower: OnceCell<Box<VisionTransformer>>,
    bf16_weights: Bf16Weights,
    /// Mean and standard deviation of each channel, `[3, 1]` on the device.
    mean: Tensor,
    std: Tensor,
}

/// bf16 copies of the weights of matrix products, made once for all handles on a teacher. Autocast keeps copies of trained
/// weights only; it would cast those of a frozen network again for every batch.
type Bf16Weights = Arc<Mutex<Option<BTreeMap<String, Tensor>>>>;

/// Result of a forward pass: layer `last`, and how images were pooled.
struct Stage {
    /// `[N, L, D]`.
    tokens: Tensor,
    /// The first token `[N, D]`: CLS, where the tower has one.
    cls: Tensor,
    /// The output of the pooling head `[N, D]`, where the tower has no CLS.
    pooled: Option<Tensor>,
    /// `[N, L]`.
    attn: Tensor,
}

/// A tower from a file, as the start of a [`Teacher`] or of a network that is trained.
///
/// What a file keeps apart without need is one parameter here: the position of CLS is part of the CLS token, and LayerScale is
/// multiplied into the last matrices of its branches. The function at the start is the file's; a step of training treats each of
/// these as one.
#[derive(Debug)]
pub struct TowerWeights {
    /// What it is, at its native image size.
    pub config: VitConfig,
    /// Its tensors under the names of the network, f32, on the CPU.
    pub tensors: BTreeMap<String, Tensor>,
    /// The layout of the file, for people.
    pub layout: &'static str,
    /// SHA-256 of the weights file or sharded set.
    pub sha256: String,
    /// Facts that nothing stated.
    pub assumed: Vec<Assumed>,
}

impl TowerWeights {
    /// Reads what [`Teacher::load`] reads.
    ///
    /// # Errors
    /// As there.
    pub fn read(path: &Path) -> Result<TowerWeights> {
        TowerWeights::of(&Weights::read(path)?, &TeacherOptions::default())
    }

    /// The tower in `weights`, with what `options` say about it.
    ///
    /// # Errors
    /// As [`Teacher::load_with`].
    pub(crate) fn of(weights: &Weights, options: &TeacherOptions) -> Result<TowerWeights> {
        let layout = Layout::recognize(weights)?;
        let Resolved { config, assumed } = Config::read_beside(weights.path())?.resolve(weights, &layout, options)?;
        config.validate()?;
        let tensors = layout.convert(weights, &config)?;
        Ok(TowerWeights { config, tensors, layout: layout.title(), sha256: weights.sha256().to_owned(), assumed })
    }
}

impl Teacher {
    /// [`Teacher::load_with`] the default options: features of layer `last`, the activation from the files.
    pub fn load(path: &Path, device: Device) -> Result<Teacher> {
        Teacher::load_with(path, &TeacherOptions::default(), device)
    }

    /// Loads the teacher in `path`: a folder with a weights file ([`weights_file`](crate::weights::weights_file) says which) and
    /// the configuration published with it (`config.json` and `preprocessor_config.json`, or `open_clip_config.json`); or a
    /// weights file, with those files looked for beside it. [`Weights::read`] says what is read as weights.
    ///
    /// Files in timm's, OpenAI's or DINO's own layouts may stand alone: sizes come from shapes, heads are width / 64, eps, the
    /// activation and the normalization are the family's where it has one answer ([`TeacherInfo::assumed`]). A `config.json` with the keys of Hugging Face's configuration
    /// (`hidden_act`, `layer_norm_eps`, `num_attention_heads`, `rope_theta`) or timm's (`pretrained_cfg`) overrides each of these.
    ///
    /// # Errors
    /// Unreadable or damaged files, an unknown layout, tensors that do not fit (all of them listed), an activation other than
    /// the files', a layer that the file lacks, and facts that neither file states and that must not be guessed, such as CLIP's
    /// activation and normalization; [`TeacherOptions`] answers them.
    pub fn load_with(path: &Path, options: &TeacherOptions, device: Device) -> Result<Teacher> {
        Ok(Teacher::new(TowerWeights::of(&Weights::read(path)?, options)?, options.layer, device))
    }

    /// The teacher that gives the features of `layer` of a tower, on `device`.
    pub fn new(tower: TowerWeights, layer: Layer, device: Device) -> Teacher {
        let TowerWeights { config, tensors, layout, sha256, assumed } = tower;
        let projected = config.projection.map(|projection| projection.out_dim);
        let info = TeacherInfo {
            arch: config.arch(),
            layout,
            layer,
            // All sizes were checked to be small and positive, the projection's by comparison with the file's shape.
            patch_size: config.patch_size as u32,
            width: projected.unwrap_or(config.embed_dim) as u32,
            hidden: config.embed_dim as u32,
            depth: config.depth as u32,
            heads: config.num_heads as u32,
            activation: config.activation,
            norm_eps: config.norm_eps,
            input_size: config.img_size[0] as u32,
            mean: config.mean,
            std: config.std,
            weights_sha256: sha256,
            assumed,
        };
        let tensors =
            tensors.into_iter().map(|(name, tensor)| (name, lay_out_weight(&tensor.to_device(device)))).collect();
        Teacher::build(info, &config, device, tensors, Bf16Weights::default())
    }

    /// Another handle on the same weights, for another thread; the weights are not copied, and never written.
    pub fn shallow_clone(&self) -> Teacher {
        Teacher::build(
            self.info.clone(),
            self.tower.config(),
            self.device,
            handles(&self.tensors),
            self.bf16_weights.clone(),
        )
    }

    fn build(
        info: TeacherInfo,
        config: &VitConfig,
        device: Device,
        tensors: BTreeMap<String, Tensor>,
        bf16_weights: Bf16Weights,
    ) -> Teacher {
        let tower = tower_of(device, handles(&tensors), config);
        let channels = |values: [f64; 3]| Tensor::from_slice(&values.map(|v| v as f32)).view([3, 1]).to_device(device);
        Teacher {
            device,
            tensors,
            tower: Box::new(tower),
            bf16_tower: OnceCell::new(),
            bf16_weights,
            mean: channels(info.mean),
            std: channels(info.std),
            info,
        }
    }

    /// The tower to use in `precision`; both give the same bits, see [`Bf16Weights`].
    fn tower(&self, precision: Precision) -> &VisionTransformer {
        if precision != Precision::Bf16 {
            return &self.tower;
        }
        self.bf16_tower.get_or_init(|| {
            let mut weights = handles(&self.tensors);
            // A thread that panicked here leaves the copies whole or not made.
            let mut copies = self.bf16_weights.lock().unwrap_or_else(PoisonError::into_inner);
            let copies = copies.get_or_insert_with(|| bf16_copies(&self.tensors));
            weights.extend(handles(copies));
            Box::new(tower_of(self.device, weights, self.tower.config()))
        })
    }

    /// What the teacher is.
    pub fn info(&self) -> &TeacherInfo {
        &self.info
    }

    /// Where it computes.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The features of `pixels`, u8 `[N, 3, H, W]` on any device, H and W multiples of the patch size. Positions are interpolated
    /// when the grid is not the native one. Never records gradients.
    ///
    /// # Errors
    /// [`Error::TeacherInput`] for another type or shape.
    pub fn forward(&self, pixels: &Tensor, precision: Precision) -> Result<TeacherOutput> {
        let stage = self.run(pixels, precision, |_| {})?;
        Ok(tch::no_grad(|| {
            let _guard = precision.guard(self.device);
            let tower = self.tower(precision);
            let of_layer = |x: &Tensor| match self.info.layer {
                Layer::Last => x.shallow_clone(),
                Layer::LastNorm => tower.forward_norm(x),
                Layer::Proj => {
                    let projected = tower.project(&tower.forward_norm(x));
                    projected.to_kind(Kind::Float)
                }
            };
            TeacherOutput {
                tokens: of_layer(&stage.tokens),
                cls: match stage.pooled {
                    Some(pooled) => pooled,
                    None => of_layer(&stage.cls),
                },
                cls_attn: stage.attn,
            }
        }))
    }

    /// The residual stream `[N, T, D]` (CLS, registers, patches) before the first block and after each block, as transformers'
    /// `hidden_states`: to compare with other implementations, or to look at earlier layers. The last one holds layer `last`.
    pub fn hidden_states(&self, pixels: &Tensor, precision: Precision) -> Result<Vec<Tensor>> {
        let mut stages = Vec::new();
        self.run(pixels, precision, |x| stages.push(x.shallow_clone()))?;
        Ok(stages)
    }

    /// The vectors of each image, with the final norm applied whatever the layer of the features. For k-NN.
    pub fn image_features(&self, pixels: &Tensor, precision: Precision) -> Result<ImageFeatures> {
        let stage = self.run(pixels, precision, |_| {})?;
        Ok(tch::no_grad(|| {
            let patches = self.final_norm(&stage.tokens);
            if !self.pools_cls() {
                let mean = self.final_norm(&stage.tokens.mean_dim(1, false, None));
                return ImageFeatures { cls: None, mean, patches };
            }
            let cls = stage.pooled.unwrap_or_else(|| self.final_norm(&stage.cls));
            ImageFeatures { cls: Some(cls), mean: patches.mean_dim(1, false, None), patches }
        }))
    }

    /// Whether [`Teacher::image_features`] has a CLS token, or what a pooling head gives in its place.
    pub fn pools_cls(&self) -> bool {
        self.tower.config().pooling != Pooling::Mean
    }

    /// The norm after the last block (for CLIP `post_layernorm`), `[.., D] → [.., D]`.
    pub fn final_norm(&self, x: &Tensor) -> Tensor {
        tch::no_grad(|| self.tower.forward_norm(x))
    }

    fn run(&self, pixels: &Tensor, precision: Precision, visit: impl FnMut(&Tensor)) -> Result<Stage> {
        let patch = i64::from(self.info.patch_size);
        let (height, width) = match *pixels.size() {
            [_, 3, h, w] if pixels.kind() == Kind::Uint8 && h > 0 && w > 0 && h % patch == 0 && w % patch == 0 => {
                (h, w)
            }
            _ => {
                let found = format!("{:?} {:?}", pixels.kind(), pixels.size());
                return Err(Error::TeacherInput { found, patch_size: self.info.patch_size });
            }
        };
        let grid = (height / patch, width / patch);
        Ok(tch::no_grad(|| {
            let _guard = precision.guard(self.device);
            // Cut first, while a pixel is one byte: [N, L, 3p²].
            let tower = self.tower(precision);
            let patches = tower.unfold(&pixels.to_device(self.device));
            let output = tower.forward_with_attention(&self.normalize(&patches), grid, visit);
            let prefix = tower.config().prefix();
            Stage {
                tokens: output.x.narrow(1, prefix, grid.0 * grid.1),
                cls: output.x.narrow(1, 0, 1).squeeze_dim(1),
                pooled: output.pooled,
                attn: output.attn,
            }
        }))
    }

    /// `(x / 255 - mean) / std`, u8 `[N, L, 3p²]` → f32.
    fn normalize(&self, patches: &Tensor) -> Tensor {
        let shape = patches.size();
        let mut x = patches.to_kind(Kind::Float).view([shape[0], shape[1], 3, shape[2] / 3]); // [N, L, 3, p²]
        x /= 255.0;
        x -= &self.mean;
        x /= &self.std;
        x.view(&shape[..])
    }
}

/// The tower of a configuration that was validated, over tensors that were compared with it.
fn tower_of(device: Device, tensors: BTreeMap<String, Tensor>, config: &VitConfig) -> VisionTransformer {
    let store = ParamStore::given(device, tensors);
    VisionTransformer::new(&store.root(), config).expect("the configuration was validated")
}

/// Handles on the same tensors.
fn handles(tensors: &BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    let handle = |(name, tensor): (&String, &Tensor)| (name.clone(), tensor.shallow_clone());
    tensors.iter().map(handle).collect()
}

/// Copies of what autocast would cast: weights of matrix products (`weight`s of two or more dimensions) and their biases. Norms,
/// tokens and positions are used in f32.
fn bf16_copies(tensors: &BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    let of_product = |name: &str| {
        let layer = name.strip_suffix(".weight").or_else(|| name.strip_suffix(".bias"))?;
        Some(tensors.get(&format!("{layer}.weight"))?.dim() >= 2)
    };
    tensors
        .iter()
        .filter(|(name, _)| of_product(name) == Some(true))
        .map(|(name, tensor)| (name.clone(), tensor.to_kind(Kind::BFloat16).contiguous()))
        .collect()
}
