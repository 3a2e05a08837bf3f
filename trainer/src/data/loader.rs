//! Loader threads: cached rows and images in, finished batches out, in order, ahead of the training loop.
//!
//! One thread follows the sampler and fills one batch after another; within a batch a pool of threads takes images as they come.
//! Every image has its slot in preallocated memory and depends on nothing but its position, so batches are the same for any
//! number of threads. A bounded queue holds what is finished.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use tch::{Device, Tensor};
use torch_ext::tensor_bytes_mut;

use super::batch::MimicBatch;
use super::sampler::Sampler;
use crate::dist::Share;

#[cfg(test)]
mod tests;

/// Images whose bytes are on their way from an object store before their batch is filled: at 5,000 images a second and 100 ms of latency, all
/// that come in the meantime. They take some 200 MB.
const AHEAD: usize = 512;

/// A data set that a [`Loader`] loads. Its batches depend on nothing but their place in the order.
pub(crate) trait Dataset: Send + Sync + 'static {
    /// A batch, whose memory is filled again and again.
    type Batch: Send + 'static;
    /// Which samples each step sees.
    fn sampler(&self) -> &Sampler;
    /// Which part of each step is loaded: that of this process.
    fn share(&self) -> &Share;
    /// A batch of unspecified content; page-locked when `device` is a GPU.
    fn allocate(&self, device: Device) -> torch_ext::Result<Self::Batch>;
    /// Whether reading takes round trips over a network, so that [`Dataset::prefetch`] is worth calling.
    fn is_remote(&self) -> bool {
        false
    }
    /// Begins to fetch what [`Dataset::fill`] will read for these samples of an epoch, and does not wait for it.
    fn prefetch(&self, epoch: u64, idxs: &[u32]) {
        let _ = (epoch, idxs);
    }
    /// Fills `batch` with the given samples of an epoch, on the threads of the pool it is called in.
    fn fill(&self, batch: &mut Self::Batch, epoch: u64, idxs: &[u32]) -> anyhow::Result<()>;
    /// Sets in a filled batch what depends on the whole batch of which it is this process's part.
    fn set_whole(&self, batch: &mut Self::Batch, epoch: u64, whole: &[u32]) -> anyhow::Result<()> {
        let _ = (batch, epoch, whole);
        Ok(())
    }
}

/// The host has no memory for a batch. Unlike a step that runs out of memory, this is not tried again in smaller micro-batches.
#[derive(Debug, thiserror::Error)]
#[error("no page-locked memory for a batch: {0}")]
pub(crate) struct NoHostMemory(pub(crate) String);

/// The running loader. Dropping it stops and joins its threads.
#[derive(Debug)]
pub(crate) struct Loader<B = MimicBatch> {
    batches: Option<Receiver<anyhow::Result<B>>>,
    used: Option<Sender<B>>,
    thread: Option<JoinHandle<()>>,
    waited: Duration,
}

impl<B: Send + 'static> Loader<B> {
    /// Starts loading the batches of `steps`, of each the data set's share.
    ///
    /// `threads` decode; `prefetch` finished batches may wait; memory is page-locked when `device` is a GPU.
    pub(crate) fn start(
        dataset: Arc<impl Dataset<Batch = B>>,
        steps: std::ops::Range<u64>,
        threads: usize,
        prefetch: usize,
        device: Device,
    ) -> anyhow::Result<Loader<B>> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("loader-{i}"))
            .build()
            .context("cannot start the loader's threads")?;
        let (batch_tx, batch_rx) = bounded(prefetch);
        let (used_tx, used_rx) = unbounded();
        let run = move || run(&*dataset, steps, &pool, device, &batch_tx, &used_rx);
        let thread = std::thread::Builder::new().name("loader".into()).spawn(run).context("cannot start the loader")?;
        Ok(Loader { batches: Some(batch_rx), used: Some(used_tx), thread: Some(thread), waited: Duration::ZERO })
    }

    /// The next batch, or what is wrong with the data, naming file and row. [`Loader::take_waited`] counts the time spent here.
    pub(crate) fn next_batch(&mut self) -> anyhow::Result<B> {
        let start = Instant::now();
        let batch = self.batches.as_ref().and_then(|batches| batches.recv().ok());
        self.waited += start.elapsed();
        batch.unwrap_or_else(|| {
            Err(anyhow::anyhow!(
                "the loader has ended: one of its threads has panicked (the message is above), or no step is left"
            ))
        })
    }

    /// Gives batches back to be filled again. The device must be past every copy from them.
    pub(crate) fn recycle(&self, batches: impl IntoIterator<Item = B>) {
        if let Some(used) = &self.used {
            for batch in batches {
                // The loader thread is gone after the last step; then the memory is simply freed.
                let _ = used.send(batch);
            }
        }
    }

    /// How long [`Loader::next_batch`] has waited since the last call.
    pub(crate) fn take_waited(&mut self) -> Duration {
        std::mem::take(&mut self.waited)
    }
}

