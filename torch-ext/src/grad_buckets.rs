//! The sum of the gradients of a group of processes, in flat buckets, while the backward pass still runs.
//!
//! As `torch.nn.parallel.DistributedDataParallel` does it, but for any loop: gradients may be accumulated over many backward passes, of which
//! the last is announced by [`GradBuckets::arm`], and a pass that ran out of memory may be repeated.

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use tch::Tensor;

use crate::error::Result;
use crate::ffi;
use crate::process_group::ProcessGroup;

/// The buckets for the gradients of some parameters.
pub struct GradBuckets {
    buckets: NonNull<ffi::CGradBuckets>,
    /// Must outlive them.
    _group: Arc<ProcessGroup>,
}

// SAFETY: buckets belong to no thread; autograd's threads use them only within a backward pass.
unsafe impl Send for GradBuckets {}

impl GradBuckets {
    /// Buckets of at most `bucket_bytes`, or of one parameter that is larger. `in_bf16` halves what is sent, and rounds gradients and sums to bf16. Parameters
    /// are on the group's device, and every process gives the same in the same order.
    ///
    /// # Errors
    /// If there is no memory for them.
    pub fn new<'a>(
        group: Arc<ProcessGroup>,
        params: impl IntoIterator<Item = &'a Tensor>,
        bucket_bytes: usize,
        in_bf16: bool,
    ) -> Result<GradBuckets> {
        let params = ffi::pointers(params);
        let mut buckets = std::ptr::null_mut();
        // SAFETY: the list points at live tensors, of which the C++ side keeps handles; the last pointer is to a live local variable.
        let code = unsafe {
            ffi::te_buckets_new(
                group.as_ptr(),
                params.as_ptr(),
                params.len() as i64,
                bucket_bytes as i64,
                in_bf16.into(),
                &mut buckets,
            )
        };
        ffi::check("allocating the gradients' buckets", code)?;
        Ok(GradBuckets { buckets: NonNull::new(buckets).expect("buckets on success"), _group: group })
    }

    /// Begins a step: of its gradients none is summed yet. Those of the step before have been removed, as by
    /// [`remove_grads`](crate::remove_grads): their memory is that of the buckets.
    pub fn begin(&mut self) {
        // SAFETY: the buckets live and are exclusively borrowed.
        unsafe { ffi::te_buckets_begin(self.buckets.as_ptr()) }
    }

    /// Announces that the next backward pass is the last of the step, so that a sum may begin as soon as its gradients are there (from the second
    /// step on: the first finds out which parameters have a gradient). If memory runs out in that pass, the passes of the step may be repeated.
    pub fn arm(&mut self) {
        // SAFETY: as above.
        unsafe { ffi::te_buckets_arm(self.buckets.as_ptr()) }
    }

    /// Ends the step: every gradient becomes the sum over all processes, and so do `values`, a contiguous f32 tensor.
    ///
    /// # Errors
    /// [`Error::Group`](crate::Error::Group) if a process is gone or does not come in time.
    pub fn finish(&mut self, values: &mut Tensor) -> Result<()> {
        // SAFETY: as above; the tensor lives and is exclusively borrowed.
        let code = unsafe { ffi::te_buckets_finish(self.buckets.as_ptr(), values.as_ptr()) };
        ffi::check_group("summing gradients", code)
    }
}

impl Drop for GradBuckets {
    fn drop(&mut self) {
        // SAFETY: they came from te_buckets_new and are freed only here.
        unsafe { ffi::te_buckets_free(self.buckets.as_ptr()) }
    }
}

impl fmt::Debug for GradBuckets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GradBuckets")
    }
}

#[cfg(test)]
mod tests;
