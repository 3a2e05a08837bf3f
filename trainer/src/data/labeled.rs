//! Labeled images for fine-tuning: what a batch holds, and how it is filled.

use std::sync::Arc;

use anyhow::{Context, bail};
use images::augment::{RandAugment, RandomErasing};
use images::rng::{Purpose, Rng};
use images::{ImageSource, RgbImage, draw_view};
use rayon::prelude::*;
use schemas::{ContentHash, ViewPolicy};
use tch::{Device, Kind, Tensor};
use torch_ext::pinned_empty;

use super::rejects::Rejects;
use crate::data::batch::Samples;
use crate::data::loader::{Dataset, cut};
use crate::data::sampler::Sampler;
use crate::dist::Share;
use crate::recipe::finetune::Augment;

/// One forward pass of labeled images and all random numbers it needs, on the CPU (page-locked when the device is a GPU).
#[derive(Debug)]
pub(crate) struct LabeledBatch {
    /// (image, epoch) of each.
    pub samples: Vec<(u64, u16)>,
    /// `[N, S, S, 3]` u8; with random erasing `[N, 3, S, S]` f32, normalized.
    pub imgs: Tensor,
    /// `[N]` i64.
    pub labels: Tensor,
    /// `[N, B]` f32, uniform in [0, 1): which residual branches are dropped.
    pub branches: Tensor,
}

impl Samples for LabeledBatch {
    fn samples(&self) -> &[(u64, u16)] {
        &self.samples
    }
}

/// The labeled images and how they are augmented.
#[derive(Debug)]
pub(crate) struct LabeledDataset {
    pub source: ImageSource,
    /// The class of each image.
    pub labels: Vec<i64>,
    /// Which images each step sees.
    pub sampler: Sampler,
    /// Which of them this process loads: N of a batch.
    pub share: Share,
    /// Side of an image, S.
    pub img_size: u32,
    /// Residual branches that may be dropped, B.
    pub branches: usize,
    /// How an image is augmented.
    pub augment: Augment,
    /// Mean and std by which the encoder's pixels are normalized.
    pub normalization: [[f32; 3]; 2],
    /// RandAugment, if the recipe has it.
    pub policy: Option<RandAugment>,
    pub seed: u64,
    /// Images that could not be used.
    pub rejects: Arc<Rejects>,
}

struct Slot<'a> {
    sample: &'a mut (u64, u16),
    img: &'a mut [u8],
    label: &'a mut [u8],
    branches: &'a mut [u8],
}

impl Dataset for LabeledDataset {
    type Batch = LabeledBatch;

    fn sampler(&self) -> &Sampler {
        &self.sampler
    }

    fn share(&self) -> &Share {
        &self.share
    }

    fn allocate(&self, device: Device) -> torch_ext::Result<LabeledBatch> {
        let (n, side) = (self.share.images() as i64, i64::from(self.img_size));
        let imgs = match self.augment.random_erasing > 0.0 {
            true => pinned_empty(&[n, 3, side, side], Kind::Float, device)?,
            false => pinned_empty(&[n, side, side, 3], Kind::Uint8, device)?,
        };
        // At least one number per image, so that every image has its place in the tensor.
        let branches = self.branches.max(1) as i64;
        Ok(LabeledBatch {
            samples: vec![(0, 0); self.share.images()],
            imgs,
            labels: pinned_empty(&[n], Kind::Int64, device)?,
            branches: pinned_empty(&[n, branches], Kind::Float, device)?,
        })
    }

    fn is_remote(&self) -> bool {
        self.source.is_remote()
    }

    fn prefetch(&self, _epoch: u64, idxs: &[u32]) {
        idxs.iter().for_each(|&idx| self.source.prefetch(idx as usize));
    }

    fn fill(&self, batch: &mut LabeledBatch, epoch: u64, idxs: &[u32]) -> anyhow::Result<()> {
        let n = batch.samples.len();
        let tensors =
            cut(&mut batch.imgs, n)?.into_iter().zip(cut(&mut batch.labels, n)?).zip(cut(&mut batch.branches, n)?);
        let slots: Vec<Slot> = batch
            .samples
            .iter_mut()
            .zip(tensors)
            .map(|(sample, ((img, label), branches))| Slot { sample, img, label, branches })
            .collect();
        // Waits for all images, so that the first image's problem is reported whatever the number of threads.
        let results: Vec<anyhow::Result<()>> = slots
            .into_par_iter()
            .zip(idxs.par_iter())
            .map(|(slot, &idx)| {
                self.fill_slot(slot, epoch, idx as usize).with_context(|| self.source.key(idx as usize).to_owned())
            })
            .collect();
        results.into_iter().collect()
    }
}

