//! The data set of pretraining: images with the cached features of their views.

use std::collections::BTreeMap;
use std::sync::Arc;

use images::rng::{Purpose, Rng};
use models::masking::block_noise;
use models::teacher_drop::mean_kept;
use rayon::prelude::*;
use schemas::View;
use tch::{Device, Tensor};

use super::Problem;
use super::batch::{BatchShape, MaskSource, MimicBatch, Patches, RowsBatch, TeacherBatch};
use super::joined::{Joined, JoinedCaches};
use super::loader::{Dataset, cut};
use super::pixel_cache::PixelCache;
use super::rows::{TeacherRows, Wanted};
use super::sample::Sample;
use super::sampler::Sampler;
use super::teachers::{self, RunTeacher};
use super::window::Window;
use crate::dist::Share;
use crate::recipe::{MaskKind, Recipe};

/// Samples of the caches, their pixels, and the rows of the teachers that do not run online for all views.
pub(crate) struct MimicDataset {
    /// The caches with their images.
    pub joined: JoinedCaches,
    /// For each teacher its rows in each cache; `None` where all features come from its network.
    pub rows: Vec<Option<Vec<Arc<TeacherRows>>>>,
    /// The crops that are kept in memory: whole views, of which the student may see a part.
    pub pixels: PixelCache,
    /// Sizes of a batch.
    pub shape: BatchShape,
    /// Which samples each step sees.
    pub sampler: Sampler,
    /// Which of them this process loads.
    pub share: Share,
    /// Seed of mask noise, stochastic depth, teacher dropping, shifts and fresh views.
    pub seed: u64,
    /// Probability with which a view is a fresh one.
    pub fresh: f64,
    /// Probability with which a teacher is dropped.
    pub drop: f64,
}

impl Dataset for MimicDataset {
    type Batch = MimicBatch;

    fn sampler(&self) -> &Sampler {
        &self.sampler
    }

    fn share(&self) -> &Share {
        &self.share
    }

    fn allocate(&self, device: Device) -> torch_ext::Result<MimicBatch> {
        self.shape.allocate(device)
    }

    fn is_remote(&self) -> bool {
        self.joined.members().iter().any(|joined| joined.images.is_remote())
            || self.rows.iter().flatten().flatten().any(|rows| rows.is_remote())
    }

    fn prefetch(&self, epoch: u64, idxs: &[u32]) {
        let view = (epoch % self.joined.views() as u64) as usize;
        for &idx in idxs {
            let (member, joined, at) = self.joined.locate(idx as usize);
            let (sample, _) = joined.samples.get(at, view);
            let is_fresh = self.fresh_view(epoch, idx as usize).is_some();
            if !is_fresh {
                self.rows.iter().flatten().for_each(|rows| rows[member].prefetch(sample, sample.row(view)));
            }
            if is_fresh || !self.pixels.has(idx as usize, view) {
                joined.images.prefetch(sample);
            }
        }
    }

    fn fill(&self, batch: &mut MimicBatch, epoch: u64, idxs: &[u32]) -> anyhow::Result<()> {
        MimicDataset::fill(self, batch, epoch, idxs)
    }

    fn set_whole(&self, batch: &mut MimicBatch, epoch: u64, whole: &[u32]) -> anyhow::Result<()> {
        if batch.teacher_drop.is_some() {
            let draws = whole.iter().flat_map(|&idx| self.teacher_draws(epoch, self.sample_id(idx as usize)));
            let uniform = Tensor::from_slice(&draws.collect::<Vec<f64>>()).view([whole.len() as i64, -1]);
            batch.mean_kept = mean_kept(&uniform, self.drop);
        }
        Ok(())
    }
}

/// The memory of one image within a batch.
struct Slot<'a> {
    sample: &'a mut (u64, u16),
    img: &'a mut [u8],
    mask: &'a mut [u8],
    patches: Option<&'a mut [u8]>,
    drop_path: Option<&'a mut [u8]>,
    teacher_drop: Option<&'a mut [u8]>,
    teachers: Vec<TeacherSlot<'a>>,
}

struct TeacherSlot<'a> {
    tokens: Option<&'a mut [u8]>,
    outliers: Option<&'a mut [u8]>,
    cls: Option<&'a mut [u8]>,
    cls_attn: Option<&'a mut [u8]>,
    pixels: Option<&'a mut [u8]>,
}