impl<B> Drop for Loader<B> {
    fn drop(&mut self) {
        // Closing both ends makes the thread's next send fail, which ends it.
        self.batches = None;
        self.used = None;
        if let Some(thread) = self.thread.take() {
            // A panic in there has been reported by the panic hook, and next_batch has failed.
            let _ = thread.join();
        }
    }
}

fn run<D: Dataset>(
    dataset: &D,
    steps: std::ops::Range<u64>,
    pool: &rayon::ThreadPool,
    device: Device,
    batches: &Sender<anyhow::Result<D::Batch>>,
    used: &Receiver<D::Batch>,
) {
    let mut next = batches_of(dataset, steps);
    let mut queue = VecDeque::new();
    let mut images_ahead = 0;
    loop {
        let wanted = if dataset.is_remote() { AHEAD } else { 0 };
        while queue.is_empty() || images_ahead < wanted {
            let Some(planned) = next.next() else { break };
            if dataset.is_remote() {
                dataset.prefetch(planned.epoch, &planned.idxs);
            }
            images_ahead += planned.idxs.len();
            queue.push_back(planned);
        }
        let Some(Planned { epoch, idxs, whole }) = queue.pop_front() else {
            return;
        };
        images_ahead -= idxs.len();
        let batch = match used.try_recv() {
            Ok(batch) => Ok(batch),
            Err(_) => dataset.allocate(device).map_err(|e| NoHostMemory(e.to_string()).into()),
        };
        let filled = batch.and_then(|mut batch| {
            pool.install(|| dataset.fill(&mut batch, epoch, &idxs))?;
            whole.map_or(Ok(()), |whole| dataset.set_whole(&mut batch, epoch, &whole))?;
            Ok(batch)
        });
        let failed = filled.is_err();
        if batches.send(filled).is_err() || failed {
            return;
        }
    }
}

/// A batch before it is loaded.
struct Planned {
    epoch: u64,
    /// The samples to load.
    idxs: Vec<u32>,
    /// Those of the whole batch, if other processes load the rest of it.
    whole: Option<Vec<u32>>,
}

/// The batches that `dataset`'s share has of `steps`.
fn batches_of<D: Dataset>(dataset: &D, steps: std::ops::Range<u64>) -> impl Iterator<Item = Planned> {
    let mut current: Option<(u64, Vec<u32>)> = None;
    let share = *dataset.share();
    steps.flat_map(move |step| {
        let position = dataset.sampler().position(step);
        let (epoch, permutation) = match current.take() {
            Some((epoch, permutation)) if epoch == position.epoch => (epoch, permutation),
            _ => (position.epoch, dataset.sampler().permutation(position.epoch)),
        };
        let of_step = &permutation[dataset.sampler().step_range(position.step)];
        let planned = |batch: &[u32]| Planned {
            epoch,
            idxs: share.of_batch(batch),
            whole: (share.parts() > 1).then(|| batch.to_vec()),
        };
        let batches: Vec<_> =
            of_step.chunks(share.batch_size()).skip(share.batch(0)).take(share.batches()).map(planned).collect();
        current = Some((epoch, permutation));
        batches
    })
}

/// The bytes of `tensor [n, ..]` as `n` pieces.
pub(crate) fn cut(tensor: &mut Tensor, n: usize) -> torch_ext::Result<Vec<&mut [u8]>> {
    let bytes = tensor_bytes_mut(tensor)?;
    let each = bytes.len() / n;
    Ok(bytes.chunks_exact_mut(each).collect())
}
