//! When memory runs out, the same step is done in smaller micro-batches.
//!
//! A loaded batch is one forward and backward pass until libtorch runs out of memory for it. Then the step begins again, and every batch is
//! split into more micro-batches of equal size, the next number that divides it. All losses are means over images, so the mean over them is
//! the mean over the batch, and the update is the same up to rounding. Their number is kept for the rest of the run and saved with
//! its checkpoints: a resumed run sums in the same order.
//!
//! This does not help if the system has promised memory that it does not have: then Linux kills the process.

use anyhow::ensure;
use torch_ext::{OutOfMemory, attempt};
use tracing::warn;

use crate::data::loader::NoHostMemory;
use crate::dist::Share;

#[cfg(test)]
pub(crate) mod tests;

/// The number of micro-batches into which each batch of a run is split.
#[derive(Debug)]
pub(crate) struct MicroBatches {
    batch_size: usize,
    per_batch: usize,
}

impl MicroBatches {
    /// Batches of `batch_size` images in `per_batch` micro-batches, 1 if memory has not run out yet.
    pub(crate) fn new(batch_size: usize, per_batch: usize) -> anyhow::Result<MicroBatches> {
        ensure!(
            per_batch >= 1 && batch_size.is_multiple_of(per_batch),
            "the checkpoint splits each batch into {per_batch} micro-batches, which do not divide optim.batch_size = {batch_size}"
        );
        Ok(MicroBatches { batch_size, per_batch })
    }

    /// The part of each batch that a process takes, where whole batches are split into at least `per_batch` micro-batches: by this process or
    /// before by others.
    pub(crate) fn of_share(share: &Share, per_batch: usize) -> anyhow::Result<MicroBatches> {
        let (images, least) = (share.images(), per_batch.div_ceil(share.parts()));
        let divides = |per_batch: &usize| images.is_multiple_of(*per_batch);
        match share.parts() {
            1 => MicroBatches::new(images, per_batch),
            _ => MicroBatches::new(images, (least.max(1)..=images).find(divides).unwrap_or(images)),
        }
    }

    /// How many micro-batches a batch is split into.
    pub(crate) fn per_batch(&self) -> usize {
        self.per_batch
    }

    /// Calls `step` with the number of micro-batches of a batch, and again with more whenever memory runs out in it. `step` begins by dropping all gradients.
    ///
    /// # Errors
    /// Those of `step`, and running out of memory for a single image.
    pub(crate) fn retry_smaller<T>(&mut self, mut step: impl FnMut(usize) -> anyhow::Result<T>) -> anyhow::Result<T> {
        loop {
            let (images, per_batch) = (self.batch_size / self.per_batch, self.per_batch);
            let attempted = attempt(|| {
                #[cfg(test)]
                tests::run_out_above_limit(images);
                match step(per_batch) {
                    Err(error) if error.is::<NoHostMemory>() => Ok(Err(error)),
                    other => other.map(Ok),
                }
            })?;
            match attempted {
                Ok(done) => return done,
                Err(OutOfMemory(message)) => {
                    // The allocator would otherwise keep the blocks of the larger micro-batches beside those of the smaller ones.
                    torch_ext::empty_cache()?;
                    self.cut_further(images, &message)?;
                }
            }
        }
    }

    fn cut_further(&mut self, images: usize, message: &str) -> anyhow::Result<()> {
        ensure!(
            images > 1,
            "out of memory for one image at a time: {message}\nSet run.grad_checkpointing = true, or use a smaller model \
             or a device with more memory"
        );
        let divides = |per_batch: &usize| self.batch_size.is_multiple_of(*per_batch);
        // Micro-batches of one image divide every batch.
        self.per_batch = (self.per_batch + 1..=self.batch_size).find(divides).unwrap_or(self.batch_size);
        warn!(
            "out of memory for {images} images at a time: {message}\nFrom here on each batch is split into {} micro-batches of {} \
             images; the effective batch size stays the same, and so does the update up to rounding",
            self.per_batch,
            self.batch_size / self.per_batch
        );
        Ok(())
    }
}
