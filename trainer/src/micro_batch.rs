//! What to do when memory runs out: the same step in smaller parts.
//!
//! A loaded batch is one forward and backward pass until libtorch cannot have the memory for it. Then the step's gradients are dropped,
//! every batch is taken in more equal parts (two, four, eight: whatever divides it), and the step begins again. All losses are
//! means over images, so the mean over equal parts is the mean over the batch, and the update is the same up to rounding. The number of
//! parts is kept for the rest of the run and saved with its checkpoints: a resumed run sums in the same order.
//!
//! Memory that the system promises and then does not have is beyond this: Linux kills the process.

use std::any::Any;
use std::panic::{
    AssertUnwindSafe, PanicHookInfo, catch_unwind, resume_unwind, set_hook, take_hook,
};
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::ensure;
use models::mr_mae::Losses;
use torch_ext::FusedAdamW;
use tracing::warn;

use crate::data::batch::MimicBatch;

#[cfg(test)]
pub(crate) mod tests;

/// Forward and backward of some images, whose gradient counts one part in so many.
pub type PassFn<'a> = &'a dyn Fn(&MimicBatch, usize) -> anyhow::Result<Losses>;

/// How batches are cut up.
#[derive(Debug)]
pub struct MicroBatches {
    batch_size: usize,
    accum_iter: usize,
    parts: usize,
}

impl MicroBatches {
    /// `parts` of batches of `batch_size` images, of which a step has `accum_iter`.
    pub fn new(batch_size: usize, accum_iter: usize, parts: usize) -> anyhow::Result<MicroBatches> {
        ensure!(
            parts >= 1 && batch_size.is_multiple_of(parts),
            "the checkpoint takes its batches in {parts} parts, which do not divide optim.batch_size = {batch_size}"
        );
        Ok(MicroBatches {
            batch_size,
            accum_iter,
            parts,
        })
    }

    /// Parts of a batch.
    pub fn parts(&self) -> usize {
        self.parts
    }

    /// Calls `pass` on each part of a step's `batches` that has no `losses` yet, in order, and appends what it gives.
    ///
    /// When memory runs out, the step begins again in smaller parts, with the batches that it has. An error if a single image is too
    /// much.
    pub fn accumulate(
        &mut self,
        optim: &mut FusedAdamW,
        batches: &[MimicBatch],
        losses: &mut Vec<Losses>,
        pass: PassFn,
    ) -> anyhow::Result<()> {
        while losses.len() < batches.len() * self.parts {
            let (batch, part) = (losses.len() / self.parts, losses.len() % self.parts);
            let images = self.batch_size / self.parts;
            let of_step = self.accum_iter * self.parts;
            let attempted = attempt(|| {
                #[cfg(test)]
                tests::run_out_above_limit(images);
                pass(&batches[batch].part(part * images, images), of_step)
            })?;
            match attempted {
                Ok(found) => losses.push(found),
                Err(OutOfMemory(message)) => {
                    losses.clear();
                    optim.zero_grad();
                    // Blocks cut for the larger parts would otherwise be held beside those for the smaller ones.
                    torch_ext::empty_cache()?;
                    self.cut_further(&message)?;
                }
            }
        }
        Ok(())
    }

    fn cut_further(&mut self, message: &str) -> anyhow::Result<()> {
        let images = self.batch_size / self.parts;
        ensure!(
            images > 1,
            "memory does not suffice for one image at a time: {message}\nSet run.grad_checkpointing = true, take a smaller model, or a \
             device with more memory"
        );
        let divides = |parts: &usize| self.batch_size.is_multiple_of(*parts);
        // One image a part divides every batch.
        self.parts = (self.parts + 1..=self.batch_size)
            .find(divides)
            .unwrap_or(self.batch_size);
        warn!(
            "memory does not suffice for {images} images at a time: {message}\nFrom here on each batch is taken as {} parts of {} \
             images; the effective batch stays, and so does the update up to rounding",
            self.parts,
            self.batch_size / self.parts
        );
        Ok(())
    }
}

/// Why a pass could not be made.
#[derive(Debug)]
struct OutOfMemory(String);

/// Calls `f`, of whose failures those for want of memory are told apart. tch has most of them as panics; others go on as they are.
fn attempt<T>(f: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<Result<T, OutOfMemory>> {
    ATTEMPTS.fetch_add(1, Ordering::SeqCst);
    // A panic leaves gradients switched as they were within; when the guard goes, they are as now.
    let grad_mode = tch::no_grad_guard();
    let result = catch_unwind(AssertUnwindSafe(|| tch::with_grad(f)));
    drop(grad_mode);
    ATTEMPTS.fetch_sub(1, Ordering::SeqCst);
    match result {
        Ok(Ok(value)) => Ok(Ok(value)),
        Ok(Err(error)) => match out_of_memory(&format!("{error:#}")) {
            Some(lack) => Ok(Err(lack)),
            None => Err(error),
        },
        Err(payload) => match text(payload.as_ref()).and_then(out_of_memory) {
            Some(lack) => Ok(Err(lack)),
            None => resume_unwind(payload),
        },
    }
}

/// Passes that are being attempted just now. A GPU's backward panics on threads of libtorch, so this is no matter of one thread.
static ATTEMPTS: AtomicUsize = AtomicUsize::new(0);

/// Keeps panics for want of memory from being printed while a pass is attempted: what follows from them is said in a warning.
///
/// The panic hook belongs to the process, so only the program calls this, at its start; a library's caller keeps its own.
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

/// The words of libtorch 2.11 for a lack of memory, if `message` has some: its CUDA allocator's, the driver's, cuBLAS's and cuDNN's, and its
/// CPU allocator's.
fn out_of_memory(message: &str) -> Option<OutOfMemory> {
    [
        "CUDA out of memory",
        "CUDA error: out of memory",
        "CUBLAS_STATUS_ALLOC_FAILED",
        // What cuBLAS says when there is no room for a handle of its own.
        "CUBLAS_STATUS_NOT_INITIALIZED",
        "CUDNN_STATUS_ALLOC_FAILED",
        "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "DefaultCPUAllocator: can't allocate memory",
        "DefaultCPUAllocator: not enough memory",
    ]
    .iter()
    .find_map(|words| {
        let start = message.find(words)?;
        // Its first line, without what wraps it and without the backtrace.
        let line = message[start..].split(['\n', '"']).next()?;
        let line = line.split("\\n").next()?;
        Some(OutOfMemory(line.trim().to_owned()))
    })
}
