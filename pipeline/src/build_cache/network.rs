//! Teachers as the threads of a build hold them, and their forward pass.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use images::RgbImage;
use models::precision::Precision;
use models::teacher::{Teacher, TeacherOutput};
use schemas::{Codec, Scalar, TeacherId, TeacherIdentity};
use tch::{Device, Kind, Tensor};

/// A teacher of this build.
#[derive(Debug)]
pub(crate) struct BuildTeacher {
    pub identity: TeacherIdentity,
    pub model: Teacher,
}

impl BuildTeacher {
    /// What one more thread needs to run it.
    pub(crate) fn network(&self) -> Network {
        Network {
            id: self.identity.id.clone(),
            model: self.model.shallow_clone(),
            input_size: self.identity.input_size,
            stored: match self.identity.codec {
                Codec::I8(_) => None,
                Codec::F32 | Codec::F16 | Codec::Bf16 => Some(self.identity.codec.cls()),
            },
        }
    }
}

/// What a thread needs of a teacher to run it.
#[derive(Debug)]
pub(crate) struct Network {
    pub id: TeacherId,
    /// The thread's own handle on the weights.
    pub model: Teacher,
    /// Side of the square that it is shown, in pixels.
    pub input_size: u32,
    /// What a GPU converts tokens and CLS to; nothing where they are wanted as the teacher computed them.
    pub stored: Option<Scalar>,
}

/// A batch's pixels: for each side of the squares that the teachers are shown, an image for each row.
pub(crate) type Pixels = BTreeMap<u32, Vec<RgbImage>>;

impl Network {
    /// The features of the images in `pixels`, u8 `[N, 3, S, S]` on the network's device.
    pub(crate) fn forward(&self, pixels: &Tensor, precision: Precision) -> anyhow::Result<TeacherOutput> {
        self.model.forward(pixels, precision).with_context(|| format!("teacher {}", self.id))
    }

    /// The images of a batch that it is shown.
    pub(crate) fn images<'a, T>(&self, by_size: &'a BTreeMap<u32, T>) -> anyhow::Result<&'a T> {
        by_size.get(&self.input_size).context("a batch holds pixels for each of its teachers")
    }
}

/// Sides of the squares that some teachers are shown, each once.
pub(crate) fn sizes<'a>(teachers: impl IntoIterator<Item = &'a TeacherIdentity>) -> Vec<u32> {
    let sizes: BTreeSet<u32> = teachers.into_iter().map(|teacher| teacher.input_size).collect();
    sizes.into_iter().collect()
}

/// Square images of one size as one tensor u8 `[N, S, S, 3]` in the host's memory: page-locked if they go to a GPU, so that the copy does not
/// pass through a second buffer.
pub(crate) fn stack(images: &[RgbImage], device: Device) -> anyhow::Result<Tensor> {
    let first = images.first().context("a batch is never empty")?;
    let size = [images.len() as i64, first.height.into(), first.width.into(), 3];
    let mut host = torch_ext::pinned_empty(&size, Kind::Uint8, device)?;
    let bytes = torch_ext::tensor_bytes_mut(&mut host)?;
    for (slot, image) in bytes.chunks_exact_mut(first.data.len()).zip(images) {
        slot.copy_from_slice(&image.data);
    }
    Ok(host)
}

/// Pixels `[N, S, S, 3]` on the device and in the order of dimensions that teachers take, `[N, 3, S, S]`.
pub(crate) fn to_device(host: &Tensor, device: Device) -> anyhow::Result<Tensor> {
    Ok(torch_ext::to_device(host, device)?.permute([0, 3, 1, 2]).contiguous())
}
