//! Loader threads: cached rows and images in, finished batches out, in order, ahead of the training loop.
//!
//! One thread walks the order and fills one batch after another; within a batch a pool of threads takes images as they come.
//! Every image has its slot in preallocated memory and depends on nothing but its position, so batches are the same for any
//! number of threads. A bounded queue holds what is finished.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use images::rng::{Purpose, Rng};
use models::masking::block_noise;
use rayon::prelude::*;
use schemas::View;
use tch::{Device, Tensor};
use torch_ext::tensor_bytes_mut;

use super::Problem;
use super::batch::{BatchShape, MimicBatch, TeacherBatch, TeacherShape};
use super::images::Images;
use super::join::Samples;
use super::order::Order;
use super::pixel_cache::PixelCache;
use super::rows::TeacherRows;
use super::sample::Sample;

#[cfg(test)]
mod tests;

/// What is loaded, without when.
pub struct LoaderPlan {
    /// The joined data set.
    pub samples: Samples,
    /// Where the bytes are.
    pub images: Images,
    /// One per teacher; `None` where the teacher runs online.
    pub rows: Vec<Option<TeacherRows>>,
    /// The student's crops that are in memory.
    pub pixels: PixelCache,
    /// Sizes.
    pub shape: BatchShape,
    /// Which samples each step sees.
    pub order: Order,
    /// What masks are made from.
    pub noise: Noise,
    /// Of masks.
    pub seed: u64,
}

/// What masks are made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noise {
    /// One uniform number per patch.
    Uniform,
    /// Blocks.
    Block {
        /// Patches removed per image.
        num_removed: usize,
    },
}

/// What a [`Loader`] loads: batches that depend on nothing but their place in the order.
pub trait Plan: Send + Sync + 'static {
    /// Memory that is filled again and again.
    type Batch: Send + 'static;
    /// Which samples each step sees.
    fn order(&self) -> &Order;
    /// Samples of a batch.
    fn batch_size(&self) -> usize;
    /// A batch of unspecified content; page-locked when `device` is a GPU.
    fn allocate(&self, device: Device) -> torch_ext::Result<Self::Batch>;
    /// Fills `batch` with the given samples of an epoch, on the threads of the pool it is called in.
    fn fill(&self, batch: &mut Self::Batch, epoch: u64, idxs: &[u32]) -> anyhow::Result<()>;
}

impl Plan for LoaderPlan {
    type Batch = MimicBatch;

    fn order(&self) -> &Order {
        &self.order
    }

    fn batch_size(&self) -> usize {
        self.shape.batch_size
    }

    fn allocate(&self, device: Device) -> torch_ext::Result<MimicBatch> {
        self.shape.allocate(device)
    }

    fn fill(&self, batch: &mut MimicBatch, epoch: u64, idxs: &[u32]) -> anyhow::Result<()> {
        LoaderPlan::fill(self, batch, epoch, idxs)
    }
}

/// The running loader. Dropping it stops and joins its threads.
#[derive(Debug)]
pub struct Loader<B = MimicBatch> {
    batches: Option<Receiver<anyhow::Result<B>>>,
    used: Option<Sender<B>>,
    thread: Option<JoinHandle<()>>,
    waited: Duration,
}

impl<B: Send + 'static> Loader<B> {
    /// Starts loading the batches of `steps`, each step as batches of the plan's size.
    ///
    /// `threads` decode; `prefetch` finished batches may wait; memory is page-locked when `device` is a GPU.
    pub fn start(
        plan: Arc<impl Plan<Batch = B>>,
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
        let walk = move || walk(&*plan, steps, &pool, device, &batch_tx, &used_rx);
        let thread =
            std::thread::Builder::new().name("loader".into()).spawn(walk).context("cannot start the loader")?;
        Ok(Loader { batches: Some(batch_rx), used: Some(used_tx), thread: Some(thread), waited: Duration::ZERO })
    }

    /// The next batch, or what is wrong with the data, naming file and row. Time spent here is [`Loader::take_waited`]'s.
    pub fn next_batch(&mut self) -> anyhow::Result<B> {
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
    pub fn recycle(&self, batches: impl IntoIterator<Item = B>) {
        if let Some(used) = &self.used {
            for batch in batches {
                // The walker is gone after the last step; then the memory is simply freed.
                let _ = used.send(batch);
            }
        }
    }

    /// How long [`Loader::next_batch`] has waited since the last call.
    pub fn take_waited(&mut self) -> Duration {
        std::mem::take(&mut self.waited)
    }
}

