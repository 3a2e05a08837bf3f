//! Frozen vision towers whose features a student mimics: CLIP and DINO/ViT, in the file layouts people have.
//!
//! [`Teacher::load`] recognises the layout from the tensors' names (`layout.rs`), takes from `config.json` and
//! `preprocessor_config.json` what shapes cannot tell (`config.rs`), converts to timm's names, and builds one tower
//! (`tower.rs`) that serves all families. A file must fit exactly; see [`Error::WeightsMismatch`](crate::Error).

use std::collections::BTreeMap;
use std::path::Path;

use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};
use crate::params::ParamStore;
use crate::precision::Precision;
use crate::vit::Activation;
use crate::weights::Weights;

mod config;
mod layout;
mod tower;

use config::{Config, Resolved};
use layout::{Family, Layout};
use tower::{TowerConfig, VitTower};

#[cfg(test)]
mod tests;

/// What identifies a teacher's features, besides the pixels.
#[derive(Debug, Clone, PartialEq)]
pub struct TeacherInfo {
    /// Family and sizes, e.g. `clip-vit-w768-d12-h12-m3072-p16`: width, depth, heads, MLP width, patch size.
    pub arch: String,
    /// The file layout that was recognised, for people; the same weights in two layouts give the same features.
    pub layout: &'static str,
    /// Side of a square patch, in pixels.
    pub patch_size: u32,
    /// Width D of the residual stream, which is the width of the features.
    pub width: u32,
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
    /// SHA-256 of the weights file, in hexadecimal.
    pub weights_sha256: String,
}

/// What a teacher says about a batch, all f32 on the teacher's device. N images, L patches row-major over the grid, width D.
#[derive(Debug)]
pub struct TeacherOutput {
    /// `[N, L, D]`: the patch tokens of layer `last`: the residual stream after the last block, before the final norm (for CLIP,
    /// before `post_layernorm` and the projection). Hugging Face's CLIP calls this `last_hidden_state`; its ViT applies the norm
    /// first.
    pub tokens: Tensor,
    /// `[N, D]`: the CLS token of the same layer, likewise before the final norm.
    pub cls: Tensor,
    /// `[N, L]`: attention of the CLS query to the patches in the last block, mean over heads. The softmax runs over all tokens
    /// and the CLS column is then dropped, so a row sums to a little less than 1.
    pub cls_attn: Tensor,
}

/// Which single vector per image [`Teacher::features`] returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pool {
    /// The CLS token.
    Cls,
    /// The mean of the patch tokens.
    Mean,
}

/// A frozen tower with its pixel normalisation.
///
/// `Send` but not `Sync`, as tensors are: threads each get a [`Teacher::shallow_clone`].
#[derive(Debug)]
pub struct Teacher {
    info: TeacherInfo,
    config: TowerConfig,
    device: Device,
    tensors: BTreeMap<String, Tensor>,
    tower: VitTower,
}

impl Teacher {
    /// Loads the teacher in `path`: a folder with `model.safetensors` (or one other safetensors file) and, for Hugging Face
    /// layouts, `config.json` and `preprocessor_config.json`; or a safetensors file, with those files looked for beside it.
    ///
    /// Files in timm's or DINO's own layout may stand alone: sizes come from shapes, heads are width / 64, eps is 1e-6, the
    /// activation exact GELU and the normalisation ImageNet's. A `config.json` with the keys of Hugging Face's configuration
    /// (`hidden_act`, `layer_norm_eps`, `num_attention_heads`) or timm's (`pretrained_cfg`) overrides each of these.
    ///
    /// # Errors
    /// Unreadable or damaged files, an unknown layout, tensors that do not fit (all of them listed), and facts that neither file
    /// states and that must not be guessed, such as CLIP's activation.
    pub fn load(path: &Path, device: Device) -> Result<Teacher> {
        let weights = Weights::read(path)?;
        let layout = Layout::recognise(&weights)?;
        let Resolved {
            tower: config,
            normalisation,
        } = Config::read_beside(weights.path())?.resolve(&weights, &layout)?;
        let tensors = layout.convert(&weights, &config)?;
        let family = match layout.family {
            Family::Clip => "clip-vit",
            Family::Vit => "vit",
        };
        let TowerConfig {
            width,
            depth,
            num_heads,
            mlp_dim,
            patch_size,
            ..
        } = config;
        let (mean, std) = normalisation;
        let info = TeacherInfo {
            arch: format!("{family}-w{width}-d{depth}-h{num_heads}-m{mlp_dim}-p{patch_size}"),
            layout: layout.title(),
            // All sizes were checked to be small and positive.
            patch_size: patch_size as u32,
            width: width as u32,
            depth: depth as u32,
            heads: num_heads as u32,
            activation: config.activation,
            norm_eps: config.norm_eps,
            input_size: (config.grid * patch_size) as u32,
            mean,
            std,
            weights_sha256: weights.sha256().to_owned(),
        };
        let tensors = tensors
            .into_iter()
            .map(|(name, tensor)| (name, tensor.to_device(device)))
            .collect();
        Ok(Teacher::build(info, config, device, tensors))
    }

