//! Linear layers.

use std::ptr;

use tch::{Device, Tensor};

use crate::ffi;

/// Smallest number of inputs and of outputs for which oneDNN computes a layer. Below it, a call costs more than it saves.
const ONE_DNN_LEAST: i64 = 192;

/// `x [.., in]`, `weight [out, in]`, `bias [out]` → `x Wᵀ + b [.., out]`, in the type set by autocast.
///
/// The result equals `Tensor::linear` up to rounding. On a CPU libtorch has two libraries for matmuls: it uses oneDNN for bf16
/// and MKL for f32, which is the slower one on AMD's processors. Here f32 matmuls use oneDNN as well, forward and in the
/// gradient of `x`, if `in` and `out` are at least 192. On a Zen 5 core that is 1.15 to 1.2 times as fast for the shapes of a ViT-B.
///
/// # Panics
/// If the shapes or types do not match, or out of memory, with libtorch's message.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
    let bias = bias.map_or(ptr::null(), Tensor::as_ptr);
    let y = ffi::new_tensor("a linear layer", |out| {
        // SAFETY: all are alive and only read; a null pointer means no bias.
        unsafe { ffi::te_linear(x.as_ptr(), weight.as_ptr(), bias, ONE_DNN_LEAST, out) }
    });
    match y {
        Ok(y) => y,
        Err(error) => panic!("{error}"),
    }
}

/// The same `weight [out, in]` of a frozen layer in the memory layout of oneDNN (outputs of one input contiguous), if [`linear`] uses
/// oneDNN for it. Otherwise oneDNN reorders it in every matmul, about 4 % of its time. Any other weight stays as it is.
pub fn lay_out_weight(weight: &Tensor) -> Tensor {
    let large = weight.dim() == 2 && weight.size().iter().all(|&n| n >= ONE_DNN_LEAST);
    if large && weight.device() == Device::Cpu { weight.tr().contiguous().tr() } else { weight.shallow_clone() }
}

#[cfg(test)]
mod tests;
