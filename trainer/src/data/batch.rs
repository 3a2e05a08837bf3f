//! What the loader hands to the training loop.

use images::RgbImage;
use tch::{Device, Kind, Tensor};
use torch_ext::{pinned_empty, tensor_bytes_mut};

use crate::recipe::{MaskKind, MimicTokens, Recipe};

/// One forward pass of images with everything the loss needs, on the CPU (page-locked when the device is a GPU).
///
/// The tensors are allocated once and filled in place; give a batch back to the loader when the device is done with it.
#[derive(Debug)]
pub(crate) struct MimicBatch {
    /// (sample id, view) of each image.
    pub samples: Vec<(u64, u16)>,
    /// Which images have a fresh view, whose features are in no row.
    pub fresh: Vec<bool>,
    /// `[N, S, S, 3]` u8, S = the student's image size.
    pub imgs: Tensor,
    /// The order or noise that makes the masks, drawn per (seed, epoch, sample).
    pub mask: MaskInput,
    /// `[N, L, C]` i64: the positions of the student's patches in the view that the teachers see, drawn per (seed, epoch, sample), where C is 1,
    /// or 4 in a run of two resolutions: the patches that each one is the mean of. Absent if the student sees the whole view, and if no teacher
    /// runs inside the loop.
    pub patches: Option<Tensor>,
    /// `[N, B]` f64, uniform in [0, 1), drawn per (seed, epoch, sample): which of the encoder's residual branches are dropped; absent
    /// without stochastic depth.
    pub drop_path: Option<Tensor>,
    /// `[N, teachers - 1]` f64, uniform in [0, 1), drawn per (seed, epoch, sample): which teachers do not count for an image; absent if none
    /// is dropped.
    pub teacher_drop: Option<Tensor>,
    /// How many teachers an image keeps, as the mean over the whole batch, also where this is a part of it; unused if none is dropped.
    pub mean_kept: f64,
    /// One per teacher of the run, in the order of [`BatchShape::teachers`].
    pub teachers: Vec<TeacherBatch>,
}

/// The order or noise that makes the masks of a batch.
#[derive(Debug)]
pub(crate) enum MaskInput {
    /// `[N, L]` i64: the patches of each image in the order in which they are kept. The encoder sees the first `keep`, and mimicking at the
    /// encoder needs features of these alone.
    Order(Tensor),
    /// `[N, L]` f64, uniform in [0, 1): combined with a teacher's attention on the device.
    Noise(Tensor),
}

impl MaskInput {
    /// The tensor that is filled.
    pub(crate) fn tensor_mut(&mut self) -> &mut Tensor {
        match self {
            MaskInput::Order(tensor) | MaskInput::Noise(tensor) => tensor,
        }
    }
}

/// The samples of a batch, for the log of skipped steps.
pub(crate) trait Samples {
    /// (sample id, view) of each image.
    fn samples(&self) -> &[(u64, u16)];
}

impl Samples for MimicBatch {
    fn samples(&self) -> &[(u64, u16)] {
        &self.samples
    }
}

impl MimicBatch {
    /// The batch as `n` micro-batches of equal size, in the same memory.
    pub(crate) fn micro_batches(&self, n: usize) -> impl Iterator<Item = MimicBatch> {
        let images = self.samples.len() / n;
        (0..n).map(move |i| self.narrow(i * images, images))
    }

