//! One optimisation step in its two parts: gradients of a batch, then the update. Nothing here waits for the device.

use std::collections::BTreeMap;

use models::blocks::ForwardOptions;
use models::masking::{self, Masking, focused_noise, random_masking};
use models::mr_mae::{Batch, Losses, MrMae};
use models::precision::Precision;
use tch::{Device, Kind, Tensor};
use torch_ext::event::Event;
use torch_ext::{Ema, FusedAdamW, all_finite, clip_grad_norm_, copy_non_blocking, grad_norm, pinned_empty};

use crate::config::{FocusMode, MaskKind, Recipe};
use crate::teachers::Features;

#[cfg(test)]
mod tests;

/// Mean of ImageNet's channels on the scale 0 to 1: what MAE's code normalizes the student's input with, and through it the
/// pixel target when `model.norm_pix_loss` is off.
pub const IMAGENET_MEAN: [f32; 3] = narrow(models::pixels::IMAGENET_MEAN);
/// The standard deviation, see [`IMAGENET_MEAN`].
pub const IMAGENET_STD: [f32; 3] = narrow(models::pixels::IMAGENET_STD);

const fn narrow([r, g, b]: [f64; 3]) -> [f32; 3] {
    [r as f32, g as f32, b as f32]
}

/// The scalars of a step, on their way from the device.
#[derive(Debug)]
pub struct StepValues {
    names: Vec<String>,
    /// `[names + 1]` f32 on the CPU; the last is 1 if everything was finite and the update was done. Not to be read before
    /// `arrived`.
    values: Tensor,
    arrived: Event,
}

impl StepValues {
    /// `loss` (the weighted total), then what it is made of, unweighted: `rec`, `mimic.<teacher>`, `mimic_cls.<teacher>`; and `grad_norm` before clipping.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Waits for this step, but not for what has been queued since, and reads its values: whether it was done, and every scalar
    /// by name.
    pub fn read(&self) -> anyhow::Result<(bool, BTreeMap<String, f64>)> {
        self.arrived.synchronize()?;
        let values = Vec::<f32>::try_from(&self.values)?;
        let named = self.names.iter().cloned().zip(values.iter().map(|&v| f64::from(v))).collect();
        Ok((values.last() == Some(&1.0), named))
    }
}

/// Pixels as the student sees them.
#[derive(Debug)]
pub struct Normalise {
    /// Kept on the device: bringing them there for each batch would wait for all queued work.
    mean: Tensor,
    std: Tensor,
}

impl Normalise {
    /// By ImageNet's channels, for pixels on `device`.
    pub fn imagenet(device: Device) -> Normalise {
        Normalise::of([IMAGENET_MEAN, IMAGENET_STD], device)
    }

    /// By mean and deviation of the channels on the scale 0 to 1, for pixels on `device`.
    pub fn of([mean, std]: [[f32; 3]; 2], device: Device) -> Normalise {
        let constant = |values: [f32; 3]| Tensor::from_slice(&values).view([1, 3, 1, 1]).to_device(device);
        Normalise { mean: constant(mean), std: constant(std) }
    }

    /// `[N, S, S, 3]` u8 → `[N, 3, S, S]` f32.
    pub fn forward(&self, pixels: &Tensor) -> Tensor {
        (pixels.permute([0, 3, 1, 2]).to_kind(Kind::Float) / 255.0 - &self.mean) / &self.std
    }
}

/// The masks of a batch from its noise `[N, L]` and, for focused masking, the teacher's attention `[N, L]`.
///
/// # Panics
/// If the recipe focuses and `cls_attn` is absent: the loader's mistake.
pub fn masking(recipe: &Recipe, noise: &Tensor, cls_attn: Option<&Tensor>) -> Masking {
    let focused = |mode| {
        let cls_attn = cls_attn.expect("the focusing teacher's attention is loaded");
        focused_noise(cls_attn, noise, mode)
    };
    let noise = match (recipe.mask.kind, recipe.mask.mode) {
        // Blocks are in the noise already.
        (MaskKind::Random | MaskKind::Block, _) => noise.shallow_clone(),
        (MaskKind::Focused, Some(FocusMode::Topk)) => focused(masking::MaskKind::TopK),
        (MaskKind::Focused, Some(FocusMode::Multinomial) | None) => focused(masking::MaskKind::Multinomial),
    };
    random_masking(&noise, recipe.len_keep())
}

