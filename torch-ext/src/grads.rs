//! Norm, clipping and finite check of all gradients at once, computed on the device.
//!
//! Each function returns a scalar tensor and starts no transfer: the host runs ahead and reads the value later. All tensors of a call are
//! on one device.

use tch::Tensor;

use crate::error::Result;
use crate::ffi;

/// The 2-norm of all tensors as one vector: a scalar tensor, 0 for an empty list.
///
/// # Errors
/// If libtorch reports an error (tensors on different devices).
pub fn grad_norm(grads: &[Tensor]) -> Result<Tensor> {
    let list = ffi::pointers(grads);
    // SAFETY: `list` points at `grads`, both alive through the call; it reads them only.
    ffi::new_tensor("the norm of the gradients", |out| unsafe {
        ffi::te_grad_norm(list.as_ptr(), list.len() as i64, out)
    })
}

/// Scales all gradients in place so that their [`grad_norm`] is at most `max_norm`, and returns the norm before.
///
/// Equals `torch.nn.utils.clip_grad_norm_`: the factor is `min(1, max_norm / (norm + 1e-6))`, so a non-finite norm corrupts all
/// gradients; check [`all_finite`] or pass it to [`FusedAdamW::step_if`](crate::FusedAdamW::step_if).
///
/// # Errors
/// If libtorch reports an error (tensors on different devices).
pub fn clip_grad_norm_(grads: &mut [Tensor], max_norm: f64) -> Result<Tensor> {
    let list = ffi::pointers(grads.iter());
    ffi::new_tensor("clipping the gradients", |out| {
        // SAFETY: `list` points at `grads`, alive and exclusively borrowed; values change, shapes and storage do not.
        unsafe { ffi::te_clip_grad_norm(list.as_ptr(), list.len() as i64, max_norm, out) }
    })
}

/// Whether every element of every tensor is finite: a scalar boolean tensor, true for an empty list.
///
/// # Errors
/// If libtorch reports an error (tensors on different devices, or not floating point).
pub fn all_finite(tensors: &[Tensor]) -> Result<Tensor> {
    let list = ffi::pointers(tensors);
    // SAFETY: `list` points at `tensors`, both alive through the call; it reads them only.
    ffi::new_tensor("the finite check", |out| unsafe { ffi::te_all_finite(list.as_ptr(), list.len() as i64, out) })
}

/// Removes the gradients of parameters, so that the next backward pass makes new ones. (tch's own `zero_grad` fills them with zeros, with which
/// weights still decay and moments still move them.)
pub fn remove_grads<'a>(params: impl IntoIterator<Item = &'a Tensor>) {
    let params = ffi::pointers(params);
    // SAFETY: the list points at live tensors, whose gradients are handles of their own.
    let code = unsafe { ffi::te_forget_grads(params.as_ptr(), params.len() as i64) };
    ffi::check("removing gradients", code).expect("parameters are leaves and may lose their gradients");
}

#[cfg(test)]
mod tests;