    /// The images `start..start + len` alone, in the same memory.
    pub(crate) fn narrow(&self, start: usize, len: usize) -> MimicBatch {
        let rows = |t: &Tensor| t.narrow(0, start as i64, len as i64);
        let some_rows = |t: &Option<Tensor>| t.as_ref().map(rows);
        let count = |fresh: &[bool]| fresh.iter().filter(|fresh| **fresh).count() as i64;
        let fresh = &self.fresh[start..start + len];
        let of_teacher = |teacher: &TeacherBatch| TeacherBatch {
            rows: teacher.rows.as_ref().map(|of| RowsBatch {
                tokens: some_rows(&of.tokens),
                outliers: some_rows(&of.outliers),
                cls: some_rows(&of.cls),
                cls_attn: some_rows(&of.cls_attn),
            }),
            pixels: teacher.pixels.as_ref().map(|pixels| match &teacher.rows {
                Some(_) => pixels.narrow(0, count(&self.fresh[..start]), count(fresh)),
                None => rows(pixels),
            }),
        };
        MimicBatch {
            samples: self.samples[start..start + len].to_vec(),
            fresh: fresh.to_vec(),
            imgs: rows(&self.imgs),
            mask: match &self.mask {
                MaskInput::Order(order) => MaskInput::Order(rows(order)),
                MaskInput::Noise(noise) => MaskInput::Noise(rows(noise)),
            },
            patches: some_rows(&self.patches),
            drop_path: some_rows(&self.drop_path),
            teacher_drop: some_rows(&self.teacher_drop),
            mean_kept: self.mean_kept,
            teachers: self.teachers.iter().map(of_teacher).collect(),
        }
    }
}

/// What a batch holds for one teacher: rows, pixels for the network, or both.
#[derive(Debug)]
pub(crate) struct TeacherBatch {
    /// Features from the cache, of unspecified content for images with a fresh view; absent if all features come from the network.
    pub rows: Option<RowsBatch>,
    /// `[N, T, T, 3]` u8, T = the teacher's input size: pixels for a teacher that runs inside the loop. Where there are `rows`, only the first
    /// ones are used, one for each image with a fresh view, in their order.
    pub pixels: Option<Tensor>,
}

/// Features from the cache, in the type they are stored in.
#[derive(Debug)]
pub(crate) struct RowsBatch {
    /// `[N, keep, K]` at the visible patches, or `[N, L, K]` at all patches; absent when only the attention is used. For codec `i8` these
    /// are its codes.
    pub tokens: Option<Tensor>,
    /// `[N, keep, O]` or `[N, L, O]` f16: the channels that codec `i8` keeps apart; absent where there are none.
    pub outliers: Option<Tensor>,
    /// `[N, K]`; absent unless the CLS token is mimicked.
    pub cls: Option<Tensor>,
    /// `[N, L]` f16; absent when only the tokens are used.
    pub cls_attn: Option<Tensor>,
}

/// Sizes of a [`MimicBatch`].
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct BatchShape {
    /// N.
    pub batch_size: usize,
    pub img_size: u32,
    /// Rows and columns of patches; L is the square.
    pub grid: u32,
    /// Rows and columns of patches of the views that the teachers see; more than `grid` if the student sees a part of them.
    pub view_grid: u32,
    /// Probability with which the student sees the whole view at half the resolution instead.
    pub half_resolution: f64,
    /// Patches that the encoder sees, `keep`.
    pub keep: usize,
    /// How the visible patches are chosen.
    pub mask: MaskSource,
    /// B, the encoder's residual branches; 0 without stochastic depth.
    pub drop_path: usize,
    /// Random numbers of an image by which teachers are dropped; 0 if none is.
    pub teacher_drop: usize,
    /// What is loaded for each teacher.
    pub teachers: Vec<TeacherShape>,
}

/// How the visible patches of a batch are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MaskSource {
    /// By the data set, from noise alone: [`MaskInput::Order`].
    Dataset {
        /// Whether patches are removed in blocks.
        blocks: bool,
    },
    /// By a teacher's attention, on the device: [`MaskInput::Noise`].
    Attention,
}

/// The patches at which a teacher's tokens are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patches {
    /// The patches that the encoder sees, in the order of the mask.
    Visible,
    /// All patches, in the order of position.
    All,
}

impl Patches {
    /// The patches at which a run needs targets. It needs all of them if a teacher's attention decides the mask, which is then unknown when
    /// tokens are loaded, and if the decoder mimics, which it does at other patches too.
    pub(crate) fn of_targets(recipe: &Recipe) -> Patches {
        if recipe.mask.kind != MaskKind::Focused && recipe.mimic.tokens == MimicTokens::Visible {
            Patches::Visible
        } else {
            Patches::All
        }
    }
}

/// What is loaded for one teacher.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TeacherShape {
    /// Rows of the cache, if any are used.
    pub rows: Option<RowShape>,
    /// The size of the pixels for its network, if it runs inside the loop.
    pub input_size: Option<u32>,
}

