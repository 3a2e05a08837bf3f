//! Normalization of pixels by the mean and std of their channels.

use tch::{Device, Kind, Tensor};

/// Mean of ImageNet's channels on the scale 0 to 1. Like MAE's code, we normalize the student's input with it, and so the pixel target too
/// when `model.norm_pix_loss` is off.
pub(crate) const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
/// Std of ImageNet's channels; see [`IMAGENET_MEAN`].
pub(crate) const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];

/// Brings pixels to mean 0 and std 1, on the device.
#[derive(Debug)]
pub(crate) struct Normalize {
    /// Both are kept on the device: copying them there for each batch would wait for all queued work.
    mean: Tensor,
    std: Tensor,
}

impl Normalize {
    /// Normalizes by ImageNet's mean and std, for pixels on `device`.
    pub(crate) fn imagenet(device: Device) -> Normalize {
        Normalize::of([IMAGENET_MEAN, IMAGENET_STD], device)
    }

    /// Normalizes by this mean and std of the channels on the scale 0 to 1, for pixels on `device`.
    pub(crate) fn of([mean, std]: [[f32; 3]; 2], device: Device) -> Normalize {
        let constant = |values: [f32; 3]| Tensor::from_slice(&values).view([1, 3, 1, 1]).to_device(device);
        Normalize { mean: constant(mean), std: constant(std) }
    }

    /// `[N, S, S, 3]` u8 → `[N, 3, S, S]` f32.
    pub(crate) fn forward(&self, pixels: &Tensor) -> Tensor {
        (pixels.permute([0, 3, 1, 2]).to_kind(Kind::Float) / 255.0 - &self.mean) / &self.std
    }
}
