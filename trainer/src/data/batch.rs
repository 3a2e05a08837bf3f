//! What the loader hands to the training loop.

use tch::{Device, Kind, Tensor};
use torch_ext::pinned_empty;

/// One forward pass of images with everything the loss needs, on the CPU (page-locked when the device is a GPU).
///
/// The tensors are allocated once and filled in place; give a batch back to the loader when the device is done with it.
#[derive(Debug)]
pub(crate) struct MimicBatch {
    /// (sample id, view) of each image.
    pub samples: Vec<(u64, u16)>,
    /// `[N, S, S, 3]` u8, S = the student's image size.
    pub imgs: Tensor,
    /// `[N, L]` f64, drawn per (seed, epoch, sample): what a mask is made from. Uniform in [0, 1), or
    /// [`block_noise`](models::masking::block_noise).
    pub noise: Tensor,
    /// `[N, B]` f64, uniform in [0, 1), drawn per (seed, epoch, sample): which of the encoder's residual branches are dropped; absent
    /// without stochastic depth.
    pub drop_path: Option<Tensor>,
    /// One per teacher of the run, in the order of [`BatchShape::teachers`].
    pub teachers: Vec<TeacherBatch>,
}

/// What a batch is made of, for the record.
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
    /// The batch in `parts` equal parts, in the same memory.
    pub(crate) fn parts(&self, parts: usize) -> impl Iterator<Item = MimicBatch> {
        let images = self.samples.len() / parts;
        (0..parts).map(move |part| self.part(part * images, images))
    }

    /// The images `start..start + len` alone, in the same memory.
    pub(crate) fn part(&self, start: usize, len: usize) -> MimicBatch {
        let rows = |t: &Tensor| t.narrow(0, start as i64, len as i64);
        let some_rows = |t: &Option<Tensor>| t.as_ref().map(rows);
        let of_teacher = |teacher: &TeacherBatch| match teacher {
            TeacherBatch::Cached { tokens, outliers, cls, cls_attn } => TeacherBatch::Cached {
                tokens: some_rows(tokens),
                outliers: some_rows(outliers),
                cls: some_rows(cls),
                cls_attn: some_rows(cls_attn),
            },
            TeacherBatch::Online { pixels } => TeacherBatch::Online { pixels: rows(pixels) },
        };
        MimicBatch {
            samples: self.samples[start..start + len].to_vec(),
            imgs: rows(&self.imgs),
            noise: rows(&self.noise),
            drop_path: some_rows(&self.drop_path),
            teachers: self.teachers.iter().map(of_teacher).collect(),
        }
    }
}

/// What a batch holds for one teacher.
#[derive(Debug)]
pub(crate) enum TeacherBatch {
    /// Features from the cache, in the type they are stored in.
    Cached {
        /// `[N, L, K]`; absent when only the attention is used. For codec `i8` these are its steps.
        tokens: Option<Tensor>,
        /// `[N, L, O]` f16: the channels that codec `i8` keeps apart; absent where there are none.
        outliers: Option<Tensor>,
        /// `[N, K]`; absent unless the CLS token is mimicked.
        cls: Option<Tensor>,
        /// `[N, L]` f16; absent when only the tokens are used.
        cls_attn: Option<Tensor>,
    },
    /// Pixels for a teacher that runs inside the loop.
    Online {
        /// `[N, T, T, 3]` u8, T = the teacher's input size.
        pixels: Tensor,
    },
}

/// Sizes of a [`MimicBatch`].
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct BatchShape {
    /// N.
    pub batch_size: usize,
    /// S.
    pub img_size: u32,
    /// Side of the patch grid; L is its square.
    pub grid: u32,
    /// B, the encoder's residual branches; 0 without stochastic depth.
    pub drop_path: usize,
    /// What is loaded for each teacher.
    pub teachers: Vec<TeacherShape>,
}

/// What is loaded for one teacher.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum TeacherShape {
    /// Rows of the cache.
    Cached {
        /// Width K.
        width: u32,
        /// The stored type of a token's number.
        kind: Kind,
        /// Channels that codec `i8` keeps apart, O; 0 for the other codecs.
        outliers: usize,
        /// Whether the tokens are used.
        tokens: bool,
        /// The stored type of the CLS token's numbers, if it is used.
        cls: Option<Kind>,
        /// Whether the attention is used.
        cls_attn: bool,
    },
    /// Pixels at this size.
    Online {
        /// T.
        input_size: u32,
    },
}

impl BatchShape {
    /// A batch of unspecified content, to be filled; page-locked when `device` is a GPU.
    pub(crate) fn allocate(&self, device: Device) -> torch_ext::Result<MimicBatch> {
        let n = self.batch_size as i64;
        let l = i64::from(self.grid * self.grid);
        let pixels = |size: u32| pinned_empty(&[n, i64::from(size), i64::from(size), 3], Kind::Uint8, device);
        let teachers = self.teachers.iter().map(|teacher| {
            Ok(match *teacher {
                TeacherShape::Cached { width, kind, outliers, tokens, cls, cls_attn } => TeacherBatch::Cached {
                    outliers: (tokens && outliers > 0)
                        .then(|| pinned_empty(&[n, l, outliers as i64], Kind::Half, device))
                        .transpose()?,
                    tokens: tokens.then(|| pinned_empty(&[n, l, i64::from(width)], kind, device)).transpose()?,
                    cls: cls.map(|kind| pinned_empty(&[n, i64::from(width)], kind, device)).transpose()?,
                    cls_attn: cls_attn.then(|| pinned_empty(&[n, l], Kind::Half, device)).transpose()?,
                },
                TeacherShape::Online { input_size } => TeacherBatch::Online { pixels: pixels(input_size)? },
            })
        });
        Ok(MimicBatch {
            samples: vec![(0, 0); self.batch_size],
            imgs: pixels(self.img_size)?,
            noise: pinned_empty(&[n, l], Kind::Double, device)?,
            drop_path: (self.drop_path > 0)
                .then(|| pinned_empty(&[n, self.drop_path as i64], Kind::Double, device))
                .transpose()?,
            teachers: teachers.collect::<torch_ext::Result<_>>()?,
        })
    }
}