impl MimicDataset {
    /// The data set that `recipe` trains on, in the order of `sampler`.
    ///
    /// # Errors
    /// If the caches do not say how large the views are of which the student sees a part.
    pub(crate) fn new(
        recipe: &Recipe,
        teachers: &[RunTeacher],
        joined: JoinedCaches,
        sampler: Sampler,
        share: Share,
    ) -> anyhow::Result<MimicDataset> {
        let known = joined.members().first().map(|member| member.cache.teachers());
        let shape = BatchShape {
            batch_size: share.images(),
            img_size: recipe.model.img_size,
            grid: recipe.grid(),
            view_grid: teachers::view_grid(recipe, known.unwrap_or(&BTreeMap::new()))?,
            half_resolution: recipe.data.half_resolution,
            keep: recipe.len_keep() as usize,
            mask: match recipe.mask.kind {
                MaskKind::Random => MaskSource::Dataset { blocks: false },
                MaskKind::Block => MaskSource::Dataset { blocks: true },
                MaskKind::Focused => MaskSource::Attention,
            },
            drop_path: recipe.drop_path_branches(),
            teacher_drop: recipe.teacher_draws(),
            teachers: teachers.iter().map(|t| t.shape.clone()).collect(),
        };
        let rows: Vec<Option<Vec<Arc<TeacherRows>>>> =
            teachers.iter().map(|teacher| teacher.rows().map(<[_]>::to_vec)).collect();
        let pixels = PixelCache::new(recipe.data.pixel_cache_mib << 20);
        // Over a network, the first batches would wait for hundreds of parts to be opened one by one.
        for (member, Joined { samples, images, .. }) in joined.members().iter().enumerate() {
            let parts = samples.parts();
            rows.iter().flatten().for_each(|rows| rows[member].open_ahead(&parts));
            images.open_ahead(&parts);
        }
        let (seed, fresh, drop) = (recipe.run.seed, recipe.data.fresh, recipe.mimic.drop);
        Ok(MimicDataset { joined, rows, pixels, shape, sampler, share, seed, fresh, drop })
    }

    /// Fills `batch` with the given samples of an epoch. Of several problems, the first slot's is returned.
    pub(crate) fn fill(&self, batch: &mut MimicBatch, epoch: u64, idxs: &[u32]) -> anyhow::Result<()> {
        let view = (epoch % self.joined.views() as u64) as usize;
        let fresh: Vec<Option<View>> = idxs.iter().map(|&idx| self.fresh_view(epoch, idx as usize)).collect();
        batch.fresh = fresh.iter().map(Option::is_some).collect();
        let slots = slots(batch)?;
        let results: Vec<Result<(), Problem>> = slots
            .into_par_iter()
            .zip(idxs.par_iter().zip(fresh))
            .map(|(slot, (&idx, fresh))| self.fill_slot(slot, epoch, idx as usize, view, fresh))
            .collect();
        results.into_iter().collect::<Result<(), Problem>>()?;
        batch.mean_kept = batch.teacher_drop.as_ref().map_or(0.0, |uniform| mean_kept(uniform, self.drop));
        Ok(())
    }

    /// The fresh view of image `idx` in an epoch; `None` if it has a stored one.
    pub(super) fn fresh_view(&self, epoch: u64, idx: usize) -> Option<View> {
        if self.fresh == 0.0 {
            return None;
        }
        let (_, joined, at) = self.joined.locate(idx);
        let mut rng = Rng::new(self.seed, Purpose::Fresh, &[epoch, self.sample_id(idx)]);
        (rng.uniform_f64() < self.fresh).then(|| joined.samples.draw_fresh(at, &mut rng))
    }

    /// The number of image `idx` among those of all caches, by which its random numbers are keyed.
    fn sample_id(&self, idx: usize) -> u64 {
        let (_, joined, at) = self.joined.locate(idx);
        joined.first_sample_id + joined.samples.get(at, 0).0.sample_id
    }

    /// The random numbers by which teachers are dropped for an image.
    fn teacher_draws(&self, epoch: u64, sample_id: u64) -> impl Iterator<Item = f64> {
        let mut rng = Rng::new(self.seed, Purpose::TeacherDrop, &[epoch, sample_id]);
        std::iter::repeat_with(move || rng.uniform_f64()).take(self.shape.teacher_drop)
    }