    /// Another handle on the same weights, for another thread; the weights are not copied, and never written.
    pub fn shallow_clone(&self) -> Teacher {
        let tensors = self
            .tensors
            .iter()
            .map(|(name, tensor)| (name.clone(), tensor.shallow_clone()))
            .collect();
        Teacher::build(self.info.clone(), self.config.clone(), self.device, tensors)
    }

    fn build(
        info: TeacherInfo,
        config: TowerConfig,
        device: Device,
        tensors: BTreeMap<String, Tensor>,
    ) -> Teacher {
        let shared = tensors
            .iter()
            .map(|(name, tensor)| (name.clone(), tensor.shallow_clone()))
            .collect();
        let tower = VitTower::new(&ParamStore::given(device, shared).root(), &config);
        Teacher {
            info,
            config,
            device,
            tensors,
            tower,
        }
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
        self.run(pixels, precision, |_| {})
    }

    /// The residual stream `[N, 1 + L, D]` before the first block and after each block, as transformers' `hidden_states`: to
    /// compare with other implementations, or to look at earlier layers. The last one holds [`TeacherOutput::tokens`].
    pub fn hidden_states(&self, pixels: &Tensor, precision: Precision) -> Result<Vec<Tensor>> {
        let mut stages = Vec::new();
        self.run(pixels, precision, |x| stages.push(x.shallow_clone()))?;
        Ok(stages)
    }

    /// One vector per image `[N, D]` with the final norm applied: what the family uses for whole images, before any
    /// projection. For k-NN.
    pub fn features(&self, pixels: &Tensor, precision: Precision, pool: Pool) -> Result<Tensor> {
        let output = self.forward(pixels, precision)?;
        Ok(tch::no_grad(|| match pool {
            Pool::Cls => self.final_norm(&output.cls),
            Pool::Mean => self.final_norm(&output.tokens).mean_dim(1, false, None),
        }))
    }

    /// The norm after the last block (for CLIP `post_layernorm`), `[.., D] → [.., D]`.
    pub fn final_norm(&self, x: &Tensor) -> Tensor {
        tch::no_grad(|| self.tower.norm(x))
    }

    fn run(
        &self,
        pixels: &Tensor,
        precision: Precision,
        visit: impl FnMut(&Tensor),
    ) -> Result<TeacherOutput> {
        let patch = i64::from(self.info.patch_size);
        let (height, width) = match *pixels.size() {
            [_, 3, h, w]
                if pixels.kind() == Kind::Uint8
                    && h > 0
                    && w > 0
                    && h % patch == 0
                    && w % patch == 0 =>
            {
                (h, w)
            }
            _ => {
                let found = format!("{:?} {:?}", pixels.kind(), pixels.size());
                return Err(Error::TeacherInput {
                    found,
                    patch_size: self.info.patch_size,
                });
            }
        };
        let grid = (height / patch, width / patch);
        Ok(tch::no_grad(|| {
            let _guard = precision.guard(self.device);
            // Cut first, while a pixel is one byte: [N, L, 3p²].
            let patches = self.tower.unfold(&pixels.to_device(self.device));
            let (x, cls_attn) = self.tower.forward(&self.normalise(&patches), grid, visit);
            let num_patches = grid.0 * grid.1;
            TeacherOutput {
                tokens: x.narrow(1, 1, num_patches),
                cls: x.select(1, 0),
                cls_attn: cls_attn.narrow(2, 1, num_patches).mean_dim(1, false, None),
            }
        }))
    }

    /// `(x / 255 - mean) / std`, u8 `[N, L, 3p²]` → f32.
    fn normalise(&self, patches: &Tensor) -> Tensor {
        let shape = patches.size();
        let channels = |values: [f64; 3]| {
            Tensor::from_slice(&values.map(|v| v as f32))
                .view([3, 1])
                .to_device(self.device)
        };
        let mut x = patches
            .to_kind(Kind::Float)
            .view([shape[0], shape[1], 3, shape[2] / 3]); // [N, L, 3, p²]
        x /= 255.0;
        x -= channels(self.info.mean);
        x /= channels(self.info.std);
        x.view(&shape[..])
    }
}