impl LabeledDataset {
    /// Image `idx` with its index and bytes. If it cannot be decoded, the next image of the data set that can takes its place, whatever the
    /// step, the epoch or the number of threads. So every batch is full, and a resumed run sees the same images.
    fn usable(&self, idx: usize) -> anyhow::Result<(usize, Vec<u8>, RgbImage)> {
        /// This many damaged images in a row are not an accident.
        const MAX_IN_ROW: usize = 100;
        let n = self.labels.len();
        for idx in (0..MAX_IN_ROW.min(n)).map(|ahead| (idx + ahead) % n) {
            let bytes = self.source.read(idx)?;
            match self.source.decode(idx, &bytes) {
                Ok(img) => return Ok((idx, bytes, img)),
                Err(reason) => self.rejects.add(self.source.key(idx), &reason.to_string()),
            }
        }
        bail!("neither this image nor the {} after it can be decoded: check the data set", MAX_IN_ROW.min(n) - 1)
    }

    fn fill_slot(&self, slot: Slot, epoch: u64, idx: usize) -> anyhow::Result<()> {
        let view = u16::try_from(epoch).context("epochs are numbered in 16 bits")?;
        let (shown, bytes, img) = self.usable(idx)?;
        *slot.sample = (shown as u64, view);
        slot.label.copy_from_slice(&self.labels[shown].to_ne_bytes());

        let policy =
            ViewPolicy::Rrc { scale: self.augment.crop_scale, ratio: [3.0 / 4.0, 4.0 / 3.0], flip: self.augment.flip };
        let hash = ContentHash::of(&bytes);
        let view = draw_view(&policy, self.seed, &hash, view, img.width, img.height);
        let mut rendered = images::render(&img, &view, self.img_size)?;
        let key = [epoch, idx as u64];
        if let Some(policy) = &self.policy {
            let ops = policy.draw(&mut Rng::new(self.seed, Purpose::Augment, &key));
            rendered = policy.apply(&rendered, &ops);
        }
        if self.augment.random_erasing > 0.0 {
            // The noise replaces normalized pixels, so they are normalized here.
            let mut pixels = normalized(&rendered, self.normalization);
            let mut rng = Rng::new(self.seed, Purpose::Erase, &key);
            let erasing = RandomErasing::with_prob(self.augment.random_erasing);
            if let Some(area) = erasing.draw(&mut rng, self.img_size, self.img_size) {
                area.erase(&mut rng, &mut pixels, self.img_size);
            }
            let slots = slot.img.chunks_exact_mut(size_of::<f32>());
            for (slot, value) in slots.zip(pixels) {
                slot.copy_from_slice(&value.to_ne_bytes());
            }
        } else {
            slot.img.copy_from_slice(&rendered.data);
        }

        let mut rng = Rng::new(self.seed, Purpose::DropPath, &[epoch, idx as u64]);
        for value in slot.branches.chunks_exact_mut(size_of::<f32>()) {
            value.copy_from_slice(&rng.uniform_f32().to_ne_bytes());
        }
        Ok(())
    }
}

/// `[H, W, 3]` bytes as `[3, H, W]`, normalized to the same bits as by [`Normalize`](crate::data::normalize::Normalize) on the device.
fn normalized(img: &RgbImage, [mean, std]: [[f32; 3]; 2]) -> Vec<f32> {
    (0..3)
        .flat_map(|c| {
            let channel = img.data.iter().skip(c).step_by(3);
            channel.map(move |&v| (f32::from(v) / 255.0 - mean[c]) / std[c])
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use crate::data::normalize::{IMAGENET_MEAN, IMAGENET_STD, Normalize};

    use super::*;

    #[test]
    fn pixels_are_normalized_as_on_the_device() {
        let data: Vec<u8> = (0..5 * 4 * 3).map(|i| (i * 37 % 256) as u8).collect();
        let img = RgbImage { width: 5, height: 4, data: data.clone() };
        let expected = Normalize::imagenet(Device::Cpu).forward(&Tensor::from_slice(&data).reshape([1, 4, 5, 3]));
        let expected = Vec::<f32>::try_from(expected.contiguous().flatten(0, -1)).unwrap();
        assert_eq!(normalized(&img, [IMAGENET_MEAN, IMAGENET_STD]), expected);
    }
}
