//! Linear layers.

use std::ptr;

use tch::{Device, Tensor};

use crate::ffi;

/// Inputs and outputs of a layer from which oneDNN computes it. Below, a call costs more than it saves.
const ONE_DNN_LEAST: i64 = 192;

/// `x [.., in]`, `weight [out, in]`, `bias [out]` → `x Wᵀ + b [.., out]`, in the type that autocast says.
///
/// The numbers are those of `Tensor::linear` but for rounding. On a CPU libtorch has two libraries for products: it computes those of bf16
/// by oneDNN and those of f32 by MKL, which on AMD's processors is the slower one. Here f32 products take oneDNN as well, forward and in the
/// gradient of `x`, where `in` and `out` are at least 192. On a Zen 5 core that is a rate 1.15 to 1.2 times as high for the shapes of a
/// ViT-B.
///
/// # Panics
/// If the shapes or types do not fit, or if memory runs out, with libtorch's message.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
    let bias = bias.map_or(ptr::null(), Tensor::as_ptr);
    let y = ffi::new_tensor("a linear layer", |out| {
        // SAFETY: all are alive and only read; a null pointer stands for no bias.
        unsafe { ffi::te_linear(x.as_ptr(), weight.as_ptr(), bias, ONE_DNN_LEAST, out) }
    });
    match y {
        Ok(y) => y,
        Err(error) => panic!("{error}"),
    }
}

/// The same `weight [out, in]` of a frozen layer, with the outputs of one input beside each other in memory where [`linear`] computes by
/// oneDNN, which would turn it so for every product: some 4 % of the product's time. Any other weight stays as it is.
pub fn lay_out_weight(weight: &Tensor) -> Tensor {
    let large = weight.dim() == 2 && weight.size().iter().all(|&n| n >= ONE_DNN_LEAST);
    if large && weight.device() == Device::Cpu { weight.tr().contiguous().tr() } else { weight.shallow_clone() }
}

#[cfg(test)]
mod tests;
