//! Gradient checkpointing (Chen et al. 2016, "Training deep nets with sublinear memory cost"): a part of the forward pass keeps only its
//! input and is computed again in backward.

use std::ffi::c_void;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use tch::Tensor;
use torch_sys::C_tensor;

use crate::ffi;

/// Computes `f(x)` and keeps only `x` and what `f` holds for backward, which calls `f` again.
///
/// Gradients go into `x` and into every leaf that `f` holds, and equal those of `f(x)` itself to the bit where `f` uses each leaf once.
/// The second call happens under the autocast state of the first; with a GPU it happens on another thread, hence `Send`. `f` must give
/// the same result both times: it draws no random numbers, and its captured values do not change before backward. Leaves that `f` only
/// reads get gradients, too; a non-leaf tensor that requires a gradient belongs into `x`, because its graph would be traversed once for
/// every such call. If nothing requires a gradient, this is `f(x)`.
///
/// Like `torch.utils.checkpoint.checkpoint(use_reentrant=True)`.
///
/// # Panics
/// If `f` panics, with its message; in backward, tch's `backward` panics.
pub fn checkpoint<F>(f: F, x: &Tensor) -> Tensor
where
    F: Fn(&Tensor) -> Tensor + Send + 'static,
{
    // `f` need not be `Sync`; the lock makes it safe if two threads traverse the graph.
    let closure = Box::into_raw(Box::new(Mutex::new(f)));
    let result = ffi::new_tensor("a checkpointed forward", |out| {
        // SAFETY: `x` is alive and only read. The closure is on the heap and handed over for good; `call` and `free` know its type, and
        // it is `Send`, so that they may run on any thread; the lock keeps two calls apart. It is freed once, with the graph.
        unsafe { ffi::te_checkpoint(x.as_ptr(), closure.cast(), call::<F>, free::<F>, out) }
    });
    match result {
        Ok(y) => y,
        Err(error) => panic!("{error}"),
    }
}

/// Calls the closure on `input`, of which it takes ownership; returns null if it panicked.
extern "C" fn call<F>(closure: *mut c_void, input: *mut C_tensor) -> *mut C_tensor
where
    F: Fn(&Tensor) -> Tensor + Send + 'static,
{
    // SAFETY: `input` is a new tensor that the caller gives away.
    let x = unsafe { Tensor::from_ptr(input) };
    // SAFETY: `checkpoint` made `closure` with this type, and it is not freed before the last call.
    let f = unsafe { &*closure.cast::<Mutex<F>>() };
    let called = catch_unwind(AssertUnwindSafe(|| f.lock().unwrap_or_else(PoisonError::into_inner)(&x)));
    match called {
        // The caller takes ownership.
        Ok(y) => ManuallyDrop::new(y).as_mut_ptr(),
        Err(payload) => {
            let message = payload
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| payload.downcast_ref::<&str>().copied())
                .unwrap_or("a checkpointed closure panicked");
            // SAFETY: the bytes are alive and `len` long; they are copied.
            unsafe { ffi::te_closure_failed(message.as_ptr().cast(), message.len() as i64) };
            std::ptr::null_mut()
        }
    }
}

extern "C" fn free<F>(closure: *mut c_void) {
    // SAFETY: made by `Box::into_raw` in `checkpoint` with this type, and freed only here, after the last call.
    drop(unsafe { Box::from_raw(closure.cast::<Mutex<F>>()) });
}

#[cfg(test)]
mod tests;
