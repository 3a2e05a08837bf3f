//! Distinguishes out-of-memory errors from other failures, so that callers can retry with less.

use std::any::Any;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, resume_unwind, set_hook, take_hook};
use std::sync::atomic::{AtomicUsize, Ordering};

/// An out-of-memory error with the first line of libtorch's message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("memory does not suffice: {0}")]
pub struct OutOfMemory(pub String);

/// Calls `f` and separates out-of-memory errors, most of which tch reports as panics, from other failures. Other errors are returned and
/// other panics continue.
///
/// # Errors
/// Errors of `f` other than out of memory.
pub fn attempt<T, E: Display>(f: impl FnOnce() -> Result<T, E>) -> Result<Result<T, OutOfMemory>, E> {
    match catch_out_of_memory(f) {
        Err(lack) => Ok(Err(lack)),
        Ok(Ok(value)) => Ok(Ok(value)),
        Ok(Err(error)) => match out_of_memory(&format!("{error:#}")) {
            Some(lack) => Ok(Err(lack)),
            None => Err(error),
        },
    }
}

/// Calls `f` and converts out-of-memory panics, with which tch reports most out-of-memory errors, to an error. Other panics continue, and
/// the result of `f` is returned.
///
/// # Errors
/// Out of memory.
pub fn catch_out_of_memory<T>(f: impl FnOnce() -> T) -> Result<T, OutOfMemory> {
    ATTEMPTS.fetch_add(1, Ordering::SeqCst);
    // A panic inside leaves gradients switched on or off; dropping the guard restores the current state.
    let grad_mode = tch::no_grad_guard();
    let result = catch_unwind(AssertUnwindSafe(|| tch::with_grad(f)));
    drop(grad_mode);
    ATTEMPTS.fetch_sub(1, Ordering::SeqCst);
    result.or_else(|payload| match text(payload.as_ref()).and_then(out_of_memory) {
        Some(lack) => Err(lack),
        None => resume_unwind(payload),
    })
}

/// Number of attempts in progress. It is global because a GPU's backward panics on threads of libtorch.
static ATTEMPTS: AtomicUsize = AtomicUsize::new(0);

/// Silences the message of out-of-memory panics during an [`attempt`], because the caller logs a warning when it retries.
///
/// The panic hook belongs to the process, so only a program calls this, at its start; a library leaves it alone.
pub fn keep_quiet_about_memory() {
    let before = take_hook();
    set_hook(Box::new(move |info: &PanicHookInfo| {
        let attempted = ATTEMPTS.load(Ordering::SeqCst) > 0;
        if !(attempted && text(info.payload()).and_then(out_of_memory).is_some()) {
            before(info);
        }
    }));
}

fn text(payload: &(dyn Any + Send)) -> Option<&str> {
    let string = payload.downcast_ref::<String>().map(String::as_str);
    string.or_else(|| payload.downcast_ref::<&str>().copied())
}

/// The line of `message` that libtorch 2.11 writes when it is out of memory, if there is one: from its CUDA allocator, the driver, cuBLAS,
/// cuDNN or its CPU allocator.
pub fn out_of_memory(message: &str) -> Option<OutOfMemory> {
    [
        "CUDA out of memory",
        "CUDA error: out of memory",
        "CUBLAS_STATUS_ALLOC_FAILED",
        // cuBLAS reports this when it cannot allocate its own handle.
        "CUBLAS_STATUS_NOT_INITIALIZED",
        "CUDNN_STATUS_ALLOC_FAILED",
        "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "DefaultCPUAllocator: can't allocate memory",
        "DefaultCPUAllocator: not enough memory",
    ]
    .iter()
    .find_map(|words| {
        let start = message.find(words)?;
        // The first line, without wrapping text and backtrace.
        let line = message[start..].split(['\n', '"']).next()?;
        let line = line.split("\\n").next()?;
        Some(OutOfMemory(line.trim().to_owned()))
    })
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::*;

    fn one() -> Tensor {
        Tensor::ones([], (Kind::Float, Device::Cpu)).set_requires_grad(true)
    }

    /// Errors that have nothing to do with memory stay errors, panics stay panics, and gradients stay on.
    #[test]
    fn other_failures_are_none_of_its_business() {
        let error = attempt::<(), String>(|| Err("the disk is full".to_owned())).unwrap_err();
        assert_eq!(error, "the disk is full");
        let lack = attempt::<(), String>(|| Err("copying: CUDA out of memory. Tried to allocate 2 GiB".to_owned()));
        assert_eq!(lack.unwrap().unwrap_err().0, "CUDA out of memory. Tried to allocate 2 GiB");
        let panicked = catch_unwind(|| attempt::<(), String>(|| tch::no_grad(|| panic!("a bug"))));
        assert_eq!(text(panicked.unwrap_err().as_ref()), Some("a bug"));
        assert!((one() * 2.0).requires_grad());
        // tch::no_grad is not undone when it is unwound; attempt is what undoes it.
        let ran_out = attempt::<(), String>(|| {
            tch::no_grad(|| {
                let _ = Tensor::zeros([1 << 52], (Kind::Float, Device::Cpu));
            });
            Ok(())
        });
        assert!(ran_out.unwrap().is_err());
        assert!((one() * 2.0).requires_grad());
    }
}