    /// Fills the memory of image `idx` with its `fresh` view, or with its stored one of number `view`.
    fn fill_slot(&self, slot: Slot, epoch: u64, idx: usize, view: usize, fresh: Option<View>) -> Result<(), Problem> {
        let (member, joined, at) = self.joined.locate(idx);
        let (sample, stored) = joined.samples.get(at, view);
        let row_view = fresh.unwrap_or(stored);
        let sample_id = joined.first_sample_id + sample.sample_id;
        *slot.sample = (sample_id, row_view.index);

        // ---- the part of the view that the student sees
        let BatchShape { view_grid, grid, half_resolution, .. } = self.shape;
        let window = Window::draw(self.seed, epoch, sample_id, view_grid, grid, half_resolution);
        let (covered, window_patches) = (window.covered(), window.patches());
        if let (Some(out), Some(patches)) = (slot.patches, &window_patches) {
            // The mean of a patch and three times itself is the patch.
            let times = self.shape.covered() / covered;
            let repeated = patches.iter().flat_map(|&patch| std::iter::repeat_n(patch, times));
            write(out, repeated.map(|patch| (patch as i64).to_ne_bytes()));
        }

        // ---- pixels: an image is read only if one of its crops is not in memory
        let patch_size = self.shape.img_size / self.shape.grid;
        let view_size = self.shape.view_grid * patch_size;
        let mut img = None;
        let (kept, rendered);
        // A fresh view does not come again.
        let whole: &[u8] = match self.pixels.get(idx, view).filter(|_| fresh.is_none()) {
            Some(crop) => {
                kept = crop;
                &kept
            }
            None => {
                let img = img.insert(read_image(joined, sample, view)?);
                rendered = render(joined, img, sample, &row_view, view_size)?;
                if fresh.is_none() {
                    self.pixels.put(idx, view, &rendered);
                }
                &rendered
            }
        };
        window.cut(whole, patch_size, slot.img);

        // ---- the mask, or the noise for it
        let mut rng = Rng::new(self.seed, Purpose::Mask, &[epoch, sample_id]);
        let (size, keep) = (self.shape.grid as usize, self.shape.keep);
        let noise: Vec<f64> = match self.shape.mask {
            MaskSource::Dataset { blocks: true } => {
                block_noise([size, size], size * size - keep, &mut || rng.uniform_f64())
            }
            MaskSource::Dataset { blocks: false } | MaskSource::Attention => {
                (0..size * size).map(|_| rng.uniform_f64()).collect()
            }
        };
        let order = match self.shape.mask {
            MaskSource::Dataset { .. } => {
                let order = argsort(&noise);
                write(slot.mask, order.iter().map(|&patch| (patch as i64).to_ne_bytes()));
                order
            }
            MaskSource::Attention => {
                write(slot.mask, noise.iter().map(|value| value.to_ne_bytes()));
                Vec::new()
            }
        };

        // ---- stochastic depth
        if let Some(drop_path) = slot.drop_path {
            let mut rng = Rng::new(self.seed, Purpose::DropPath, &[epoch, sample_id]);
            write(drop_path, std::iter::repeat_with(|| rng.uniform_f64().to_ne_bytes()));
        }

        // ---- teacher dropping
        if let Some(teacher_drop) = slot.teacher_drop {
            write(teacher_drop, self.teacher_draws(epoch, sample_id).map(f64::to_ne_bytes));
        }

        // ---- teachers
        let visible: Vec<usize> = match &window_patches {
            Some(patches) => {
                let of = |patch: usize| &patches[patch * covered..(patch + 1) * covered];
                order.iter().take(keep).flat_map(|&patch| of(patch)).copied().collect()
            }
            None => order.into_iter().take(keep).collect(),
        };
        for ((teacher, rows), shape) in slot.teachers.into_iter().zip(&self.rows).zip(&self.shape.teachers) {
            if let (Some(rows), Some(shape), None) = (rows, &shape.rows, fresh) {
                let patches = match shape.tokens {
                    Some(Patches::Visible) => Some(&visible[..]),
                    Some(Patches::All) | None => window_patches.as_deref(),
                };
                let wanted = Wanted {
                    covered,
                    patches,
                    tokens: teacher.tokens,
                    outliers: teacher.outliers,
                    cls: teacher.cls,
                    attended: window_patches.as_deref(),
                    cls_attn: teacher.cls_attn,
                };
                rows[member].read(sample, &row_view, sample.row(view), wanted)?;
            }
            if let (Some(pixels), Some(input_size)) = (teacher.pixels, shape.input_size) {
                if input_size == view_size {
                    pixels.copy_from_slice(whole);
                } else {
                    let img = match &mut img {
                        Some(img) => img,
                        None => img.insert(read_image(joined, sample, view)?),
                    };
                    pixels.copy_from_slice(&render(joined, img, sample, &row_view, input_size)?);
                }
            }
        }
        Ok(())
    }
}