impl<B> Drop for Loader<B> {
    fn drop(&mut self) {
        // Closing both ends makes the walker's next send fail, which ends it.
        self.batches = None;
        self.used = None;
        if let Some(thread) = self.thread.take() {
            // A panic in there has been reported by the panic hook, and next_batch has failed.
            let _ = thread.join();
        }
    }
}

fn walk<P: Plan>(
    plan: &P,
    steps: std::ops::Range<u64>,
    pool: &rayon::ThreadPool,
    device: Device,
    batches: &Sender<anyhow::Result<P::Batch>>,
    used: &Receiver<P::Batch>,
) {
    let mut current: Option<(u64, Vec<u32>)> = None;
    for step in steps {
        let position = plan.order().position(step);
        if current.as_ref().is_none_or(|(epoch, _)| *epoch != position.epoch) {
            current = Some((position.epoch, plan.order().permutation(position.epoch)));
        }
        let Some((epoch, permutation)) = &current else {
            return;
        };
        for micro in permutation[plan.order().step_range(position.step)].chunks(plan.batch_size()) {
            let batch = match used.try_recv() {
                Ok(batch) => Ok(batch),
                Err(_) => plan.allocate(device).map_err(anyhow::Error::from),
            };
            let filled = batch.and_then(|mut batch| {
                pool.install(|| plan.fill(&mut batch, *epoch, micro))?;
                Ok(batch)
            });
            let failed = filled.is_err();
            if batches.send(filled).is_err() || failed {
                return;
            }
        }
    }
}

/// The memory of one image within a batch.
struct Slot<'a> {
    sample: &'a mut (u64, u16),
    img: &'a mut [u8],
    noise: &'a mut [u8],
    drop_path: Option<&'a mut [u8]>,
    teachers: Vec<TeacherSlot<'a>>,
}

struct TeacherSlot<'a> {
    tokens: Option<&'a mut [u8]>,
    outliers: Option<&'a mut [u8]>,
    cls: Option<&'a mut [u8]>,
    cls_attn: Option<&'a mut [u8]>,
    pixels: Option<&'a mut [u8]>,
}

impl LoaderPlan {
    /// Fills `batch` with the given samples of an epoch. With several problems, the one of the first slot is returned.
    pub fn fill(&self, batch: &mut MimicBatch, epoch: u64, idxs: &[u32]) -> anyhow::Result<()> {
        let view = (epoch % self.samples.views() as u64) as usize;
        let slots = slots(batch)?;
        let results: Vec<Result<(), Problem>> = slots
            .into_par_iter()
            .zip(idxs.par_iter())
            .map(|(slot, &idx)| self.fill_slot(slot, epoch, idx as usize, view))
            .collect();
        Ok(results.into_iter().collect::<Result<(), Problem>>()?)
    }

    fn fill_slot(&self, slot: Slot, epoch: u64, idx: usize, view: usize) -> Result<(), Problem> {
        let (sample, row_view) = self.samples.get(idx, view);
        *slot.sample = (sample.sample_id, row_view.index);

        // ---- pixels: an image is read only if one of the crops wanted of it is not in memory
        let mut img = None;
        if !self.pixels.get(idx, view, slot.img) {
            let img = img.insert(self.read_image(sample, view)?);
            self.render(img, sample, row_view, self.shape.img_size, slot.img)?;
            self.pixels.put(idx, view, slot.img);
        }

        // ---- noise for the mask
        let mut rng = Rng::new(self.seed, Purpose::Mask, &[epoch, sample.sample_id]);
        let side = self.shape.grid as usize;
        let noise: Vec<f64> = match self.noise {
            Noise::Uniform => (0..side * side).map(|_| rng.uniform_f64()).collect(),
            Noise::Block { num_removed } => block_noise([side, side], num_removed, &mut || rng.uniform_f64()),
        };
        write_f64(slot.noise, noise);

        // ---- stochastic depth
        if let Some(drop_path) = slot.drop_path {
            let mut rng = Rng::new(self.seed, Purpose::DropPath, &[epoch, sample.sample_id]);
            write_f64(drop_path, std::iter::repeat_with(|| rng.uniform_f64()));
        }

        // ---- teachers
        for ((teacher, rows), shape) in slot.teachers.into_iter().zip(&self.rows).zip(&self.shape.teachers) {
            if let Some(rows) = rows {
                rows.read(
                    sample,
                    row_view,
                    sample.first_row + view,
                    teacher.tokens,
                    teacher.outliers,
                    teacher.cls,
                    teacher.cls_attn,
                )?;
            }
            if let (Some(pixels), TeacherShape::Online { input_size }) = (teacher.pixels, shape) {
                if *input_size == self.shape.img_size {
                    pixels.copy_from_slice(slot.img);
                } else {
                    let img = match &mut img {
                        Some(img) => img,
                        None => img.insert(self.read_image(sample, view)?),
                    };
                    self.render(img, sample, row_view, *input_size, pixels)?;
                }
            }
        }
        Ok(())
    }