/// What is loaded of a teacher's rows.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RowShape {
    /// Width K.
    pub width: u32,
    /// The stored type of a token's number.
    pub kind: Kind,
    /// Channels that codec `i8` keeps apart, O; 0 for the other codecs.
    pub outliers: usize,
    /// The patches at which the tokens are used; `None` if they are not used.
    pub tokens: Option<Patches>,
    /// The stored type of the CLS token's numbers, if it is used.
    pub cls: Option<Kind>,
    /// Whether the attention is used.
    pub cls_attn: bool,
}

impl BatchShape {
    /// Patches of the view that one of the student's may cover, C: 4 if it may see the view at half the resolution.
    pub(crate) fn covered(&self) -> usize {
        if self.half_resolution > 0.0 { 4 } else { 1 }
    }

    /// A batch of unspecified content, to be filled; page-locked when `device` is a GPU.
    pub(crate) fn allocate(&self, device: Device) -> torch_ext::Result<MimicBatch> {
        let n = self.batch_size as i64;
        let l = i64::from(self.grid * self.grid);
        let patches = |at: Patches| match at {
            Patches::Visible => self.keep as i64,
            Patches::All => l,
        };
        let uniform = |numbers: usize| {
            let shape = [n, numbers as i64];
            (numbers > 0).then(|| pinned_empty(&shape, Kind::Double, device)).transpose()
        };
        let pixels = |size: u32| pinned_empty(&[n, i64::from(size), i64::from(size), 3], Kind::Uint8, device);
        let rows = |shape: &RowShape| {
            let RowShape { width, kind, outliers, tokens, cls, cls_attn } = *shape;
            Ok(RowsBatch {
                outliers: (tokens.filter(|_| outliers > 0))
                    .map(|at| pinned_empty(&[n, patches(at), outliers as i64], Kind::Half, device))
                    .transpose()?,
                tokens: tokens.map(|at| pinned_empty(&[n, patches(at), i64::from(width)], kind, device)).transpose()?,
                cls: cls.map(|kind| pinned_empty(&[n, i64::from(width)], kind, device)).transpose()?,
                cls_attn: cls_attn.then(|| pinned_empty(&[n, l], Kind::Half, device)).transpose()?,
            })
        };
        let teachers = self.teachers.iter().map(|teacher| {
            Ok(TeacherBatch {
                rows: teacher.rows.as_ref().map(rows).transpose()?,
                pixels: teacher.input_size.map(pixels).transpose()?,
            })
        });
        Ok(MimicBatch {
            samples: vec![(0, 0); self.batch_size],
            fresh: vec![false; self.batch_size],
            imgs: pixels(self.img_size)?,
            mask: match self.mask {
                MaskSource::Dataset { .. } => MaskInput::Order(pinned_empty(&[n, l], Kind::Int64, device)?),
                MaskSource::Attention => MaskInput::Noise(pinned_empty(&[n, l], Kind::Double, device)?),
            },
            patches: (self.view_grid > self.grid && self.teachers.iter().any(|teacher| teacher.input_size.is_some()))
                .then(|| pinned_empty(&[n, l, self.covered() as i64], Kind::Int64, device))
                .transpose()?,
            drop_path: uniform(self.drop_path)?,
            teacher_drop: uniform(self.teacher_drop)?,
            mean_kept: 0.0,
            teachers: teachers.collect::<torch_ext::Result<_>>()?,
        })
    }
}

/// Images of `size` by `size` pixels as one tensor: `[N, size, size, 3]` u8 on the CPU.
pub(crate) fn stack<'a>(imgs: impl ExactSizeIterator<Item = &'a RgbImage>, size: u32) -> torch_ext::Result<Tensor> {
    let size = i64::from(size);
    let mut batch = Tensor::empty([imgs.len() as i64, size, size, 3], (Kind::Uint8, Device::Cpu));
    let image_bytes = (3 * size * size) as usize;
    for (slot, img) in tensor_bytes_mut(&mut batch)?.chunks_exact_mut(image_bytes).zip(imgs) {
        slot.copy_from_slice(&img.data);
    }
    Ok(batch)
}
