//! Linear layers.

use std::ptr;

use tch::Tensor;

use crate::ffi;

/// `x [.., in]`, `weight [out, in]`, `bias [out]` → `x Wᵀ + b [.., out]`, in the type that autocast says.
///
/// The numbers are those of `Tensor::linear` but for rounding. On a CPU libtorch has two libraries for products: it computes those of bf16
/// by oneDNN and those of f32 by MKL, which on AMD's processors is the slower one. Here f32 products take oneDNN as well, forward and in the
/// gradient of `x`, where `in` and `out` are at least 192. On a Zen 5 core that is a rate 1.15 to 1.2 times as high for the shapes of a
/// ViT-B; below that size a call costs more than it saves.
///
/// # Panics
/// If the shapes or types do not fit, or if memory runs out, with libtorch's message.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
    let bias = bias.map_or(ptr::null(), Tensor::as_ptr);
    let y = ffi::new_tensor("a linear layer", |out| {
        // SAFETY: all are alive and only read; a null pointer stands for no bias.
        unsafe { ffi::te_linear(x.as_ptr(), weight.as_ptr(), bias, out) }
    });
    match y {
        Ok(y) => y,
        Err(error) => panic!("{error}"),
    }
}

#[cfg(test)]
mod tests;