    fn read_image(&self, sample: &Sample, view: usize) -> Result<images::RgbImage, Problem> {
        let bytes = self.images.read(sample, view)?;
        let decoded = self.samples.decoder().decode(&bytes);
        decoded.map_err(|e| self.images.problem(sample, view, e))
    }

    /// The view of the image at `size`, as [H, W, 3] bytes.
    fn render(
        &self,
        img: &images::RgbImage,
        sample: &Sample,
        view: &View,
        size: u32,
        out: &mut [u8],
    ) -> Result<(), Problem> {
        let rendered =
            images::render(img, view, size).map_err(|e| self.images.problem(sample, view.index.into(), e))?;
        out.copy_from_slice(&rendered.data);
        Ok(())
    }
}

/// Fills `bytes` with as many of `values` as it has room for.
fn write_f64(bytes: &mut [u8], values: impl IntoIterator<Item = f64>) {
    for (slot, value) in bytes.chunks_exact_mut(size_of::<f64>()).zip(values) {
        slot.copy_from_slice(&value.to_ne_bytes());
    }
}

/// Cuts a batch's tensors into one slot per image.
fn slots(batch: &mut MimicBatch) -> torch_ext::Result<Vec<Slot<'_>>> {
    let MimicBatch { samples, imgs, noise, drop_path, teachers } = batch;
    let n = samples.len();
    let pixels_and_noise = cut(imgs, n)?.into_iter().zip(cut(noise, n)?);
    let drop_path = cut_some(drop_path.as_mut(), n)?;
    let mut slots: Vec<Slot> = samples
        .iter_mut()
        .zip(pixels_and_noise)
        .zip(drop_path)
        .map(|((sample, (img, noise)), drop_path)| Slot { sample, img, noise, drop_path, teachers: Vec::new() })
        .collect();
    for teacher in teachers {
        let [tokens, outliers, cls, cls_attn, pixels] = match teacher {
            TeacherBatch::Cached { tokens, outliers, cls, cls_attn } => {
                [tokens.as_mut(), outliers.as_mut(), cls.as_mut(), cls_attn.as_mut(), None]
            }
            TeacherBatch::Online { pixels } => [None, None, None, None, Some(pixels)],
        };
        let mut tokens = cut_some(tokens, n)?.into_iter();
        let mut outliers = cut_some(outliers, n)?.into_iter();
        let mut cls = cut_some(cls, n)?.into_iter();
        let mut cls_attn = cut_some(cls_attn, n)?.into_iter();
        let mut pixels = cut_some(pixels, n)?.into_iter();
        for slot in &mut slots {
            slot.teachers.push(TeacherSlot {
                tokens: tokens.next().flatten(),
                outliers: outliers.next().flatten(),
                cls: cls.next().flatten(),
                cls_attn: cls_attn.next().flatten(),
                pixels: pixels.next().flatten(),
            });
        }
    }
    Ok(slots)
}

/// The bytes of `tensor [n, ..]` as `n` pieces.
pub(crate) fn cut(tensor: &mut Tensor, n: usize) -> torch_ext::Result<Vec<&mut [u8]>> {
    let bytes = tensor_bytes_mut(tensor)?;
    let each = bytes.len() / n;
    Ok(bytes.chunks_exact_mut(each).collect())
}

fn cut_some(tensor: Option<&mut Tensor>, n: usize) -> torch_ext::Result<Vec<Option<&mut [u8]>>> {
    Ok(match tensor {
        Some(tensor) => cut(tensor, n)?.into_iter().map(Some).collect(),
        None => (0..n).map(|_| None).collect(),
    })
}