fn read_image(joined: &Joined, sample: &Sample, view: usize) -> Result<images::RgbImage, Problem> {
    let bytes = joined.images.read(sample, view)?;
    let decoded = joined.samples.decoder().decode(&bytes);
    decoded.map_err(|e| joined.images.problem(sample, view, e))
}

/// The view of the image at `size`, as [H, W, 3] bytes.
fn render(
    joined: &Joined,
    img: &images::RgbImage,
    sample: &Sample,
    view: &View,
    size: u32,
) -> Result<Vec<u8>, Problem> {
    let rendered = images::render(img, view, size).map_err(|e| joined.images.problem(sample, view.index.into(), e))?;
    Ok(rendered.data)
}

/// Fills `bytes` with as many of `values` as it has room for.
fn write<const SIZE: usize>(bytes: &mut [u8], values: impl IntoIterator<Item = [u8; SIZE]>) {
    for (slot, value) in bytes.chunks_exact_mut(SIZE).zip(values) {
        slot.copy_from_slice(&value);
    }
}

/// The indices that sort `noise` from its smallest value to its largest; equal values keep their order, as in
/// [`random_masking`](models::masking::random_masking).
fn argsort(noise: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..noise.len()).collect();
    order.sort_by(|&a, &b| noise[a].total_cmp(&noise[b]));
    order
}

/// Cuts a batch's tensors into one slot per image.
fn slots(batch: &mut MimicBatch) -> torch_ext::Result<Vec<Slot<'_>>> {
    let MimicBatch { samples, fresh, imgs, mask, patches, drop_path, teacher_drop, mean_kept: _, teachers } = batch;
    let n = samples.len();
    let pixels_and_masks = cut(imgs, n)?.into_iter().zip(cut(mask.tensor_mut(), n)?);
    let patches = cut_some(patches.as_mut(), n)?;
    let drops = cut_some(drop_path.as_mut(), n)?.into_iter().zip(cut_some(teacher_drop.as_mut(), n)?);
    let mut slots: Vec<Slot> = samples
        .iter_mut()
        .zip(pixels_and_masks)
        .zip(patches)
        .zip(drops)
        .map(|(((sample, (img, mask)), patches), (drop_path, teacher_drop))| Slot {
            sample,
            img,
            mask,
            patches,
            drop_path,
            teacher_drop,
            teachers: Vec::new(),
        })
        .collect();
    for teacher in teachers {
        let TeacherBatch { rows, pixels } = teacher;
        let all_online = rows.is_none();
        let [tokens, outliers, cls, cls_attn] = match rows {
            Some(RowsBatch { tokens, outliers, cls, cls_attn }) => {
                [tokens.as_mut(), outliers.as_mut(), cls.as_mut(), cls_attn.as_mut()]
            }
            None => [None, None, None, None],
        };
        let mut tokens = cut_some(tokens, n)?.into_iter();
        let mut outliers = cut_some(outliers, n)?.into_iter();
        let mut cls = cut_some(cls, n)?.into_iter();
        let mut cls_attn = cut_some(cls_attn, n)?.into_iter();
        let mut pixels = cut_some(pixels.as_mut(), n)?.into_iter();
        for (slot, is_fresh) in slots.iter_mut().zip(&*fresh) {
            slot.teachers.push(TeacherSlot {
                tokens: tokens.next().flatten(),
                outliers: outliers.next().flatten(),
                cls: cls.next().flatten(),
                cls_attn: cls_attn.next().flatten(),
                pixels: if all_online || *is_fresh { pixels.next().flatten() } else { None },
            });
        }
    }
    Ok(slots)
}

fn cut_some(tensor: Option<&mut Tensor>, n: usize) -> torch_ext::Result<Vec<Option<&mut [u8]>>> {
    Ok(match tensor {
        Some(tensor) => cut(tensor, n)?.into_iter().map(Some).collect(),
        None => (0..n).map(|_| None).collect(),
    })
}
