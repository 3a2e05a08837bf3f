//! Labelled images for fine-tuning: what a batch holds, and how it is filled.

use anyhow::Context;
use images::rng::{Purpose, Rng};
use images::{ImageSource, draw_view};
use rayon::prelude::*;
use schemas::{ContentHash, ViewPolicy};
use tch::{Device, Kind, Tensor};
use torch_ext::pinned_empty;

use super::recipe::Augment;
use crate::data::batch::Samples;
use crate::data::loader::{Plan, cut};
use crate::data::order::Order;

/// One forward pass of images with all that is random about them, on the CPU (page-locked when the device is a GPU).
#[derive(Debug)]
pub struct LabelledBatch {
    /// (image, epoch) of each.
    pub samples: Vec<(u64, u16)>,
    /// `[N, S, S, 3]` u8.
    pub imgs: Tensor,
    /// `[N]` i64.
    pub labels: Tensor,
    /// `[N, B]` f32, uniform in [0, 1): which residual branches are dropped.
    pub branches: Tensor,
}

impl Samples for LabelledBatch {
    fn samples(&self) -> &[(u64, u16)] {
        &self.samples
    }
}

/// What is loaded, without when.
#[derive(Debug)]
pub struct TrainPlan {
    /// The images.
    pub source: ImageSource,
    /// The class of each.
    pub labels: Vec<i64>,
    /// Which images each step sees.
    pub order: Order,
    /// Images of a batch, N.
    pub batch_size: usize,
    /// Side of an image, S.
    pub img_size: u32,
    /// Residual branches that may be dropped, B.
    pub branches: usize,
    /// What is done to an image.
    pub augment: Augment,
    /// Of everything random.
    pub seed: u64,
}

struct Slot<'a> {
    sample: &'a mut (u64, u16),
    img: &'a mut [u8],
    label: &'a mut [u8],
    branches: &'a mut [u8],
}

impl Plan for TrainPlan {
    type Batch = LabelledBatch;

    fn order(&self) -> &Order {
        &self.order
    }

    fn batch_size(&self) -> usize {
        self.batch_size
    }

    fn allocate(&self, device: Device) -> torch_ext::Result<LabelledBatch> {
        let (n, side) = (self.batch_size as i64, i64::from(self.img_size));
        // At least one number an image, so that every image has its place in the tensor.
        let branches = self.branches.max(1) as i64;
        Ok(LabelledBatch {
            samples: vec![(0, 0); self.batch_size],
            imgs: pinned_empty(&[n, side, side, 3], Kind::Uint8, device)?,
            labels: pinned_empty(&[n], Kind::Int64, device)?,
            branches: pinned_empty(&[n, branches], Kind::Float, device)?,
        })
    }

    fn fill(&self, batch: &mut LabelledBatch, epoch: u64, idxs: &[u32]) -> anyhow::Result<()> {
        let n = batch.samples.len();
        let tensors = cut(&mut batch.imgs, n)?
            .into_iter()
            .zip(cut(&mut batch.labels, n)?)
            .zip(cut(&mut batch.branches, n)?);
        let slots: Vec<Slot> = batch
            .samples
            .iter_mut()
            .zip(tensors)
            .map(|(sample, ((img, label), branches))| Slot {
                sample,
                img,
                label,
                branches,
            })
            .collect();
        // All are waited for, so that of several problems the first image's is told, whatever the threads.
        let results: Vec<anyhow::Result<()>> = slots
            .into_par_iter()
            .zip(idxs.par_iter())
            .map(|(slot, &idx)| {
                self.fill_slot(slot, epoch, idx as usize)
                    .with_context(|| self.source.key(idx as usize).to_owned())
            })
            .collect();
        results.into_iter().collect()
    }
}

impl TrainPlan {
    fn fill_slot(&self, slot: Slot, epoch: u64, idx: usize) -> anyhow::Result<()> {
        let view = u16::try_from(epoch).context("epochs are numbered in 16 bits")?;
        *slot.sample = (idx as u64, view);
        slot.label.copy_from_slice(&self.labels[idx].to_ne_bytes());

        let bytes = self.source.read(idx)?;
        let img = images::decode(&bytes)?;
        let policy = ViewPolicy::Rrc {
            scale: self.augment.crop_scale,
            ratio: [3.0 / 4.0, 4.0 / 3.0],
            flip: self.augment.flip,
        };
        let hash = ContentHash::of(&bytes);
        let view = draw_view(&policy, self.seed, &hash, view, img.width, img.height);
        let rendered = images::render(&img, &view, self.img_size)?;
        slot.img.copy_from_slice(&rendered.data);

        let mut rng = Rng::new(self.seed, Purpose::DropPath, &[epoch, idx as u64]);
        for value in slot.branches.chunks_exact_mut(size_of::<f32>()) {
            value.copy_from_slice(&rng.uniform_f32().to_ne_bytes());
        }
        Ok(())
    }
}
