//! What to do when memory runs out: the same step in smaller parts.
//!
//! A loaded batch is one forward and backward pass until libtorch cannot have the memory for it. Then the step's gradients are dropped,
//! every batch is taken in more equal parts (two, four, eight: whatever divides it), and the step begins again. All losses are
//! means over images, so the mean over equal parts is the mean over the batch, and the update is the same up to rounding. The number of
//! parts is kept for the rest of the run and saved with its checkpoints: a resumed run sums in the same order.
//!
//! Memory that the system promises and then does not have is beyond this: Linux kills the process.

use anyhow::ensure;
use models::mr_mae::Losses;
use torch_ext::{FusedAdamW, OutOfMemory, attempt};
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
        Ok(MicroBatches { batch_size, accum_iter, parts })
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
        self.parts = (self.parts + 1..=self.batch_size).find(divides).unwrap_or(self.batch_size);
        warn!(
            "memory does not suffice for {images} images at a time: {message}\nFrom here on each batch is taken as {} parts of {} \
             images; the effective batch stays, and so does the update up to rounding",
            self.parts,
            self.batch_size / self.parts
        );
        Ok(())
    }
}