/// Forward and backward of one batch, or part of one; adds `1 / of_step` of its gradient to the parameters' and returns its losses.
pub fn accumulate(
    student: &MrMae,
    imgs: &Tensor,
    masking: &Masking,
    features: &Features,
    pass: ForwardOptions,
    precision: Precision,
    of_step: usize,
) -> Losses {
    let losses = {
        let _scope = precision.guard(imgs.device());
        student.forward(&Batch { imgs, masking, targets: &features.tokens, cls_targets: &features.cls, pass })
    };
    // Outside the scope: each operation's backward uses the type its forward used.
    (&losses.total / of_step as f64).backward();
    let detached = |losses: BTreeMap<String, Tensor>| {
        let losses = losses.into_iter();
        losses.map(|(id, loss)| (id, loss.detach())).collect()
    };
    Losses {
        total: losses.total.detach(),
        rec: losses.rec.map(|rec| rec.detach()),
        mimic: detached(losses.mimic),
        mimic_cls: detached(losses.mimic_cls),
    }
}

/// Clips if asked to and takes the step, unless a loss or a gradient is not finite: then parameters, moments, step counts and averages
/// stay as they are. The device decides; the host learns it from [`StepValues::read`]. `ema` comes with what it keeps of itself.
pub fn update(
    optim: &mut FusedAdamW,
    losses: &[Losses],
    clip_grad: Option<f64>,
    ema: Option<(&mut Ema, f64)>,
) -> anyhow::Result<StepValues> {
    let mut names = Vec::new();
    let mut values = Vec::new();
    let mut add = |name: String, of: &dyn Fn(&Losses) -> Option<Tensor>| {
        let terms: Vec<Tensor> = losses.iter().filter_map(of).collect();
        if !terms.is_empty() {
            names.push(name);
            values.push(Tensor::stack(&terms, 0).to_kind(Kind::Float).mean(None));
        }
    };
    add("loss".into(), &|l| Some(l.total.shallow_clone()));
    add("rec".into(), &|l| l.rec.as_ref().map(Tensor::shallow_clone));
    for id in losses.first().map(|l| l.mimic.keys()).into_iter().flatten() {
        add(format!("mimic.{id}"), &|l| l.mimic.get(id).map(Tensor::shallow_clone));
    }
    let with_cls = losses.first().map(|l| l.mimic_cls.keys());
    for id in with_cls.into_iter().flatten() {
        add(format!("mimic_cls.{id}"), &|l| l.mimic_cls.get(id).map(Tensor::shallow_clone));
    }

    finish(optim, names, values, clip_grad, ema)
}

/// The second half of [`update`] for any scalars, one for each of `names`.
pub fn finish(
    optim: &mut FusedAdamW,
    mut names: Vec<String>,
    mut values: Vec<Tensor>,
    clip_grad: Option<f64>,
    ema: Option<(&mut Ema, f64)>,
) -> anyhow::Result<StepValues> {
    let mut grads = optim.grads();
    let norm = match clip_grad {
        Some(max_norm) => clip_grad_norm_(&mut grads, max_norm)?,
        None => grad_norm(&grads)?,
    };
    names.push("grad_norm".to_owned());
    values.push(norm);

    // A non-finite element makes the norm non-finite, so these few scalars stand for all gradients.
    let values = Tensor::stack(&values, 0);
    let finite = all_finite(&[values.shallow_clone()])?;
    optim.step_if(&finite)?;
    if let Some((ema, decay)) = ema {
        ema.update_if(decay, &finite)?;
    }
    let values = Tensor::cat(&[values, finite.to_kind(Kind::Float).view([1])], 0);

    let device = values.device();
    let mut host = pinned_empty(&values.size(), Kind::Float, device)?;
    copy_non_blocking(&mut host, &values)?;
    Ok(StepValues { names, values: host, arrived: Event::record(device)? })
}
